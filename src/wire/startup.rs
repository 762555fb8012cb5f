//! The first packet of a connection: SSLRequest, GSSENCRequest, CancelRequest or StartupMessage.
//!
//! Invariant: bounded by PostgreSQL's own `MAX_STARTUP_PACKET_LENGTH`; strings are taken in any encoding, as stand-ins (`text`).
//! Must not know: sockets, authentication. Source: "Message Formats" in the protocol documentation.

use super::{peer, text};

/// PostgreSQL's `MAX_STARTUP_PACKET_LENGTH`, which does not count the length field, and that field.
pub const STARTUP_BYTES_MAX: usize = 10_004;

/// PostgreSQL cuts longer names (`NAMEDATALEN`, less the terminator).
pub const NAME_BYTES_MAX: usize = 63;

/// The newest minor version of protocol 3 that is spoken with clients: 3.2, of PostgreSQL 18.
pub const MINOR_MAX: u16 = 2;

/// From this minor version on a client takes cancel keys that are longer than four bytes.
const MINOR_OF_LONG_KEYS: u16 = 2;

/// The longest key of a CancelRequest.
const CANCEL_KEY_BYTES_MAX: usize = 256;

const TERMINATE: &[u8] = b"X\0\0\0\x04";

const SSL_REQUEST: u32 = 1234 << 16 | 5679;
const GSSENC_REQUEST: u32 = 1234 << 16 | 5680;
const CANCEL_REQUEST: u32 = 1234 << 16 | 5678;

/// What a client can send first.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Initial {
    /// Wants TLS.
    Ssl,
    /// Wants GSSAPI encryption.
    GssEnc,
    /// Wants another connection's statement cancelled.
    Cancel {
        /// The process id it was given.
        process_id: i32,
        /// The key it was given, 1 to 256 bytes.
        key: Vec<u8>,
    },
    /// A CancelRequest that can't be: PostgreSQL says nothing to it.
    MalformedCancel,
    /// Another pgsteer process wants to know who this is.
    PeerHello,
    /// Another pgsteer process got a client's cancel request.
    PeerCancel {
        /// The process id the client was given.
        process_id: i32,
        /// The key it was given.
        key: Vec<u8>,
    },
    /// Wants to log in.
    Startup(Startup),
    /// Wants nothing any more: a Terminate before any login.
    Terminate,
}

/// A StartupMessage.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Startup {
    /// Minor protocol version asked for; the major one is 3.
    pub minor: u16,
    /// Parameters other than `_pq_.*`, in the order sent.
    pub parameters: Vec<(String, String)>,
    /// Names of protocol options (`_pq_.*`) asked for; pgsteer knows none.
    pub protocol_options: Vec<String>,
}

impl Startup {
    /// The value of a parameter; the last one wins, as in PostgreSQL.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The minor version that is spoken with this client: what it asked for, or the newest there is.
    pub fn minor_spoken(&self) -> u16 {
        self.minor.min(MINOR_MAX)
    }

    /// How long a cancel key it takes, in bytes.
    pub fn cancel_key_bytes(&self) -> usize {
        if self.minor_spoken() >= MINOR_OF_LONG_KEYS { 32 } else { 4 }
    }
}

/// The client's first packet is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum StartupError {
    /// The length field can't be true.
    #[error("invalid length of startup packet: {0}")]
    Length(i32),
    /// A version that is not 3.x.
    #[error("unsupported frontend protocol {major}.{minor}: server supports 3.0 to 3.2")]
    Version {
        /// Major version.
        major: u16,
        /// Minor version.
        minor: u16,
    },
    /// Strings that do not end, or a value missing.
    #[error("invalid startup packet layout: expected terminator as last byte")]
    Layout,
}

/// Reads the packet at the beginning of `bytes`. `Ok(None)`: not all there yet. Otherwise the packet and its length.
pub fn initial(bytes: &[u8]) -> Result<Option<(Initial, usize)>, StartupError> {
    let Some(length) = bytes.first_chunk::<4>() else { return Ok(None) };
    // A client that is closed while it connects says goodbye all the same. PostgreSQL answers nothing.
    if bytes.starts_with(TERMINATE) {
        return Ok(Some((Initial::Terminate, TERMINATE.len())));
    }
    if TERMINATE.starts_with(bytes) {
        return Ok(None);
    }
    let length_field = i32::from_be_bytes(*length);
    let length = usize::try_from(length_field).map_err(|_| StartupError::Length(length_field))?;
    if !(8..=STARTUP_BYTES_MAX).contains(&length) {
        return Err(StartupError::Length(length_field));
    }
    let Some(packet) = bytes.get(..length) else { return Ok(None) };
    let (_, rest) = packet.split_at(4);
    let Some((code, body)) = rest.split_first_chunk::<4>() else { return Err(StartupError::Layout) };
    let code = u32::from_be_bytes(*code);
    let initial = match code {
        SSL_REQUEST => Initial::Ssl,
        GSSENC_REQUEST => Initial::GssEnc,
        CANCEL_REQUEST => match cancel_key(body) {
            Some((process_id, key)) => Initial::Cancel { process_id, key },
            None => Initial::MalformedCancel,
        },
        peer::HELLO => Initial::PeerHello,
        peer::FORWARDED_CANCEL => match cancel_key(body) {
            Some((process_id, key)) => Initial::PeerCancel { process_id, key },
            None => Initial::MalformedCancel,
        },
        _ => Initial::Startup(startup(code, body)?),
    };
    Ok(Some((initial, length)))
}

