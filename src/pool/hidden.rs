//! What statements of a database may do to their session beside what their texts show, as far as it is known.
//!
//! Invariant: what is known was asked for after the last definition that ran through this process had ended; whatever is asked
//! for while one runs counts only until that. Shared by all shards. Must not know: how it is asked for, sessions.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwapOption;

use crate::classify::{Catalogue, CatalogueStamp, Learned, SteeredShapes};
use crate::topology::model::Epoch;

/// How long it is believed: what is defined past pgsteer is seen after that.
const TTL: Duration = Duration::from_secs(60);

/// What the objects of a database lead to: functions behind triggers, defaults, CHECKs, operators, views and all others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, as many columns of one answer")]
pub struct Found {
    /// Something may change the session.
    pub changes: bool,
    /// A statement that only reads may.
    pub reads_change: bool,
    /// It may in a way that can't be carried to another server (locks, temporary objects).
    pub reads_keep: bool,
    /// Something asks what a sequence gave last.
    pub asks: bool,
    /// Something else than a trigger does, which will most likely have run `nextval` itself.
    pub asks_for_session: bool,
    /// A statement that only reads may ask for it.
    pub reads_ask: bool,
    /// What changes the session may make a setting whose name is not known.
    pub unnamed: bool,
    /// Transactions may be committed asynchronously though their sessions have not said so: by a default of any role or of the database,
    /// or by what functions set.
    pub commits_asynchronously: bool,
}

impl Found {
    /// In the order of the fields.
    pub fn from_bits(bits: [bool; 8]) -> Self {
        let mut found = Self::default();
        for (field, bit) in found.fields().into_iter().zip(bits) {
            *field = bit;
        }
        found
    }

    fn bits(mut self) -> [bool; 8] {
        self.fields().map(|field| *field)
    }

    fn fields(&mut self) -> [&mut bool; 8] {
        let Self {
            changes,
            reads_change,
            reads_keep,
            asks,
            asks_for_session,
            reads_ask,
            unnamed,
            commits_asynchronously,
        } = self;
        [
            changes,
            reads_change,
            reads_keep,
            asks,
            asks_for_session,
            reads_ask,
            unnamed,
            commits_asynchronously,
        ]
    }
}

/// One database's.
#[derive(Debug)]
pub struct Hidden {
    /// Beginnings and ends of definitions.
    definitions: AtomicU64,
    /// When the last definition ended; 0: none has.
    defined_ms: AtomicU64,
    /// What was found, and behind `BITS` one more than `definitions` when it was asked for; 0: never.
    found: AtomicU64,
    /// When.
    found_ms: AtomicU64,
    /// What the defaults of its roles and of itself were then, as a hash behind a bit that says that they were asked for.
    defaults: AtomicU64,
    /// One more than the epoch whose primary was asked whether it commits asynchronously by default, and behind it the answer; 0: none was.
    primary_commits: AtomicU64,
    /// Such a default was altered.
    altered_commits: Arc<AtomicBool>,
    /// What the database has, as it was found at the same time, and which of all that is.
    catalogue: ArcSwapOption<Catalogue>,
    serial: AtomicU64,
    serials: Arc<AtomicU64>,
    /// What looks like a read, and standbys refuse.
    pub learned: Learned,
    /// What standbys cancel again and again.
    pub steered: SteeredShapes,
    /// Somebody asks.
    looking: AtomicBool,
    /// When a write was answered last; 0: none was.
    last_write_us: AtomicU64,
    /// The same of one that may have been committed asynchronously.
    last_asynchronous_us: AtomicU64,
    /// Sessions ask what sequences gave last: what an INSERT may have made one give pins them.
    asks_last_values: AtomicBool,
    clock: Instant,
}

/// An asynchronous commit is flushed within three times `wal_writer_delay`, which is at most 10 s.
const FLUSHED_WITHIN: Duration = Duration::from_secs(30);

/// Room for a `Found`.
const BITS: u32 = 8;

