//! What a client sent, cut into units that go to one node whole: a Query, or an extended batch up to Sync or Flush.
//!
//! Invariant: a unit is a sequence of complete frames at the front of the client's bytes. Pure. Must not know: servers.

use super::prepared::Names;
use crate::classify::{
    self, Access, AskedTerms, Classification, Dialect, InReadOnly, PinReason, Reason, Resets, SessionEffect,
    Steer, TransactionEffect,
};
use crate::route::Need;
use crate::wire::extended::{self, Named};
use crate::wire::frame::{self, HEADER_BYTES, LengthError};
use crate::wire::reply::SYNC;

/// How a unit ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// One Query or FunctionCall: answered up to ReadyForQuery.
    Simple,
    /// Extended messages ending in Sync.
    Synced,
    /// Extended messages ending in Flush: answered, and more will follow.
    Flushed,
    /// Extended messages without an end yet: not answered, and more will follow.
    Partial,
}

/// What stands at the front of the client's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Front {
    /// More bytes are needed.
    Incomplete,
    /// A unit of so many bytes.
    Unit {
        /// How it ends.
        kind: Kind,
        /// Its length.
        bytes: usize,
    },
    /// A single frame that is larger than the buffer may become; `bytes` is its whole length.
    Oversized {
        /// Its type.
        kind: u8,
        /// Its length.
        bytes: usize,
    },
    /// COPY data outside of COPY: ignored, as PostgreSQL does.
    Stray {
        /// Its length, which may reach beyond what is there.
        bytes: usize,
    },
    /// The client says goodbye.
    Terminate,
    /// Not a message of the protocol.
    Invalid {
        /// The type byte.
        kind: u8,
    },
}

/// Looks at the front of `bytes`. `room`: to how many bytes the buffer may grow.
pub fn front(bytes: &[u8], room: usize) -> Result<Front, LengthError> {
    let Some(first) = frame::header(bytes)? else { return Ok(Front::Incomplete) };
    match first.kind {
        b'X' => return Ok(Front::Terminate),
        b'd' | b'c' | b'f' => return Ok(Front::Stray { bytes: first.frame_bytes }),
        b'Q' | b'F' | b'P' | b'B' | b'D' | b'E' | b'C' | b'S' | b'H' => {}
        kind => return Ok(Front::Invalid { kind }),
    }
    if first.frame_bytes > room {
        return Ok(Front::Oversized { kind: first.kind, bytes: first.frame_bytes });
    }
    if matches!(first.kind, b'Q' | b'F') {
        let whole = first.frame_bytes <= bytes.len();
        return Ok(if whole {
            Front::Unit { kind: Kind::Simple, bytes: first.frame_bytes }
        } else {
            Front::Incomplete
        });
    }
    let mut length = 0;
    loop {
        let rest = bytes.get(length..).unwrap_or_default();
        let partial = Front::Unit { kind: Kind::Partial, bytes: length };
        let Some(header) = frame::header(rest)? else {
            return Ok(if length > 0 && bytes.len() >= room { partial } else { Front::Incomplete });
        };
        if !matches!(header.kind, b'P' | b'B' | b'D' | b'E' | b'C' | b'S' | b'H') {
            return Ok(partial);
        }
        if header.frame_bytes > rest.len() {
            let full = length + header.frame_bytes > room;
            return Ok(if length > 0 && full { partial } else { Front::Incomplete });
        }
        length += header.frame_bytes;
        match header.kind {
            b'S' => return Ok(Front::Unit { kind: Kind::Synced, bytes: length }),
            b'H' => return Ok(Front::Unit { kind: Kind::Flushed, bytes: length }),
            _ => {}
        }
    }
}

/// The frames of a unit: type and body.
pub fn frames(unit: &[u8]) -> impl Iterator<Item = (u8, &[u8])> {
    let mut rest = unit;
    std::iter::from_fn(move || {
        let header = frame::header(rest).ok().flatten()?;
        let body = rest.get(HEADER_BYTES..header.frame_bytes)?;
        rest = rest.get(header.frame_bytes..)?;
        Some((header.kind, body))
    })
}

