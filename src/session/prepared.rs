//! Virtual prepared statements: what a client prepared, by its own names; what a shard knows, by text and types.
//!
//! Invariant: a statement's identity is its text, its parameter types, and the settings that decide what they mean; names on servers are pgsteer's own and carry the
//! shard, so that two shards' statements never share a name. Must not know: sockets, which server has what.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use crate::classify::Classification;

/// Prefix of the names that pgsteer gives prepared statements on servers.
pub const NAME_PREFIX: &str = "_pgsteer_";

/// Statements that a shard remembers before it first looks for those that nobody uses any more.
const TABLE_SWEEP_AT: usize = 4096;

/// A prepared statement.
#[derive(Debug)]
pub struct Statement {
    /// Identity on this shard.
    pub id: u64,
    /// Its name on servers.
    pub name: String,
    /// SQL text as sent.
    pub sql: Box<[u8]>,
    /// Parameter types as sent: count and OIDs.
    pub types: Box<[u8]>,
    /// What it needs.
    pub class: Classification,
    /// Rises with each Parse of a client: what a server prepared before may mean something else by now.
    pub generation: Cell<u32>,
}

/// A shard's statements, shared by all its sessions.
#[derive(Debug)]
pub struct Table {
    shard: usize,
    next_id: Cell<u64>,
    /// At this size it is swept; then at twice what is left, so that a sweep is paid for by what came since.
    sweep_at: Cell<usize>,
    by_text: RefCell<HashMap<Box<[u8]>, Weak<Statement>>>,
}

impl Table {
    /// For shard number `shard`.
    pub fn new(shard: usize) -> Self {
        Self {
            shard,
            next_id: Cell::new(1),
            sweep_at: Cell::new(TABLE_SWEEP_AT),
            by_text: RefCell::default(),
        }
    }

    /// The name on servers of the statement with this identity.
    pub fn name_of(&self, id: u64) -> String {
        format!("{NAME_PREFIX}{}_{id}", self.shard)
    }

    /// The statement of this text and these types under settings of this identity; `class` is asked only when it is new.
    pub fn intern(
        &self,
        scope: u64,
        sql: &[u8],
        types: &[u8],
        class: impl FnOnce() -> Classification,
    ) -> Rc<Statement> {
        let mut key = Vec::with_capacity(8 + sql.len() + 1 + types.len());
        key.extend_from_slice(&scope.to_be_bytes());
        key.extend_from_slice(sql);
        key.push(0);
        key.extend_from_slice(types);
        let mut by_text = self.by_text.borrow_mut();
        if let Some(statement) = by_text.get(key.as_slice()).and_then(Weak::upgrade) {
            return statement;
        }
        if by_text.len() >= self.sweep_at.get() {
            by_text.retain(|_, statement| statement.strong_count() > 0);
            self.sweep_at.set(TABLE_SWEEP_AT.max(by_text.len() * 2));
        }
        let id = self.next_id.replace(self.next_id.get() + 1);
        let statement = Rc::new(Statement {
            id,
            name: self.name_of(id),
            sql: sql.into(),
            types: types.into(),
            class: class(),
            generation: Cell::new(0),
        });
        by_text.insert(key.into_boxed_slice(), Rc::downgrade(&statement));
        statement
    }
}

/// The unnamed prepared statement of a session: survives until the next unnamed Parse or simple Query.
#[derive(Debug)]
pub struct Unnamed {
    /// Which unnamed Parse of the session it is.
    pub count: u64,
    /// SQL text.
    pub sql: Vec<u8>,
    /// Parameter types as sent.
    pub types: Vec<u8>,
    /// What it needs.
    pub class: Classification,
    /// What the client was told its rows look like (`reply::row_shape`).
    pub told: Option<u64>,
}

/// A statement under a client's name.
#[derive(Debug)]
struct NamedStatement {
    statement: Rc<Statement>,
    told: Option<u64>,
}

/// What one client has prepared.
#[derive(Debug, Default)]
pub struct Names {
    named: HashMap<Box<[u8]>, NamedStatement>,
    /// The unnamed statement.
    pub unnamed: Option<Unnamed>,
    /// The unnamed statement went to the server unseen, in a message larger than a unit: the session stays there.
    pub unnamed_streamed: bool,
    /// Unnamed Parse messages so far.
    pub unnamed_count: u64,
    /// The unnamed statement before the unit under way, for `bring_back_unnamed`; its buffers serve the one after.
    former: Option<Unnamed>,
    former_streamed: bool,
}

impl Names {
    /// The statement of that name.
    pub fn named(&self, name: &[u8]) -> Option<&Rc<Statement>> {
        self.named.get(name).map(|named| &named.statement)
    }

    /// The statement of that name, and what the client was told its rows look like.
    pub fn described(&self, name: &[u8]) -> Option<(&Rc<Statement>, Option<u64>)> {
        self.named.get(name).map(|named| (&named.statement, named.told))
    }

    /// The client is told what the rows of the statement of that name and identity look like.
    pub fn tell(&mut self, name: &[u8], id: u64, shape: u64) {
        if let Some(named) = self.named.get_mut(name)
            && named.statement.id == id
        {
            named.told = Some(shape);
        }
    }

    /// Names a statement as it was named before.
    pub fn restore(&mut self, name: &[u8], statement: Rc<Statement>, told: Option<u64>) {
        self.named.insert(name.into(), NamedStatement { statement, told });
    }

    /// Names a statement.
    pub fn insert(&mut self, name: &[u8], statement: Rc<Statement>) {
        self.named.insert(name.into(), NamedStatement { statement, told: None });
    }

    /// Forgets a name.
    pub fn remove(&mut self, name: &[u8]) {
        self.named.remove(name);
    }

    /// Forgets all names (DEALLOCATE ALL, DISCARD ALL). The unnamed statement stays.
    pub fn clear(&mut self) {
        self.named.clear();
    }

    /// The text of the statement of that name.
    pub fn sql(&self, name: &[u8]) -> Option<Vec<u8>> {
        if name.is_empty() {
            self.unnamed.as_ref().map(|unnamed| unnamed.sql.clone())
        } else {
            self.named(name).map(|statement| statement.sql.to_vec())
        }
    }

    /// The unnamed statement is about to change: keeps it until the next call. What takes its place has the buffers of another.
    pub fn keep_unnamed(&mut self) {
        std::mem::swap(&mut self.unnamed, &mut self.former);
        self.former_streamed = self.unnamed_streamed;
    }

    /// It has not changed after all.
    pub fn bring_back_unnamed(&mut self) {
        std::mem::swap(&mut self.unnamed, &mut self.former);
        self.unnamed_streamed = self.former_streamed;
    }

    /// There is no unnamed statement any more.
    pub fn drop_unnamed(&mut self) {
        self.unnamed = None;
        self.unnamed_streamed = false;
    }

    /// What the statement of that name needs; `None` when there is none.
    pub fn class(&self, name: &[u8]) -> Option<Classification> {
        if name.is_empty() {
            self.unnamed.as_ref().map(|unnamed| unnamed.class)
        } else {
            self.named(name).map(|statement| statement.class)
        }
    }
}
