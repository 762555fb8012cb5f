//! Who is next: rules of the counts and of the order, told as scenes. Knows no connections.

use super::*;
use crate::pool::OwnLimits;

struct Scene {
    registry: Arc<Registry>,
    settings: Settings,
}

impl Scene {
    fn new(limits: Limits) -> Self {
        let settings = Settings { limits, ..Settings::default() };
        Self { registry: Registry::new(3, LoginKeys::new(Box::new(|_| {}))).0, settings }
    }

    fn pool(&self, database: &str, user: &str) -> Arc<PoolShared> {
        let key = PoolKey { node: NodeId(0), database: database.into(), user: user.into() };
        self.registry.shared(&key, &self.settings)
    }
}

/// Begins to wait on a shard, as the first one there.
fn wait(pool: &PoolShared, shard: usize, since_us: u64) {
    pool.begin_waiting(shard);
    pool.set_first(shard, Some(since_us));
}

fn fill(pool: &PoolShared, count: usize) {
    for _ in 0..count {
        pool.take(Duration::ZERO).unwrap();
    }
}

fn who(claimant: &Claimant) -> Option<(&str, usize)> {
    match claimant {
        Claimant::Of(pool, shard) => Some((&*pool.key.user, *shard)),
        Claimant::Nobody => None,
    }
}

#[test]
fn a_connection_is_counted_at_all_limits_or_at_none() {
    let mut scene = Scene::new(Limits { size: 3, database_max: Some(4), ..Limits::default() });
    let two = OwnLimits { connections_max: Some(2), ..OwnLimits::default() };
    scene.settings.users.insert("ann".to_owned(), two);
    let (ann, bob, elsewhere) = (scene.pool("a", "ann"), scene.pool("a", "bob"), scene.pool("b", "ann"));
    fill(&bob, 3);
    assert_eq!(bob.take(Duration::ZERO), Err(Limit::Pool));
    fill(&ann, 1);
    assert_eq!(ann.take(Duration::ZERO), Err(Limit::Database));
    assert_eq!(ann.open_count(), 1);
    bob.give_back();
    fill(&elsewhere, 1);
    assert_eq!(ann.take(Duration::ZERO), Err(Limit::User), "her other database counts");
    elsewhere.give_back();
    fill(&ann, 1);
    assert_eq!(
        (ann.obstacle(Duration::ZERO), bob.obstacle(Duration::ZERO)),
        (Some(Limit::Database), Some(Limit::Database))
    );
}

/// Counted apart from the limits themselves: what threads hold at a time.
#[test]
fn no_number_of_threads_exceeds_a_limit() {
    const USERS: [&str; 4] = ["ann", "bob", "eve", "zoe"];
    let limits = Limits { size: 100, database_max: Some(50), user_max: Some(20), ..Limits::default() };
    let scene = Scene::new(limits);
    let pools = USERS.map(|user| scene.pool("a", user));
    let (all, each) = (AtomicUsize::new(0), USERS.map(|_| AtomicUsize::new(0)));
    let most = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for (pool, own) in pools.iter().zip(&each).chain(pools.iter().zip(&each)) {
            let (all, most) = (&all, &most);
            scope.spawn(move || {
                for _ in 0..500 {
                    let taken = (0..15).filter(|_| pool.take(Duration::ZERO).is_ok()).count();
                    let (of_all, of_own) =
                        (all.fetch_add(taken, Ordering::SeqCst), own.fetch_add(taken, Ordering::SeqCst));
                    assert!(of_all + taken <= 50 && of_own + taken <= 20, "{of_all} {of_own} {taken}");
                    most.fetch_max(of_all + taken, Ordering::SeqCst);
                    std::thread::yield_now();
                    all.fetch_sub(taken, Ordering::SeqCst);
                    own.fetch_sub(taken, Ordering::SeqCst);
                    (0..taken).for_each(|_| pool.give_back());
                }
            });
        }
    });
    println!("at most {most:?} at a time");
    assert!(pools.iter().all(|pool| pool.open_count() == 0));
    assert!(pools.iter().all(|pool| pool.tallies().all(|(_, tally)| tally.open.load(Ordering::SeqCst) == 0)));
}

/// The reserve is for those who have waited long enough, and for nobody else.
#[test]
fn the_reserve_is_room_for_those_who_have_waited() {
    let second = Duration::from_secs(1);
    let limits = Limits { size: 1, reserve_size: 1, reserve_timeout: Some(second), ..Limits::default() };
    let pool = Scene::new(limits).pool("a", "ann");
    fill(&pool, 1);
    assert_eq!(pool.take(second / 2), Err(Limit::Pool));
    assert_eq!(pool.take(second), Ok(()));
    assert_eq!(pool.take(second * 9), Err(Limit::Pool));
    let none = Scene::new(Limits { reserve_timeout: None, ..limits }).pool("a", "ann");
    fill(&none, 1);
    assert_eq!(none.take(second * 9), Err(Limit::Pool));
}