/// How many bytes of a batch its first statement takes, up to its Execute; `None` where nothing but a Sync follows, or what follows asks
/// of its portal.
pub fn first_executed(unit: &[u8]) -> Option<usize> {
    let mut length = 0;
    let mut portal: Option<&[u8]> = None;
    for (kind, body) in frames(unit) {
        let is_of = |portal: &[u8]| body.strip_prefix(portal).is_some_and(|rest| rest.first() == Some(&0));
        match (portal, kind) {
            (None, b'P' | b'B' | b'D' | b'C') => length += HEADER_BYTES + body.len(),
            (None, b'E') => {
                length += HEADER_BYTES + body.len();
                portal = body.split(|&byte| byte == 0).next();
            }
            (None, _) => return None,
            (Some(portal), b'B') if is_of(portal) => return Some(length),
            (Some(portal), b'E') if is_of(portal) => return None,
            (Some(portal), b'D' | b'C') if extended::named(body) == Some(Named::Portal(portal)) => {
                return None;
            }
            _ => {}
        }
    }
    (unit.len() > length + SYNC.len() && portal.is_some()).then_some(length)
}

/// How many bytes of whole extended messages stand at the front, with no end of their batch behind them.
pub fn unfinished(bytes: &[u8]) -> usize {
    let mut length = 0;
    while let Some(rest) = bytes.get(length..)
        && let Ok(Some(header)) = frame::header(rest)
        && matches!(header.kind, b'P' | b'B' | b'D' | b'E' | b'C')
        && header.frame_bytes <= rest.len()
    {
        length += header.frame_bytes;
    }
    length
}

/// What a unit needs, all its statements taken together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(clippy::struct_excessive_bools, reason = "independent facts, each read by another rule")]
pub struct Needs {
    /// Where it may run.
    pub need: Need,
    /// Every statement in it is a known read: safe to run again.
    pub repeatable: bool,
    /// It leaves state that pins the session.
    pub pin: Option<PinReason>,
    /// It may change settings or prepared names: see `Session::note_effects`.
    pub session: bool,
    /// It may end a pin.
    pub may_unpin: bool,
    /// It creates, renames or drops a database.
    pub databases: bool,
    /// It defines something: what other statements do beside their texts may be otherwise from now on.
    pub defines: bool,
    /// It creates, alters or drops a role.
    pub roles: bool,
    /// It asks what a sequence gave last.
    pub asks_last_value: bool,
    /// It may cancel or end any session, its own too.
    pub signals: bool,
    /// It may name sessions by their process ids.
    pub names_processes: bool,
    /// The process ids that it names are those of server processes by now.
    pub processes_resolved: bool,
    /// It uses prepared statements by their names in SQL, or drops them all beside others that it makes.
    pub names_prepared: bool,
    /// It uses what the extension of search has.
    pub search: bool,
    /// It shows a setting `pgsteer.…`.
    pub shows_own: bool,
    /// It sets one, or its leading comment is amiss.
    pub sets_own: bool,
    /// It may have its transaction committed asynchronously, which its session's settings do not show.
    pub sets_commit: bool,
    /// One text of several statements resets a setting.
    pub resets: Resets,
    /// What it does to the transaction, if it is a single statement that does.
    pub transaction: TransactionEffect,
    /// It contains a COMMIT, or statements beside a ROLLBACK, which are a transaction of their own then.
    pub commits: bool,
    /// It contains a ROLLBACK.
    pub rolls_back: bool,
    /// It runs code whose effects on the session can't be seen in its text: the server is reset before its next session.
    pub unseen: bool,
    /// It executes a portal that an earlier unit bound.
    pub earlier_portal: bool,
    /// What the one statement that it runs is in a READ ONLY transaction.
    pub in_read_only: InReadOnly,
    /// It has statements that are not the same there.
    pub(super) is_mixed: bool,
    /// Number of Execute messages or simple statements.
    pub statements: usize,
    /// Where it goes because standbys cancel its like again and again.
    pub steer: Steer,
    /// What its leading comments ask for.
    pub terms: AskedTerms,
    /// What that of the first statement did.
    pub(super) hinted: Option<AskedTerms>,
}

impl Default for Needs {
    fn default() -> Self {
        Self {
            need: Need::Read,
            repeatable: true,
            pin: None,
            session: false,
            may_unpin: false,
            databases: false,
            defines: false,
            roles: false,
            asks_last_value: false,
            signals: false,
            names_processes: false,
            processes_resolved: false,
            names_prepared: false,
            search: false,
            shows_own: false,
            sets_own: false,
            sets_commit: false,
            resets: Resets::Alone,
            transaction: TransactionEffect::None,
            commits: false,
            rolls_back: false,
            unseen: false,
            earlier_portal: false,
            in_read_only: InReadOnly::AsIs,
            is_mixed: false,
            statements: 0,
            steer: Steer::Not,
            terms: AskedTerms::default(),
            hinted: None,
        }
    }
}

