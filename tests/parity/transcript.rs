//! Scripts of raw messages, and what a server answered, as text that can be compared line by line.
//!
//! A line of a script is one packet; its messages stand between ` | `:
//!
//! ```text
//! Q sql                      Query
//! P name(oid,oid): sql       Parse; the types may be left out, `-` is the unnamed one
//! B portal name p=1 r=0,1: v,\N    Bind; p and r are the formats of parameters and results, `\N` is NULL
//! D S name / D P portal      Describe        C S name / C P portal    Close
//! E portal 2                 Execute         S / H / X                Sync, Flush, Terminate
//! d data / c / f message     CopyData, CopyDone, CopyFail
//! F oid p=1 r=0: v,v         FunctionCall
//! raw K bytes                anything
//! ```
//!
//! The answer is read up to one ReadyForQuery for each Query, Sync and FunctionCall; ` >> Z2`, ` >> G` or ` >> end` at the end
//! of a line say that it is something else, ` >> -` that nothing is read. `\n`, `\t`, `\0`, `\\` and `\xHH` are bytes.
//! Must not know: what is compared with what.

use std::fmt::Write;
use std::time::Duration;

use crate::running::{Message, RawClient, frame};

/// After this long nothing more is expected to come: the transcript says so, and differs.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// The line for an answer that does not come.
pub const SILENCE: &str = "(silence)";

enum Until {
    Messages(u8, usize),
    End,
}

fn unescape(text: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        if *first != b'\\' {
            bytes.push(*first);
            continue;
        }
        let [escape, tail @ ..] = rest else { panic!("a lone backslash: {text}") };
        rest = tail;
        bytes.push(match escape {
            b'n' => b'\n',
            b't' => b'\t',
            b'0' => 0,
            b'\\' => b'\\',
            b'x' => {
                let hex = std::str::from_utf8(&rest[..2]).unwrap();
                rest = &rest[2..];
                u8::from_str_radix(hex, 16).unwrap()
            }
            other => panic!("unknown escape {}: {text}", char::from(*other)),
        });
    }
    bytes
}

fn terminated(name: &str) -> Vec<u8> {
    let mut bytes = if name == "-" { Vec::new() } else { unescape(name) };
    bytes.push(0);
    bytes
}

fn count(number: usize) -> [u8; 2] {
    u16::try_from(number).unwrap().to_be_bytes()
}

/// A list of formats, as `p=0,1` among the words of a message.
fn formats(words: &[&str], name: &str) -> Vec<u8> {
    let list = words.iter().find_map(|word| word.strip_prefix(name)).unwrap_or("");
    let codes: Vec<usize> =
        list.split(',').filter(|code| !code.is_empty()).map(|code| code.parse().unwrap()).collect();
    codes.iter().fold(count(codes.len()).to_vec(), |bytes, code| [&bytes[..], &count(*code)].concat())
}

fn values(text: &str) -> Vec<u8> {
    let text = text.trim();
    let list: Vec<&str> = if text.is_empty() { Vec::new() } else { text.split(',').collect() };
    let mut bytes = count(list.len()).to_vec();
    for value in list {
        if value == "\\N" {
            bytes.extend_from_slice(&(-1_i32).to_be_bytes());
        } else {
            let value = unescape(value);
            bytes.extend_from_slice(&u32::try_from(value.len()).unwrap().to_be_bytes());
            bytes.extend_from_slice(&value);
        }
    }
    bytes
}

fn parse(rest: &str) -> Vec<u8> {
    let (name, sql) = rest.split_once(": ").unwrap_or((rest.trim_end_matches(':'), ""));
    let (name, types) = name.split_once('(').unwrap_or((name, ""));
    let types: Vec<u32> = types
        .trim_end_matches(')')
        .split(',')
        .filter(|oid| !oid.is_empty())
        .map(|oid| oid.parse().unwrap())
        .collect();
    let mut body = [terminated(name), unescape(sql), vec![0], count(types.len()).to_vec()].concat();
    types.iter().for_each(|oid| body.extend_from_slice(&oid.to_be_bytes()));
    body
}

fn message(text: &str) -> Vec<u8> {
    let (kind, rest) = text.split_once(' ').unwrap_or((text, ""));
    let (head, list) = rest.split_once(':').unwrap_or((rest, ""));
    let words: Vec<&str> = head.split_whitespace().collect();
    match kind {
        "Q" => frame(b'Q', &[unescape(rest), vec![0]].concat()),
        "P" => frame(b'P', &parse(rest)),
        "B" => {
            let names = [terminated(words[0]), terminated(words[1])].concat();
            frame(b'B', &[names, formats(&words, "p="), values(list), formats(&words, "r=")].concat())
        }
        "D" | "C" => frame(kind.as_bytes()[0], &[words[0].as_bytes(), &terminated(words[1])].concat()),
        "E" => {
            let limit: u32 = words.get(1).map_or(0, |limit| limit.parse().unwrap());
            frame(b'E', &[terminated(words[0]), limit.to_be_bytes().to_vec()].concat())
        }
        "F" => {
            let oid: u32 = words[0].parse().unwrap();
            let result = words.iter().find_map(|word| word.strip_prefix("r=")).unwrap_or("0");
            let result = count(result.parse().unwrap());
            frame(b'F', &[&oid.to_be_bytes()[..], &formats(&words, "p="), &values(list), &result].concat())
        }
        "S" | "H" | "X" | "c" => frame(kind.as_bytes()[0], b""),
        "d" => frame(b'd', &unescape(rest)),
        "f" => frame(b'f', &[unescape(rest), vec![0]].concat()),
        "raw" => frame(rest.as_bytes()[0], &unescape(rest[1..].trim_start())),
        _ => panic!("unknown message: {text}"),
    }
}

