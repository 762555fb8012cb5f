//! What others may do to a session from outside: cancel its statement, wake it, tell it to end.
//!
//! Invariant: a cancel reaches the server connection that the session holds at that moment, or the wait it is in, or
//! nothing. Lives on the session's shard; no locks. Must not know: how sessions run.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::task::Waker;
use std::time::Instant;

use tokio::net::TcpStream;
use tokio::sync::{Notify, oneshot};

use crate::backend::connection::{CancelKey, Link};
use crate::net;
use crate::topology::model::NodeId;

/// Whoever sent a cancel request waits for this: dropping it says that the request has been taken, or came to nothing.
pub type Taken = oneshot::Sender<()>;

/// Whoever wants to know the process of the server connection that a session has on the primary waits for this.
pub type Answered = oneshot::Sender<i32>;

/// How far the client's next statement has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NextStatement {
    /// It may be on its way.
    Unread,
    /// It stands behind the one that was answered.
    Read,
}

/// A session as seen from outside.
#[derive(Debug)]
pub struct Control {
    /// The client's socket, to end an idle session by.
    pub client: Weak<TcpStream>,
    /// The process id that the client was given; 0 before.
    pub process_id: Cell<i32>,
    /// Nothing is under way.
    pub idle: Cell<bool>,
    /// What is under way waits for the end of a pause.
    pub paused: Cell<bool>,
    /// A server connection is held, by these.
    pub runs_at: RefCell<Option<Rc<CancelKey>>>,
    /// A cancel was sent to the server connection held now: it is not reused.
    pub cancel_sent: Cell<bool>,
    /// The client has cancelled what was sent of its statement: it is not run again, should a server be lost before it heeds that.
    pub cancelled_by_client: Cell<bool>,
    /// Nothing of the statement has been sent yet, or a BEGIN that was put off is on its way (a cancel must not hit it, or the
    /// statement behind it would run outside of the transaction), or pgsteer itself asks the server something: a cancel waits.
    pub begin_pending: Cell<bool>,
    /// A cancel came while the session was waiting for a server.
    pub cancel_waiting: Cell<bool>,
    /// pgsteer asks the server something behind the answer; whether the client's next statement has been read already.
    pub asking: Cell<Option<NextStatement>>,
    /// The cancel that waits was sent behind the client's next statement, which has not begun: it is for that.
    pub cancels_next: Cell<bool>,
    /// Rings when `cancel_waiting` is set, and when the drain begins during the login.
    pub bell: Notify,
    /// The login is not over: nothing that the drain would wait for.
    pub logging_in: Cell<bool>,
    /// pgsteer ends now: the session says its last words, whatever it is doing.
    pub cut: Cell<bool>,
    /// Something is being written to the client: a part of a message may be out.
    pub speaking: Cell<bool>,
    /// The cancel requests that are not settled yet.
    cancels: RefCell<Vec<Taken>>,
    /// An idle session is to take a server connection, and to say which process that is.
    summons: RefCell<Vec<Answered>>,
    /// Somebody has been told the session's server process, to signal it, since its last statement was answered.
    pub sought: Cell<bool>,
    /// When somebody was told it last.
    pub sought_at: Cell<Option<Instant>>,
    /// The session has run something since the shard last looked.
    pub active: Cell<bool>,
    /// The session has been idle for a while: it is to give up what it keeps for its next statement.
    pub cooling: Cell<bool>,
    /// The server connection held now is given up, so that replay on its standby can go on.
    pub leaves: Cell<bool>,
    /// Nothing has been heard of its node for long.
    pub is_silent: Cell<bool>,
    /// That connection.
    server: RefCell<Weak<Link>>,
    /// Wakes the session.
    waker: RefCell<Option<Waker>>,
}

impl Control {
    /// For a session with this client.
    pub fn new(client: &Rc<TcpStream>) -> Rc<Self> {
        Rc::new(Self {
            client: Rc::downgrade(client),
            process_id: Cell::new(0),
            idle: Cell::new(true),
            paused: Cell::new(false),
            runs_at: RefCell::default(),
            cancel_sent: Cell::new(false),
            cancelled_by_client: Cell::new(false),
            begin_pending: Cell::new(false),
            cancel_waiting: Cell::new(false),
            asking: Cell::new(None),
            cancels_next: Cell::new(false),
            bell: Notify::new(),
            logging_in: Cell::new(false),
            cut: Cell::new(false),
            speaking: Cell::new(false),
            cancels: RefCell::default(),
            summons: RefCell::default(),
            sought: Cell::new(false),
            sought_at: Cell::new(None),
            active: Cell::new(false),
            cooling: Cell::new(false),
            leaves: Cell::new(false),
            is_silent: Cell::new(false),
            server: RefCell::default(),
            waker: RefCell::default(),
        })
    }