impl Hidden {
    /// Nothing is known. `serials`: counts the catalogues of the process; `altered_commits`: of all databases.
    pub fn new(serials: &Arc<AtomicU64>, altered_commits: &Arc<AtomicBool>) -> Self {
        Self {
            learned: Learned::default(),
            steered: SteeredShapes::default(),
            catalogue: ArcSwapOption::empty(),
            serial: AtomicU64::new(0),
            serials: Arc::clone(serials),
            defaults: AtomicU64::new(0),
            primary_commits: AtomicU64::new(0),
            altered_commits: Arc::clone(altered_commits),
            definitions: AtomicU64::new(0),
            defined_ms: AtomicU64::new(0),
            last_write_us: AtomicU64::new(0),
            last_asynchronous_us: AtomicU64::new(0),
            found: AtomicU64::new(0),
            found_ms: AtomicU64::new(0),
            looking: AtomicBool::new(false),
            asks_last_values: AtomicBool::new(false),
            clock: Instant::now(),
        }
    }

    /// Which catalogue `catalogue` gives, and whether nothing was defined since it was asked for.
    #[inline]
    pub fn stamp(&self) -> CatalogueStamp {
        // In the order opposite to `Look::found`: what is fresh is never an older catalogue.
        let found = self.found.load(Ordering::Acquire);
        let serial = self.serial.load(Ordering::Acquire);
        CatalogueStamp { serial, fresh: found >> BITS == self.definitions.load(Ordering::Acquire) + 1 }
    }

    /// What the database has, as it was found last.
    pub fn catalogue(&self) -> Option<Arc<Catalogue>> {
        self.catalogue.load_full()
    }

    /// Whether what is known holds for now, and nobody has to look.
    pub fn is_up_to_date(&self, now: Instant) -> bool {
        self.known().is_some() && !self.is_due(now)
    }

    /// What is known; `None`: nothing yet, or something was defined since.
    pub fn known(&self) -> Option<Found> {
        let found = self.found.load(Ordering::Acquire);
        let holds = found >> BITS == self.definitions.load(Ordering::Acquire) + 1;
        holds.then(|| Found::from_bits(std::array::from_fn(|at| found >> at & 1 == 1)))
    }

    /// A default of how commits are made was altered by way of pgsteer, perhaps that of the server: from now on any may be asynchronous, in
    /// all databases.
    pub fn note_altered_commits(&self) {
        self.altered_commits.store(true, Ordering::Release);
    }

    /// Whether one was.
    pub fn has_altered_commits(&self) -> bool {
        self.altered_commits.load(Ordering::Acquire)
    }

    /// Whether the primary of this epoch commits asynchronously by its own configuration; `None`: it was not asked.
    pub fn primary_commits_asynchronously(&self, epoch: Epoch) -> Option<bool> {
        let told = self.primary_commits.load(Ordering::Acquire);
        (told >> 1 == epoch.0 + 1).then_some(told & 1 == 1)
    }

    /// The primary of this epoch has said whether it does.
    pub fn note_primary_commits(&self, epoch: Epoch, asynchronously: bool) {
        self.primary_commits.store((epoch.0 + 1) << 1 | u64::from(asynchronously), Ordering::Release);
    }

    /// Whether it is time to ask, and nobody does. Where one definition follows the other, it is waited for a pause: until then nothing
    /// is known, which costs each statement less than the look would.
    pub fn is_due(&self, now: Instant) -> bool {
        let (now_ms, found_ms) = (self.ms(now), self.found_ms.load(Ordering::Relaxed));
        let defined_ms = self.defined_ms.load(Ordering::Relaxed);
        let is_new =
            || now_ms.saturating_sub(defined_ms) < PAUSE_MS && now_ms.saturating_sub(found_ms) < PAUSE_MAX_MS;
        let is_defining = || self.serial.load(Ordering::Relaxed) > 0 && defined_ms > found_ms && is_new();
        let is_old = || now_ms.saturating_sub(found_ms) > TTL_MS;
        (self.known().is_none() || is_old()) && !is_defining() && !self.looking.load(Ordering::Relaxed)
    }

