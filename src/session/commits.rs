//! How what a session has done is committed: before anybody sees it, or perhaps not yet flushed (`synchronous_commit = off`).
//!
//! Invariant: what is not known counts as asynchronous; a transaction that may have set it itself counts until its end, however late
//! that comes. Must not know: sockets, clocks.

use std::time::Instant;

use super::unit::Needs;
use crate::pool::Hidden;
use crate::route::freshness::Commits;

/// What a session's own statements say of its commits.
#[derive(Debug, Default)]
pub(super) struct OwnCommits {
    /// Whether `synchronous_commit` is off, where the session has set it.
    pub(super) asynchronous: Option<bool>,
    /// This transaction may be committed asynchronously by what it has set itself.
    set_in_transaction: bool,
}

impl OwnCommits {
    /// A unit, or a part of one, was answered; `stays`: its transaction goes on. To be called behind `of_answer`.
    pub(super) fn note(&mut self, needs: &Needs, stays: bool) {
        self.set_in_transaction = stays && (self.set_in_transaction || needs.sets_commit);
    }

    /// How what the primary has just answered is committed, as far as it is known. `by_default`: how its server does where nothing
    /// else is set. Others are told where it may be asynchronous.
    pub(super) fn of_answer(
        &self,
        needs: &Needs,
        hidden: &Hidden,
        by_default: Option<bool>,
        now: Instant,
    ) -> Commits {
        let found = hidden.known();
        let is_by_default = self.asynchronous.or(by_default);
        let may_be = needs.sets_commit
            || self.set_in_transaction
            || hidden.has_altered_commits()
            || is_by_default == Some(true)
            || found.is_some_and(|found| found.commits_asynchronously);
        if may_be && !needs.repeatable {
            hidden.note_asynchronous_commit(now);
        }
        if may_be || is_by_default.is_none() || found.is_none() {
            Commits::Asynchronous
        } else {
            Commits::Synchronous
        }
    }
}

/// Whether code may set a setting whose name it puts together: by EXECUTE, by way of `pg_settings`, or by `set_config` with a name that
/// is no constant. (In the body of a DO the quotes may stand twice.)
pub(super) fn puts_names_together(code: &[u8]) -> bool {
    const CALL: &[u8] = b"set_config";
    let has = |word: &[u8]| code.windows(word.len()).any(|part| part.eq_ignore_ascii_case(word));
    let mut calls = code.windows(CALL.len()).zip(1..).filter(|(part, _)| part.eq_ignore_ascii_case(CALL));
    (has(b"execute") && has(b"set"))
        || (has(b"pg_settings") && has(b"update"))
        || calls.any(|(_, at)| is_no_constant(code.get(at + CALL.len() - 1..).unwrap_or_default()))
}

/// What stands behind `set_config`. That of a parameter stands in the Bind.
fn is_no_constant(call: &[u8]) -> bool {
    let name = behind(call, |byte| byte.is_ascii_whitespace() || matches!(byte, b'"' | b'('));
    let content = behind(name, |byte| byte == b'\'');
    let end = behind(content, |byte| byte != b'\'');
    let next = behind(end, |byte| byte.is_ascii_whitespace() || byte == b'\'');
    let is_parameter = name.starts_with(b"$") && name.get(1).is_some_and(u8::is_ascii_digit);
    let is_constant = name.starts_with(b"'") && (next.starts_with(b",") || next.starts_with(b"::"));
    !is_parameter && !is_constant
}

