//! Which settings with a prefix code may make that is only there as text: the names that it shows, and whether it makes others,
//! whose names it puts together. No server lists such settings.
//!
//! Invariant: where a name can't be read, that is said. A form that is not known errs towards "can't". Pure. Must not know: sessions,
//! servers.

use std::collections::BTreeSet;

/// Names of settings that may be there are asked for one by one: no more than these of one session.
const NAMES_MAX: usize = 1024;
/// Functions that are called, of one session.
const CALLED_MAX: usize = 256;
/// Bytes of arguments that are read in one text, those of calls in calls counted again.
const READ_BYTES_MAX: usize = 4 * 1024 * 1024;
/// A longer name is not looked at.
const NAME_BYTES_MAX: usize = 256;

/// What code mentions.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Mentioned {
    /// Names with a prefix, in lower case, that may be those of settings.
    pub names: BTreeSet<String>,
    /// Functions that are called, in lower case.
    pub called: BTreeSet<String>,
    /// Those of them that get anything but constants and parameters.
    pub called_with_more: BTreeSet<String>,
    /// It may make a setting whose name is not among them.
    pub unnamed: bool,
    /// The same but for names that it is called with.
    pub passed: bool,
    /// Bytes of arguments that were read.
    read: usize,
}

/// Where a text stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// What a client sent: a parameter's value comes with it.
    Statement,
    /// The body of a function: its parameters come with the call.
    Body,
}

impl Mentioned {
    /// Reads the body of a function that has parameters of these names, with commas between them.
    pub fn read_body(&mut self, body: &str, parameters: &str) {
        let mut body = body.to_owned();
        for (index, name) in parameters.split(',').enumerate().filter(|(_, name)| !name.is_empty()) {
            body = by_number(&body, name, index + 1);
        }
        self.read(body.as_bytes(), Place::Body);
    }

    /// Reads a text in whatever language: of its words only those are understood that make settings.
    pub fn read(&mut self, text: &[u8], place: Place) {
        let mut at = 0;
        let mut quoted_from: Option<usize> = None;
        while let Some(&byte) = text.get(at) {
            if byte == b'\'' {
                if let Some(start) = quoted_from {
                    self.value(text.get(start..at).unwrap_or_default());
                }
                quoted_from = Some(at + 1);
                at += 1;
            } else if byte == b'$' {
                // `$tag$` is a quote.
                let tag =
                    length_of(text.get(at + 1..).unwrap_or_default(), |it| it != b'$' && is_name_byte(it));
                let is_quote = text.get(at + 1 + tag) == Some(&b'$');
                at += 1 + if is_quote { tag + 1 } else { 0 };
            } else if is_name_start(byte) {
                let end = at + length_of(text.get(at..).unwrap_or_default(), is_name_byte);
                self.word(text, (at, end), place);
                at = end;
            } else {
                at += 1 + length_of(text.get(at + 1..).unwrap_or_default(), |it| it.is_ascii_digit());
            }
        }
    }

    /// A constant or a value: it may be the name of a setting as a whole.
    pub fn value(&mut self, value: &[u8]) {
        if value.contains(&b'.') && is_dotted_name(value) {
            self.name(value);
        }
    }

    fn name(&mut self, name: &[u8]) {
        match std::str::from_utf8(name) {
            Ok(name) if name.len() <= NAME_BYTES_MAX => {
                let name = name.to_ascii_lowercase();
                if self.names.len() < NAMES_MAX {
                    self.names.insert(name);
                } else {
                    self.unnamed |= !self.names.contains(&name);
                }
            }
            _ => self.unnamed = true,
        }
    }

    fn word(&mut self, text: &[u8], (start, end): (usize, usize), place: Place) {
        let word = text.get(start..end).unwrap_or_default();
        let next = after_space(text, end);
        let calls = text.get(next) == Some(&b'(');
        if word.eq_ignore_ascii_case(b"set") {
            self.set(text, start, next);
        } else if calls && word.eq_ignore_ascii_case(b"set_config") {
            self.set_config(text, next + 1, place);
        } else if calls {
            let word = String::from_utf8_lossy(word).to_ascii_lowercase();
            if place == Place::Statement {
                let arguments = self.arguments(text, next + 1);
                if !arguments.is_some_and(|them| them.iter().all(|it| is_plain(it))) {
                    insert(&mut self.called_with_more, word.clone());
                }
            }
            self.unnamed |= !insert(&mut self.called, word);
        }
    }

