//! Users' verifiers, from the servers themselves by the auth query.
//!
//! Invariant: no password is stored; a verifier is asked for over pgsteer's own login role with a fixed `search_path`, and
//! kept for `auth.cache_ttl` (longer only while no server can be asked). However many clients log in, there is one query for
//! a user at a time, and answers that let nobody in are kept for a moment, too. Must not know: clients.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;
use tokio::sync::Semaphore;

use super::failure::{Cause, Failure, PAUSE, Passing, Warnings};
use super::flights::Flights;
use super::login_role::LoginRole;
use crate::auth::{Users, Verifier};
use crate::config::Config;
use crate::topology::model::NodeAddress;

/// Users remembered; more than this and those without a verifier are forgotten, then all.
const CACHED_MAX: usize = 4096;

/// Auth queries under way at a time: a storm of logins must not become one of server connections.
const ASKING_MAX: usize = 4;

/// How long it is remembered that a user has no verifier, or that the query was refused; and how long a verifier is kept
/// though proofs against it fail.
const REFUSED_TTL: Duration = Duration::from_secs(1);

/// `None`: the user does not exist, may not log in, or has no SCRAM verifier.
type Answer = Result<Option<Verifier>, Failure<String>>;

/// All verifiers known, and how more are learned.
pub(super) struct Verifiers {
    role: Arc<LoginRole>,
    query: String,
    ttl: Duration,
    control: Handle,
    asking: Semaphore,
    /// Under way, and what had been forgotten when they were begun: nobody who comes later shares their answers.
    flights: Arc<Flights<(String, u64), Answer>>,
    entries: Mutex<HashMap<String, Entry>>,
    /// How often something was forgotten: what was asked for before that is not remembered.
    forgotten: AtomicU64,
    warnings: Warnings,
}

/// What is known of one user.
struct Entry {
    /// As a server last told.
    verifier: Option<Verifier>,
    /// How the last query failed, if it did.
    failure: Option<Failure<String>>,
    /// When it was last asked.
    at: Instant,
    /// A proof against it has failed since: the password may have been changed.
    doubted: bool,
    /// When it was last asked because of such a doubt.
    asked_in_doubt: Option<Instant>,
}

impl Entry {
    fn is_fresh(&self, now: Instant, ttl: Duration) -> bool {
        let age = now.saturating_duration_since(self.at);
        match (&self.failure, &self.verifier) {
            (Some(Failure::Passing(_)), _) => age < PAUSE,
            (Some(Failure::Final(_)), _) | (None, None) => age < REFUSED_TTL,
            (None, Some(_)) if self.doubted => {
                // Whoever sends wrong passwords must not make a query of each of them.
                let lately = |at| now.saturating_duration_since(at) < REFUSED_TTL;
                age < ttl && self.asked_in_doubt.is_some_and(lately)
            }
            (None, Some(_)) => age < ttl,
        }
    }

    fn answer(&self) -> Answer {
        self.failure.clone().map_or_else(|| Ok(self.verifier.clone()), Err)
    }

    fn take(&mut self, answer: &Answer, now: Instant) {
        match answer {
            Ok(verifier) => {
                self.verifier.clone_from(verifier);
                self.failure = None;
                if std::mem::take(&mut self.doubted) {
                    self.asked_in_doubt = Some(now);
                }
            }
            Err(failure) => self.failure = Some(failure.clone()),
        }
        self.at = now;
    }
}

impl Verifiers {
    pub(super) fn new(config: &Config, role: Arc<LoginRole>, control: Handle) -> Arc<Self> {
        Arc::new(Self {
            role,
            query: config.auth.query.clone(),
            ttl: config.auth.cache_ttl,
            control,
            asking: Semaphore::new(ASKING_MAX),
            flights: Arc::default(),
            entries: Mutex::default(),
            forgotten: AtomicU64::new(0),
            warnings: Warnings::default(),
        })
    }

    /// The user's verifier, if there is one. An error is the reason why the query can't be answered, whoever asks; what may
    /// pass is waited for, and `note` hears of it. Cancel-safe.
    pub(super) async fn look_up(
        self: &Arc<Self>,
        user: &str,
        note: impl Fn(&str),
    ) -> Result<Option<Verifier>, String> {
        loop {
            let answer = match self.remembered(user) {
                Some(answer) => answer,
                None => self.ask(user).await,
            };
            let failure = match answer {
                Ok(verifier) => return Ok(verifier),
                Err(failure) => failure,
            };
            // With an old answer at hand a login need not wait for a server; without one it does, as long as it may.
            if let Some(verifier) = self.last_known(user) {
                return Ok(Some(verifier));
            }
            match failure {
                Failure::Final(cause) => return Err(cause),
                Failure::Passing(passing) => {
                    note(&passing.cause);
                    passing.until_worth_asking(self.role.snapshots.clone()).await;
                }
            }
        }
    }

    /// A proof against this user's verifier failed, or a server did not accept it.
    pub(super) fn doubt(&self, user: &str) {
        if let Some(entry) = self.entries().get_mut(user) {
            entry.doubted = true;
        }
    }

    /// These users' roles are created, altered or dropped.
    pub(super) fn forget(&self, users: &Users) {
        let mut entries = self.entries();
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        entries.retain(|user, _| !users.include(user));
    }

    fn entries(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, user: &str) -> Option<Answer> {
        let entries = self.entries();
        let entry = entries.get(user)?;
        entry.is_fresh(Instant::now(), self.ttl).then(|| entry.answer())
    }