fn packet(line: &str) -> (Vec<u8>, Until) {
    let (line, until) = match line.rsplit_once(" >> ") {
        Some((line, until)) => (line, Some(until)),
        None => (line, None),
    };
    let messages: Vec<Vec<u8>> = line.split(" | ").map(message).collect();
    let until = match until {
        Some("end") => Until::End,
        Some("-") => Until::Messages(0, 0),
        Some(until) => Until::Messages(until.as_bytes()[0], until[1..].parse().unwrap_or(1)),
        None => Until::Messages(b'Z', messages.iter().filter(|bytes| b"QSF".contains(&bytes[0])).count()),
    };
    (messages.concat(), until)
}

/// Sends one line of a script; the answer as lines.
pub async fn step(client: &mut RawClient, line: &str, patience: Duration) -> Vec<String> {
    let (bytes, until) = packet(line);
    client.send(&bytes).await;
    let mut answer = Vec::new();
    let mut seen = 0;
    while !matches!(until, Until::Messages(_, wanted) if seen == wanted) {
        let Ok(message) = tokio::time::timeout(patience, client.try_read()).await else {
            answer.push(SILENCE.to_owned());
            break;
        };
        let Some(message) = message else {
            answer.push("(end)".to_owned());
            break;
        };
        if matches!(until, Until::Messages(kind, _) if message.kind == kind) {
            seen += 1;
        }
        answer.push(render(&message));
    }
    // Which of several parameters is reported first depends on the order in which a server met them.
    answer.chunk_by_mut(|one, two| one.starts_with("S ") && two.starts_with("S ")).for_each(<[_]>::sort);
    answer
}

/// The bytes of a message, read from the front.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn take(&mut self, length: usize) -> &[u8] {
        let (taken, rest) = self.0.split_at(length);
        self.0 = rest;
        taken
    }

    fn small(&mut self) -> i16 {
        i16::from_be_bytes(self.take(2).try_into().unwrap())
    }

    fn number(&mut self) -> i32 {
        i32::from_be_bytes(self.take(4).try_into().unwrap())
    }

    /// Ids of what a script makes are chance.
    fn oid(&mut self) -> String {
        let oid = self.number();
        if oid < 16_384 { oid.to_string() } else { "made".to_owned() }
    }

    fn text(&mut self) -> String {
        let length = self.0.iter().position(|byte| *byte == 0).unwrap();
        let text = self.take(length).escape_ascii().to_string();
        self.take(1);
        text
    }
}

fn value(reader: &mut Reader<'_>) -> String {
    match usize::try_from(reader.number()) {
        Ok(length) => reader.take(length).escape_ascii().to_string(),
        Err(_) => "NULL".to_owned(),
    }
}

/// All fields but those that say where in the source of the server.
fn fields(reader: &mut Reader<'_>) -> String {
    let mut text = String::new();
    while reader.0.len() > 1 {
        let code = char::from(reader.take(1)[0]);
        let value = reader.text();
        if !"FLR".contains(code) {
            write!(text, " {code}={}", unnumbered(&value)).unwrap();
        }
    }
    text
}

/// The names that pgsteer gives to statements, without their numbers.
fn unnumbered(text: &str) -> String {
    let mut parts = text.split("_pgsteer_");
    let first = parts.next().unwrap_or_default().to_owned();
    parts.fold(first, |text, part| {
        text + "_pgsteer_" + part.trim_start_matches(|digit: char| digit.is_ascii_digit() || digit == '_')
    })
}

fn render(message: &Message) -> String {
    let mut reader = Reader(&message.body);
    let mut text = char::from(message.kind).to_string();
    match message.kind {
        b'T' => {
            for _ in 0..reader.small() {
                let name = reader.text();
                let table = reader.oid();
                let (column, kind, size) = (reader.small(), reader.oid(), reader.small());
                let (modifier, format) = (reader.number(), reader.small());
                write!(text, " {name}({table}.{column} {kind} {size} {modifier} {format})").unwrap();
            }
        }
        b'D' => {
            for _ in 0..reader.small() {
                write!(text, " [{}]", value(&mut reader)).unwrap();
            }
        }
        b't' => {
            for _ in 0..reader.small() {
                write!(text, " {}", reader.oid()).unwrap();
            }
        }
        b'V' => write!(text, " [{}]", value(&mut reader)).unwrap(),
        b'E' | b'N' => text.push_str(&fields(&mut reader)),
        b'S' => write!(text, " {}={}", reader.text(), reader.text()).unwrap(),
        b'A' => {
            reader.number();
            write!(text, " {} {}", reader.text(), reader.text()).unwrap();
        }
        // Process id and key are chance.
        b'K' => {}
        _ => write!(text, " {}", message.body.escape_ascii()).unwrap(),
    }
    text
}