    /// A cancel request of the client goes to the server connection held now.
    pub fn cancel_by_client(&self) {
        self.cancel_sent.set(true);
        self.cancelled_by_client.set(true);
    }

    /// A cancel request came for a session that waits: it is settled when the session has taken notice.
    pub fn cancel_while_waiting(&self, taken: Taken) {
        self.cancel_waiting.set(true);
        self.cancels.borrow_mut().push(taken);
    }

    /// The cancel requests that are not settled, for whoever passes them on.
    pub fn take_cancels(&self) -> Vec<Taken> {
        self.cancels.take()
    }

    /// What a cancel request was meant for is over, unless it was meant for what comes next.
    pub fn forget_cancels(&self) {
        if !self.cancels_next.get() {
            self.cancel_waiting.set(false);
            self.cancels.borrow_mut().clear();
        }
    }

    /// The client is waited for: no cancel is for anything, and none has to wait for what would come of a statement.
    pub fn rest(&self) {
        self.forget_cancels();
        if !self.cancels_next.get() {
            self.begin_pending.set(false);
        }
    }

    /// The next statement begins: a cancel that was sent behind it is looked at before anything of it is sent.
    pub fn begin_statement(&self) {
        self.forget_cancels();
        self.cancelled_by_client.set(false);
        if self.cancels_next.replace(false) {
            self.begin_pending.set(true);
        }
    }

    /// A cancel request that comes while pgsteer asks something behind an answer: it is for the next statement, if the client has sent
    /// that, else for nothing.
    pub fn cancel_while_asking(&self, next: NextStatement, taken: Taken) {
        let unread = |client: Rc<TcpStream>| {
            let mut byte = [std::mem::MaybeUninit::uninit()];
            socket2::SockRef::from(&*client).peek(&mut byte).is_ok_and(|read| read > 0)
        };
        if next == NextStatement::Read || self.client.upgrade().is_some_and(unread) {
            self.cancels_next.set(true);
            self.cancel_while_waiting(taken);
        }
    }

    /// Has an idle session take a server connection and say which.
    pub fn summon(&self, answer: Answered) {
        self.summons.borrow_mut().push(answer);
        self.wake();
    }

    /// Whether the session has been summoned.
    pub fn is_summoned(&self) -> bool {
        !self.summons.borrow().is_empty()
    }

    /// Those who have summoned it.
    pub fn take_summons(&self) -> Vec<Answered> {
        self.summons.take()
    }

    /// Another server connection is held from now on.
    pub fn hold_server(&self, link: &Rc<Link>, key: &Rc<CancelKey>) {
        *self.runs_at.borrow_mut() = Some(Rc::clone(key));
        *self.server.borrow_mut() = Rc::downgrade(link);
        self.cancel_sent.set(false);
        self.leaves.set(false);
        self.is_silent.set(false);
    }

    /// Nothing has been heard of this node for long: what can be run elsewhere need not wait for it. `true`: it runs there.
    pub fn node_is_silent(&self, node: NodeId) -> bool {
        let is_there = self.runs_at.borrow().as_ref().is_some_and(|key| key.node == node);
        if is_there && !self.is_silent.replace(true) {
            self.wake();
        }
        is_there
    }

    /// Has the session give up what it does on this node, unless it does nothing there or has been told so already; gives by what the
    /// server is to be told. Whoever is idle between transactions is in nobody's way, and neither is a question of pgsteer's own behind an
    /// answer: it is over soon, and without its answer the session could not go on.
    pub fn leave(&self, node: NodeId) -> Option<Rc<CancelKey>> {
        let is_busy = !self.idle.get() && self.asking.get().is_none();
        let key = self.runs_at.borrow().clone().filter(|key| key.node == node && is_busy)?;
        if self.leaves.replace(true) {
            return None;
        }
        // One will be on its way: the connection is not reused.
        self.cancel_sent.set(true);
        if let Some(link) = self.server.borrow().upgrade() {
            net::sever(&link.stream);
        }
        self.wake();
        Some(key)
    }

