//! The shallow grammar of a statement's body: which parenthesis belongs to what, and which names are calls.
//!
//! Invariant: a name before a parenthesis is a call unless its place proves that it can't be one; what is not
//! recognised errs towards "call". Must not know: which statements exist beyond their first word.

use super::builtins::{self, Folded};
use super::calls::{self, is_unsafe};
use super::lex::{Kind, Token};
use super::names::{is_type, may_set_commit, pin_of, set_config, sets_own};
use super::place::{Argument, Clause, LEVEL, Last, Level, Name, Opened, Paren, SettingsRule};
use super::scan::Scanner;
use super::words::Word;
use super::{Catalogue, PinReason, Reason, SessionEffect, Source, Verdict};

/// Parentheses nested deeper than this are not understood.
const DEPTH_MAX: usize = 128;

/// The state of one statement's body.
pub(super) struct Body {
    levels: [Level; DEPTH_MAX],
    depth: usize,
    /// Levels beyond `DEPTH_MAX`, only counted.
    beyond: usize,
    last: Last,
    word: Word,
    operand: bool,
    name: Option<Name>,
    argument: Argument,
    rule: SettingsRule,
    reads: Reads,
}

/// What there is to read in a statement.
#[derive(PartialEq, Eq)]
enum Reads {
    Nothing,
    /// The same, and it sleeps.
    Sleeps,
    /// Something stands behind FROM.
    Relations,
}

impl Body {
    pub(super) fn new() -> Self {
        Self {
            levels: [LEVEL; DEPTH_MAX],
            depth: 0,
            beyond: 0,
            last: Last::Nothing,
            word: Word::Other,
            operand: false,
            name: None,
            argument: Argument::Any,
            rule: SettingsRule::default(),
            reads: Reads::Nothing,
        }
    }

    fn level(&mut self) -> &mut Level {
        &mut self.levels[self.depth]
    }

    /// Reads from `token` to behind the parenthesis that was stepped into first; the scanner then stands there.
    pub(super) fn read_level(&mut self, scan: &mut Scanner<'_>, mut token: Token) {
        while !scan.at_end() {
            self.step(scan, token);
            token = scan.advance();
            if self.depth == 0 && self.beyond == 0 {
                return;
            }
        }
        scan.write(Reason::NotUnderstood);
    }

    /// Reads from `token` to the end of the statement.
    pub(super) fn read(&mut self, scan: &mut Scanner<'_>, mut token: Token) {
        loop {
            match token.kind {
                Kind::Semicolon | Kind::End | Kind::Error => break,
                _ => self.step(scan, token),
            }
            token = scan.advance();
        }
        // An open parenthesis, or a WITH without its statement.
        if self.depth > 0 || self.beyond > 0 || self.levels[0].clause == Clause::With {
            scan.write(Reason::NotUnderstood);
        }
        if self.rule.updates && self.rule.named {
            scan.session(SessionEffect::Unknown);
        }
        // One who only waits reads nothing, and is looked for on the primary (pg_stat_activity, pg_cancel_backend).
        if self.reads == Reads::Sleeps {
            scan.write(Reason::NodeLocal);
        }
    }

    #[inline(always)]
    pub(super) fn step(&mut self, scan: &mut Scanner<'_>, token: Token) {
        if self.argument != Argument::Any {
            self.setting_name(scan, token);
        }
        match token.kind {
            // Lists of values are most of long texts.
            Kind::Text | Kind::Number | Kind::Parameter => {
                self.set(Last::Value, true);
                self.levels[self.depth].fresh = false;
                if self.argument == Argument::Any && scan.skip_values() {
                    self.comma();
                    self.set(Last::Value, true);
                }
            }
            Kind::Comma => {
                self.comma();
                self.levels[self.depth].fresh = false;
            }
            Kind::Word => {
                self.word(scan);
                self.levels[self.depth].fresh = false;
            }
            Kind::Open => self.open(scan),
            Kind::Close => {
                self.close(scan);
                self.levels[self.depth].fresh = false;
            }
            kind => self.step_on(scan, kind),
        }
    }

