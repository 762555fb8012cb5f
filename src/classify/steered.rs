//! Shapes of reads that standbys cancel again and again, and that run long: where they go from the start, for one database.
//!
//! Invariant: bounded in number and in time. A statement pays one relaxed load while there is none, a hash and a look-up without a
//! lock while there are; the lock is for conflicts alone. Pure: `now` is an argument. Must not know: SQLSTATEs, which standby it was.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

/// Shapes that are steered, and as many that are watched, in one database.
const SHAPES_MAX: usize = 1000;
/// A statement that is cancelled sooner costs little to run again.
const LONG: Duration = Duration::from_millis(100);
/// Conflicts of long statements after which a shape is steered.
const CONFLICTS_MIN: u32 = 3;

/// Where a statement goes from the start.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Steer {
    /// As others do.
    #[default]
    Not,
    /// To the standby that is least likely to cancel it.
    Calmest,
    /// To the primary, as far as it has room: that standby has cancelled it as well.
    Primary,
}

impl Steer {
    /// The word in `/learned`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Not => "any standby",
            Self::Calmest => "calmest standby",
            Self::Primary => "primary",
        }
    }
}

/// A shape that is steered.
#[derive(Debug)]
struct Steered {
    to: Steer,
    text: String,
    conflicts: u32,
    until: Instant,
    steered: Arc<AtomicU64>,
}

/// A shape whose conflicts are counted.
#[derive(Debug, Clone, Copy)]
struct Watched {
    conflicts: u32,
    since: Instant,
}

/// The same for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SteeredReport {
    /// The shape, with `?` for values.
    pub text: String,
    /// Where it goes.
    pub to: Steer,
    /// How often standbys cancelled it after it had run long.
    pub conflicts: u32,
    /// How often it has been steered.
    pub steered: u64,
    /// For how long it is from now on, unless it conflicts again.
    pub left: Duration,
}

/// All of one database.
#[derive(Debug, Default)]
pub struct SteeredShapes {
    count: AtomicUsize,
    shapes: ArcSwap<HashMap<u64, Arc<Steered>>>,
    watched: Mutex<HashMap<u64, Watched>>,
}

