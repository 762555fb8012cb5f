//! A unit as a server is to see it: the client's statement names become the server's, missing statements are prepared
//! on the way, and the replies that will come are noted.
//!
//! Invariant: after a unit each name of the client means what it would mean on a server of its own; what a failed or
//! repeated unit changed in the names can be undone (`Journal`). Pure. Must not know: sockets.

use std::rc::Rc;

use super::effects::restoring;
use super::journal::{self, Journal, Promise};
use super::prepared::{self, NAME_PREFIX, Names, Statement, Table};
use super::unit;
use crate::backend::carried::{Carried, OwnNames, PreparedHere};
use crate::classify::Dialect;
use crate::relay::answer::{Answer, Expect};
use crate::wire::extended::{self, Named};
use crate::wire::frame;
use crate::wire::reply::{self, Shape};

/// What is done where the server has not told yet whether a statement's rows look as its client was told: prepared anew they
/// may not, where a server of the client's own would have refused (`put_plan_changed`).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shapes {
    /// Nothing.
    Trust,
    /// It is asked in the same write; if they look otherwise the client gets the error instead of them.
    Compare,
    /// It is to be asked before anything of the unit is sent (`Translator::doubts`).
    Ask,
    /// It is to be asked right before the statement is bound, when what stands before it has been sent.
    AskInPlace,
}

/// A statement whose server is to be asked for the shape of its rows.
#[derive(Debug, Clone)]
pub enum Doubt {
    /// A named one, the client's name of it, and what the client was told.
    Named(Rc<Statement>, Box<[u8]>, Shape),
    /// The unnamed one, and what the client was told.
    Unnamed(Shape),
}

/// How far a translation has come.
#[derive(Debug, Clone, Copy)]
pub struct Mark {
    out: usize,
    expected: usize,
    /// The same of what can be undone.
    pub journal: journal::Mark,
}

impl Mark {
    /// What has been written by now.
    pub fn new(out: &[u8], answer: &Answer, journal: &Journal) -> Self {
        Self { out: out.len(), expected: answer.expected(), journal: journal.mark() }
    }
}

/// Everything the translation of one unit touches.
#[derive(Debug)]
pub struct Translator<'a> {
    /// The session's number.
    pub session: u64,
    /// Bytes for the server.
    pub out: &'a mut Vec<u8>,
    /// The answer to come.
    pub answer: &'a mut Answer,
    /// Identity of the settings under which the texts are parsed.
    pub scope: u64,
    /// What is on the server.
    pub carried: &'a mut Carried,
    /// What the client has named.
    pub names: &'a mut Names,
    /// The shard's statements.
    pub table: &'a Table,
    /// Most statements on a server.
    pub prepared_max: usize,
    /// How texts are to be read.
    pub dialect: Dialect<'a>,
    /// What can be undone.
    pub journal: &'a mut Journal,
    /// The unit, as the client sent it.
    pub unit: &'a [u8],
    /// What is done about shapes that are not known.
    pub shapes: Shapes,
    /// What is to be asked for before this is sent.
    pub doubts: &'a mut Vec<Doubt>,
    /// The last portal that was bound, and the client's name of its statement.
    pub bound: Option<(&'a [u8], &'a [u8])>,
}