    fn arguments<'t>(&mut self, text: &'t [u8], from: usize) -> Option<Vec<&'t [u8]>> {
        let left = READ_BYTES_MAX.saturating_sub(self.read);
        let text = text.get(from..)?;
        let arguments = arguments(text.get(..left.min(text.len()))?);
        let read = |them: &Vec<&[u8]>| them.iter().map(|it| it.len() + 1).sum();
        self.read += arguments.as_ref().map_or(text.len().min(left), read);
        arguments
    }

    /// `set_config(name, value, is_local)`, from behind the parenthesis.
    fn set_config(&mut self, text: &[u8], from: usize, place: Place) {
        let Some(arguments) = self.arguments(text, from).filter(|_| !self.unnamed) else {
            self.unnamed = true;
            return;
        };
        let named = |name: &str| arguments.iter().find_map(|argument| argument_named(argument, name));
        let [first, _, third] = arguments.as_slice() else {
            self.unnamed = true;
            return;
        };
        let is_named = arguments.iter().any(|it| it.contains(&b'='));
        let (name, local) = match is_named {
            true => (named("setting_name"), named("is_local")),
            false => (Some(trimmed(first)), Some(trimmed(third))),
        };
        let local = local.map(|local| constant(local).to_ascii_lowercase());
        let is_local = local.is_some_and(|it| matches!(&*it, b"true" | b"t" | b"yes" | b"on" | b"1"));
        match name {
            _ if is_local => {}
            Some(name) if is_constant(name) => self.value(constant(name)),
            Some(name) if is_parameter(name) => self.passed |= place == Place::Body,
            _ => self.unnamed = true,
        }
    }

    /// SET, as a command or in a text that is run as one; `next`: what stands behind it.
    fn set(&mut self, text: &[u8], start: usize, mut next: usize) {
        let word = |at: usize| {
            let rest = text.get(at..).unwrap_or_default();
            rest.get(..length_of(rest, is_name_byte)).unwrap_or_default()
        };
        if word(next).eq_ignore_ascii_case(b"local") {
            return;
        }
        if word(next).eq_ignore_ascii_case(b"session") {
            next = after_space(text, next + b"session".len());
        }
        let rest = text.get(next..).unwrap_or_default();
        let length = length_of(rest, |it| is_name_byte(it) || matches!(it, b'.' | b'"'));
        let name: Vec<u8> = rest.iter().take(length).copied().filter(|it| *it != b'"').collect();
        let is_cut = matches!(rest.get(length), None | Some(b'\'' | b'%' | b'|' | b'{'));
        if is_cut && begins_command(text, start) {
            self.unnamed = true;
        } else if !is_cut {
            self.value(&name);
        }
    }

    /// Adds what another text mentions.
    pub fn add(&mut self, other: Self) {
        self.unnamed |= other.unnamed;
        self.passed |= other.passed;
        for name in other.names {
            self.value(name.as_bytes());
        }
        for name in other.called {
            self.unnamed |= !insert(&mut self.called, name);
        }
        for name in other.called_with_more {
            self.unnamed |= !insert(&mut self.called_with_more, name);
        }
    }
}

/// A body with `$number` where `set_config` gets its parameter `name`, unless that may have another value by then.
fn by_number(body: &str, name: &str, number: usize) -> String {
    let assigned = [":=", " :=", "=", " ="].iter().any(|sign| body.contains(&format!("{name}{sign}")));
    if assigned || body.contains(&format!("into {name}")) {
        return body.to_owned();
    }
    let mut out = body.to_owned();
    for between in ["", " "] {
        for end in [",", " ,"] {
            let call = format!("set_config({between}{name}{end}");
            out = out.replace(&call, &format!("set_config(${number}{end}"));
        }
    }
    out
}

/// Whether there was room.
fn insert(names: &mut BTreeSet<String>, name: String) -> bool {
    names.contains(&name) || (names.len() < CALLED_MAX && names.insert(name))
}

/// Whether what stands at `start` is the first word of a constant that is no continuation of another one.
fn begins_command(text: &[u8], start: usize) -> bool {
    let before = text.get(..start).unwrap_or_default().trim_ascii_end();
    let Some((b'\'' | b'"' | b'$', outside)) = before.split_last() else { return false };
    let outside = outside.trim_ascii_end();
    let outside = outside.strip_suffix(b"'").unwrap_or(outside).trim_ascii_end();
    !matches!(outside.last(), Some(b'|' | b','))
}

/// The arguments of a call, from behind its parenthesis to the one that closes it.
fn arguments(text: &[u8]) -> Option<Vec<&[u8]>> {
    let (mut found, mut start, mut depth, mut quoted) = (Vec::new(), 0, 0usize, false);
    for (at, &byte) in text.iter().enumerate() {
        match byte {
            b'\'' => quoted = !quoted,
            _ if quoted => {}
            b'(' | b'[' => depth += 1,
            b')' | b']' if depth > 0 => depth -= 1,
            b',' if depth == 0 => {
                found.push(text.get(start..at)?);
                start = at + 1;
            }
            b')' => {
                found.push(text.get(start..at)?);
                return Some(found);
            }
            _ => {}
        }
    }
    None
}