fn cancel_key(body: &[u8]) -> Option<(i32, Vec<u8>)> {
    let (process_id, key) = body.split_first_chunk::<4>()?;
    let key = (1..=CANCEL_KEY_BYTES_MAX).contains(&key.len()).then(|| key.to_vec())?;
    Some((i32::from_be_bytes(*process_id), key))
}

fn startup(code: u32, body: &[u8]) -> Result<Startup, StartupError> {
    let [a, b, c, d] = code.to_be_bytes();
    let (major, minor) = (u16::from_be_bytes([a, b]), u16::from_be_bytes([c, d]));
    if major != 3 {
        return Err(StartupError::Version { major, minor });
    }
    let mut startup = Startup { minor, ..Startup::default() };
    let mut rest = body;
    loop {
        // PostgreSQL looks only whether the name that ends the list is the last byte, not what it is.
        if rest.len() == 1 {
            return Ok(startup);
        }
        let name = cstring(&mut rest)?;
        if name.is_empty() {
            return Err(StartupError::Layout);
        }
        let value = cstring(&mut rest)?;
        if name.starts_with("_pq_.") {
            startup.protocol_options.push(name);
        } else {
            startup.parameters.push((name, value));
        }
    }
}

fn cstring(rest: &mut &[u8]) -> Result<String, StartupError> {
    let end = rest.iter().position(|&byte| byte == 0).ok_or(StartupError::Layout)?;
    let string = text::from_bytes(rest.get(..end).ok_or(StartupError::Layout)?);
    *rest = rest.get(end + 1..).ok_or(StartupError::Layout)?;
    Ok(string)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn packet(code: u32, body: &[u8]) -> Vec<u8> {
        let mut bytes = u32::try_from(body.len() + 8).unwrap().to_be_bytes().to_vec();
        bytes.extend_from_slice(&code.to_be_bytes());
        bytes.extend_from_slice(body);
        bytes
    }

    #[test]
    fn reads_startup_parameters() {
        let bytes = packet(3 << 16 | 2, b"user\0bob\0_pq_.x\0on\0database\0d\0\0");
        let (initial, length) = initial(&bytes).unwrap().unwrap();
        assert_eq!(length, bytes.len());
        let Initial::Startup(startup) = initial else { panic!("{initial:?}") };
        assert_eq!(
            (startup.minor, startup.parameter("user"), startup.parameter("database")),
            (2, Some("bob"), Some("d"))
        );
        assert_eq!(startup.protocol_options, ["_pq_.x"]);
    }

    #[test]
    fn waits_for_the_whole_packet() {
        let bytes = packet(SSL_REQUEST, b"");
        assert_eq!(initial(&bytes[..7]), Ok(None));
        assert_eq!(initial(&bytes), Ok(Some((Initial::Ssl, 8))));
    }

    #[test]
    fn a_goodbye_is_no_packet_of_an_impossible_length() {
        let goodbye = b"X\0\0\0\x04";
        assert_eq!(initial(&goodbye[..4]), Ok(None));
        assert_eq!(initial(goodbye), Ok(Some((Initial::Terminate, 5))));
        assert_eq!(initial(b"X\0\0\0\x05"), Err(StartupError::Length(0x5800_0000)));
    }

    /// P07: lengths and layouts that a hostile client may send.
    #[test]
    fn refuses_malformed_packets() {
        assert_eq!(initial(&(-1i32).to_be_bytes()), Err(StartupError::Length(-1)));
        assert_eq!(initial(&7u32.to_be_bytes()), Err(StartupError::Length(7)));
        assert_eq!(initial(&10_004u32.to_be_bytes()), Ok(None));
        assert_eq!(initial(&10_005u32.to_be_bytes()), Err(StartupError::Length(10_005)));
        for body in [&b""[..], b"user", b"user\0", b"user\0bob\0", b"user\0bob\0\0x", b"user\0bob\0a\0\0"] {
            assert_eq!(initial(&packet(3 << 16, body)), Err(StartupError::Layout), "{body:?}");
        }
        assert_eq!(initial(&packet(2 << 16, b"")), Err(StartupError::Version { major: 2, minor: 0 }));
    }

    /// P07: PostgreSQL answers nothing to a cancel request, whatever is wrong with it.
    #[test]
    fn keys_of_cancel_requests() {
        let read = |body: &[u8]| initial(&packet(CANCEL_REQUEST, body)).unwrap().unwrap().0;
        let whole = |key: &[u8]| [b"\0\0\0\x01", key].concat();
        for key in [&b"x"[..], b"four", &[7; 32], &[7; 256]] {
            assert_eq!(read(&whole(key)), Initial::Cancel { process_id: 1, key: key.to_vec() });
        }
        for body in [&b""[..], b"\0\0\0", b"\0\0\0\x01", &whole(&[7; 257])] {
            assert_eq!(read(body), Initial::MalformedCancel, "{body:?}");
        }
    }

    /// P06: 3.1 has never been released, but it is what a client that asks for it gets.
    #[test]
    fn minor_versions() {
        for (asked, spoken, key_bytes) in [(0, 0, 4), (1, 1, 4), (2, 2, 32), (3, 2, 32), (9999, 2, 32)] {
            let startup = Startup { minor: asked, ..Startup::default() };
            assert_eq!((startup.minor_spoken(), startup.cancel_key_bytes()), (spoken, key_bytes));
        }
    }

    /// PostgreSQL takes names and values in any encoding, and a terminator that is none.
    #[test]
    fn reads_what_is_not_utf8() {
        let bytes = packet(3 << 16, b"user\0jos\xe9\0x");
        let (Initial::Startup(startup), _) = initial(&bytes).unwrap().unwrap() else { panic!("a startup") };
        assert_eq!(*text::to_bytes(startup.parameter("user").unwrap()), *b"jos\xe9");
    }
}