impl Needs {
    /// The primary, and nothing else.
    pub fn primary() -> Self {
        Self { need: Need::Primary, repeatable: false, ..Self::default() }
    }

    /// Of something that can't be looked into: the primary, once.
    pub fn unknown() -> Self {
        Self {
            commits: true,
            statements: 1,
            session: true,
            unseen: true,
            sets_commit: true,
            ..Self::primary()
        }
    }

    /// Whether it does nothing but read, in a transaction that can be begun anew.
    pub fn only_reads(&self) -> bool {
        let is_plain = self.transaction == TransactionEffect::None || self.in_read_only == InReadOnly::Quiet;
        self.repeatable && is_plain
    }

    /// Whether, as far as its text shows, `statement_timeout` is behind it what it was before.
    pub fn keeps_limit(&self) -> bool {
        let is_plain = self.repeatable
            || matches!(self.in_read_only, InReadOnly::Quiet | InReadOnly::Fetches)
            || (self.statements == 1 && self.transaction != TransactionEffect::None);
        is_plain && !self.session && !self.unseen && self.in_read_only != InReadOnly::Sets
    }

    /// What follows a RESET depends on what the server takes for the first value: in the text, or in the transaction that it begins.
    pub fn needs_own_defaults(&self) -> bool {
        match self.resets {
            Resets::Alone => false,
            Resets::AtTheEnd => self.transaction != TransactionEffect::None,
            Resets::Before => true,
        }
    }

    fn add(&mut self, class: &Classification) {
        if class.access != Access::Read || class.pin.is_some() {
            self.need = Need::Primary;
            self.repeatable = false;
        }
        self.is_mixed |= self.hinted.is_some() && self.in_read_only != class.in_read_only;
        self.in_read_only = class.in_read_only;
        self.databases |= class.databases;
        self.roles |= class.roles;
        self.signals |= class.signals;
        self.names_processes |= class.names_processes;
        self.asks_last_value |= class.asks_last_value;
        self.defines |= class.defines;
        self.unseen |= class.unseen;
        self.search |= class.search;
        self.shows_own |= class.shows_own;
        self.sets_own |= class.sets_own || class.hint.amiss;
        self.sets_commit |= class.sets_commit;
        self.resets = self.resets.max(class.resets);
        self.pin = self.pin.or(class.pin);
        self.session |= class.session != SessionEffect::None;
        let undoes = matches!(class.reason, Reason::Notification | Reason::SessionState | Reason::Ddl);
        self.may_unpin |= (undoes && !class.unseen) || class.pin == Some(PinReason::AdvisoryLock);
        self.commits |= class.commits;
        self.rolls_back |= class.transaction == TransactionEffect::Rollback;
        match self.hinted {
            None => (self.hinted, self.terms) = (true.then_some(class.hint.terms), class.hint.terms),
            Some(terms) if terms == class.hint.terms => {}
            // Each has its own, and they run on one node: that which is good for all.
            Some(_) => self.need = Need::Primary,
        }
    }
}