/// Whether an argument is one constant, or a parameter: whatever it names, it shows.
fn is_plain(argument: &[u8]) -> bool {
    let argument = argument.trim_ascii();
    let name = length_of(argument, is_name_byte);
    let behind = argument.get(name..).unwrap_or_default().trim_ascii_start();
    let value = behind.strip_prefix(b"=>").or_else(|| behind.strip_prefix(b":="));
    let value = value.unwrap_or(argument).trim_ascii();
    let is_of_type = |it: &u8| is_name_byte(*it) || matches!(it, b' ' | b'(' | b')' | b'[' | b']' | b'.');
    let cast = value.windows(2).rposition(|it| it == b"::");
    let cast = cast.filter(|at| value.iter().skip(at + 2).all(is_of_type));
    let value = value.get(..cast.unwrap_or(value.len())).unwrap_or_default().trim_ascii_end();
    let quotes = length_of(value, |it| it == b'\'');
    let is_constant = quotes > 0 && value.len() > 2 * quotes && !constant(value).contains(&b'\'');
    value.is_empty()
        || is_constant
        || value == b"''"
        || is_parameter(value)
        || ["true", "false", "null"].iter().any(|word| value.eq_ignore_ascii_case(word.as_bytes()))
        || value.iter().all(|it| it.is_ascii_digit() || matches!(it, b'.' | b'-'))
}

fn is_parameter(argument: &[u8]) -> bool {
    argument.strip_prefix(b"$").is_some_and(|it| !it.is_empty() && it.iter().all(u8::is_ascii_digit))
}

/// `name => value` or `name := value`.
fn argument_named<'t>(argument: &'t [u8], name: &str) -> Option<&'t [u8]> {
    let argument = argument.trim_ascii();
    let rest = argument.get(name.len()..)?.trim_ascii_start();
    let is_it = argument.get(..name.len())?.eq_ignore_ascii_case(name.as_bytes());
    let value = rest.strip_prefix(b"=>").or_else(|| rest.strip_prefix(b":="))?;
    is_it.then(|| trimmed(value))
}

/// Without space and a cast to text.
fn trimmed(argument: &[u8]) -> &[u8] {
    let argument = argument.trim_ascii();
    ["::text", "::varchar", "::bool", "::boolean"]
        .iter()
        .find_map(|cast| argument.strip_suffix(cast.as_bytes()))
        .unwrap_or(argument)
        .trim_ascii()
}

/// Without its quotes, which may be doubled inside another constant.
fn constant(argument: &[u8]) -> &[u8] {
    let quotes = length_of(argument, |it| it == b'\'');
    argument.get(quotes..argument.len().saturating_sub(quotes)).unwrap_or_default()
}

/// Whether it is one constant that shows a name.
fn is_constant(argument: &[u8]) -> bool {
    argument.first() == Some(&b'\'') && is_dotted_name(constant(argument))
}

fn is_dotted_name(name: &[u8]) -> bool {
    !name.is_empty()
        && name.split(|byte| *byte == b'.').all(|part| {
            part.first().is_some_and(|first| is_name_start(*first)) && part.iter().all(|it| is_name_byte(*it))
        })
}

fn after_space(text: &[u8], at: usize) -> usize {
    at + length_of(text.get(at..).unwrap_or_default(), |it| it.is_ascii_whitespace())
}

fn length_of(text: &[u8], is_part: impl Fn(u8) -> bool) -> usize {
    text.iter().position(|byte| !is_part(*byte)).unwrap_or(text.len())
}

fn is_name_start(byte: u8) -> bool {
    byte.is_ascii_alphabetic() || byte == b'_' || byte >= 0x80
}