    /// The same for the current token, which has this kind, unless it is a parenthesis: that may have been stepped over.
    #[inline(never)]
    fn step_on(&mut self, scan: &mut Scanner<'_>, kind: Kind) {
        match kind {
            Kind::Quoted | Kind::Unicode => self.name(scan),
            Kind::Operator => {
                let operator = scan.text(scan.token());
                if scan.dialect().catalogue.is_some_and(|catalogue| catalogue.is_writing_operator(operator)) {
                    scan.write(Reason::Object);
                }
                scan.search |= builtins::is_search_operator(operator);
                self.set(Last::Operator, false);
            }
            Kind::Colon => {
                self.colon(scan);
                self.set(Last::Keyword, false);
            }
            Kind::Cast => self.set(Last::Cast, false),
            Kind::Dot => {
                self.last = Last::Dot;
                self.operand = false;
            }
            Kind::OpenBracket => self.push(scan, Opened::Bracket, Clause::Expression),
            Kind::CloseBracket => self.close(scan),
            _ => {}
        }
        if kind != Kind::OpenBracket {
            self.levels[self.depth].fresh = false;
        }
    }

    /// `:` stands in an array's bounds or behind a key of JSON, `:=` behind an argument's name. Elsewhere they are a client's own
    /// (`:name`, `@a := 1`).
    fn colon(&self, scan: &mut Scanner<'_>) {
        let understood = match scan.text(scan.token()) {
            b":" => self.operand || self.levels[self.depth].opened == Opened::Bracket,
            b":=" => self.depth > 0 && self.last == Last::Name,
            _ => false,
        };
        if !understood {
            scan.write(Reason::NotUnderstood);
        }
    }

    /// The name of a setting must be one constant that shows it, and not the node's own.
    fn setting_name(&mut self, scan: &mut Scanner<'_>, token: Token) {
        let (harmless, next) = match (self.argument, token.kind) {
            (Argument::Setting, Kind::Text) => {
                (!super::settings::may_be_node_local(scan.text(token)), Argument::SettingEnd)
            }
            (Argument::SettingEnd, Kind::Comma | Kind::Close) => (true, Argument::Any),
            _ => (false, Argument::Any),
        };
        self.argument = next;
        if !harmless {
            scan.write(Reason::NodeLocal);
        }
    }

    #[inline]
    fn set(&mut self, last: Last, operand: bool) {
        self.last = last;
        self.word = Word::Other;
        self.operand = operand;
        self.name = None;
    }

    #[inline]
    fn comma(&mut self) {
        let level = self.level();
        if level.clause == Clause::JoinOn {
            level.clause = Clause::From;
        }
        self.set(Last::Comma, false);
    }

    #[inline(never)]
    fn word(&mut self, scan: &mut Scanner<'_>) {
        let token = scan.token();
        if token.word == Word::Other || matches!(self.last, Last::Dot | Last::As) {
            return self.name(scan);
        }
        // A keyword that is not reserved may be the name of a relation or a type.
        if let Some(catalogue) = scan.dialect().catalogue
            && !token.word.is_reserved()
            && catalogue.is_primary_object(&scan.folded(token))
        {
            scan.write(Reason::Object);
        }
        let before = self.word;
        self.keyword(scan, token.word);
        let ends = token.word.ends_operand();
        self.name = Some(Name {
            token,
            qualifier: None,
            parts: 1,
            after: self.last,
            after_word: before,
            after_operand: self.operand,
        });
        self.operand = ends;
        self.word = token.word;
        let is_as = token.word == Word::As && self.level().clause != Clause::With;
        self.last = if is_as { Last::As } else { Last::Keyword };
    }