    fn last_known(&self, user: &str) -> Option<Verifier> {
        self.entries().get(user)?.verifier.clone()
    }

    fn remember(&self, user: &str, answer: &Answer, forgotten_before: u64) {
        let now = Instant::now();
        let mut entries = self.entries();
        if self.forgotten.load(Ordering::SeqCst) != forgotten_before {
            return;
        }
        if entries.len() >= CACHED_MAX && !entries.contains_key(user) {
            entries.retain(|_, entry| entry.verifier.is_some());
            if entries.len() >= CACHED_MAX {
                entries.clear();
            }
        }
        let entry = entries.entry(user.to_owned()).or_insert(Entry {
            verifier: None,
            failure: None,
            at: now,
            doubted: false,
            asked_in_doubt: None,
        });
        entry.take(answer, now);
    }

    /// Asks, or waits with those who have.
    async fn ask(self: &Arc<Self>, user: &str) -> Answer {
        let forgotten = self.forgotten.load(Ordering::SeqCst);
        let (this, name) = (Arc::clone(self), user.to_owned());
        let question = || async move {
            let answer = this.round(&name).await;
            this.remember(&name, &answer, forgotten);
            answer
        };
        match self.flights.join(&self.control, (user.to_owned(), forgotten), question).await {
            Some(answer) => answer,
            None => Err(Failure::Passing(Passing::now("pgsteer is shutting down", self.role.round().seen))),
        }
    }

    /// Runs the auth query on the first node that answers.
    async fn round(&self, user: &str) -> Answer {
        // The semaphore is never closed.
        let _turn = self.asking.acquire().await;
        let mut round = self.role.round();
        let mut last = None;
        for node in std::mem::take(&mut round.nodes) {
            let cause = match self.query(&node.address, user).await {
                Ok(verifier) => return Ok(verifier),
                Err(cause) => cause,
            };
            self.warn(&cause.text);
            if !cause.passes && round.is_final(&node) {
                return Err(Failure::Final(cause.text));
            }
            last = Some(cause.text);
        }
        match last {
            Some(cause) => Err(Failure::Passing(Passing::now(cause, round.seen))),
            None => {
                let failure = self.role.nobody(round.seen).await;
                if let Failure::Final(cause) = &failure {
                    self.warn(cause);
                }
                Err(failure)
            }
        }
    }

    fn warn(&self, cause: &str) {
        if self.warnings.may_say(cause, Instant::now()) {
            tracing::warn!(cause, "the auth query failed");
        }
    }

    async fn query(&self, address: &NodeAddress, user: &str) -> Result<Option<Verifier>, Cause> {
        let connected = self.role.connect(address).await?;
        let asked = async { connected.client.query_opt(&self.query, &[&user]).await };
        let row = match tokio::time::timeout(self.role.timeout, asked).await {
            Ok(row) => row.map_err(|error| Cause::of(&error, "The auth query"))?,
            Err(_) => return Err(Cause::passing("The auth query took too long")),
        };
        let Some(row) = row else { return Ok(None) };
        let text: Option<String> = row.try_get(1).map_err(|error| Cause::of(&error, "The auth query"))?;
        let Some(text) = text else { return Ok(None) };
        let verifier = text.parse().ok();
        if verifier.is_none() && self.warnings.may_say(user, Instant::now()) {
            tracing::warn!(user, "the password is not stored as a SCRAM-SHA-256 verifier: login refused");
        }
        Ok(verifier)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TTL: Duration = Duration::from_secs(60);
    const MOMENT: Duration = Duration::from_millis(50);

    fn entry(answer: &Answer, at: Instant) -> Entry {
        let mut entry = Entry { verifier: None, failure: None, at, doubted: false, asked_in_doubt: None };
        entry.take(answer, at);
        entry
    }

    fn known() -> Answer {
        Ok(Some(Verifier::from_password("x", b"salt", 1)))
    }

    #[test]
    fn who_has_no_verifier_is_asked_for_once_in_a_second() {
        let now = Instant::now();
        for answer in [Ok(None), Err(Failure::Final("42501".to_owned()))] {
            let entry = entry(&answer, now);
            assert!(entry.is_fresh(now + REFUSED_TTL - MOMENT, TTL));
            assert!(entry.is_fresh(now + REFUSED_TTL - MOMENT, Duration::ZERO));
            assert!(!entry.is_fresh(now + REFUSED_TTL, TTL));
        }
        assert!(entry(&known(), now).is_fresh(now + TTL - MOMENT, TTL));
        assert!(!entry(&known(), now).is_fresh(now, Duration::ZERO));
    }

    /// The first wrong password makes a query, those after it one each second.
    #[test]
    fn a_doubted_verifier_is_asked_for_anew_but_not_each_time() {
        let now = Instant::now();
        let mut entry = entry(&known(), now);
        entry.doubted = true;
        assert!(!entry.is_fresh(now, TTL));
        entry.take(&known(), now);
        assert!(entry.is_fresh(now + 2 * REFUSED_TTL, TTL));
        entry.doubted = true;
        assert!(entry.is_fresh(now + REFUSED_TTL - MOMENT, TTL));
        assert!(!entry.is_fresh(now + REFUSED_TTL, TTL));
    }

    #[test]
    fn a_failed_question_takes_no_verifier_away() {
        let now = Instant::now();
        let mut entry = entry(&known(), now);
        entry.take(&Err(Failure::Final("42883".to_owned())), now + TTL);
        assert!(entry.answer().is_err());
        assert!(entry.verifier.is_some());
    }
}
