//! A server on which a session's statements have the names that its client gave them, for SQL that names or lists them.
//!
//! Else a server has statements of many sessions under names of pgsteer's own (`translate`). PREPARE, EXECUTE and
//! `pg_prepared_statements` would see those. So before such a unit everything is closed there, and all that the session has
//! prepared is prepared under its own names; as soon as the session may leave the server, that is undone. One that can't be prepared
//! any more leaves its name to a stand-in that only has its error.
//!
//! Invariant: nobody else gets a connection with a client's own names. Must not know: what the unit says beyond `Needs`.

use std::collections::HashSet;

use super::RESET_TIMEOUT;
use super::attempt::Sent;
use super::driver::{Attached, Flow, Session};
use super::exchange::{Ended, Parting};
use super::journal::Journal;
use super::run::{Task, Tried};
use super::settings;
use super::transaction::Transaction;
use crate::backend::Server;
use crate::backend::carried::{Carried, OwnNames, PreparedHere};
use crate::backend::reset::{self, CommandError, Refused};
use crate::classify::PinReason;
use crate::wire::frame;
use crate::wire::{reply, sqlstate};

/// Statements prepared in one write.
const AT_A_TIME: usize = 64;

/// In a transaction that is under way, around what is prepared there.
const SAVEPOINT: &str = "_pgsteer_names";

/// What the server has under the client's names.
const LIST: &str = "SELECT name, from_sql FROM pg_catalog.pg_prepared_statements";

/// Whether the attached server knows the session's own names.
pub(super) fn has_own_names(attached: &mut Attached) -> bool {
    attached.lease.server().is_some_and(|server| server.carried.own_names.is_some())
}

impl Session {
    /// Whether the unit can only be answered by a server that knows the session's own names, and the attached one does not.
    pub(super) fn needs_own_names(&self, task: &Task<'_>, attached: &mut Attached) -> bool {
        // Whoever has statements of SQL-level PREPARE must not prepare another of that name by the protocol.
        (task.needs.names_prepared || self.pins.contains(&PinReason::SqlPrepare))
            && attached.batch.is_none()
            // In a failed block nothing runs but what ends it, and what stands behind that.
            && (self.transaction != Transaction::Failed || task.needs.commits || task.needs.rolls_back)
            && !has_own_names(attached)
    }

    /// Brings the session's own names to the attached server, with its settings. Gives the consequence where that is lost.
    pub(super) async fn give_own_names(
        &mut self,
        task: &mut Task<'_>,
        mut attached: Attached,
    ) -> Flow<Result<Attached, Tried>> {
        let ended = match self.give(&mut attached).await {
            Ok(notifications) => {
                self.pass_notifications(&notifications).await?;
                return Ok(Ok(attached));
            }
            Err(CommandError::Refused(error)) => {
                let body = error.get(frame::HEADER_BYTES..).unwrap_or_default();
                Ended::NotFit { code: reply::error_fields(body).code, message: reply::error_message(body) }
            }
            Err(error @ (CommandError::Io(_) | CommandError::TooLong)) => Ended::ServerLost {
                cause: format!("The connection to the server failed: {error}"),
                parting: Parting::Unexplained,
            },
        };
        let answer = self.shard.buffers.take_answer();
        let sent = Sent::nothing(task);
        self.after(task, attached, (answer, Journal::default()), ended, sent).await.map(Err)
    }