    /// What a keyword does to the clause of its level, and whether it makes the statement a write.
    fn keyword(&mut self, scan: &mut Scanner<'_>, word: Word) {
        use Word::*;
        if self.word == For && matches!(word, Update | Share | No | Key) {
            scan.write(Reason::Locks);
        }
        if self.word == Into && matches!(word, Temp | Temporary | Local | Global) {
            scan.pin(PinReason::TempObject);
        }
        let implies = matches!(
            word,
            In | Between | Like | Ilike | Similar | Nullif | When | Using | Distinct | Any | Some | All | By
        );
        if implies && scan.dialect().catalogue.is_some_and(Catalogue::implies_writes) {
            scan.write(Reason::Object);
        }
        let (depth, before, operand) = (self.depth, self.word, self.operand);
        let level = &mut self.levels[depth];
        match word {
            Insert | Update | Delete | Merge => {
                self.rule.updates |= word == Update;
                scan.write(if depth > 0 { Reason::ModifyingCte } else { Reason::ModifiesData });
            }
            Into => scan.write(Reason::Ddl),
            Select => {
                level.clause = Clause::Targets;
                level.query = true;
            }
            Values | Table => {
                level.query |= level.fresh || level.clause == Clause::With;
                level.clause = Clause::Expression;
            }
            With if level.fresh => {
                level.clause = Clause::With;
                level.query = true;
            }
            From if level.clause == Clause::Targets && before != Distinct => {
                level.clause = Clause::From;
                self.reads = Reads::Relations;
            }
            Join if level.clause == Clause::JoinOn && (operand || is_join_prefix(before)) => {
                level.clause = Clause::From;
            }
            On if level.clause == Clause::From => level.clause = Clause::JoinOn,
            By if before == Group => level.clause = Clause::GroupBy,
            // `COLLATION FOR (`: no locking clause goes on with a parenthesis.
            For if scan.ahead().next().kind == Kind::Open => {}
            For if level.query => {
                scan.write(Reason::Locks);
            }
            Where | Having | Window | Union | Intersect | Except | Order | Limit | Offset | Fetch | For => {
                level.clause = Clause::Expression;
            }
            _ => {}
        }
    }

    #[inline(never)]
    pub(super) fn name(&mut self, scan: &mut Scanner<'_>) {
        let token = scan.token();
        let name = match (self.last, self.name) {
            (Last::Dot, Some(name)) => {
                Name { token, qualifier: Some(name.token), parts: name.parts.saturating_add(1), ..name }
            }
            // A field of something else than a name: `(row).field`, `$1.field`.
            (Last::Dot, None) => Name {
                token,
                qualifier: None,
                parts: u8::MAX,
                after: Last::Dot,
                after_word: Word::Other,
                after_operand: false,
            },
            (after, _) => Name {
                token,
                qualifier: None,
                parts: 1,
                after,
                after_word: self.word,
                after_operand: self.operand,
            },
        };
        if name.parts == u8::MAX || (name.parts > 1 && is_unsafe(&scan.folded(token))) {
            self.attribute(scan, token);
        } else if name.parts > 1 {
            self.column(scan, token);
        }
        // Behind AS in a list of targets it is the name of what stands before, and calls nothing.
        let names_target = name.after == Last::As && self.levels[self.depth].clause == Clause::Targets;
        if token.kind == Kind::Unicode && !names_target {
            scan.write(Reason::NotUnderstood);
            scan.pin(PinReason::Unseen);
        }
        self.system_name(scan, token);
        // CREATE TABLE ... AS EXECUTE name; an alias of that name does no harm.
        scan.names_prepared |=
            token.word == Word::Execute && name.after == Last::As && scan.written().is_some();
        self.name = Some(name);
        self.word = token.word;
        self.last = Last::Name;
        self.operand = true;
    }

    /// `(expression).name`: a field, or a call of the function of that name, which need no parenthesis then.
    fn attribute(&mut self, scan: &mut Scanner<'_>, token: Token) {
        let function = scan.folded(token);
        let dialect = scan.dialect();
        let is_read = match dialect.catalogue {
            // Whatever is no function is a field.
            Some(catalogue) => {
                let verdict = catalogue.function(&function);
                let own = is_unsafe(&function) || builtins::is_unsafe_builtin(&function);
                dialect.catalogue_stamp.fresh && verdict != Some(Verdict::Write) && !own
            }
            None => builtins::is_builtin(&function, dialect.version),
        };
        if !is_read {
            if let Some(pin) = pin_of(&function) {
                scan.pin(pin);
            }
            scan.write(Reason::Function);
        }
    }

    /// `name.name`: a column, unless a function of the user's is called so.
    fn column(&mut self, scan: &mut Scanner<'_>, token: Token) {
        if let Some(catalogue) = scan.dialect().catalogue
            && catalogue.function(&scan.folded(token)) == Some(Verdict::Write)
            // Behind a schema a call is looked up as such.
            && scan.ahead().next().kind != Kind::Open
        {
            scan.write(Reason::Function);
        }
    }

    /// Functions that tell or end a server process. In conditions the process id only sorts out the session's own rows.
    fn process(&self, scan: &mut Scanner<'_>, function: &Folded<'_>) {
        scan.signals |= function.is_one_of(&["pg_terminate_backend", "pg_cancel_backend"]);
        scan.names_processes |= scan.signals || function.is(b"pg_blocking_pids");
        let told = self.depth == 0 && self.levels[0].clause == Clause::Targets;
        if told && function.is(b"pg_backend_pid") {
            scan.pin(PinReason::BackendPid);
        }
    }