/// Over all shards, whoever has waited longest; a shard that has enough on its way is passed over.
#[test]
fn what_is_given_back_goes_to_who_has_waited_longest() {
    let pool = Scene::new(Limits { size: 1, ..Limits::default() }).pool("a", "ann");
    fill(&pool, 1);
    assert_eq!(who(&pool.who_gets(0)), None);
    for (shard, since_us) in [(0, 300), (1, 200), (2, 100)] {
        wait(&pool, shard, since_us);
    }
    assert_eq!(who(&pool.who_gets(0)), Some(("ann", 2)));
    pool.sends_to(2);
    assert_eq!(who(&pool.who_gets(0)), Some(("ann", 1)));
    assert_eq!(who(&pool.who_gets(2)), Some(("ann", 2)), "it has one in hand");
    pool.sends_to(1);
    assert_eq!(who(&pool.who_gets(0)), Some(("ann", 0)));
    pool.sent_to(2);
    assert_eq!(who(&pool.who_gets(0)), Some(("ann", 2)));
}

/// At a limit of the database: its own pool first, unless somebody has waited for much longer; and only for whom it would help.
#[test]
fn a_connection_is_closed_for_another_pool_that_has_waited_longer() {
    let grain = u64::try_from(GRAIN.as_micros()).unwrap();
    let scene = Scene::new(Limits { size: 2, database_max: Some(2), ..Limits::default() });
    let (ann, bob, other) = (scene.pool("a", "ann"), scene.pool("a", "bob"), scene.pool("b", "bob"));
    fill(&ann, 2);
    wait(&bob, 1, 5);
    wait(&other, 1, 1);
    assert_eq!(who(&ann.who_gets(0)), Some(("bob", 1)), "nobody waits for ann's own");
    wait(&ann, 0, 5 + grain);
    assert_eq!(who(&ann.who_gets(0)), Some(("ann", 0)), "as good as at the same time");
    ann.set_first(0, Some(6 + grain));
    assert_eq!(who(&ann.who_gets(0)), Some(("bob", 1)));
    // Where bob's own pool is full it would not help him.
    let full = Scene::new(Limits { size: 1, database_max: Some(2), ..Limits::default() });
    let (ann, bob) = (full.pool("a", "ann"), full.pool("a", "bob"));
    fill(&ann, 1);
    fill(&bob, 1);
    wait(&bob, 1, 5);
    assert_eq!(who(&ann.who_gets(0)), None);
}

#[test]
fn room_goes_to_who_has_waited_longest_and_can_use_it() {
    let mut scene = Scene::new(Limits { size: 2, database_max: Some(3), ..Limits::default() });
    let one = OwnLimits { connections_max: Some(1), ..OwnLimits::default() };
    scene.settings.users.insert("eve".to_owned(), one);
    let (ann, bob, eve) = (scene.pool("a", "ann"), scene.pool("a", "bob"), scene.pool("a", "eve"));
    fill(&ann, 2);
    fill(&eve, 1);
    for (pool, shard, since_us) in [(&eve, 0, 10), (&ann, 1, 20), (&bob, 2, 30), (&bob, 0, 25)] {
        wait(pool, shard, since_us);
    }
    assert_eq!(who(&ann.who_may_open()), None, "the database is full");
    eve.give_back();
    assert_eq!(who(&ann.who_may_open()), Some(("eve", 0)));
    fill(&eve, 1);
    ann.give_back();
    assert_eq!(who(&eve.who_may_open()), Some(("ann", 1)), "eve may not have another one");
    fill(&ann, 1);
    assert_eq!(who(&eve.who_may_open()), None);
    // Ann's pool is full, bob is the next who can use what eve gives up; on the shard where he has waited longest.
    eve.set_first(0, None);
    eve.end_waiting(0);
    eve.give_back();
    assert_eq!(who(&eve.who_may_open()), Some(("bob", 0)));
    assert!(!ann.nobody_waits() && !eve.nobody_waits(), "eve's database has waiters");
}

/// At the limits of both his database and his user: neither connection is kept idle although one alone would not be enough.
#[test]
fn who_waits_at_two_limits_gets_both_closed() {
    let scene = Scene::new(Limits { database_max: Some(1), user_max: Some(1), ..Limits::default() });
    let (ann, bob, elsewhere) = (scene.pool("a", "ann"), scene.pool("a", "bob"), scene.pool("b", "bob"));
    fill(&ann, 1);
    fill(&elsewhere, 1);
    wait(&bob, 1, 5);
    for pool in [&ann, &elsewhere] {
        assert_eq!(who(&pool.who_gets(0)), Some(("bob", 1)));
    }
    ann.give_back();
    assert_eq!(who(&ann.who_may_open()), None);
    elsewhere.give_back();
    assert_eq!(who(&elsewhere.who_may_open()), Some(("bob", 1)));
}