impl SteeredShapes {
    /// Nothing is steered.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.count.load(Ordering::Relaxed) == 0
    }

    /// Where a statement of this shape goes now, and counts it if it is steered.
    pub fn steer(&self, shape: u64, now: Instant) -> Steer {
        let shapes = self.shapes.load();
        match shapes.get(&shape).filter(|steered| now < steered.until) {
            Some(steered) => {
                steered.steered.fetch_add(1, Ordering::Relaxed);
                steered.to
            }
            None => Steer::Not,
        }
    }

    /// A standby has cancelled a statement of this shape after it `ran` for so long. Enough of that within `steer_time`, and it is
    /// steered for `steer_time`; each further one begins that time anew and sends it to the primary. `text` is the shape for people.
    pub fn conflicted(
        &self,
        shape: u64,
        (ran, steer_time): (Duration, Duration),
        now: Instant,
        text: impl FnOnce() -> String,
    ) {
        if ran < LONG || steer_time.is_zero() {
            return;
        }
        let mut watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let before = self.shapes.load().get(&shape).filter(|steered| now < steered.until).map(Arc::clone);
        let until = now + steer_time;
        let steered = if let Some(before) = before {
            let Steered { text, conflicts, steered, .. } = &*before;
            let (text, steered) = (text.clone(), Arc::clone(steered));
            Steered { to: Steer::Primary, text, conflicts: conflicts.saturating_add(1), until, steered }
        } else {
            watched.retain(|_, watched| now.saturating_duration_since(watched.since) < steer_time);
            if watched.len() >= SHAPES_MAX && !watched.contains_key(&shape) {
                let oldest = watched.iter().min_by_key(|(_, it)| it.since).map(|(shape, _)| *shape);
                oldest.map(|shape| watched.remove(&shape));
            }
            let it = watched.entry(shape).or_insert(Watched { conflicts: 0, since: now });
            it.conflicts += 1;
            if it.conflicts < CONFLICTS_MIN {
                return;
            }
            let conflicts = it.conflicts;
            watched.remove(&shape);
            Steered { to: Steer::Calmest, text: text(), conflicts, until, steered: Arc::default() }
        };
        // Whoever changes the shapes holds the lock.
        let mut shapes = HashMap::clone(&self.shapes.load());
        shapes.retain(|_, steered| now < steered.until);
        if shapes.len() >= SHAPES_MAX && !shapes.contains_key(&shape) {
            let first = shapes.iter().min_by_key(|(_, it)| it.until).map(|(shape, _)| *shape);
            first.map(|shape| shapes.remove(&shape));
        }
        shapes.insert(shape, Arc::new(steered));
        self.put(shapes);
    }

    /// Forgets what is over, so that statements pay nothing for it any more. To be called now and then.
    pub fn expire(&self, now: Instant) {
        if self.is_empty() {
            return;
        }
        let _watched = self.watched.lock().unwrap_or_else(PoisonError::into_inner);
        let mut shapes = HashMap::clone(&self.shapes.load());
        shapes.retain(|_, steered| now < steered.until);
        self.put(shapes);
    }

    fn put(&self, shapes: HashMap<u64, Arc<Steered>>) {
        let count = shapes.len();
        self.shapes.store(Arc::new(shapes));
        self.count.store(count, Ordering::Relaxed);
    }

    /// All that are steered now, for longest first.
    pub fn report(&self, now: Instant) -> Vec<SteeredReport> {
        let shapes = self.shapes.load();
        let report = |steered: &Arc<Steered>| SteeredReport {
            text: steered.text.clone(),
            to: steered.to,
            conflicts: steered.conflicts,
            steered: steered.steered.load(Ordering::Relaxed),
            left: steered.until.saturating_duration_since(now),
        };
        let mut all: Vec<SteeredReport> =
            shapes.values().filter(|steered| now < steered.until).map(report).collect();
        all.sort_by(|one, other| other.left.cmp(&one.left).then_with(|| one.text.cmp(&other.text)));
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);
    const MINUTE: Duration = Duration::from_secs(60);

    fn conflict(shapes: &SteeredShapes, shape: u64, now: Instant) {
        shapes.conflicted(shape, (SECOND, MINUTE), now, || format!("select {shape}"));
    }

    /// C07.
    #[test]
    fn what_conflicts_again_and_again_is_steered_for_a_while() {
        let shapes = SteeredShapes::default();
        let mut now = Instant::now();
        for _ in 1..CONFLICTS_MIN {
            conflict(&shapes, 7, now);
            assert!(shapes.is_empty() && shapes.steer(7, now) == Steer::Not);
        }
        conflict(&shapes, 7, now);
        assert!(!shapes.is_empty());
        assert_eq!((shapes.steer(7, now), shapes.steer(8, now)), (Steer::Calmest, Steer::Not));
        now += SECOND * 30;
        conflict(&shapes, 7, now);
        assert_eq!(shapes.steer(7, now), Steer::Primary, "the calmest has cancelled it as well");
        let report = SteeredReport {
            text: "select 7".to_owned(),
            to: Steer::Primary,
            conflicts: 4,
            steered: 2,
            left: MINUTE,
        };
        assert_eq!(shapes.report(now), [report]);
        assert_eq!(shapes.steer(7, now + SECOND * 59), Steer::Primary);
        now += MINUTE;
        assert_eq!(shapes.steer(7, now), Steer::Not);
        assert_eq!(shapes.report(now), []);
        shapes.expire(now);
        assert!(shapes.is_empty(), "statements pay nothing any more");
        conflict(&shapes, 7, now);
        assert!(shapes.is_empty(), "it is counted from the beginning");
    }

    /// C07.
    #[test]
    fn what_runs_shortly_or_conflicts_rarely_is_not_steered() {
        let shapes = SteeredShapes::default();
        let now = Instant::now();
        for number in 0..10 {
            shapes.conflicted(1, (LONG / 2, MINUTE), now, String::new);
            shapes.conflicted(2, (SECOND, Duration::ZERO), now, String::new);
            conflict(&shapes, 3, now + MINUTE * number);
        }
        assert!(shapes.is_empty());
    }

    #[test]
    fn so_many_are_steered_and_watched() {
        let shapes = SteeredShapes::default();
        let now = Instant::now();
        let later = now + SECOND;
        for shape in 0..2 * SHAPES_MAX as u64 {
            conflict(&shapes, u64::MAX - shape, now);
            for _ in 0..CONFLICTS_MIN {
                conflict(&shapes, shape, later);
            }
        }
        assert_eq!(shapes.report(later).len(), SHAPES_MAX);
        assert!(shapes.watched.lock().unwrap().len() <= SHAPES_MAX);
    }
}