    /// Temporary schemas, and views whose content is the node's own.
    #[inline]
    fn system_name(&mut self, scan: &mut Scanner<'_>, token: Token) {
        let name = scan.folded(token);
        if scan.dialect().catalogue.is_some_and(|catalogue| catalogue.is_primary_object(&name)) {
            scan.write(Reason::Object);
        }
        if !name.may_begin(b'p') || !name.begins(b"pg_") {
            return;
        }
        if name.begins(b"pg_temp") || name.begins(b"pg_toast_temp") {
            scan.write(Reason::NodeLocal);
            scan.pin(PinReason::TempObject);
        } else if super::settings::is_node_local_view(&name) {
            scan.names_prepared |= name.is(b"pg_prepared_statements");
            scan.names_processes |= name.begins(b"pg_stat_") || name.is(b"pg_locks");
            self.rule.named |= name.is(b"pg_settings");
            scan.write(Reason::NodeLocal);
        }
    }

    fn push(&mut self, scan: &mut Scanner<'_>, opened: Opened, clause: Clause) {
        if self.levels[self.depth].opened == Opened::Operator {
            scan.write(Reason::NotUnderstood);
        }
        if self.depth + 1 == DEPTH_MAX {
            self.beyond += 1;
            scan.write(Reason::NotUnderstood);
        } else {
            self.levels[self.depth].fresh = false;
            self.depth += 1;
            self.levels[self.depth] = Level { clause, opened, ..LEVEL };
        }
        self.set(Last::Open, false);
    }

    fn close(&mut self, scan: &mut Scanner<'_>) {
        if self.beyond > 0 {
            self.beyond -= 1;
        } else if self.depth == 0 {
            scan.write(Reason::NotUnderstood);
        } else {
            let opened = self.levels[self.depth].opened;
            self.depth -= 1;
            if opened == Opened::Operator && self.last != Last::Operator {
                scan.write(Reason::Function);
            }
            let operand = matches!(opened, Opened::Group | Opened::Cast | Opened::Bracket);
            return self.set(if operand { Last::Close } else { Last::Operator }, operand);
        }
        self.set(Last::Close, true);
    }

    #[inline(never)]
    fn open(&mut self, scan: &mut Scanner<'_>) {
        let inherited = match self.levels[self.depth].clause {
            Clause::From => Clause::From,
            _ => Clause::Expression,
        };
        let after_parenthesis = self.last == Last::Close;
        let (opened, clause) = match (self.last, self.name) {
            (Last::Name, Some(name)) => match self.after_name(scan, name) {
                Paren::Opens(opened, clause) => (opened, clause),
                Paren::Call => {
                    self.call(scan, name);
                    (Opened::Group, Clause::Expression)
                }
            },
            (Last::Keyword, Some(name)) => match self.after_keyword(name, inherited) {
                Paren::Opens(opened, clause) => (opened, clause),
                Paren::Call => {
                    self.call(scan, name);
                    (Opened::Group, Clause::Expression)
                }
            },
            _ => {
                // `WITH ... (query)`
                let level = self.level();
                if level.clause == Clause::With && after_parenthesis {
                    level.clause = Clause::Expression;
                }
                (Opened::Group, inherited)
            }
        };
        self.push(scan, opened, clause);
    }

    /// `name (`: an alias with columns, a type with a modifier, or a call.
    fn after_name(&self, scan: &Scanner<'_>, name: Name) -> Paren {
        let level = &self.levels[self.depth];
        // `INSERT INTO t (columns)`, and `ON CONFLICT (columns)` where no JOIN can have the ON.
        let conflict = name.after_word == Word::On
            && level.clause != Clause::JoinOn
            && scan.folded(name.token).is(b"conflict");
        if name.after_word == Word::Into || conflict {
            return Paren::Opens(Opened::Group, Clause::Expression);
        }
        let types = name.after == Last::Cast || (name.after == Last::As && level.opened == Opened::Cast);
        let open = if types {
            is_type(scan, name.token, name.qualifier, name.parts)
        } else if name.parts > 1 {
            false
        } else if name.after == Last::As {
            true
        } else {
            is_alias(level.clause, name)
        };
        if open { Paren::Opens(Opened::Group, Clause::Expression) } else { Paren::Call }
    }