fn is_name_byte(byte: u8) -> bool {
    is_name_start(byte) || byte.is_ascii_digit() || byte == b'$'
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str, place: Place) -> Mentioned {
        let mut mentioned = Mentioned::default();
        mentioned.read(text.as_bytes(), place);
        mentioned
    }

    fn names(text: &str) -> Vec<String> {
        let mentioned = read(text, Place::Body);
        assert!(!mentioned.unnamed, "{text}");
        mentioned.names.into_iter().collect()
    }

    #[test]
    fn names_that_are_shown_are_read() {
        for text in [
            "SELECT set_config('App.tenant', x || 'y', false)",
            "BEGIN PERFORM pg_catalog.set_config ( 'app.tenant'::text, f(a, 'b,c'), l); END",
            "EXECUTE 'SELECT set_config(''app.tenant'', $1, false)' USING v",
            "set_config(is_local => false, setting_name => 'app.tenant', new_value => 'a')",
            "BEGIN SET app.tenant = '5'; END",
            "EXECUTE 'SET app.tenant TO ' || quote_literal(x)",
            "EXECUTE format('SET SESSION app.tenant = %L', x)",
            "SET \"app\".Tenant = 1",
            "SELECT set_tenant('app.tenant', 5)",
        ] {
            assert_eq!(names(text), ["app.tenant"], "{text}");
        }
        assert_eq!(names("SELECT set_config('app.gr\u{f6}\u{df}e', '', false)"), ["app.gr\u{f6}\u{df}e"]);
        let none: [&str; 7] = [
            "SELECT t.a, f(t.b) FROM s.t WHERE x = 'john.doe@example.com' AND y = '1.5'",
            "SET LOCAL app.tenant = 5",
            "EXECUTE format('SET LOCAL %I = %L', n, v)",
            "PERFORM set_config('app.' || n, v, true)",
            "EXECUTE 'UPDATE ' || t || ' SET ' || c || ' = $1'",
            "EXECUTE format('UPDATE %I SET %I = $1', t, c)",
            "EXECUTE format('SET ROLE %I', r)",
        ];
        for text in none {
            assert!(names(text).is_empty(), "{text}");
        }
    }

    #[test]
    fn names_that_are_put_together_are_said_to_be_missing() {
        for text in [
            "SELECT set_config('app.' || x, 'y', false)",
            "SELECT set_config(name, 'y', false)",
            "SELECT set_config(format('app.%s', x), 'y', false)",
            "EXECUTE 'SELECT set_config(''app.' || x || ''', ''y'', false)'",
            "EXECUTE format('SELECT set_config(''app.%s'', ''y'', false)', x)",
            "EXECUTE 'SET app.' || x || ' = 5'",
            "EXECUTE 'set ' || x || ' = 5'",
            "EXECUTE format('SET %I.%I = 5', a, b)",
            "EXECUTE 'SET SESSION ' || x",
            "sql := $s$SET %s TO 5$s$; ",
            "plpy.execute(\"SET app.{} = 5\".format(x))",
            "SELECT set_config('app.x'",
            "SELECT set_config(new_value => 'x', setting_name => y, is_local => false)",
        ] {
            assert!(read(text, Place::Body).unnamed, "{text}");
        }
        let parameter = "SELECT set_config($1, $2, $3)";
        let mentioned = read(parameter, Place::Statement);
        assert!(!mentioned.unnamed && !mentioned.passed);
        let mentioned = read(parameter, Place::Body);
        assert!(!mentioned.unnamed && mentioned.passed);
    }

    #[test]
    fn names_that_a_function_is_called_with_are_its_callers() {
        let passed = |body: &str| {
            let mut mentioned = Mentioned::default();
            mentioned.read_body(body, "value,name");
            (mentioned.passed, mentioned.unnamed)
        };
        assert_eq!(passed("begin return set_config(name, value, local); end"), (true, false));
        assert_eq!(passed("select set_config($2, $1, false)"), (true, false));
        let others = [
            "begin name := 'app.' || name; return set_config(name, value, local); end",
            "begin select x into name; return set_config(name, value, local); end",
            "begin return set_config(other, value, local); end",
        ];
        for other in others {
            assert_eq!(passed(other), (false, true), "{other}");
        }
    }

    #[test]
    fn functions_that_are_called_are_told() {
        let mentioned = read("SELECT Tenant_is (5), a.other('x') FROM t", Place::Statement);
        assert_eq!(mentioned.called.into_iter().collect::<Vec<_>>(), ["other", "tenant_is"]);
        assert!(mentioned.called_with_more.is_empty());
        let plain =
            ["f()", "f('x', $1::varchar(3), true, NULL, -1.5)", "DO $$ PERFORM f('x', '') $$", "f(n => 'x')"];
        for plain in plain {
            assert!(read(plain, Place::Statement).called_with_more.is_empty(), "{plain}");
        }
        for more in ["f('x' || 'y')", "f(t.name)", "f(E'\\x61')", "f('x', g)", "f(n => x)", "f('it''s')"] {
            assert!(!read(more, Place::Statement).called_with_more.is_empty(), "{more}");
        }
    }

    #[test]
    fn there_is_a_bound() {
        let many: String = (0..2000).map(|n| format!("'app.n{n}' ")).collect();
        let mentioned = read(&many, Place::Statement);
        assert!(mentioned.unnamed && mentioned.names.len() == NAMES_MAX);
        let long = format!("SET app.{} = 1", "x".repeat(NAME_BYTES_MAX));
        assert!(read(&long, Place::Statement).unnamed);
    }
}
