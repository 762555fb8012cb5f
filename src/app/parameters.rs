//! The parameters that a client is told at its login, and the role that its user is, from a server that accepted the same user, database and settings.
//!
//! Invariant: one login at the servers at a time for the same question; a refusal that is the client's own affair is passed
//! on in the server's words, at once. Must not know: what the parameters mean.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tokio::runtime::Handle;

use super::failure::{Failure, PAUSE, Passing};
use super::flights::Flights;
use super::house::{self, random};
use super::login_role::{Asked, LoginRole};
use crate::auth::{ClientKey, Secret, Users, nonce_from};
use crate::backend::login::{Asks, LoginError};
use crate::backend::{self, ConnectError, Endpoint};
use crate::client::{Denial, Granted};
use crate::topology::model::{Epoch, Role};
use crate::wire::reply::Report;
use crate::wire::sqlstate::{self as state, SqlState};

/// Sets of parameters remembered; more than this and it starts anew.
const CACHED_MAX: usize = 4096;

/// How long reported parameters are believed (ALTER ROLE ... SET changes them).
const TTL: Duration = Duration::from_secs(60);

/// Names and values.
pub(super) type Parameters = Vec<(String, String)>;

/// Who asks for what.
#[derive(Clone, PartialEq, Eq, Hash)]
pub(super) struct Question {
    pub(super) user: String,
    pub(super) database: String,
    pub(super) settings: Parameters,
    /// Nodes of which role are asked first.
    pub(super) first: Role,
    /// The server key of the verifier that the client has proved itself by: another password is another question.
    pub(super) proof: Option<[u8; 32]>,
}

/// Why the client is not let in.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    /// The server's SQLSTATE, if it was the server.
    pub(super) code: Option<SqlState>,
    /// What the client is told.
    pub(super) denial: Denial,
}

type Answer = Result<Granted, Failure<Refusal>>;

/// All parameters known, and how more are learned.
pub(super) struct Reported {
    role: Arc<LoginRole>,
    control: Handle,
    /// Under way, and what had been forgotten when they were begun: nobody who comes later shares their answers.
    flights: Arc<Flights<(Question, u64), Answer>>,
    kept: Mutex<HashMap<Question, (Answer, Instant)>>,
    /// How often something was forgotten: what was asked for before that is not remembered.
    forgotten: AtomicU64,
}

impl Reported {
    pub(super) fn new(role: Arc<LoginRole>, control: Handle) -> Arc<Self> {
        Arc::new(Self {
            role,
            control,
            flights: Arc::default(),
            kept: Mutex::default(),
            forgotten: AtomicU64::new(0),
        })
    }

    /// The parameters. What may pass is waited for, and `note` hears of it. Cancel-safe.
    pub(super) async fn get(
        self: &Arc<Self>,
        question: &Question,
        client_key: Option<&ClientKey>,
        note: impl Fn(&str),
    ) -> Result<Granted, Refusal> {
        loop {
            let answer = match self.remembered(question) {
                Some(answer) => answer,
                None => self.ask(question, client_key).await,
            };
            match answer {
                Ok(granted) => return Ok(granted),
                Err(Failure::Final(refusal)) => return Err(refusal),
                Err(Failure::Passing(passing)) => {
                    note(&passing.cause);
                    passing.until_worth_asking(self.role.snapshots.clone()).await;
                }
            }
        }
    }

    /// What is remembered of a database may be wrong: it is created, renamed or dropped.
    pub(super) fn forget_database(&self, database: &str) {
        self.forget(|question| question.database == database);
    }

    /// What is remembered of these users may be wrong: their roles are created, altered or dropped.
    pub(super) fn forget_users(&self, users: &Users) {
        self.forget(|question| users.include(&question.user));
    }

    fn forget(&self, which: impl Fn(&Question) -> bool) {
        let mut kept = self.kept();
        self.forgotten.fetch_add(1, Ordering::SeqCst);
        kept.retain(|question, _| !which(question));
    }

    fn kept(&self) -> MutexGuard<'_, HashMap<Question, (Answer, Instant)>> {
        self.kept.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn remembered(&self, question: &Question) -> Option<Answer> {
        let kept = self.kept();
        let (answer, at) = kept.get(question)?;
        let ttl = if answer.is_ok() { TTL } else { PAUSE };
        (at.elapsed() < ttl).then(|| answer.clone())
    }