    /// `keyword (`: part of the grammar, or a function that has the keyword's name.
    fn after_keyword(&self, name: Name, inherited: Clause) -> Paren {
        use Word::*;
        let (word, before, operand) = (name.token.word, name.after_word, name.after_operand);
        let clause = self.levels[self.depth].clause;
        let group = |yes: bool| {
            if yes { Paren::Opens(Opened::Group, Clause::Expression) } else { Paren::Call }
        };
        match word {
            _ if clause == Clause::With && is_alias(clause, name) => group(true),
            Cast => Paren::Opens(Opened::Cast, Clause::Expression),
            On if before == Distinct => Paren::Opens(Opened::DistinctOn, Clause::Expression),
            From | Lateral | Only => Paren::Opens(Opened::Group, inherited),
            Join if operand || is_join_prefix(before) => Paren::Opens(Opened::Group, inherited),
            Like | Ilike | Overlaps => group(operand),
            Operator if operand => Paren::Opens(Opened::Operator, Clause::Expression),
            Over | Filter | Repeatable => group(name.after == Last::Close),
            Cube | Rollup if clause == Clause::GroupBy => {
                group(matches!(before, By | All | Distinct) || matches!(name.after, Last::Comma | Last::Open))
            }
            Sets if before == Grouping => Paren::Opens(Opened::Group, Clause::GroupBy),
            By => group(matches!(before, Order | Group | Partition)),
            Zone => group(before == Time),
            // `interval '1' minute TO second (3)`
            Second => group(name.after == Last::Value || matches!(before, To | Interval)),
            Varying => group(matches!(before, Char | Character | Nchar | Bit)),
            System | Bernoulli => group(before == Tablesample),
            Materialized => group(clause == Clause::With),
            Set => group(self.rule.updates),
            Grouping => group(true),
            _ => group(word.takes_parenthesis() || is_alias(clause, name)),
        }
    }

    fn call(&mut self, scan: &mut Scanner<'_>, name: Name) {
        let function = scan.folded(name.token);
        let (dialect, schema) = (scan.dialect(), name.qualifier.map(|schema| scan.folded(schema)));
        scan.search |= schema.as_ref().is_some_and(|schema| schema.is(b"pdb") || schema.is(b"paradedb"));
        scan.called(|| calls::called(dialect, name.parts, schema.as_ref(), &function));
        let (verdict, source) = calls::judge(dialect, name.parts, schema.as_ref(), &function);
        if verdict == Verdict::Read {
            if function.is(b"current_setting") {
                self.argument = Argument::Setting;
            }
            if self.reads == Reads::Nothing && function.may_begin(b'p') && function.begins(b"pg_sleep") {
                self.reads = Reads::Sleeps;
            }
            return;
        }
        let local = builtins::is_node_local(&function);
        if scan.defines_only {
            // Nothing of it runs now.
        } else if function.is(b"set_config") {
            scan.sets_commit |= may_set_commit(scan);
            scan.sets_own |= sets_own(scan);
            let effect = set_config(scan);
            if effect != SessionEffect::None {
                scan.session(effect);
            } else if scan.is_select && source == Source::Writing {
                scan.sets_local = true;
                return;
            }
        } else if function.is(b"set_limit") {
            scan.session(SessionEffect::Unknown);
        }
        if let Some(pin) = pin_of(&function).filter(|_| !scan.defines_only) {
            scan.pin(pin);
            scan.asks_last_value |= function.is_one_of(&["currval", "lastval"]);
        }
        if local {
            self.process(scan, &function);
            scan.names_prepared |= function.is(b"pg_prepared_statement");
        }
        scan.write(match (local, builtins::is_writing(&function)) {
            (true, _) => Reason::NodeLocal,
            (false, true) if name.parts == 1 => Reason::WritingFunction,
            (false, _) => Reason::Function,
        });
    }
}

/// Whether the name before a parenthesis is that of a table, whose columns follow: behind a relation, or in WITH.
fn is_alias(clause: Clause, name: Name) -> bool {
    match clause {
        Clause::From => name.after_operand,
        Clause::With => name.after == Last::Comma || matches!(name.after_word, Word::With | Word::Recursive),
        _ => false,
    }
}

fn is_join_prefix(word: Word) -> bool {
    matches!(
        word,
        Word::Inner | Word::Outer | Word::Left | Word::Right | Word::Full | Word::Cross | Word::Natural
    )
}