fn behind(text: &[u8], is_skipped: impl Fn(u8) -> bool) -> &[u8] {
    let count = text.iter().take_while(|byte| is_skipped(**byte)).count();
    text.get(count..).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::pool::Found;
    use crate::topology::model::Epoch;

    const EPOCH: Epoch = Epoch(1);

    /// All is known, and nothing is asynchronous.
    fn hidden(now: Instant) -> Arc<Hidden> {
        let hidden = Arc::new(Hidden::new(&Arc::default(), &Arc::default()));
        hidden.look(false, now).unwrap().found(Found::default(), Arc::default());
        hidden.note_primary_commits(EPOCH, false);
        hidden
    }

    /// R02: longer than anybody counts a commit as not flushed.
    #[test]
    fn r02_a_transaction_that_has_set_it_counts_at_its_end_however_late() {
        let start = Instant::now();
        let hidden = hidden(start);
        let mut own = OwnCommits::default();
        let (sets, write) = (Needs { sets_commit: true, ..Needs::primary() }, Needs::primary());
        assert_eq!(
            own.of_answer(&write, &hidden, hidden.primary_commits_asynchronously(EPOCH), start),
            Commits::Synchronous
        );
        assert!(!hidden.has_unflushed(start));
        own.of_answer(&sets, &hidden, hidden.primary_commits_asynchronously(EPOCH), start);
        own.note(&sets, true);
        let late = start + Duration::from_secs(31);
        assert!(!hidden.has_unflushed(late), "nobody has committed since");
        assert_eq!(
            own.of_answer(&write, &hidden, hidden.primary_commits_asynchronously(EPOCH), late),
            Commits::Asynchronous,
            "the COMMIT"
        );
        own.note(&write, false);
        assert!(hidden.has_unflushed(late + Duration::from_secs(29)));
        assert_eq!(
            own.of_answer(&write, &hidden, hidden.primary_commits_asynchronously(EPOCH), late),
            Commits::Synchronous,
            "the next one"
        );
    }

    #[test]
    fn r02_a_part_of_a_batch_counts_for_the_rest() {
        let now = Instant::now();
        let hidden = hidden(now);
        let mut own = OwnCommits::default();
        own.note(&Needs { sets_commit: true, ..Needs::primary() }, true);
        own.note(&Needs::primary(), true);
        assert_eq!(
            own.of_answer(&Needs::primary(), &hidden, hidden.primary_commits_asynchronously(EPOCH), now),
            Commits::Asynchronous
        );
        own.note(&Needs::primary(), false);
        assert_eq!(
            own.of_answer(&Needs::primary(), &hidden, hidden.primary_commits_asynchronously(EPOCH), now),
            Commits::Synchronous
        );
    }

    #[test]
    fn what_is_not_known_counts_and_the_sessions_own_word_wins() {
        let now = Instant::now();
        let unknown = Arc::new(Hidden::new(&Arc::default(), &Arc::default()));
        let own = OwnCommits::default();
        assert_eq!(
            own.of_answer(&Needs::primary(), &unknown, unknown.primary_commits_asynchronously(EPOCH), now),
            Commits::Asynchronous
        );
        let hidden = hidden(now);
        assert_eq!(
            own.of_answer(&Needs::primary(), &hidden, hidden.primary_commits_asynchronously(Epoch(2)), now),
            Commits::Asynchronous
        );
        for (asynchronous, expected) in [(true, Commits::Asynchronous), (false, Commits::Synchronous)] {
            let own = OwnCommits { asynchronous: Some(asynchronous), ..OwnCommits::default() };
            assert_eq!(
                own.of_answer(&Needs::primary(), &hidden, hidden.primary_commits_asynchronously(EPOCH), now),
                expected
            );
        }
    }

    #[test]
    fn names_that_are_put_together_are_noticed() {
        for code in [
            "EXECUTE 'SET LOCAL synchronous' || '_commit = off'",
            "UPDATE pg_settings SET setting = 'off' WHERE name LIKE 'synchronous%'",
            "SELECT set_config('synchronous' || '_commit', 'off', true)",
            "PERFORM SET_CONFIG ( concat('a', 'b'), 'off', true)",
            "DO 'BEGIN PERFORM set_config(''synchronous'' || ''_commit'', ''off'', true); END'",
            "SELECT set_config('a', 'b', true), set_config(name, 'off', true)",
            "SELECT set_config",
        ] {
            assert!(puts_names_together(code.as_bytes()), "{code}");
        }
        for code in [
            "SELECT set_config('app.tenant', $1, true)",
            "SELECT pg_catalog.\"set_config\" ( 'app.tenant'::text , 'x' || 'y', true)",
            "SELECT set_config($1, $2, true)",
            "DO 'BEGIN PERFORM set_config(''app.tenant'', ''1'', true); END'",
            "UPDATE t SET i = 1",
        ] {
            assert!(!puts_names_together(code.as_bytes()), "{code}");
        }
    }
}
