//! The table of all keys: path, flag, kind of value, where it goes.
//!
//! Invariant: whatever the source, a key's value passes through `Key::set` and nothing else, so a flag and the
//! file are held to the same rules. Must not know: where a value came from.

use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use super::model::{AuthMethod, Config, Node, PromotionEvents, Secret};
use super::{nodes, overrides, units};
use crate::classify::{Consistency, NoStandby, Pattern};
use crate::route::Mode;
use crate::telemetry::{LogFormat, LogSettings};
use crate::topology::discovery::fixed::AddressError;
use crate::topology::model::{NodeAddress, OnUnreachable};

/// A configuration that is being put together.
#[derive(Debug, Default)]
pub(super) struct Draft {
    pub(super) config: Config,
    pub(super) password_file: Option<PathBuf>,
}

/// A value as a source gave it.
#[derive(Debug, Clone)]
pub(super) enum Given {
    /// From environment or flags, where everything is text.
    Word(String),
    /// A TOML string.
    Text(String),
    /// A TOML integer.
    Integer(i64),
    /// A TOML array of strings.
    List(Vec<String>),
    /// Anything else: the name of its type.
    Other(&'static str),
}

impl Given {
    fn text(&self) -> Option<&str> {
        match self {
            Self::Word(text) | Self::Text(text) => Some(text),
            _ => None,
        }
    }

    fn integer(&self) -> Option<u64> {
        match self {
            Self::Word(text) => text.trim().parse().ok(),
            Self::Integer(number) => u64::try_from(*number).ok(),
            _ => None,
        }
    }

    fn list(&self) -> Option<Vec<&str>> {
        match self {
            Self::Word(text) => {
                Some(text.split(',').map(str::trim).filter(|part| !part.is_empty()).collect())
            }
            Self::Text(text) => Some(vec![text]),
            Self::List(parts) => Some(parts.iter().map(String::as_str).collect()),
            _ => None,
        }
    }

    fn shown(&self) -> String {
        match self {
            Self::Word(text) | Self::Text(text) => format!("{text:?}"),
            Self::Integer(number) => number.to_string(),
            Self::List(parts) => format!("{parts:?}"),
            Self::Other(kind) => (*kind).to_owned(),
        }
    }
}

type Field<T> = fn(&mut Config) -> &mut T;

/// What a key takes.
enum Kind {
    Duration { zero: bool, field: Field<Duration> },
    Size { zero: bool, field: Field<u64> },
    Count { least: u64, field: Field<u64> },
    Text(Field<String>),
    Secret,
    Nodes,
    Custom { expected: &'static str, set: fn(&mut Draft, &Given) -> Option<()> },
}

/// The highest count any key takes.
const COUNT_MAX: u64 = 1_000_000;
/// The most shards.
const SHARDS_MAX: u64 = 1024;

/// One key.
pub(super) struct Key {
    /// `section.key`
    pub(super) path: &'static str,
    /// Its flag, if it has one. The flag's name in capitals is a second name of its environment variable.
    pub(super) flag: Option<&'static str>,
    kind: Kind,
}

impl Key {
    /// Its section and its name there.
    pub(super) fn parts(&self) -> (&'static str, &'static str) {
        self.path.split_once('.').unwrap_or(("", self.path))
    }

    /// The names of its environment variable; the later wins.
    pub(super) fn variables(&self) -> Vec<String> {
        let variable = |name: &str| format!("PGSTEER_{}", name.replace(['.', '-'], "_").to_uppercase());
        let short = self.flag.map(|flag| variable(flag.trim_start_matches('-')));
        let own = match self.path {
            "cluster.password" => variable("password"),
            path => variable(path),
        };
        short.into_iter().chain([own]).collect()
    }

    /// Takes a value, or says what is expected.
    pub(super) fn set(&self, draft: &mut Draft, given: &Given) -> Result<(), String> {
        self.take(draft, given).ok_or_else(|| match (&self.kind, bad_address(given)) {
            (Kind::Secret, _) => format!("expected {}", self.expected()),
            (Kind::Nodes, Some(error)) => error.to_string(),
            _ => format!("expected {}, got {}", self.expected(), given.shown()),
        })
    }

