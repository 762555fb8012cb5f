//! Bytes of the client, in and out.
//!
//! Invariant: what is read is bounded by `UNIT_BYTES_MAX`. Must not know: what the bytes say.

use std::io;

use super::driver::{End, Flow, Session, UNIT_BYTES_MAX};
use super::outcome;
use crate::net;
use crate::relay::buffer::Window;

impl Session {
    /// A window that holds these bytes.
    pub(super) fn window_with(&self, bytes: &[u8]) -> Flow<Window> {
        let mut window = Window::new(self.shard.buffers.take());
        while window.spare().len() < bytes.len() {
            if !window.grow(UNIT_BYTES_MAX) {
                let report = outcome::protocol("too many bytes before the login was answered");
                return Err(End::Told(Box::new(report)));
            }
        }
        if let Some(front) = window.spare().get_mut(..bytes.len()) {
            front.copy_from_slice(bytes);
        }
        window.advance(bytes.len());
        Ok(window)
    }

    /// Reads what a wake-up promised. Readiness may be stale: then nothing comes and the session waits as an idle one.
    pub(super) fn read_first(&self, window: &mut Window) -> Flow<()> {
        match net::try_read(&self.client, window.spare()) {
            Ok(0) => Err(End::Client),
            Ok(count) => {
                window.advance(count);
                Ok(())
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            Err(_) => Err(End::Client),
        }
    }

    pub(super) async fn read_more(&mut self, window: &mut Window) -> Flow<()> {
        if window.is_full() && !window.grow(UNIT_BYTES_MAX) {
            return Err(End::Told(Box::new(outcome::protocol("a message is larger than its buffer"))));
        }
        loop {
            match net::try_read(&self.client, window.spare()) {
                Ok(0) => return Err(End::Client),
                Ok(count) => {
                    window.advance(count);
                    return Ok(());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    // As for PostgreSQL, a client is idle until its message is whole.
                    let readable = self.within_idle_limit(net::readable(&self.client)).await?;
                    readable.map_err(|_| End::Client)?;
                }
                Err(_) => return Err(End::Client),
            }
        }
    }

    /// Reads and forgets a frame of so many bytes.
    pub(super) async fn skip(&mut self, window: &mut Window, mut bytes: usize) -> Flow<()> {
        loop {
            let here = bytes.min(window.filled().len());
            window.consume(here);
            bytes -= here;
            if bytes == 0 {
                return Ok(());
            }
            self.read_more(window).await?;
        }
    }

    pub(super) async fn send_client(&mut self, bytes: &[u8]) -> Flow<()> {
        self.control.speaking.set(true);
        let written = net::write_all(&self.client, bytes).await;
        self.control.speaking.set(false);
        written.map_err(|_| End::Client)
    }
}
