//! Statements that look like reads and that standbys refuse: by shape, for one database.
//!
//! Invariant: bounded in number; what was learned is forgotten after a while and tried again, later each time that it is refused
//! again. Looked up without a lock and, while nothing was learned, without a hash. Pure: `now` is an argument. Must not know:
//! SQLSTATEs, which standby it was.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use arc_swap::ArcSwap;

/// Shapes kept for one database.
const SHAPES_MAX: usize = 1000;
/// Most time for which a shape is not tried again.
const LONGEST: Duration = Duration::from_secs(3600);
/// What the extension of search refuses, it refuses whatever the shape.
const SEARCH: u64 = 0x005e_a4c4;

/// Why a standby refused it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// It writes.
    Writes,
    /// It can't be done during recovery.
    Recovery,
    /// What it names is not there, or not yet.
    Missing,
    /// The extension of search does not answer on standbys.
    Search,
}

impl Refusal {
    /// The word in `/learned`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Writes => "writes",
            Self::Recovery => "recovery",
            Self::Missing => "missing",
            Self::Search => "search",
        }
    }

    /// How long it is believed the first time.
    fn first(self) -> Duration {
        match self {
            // A tokenizer's first use writes once; what is declared wrongly writes again.
            Self::Writes => Duration::from_secs(15),
            Self::Recovery | Self::Search => Duration::from_secs(60),
            Self::Missing => Duration::from_secs(2),
        }
    }
}

/// What is known of one shape.
#[derive(Debug)]
struct Lesson {
    refusal: Refusal,
    text: String,
    times: u32,
    until: Instant,
    /// As long again behind `until` without a refusal, and the next one is a first one.
    believed: Duration,
    spared: Arc<AtomicU64>,
}

/// The same for people.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LessonReport {
    /// The shape, with `?` for values.
    pub text: String,
    /// Why.
    pub refusal: Refusal,
    /// How often standbys refused it.
    pub refused: u32,
    /// How often it has been sent to the primary because of that.
    pub spared: u64,
    /// When it is tried again; zero: with the next one.
    pub left: Duration,
}

/// What was learned for one database.
#[derive(Debug, Default)]
pub struct Learned {
    shapes: ArcSwap<HashMap<u64, Arc<Lesson>>>,
}

impl Learned {
    /// Nothing was learned.
    #[inline]
    pub fn is_empty(&self) -> bool {
        self.shapes.load().is_empty()
    }

    /// Whether a statement of this shape is for the primary now, and counts it if so.
    pub fn keeps(&self, shape: u64, now: Instant) -> bool {
        let shapes = self.shapes.load();
        let lesson = shapes.get(&shape).filter(|lesson| now < lesson.until);
        lesson.inspect(|lesson| {
            lesson.spared.fetch_add(1, Ordering::Relaxed);
        });
        lesson.is_some()
    }

    /// The same for all statements of search.
    pub fn keeps_search(&self, now: Instant) -> bool {
        self.keeps(SEARCH, now)
    }

    /// A standby refused it. `text` is the shape for people.
    pub fn learn(&self, shape: u64, refusal: Refusal, now: Instant, text: impl FnOnce() -> String) {
        let (shape, text) = match refusal {
            Refusal::Search => (SEARCH, "any statement of search".to_owned()),
            _ => (shape, text()),
        };
        self.shapes.rcu(|shapes| {
            let mut shapes = HashMap::clone(shapes);
            let before = shapes.get(&shape);
            let again = before.filter(|lesson| now < lesson.until + lesson.believed);
            let times = again.map_or(0, |lesson| lesson.times).saturating_add(1);
            let spared = before.map(|lesson| Arc::clone(&lesson.spared)).unwrap_or_default();
            let longer = refusal.first().saturating_mul(1 << (times - 1).min(16));
            let believed = longer.min(LONGEST);
            let until = now + believed;
            if before.is_none() && shapes.len() >= SHAPES_MAX {
                make_room(&mut shapes, now);
            }
            shapes.insert(
                shape,
                Arc::new(Lesson { refusal, text: text.clone(), times, until, believed, spared }),
            );
            shapes
        });
    }

    /// All of it, what is believed for longest first.
    pub fn report(&self, now: Instant) -> Vec<LessonReport> {
        let shapes = self.shapes.load();
        let mut all: Vec<LessonReport> = shapes.values().map(|lesson| report(lesson, now)).collect();
        all.sort_by(|one, other| other.left.cmp(&one.left).then_with(|| one.text.cmp(&other.text)));
        all
    }
}

/// Forgets what is over, or else what is over first.
fn make_room(shapes: &mut HashMap<u64, Arc<Lesson>>, now: Instant) {
    let count = shapes.len();
    shapes.retain(|_, lesson| now < lesson.until);
    if shapes.len() == count
        && let Some(first) = shapes.iter().min_by_key(|(_, lesson)| lesson.until).map(|(shape, _)| *shape)
    {
        shapes.remove(&first);
    }
}

fn report(lesson: &Lesson, now: Instant) -> LessonReport {
    LessonReport {
        text: lesson.text.clone(),
        refusal: lesson.refusal,
        refused: lesson.times,
        spared: lesson.spared.load(Ordering::Relaxed),
        left: lesson.until.saturating_duration_since(now),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// M13: the first use of a tokenizer writes, the next one does not.
    #[test]
    fn what_was_refused_is_tried_again_later_each_time() {
        let learned = Learned::default();
        let mut now = Instant::now();
        assert!(learned.is_empty() && !learned.keeps(7, now));
        for seconds in [15, 30, 60] {
            learned.learn(7, Refusal::Writes, now, || "select ?".to_owned());
            assert!(learned.keeps(7, now) && !learned.keeps(8, now));
            now += SECOND * seconds;
            assert!(!learned.keeps(7, now), "{seconds}");
        }
        now += SECOND * 60;
        learned.learn(7, Refusal::Writes, now, String::new);
        assert!(!learned.keeps(7, now + SECOND * 15), "it was no more refused for long: a first time again");
        for _ in 0..30 {
            learned.learn(7, Refusal::Writes, now, String::new);
        }
        assert!(!learned.keeps(7, now + LONGEST));
        let report = learned.report(now);
        assert_eq!((report.len(), report[0].refused, report[0].spared, report[0].left), (1, 31, 3, LONGEST));
    }

    /// T05: what has not arrived yet will have soon.
    #[test]
    fn what_is_missing_is_tried_again_soon() {
        let learned = Learned::default();
        let now = Instant::now();
        learned.learn(7, Refusal::Missing, now, String::new);
        assert!(learned.keeps(7, now + SECOND) && !learned.keeps(7, now + 2 * SECOND));
    }

    /// M14: one refusal tells of all.
    #[test]
    fn search_is_learned_for_the_database() {
        let learned = Learned::default();
        let now = Instant::now();
        learned.learn(7, Refusal::Search, now, String::new);
        assert!(learned.keeps_search(now) && !learned.keeps(7, now));
    }

    #[test]
    fn there_is_room_for_so_many() {
        let learned = Learned::default();
        let now = Instant::now();
        learned.learn(u64::MAX, Refusal::Recovery, now, String::new);
        for shape in 0..2 * SHAPES_MAX as u64 {
            learned.learn(shape, Refusal::Writes, now, String::new);
        }
        assert_eq!(learned.report(now).len(), SHAPES_MAX);
        assert!(learned.keeps(u64::MAX, now), "what is believed longer stays");
        learned.learn(9999, Refusal::Writes, now + SECOND * 20, String::new);
        assert_eq!(learned.report(now).len(), 2, "what is over goes first");
    }
}