    fn take(&self, draft: &mut Draft, given: &Given) -> Option<()> {
        let config = &mut draft.config;
        match self.kind {
            Kind::Duration { zero, field } => {
                let duration = units::duration(given.text()?)?;
                *field(config) = (zero || !duration.is_zero()).then_some(duration)?;
            }
            Kind::Size { zero, field } => {
                *field(config) = units::size(given.text()?).filter(|size| zero || *size > 0)?;
            }
            Kind::Count { least, field } => {
                *field(config) = given.integer().filter(|count| (least..=COUNT_MAX).contains(count))?;
            }
            Kind::Text(field) => *field(config) = given.text().filter(|text| !text.is_empty())?.to_owned(),
            Kind::Secret => {
                let text = given.text().filter(|text| !text.is_empty())?;
                config.cluster.password = Some(Secret::new(text));
            }
            Kind::Nodes => config.cluster.nodes = node_list(given)?,
            Kind::Custom { set, .. } => set(draft, given)?,
        }
        Some(())
    }

    fn expected(&self) -> String {
        match self.kind {
            Kind::Duration { zero: true, .. } => units::DURATION.to_owned(),
            Kind::Duration { zero: false, .. } => format!("{}, more than zero", units::DURATION),
            Kind::Size { zero: true, .. } => units::SIZE.to_owned(),
            Kind::Size { zero: false, .. } => format!("{}, more than zero", units::SIZE),
            Kind::Count { least, .. } => format!("a whole number from {least} to {COUNT_MAX}"),
            Kind::Text(_) | Kind::Secret => "a text that is not empty".to_owned(),
            Kind::Nodes => "a list of host:port, such as [\"db1:5432\", \"db2:5432\"]".to_owned(),
            Kind::Custom { expected, .. } => expected.to_owned(),
        }
    }
}

const fn key(path: &'static str, kind: Kind) -> Key {
    Key { path, flag: None, kind }
}

const fn flagged(path: &'static str, flag: &'static str, kind: Kind) -> Key {
    Key { path, flag: Some(flag), kind }
}

const fn duration(field: Field<Duration>) -> Kind {
    Kind::Duration { zero: false, field }
}

/// Zero means that there is no limit.
const fn or_none(field: Field<Duration>) -> Kind {
    Kind::Duration { zero: true, field }
}

const fn custom(expected: &'static str, set: fn(&mut Draft, &Given) -> Option<()>) -> Kind {
    Kind::Custom { expected, set }
}

/// What the keys of listeners take.
const ADDRESSES: &str = "IP:port, or a list of them, such as \"127.0.0.1:6432\"";

/// What the keys of functions take.
const FUNCTIONS: &str = "a list of functions' names, such as [\"app.report\", \"reports.*\"]; empty for none";

/// Every key, in the order of the reference file.
pub(super) const KEYS: [Key; 74] = [
    flagged(
        "listen.address",
        "--listen",
        custom(ADDRESSES, |draft, given| addresses(&mut draft.config.listen.addresses, given)),
    ),
    flagged(
        "listen.primary_address",
        "--listen-primary",
        custom(ADDRESSES, |draft, given| addresses(&mut draft.config.listen.primary_addresses, given)),
    ),
    flagged(
        "listen.standby_address",
        "--listen-standby",
        custom(ADDRESSES, |draft, given| addresses(&mut draft.config.listen.standby_addresses, given)),
    ),
    flagged(
        "listen.prefer_standby_address",
        "--listen-prefer-standby",
        custom(ADDRESSES, |draft, given| addresses(&mut draft.config.listen.prefer_standby_addresses, given)),
    ),
    key("listen.max_client_conn", Kind::Count { least: 1, field: |c| &mut c.listen.max_client_conn }),
    key(
        "listen.max_db_client_connections",
        Kind::Count { least: 0, field: |c| &mut c.listen.max_db_client_connections },
    ),
    key(
        "listen.max_user_client_connections",
        Kind::Count { least: 0, field: |c| &mut c.listen.max_user_client_connections },
    ),
    key("listen.login_timeout", duration(|c| &mut c.listen.login_timeout)),
    flagged(
        "listen.peers",
        "--peers",
        custom("a list of host:port, such as \"pgsteer-peers:6432\"; empty for none", peers),
    ),
    key("listen.client_idle_timeout", or_none(|c| &mut c.listen.client_idle_timeout)),
    flagged("listen.shards", "--shards", custom("\"auto\" or a whole number from 1 to 1024", shards)),
    flagged("admin.address", "--admin", custom("IP:port, such as \"127.0.0.1:9127\", or \"off\"", admin)),
    key("admin.console_users", custom("a list of user names; empty for none", console_users)),
    key("admin.console_database", Kind::Text(|c| &mut c.admin.console_database)),
    flagged("cluster.nodes", "--nodes", Kind::Nodes),
    flagged("cluster.user", "--user", Kind::Text(|c| &mut c.cluster.user)),
    key("cluster.password", Kind::Secret),
    flagged("cluster.password_file", "--password-file", custom("the path of a file", password_file)),
    flagged("cluster.database", "--database", Kind::Text(|c| &mut c.cluster.database)),
    flagged("auth.type", "--auth", custom("\"scram-sha-256\" or \"trust\"", auth_type)),
    key("auth.query", custom("a query with the placeholder $1 for the user name", auth_query)),
    key("auth.cache_ttl", Kind::Duration { zero: true, field: |c| &mut c.auth.cache_ttl }),
    key("topology.probe_interval", duration(|c| &mut c.topology.probe_interval)),
    key("topology.rapid_interval", duration(|c| &mut c.topology.rapid_interval)),
    key("topology.sample_interval", duration(|c| &mut c.topology.sample_interval)),
    key("topology.probe_timeout", duration(|c| &mut c.topology.probe_timeout)),
    key("topology.connect_timeout", duration(|c| &mut c.topology.connect_timeout)),
    key("topology.claim_ttl", duration(|c| &mut c.topology.claim_ttl)),
    key(
        "topology.replay_stall_timeout",
        Kind::Duration { zero: true, field: |c| &mut c.topology.replay_stall_timeout },
    ),
    key("topology.promotion_watch", custom("\"on\" or \"off\"", promotion_watch)),
    key("topology.on_primary_unreachable", custom("\"hold\" or \"stale-reads\"", on_primary_unreachable)),
    flagged("routing.mode", "--mode", custom("\"split\" or \"primary\"", mode)),
    key("routing.consistency", custom("\"eventual\", \"session\" or \"primary\"", consistency)),
    flagged(
        "routing.max_lag",
        "--max-lag",
        custom(units::TERM, |draft, given| term(&mut draft.config.routing.terms.max_lag, given)),
    ),
    key("routing.max_lag_bytes", custom(overrides::LAG_BYTES, max_lag_bytes)),
    key(
        "routing.wait_for_standby",
        custom(units::TERM, |draft, given| term(&mut draft.config.routing.terms.wait_for_standby, given)),
    ),
    key("routing.no_standby", custom("\"primary\" or \"error\"", no_standby)),
    key("routing.primary_read_limit", custom("a whole number; 0 for no limit", primary_read_limit)),
    key("routing.catch_up_wait", or_none(|c| &mut c.routing.catch_up_wait)),
    key("routing.recent_writes", or_none(|c| &mut c.routing.recent_writes)),
    key(
        "routing.read_functions",
        custom(FUNCTIONS, |draft, given| functions(&mut draft.config.routing.functions.read, given)),
    ),
    key(
        "routing.write_functions",
        custom(FUNCTIONS, |draft, given| functions(&mut draft.config.routing.functions.write, given)),
    ),
    flagged("pool.mode", "--pool-mode", custom(overrides::POOL_MODE, pool_mode)),
    flagged("pool.size", "--pool-size", Kind::Count { least: 1, field: |c| &mut c.pool.size }),
    key("pool.min_pool_size", Kind::Count { least: 0, field: |c| &mut c.pool.min_pool_size }),
    key("pool.reserve_pool_size", Kind::Count { least: 0, field: |c| &mut c.pool.reserve_pool_size }),
    key("pool.reserve_pool_timeout", or_none(|c| &mut c.pool.reserve_pool_timeout)),
    key("pool.max_db_connections", Kind::Count { least: 0, field: |c| &mut c.pool.max_db_connections }),
    key("pool.max_user_connections", Kind::Count { least: 0, field: |c| &mut c.pool.max_user_connections }),
    key("pool.server_lifetime", or_none(|c| &mut c.pool.server_lifetime)),
    key("pool.server_idle_timeout", or_none(|c| &mut c.pool.server_idle_timeout)),
    key("pool.query_wait_timeout", or_none(|c| &mut c.pool.query_wait_timeout)),
    key("pool.idle_transaction_timeout", or_none(|c| &mut c.pool.idle_transaction_timeout)),
    key(
        "pool.max_prepared_statements",
        Kind::Count { least: 1, field: |c| &mut c.pool.max_prepared_statements },
    ),
    flagged("hold.timeout", "--hold-timeout", duration(|c| &mut c.hold.timeout)),
    key("hold.max_count", Kind::Count { least: 1, field: |c| &mut c.hold.max_count }),
    key("hold.max_bytes", Kind::Size { zero: false, field: |c| &mut c.hold.max_bytes }),
    key("retry.buffer", Kind::Size { zero: true, field: |c| &mut c.retry.buffer }),
    key("retry.hold_time", Kind::Duration { zero: true, field: |c| &mut c.retry.hold_time }),
    key("retry.buffer_total", Kind::Size { zero: true, field: |c| &mut c.retry.buffer_total }),
    key("retry.attempts", Kind::Count { least: 0, field: |c| &mut c.retry.attempts }),
    key("retry.primary_budget", custom("a share from \"0%\" to \"100%\"", primary_budget)),
    key("retry.steer_time", or_none(|c| &mut c.retry.steer_time)),
    key("retry.standby_stall_timeout", duration(|c| &mut c.retry.standby_stall_timeout)),
    key(
        "retry.standby_stall_buffer",
        Kind::Size { zero: true, field: |c| &mut c.retry.standby_stall_buffer },
    ),
    flagged("shutdown.timeout", "--shutdown-timeout", duration(|c| &mut c.shutdown.timeout)),
    flagged(
        "log.level",
        "--log-level",
        custom("a level (error, warn, info, debug, trace, off) or directives", level),
    ),
    flagged("log.format", "--log-format", custom("\"text\" or \"json\"", format)),
    key("cluster.node", custom("one [[cluster.node]] table for each node", |_, _| None)),
    key("pool.database", custom("one [[pool.database]] table for each database", |_, _| None)),
    key("pool.user", custom("one [[pool.user]] table for each user", |_, _| None)),
    key("routing.listener", custom("one [[routing.listener]] table for each kind of listener", |_, _| None)),
    key("routing.user", custom("one [[routing.user]] table for each user", |_, _| None)),
    key("routing.database", custom("one [[routing.database]] table for each database", |_, _| None)),
];

fn addresses(field: &mut Vec<SocketAddr>, given: &Given) -> Option<()> {
    let parsed: Result<Vec<SocketAddr>, _> = given.list()?.into_iter().map(str::parse).collect();
    *field = parsed.ok().filter(|addresses| !addresses.is_empty())?;
    Some(())
}

fn functions(field: &mut Vec<Pattern>, given: &Given) -> Option<()> {
    *field = given.list()?.into_iter().map(|text| Pattern::parse(text).ok()).collect::<Option<_>>()?;
    Some(())
}

fn peers(draft: &mut Draft, given: &Given) -> Option<()> {
    let parsed = given.list()?.into_iter().map(|text| {
        let address: NodeAddress = text.parse().ok()?;
        // The port that is taken where none is given is a server's.
        let complete = !address.host.starts_with('/') && text.ends_with(&format!(":{}", address.port));
        complete.then_some(address)
    });
    draft.config.listen.peers = parsed.collect::<Option<_>>()?;
    Some(())
}

fn shards(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.config.listen.shards = if given.text() == Some("auto") {
        None
    } else {
        let count = given.integer().filter(|count| *count <= SHARDS_MAX)?;
        Some(NonZeroUsize::new(usize::try_from(count).ok()?)?)
    };
    Some(())
}

fn admin(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.config.admin.address = match given.text()? {
        "off" => None,
        text => Some(text.parse().ok()?),
    };
    Some(())
}

fn console_users(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.config.admin.console_users = given.list()?.into_iter().map(str::to_owned).collect();
    Some(())
}

fn node_list(given: &Given) -> Option<Vec<Node>> {
    let listed = given.list()?.into_iter().enumerate().map(|(index, text)| {
        let address = text.parse().ok()?;
        Some(Node { name: nodes::default_name(index), address, weight: nodes::DEFAULT_WEIGHT })
    });
    listed.collect()
}

/// What is wrong with the first of the addresses that is no good.
fn bad_address(given: &Given) -> Option<AddressError> {
    given.list()?.into_iter().find_map(|text| text.parse::<NodeAddress>().err())
}

fn password_file(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.password_file = Some(PathBuf::from(given.text().filter(|text| !text.is_empty())?));
    Some(())
}

fn auth_type(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.config.auth.method = match given.text()? {
        "scram-sha-256" => AuthMethod::ScramSha256,
        "trust" => AuthMethod::Trust,
        _ => return None,
    };
    Some(())
}

fn auth_query(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.config.auth.query = given.text().filter(|query| query.contains("$1"))?.to_owned();
    Some(())
}

fn mode(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.config.routing.mode = match given.text()? {
        "split" => Mode::Split,
        "primary" => Mode::Primary,
        _ => return None,
    };
    Some(())
}

fn consistency(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.config.routing.terms.consistency = Consistency::parse(given.text()?)?;
    Some(())
}

fn no_standby(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.config.routing.terms.no_standby = NoStandby::parse(given.text()?)?;
    Some(())
}

fn term(field: &mut Duration, given: &Given) -> Option<()> {
    *field = units::term(given.text()?)?;
    Some(())
}

fn max_lag_bytes(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.config.routing.terms.max_lag_bytes = overrides::lag_bytes(given.text()?)?;
    Some(())
}

fn primary_read_limit(draft: &mut Draft, given: &Given) -> Option<()> {
    let limit = given.integer().filter(|limit| *limit <= COUNT_MAX)?;
    draft.config.routing.primary_read_limit = usize::try_from(limit).ok()?;
    Some(())
}

fn primary_budget(draft: &mut Draft, given: &Given) -> Option<()> {
    let percent: u64 = given.text()?.trim().strip_suffix('%')?.trim_end().parse().ok()?;
    draft.config.retry.primary_budget = (percent <= 100).then_some(percent)?;
    Some(())
}

fn promotion_watch(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.config.topology.promotion_watch = match given.text()? {
        "on" => PromotionEvents::Watch,
        "off" => PromotionEvents::Off,
        _ => return None,
    };
    Some(())
}

fn on_primary_unreachable(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.config.topology.on_primary_unreachable = match given.text()? {
        "hold" => OnUnreachable::Hold,
        "stale-reads" => OnUnreachable::StaleReads,
        _ => return None,
    };
    Some(())
}

fn pool_mode(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.config.pool.mode = overrides::pool_mode(given.text()?)?;
    Some(())
}

fn level(draft: &mut Draft, given: &Given) -> Option<()> {
    let candidate = LogSettings { filter: given.text()?.to_owned(), ..draft.config.log.clone() };
    candidate.check().ok()?;
    draft.config.log = candidate;
    Some(())
}

fn format(draft: &mut Draft, given: &Given) -> Option<()> {
    draft.config.log.format = match given.text()? {
        "text" => LogFormat::Text,
        "json" => LogFormat::Json,
        _ => return None,
    };
    Some(())
}
