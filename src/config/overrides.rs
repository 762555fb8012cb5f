//! What one listener, database or user has of its own: the limits written as `[[pool.database]]` and `[[pool.user]]` tables, the terms of
//! reads written as `[[routing.listener]]`, `[[routing.user]]` and `[[routing.database]]` tables.
//!
//! Invariant: a value in a table has the name, the form and the meaning of the value for all, and zero lifts a limit; every
//! table is looked at, and every fault in it reported. Must not know: the other keys.

use std::ops::Range;
use std::time::Duration;

use toml_edit::{Item, TableLike};

use super::model::Override;
use super::units;
use crate::classify::{AskedTerms, LagBytes, TermError};
use crate::pool::Mode;
use crate::route;

/// The highest count.
const COUNT_MAX: i64 = 1_000_000;

/// What is wrong with one field: its name (empty for the whole table), its span, what is expected.
pub(super) type FieldFault = (&'static str, Option<Range<usize>>, String);

/// Where a value goes.
enum Field {
    Mode,
    Count { least: i64, field: fn(&mut Override) -> &mut Option<u64> },
    Duration(fn(&mut Override) -> &mut Option<Duration>),
}

/// Both kinds of table, and the keys of each.
pub(super) struct Tables {
    /// The key of the tables.
    pub(super) path: &'static str,
    fields: &'static [(&'static str, Field)],
}

/// `[[pool.database]]`
pub(super) const DATABASES: Tables = Tables {
    path: "pool.database",
    fields: &[
        ("mode", Field::Mode),
        ("size", Field::Count { least: 1, field: |own| &mut own.size }),
        ("min_pool_size", Field::Count { least: 0, field: |own| &mut own.min_pool_size }),
        ("reserve_pool_size", Field::Count { least: 0, field: |own| &mut own.reserve_pool_size }),
        ("max_db_connections", Field::Count { least: 0, field: |own| &mut own.max_connections }),
        (
            "max_db_client_connections",
            Field::Count { least: 0, field: |own| &mut own.max_client_connections },
        ),
        ("server_lifetime", Field::Duration(|own| &mut own.server_lifetime)),
        ("query_wait_timeout", Field::Duration(|own| &mut own.query_wait_timeout)),
    ],
};

/// `[[pool.user]]`
pub(super) const USERS: Tables = Tables {
    path: "pool.user",
    fields: &[
        ("mode", Field::Mode),
        ("size", Field::Count { least: 1, field: |own| &mut own.size }),
        ("reserve_pool_size", Field::Count { least: 0, field: |own| &mut own.reserve_pool_size }),
        ("max_user_connections", Field::Count { least: 0, field: |own| &mut own.max_connections }),
        (
            "max_user_client_connections",
            Field::Count { least: 0, field: |own| &mut own.max_client_connections },
        ),
        ("query_wait_timeout", Field::Duration(|own| &mut own.query_wait_timeout)),
        ("client_idle_timeout", Field::Duration(|own| &mut own.client_idle_timeout)),
        ("idle_transaction_timeout", Field::Duration(|own| &mut own.idle_transaction_timeout)),
    ],
};

impl Tables {
    /// Reads one table; `None` when it has no usable name.
    pub(super) fn read(
        &self,
        table: &dyn TableLike,
        faults: &mut Vec<FieldFault>,
    ) -> Option<(String, Override)> {
        let name = name_of(table, faults)?;
        let mut own = Override { name: name.clone(), ..Override::default() };
        for (name, item) in table.iter().filter(|(name, _)| *name != "name") {
            match self.fields.iter().find(|(field, _)| *field == name) {
                None => {
                    let known: Vec<&str> = self.fields.iter().map(|(field, _)| *field).collect();
                    let message = format!("unknown key {name:?} (expected name, {})", known.join(", "));
                    faults.push(("", item.span(), message));
                }
                Some((name, field)) => {
                    if let Err(expected) = field.set(&mut own, item) {
                        faults.push((name, item.span(), format!("expected {expected}")));
                    }
                }
            }
        }
        Some((name, own))
    }
}

