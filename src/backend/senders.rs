//! For which client a server process does what it does: by that a notification is given its sender's name.
//!
//! A notification comes with the process id of a server; clients know each other by the process ids of their logins. So each
//! server connection says here for whom it runs something that may send one, before that is sent.
//!
//! Invariant: a server process that isn't known, or that was forgotten for another one's sake, keeps its own number; a connection
//! that is closed is forgotten. No lock, and no more than one store for a statement. Must not know: sessions, pools.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::wire::reply::Clients;

/// Processes that are known at a time; of two that share a place the last one is.
const PLACES: usize = 4096;

/// Server processes and their clients, over all shards. Each place has a server's process id and behind it a client's.
#[derive(Debug)]
pub struct Senders {
    places: Box<[AtomicU64]>,
}

impl Default for Senders {
    fn default() -> Self {
        Self { places: (0..PLACES).map(|_| AtomicU64::new(0)).collect() }
    }
}

fn pair(server: i32, client: i32) -> u64 {
    (u64::from(server.cast_unsigned()) << 32) | u64::from(client.cast_unsigned())
}

impl Senders {
    fn place(&self, server: i32) -> Option<&AtomicU64> {
        self.places.get(usize::try_from(server).ok()? % PLACES)
    }
}

impl Clients for Arc<Senders> {
    fn client_of(&self, server: i32) -> Option<i32> {
        let found = self.place(server)?.load(Ordering::Acquire);
        let client = i32::try_from(found & u64::from(u32::MAX)).ok()?;
        (client != 0 && found == pair(server, client)).then_some(client)
    }
}

/// One server process among them.
#[derive(Debug)]
pub struct Sender {
    senders: Arc<Senders>,
    server: i32,
}

impl Sender {
    /// Of the process with this id.
    pub fn new(senders: &Arc<Senders>, server: i32) -> Self {
        Self { senders: Arc::clone(senders), server }
    }

    /// From now on it works for the client with this process id; 0 for one who goes by the server's.
    pub fn works_for(&self, client: i32) {
        if let Some(place) = self.senders.place(self.server) {
            place.store(pair(self.server, client), Ordering::Release);
        }
    }
}

impl Drop for Sender {
    fn drop(&mut self) {
        if let Some(place) = self.senders.place(self.server) {
            let found = place.load(Ordering::Acquire);
            if found >> 32 == pair(self.server, 0) >> 32 {
                // Should another one have taken the place meanwhile, it is that one's.
                let _ = place.compare_exchange(found, 0, Ordering::AcqRel, Ordering::Relaxed);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_known_by_its_client_until_it_ends() {
        let senders = Arc::default();
        let sender = Sender::new(&senders, 100);
        assert_eq!(senders.client_of(100), None);
        sender.works_for(1 << 24);
        assert_eq!(senders.client_of(100), Some(1 << 24));
        sender.works_for(2 << 24);
        assert_eq!(senders.client_of(100), Some(2 << 24));
        sender.works_for(0);
        assert_eq!(senders.client_of(100), None);
        sender.works_for(2 << 24);
        drop(sender);
        assert_eq!(senders.client_of(100), None);
    }

    #[test]
    fn of_two_with_one_place_neither_is_taken_for_the_other() {
        let senders = Arc::default();
        let (first, second) = (Sender::new(&senders, 100), Sender::new(&senders, 100 + 4096));
        first.works_for(1 << 24);
        second.works_for(2 << 24);
        assert_eq!((senders.client_of(100), senders.client_of(100 + 4096)), (None, Some(2 << 24)));
        drop(first);
        assert_eq!(senders.client_of(100 + 4096), Some(2 << 24));
        for nobody in [0, -1, i32::MIN, i32::MAX] {
            assert_eq!(senders.client_of(nobody), None);
        }
    }
}
