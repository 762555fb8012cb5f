//! Just enough of the protocol to open a trusted connection and run a query: what an idle client is made of.
//!
//! It is written apart from the crate's own code on purpose: the measure must not share the faults of the measured.
//! Must not know: peers, figures.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use anyhow::bail;

/// No answer is larger than this.
const LENGTH_MAX: u32 = 1 << 20;

/// A connection that is ready for a query.
pub struct Connection {
    stream: TcpStream,
}

impl Connection {
    pub fn open(address: SocketAddr, user: &str, database: &str) -> anyhow::Result<Self> {
        let stream = TcpStream::connect_timeout(&address, Duration::from_secs(5))?;
        stream.set_read_timeout(Some(Duration::from_secs(30)))?;
        stream.set_nodelay(true)?;
        let mut connection = Self { stream };
        let mut body = 196_608_u32.to_be_bytes().to_vec();
        for text in ["user", user, "database", database, ""] {
            body.extend_from_slice(text.as_bytes());
            body.push(0);
        }
        connection.send(None, &body)?;
        connection.until_ready()?;
        Ok(connection)
    }

    pub fn query(&mut self, sql: &str) -> anyhow::Result<()> {
        self.send(Some(b'Q'), &[sql.as_bytes(), b"\0"].concat())?;
        self.until_ready()
    }

    fn send(&mut self, kind: Option<u8>, body: &[u8]) -> anyhow::Result<()> {
        let length = u32::try_from(body.len() + 4)?;
        let mut message: Vec<u8> = kind.into_iter().collect();
        message.extend_from_slice(&length.to_be_bytes());
        message.extend_from_slice(body);
        Ok(self.stream.write_all(&message)?)
    }

    fn until_ready(&mut self) -> anyhow::Result<()> {
        loop {
            let mut header = [0; 5];
            self.stream.read_exact(&mut header)?;
            let [kind, length @ ..] = header;
            let length = u32::from_be_bytes(length);
            if !(4..LENGTH_MAX).contains(&length) {
                bail!("a message of {length} bytes");
            }
            let mut body = vec![0; length as usize - 4];
            self.stream.read_exact(&mut body)?;
            match kind {
                b'Z' => return Ok(()),
                b'E' => bail!("{}", error_text(&body)),
                b'R' if body != [0; 4] => bail!("it asks for a password"),
                _ => {}
            }
        }
    }
}

/// SQLSTATE and message of an ErrorResponse.
fn error_text(body: &[u8]) -> String {
    let fields = body.split(|byte| *byte == 0).filter_map(<[u8]>::split_first);
    let wanted = fields.filter(|(kind, _)| matches!(kind, b'C' | b'M'));
    wanted.map(|(_, text)| String::from_utf8_lossy(text)).collect::<Vec<_>>().join(" ")
}