/// Looks into a unit. Names prepared in the unit itself are seen by its later messages.
pub fn needs(unit: &[u8], names: &Names, dialect: &Dialect<'_>) -> Needs {
    let mut needs = Needs::default();
    let mut parsed: Vec<(&[u8], Classification)> = Vec::new();
    let mut effects = Effects::default();
    let mut portals: Vec<&[u8]> = Vec::new();
    let (mut drops_all, mut prepares) = (false, false);
    for (kind, body) in frames(unit) {
        match kind {
            b'Q' => {
                let Some(sql) = extended::query(body) else { return Needs::unknown() };
                let class = classify::classify(sql, dialect);
                needs.add(&class);
                needs.names_prepared |= class.names_prepared;
                needs.statements += usize::from(class.statements);
                effects.bound(class.transaction);
            }
            b'P' => {
                let Some(parse) = extended::parse(body) else { return Needs::unknown() };
                let class = classify::classify(parse.sql, dialect);
                needs.add(&class);
                prepares |= !parse.name.is_empty();
                parsed.push((parse.name, class));
            }
            b'B' => {
                let Some(bind) = extended::bind(body) else { return Needs::unknown() };
                let here =
                    parsed.iter().rev().find(|(name, _)| *name == bind.statement).map(|(_, class)| *class);
                let Some(class) = here.or_else(|| names.class(bind.statement, dialect)) else {
                    return Needs { names_prepared: needs.names_prepared, ..Needs::unknown() };
                };
                needs.add(&class);
                effects.bound(class.transaction);
                needs.names_prepared |= class.names_prepared;
                drops_all |=
                    matches!(class.session, SessionEffect::DeallocateAll | SessionEffect::DiscardAll);
                portals.push(bind.portal);
            }
            b'D' | b'C' => {
                let Some(named) = extended::named(body) else { return Needs::unknown() };
                if let Named::Statement(name) = named {
                    let here =
                        parsed.iter().rev().find(|(parsed, _)| *parsed == name).map(|(_, class)| *class);
                    match here.or_else(|| names.class(name, dialect)) {
                        Some(class) => {
                            needs.terms = needs.terms.or(class.hint.terms);
                            // The rows of an EXECUTE are those of the statement that it names.
                            needs.names_prepared |= kind == b'D' && class.names_prepared;
                        }
                        // It may be one of SQL-level PREPARE.
                        None => needs.may_unpin |= kind == b'C' && !name.is_empty(),
                    }
                }
            }
            b'E' => {
                needs.statements += 1;
                needs.earlier_portal |= !portals
                    .iter()
                    .any(|portal| body.starts_with(portal) && body.get(portal.len()) == Some(&0));
            }
            b'S' | b'H' => {}
            _ => return Needs::unknown(),
        }
    }
    needs.names_prepared |= drops_all && prepares;
    needs.commits |= needs.rolls_back && needs.statements > 1;
    if needs.is_mixed || needs.statements != 1 {
        needs.in_read_only = InReadOnly::AsIs;
    }
    needs.transaction = effects.of(needs.statements);
    needs
}

/// The transaction effects of the statements of a unit, taken together.
#[derive(Debug, Default)]
struct Effects {
    count: usize,
    last: TransactionEffect,
    any: bool,
}

impl Effects {
    fn bound(&mut self, effect: TransactionEffect) {
        self.count += 1;
        self.any |= effect != TransactionEffect::None;
        self.last = effect;
    }

    fn of(&self, statements: usize) -> TransactionEffect {
        match (self.any, self.count, statements) {
            (false, ..) => TransactionEffect::None,
            (true, 1, 1) => self.last,
            _ => TransactionEffect::Other,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn batch(frames: &[(u8, &[u8])]) -> Vec<u8> {
        let mut out = Vec::new();
        for (kind, body) in frames {
            frame::put(&mut out, *kind, &[body]);
        }
        out
    }

    /// C05.
    #[test]
    fn the_first_statement_of_a_batch_ends_with_its_execute() {
        const BEGIN: [(u8, &[u8]); 3] =
            [(b'P', b"\0BEGIN\0\0\0"), (b'B', b"\0\0\0\0\0\0\0\0"), (b'E', b"\0\0\0\0\0")];
        const BIND: (u8, &[u8]) = (b'B', b"\0s\0\0\0\0\0\0\0");
        let begin_bytes = batch(&BEGIN).len();
        let first = |rest: &[(u8, &[u8])]| first_executed(&[batch(&BEGIN), batch(rest)].concat());
        assert_eq!(first(&[BIND, (b'D', b"P\0"), BEGIN[2], (b'S', b"")]), Some(begin_bytes));
        assert_eq!(first(&[(b'D', b"Ss\0"), (b'S', b"")]), Some(begin_bytes));
        assert_eq!(first(&[(b'E', b"other\0\0\0\0\0"), (b'S', b"")]), Some(begin_bytes));
        for nothing_more in [&[(b'S', &b""[..])][..], &[]] {
            assert_eq!(first(nothing_more), None);
        }
        for asks_of_it in [BEGIN[2], (b'D', b"P\0"), (b'C', b"P\0")] {
            assert_eq!(first(&[asks_of_it, (b'S', b"")]), None, "{asks_of_it:?}");
        }
        assert_eq!(first_executed(&batch(&[BEGIN[0], (b'H', b""), BEGIN[1], BEGIN[2], BIND])), None);
        assert_eq!(first_executed(&batch(&[(b'Q', b"BEGIN\0")])), None);
        assert_eq!(first_executed(b""), None);
    }
}
