//! Questions that many may have at the same time and only one needs to ask.
//!
//! Invariant: for each key at most one question is under way; it goes on as long as anybody waits for its answer, whoever
//! began it, and is dropped when nobody does. Must not know: what is asked, how long answers are good for.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::Handle;
use tokio::sync::watch;

type Answering<V> = Arc<watch::Sender<Option<V>>>;

/// The questions under way.
#[derive(Debug)]
pub(super) struct Flights<K, V> {
    under_way: Mutex<HashMap<K, Answering<V>>>,
}

impl<K, V> Default for Flights<K, V> {
    fn default() -> Self {
        Self { under_way: Mutex::default() }
    }
}

impl<K: Eq + Hash, V> Flights<K, V> {
    fn lock(&self) -> MutexGuard<'_, HashMap<K, Answering<V>>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K, V> Flights<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// The answer to the question under way for this key; where there is none, `question` is asked on `runtime`. `None` when
    /// the runtime ends first. Cancel-safe.
    pub(super) async fn join<Q>(
        self: &Arc<Self>,
        runtime: &Handle,
        key: K,
        question: impl FnOnce() -> Q,
    ) -> Option<V>
    where
        Q: Future<Output = V> + Send + 'static,
    {
        let mut begun = None;
        let mut answer = {
            let mut under_way = self.lock();
            if let Some(flight) = under_way.get(&key) {
                flight.subscribe()
            } else {
                let (sender, receiver) = watch::channel(None);
                let sender = Arc::new(sender);
                under_way.insert(key.clone(), Arc::clone(&sender));
                begun = Some(Flight { flights: Arc::clone(self), key, sender });
                receiver
            }
        };
        if let Some(flight) = begun {
            // Not under the lock: a runtime that has ended drops the task here and now.
            runtime.spawn(flight.run(question()));
        }
        answer.wait_for(Option::is_some).await.ok()?.clone()
    }
}

/// A question under way. Its end, however it comes, makes room for the next.
struct Flight<K: Eq + Hash, V> {
    flights: Arc<Flights<K, V>>,
    key: K,
    sender: Answering<V>,
}

impl<K: Eq + Hash, V> Flight<K, V> {
    async fn run(self, question: impl Future<Output = V>) {
        let mut question = std::pin::pin!(question);
        loop {
            tokio::select! {
                answer = &mut question => {
                    self.end(|_| true);
                    self.sender.send_replace(Some(answer));
                    return;
                }
                () = self.sender.closed() => {
                    // Somebody may have joined meanwhile.
                    if self.end(|sender| sender.receiver_count() == 0) {
                        return;
                    }
                }
            }
        }
    }

    fn end(&self, may: impl FnOnce(&watch::Sender<Option<V>>) -> bool) -> bool {
        let mut under_way = self.flights.lock();
        let mine = under_way.get(&self.key).is_some_and(|sender| Arc::ptr_eq(sender, &self.sender));
        let ends = may(&self.sender);
        if mine && ends {
            under_way.remove(&self.key);
        }
        ends
    }
}

impl<K: Eq + Hash, V> Drop for Flight<K, V> {
    fn drop(&mut self) {
        self.end(|_| true);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::Notify;

    use super::*;

    #[tokio::test]
    async fn who_asks_the_same_at_the_same_time_shares_the_answer() {
        let (flights, asked) = (Arc::new(Flights::default()), Arc::new(AtomicUsize::new(0)));
        let go = Arc::new(Notify::new());
        let join = |key: &'static str| {
            let (flights, asked, go) = (Arc::clone(&flights), Arc::clone(&asked), Arc::clone(&go));
            async move {
                let question = || async move {
                    asked.fetch_add(1, Ordering::SeqCst);
                    go.notified().await;
                    key
                };
                flights.join(&Handle::current(), key, question).await
            }
        };
        let release = async {
            while asked.load(Ordering::SeqCst) < 2 {
                tokio::task::yield_now().await;
            }
            go.notify_waiters();
        };
        let (one, two, other, ()) = tokio::join!(join("a"), join("a"), join("b"), release);
        assert_eq!((one, two, other), (Some("a"), Some("a"), Some("b")));
        assert_eq!(asked.load(Ordering::SeqCst), 2);
        assert!(flights.lock().is_empty());
    }

    /// The first to ask leaves; the others get the answer all the same. When all have left, nothing stays behind.
    #[tokio::test]
    async fn a_question_lives_as_long_as_somebody_waits() {
        let flights: Arc<Flights<u8, u8>> = Arc::default();
        let runtime = Handle::current();
        let go = Arc::new(Notify::new());
        let released = Arc::clone(&go);
        let mut first = Box::pin(flights.join(&runtime, 1, || async move {
            released.notified().await;
            7
        }));
        assert!(futures_are_pending(&mut first).await);
        let mut second = Box::pin(flights.join(&runtime, 1, || async { 8 }));
        assert!(futures_are_pending(&mut second).await);
        drop(first);
        go.notify_one();
        assert_eq!(second.await, Some(7));

        let mut alone = Box::pin(flights.join(&runtime, 2, std::future::pending));
        assert!(futures_are_pending(&mut alone).await);
        drop(alone);
        while !flights.lock().is_empty() {
            tokio::task::yield_now().await;
        }
    }

    async fn futures_are_pending<F: Future + Unpin>(future: &mut F) -> bool {
        std::future::poll_fn(|context| {
            std::task::Poll::Ready(std::pin::Pin::new(&mut *future).poll(context).is_pending())
        })
        .await
    }
}