fn name_of(table: &dyn TableLike, faults: &mut Vec<FieldFault>) -> Option<String> {
    let name = table.get("name").and_then(Item::as_str).filter(|name| !name.is_empty());
    if name.is_none() {
        let span = table.get("name").and_then(Item::span);
        faults.push(("name", span, "expected a text that is not empty".to_owned()));
    }
    name.map(str::to_owned)
}

/// `[[routing.listener]]`, by the word for what it is for.
pub(super) const LISTENER_TERMS: &str = "routing.listener";
/// `[[routing.user]]`
pub(super) const USER_TERMS: &str = "routing.user";
/// `[[routing.database]]`
pub(super) const DATABASE_TERMS: &str = "routing.database";

/// What is expected of a lag in bytes.
pub(super) const LAG_BYTES: &str =
    "a size with a unit (B, KiB, MiB, GiB, kB, MB, GB), such as \"16MiB\", or \"off\"";

/// A lag in bytes; zero is one.
pub(super) fn lag_bytes(text: &str) -> Option<LagBytes> {
    if text == "off" {
        return Some(LagBytes::UNBOUNDED);
    }
    units::size(text).map(LagBytes::at_most)
}

/// What a listener is for, by its word.
pub(super) fn listener(word: &str) -> Option<route::Mode> {
    use route::Mode::{PreferStandby, Primary, Split, Standby};
    [Split, Primary, Standby, PreferStandby].into_iter().find(|mode| mode.as_str() == word)
}

/// Reads one table of terms; `None` when it has no usable name.
pub(super) fn terms(table: &dyn TableLike, faults: &mut Vec<FieldFault>) -> Option<(String, AskedTerms)> {
    let name = name_of(table, faults)?;
    let mut terms = AskedTerms::default();
    for (key, item) in table.iter().filter(|(key, _)| *key != "name") {
        let Some(field) = AskedTerms::NAMES.into_iter().find(|field| *field == key) else {
            let known = AskedTerms::NAMES.join(", ");
            faults.push(("", item.span(), format!("unknown key {key:?} (expected name, {known})")));
            continue;
        };
        // Values have units here as everywhere in the file.
        let text = item.as_str().filter(|text| !text.is_empty());
        let expected = match field {
            "max_lag" | "wait_for_standby" if text.is_none_or(|text| units::term(text).is_none()) => {
                Some(units::TERM.to_owned())
            }
            "max_lag_bytes" if text.is_none_or(|text| lag_bytes(text).is_none()) => {
                Some(LAG_BYTES.to_owned())
            }
            "retry_buffer" if text.is_none_or(|text| units::size(text).is_none()) => {
                Some(units::SIZE.to_owned())
            }
            _ => match terms.set(field, text.unwrap_or("-")) {
                Ok(()) => None,
                Err(TermError::Value(expected)) => Some(expected.to_owned()),
                Err(error) => Some(error.to_string()),
            },
        };
        faults.extend(expected.map(|expected| (field, item.span(), format!("expected {expected}"))));
    }
    Some((name, terms))
}

impl Field {
    /// Takes a value, or says what is expected.
    fn set(&self, own: &mut Override, item: &Item) -> Result<(), String> {
        match self {
            Self::Mode => {
                let mode = item.as_str().and_then(pool_mode);
                own.mode = Some(mode.ok_or_else(|| POOL_MODE.to_owned())?);
            }
            Self::Count { least, field } => {
                let count = item.as_integer().filter(|count| (*least..=COUNT_MAX).contains(count));
                let count = count.and_then(|count| u64::try_from(count).ok());
                *field(own) =
                    Some(count.ok_or_else(|| format!("a whole number from {least} to {COUNT_MAX}"))?);
            }
            Self::Duration(field) => {
                let duration = item.as_str().and_then(units::duration);
                *field(own) = Some(duration.ok_or_else(|| units::DURATION.to_owned())?);
            }
        }
        Ok(())
    }
}

/// What is expected of a pool mode.
pub(super) const POOL_MODE: &str = "\"transaction\" or \"session\"";

/// A pool mode by its word.
pub(super) fn pool_mode(word: &str) -> Option<Mode> {
    [Mode::Transaction, Mode::Session].into_iter().find(|mode| mode.as_str() == word)
}