    fn remember(&self, question: &Question, answer: &Answer, forgotten_before: u64) {
        if matches!(answer, Err(Failure::Final(_))) {
            // The client's own affair, which it may mend and come again.
            return;
        }
        let mut kept = self.kept();
        if self.forgotten.load(Ordering::SeqCst) != forgotten_before {
            return;
        }
        if kept.len() >= CACHED_MAX {
            kept.clear();
        }
        kept.insert(question.clone(), (answer.clone(), Instant::now()));
    }

    async fn ask(self: &Arc<Self>, question: &Question, client_key: Option<&ClientKey>) -> Answer {
        let forgotten = self.forgotten.load(Ordering::SeqCst);
        let (this, asked) = (Arc::clone(self), question.clone());
        let secret = client_key.zip(question.proof.as_ref()).map(|(key, proof)| Secret::keys(key, proof));
        let flight = || async move {
            let answer = this.round(&asked, secret).await;
            this.remember(&asked, &answer, forgotten);
            answer
        };
        match self.flights.join(&self.control, (question.clone(), forgotten), flight).await {
            Some(answer) => answer,
            None => Err(Failure::Passing(Passing::now("pgsteer is shutting down", self.role.round().seen))),
        }
    }

    /// Logs in as the client on the first node that answers.
    async fn round(&self, question: &Question, secret: Option<Secret<'static>>) -> Answer {
        let mut round = self.role.round_from(question.first);
        let mut last = None;
        for node in std::mem::take(&mut round.nodes) {
            let (cause, refusal) = match self.log_in(&node, question, secret).await {
                Ok(granted) => return Ok(granted),
                Err(error) => (error.to_string(), refusal(error)),
            };
            if let Some(refusal) = refusal
                && round.is_final(&node)
            {
                return Err(Failure::Final(refusal));
            }
            tracing::debug!(node = %node.address, cause, "login at a server failed");
            last = Some(cause);
        }
        Err(match last {
            Some(cause) => Failure::Passing(Passing::now(cause, round.seen)),
            None => match self.role.nobody(round.seen).await {
                Failure::Passing(passing) => Failure::Passing(passing),
                Failure::Final(cause) => {
                    let mut frame = Vec::new();
                    house::role_rejected(&cause).put(&mut frame);
                    Failure::Final(Refusal { code: None, denial: Denial { frame, authenticated: false } })
                }
            },
        })
    }

    async fn log_in(
        &self,
        node: &Asked,
        question: &Question,
        secret: Option<Secret<'static>>,
    ) -> Result<Granted, ConnectError> {
        let endpoint = Endpoint {
            node: node.id,
            address: Arc::clone(&node.address),
            // It is closed at once: no fence looks at it.
            epoch: Epoch(0),
            user: question.user.as_str().into(),
            database: question.database.as_str().into(),
            secret,
            parameters: question.settings.clone(),
            asks: Asks::Role,
            timeout: self.role.timeout,
        };
        let (server, greeting) = backend::open(endpoint, nonce_from(random())).await?;
        server.terminate();
        Ok(Granted { parameters: greeting.parameters, notices: greeting.notices, role: server.role })
    }
}

/// What the client is told of an error that does not pass.
pub(super) fn refusal(error: ConnectError) -> Option<Refusal> {
    match error {
        ConnectError::Login(LoginError::Refused { code, frame, authenticated, .. }) => {
            let denial = Denial { frame, authenticated };
            (!state::passes(code)).then_some(Refusal { code: Some(code), denial })
        }
        ConnectError::Login(
            error @ (LoginError::NoSecret | LoginError::Method(_) | LoginError::Scram(_)),
        ) => {
            let mut frame = Vec::new();
            Report::fatal(
                state::INVALID_AUTHORIZATION_SPECIFICATION,
                "pgsteer: cannot log in to the servers as this user",
            )
            .detail(error.to_string())
            .hint(
                "With auth.type = \"trust\" the servers must trust pgsteer too; with \"scram-sha-256\" they must ask for SCRAM.",
            )
            .put(&mut frame);
            Some(Refusal { code: None, denial: Denial { frame, authenticated: false } })
        }
        ConnectError::Login(LoginError::Malformed) | ConnectError::Io(_) | ConnectError::TimedOut => None,
    }
}
