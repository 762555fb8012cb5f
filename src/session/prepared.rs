//! Virtual prepared statements: what a client prepared, by its own names; what a shard knows, by text and types.
//!
//! Invariant: a statement's identity is its text, its parameter types, and the settings that decide what they mean; names on servers are pgsteer's own and carry the
//! shard, so that two shards' statements never share a name. Must not know: sockets, which server has what.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::{Rc, Weak};

use crate::classify::{self, CatalogueStamp, Classification, Dialect};
use crate::wire::reply::Shape;

/// Prefix of the names that pgsteer gives prepared statements on servers.
pub const NAME_PREFIX: &str = "_pgsteer_";

/// PostgreSQL's `NAMEDATALEN`, without the zero.
const NAME_BYTES_MAX: usize = 63;

/// Portals that reset settings, in one transaction.
const RESETTING_MAX: usize = 256;

/// What the text of an unnamed statement that is gone may occupy for the next one.
const SPARE_BYTES_MAX: usize = 4096;

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
    /// What it needs, by which catalogue.
    class: Cell<(CatalogueStamp, Classification)>,
    /// Rises with each Parse of a client: what a server prepared before may mean something else by now.
    pub generation: Cell<u32>,
}

impl Statement {
    /// What it needs, by what is known of the database now.
    pub fn class(&self, dialect: &Dialect<'_>) -> Classification {
        let (stamp, class) = self.class.get();
        if stamp == dialect.catalogue_stamp {
            return class;
        }
        let class = classify::classify(&self.sql, dialect);
        self.class.set((dialect.catalogue_stamp, class));
        class
    }
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

    /// The statement of this text and these types under settings of this identity, and what it needs if it is new.
    pub fn intern(
        &self,
        scope: u64,
        sql: &[u8],
        types: &[u8],
        class: impl FnOnce() -> (CatalogueStamp, Classification),
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
            class: Cell::new(class()),
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
    /// What it needs, by which catalogue.
    class: (CatalogueStamp, Classification),
    /// What the client was told of it.
    pub told: Option<Shape>,
}

impl Unnamed {
    fn new(class: (CatalogueStamp, Classification)) -> Self {
        Self { count: 0, sql: Vec::new(), types: Vec::new(), class, told: None }
    }

    fn class(&self, dialect: &Dialect<'_>) -> Classification {
        let (stamp, class) = self.class;
        if stamp == dialect.catalogue_stamp { class } else { classify::classify(&self.sql, dialect) }
    }
}

/// A statement under a client's name.
#[derive(Debug, Clone)]
pub struct NamedStatement {
    /// The statement.
    pub statement: Rc<Statement>,
    /// What the client was told its rows look like.
    told: Option<Shape>,
    /// Which Parse of a name of the session made it.
    since: u64,
}

/// The unnamed statement of a session, until something else takes its place.
#[derive(Debug, Default)]
pub struct UnnamedBefore {
    unnamed: Option<Box<Unnamed>>,
    streamed: bool,
}

/// As much of a name as PostgreSQL looks at.
pub fn key(name: &[u8]) -> &[u8] {
    name.get(..NAME_BYTES_MAX).unwrap_or(name)
}

/// What one client has prepared.
#[derive(Debug, Default)]
pub struct Names {
    named: HashMap<Box<[u8]>, NamedStatement>,
    /// Named Parse messages so far.
    named_count: u64,
    /// The unnamed statement.
    pub unnamed: Option<Box<Unnamed>>,
    /// For the next unnamed statement: a client that uses it for everything is to cost no allocation.
    spare: Option<Box<Unnamed>>,
    /// The unnamed statement went to the server unseen, in a message larger than a unit: the session stays there.
    pub unnamed_streamed: bool,
    /// Unnamed Parse messages so far.
    pub unnamed_count: u64,
    /// Portals of this transaction that give settings their first values again, and their texts.
    resetting: HashMap<Box<[u8]>, Box<[u8]>>,
}

impl Names {
    /// The statement of that name.
    pub fn named(&self, name: &[u8]) -> Option<&Rc<Statement>> {
        self.named.get(key(name)).map(|named| &named.statement)
    }

    /// The statement of that name, and what the client was told its rows look like.
    pub fn described(&self, name: &[u8]) -> Option<(&Rc<Statement>, Option<Shape>)> {
        self.named.get(key(name)).map(|named| (&named.statement, named.told))
    }

    /// The client is told what the rows of the statement of that name and identity look like.
    pub fn tell(&mut self, name: &[u8], id: u64, shape: Shape) {
        if let Some(named) = self.named.get_mut(key(name))
            && named.statement.id == id
        {
            named.told = Some(shape.after(named.told));
        }
    }