    /// Whether defaults with this hash are others than when they were asked for last.
    pub fn has_new_defaults(&self, hash: u64) -> bool {
        let defaults = hash << 1 | 1;
        let before = self.defaults.swap(defaults, Ordering::AcqRel);
        before != 0 && before != defaults
    }

    /// Whether a standby that has replayed everything of before this time has all definitions.
    pub fn is_seen(&self, fresh_as_of: Option<Instant>) -> bool {
        let defined_ms = self.defined_ms.load(Ordering::Acquire);
        defined_ms == 0 || fresh_as_of.is_some_and(|as_of| self.ms(as_of) > defined_ms)
    }

    /// Begins to ask, unless it need not be or somebody does.
    pub fn look(self: &Arc<Self>, is_wanted: bool, now: Instant) -> Option<Look> {
        let mine = (is_wanted || self.is_due(now)) && !self.looking.swap(true, Ordering::AcqRel);
        mine.then(|| Look {
            hidden: Arc::clone(self),
            definitions: self.definitions.load(Ordering::Acquire),
            now_ms: self.ms(now),
        })
    }

    /// Beginnings and ends of definitions so far.
    pub fn definitions(&self) -> u64 {
        self.definitions.load(Ordering::Acquire)
    }

    /// Something is being defined, up to the end of what this gives.
    pub fn define(self: &Arc<Self>) -> Definition {
        self.definitions.fetch_add(1, Ordering::AcqRel);
        Definition { hidden: Arc::clone(self) }
    }

    /// Nothing is known any more where nobody has asked for long: the next statement is not to go by it.
    pub fn expire(&self, now: Instant) {
        self.steered.expire(now);
        if self.ms(now).saturating_sub(self.found_ms.load(Ordering::Relaxed)) > 2 * TTL_MS {
            self.found.store(0, Ordering::Release);
        }
    }

    /// A session's write was answered.
    pub fn note_write(&self, now: Instant) {
        self.last_write_us.fetch_max(self.us(now).max(1), Ordering::Relaxed);
    }

    /// When the last write of all sessions was answered.
    pub fn last_write(&self) -> Option<Instant> {
        let at_us = self.last_write_us.load(Ordering::Relaxed);
        (at_us > 0).then(|| self.clock + Duration::from_micros(at_us))
    }

    /// A session's commit was answered that may have been asynchronous.
    pub fn note_asynchronous_commit(&self, now: Instant) {
        self.last_asynchronous_us.fetch_max(self.us(now).max(1), Ordering::AcqRel);
    }

    /// Whether anybody may see what is not flushed yet.
    pub fn has_unflushed(&self, now: Instant) -> bool {
        match self.last_asynchronous_us.load(Ordering::Acquire) {
            0 => false,
            at_us => Duration::from_micros(self.us(now).saturating_sub(at_us)) < FLUSHED_WITHIN,
        }
    }

    fn us(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.clock).as_micros()).unwrap_or(u64::MAX)
    }

    /// A session has asked what a sequence gave last.
    pub fn note_last_value_asked(&self) {
        self.asks_last_values.store(true, Ordering::Relaxed);
    }

    /// Whether sessions do, or what they write.
    pub fn asks_last_values(&self) -> bool {
        self.asks_last_values.load(Ordering::Relaxed) || self.known().is_some_and(|it| it.asks_for_session)
    }

    fn ms(&self, now: Instant) -> u64 {
        u64::try_from(now.saturating_duration_since(self.clock).as_millis()).unwrap_or(u64::MAX)
    }
}

/// So long behind a definition nobody asks, unless the last answer is older than `PAUSE_MAX_MS`.
const PAUSE_MS: u64 = 50;
const PAUSE_MAX_MS: u64 = 2000;

#[expect(clippy::cast_possible_truncation, reason = "a minute")]
const TTL_MS: u64 = TTL.as_millis() as u64;

/// A question under way. Dropped without an answer, it is asked again.
#[derive(Debug)]
pub struct Look {
    hidden: Arc<Hidden>,
    definitions: u64,
    now_ms: u64,
}

