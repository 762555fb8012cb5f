//! Standbys under watch for the moment of their promotion, as long as there may be one.
//!
//! Invariant: at most one watch of a node at a time; a watch ends as soon as no promotion is to be expected, and with the
//! monitor. What it sees is a reason to look, never evidence. Must not know: how a standby is watched (a trait), what a
//! promotion means.

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::evidence::{Input, Node};
use super::model::{Lsn, NodeAddress, NodeId, Timeline};

/// A watch that ended before its time is begun again after this.
const PAUSE: Duration = Duration::from_millis(250);

/// What a standby tells of its promotion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Promotion {
    /// The timeline that begins, and where.
    pub told: Option<(Timeline, Lsn)>,
}

/// Why a standby is not watched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WatchFailure {
    /// It says no, and will say so again: one line for people.
    Refused(String),
    /// It may be watched later.
    Ended(String),
}

/// What a watch comes to.
pub type Watching = Pin<Box<dyn Future<Output = Result<Promotion, WatchFailure>> + Send>>;

/// Waits for promotions.
pub trait PromotionWatch: Send + Sync {
    /// Waits until the standby there is promoted. `seen` is called at that moment. Dropping it ends the watch.
    fn watch(&self, address: Arc<NodeAddress>, seen: Box<dyn FnOnce() + Send>) -> Watching;
}

/// Watches nobody: promotions are found by probes.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoWatch;

impl PromotionWatch for NoWatch {
    fn watch(&self, _address: Arc<NodeAddress>, _seen: Box<dyn FnOnce() + Send>) -> Watching {
        Box::pin(std::future::pending())
    }
}

/// Ends the watch of a node when it is dropped.
#[derive(Debug)]
struct Watched {
    task: JoinHandle<()>,
    /// It has seen the promotion, and hears now which timeline begins: that is over soon by itself.
    has_seen: Arc<AtomicBool>,
}

impl Watched {
    fn is_telling(&self) -> bool {
        self.has_seen.load(Ordering::Acquire) && !self.task.is_finished()
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// The watches that run.
pub(super) struct Watchers {
    watch: Arc<dyn PromotionWatch>,
    inputs: mpsc::Sender<Input>,
    addresses: Vec<Arc<NodeAddress>>,
    running: Vec<Option<Watched>>,
}

impl Watchers {
    pub(super) fn new(watch: Arc<dyn PromotionWatch>, nodes: &[Node], inputs: mpsc::Sender<Input>) -> Self {
        let addresses: Vec<_> = nodes.iter().map(|node| Arc::clone(&node.address)).collect();
        let running = addresses.iter().map(|_| None).collect();
        Self { watch, inputs, addresses, running }
    }

    /// Watches those nodes and no others. To be called from a tokio runtime.
    pub(super) fn watch(&mut self, is_wanted: impl Fn(NodeId) -> bool) {
        for (index, running) in (0u16..).zip(&mut self.running) {
            let id = NodeId(index);
            match (is_wanted(id), running.is_some(), self.addresses.get(id.index())) {
                (true, false, Some(address)) => {
                    let has_seen = Arc::new(AtomicBool::new(false));
                    let one = watch_one(
                        Arc::clone(&self.watch),
                        (id, Arc::clone(address)),
                        Arc::clone(&has_seen),
                        self.inputs.clone(),
                    );
                    *running = Some(Watched { task: tokio::spawn(one), has_seen });
                }
                // The promoted node may be known as the primary before it has told where its timeline begins.
                (false, true, _) if !running.as_ref().is_some_and(Watched::is_telling) => *running = None,
                _ => {}
            }
        }
    }
}

/// Watches one node until it is promoted, or refuses to be watched.
async fn watch_one(
    watch: Arc<dyn PromotionWatch>,
    (node, address): (NodeId, Arc<NodeAddress>),
    has_seen: Arc<AtomicBool>,
    inputs: mpsc::Sender<Input>,
) {
    loop {
        let (early, has_seen) = (inputs.clone(), Arc::clone(&has_seen));
        let seen = Box::new(move || {
            has_seen.store(true, Ordering::Release);
            // Where the judge is behind with its work, the rest of the news comes soon enough.
            let _ = early.try_send(Input::Promoted { node, told: None, at: Instant::now() });
        });
        let input = match watch.watch(Arc::clone(&address), seen).await {
            Ok(Promotion { told }) => Input::Promoted { node, told, at: Instant::now() },
            Err(WatchFailure::Refused(why)) => Input::NotWatched { node, why },
            Err(WatchFailure::Ended(why)) => {
                tracing::debug!(node = %address, "a watch for its promotion ended: {why}");
                tokio::time::sleep(PAUSE).await;
                continue;
            }
        };
        // The judge may be gone.
        let _ = inputs.send(input).await;
        return;
    }
}