    /// Names a statement as it was named before.
    pub fn restore(&mut self, name: &[u8], before: Option<NamedStatement>) {
        match before {
            Some(before) => self.named.insert(key(name).into(), before),
            None => self.named.remove(key(name)),
        };
    }

    /// Names a statement. Gives what had that name before.
    pub fn insert(&mut self, name: &[u8], statement: Rc<Statement>) -> Option<NamedStatement> {
        self.named_count += 1;
        let named = NamedStatement { statement, told: None, since: self.named_count };
        self.named.insert(key(name).into(), named)
    }

    /// Forgets a name. Gives what had it.
    pub fn remove(&mut self, name: &[u8]) -> Option<NamedStatement> {
        self.named.remove(key(name))
    }

    /// Forgets all names but these.
    pub fn retain(&mut self, stays: impl Fn(&[u8]) -> bool) {
        self.named.retain(|name, _| stays(name));
    }

    /// All that is named, in the order in which it was prepared.
    pub fn in_order(&self) -> Vec<(Box<[u8]>, Rc<Statement>)> {
        let mut all: Vec<_> = self.named.iter().collect();
        all.sort_by_key(|(_, named)| named.since);
        all.into_iter().map(|(name, named)| (name.clone(), Rc::clone(&named.statement))).collect()
    }

    /// The text of the statement of that name.
    pub fn sql(&self, name: &[u8]) -> Option<Vec<u8>> {
        if name.is_empty() {
            self.unnamed.as_ref().map(|unnamed| unnamed.sql.clone())
        } else {
            self.named(name).map(|statement| statement.sql.to_vec())
        }
    }

    /// A portal is bound to a statement; `resets`: whether its text resets settings.
    pub fn bind(&mut self, portal: &[u8], statement: &[u8], resets: impl FnOnce(&[u8]) -> bool) {
        match self.sql(statement).filter(|sql| resets(sql)) {
            Some(sql) if self.resetting.len() < RESETTING_MAX => {
                self.resetting.insert(key(portal).into(), sql.into());
            }
            _ => {
                self.resetting.remove(key(portal));
            }
        }
    }

    /// The text of a portal that resets settings.
    pub fn resetting(&self, portal: &[u8]) -> Option<&[u8]> {
        self.resetting.get(key(portal)).map(|sql| &**sql)
    }

    /// Whether there is any such portal.
    pub fn resets(&self) -> bool {
        !self.resetting.is_empty()
    }

    /// The transaction is over: there are no portals any more.
    pub fn drop_portals(&mut self) {
        if !self.resetting.is_empty() {
            self.resetting.clear();
        }
    }

    /// There is no unnamed statement any more.
    pub fn drop_unnamed(&mut self) {
        self.unnamed = None;
        self.unnamed_streamed = false;
    }

    /// The client prepares the unnamed statement. Gives what it takes the place of.
    pub fn parse_unnamed(
        &mut self,
        sql: &[u8],
        types: &[u8],
        class: (CatalogueStamp, Classification),
    ) -> UnnamedBefore {
        let before = self.take_unnamed();
        self.unnamed_count += 1;
        let mut unnamed = self.spare.take().unwrap_or_else(|| Box::new(Unnamed::new(class)));
        unnamed.count = self.unnamed_count;
        unnamed.class = class;
        unnamed.told = None;
        unnamed.sql.clear();
        unnamed.sql.extend_from_slice(sql);
        unnamed.types.clear();
        unnamed.types.extend_from_slice(types);
        self.unnamed = Some(unnamed);
        before
    }

    /// Takes the unnamed statement away, for as long as that may not have happened after all.
    pub fn take_unnamed(&mut self) -> UnnamedBefore {
        UnnamedBefore { unnamed: self.unnamed.take(), streamed: std::mem::take(&mut self.unnamed_streamed) }
    }

    /// What took its place has not.
    pub fn restore_unnamed(&mut self, before: UnnamedBefore) {
        self.unnamed = before.unnamed;
        self.unnamed_streamed = before.streamed;
    }

    /// It is gone for good.
    pub fn forget_unnamed(&mut self, before: UnnamedBefore) {
        let small = |it: &Unnamed| it.sql.capacity() + it.types.capacity() <= SPARE_BYTES_MAX;
        self.spare = before.unnamed.filter(|it| small(it)).or_else(|| self.spare.take());
    }

    /// What the statement of that name needs; `None` when there is none.
    pub fn class(&self, name: &[u8], dialect: &Dialect<'_>) -> Option<Classification> {
        if name.is_empty() {
            self.unnamed.as_ref().map(|unnamed| unnamed.class(dialect))
        } else {
            self.named(name).map(|statement| statement.class(dialect))
        }
    }
}