impl Look {
    /// The answer.
    pub fn found(self, found: Found, catalogue: Arc<Catalogue>) {
        let bits = found.bits().into_iter().rev().fold(0, |bits, it| bits << 1 | u64::from(it));
        self.hidden.catalogue.store(Some(catalogue));
        let serial = self.hidden.serials.fetch_add(1, Ordering::Relaxed) + 1;
        self.hidden.serial.store(serial, Ordering::Release);
        self.hidden.found_ms.store(self.now_ms, Ordering::Relaxed);
        self.hidden.found.store((self.definitions + 1) << BITS | bits, Ordering::Release);
    }
}

impl Drop for Look {
    fn drop(&mut self) {
        self.hidden.looking.store(false, Ordering::Release);
    }
}

/// A definition under way. Nothing that was found before its end is known any more.
#[derive(Debug)]
pub struct Definition {
    hidden: Arc<Hidden>,
}

impl Drop for Definition {
    fn drop(&mut self) {
        let now_ms = self.hidden.ms(Instant::now()).max(1);
        self.hidden.defined_ms.store(now_ms, Ordering::Release);
        self.hidden.definitions.fetch_add(1, Ordering::AcqRel);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn where_one_definition_follows_the_other_nobody_asks() {
        let hidden = Arc::new(Hidden::new(&Arc::default(), &Arc::default()));
        let begin = Instant::now();
        hidden.look(false, begin).unwrap().found(Found::default(), Arc::default());
        std::thread::sleep(Duration::from_millis(2));
        drop(hidden.define());
        let now = Instant::now();
        assert_eq!((hidden.known(), hidden.is_due(now)), (None, false));
        assert!(hidden.is_due(now + Duration::from_millis(PAUSE_MS + 1)));
        assert!(hidden.is_due(begin + Duration::from_millis(PAUSE_MAX_MS + 1)), "but not for ever");
    }

    /// T05: a standby may not have heard of it yet.
    #[test]
    fn a_standby_is_asked_only_when_it_has_what_was_defined() {
        let hidden = Arc::new(Hidden::new(&Arc::default(), &Arc::default()));
        assert!(hidden.is_seen(None));
        drop(hidden.define());
        assert!(!hidden.is_seen(None) && !hidden.is_seen(Some(Instant::now())));
        assert!(hidden.is_seen(Some(Instant::now() + Duration::from_millis(2))));
    }

    #[test]
    fn what_was_found_before_the_end_of_a_definition_is_not_known() {
        let hidden = Arc::new(Hidden::new(&Arc::default(), &Arc::default()));
        let now = Instant::now();
        let found = Found::from_bits([true, false, true, true, false, true, true, false]);
        assert_eq!((hidden.known(), hidden.is_due(now)), (None, true));
        let look = hidden.look(false, now).unwrap();
        hidden.expire(now);
        assert!(hidden.look(false, now).is_none() && !hidden.is_due(now), "one asks for all");
        look.found(found, Arc::default());
        assert_eq!((hidden.known(), hidden.is_due(now)), (Some(found), false));
        assert!(hidden.is_due(now + TTL + TTL));
        assert_eq!(hidden.known(), Some(found), "it holds until the next answer");
        assert!(
            hidden.is_up_to_date(now) && !hidden.is_up_to_date(now + TTL + TTL),
            "but somebody has to look"
        );
        hidden.expire(now + TTL);
        assert_eq!(hidden.known(), Some(found));
        hidden.expire(now + 3 * TTL);
        assert_eq!(hidden.known(), None, "but not for ever");

        let definition = hidden.define();
        assert_eq!(hidden.known(), None);
        hidden.look(false, now).unwrap().found(found, Arc::default());
        assert_eq!(hidden.known(), Some(found));
        let look = hidden.look(false, now + TTL + TTL).unwrap();
        drop(definition);
        look.found(found, Arc::default());
        assert_eq!(hidden.known(), None, "asked for before it ended");
        drop(hidden.look(false, now));
        assert!(hidden.is_due(now), "no answer");
    }
}