    fn wake(&self) {
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Has the session end, whatever it is doing.
    pub fn cut_off(&self) {
        self.cut.set(true);
        self.wake();
    }

    /// Keeps what wakes the session.
    pub fn keep_waker(&self, waker: &Waker) {
        let mut kept = self.waker.borrow_mut();
        if kept.as_ref().is_none_or(|kept| !kept.will_wake(waker)) {
            *kept = Some(waker.clone());
        }
    }

    /// The shard's regular look at a session that keeps what it needs for its next statement: `false` when it is told to give
    /// that up, or is gone.
    pub fn keeps_warm(&self) -> bool {
        if self.client.strong_count() == 0 {
            return false;
        }
        if self.active.replace(false) || !self.idle.get() {
            return true;
        }
        self.cooling.set(true);
        self.wake();
        false
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whoever sent a cancel that has to wait is not answered before it is passed on, or has come to nothing.
    #[tokio::test]
    async fn a_cancel_that_waits_is_answered_when_it_is_settled() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Rc::new(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let control = Control::new(&client);
        let sent = || {
            let (taken, answer) = oneshot::channel();
            control.cancel_while_waiting(taken);
            answer
        };
        let (mut passed_on, mut dropped) = (sent(), sent());
        let answered = |answer: &mut oneshot::Receiver<()>| {
            !matches!(answer.try_recv(), Err(oneshot::error::TryRecvError::Empty))
        };
        assert!(control.cancel_waiting.get() && !answered(&mut passed_on) && !answered(&mut dropped));
        let under_way = control.take_cancels();
        control.forget_cancels();
        assert!(!control.cancel_waiting.get() && !answered(&mut passed_on));
        drop(under_way);
        assert!(answered(&mut passed_on) && answered(&mut dropped));
        let mut idle = sent();
        control.forget_cancels();
        assert!(answered(&mut idle));
    }

    /// The client has its answer, and loses its session with the connection.
    #[tokio::test]
    async fn a_session_is_asked_to_the_end_before_it_leaves_a_standby() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let client = Rc::new(TcpStream::connect(listener.local_addr().unwrap()).await.unwrap());
        let control = Control::new(&client);
        let key = CancelKey { node: NodeId(1), process_id: 7, key: Vec::new() };
        *control.runs_at.borrow_mut() = Some(Rc::new(key));
        control.idle.set(false);
        control.asking.set(Some(NextStatement::Unread));
        assert!(control.leave(NodeId(1)).is_none() && !control.leaves.get());
        control.asking.set(None);
        assert!(control.leave(NodeId(2)).is_none());
        assert!(control.leave(NodeId(1)).is_some() && control.leaves.get());
        assert!(control.leave(NodeId(1)).is_none(), "once is enough");
    }

    /// While pgsteer asks for itself a cancel is for the client's next statement, if that has been sent, else for nothing.
    #[tokio::test]
    async fn a_cancel_behind_an_answer_is_for_the_next_statement_alone() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let mut peer = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let client = Rc::new(listener.accept().await.unwrap().0);
        let control = Control::new(&client);
        control.cancel_while_asking(NextStatement::Unread, oneshot::channel().0);
        assert!(!control.cancel_waiting.get(), "nothing has been sent");
        tokio::io::AsyncWriteExt::write_all(&mut peer, b"Q").await.unwrap();
        client.readable().await.unwrap();
        control.cancel_while_asking(NextStatement::Unread, oneshot::channel().0);
        control.forget_cancels();
        assert!(control.cancel_waiting.get(), "it stands in the socket");
        control.begin_statement();
        assert!(control.cancel_waiting.get(), "it is for this one");
        assert!(control.begin_pending.get(), "it is looked at before anything is sent");
        control.rest();
        assert!(
            !control.begin_pending.get() && !control.cancel_waiting.get(),
            "it was answered without a server"
        );
        control.begin_statement();
        assert!(!control.cancel_waiting.get(), "and for no other");
        control.cancel_while_asking(NextStatement::Read, oneshot::channel().0);
        assert!(control.cancel_waiting.get(), "it had been read");
    }
}
