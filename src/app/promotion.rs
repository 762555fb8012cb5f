//! Joins the monitor's watch for promotions to replication connections of pgsteer's own login role.
//!
//! Must not know: what a promotion means.

use std::sync::Arc;
use std::time::Duration;

use super::house::random;
use crate::auth::nonce_from;
use crate::backend::ConnectError;
use crate::backend::login::LoginError;
use crate::backend::promotion::StreamError;
use crate::backend::standby_watch::{WatchError, Watched, watch};
use crate::topology::model::NodeAddress;
use crate::topology::probe::Credentials;
use crate::topology::watchers::{Promotion, PromotionWatch, WatchFailure, Watching};
use crate::wire::sqlstate;

/// By a replication connection to the standby.
pub(super) struct ReplicationWatch {
    role: Credentials,
    connect_timeout: Duration,
}

impl ReplicationWatch {
    pub(super) fn new(role: Credentials, connect_timeout: Duration) -> Self {
        Self { role, connect_timeout }
    }
}

impl PromotionWatch for ReplicationWatch {
    fn watch(&self, address: Arc<NodeAddress>, seen: Box<dyn FnOnce() + Send>) -> Watching {
        let (role, connect_timeout) = (self.role.clone(), self.connect_timeout);
        Box::pin(async move {
            let login = (role.user.as_str(), role.password.as_deref());
            match watch(&address, login, nonce_from(random()), connect_timeout, seen).await {
                Ok(Watched::Promoted(told)) => {
                    Ok(Promotion { told: told.map(|told| (told.timeline, told.switch_lsn)) })
                }
                Ok(Watched::OutOfRecovery) => Ok(Promotion { told: None }),
                Err(error) if is_final(&error) => Err(WatchFailure::Refused(error.to_string())),
                Err(error) => Err(WatchFailure::Ended(error.to_string())),
            }
        })
    }
}

/// Whether the server will say so again: no REPLICATION, no line of `pg_hba.conf`, no streaming. What comes with a server
/// that is starting or ending will pass, and so will a want of WAL senders.
fn is_final(error: &WatchError) -> bool {
    let code = match error {
        WatchError::Connect(ConnectError::Login(LoginError::Refused { code, .. }))
        | WatchError::Stream(StreamError::Refused { code, .. }) => *code,
        WatchError::Connect(ConnectError::Login(_)) | WatchError::WalFlows => return true,
        WatchError::Connect(_) | WatchError::Stream(StreamError::Malformed) => return false,
    };
    !sqlstate::passes(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::SqlState;

    #[test]
    fn what_passes_is_tried_again() {
        let refused = |code: &[u8; 5]| StreamError::Refused { code: SqlState(*code), message: String::new() };
        for (code, is_said_again) in
            [(b"42501", true), (b"28000", true), (b"53300", false), (b"57P03", false)]
        {
            assert_eq!(is_final(&WatchError::Stream(refused(code))), is_said_again, "{code:?}");
        }
    }
}