    /// Gives the notifications that came meanwhile.
    async fn give(&self, attached: &mut Attached) -> Result<Vec<u8>, CommandError> {
        let gone = || CommandError::Io(std::io::ErrorKind::NotConnected.into());
        let server = attached.lease.server().ok_or_else(gone)?;
        let failed = matches!(self.transaction, Transaction::Failed);
        let within = self.transaction.is_on_server();
        let mut notifications = Vec::new();
        if !within {
            let commands = self.take_over(server);
            notifications = in_time(reset::run(server, &commands)).await?;
        }
        let names: Vec<String> =
            server.carried.prepared.all().map(|here| self.shard.statements.name_of(here.id)).collect();
        let mut begin = vec![close_all(&names)];
        if within && !failed {
            begin.push(query(&format!("SAVEPOINT {SAVEPOINT}")));
        }
        notifications.extend(in_time(send(server, &begin)).await?.1);
        let mut own = OwnNames::default();
        if failed {
            // Nothing can be prepared before its end.
            self.names.in_order().iter().for_each(|(name, _)| own.miss(name));
        }
        server.carried = Carried { own_names: Some(own), ..Carried::default() };
        if failed {
            return Ok(notifications);
        }
        let mut stand_ins = Vec::new();
        for part in self.names.in_order().chunks(AT_A_TIME) {
            let mut groups = Vec::new();
            for (name, statement) in part {
                groups.push(parse(name, &statement.sql, &statement.types));
                // One that can't be prepared any more is not to fail the client's transaction.
                groups.extend(within.then(|| query(&format!("ROLLBACK TO SAVEPOINT {SAVEPOINT}"))));
            }
            let (refused, told) = in_time(send(server, &groups)).await?;
            notifications.extend(told);
            let each = groups.len() / part.len();
            for (number, (name, statement)) in part.iter().enumerate() {
                if let Some((_, error)) = refused.iter().find(|(at, _)| *at == number * each) {
                    server.carried.own_names.get_or_insert_default().miss(name);
                    // What may pass (a lock, a time limit, a cancel) is not to be its error for good.
                    if !sqlstate::passes(reply::error_fields(error).code) {
                        stand_ins.push((name.clone(), parse(name, &stand_in(error), &statement.types)));
                    }
                } else {
                    let generation = statement.generation.get();
                    let here = PreparedHere { id: statement.id, generation, shape: None };
                    server.carried.prepared.insert(here);
                }
            }
        }
        for part in stand_ins.chunks(AT_A_TIME) {
            let groups: Vec<Vec<u8>> = part.iter().map(|(_, message)| message.clone()).collect();
            let (refused, told) = in_time(send(server, &groups)).await?;
            notifications.extend(told);
            let own = server.carried.own_names.get_or_insert_default();
            for (number, (name, _)) in part.iter().enumerate() {
                if !refused.iter().any(|(at, _)| *at == number) {
                    own.stand_in(name);
                }
            }
        }
        if within {
            let end = [query(&format!("RELEASE SAVEPOINT {SAVEPOINT}"))];
            notifications.extend(in_time(send(server, &end)).await?.1);
        }
        Ok(notifications)
    }

    /// Outside of a transaction: takes the client's names from the server again, unless the session must stay there.
    pub(super) async fn leave_own_names(&mut self, attached: &mut Attached) -> Flow<()> {
        if !self.pins.is_empty() {
            return Ok(());
        }
        let Some(server) = attached.lease.server() else { return Ok(()) };
        let Ok(asked) = in_time(reset::ask(server, LIST)).await else {
            // A connection that is left with a client's names is closed.
            return Ok(());
        };
        self.pass_notifications(&asked.notifications).await?;
        let by_sql = |row: &Vec<Option<String>>| row.get(1).is_some_and(|it| it.as_deref() == Some("t"));
        if asked.rows.iter().any(by_sql) {
            self.stay(attached, &[PinReason::SqlPrepare]);
            return Ok(());
        }
        // What the client has closed by SQL.
        let here: HashSet<&str> =
            asked.rows.iter().filter_map(|row| row.first().and_then(Option::as_deref)).collect();
        let missing = server.carried.own_names.take().unwrap_or_default();
        self.names.retain(|name| here.contains(&*String::from_utf8_lossy(name)) || missing.misses(name));
        match in_time(reset::run(server, &["DEALLOCATE ALL".to_owned()])).await {
            Ok(notifications) => {
                server.carried = Carried::default();
                self.pass_notifications(&notifications).await
            }
            Err(_) => {
                attached.spoiled = true;
                Ok(())
            }
        }
    }
}

async fn send(server: &mut Server, groups: &[Vec<u8>]) -> Result<(Vec<Refused>, Vec<u8>), CommandError> {
    Ok(reset::send(server, groups).await?)
}

async fn in_time<T>(work: impl Future<Output = Result<T, CommandError>>) -> Result<T, CommandError> {
    match tokio::time::timeout(RESET_TIMEOUT, work).await {
        Ok(done) => done,
        Err(_) => Err(CommandError::Io(std::io::ErrorKind::TimedOut.into())),
    }
}

fn query(sql: &str) -> Vec<u8> {
    let mut out = Vec::new();
    reply::put_query(&mut out, sql);
    out
}

fn close_all(names: &[String]) -> Vec<u8> {
    let mut out = Vec::new();
    for name in names {
        frame::put(&mut out, b'C', &[b"S", name.as_bytes(), b"\0"]);
    }
    out.extend_from_slice(reply::SYNC);
    out
}

fn parse(name: &[u8], sql: &[u8], types: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    frame::put(&mut out, b'P', &[name, b"\0", sql, b"\0", types]);
    out.extend_from_slice(reply::SYNC);
    out
}

/// What has the name of a statement that can't be prepared any more (its table is gone, or the `search_path` is another): the name is
/// taken, and EXECUTE gets the error that preparing it got.
fn stand_in(error: &[u8]) -> Vec<u8> {
    let body = format!(
        "BEGIN RAISE SQLSTATE '{}' USING MESSAGE = {}; END",
        reply::error_fields(error).code.as_str(),
        settings::quoted_value(&reply::error_message(error))
    );
    format!("DO LANGUAGE plpgsql {}", settings::quoted_value(&body)).into_bytes()
}
