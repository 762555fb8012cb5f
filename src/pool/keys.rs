//! The keys by which users log in to servers: of each user those that it proved itself by last.
//!
//! Invariant: a key comes only from a client that has logged in as that user, and is used only for sessions of that user.
//! Bounded by count. Must not know: where verifiers come from, sessions.

use std::collections::HashMap;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use crate::auth::{Secret, nonce_from};
use crate::backend::login::LoginError;
use crate::backend::{self, ConnectError, Endpoint, Server};
use crate::wire::sqlstate;

/// Users remembered; more than this and it starts anew: a session has its own key all the same.
const USERS_MAX: usize = 4096;

/// Is told the user whose keys a server refused, or who is another role by now.
pub type OnRefused = Box<dyn Fn(&str) + Send + Sync>;

/// The newest key of each user. A session's own fits only until the password is set again, and PostgreSQL's sessions outlive
/// that; who logs in afterwards brings a key that fits, for all sessions of that user.
pub struct LoginKeys {
    newest: Mutex<HashMap<Arc<str>, Secret<'static>>>,
    on_refused: OnRefused,
}

impl LoginKeys {
    /// None yet.
    pub fn new(on_refused: OnRefused) -> Self {
        Self { newest: Mutex::default(), on_refused }
    }

    /// A client has just proved itself to be this user.
    pub fn learn(&self, user: &Arc<str>, secret: Secret<'static>) {
        let mut newest = self.newest();
        if newest.len() >= USERS_MAX && !newest.contains_key(user) {
            newest.clear();
        }
        newest.insert(Arc::clone(user), secret);
    }

    /// Opens a connection: with the user's newest key, then with the session's own, which may still be good on a node that has not
    /// heard of the new one yet. Cancel-safe.
    pub(super) async fn log_in(&self, endpoint: &Endpoint) -> Result<Box<Server>, ConnectError> {
        let (first, second) = self.to_try(&endpoint.user, endpoint.secret);
        let mut opened = open(endpoint, first).await;
        if second.is_some() && opened.as_ref().is_err_and(is_wrong_password) {
            opened = open(endpoint, second).await;
        }
        if opened.as_ref().is_err_and(is_wrong_password) {
            self.refused(&endpoint.user);
        }
        opened
    }

    /// What this user logged in by is good no more.
    pub(super) fn refused(&self, user: &str) {
        (self.on_refused)(user);
    }

    /// The newest key of this user, for a connection that is opened without a session.
    pub(super) fn newest_of(&self, user: &str) -> Option<Secret<'static>> {
        self.newest().get(user).copied()
    }

    /// What to log in with for a session of this user that came with `own`, in order; the second only where it is another.
    fn to_try(
        &self,
        user: &str,
        own: Option<Secret<'static>>,
    ) -> (Option<Secret<'static>>, Option<Secret<'static>>) {
        let Some(own) = own else { return (None, None) };
        match self.newest().get(user) {
            Some(newest) if !newest.is_same(&own) => (Some(*newest), Some(own)),
            _ => (Some(own), None),
        }
    }

    fn newest(&self) -> MutexGuard<'_, HashMap<Arc<str>, Secret<'static>>> {
        self.newest.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for LoginKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LoginKeys").finish_non_exhaustive()
    }
}

async fn open(endpoint: &Endpoint, secret: Option<Secret<'static>>) -> Result<Box<Server>, ConnectError> {
    let mut random = [0u8; 18];
    getrandom::fill(&mut random)
        .map_err(|error| ConnectError::Io(std::io::Error::other(error.to_string())))?;
    let endpoint = Endpoint { secret, ..endpoint.clone() };
    backend::open(endpoint, nonce_from(random)).await.map(|(server, _)| server)
}

fn is_wrong_password(error: &ConnectError) -> bool {
    matches!(error, ConnectError::Login(LoginError::Refused { code: sqlstate::INVALID_PASSWORD, .. }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_key_is_tried_first_and_the_sessions_own_behind_it() {
        let keys = LoginKeys::new(Box::new(|_| {}));
        let (ann, old, new): (Arc<str>, _, _) = ("ann".into(), Secret::Password("1"), Secret::Password("2"));
        let tried = |own| {
            let (first, second) = keys.to_try("ann", own);
            let is =
                |secret: Option<Secret<'_>>| secret.map(|it| if it.is_same(&new) { "new" } else { "old" });
            (is(first), is(second))
        };
        assert_eq!(tried(Some(old)), (Some("old"), None));
        keys.learn(&ann, old);
        keys.learn(&ann, new);
        assert_eq!(tried(Some(old)), (Some("new"), Some("old")));
        assert_eq!(tried(Some(new)), (Some("new"), None));
        assert_eq!(tried(None), (None, None));
        assert!(keys.to_try("bob", Some(old)).0.is_some_and(|secret| secret.is_same(&old)));
    }
}
