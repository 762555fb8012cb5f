//! A replication connection: a server connection of the client's own to the primary, whose bytes go through untouched.
//!
//! Invariant: it leads to the primary of the epoch in which it was opened, or nowhere; a client that does not read stops its
//! server, and the other way round; nothing is said inside a message. Must not know: what is replicated, how the connection was
//! opened.

use std::future::poll_fn;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::net::TcpStream;

use super::control::Control;
use super::outcome;
use super::shard::{Shard, SuspectCause};
use crate::backend::Server;
use crate::net;
use crate::relay::boundary::Boundary;
use crate::relay::buffer::{Stock, Window};
use crate::telemetry::Counter;

/// How long the client may take to read its last words.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(1);

/// Reads and writes of one direction before others of the shard have their turn: a base backup would not let them.
const MOVES_A_TURN: usize = 8;

/// Terminate, with which a client says goodbye.
const TERMINATE: u8 = b'X';
/// ErrorResponse.
const ERROR: u8 = b'E';

/// Why it ends.
enum End {
    /// The client closed its end, or vanished.
    ClientGone,
    /// The server closed its end, or vanished.
    ServerGone(String),
    /// There is another primary, or the same one started anew.
    NewEpoch,
    /// pgsteer ends.
    Cut,
}

/// Which end of a direction is gone, and how that showed.
enum Gone {
    /// The one that is read.
    From(String),
    /// The one that is written to.
    To(String),
}

/// What goes from one end to the other. A buffer is held only while something is in it.
struct Direction {
    under_way: Option<Window>,
    passed: Boundary,
}

/// Serves the client until one of the two ends, a new epoch begins, or pgsteer ends. `early`: bytes that came together with the
/// login.
pub async fn serve(
    shard: &Rc<Shard>,
    client: &Rc<TcpStream>,
    control: &Rc<Control>,
    session: u64,
    server: Box<Server>,
    early: Vec<u8>,
) {
    shard.counters.replication_connections.inc();
    *control.runs_at.borrow_mut() = Some(Rc::clone(&server.cancel_key));
    let (mut out, mut back) = (Direction::new(early), Direction::new(Vec::new()));
    let end = until_end(shard, client, control, &server, (&mut out, &mut back)).await;
    *control.runs_at.borrow_mut() = None;

    let said_goodbye = out.passed.last() == Some(TERMINATE);
    if matches!(end, End::ServerGone(_)) && !said_goodbye {
        shard.suspect(server.link.node, SuspectCause::ConnectionLost);
    }
    if matches!(end, End::ClientGone | End::Cut) && !said_goodbye {
        // Nobody waits for what may run there.
        shard.cancel_at(&server.cancel_key);
    }
    if out.passed.is_between() && !said_goodbye {
        server.terminate();
    }
    drop(server);
    // Behind its server's own last words the client needs no others.
    let can_be_told = back.passed.is_between() && back.passed.last() != Some(ERROR) && !said_goodbye;
    let report = match end {
        End::ClientGone => None,
        End::ServerGone(cause) => Some(outcome::replication_lost(&cause)),
        End::NewEpoch => Some(outcome::replication_lost("A new primary took over")),
        End::Cut => Some(outcome::shutting_down()),
    };
    if let Some(report) = report.filter(|_| can_be_told) {
        shard.counters.error(report.code.as_str());
        let mut bytes = Vec::new();
        report.put(&mut bytes);
        // Best effort: the client may have stopped reading.
        let _ = tokio::time::timeout(LAST_WORDS_LIMIT, net::write_all(client, &bytes)).await;
    }
    shard.counters.replication_connections.dec();
    shard.leave(session);
}

async fn until_end(
    shard: &Shard,
    client: &TcpStream,
    control: &Control,
    server: &Server,
    (out, back): (&mut Direction, &mut Direction),
) -> End {
    let (stock, counters, link) = (&shard.buffers, &shard.counters, &server.link.stream);
    // The fence ends a connection that is being read; one whose client does not read is not.
    let mut new_epoch = pin!(shard.epoch_after(server.link.epoch.get()));
    poll_fn(|context| {
        if control.cut.get() {
            return Poll::Ready(End::Cut);
        }
        if new_epoch.as_mut().poll(context).is_ready() {
            return Poll::Ready(End::NewEpoch);
        }
        control.keep_waker(context.waker());
        match out.poll(context, (client, link), stock, &counters.client_to_server_bytes) {
            Poll::Ready(Gone::From(_)) => return Poll::Ready(End::ClientGone),
            Poll::Ready(Gone::To(cause)) => return Poll::Ready(End::ServerGone(cause)),
            Poll::Pending => {}
        }
        match back.poll(context, (link, client), stock, &counters.server_to_client_bytes) {
            Poll::Ready(Gone::From(cause)) => Poll::Ready(End::ServerGone(cause)),
            Poll::Ready(Gone::To(_)) => Poll::Ready(End::ClientGone),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

impl Direction {
    fn new(early: Vec<u8>) -> Self {
        let under_way = (!early.is_empty()).then(|| {
            let length = early.len();
            let mut window = Window::new(early.into_boxed_slice());
            window.advance(length);
            window
        });
        Self { under_way, passed: Boundary::default() }
    }

    /// Moves what can be moved. Nothing is read before all that was read has been written: the end that does not read stops the
    /// other. Ready when one of them is gone; then nothing is under way from an end that closed in order.
    fn poll(
        &mut self,
        context: &mut Context<'_>,
        (from, to): (&TcpStream, &TcpStream),
        stock: &Stock,
        bytes: &Counter,
    ) -> Poll<Gone> {
        for _ in 0..MOVES_A_TURN {
            let moved = match &mut self.under_way {
                Some(window) => {
                    if let Err(error) = ready!(to.poll_write_ready(context)) {
                        return Poll::Ready(Gone::To(broken(&error)));
                    }
                    match to.try_write(window.filled()) {
                        Ok(count) => {
                            self.passed.pass(window.filled().get(..count).unwrap_or_default());
                            bytes.add(count as u64);
                            window.consume(count);
                            Ok(())
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                        Err(error) => Err(Gone::To(broken(&error))),
                    }
                }
                None => {
                    if let Err(error) = ready!(from.poll_read_ready(context)) {
                        return Poll::Ready(Gone::From(broken(&error)));
                    }
                    let window = self.under_way.insert(Window::new(stock.take()));
                    match net::try_read(from, window.spare()) {
                        Ok(0) => Err(Gone::From("The server closed the connection".to_owned())),
                        Ok(count) => {
                            window.advance(count);
                            Ok(())
                        }
                        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
                        Err(error) => Err(Gone::From(broken(&error))),
                    }
                }
            };
            if let Some(window) = self.under_way.take_if(|window| window.filled().is_empty()) {
                stock.give(window.into_bytes());
            }
            if let Err(gone) = moved {
                return Poll::Ready(gone);
            }
        }
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

fn broken(error: &io::Error) -> String {
    format!("The connection to the server failed: {error}")
}