impl<'a> Translator<'a> {
    /// Translates the beginning of a frame of `frame_bytes`, of which only `here` is there; the rest follows untouched.
    pub fn large(&mut self, kind: u8, frame_bytes: usize, here: &[u8]) {
        let body = here.get(frame::HEADER_BYTES..).unwrap_or_default();
        let (head, tail) = match (kind, extended::bind(body)) {
            (b'B', Some(bind)) => {
                self.ensure_bound(&bind);
                let name = self.server_name(bind.statement);
                ([bind.portal, b"\0", &name, b"\0"].concat(), bind.rest)
            }
            _ => (Vec::new(), body),
        };
        let replaced = body.len() - tail.len();
        let length = frame_bytes - 1 - replaced + head.len();
        self.out.push(kind);
        self.out.extend_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes());
        self.out.extend_from_slice(&head);
        self.out.extend_from_slice(tail);
        let reply = match kind {
            b'P' => {
                let unnamed = body.first() == Some(&0);
                let promise =
                    if unnamed { Promise::Unnamed(self.names.take_unnamed()) } else { Promise::Nothing };
                if unnamed {
                    self.names.unnamed_streamed = true;
                    self.carried.unnamed = None;
                }
                Expect::Parse { forward: true, token: self.journal.promise(promise) }
            }
            b'B' => Expect::Bind,
            // COPY data has no reply.
            b'd' | b'c' | b'f' => return,
            _ => Expect::Simple,
        };
        self.answer.expect(reply);
    }

    /// Translates one frame.
    pub fn frame(&mut self, kind: u8, body: &'a [u8]) {
        match kind {
            b'Q' => {
                self.names.drop_unnamed();
                self.carried.unnamed = None;
                self.raw(kind, body, Some(Expect::Simple));
            }
            b'F' => self.raw(kind, body, Some(Expect::Simple)),
            b'P' => self.parse(body),
            b'B' => self.bind(body),
            b'D' => self.describe(body),
            b'C' => self.close(body),
            b'E' => self.raw(kind, body, Some(Expect::Execute)),
            b'S' => self.raw(kind, body, Some(Expect::Sync)),
            _ => self.raw(kind, body, None),
        }
    }

    /// In the middle of a batch: has the server forget what has names of pgsteer's, and prepare all under the client's own. One
    /// that can't be prepared any more fails the batch.
    pub fn give_own_names(&mut self) {
        let here: Vec<PreparedHere> = self.carried.prepared.all().collect();
        for here in here {
            self.close_carried(&self.table.name_of(here.id), Promise::Gone(here));
        }
        self.carried.prepared.clear();
        let mut own = OwnNames::default();
        let all = self.names.in_order();
        all.iter().for_each(|(name, _)| own.miss(name));
        self.carried.own_names = Some(own);
        for (name, statement) in all {
            self.ensure_own(&statement, &name);
        }
    }

    /// Puts a statement of pgsteer's own in here, among the client's extended messages.
    pub fn put_within(&mut self, sql: &str) {
        reply::put_statement_within(self.out, sql);
        self.answer.expect(Expect::Within);
        self.carried.unnamed = None;
    }

    /// What must stand behind a message for a session whose first values, `startup`, the server has not seen: behind an Execute that
    /// resets settings, what sets them.
    pub fn restore(&mut self, kind: u8, body: &[u8], startup: &[(String, String)]) {
        let strings = self.dialect.strings;
        match kind {
            b'B' => {
                if let Some(bind) = extended::bind(body) {
                    let resets = |sql: &[u8]| !restoring(startup, sql, strings).is_empty();
                    self.names.bind(bind.portal, bind.statement, resets);
                }
            }
            b'E' => {
                let portal = body.split(|&byte| byte == 0).next().unwrap_or_default();
                let text = self.names.resetting(portal).unwrap_or_default();
                for sql in restoring(startup, text, strings) {
                    self.put_within(&sql);
                }
            }
            _ => {}
        }
    }

    fn raw(&mut self, kind: u8, body: &[u8], reply: Option<Expect>) {
        frame::put(self.out, kind, &[body]);
        if let Some(reply) = reply {
            self.answer.expect(reply);
        }
    }

    fn parse(&mut self, body: &[u8]) {
        let Some(parse) = extended::parse(body) else {
            let token = self.journal.promise(Promise::Nothing);
            return self.raw(b'P', body, Some(Expect::Parse { forward: true, token }));
        };
        if parse.name.is_empty() {
            let class = self.dialect.classify(parse.sql);
            let before = self.names.parse_unnamed(parse.sql, parse.types, class);
            self.carried.unnamed = Some((self.session, self.names.unnamed_count));
            let token = self.journal.promise(Promise::Unnamed(before));
            return self.raw(b'P', body, Some(Expect::Parse { forward: true, token }));
        }
        if self.carried.own_names.is_some() {
            return self.parse_own(&parse, body);
        }
        if let Some(existing) = self.names.named(parse.name).cloned() {
            // The server refuses this with 42P05, as it would without pgsteer: it must have that name for it.
            self.ensure(&existing, parse.name);
            self.answer.renames(existing.name.as_bytes(), parse.name);
            return self.parse_again(&existing, &parse);
        }
        let dialect = self.dialect;
        let statement = self.table.intern(self.scope, parse.sql, parse.types, || dialect.classify(parse.sql));
        let before = self.names.insert(parse.name, Rc::clone(&statement));
        self.journal.rename(parse.name, before.as_ref());
        // Even where the server has it: what the client's Parse is answered with must be true now (DDL may have changed what
        // the text means, or whether it means anything). Only what pgsteer prepares by itself is saved.
        statement.generation.set(statement.generation.get().wrapping_add(1));
        if let Some(here) = self.carried.prepared.get(statement.id) {
            self.carried.prepared.remove(statement.id);
            self.close_carried(&statement.name, Promise::Gone(here));
        }
        self.prepare(&statement, Some(parse.name));
    }

    /// A Parse where the server knows the client's own names: it is the one to say whether this one is free.
    fn parse_own(&mut self, parse: &extended::Parse<'_>, body: &[u8]) {
        let dialect = self.dialect;
        let statement = self.table.intern(self.scope, parse.sql, parse.types, || dialect.classify(parse.sql));
        let before = self.names.insert(parse.name, statement);
        self.journal.rename(parse.name, before.as_ref());
        if let Some(own) = &mut self.carried.own_names {
            own.find(prepared::key(parse.name));
        }
        let token = self.journal.promise(Promise::Name(parse.name.into(), before));
        self.raw(b'P', body, Some(Expect::Parse { forward: true, token }));
    }

    /// Has the server refuse a Parse: the name is taken there.
    fn parse_again(&mut self, statement: &Statement, parse: &extended::Parse<'_>) {
        let token = self.journal.promise(Promise::Again);
        frame::put(self.out, b'P', &[statement.name.as_bytes(), b"\0", parse.sql, b"\0", parse.types]);
        self.answer.expect(Expect::Parse { forward: true, token });
    }

    /// Prepares a statement on the server; `name` when the client asked for it.
    fn prepare(&mut self, statement: &Statement, name: Option<&[u8]>) {
        if let Some(oldest) = self.carried.prepared.evict(self.prepared_max) {
            self.close_carried(&self.table.name_of(oldest.id), Promise::Gone(oldest));
        }
        let token = self.journal.promise(Promise::Prepared(statement.id, name.map(Into::into)));
        frame::put(
            self.out,
            b'P',
            &[statement.name.as_bytes(), b"\0", &statement.sql, b"\0", &statement.types],
        );
        self.answer.expect(Expect::Parse { forward: name.is_some(), token });
        let generation = statement.generation.get();
        self.carried.prepared.insert(PreparedHere { id: statement.id, generation, shape: None });
    }

    /// Closes a statement on the server.
    fn close_carried(&mut self, name: &str, gone: Promise) {
        frame::put(self.out, b'C', &[b"S", name.as_bytes(), b"\0"]);
        let token = self.journal.promise(gone);
        self.answer.expect(Expect::OwnClose { token });
    }

    /// Sees to it that the statement is prepared on the server. Gives the shape of its rows there, as far as it is known.
    fn ensure(&mut self, statement: &Rc<Statement>, name: &[u8]) -> Option<Shape> {
        if self.carried.own_names.is_some() {
            return self.ensure_own(statement, name);
        }
        if let Some(here) = self.carried.prepared.used(statement.id) {
            if here.generation == statement.generation.get() {
                return here.shape;
            }
            // A client has prepared it anew elsewhere since: what stands here may be of before a DDL.
            self.carried.prepared.remove(statement.id);
            self.close_carried(&statement.name, Promise::Gone(here));
        }
        self.prepare(statement, None);
        None
    }

    /// The same where the server knows the client's own names. Of what is prepared there under them only the shapes are noted.
    fn ensure_own(&mut self, statement: &Statement, name: &[u8]) -> Option<Shape> {
        if self.carried.own_names.as_mut().is_some_and(|own| own.find(prepared::key(name))) {
            // A stand-in may have its name.
            frame::put(self.out, b'C', &[b"S", name, b"\0"]);
            let token = self.journal.promise(Promise::Nothing);
            self.answer.expect(Expect::OwnClose { token });
            frame::put(self.out, b'P', &[name, b"\0", &statement.sql, b"\0", &statement.types]);
            let token = self.journal.promise(Promise::Found(prepared::key(name).into()));
            self.answer.expect(Expect::Parse { forward: false, token });
        }
        let here = self.carried.prepared.used(statement.id);
        if here.is_none() {
            let generation = statement.generation.get();
            self.carried.prepared.insert(PreparedHere { id: statement.id, generation, shape: None });
        }
        here.and_then(|here| here.shape)
    }

    /// What the server calls the statement that the client calls `name`; the client is to hear its own name in errors.
    fn sent_name<'n>(&mut self, statement: &'n Statement, name: &'n [u8]) -> &'n [u8] {
        if self.carried.own_names.is_some() {
            return name;
        }
        self.answer.renames(statement.name.as_bytes(), name);
        statement.name.as_bytes()
    }

    /// Asks the server for the shape of a statement's rows, which the client was told to be `wanted`.
    fn ask_shape(&mut self, name: &[u8], wanted: Option<Shape>, promise: Promise) {
        frame::put(self.out, b'D', &[b"S", name, b"\0"]);
        let token = self.journal.promise(promise);
        self.answer.expect(Expect::OwnShape { wanted, token });
    }

    /// Puts in the questions to the server that doubts need, and what must be prepared for them. The end is for the caller.
    pub fn ask(&mut self, doubts: &[Doubt]) {
        for doubt in doubts {
            match doubt {
                Doubt::Named(statement, name, told) => {
                    self.ensure(statement, name);
                    let sent = self.sent_name(statement, name);
                    self.ask_shape(sent, None, Promise::Shape(statement.id, *told));
                }
                Doubt::Unnamed(told) => {
                    self.ensure_unnamed();
                    self.ask_shape(b"", None, Promise::UnnamedShape(*told));
                }
            }
        }
    }

    /// How far it has come.
    pub fn mark(&self) -> Mark {
        Mark::new(self.out, self.answer, self.journal)
    }

    /// Takes back what was written since.
    pub fn take_back(&mut self, since: &Mark) {
        self.out.truncate(since.out);
        self.answer.expect_only(since.expected);
        self.journal.take_back(since.journal, self.names, self.carried);
    }

    /// Puts the questions that doubts need in the place of what was written since, and has the server answer them.
    pub fn ask_instead(&mut self, since: &Mark) {
        self.take_back(since);
        let doubts = std::mem::take(self.doubts);
        self.ask(&doubts);
        *self.doubts = doubts;
        self.out.extend_from_slice(reply::FLUSH);
    }

    /// A portal is bound to a statement of which the client was told what its parameters and rows look like.
    fn compare(&mut self, mut doubt: Doubt, portal: &[u8]) {
        // Who asks for the portal's own shape is told of its rows, whatever it was told before.
        let asks = unit::frames(self.unit)
            .any(|(kind, body)| kind == b'D' && extended::named(body) == Some(Named::Portal(portal)));
        if asks {
            let (Doubt::Named(.., told) | Doubt::Unnamed(told)) = &mut doubt;
            told.rows = None;
            if told.parameters.is_none() {
                return;
            }
        }
        match (self.shapes, doubt) {
            (Shapes::Trust, _) => {}
            (Shapes::Compare, Doubt::Named(statement, name, told)) => {
                let sent = self.sent_name(&statement, &name);
                self.ask_shape(sent, Some(told), Promise::Shape(statement.id, told));
            }
            (Shapes::Compare, Doubt::Unnamed(told)) => {
                self.ask_shape(b"", Some(told), Promise::UnnamedShape(told));
            }
            (Shapes::Ask | Shapes::AskInPlace, doubt) => self.doubts.push(doubt),
        }
    }

    /// Sees to it that the unnamed statement is the client's. Gives what the client was told of its rows, if it had to be
    /// prepared anew.
    fn ensure_unnamed(&mut self) -> Option<Shape> {
        if self.names.unnamed_streamed {
            return None;
        }
        let Some(unnamed) = &self.names.unnamed else {
            // The client has none; whatever is there is another session's. The server is to say that there is none.
            self.carried.unnamed = None;
            self.close_carried("", Promise::Nothing);
            return None;
        };
        let wanted = Some((self.session, unnamed.count));
        if self.carried.unnamed == wanted {
            return None;
        }
        let told = unnamed.told;
        frame::put(self.out, b'P', &[b"\0", &unnamed.sql, b"\0", &unnamed.types]);
        self.carried.unnamed = wanted;
        let token = self.journal.promise(Promise::UnnamedHere);
        self.answer.expect(Expect::Parse { forward: false, token });
        told
    }

    /// The name under which the server knows what the client calls `name`.
    fn server_name(&mut self, name: &[u8]) -> Vec<u8> {
        if name.is_empty() {
            self.ensure_unnamed();
            return Vec::new();
        }
        match self.names.named(name).cloned() {
            Some(statement) => {
                self.ensure(&statement, name);
                self.sent_name(&statement, name).to_vec()
            }
            // Unknown: the server says so. A name that looks like pgsteer's own must not find somebody else's statement.
            None if self.carried.own_names.is_none() && name.starts_with(NAME_PREFIX.as_bytes()) => {
                [b"?", name].concat()
            }
            None => name.to_vec(),
        }
    }

    fn bind(&mut self, body: &'a [u8]) {
        let Some(bind) = extended::bind(body) else { return self.raw(b'B', body, Some(Expect::Bind)) };
        self.bound = Some((bind.portal, bind.statement));
        match self.ensure_bound(&bind) {
            Some(statement) => {
                let sent = self.sent_name(&statement, bind.statement);
                frame::put(self.out, b'B', &[bind.portal, b"\0", sent, b"\0", bind.rest]);
            }
            None if bind.statement.is_empty() => {
                frame::put(self.out, b'B', &[bind.portal, b"\0\0", bind.rest]);
            }
            None => {
                let name = self.server_name(bind.statement);
                frame::put(self.out, b'B', &[bind.portal, b"\0", &name, b"\0", bind.rest]);
            }
        }
        self.answer.expect(Expect::Bind);
    }

    /// Sees to it that what is bound is prepared, and has rows as the client was told. Gives a named statement.
    fn ensure_bound(&mut self, bind: &extended::Bind<'_>) -> Option<Rc<Statement>> {
        if bind.statement.is_empty() {
            if let Some(told) = self.ensure_unnamed() {
                self.compare(Doubt::Unnamed(told), bind.portal);
            }
            return None;
        }
        let (statement, told) = self.names.described(bind.statement)?;
        let statement = Rc::clone(statement);
        let here = self.ensure(&statement, bind.statement);
        if let Some(told) = told
            && !here.is_some_and(|here| here.agrees(told))
        {
            let doubt = Doubt::Named(Rc::clone(&statement), bind.statement.into(), told);
            self.compare(doubt, bind.portal);
        }
        Some(statement)
    }

    fn describe(&mut self, body: &[u8]) {
        match extended::named(body) {
            Some(Named::Statement(name)) => {
                let promise = self.described(name);
                let name = self.server_name(name);
                frame::put(self.out, b'D', &[b"S", &name, b"\0"]);
                let token = self.journal.promise(promise.unwrap_or(Promise::Nothing));
                self.answer.expect(Expect::Shape { token });
            }
            Some(Named::Portal(portal)) => {
                let reply = match self.bound {
                    Some((bound, statement)) if bound == portal && !self.knows_shape(statement) => {
                        let promise = self.described(statement).unwrap_or(Promise::Nothing);
                        Expect::Shape { token: self.journal.promise(promise) }
                    }
                    // Of an earlier unit, a cursor's perhaps: what is told of it is kept with its transaction (`so_far`).
                    None => Expect::Shape { token: self.journal.promise(Promise::Nothing) },
                    _ => Expect::Describe,
                };
                self.raw(b'D', body, Some(reply));
            }
            None => self.raw(b'D', body, Some(Expect::Describe)),
        }
    }

    /// The client will be told the shape of the rows of the statement of this name.
    fn described(&self, name: &[u8]) -> Option<Promise> {
        if name.is_empty() {
            self.names.unnamed.as_ref().map(|unnamed| Promise::DescribedUnnamed(unnamed.count))
        } else {
            self.names.named(name).map(|statement| Promise::Described(name.into(), statement.id))
        }
    }

    /// Whether it was told, and the server's statement can have no other by now without the server's saying so.
    fn knows_shape(&self, name: &[u8]) -> bool {
        let Some((statement, Some(told))) = self.names.described(name) else { return false };
        self.carried
            .prepared
            .get(statement.id)
            .is_some_and(|here| here.shape.is_some_and(|shape| shape.agrees(told)))
    }

    fn close(&mut self, body: &[u8]) {
        match extended::named(body) {
            Some(Named::Statement(name)) if !name.is_empty() => {
                let before = self.names.remove(name);
                let mut promise = Promise::Nothing;
                if before.is_some() {
                    self.journal.rename(name, before.as_ref());
                    promise = Promise::Name(name.into(), before);
                }
                if let Some(own) = &mut self.carried.own_names {
                    own.find(prepared::key(name));
                    let token = Some(self.journal.promise(promise));
                    return self.raw(b'C', body, Some(Expect::Close { token }));
                }
                // It stays prepared on the server for the next session that uses the same text.
                let token = self.journal.promise(promise);
                self.answer.expect(Expect::Local { reply: reply::CLOSE_COMPLETE, token });
            }
            Some(Named::Statement(_)) => {
                let before = self.names.take_unnamed();
                self.carried.unnamed = None;
                let token = Some(self.journal.promise(Promise::Unnamed(before)));
                self.raw(b'C', body, Some(Expect::Close { token }));
            }
            _ => self.raw(b'C', body, Some(Expect::Close { token: None })),
        }
    }
}
