//! A session's place in the queue of a pool, and the room for one connection that it may be granted.
//!
//! Invariant: whoever gives up passes on what it was just granted; room is given back unless it was filled. Must not know:
//! limits.

use std::rc::Rc;

use tokio::sync::oneshot;

use super::lease::Lease;
use super::set::{Pool, Pools};
use crate::backend::Server;

/// What a waiter gets.
#[derive(Debug)]
pub(super) enum Grant {
    Server(Box<Server>),
    /// It may open one.
    Room(Room),
}

/// A place in the queue. Dropped with a connection in it (the session was cancelled just then), it passes that on.
pub(super) struct Waiting<'a> {
    pools: &'a Rc<Pools>,
    pool: &'a Rc<Pool>,
    ticket: u64,
    pub(super) granted: oneshot::Receiver<Grant>,
}

impl<'a> Waiting<'a> {
    pub(super) fn enter(pools: &'a Rc<Pools>, pool: &'a Rc<Pool>) -> Self {
        let (grant, granted) = oneshot::channel();
        pool.shared.begin_waiting(pools.shard);
        let ticket = pool.state.borrow_mut().wait(pool.shared.now_us(), grant);
        pools.note_first(pool);
        Self { pools, pool, ticket, granted }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.pool.state.borrow_mut().forget(self.ticket);
        self.pools.note_first(self.pool);
        self.pool.shared.end_waiting(self.pools.shard);
        self.granted.close();
        match self.granted.try_recv() {
            Ok(Grant::Server(server)) => self.pools.give(self.pool, server),
            Ok(Grant::Room(room)) => drop(room),
            Err(_) => {}
        }
    }
}

/// Room for one connection, counted at all limits; given back unless filled.
#[derive(Debug)]
pub(super) struct Room {
    place: Option<(Rc<Pools>, Rc<Pool>)>,
}

impl Room {
    /// For what has been counted.
    pub(super) fn new(pools: &Rc<Pools>, pool: &Rc<Pool>) -> Self {
        Self { place: Some((Rc::clone(pools), Rc::clone(pool))) }
    }

    /// That of its pool now.
    pub(super) fn generation(&self) -> u64 {
        self.place.as_ref().map_or(0, |(_, pool)| pool.shared.generation())
    }

    /// The connection takes the room over.
    pub(super) fn fill(mut self, server: Box<Server>) -> Option<Lease> {
        let (pools, pool) = self.place.take()?;
        Some(Lease::new(server, pool, pools))
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        if let Some((pools, pool)) = self.place.take() {
            pools.make_room(&pool);
        }
    }
}
