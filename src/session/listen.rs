//! LISTEN across the loss of its server: the same channels on the next primary, and a word that something may have been missed.
//!
//! Invariant: only for a session of which nothing but its channels was lost: between transactions, nothing under way, no other
//! pin. Must not know: how the primary is found.

use super::driver::{End, Flow, Session};
use super::run::{TRIES_MAX, Task};
use super::transaction::Transaction;
use super::unit::Needs;
use super::{RESET_TIMEOUT, outcome};
use crate::backend::reset::{self, CommandError};
use crate::classify::PinReason;
use crate::net;
use crate::relay::buffer::Window;
use crate::wire::reply;

impl Session {
    /// Whether listening is all that keeps the session on its server.
    pub(super) fn only_listens(&self) -> bool {
        matches!(self.transaction, Transaction::None)
            && self.pins == [PinReason::Listen]
            && !self.channels.is_empty()
    }

    /// Listens on the primary again, as soon as there is one. The client's bytes wait in its socket meanwhile.
    pub(super) async fn listen_again(&mut self, cause: &str) -> Flow<()> {
        let mut nothing = Window::new(Box::default());
        for _ in 0..TRIES_MAX {
            let mut task = Task::without_bytes(&mut nothing, Needs::primary());
            let ready = self.attach(&mut task).await?;
            self.control.begin_pending.set(false);
            if !ready {
                break;
            }
            let Some(mut attached) = self.attached.take() else { continue };
            let Some(server) = attached.lease.server() else { continue };
            let mut commands = self.take_over(server);
            let listens = |name: &String| format!("LISTEN \"{}\"", name.replace('"', "\"\""));
            commands.extend(self.channels.iter().map(listens));
            match tokio::time::timeout(RESET_TIMEOUT, reset::run(server, &commands)).await {
                Ok(Ok(notifications)) => {
                    self.attached = Some(attached);
                    let mut out = Vec::new();
                    outcome::listening_again(cause).put(&mut out);
                    out.extend_from_slice(&notifications);
                    return net::write_all(&self.client, &out).await.map_err(|_| End::Client);
                }
                Ok(Err(CommandError::Refused(error))) => {
                    let said = reply::error_message(error.get(5..).unwrap_or_default());
                    return Err(self.not_listening(&format!("{cause}. The next one said: {said}")));
                }
                Ok(Err(CommandError::Io(_) | CommandError::TooLong)) | Err(_) => {
                    self.shard.suspect(attached.node, super::shard::SuspectCause::ConnectionLost);
                    *self.control.runs_at.borrow_mut() = None;
                }
            }
        }
        Err(self.not_listening(cause))
    }

    fn not_listening(&self, cause: &str) -> End {
        End::Told(Box::new(outcome::pinned_server_lost(&self.pins, cause)))
    }
}
