//! The composition root: makes the parts of a running proxy and joins them; then waits for the end.
//!
//! Invariant: the control plane (probes, HTTP, password look-ups, accepting) has a thread and runtime of its own, each shard
//! has another; they speak by channels. Nothing here decides anything about statements. Only this module and `cli` import
//! `config`.

mod cancel_keys;
mod console;
mod failure;
mod flights;
mod hint;
mod house;
mod login_role;
mod parameters;
mod pause;
mod peers;
mod promotion;
mod replication;
mod seats;
mod shards;
mod status;
mod verifiers;

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};

use self::console::Console;
use self::house::House;
use self::pause::Pauser;
use self::seats::Seats;
use self::shards::{Command, Shards};
use self::status::ProxyStatus;
use crate::admin::Status;
use crate::config::{self, Config, PromotionEvents};
use crate::pool::limits::{count_limit, time_limit};
use crate::relay::allowance::Allowance;
use crate::route::Mode;
use crate::session::shard::{Shared, SuspectCause};
use crate::shutdown::Shutdown;
use crate::telemetry::Metrics;
use crate::topology::evidence::{Node, SuspectWhy};
use crate::topology::monitor::{Fence, Monitor, MonitorHandle};
use crate::topology::probe::Credentials;
use crate::topology::watchers::{NoWatch, PromotionWatch};
use crate::{admin, net, pool, route, session, topology};

/// What is left at the end of the drain has so long to tell its clients, and the servers to stop.
const LAST_WORDS_LIMIT: Duration = Duration::from_secs(2);

/// Why the proxy could not start. No text repeats its source: whoever prints it prints the chain.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A listener.
    #[error("cannot listen on {address} (is another program using that address?)")]
    Listen {
        /// The address.
        address: std::net::SocketAddr,
        /// What the system said.
        source: std::io::Error,
    },
    /// A thread, runtime or signal handler.
    #[error("cannot start")]
    Io(#[from] std::io::Error),
    /// The metrics registry.
    #[error(transparent)]
    Metrics(#[from] crate::telemetry::metrics::MetricsError),
}

/// Runs the proxy until SIGTERM or SIGINT, then drains.
///
/// # Errors
/// A listener or thread can't be made.
pub fn run(config: Config) -> Result<(), StartError> {
    let control = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    control.block_on(serve(config))
}

async fn serve(config: Config) -> Result<(), StartError> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let listeners = listen(&config)?;
    let shard_count = config.listen.shard_count().get();
    let metrics = Metrics::new(shard_count, status::labels(&config))?;
    let shutdown = Shutdown::new();

    let (commands, command_receivers) = Shards::channels(shard_count);
    let fence: Arc<dyn Fence> = Arc::new(shards::ShardFence::new(commands.clone()));
    let monitor = start_monitor(&config, fence, metrics.clone());
    let (console, console_requests) = Console::new(&config.admin);
    let control = tokio::runtime::Handle::current();
    let house = House::new(&config, monitor.snapshots.clone(), commands.clone(), console, control);
    let shared = Arc::new(shared(&config, &monitor, &metrics, &house));
    let verifiers = Arc::clone(&house);
    let keys = pool::LoginKeys::new(Box::new(move |user| verifiers.doubt(user)));
    let (registry, mailboxes) = pool::Registry::new(shard_count, keys);
    let receivers = command_receivers.into_iter().zip(mailboxes).collect();
    let pools = (pool_settings(&config), Arc::clone(&registry));
    let shards = Shards::start(receivers, &house, &shared, &pools, &metrics, &monitor)?;

    let seats = Seats::new(&config);
    let status: Arc<dyn Status> = Arc::new(ProxyStatus::new(
        &config,
        monitor.clone(),
        metrics.clone(),
        shutdown.clone(),
        registry,
        (Arc::clone(&seats), Pauser::new(commands.clone(), monitor.clone())),
        Arc::clone(&shared.answer_bytes),
    ));
    let consoles = tokio::spawn(console::run(console_requests, Arc::clone(&status)));
    let http = match config.admin.address {
        Some(address) => {
            let listener = net::listen(address).map_err(|source| StartError::Listen { address, source })?;
            tracing::info!(%address, "admin address open");
            Some(tokio::spawn(admin::http::serve(listener, status, admin::http::Limits::default())))
        }
        None => None,
    };
    for (listener, mode) in &listeners {
        let address = listener.local_addr()?;
        tracing::info!(%address, mode = mode.as_str(), shards = shard_count, "accepting clients");
    }
    let accepting = tokio::spawn(shards::accept(listeners, commands.clone(), seats));
    let signal = tokio::select! {
        _ = terminate.recv() => "SIGTERM",
        _ = interrupt.recv() => "SIGINT",
    };
    tracing::info!(signal, timeout = ?config.shutdown.timeout, "draining: no new clients, transactions end");
    shutdown.begin();
    if config.listen.peers.is_empty() {
        // Whoever comes next may take the addresses.
        accepting.abort();
    }
    let again = async {
        tokio::select! {
            _ = terminate.recv() => "SIGTERM",
            _ = interrupt.recv() => "SIGINT",
        }
    };
    drain(config.shutdown.timeout, shards, &commands, &metrics, again).await;
    consoles.abort();
    drop(http);
    Ok(())
}

/// Lets the shards end by themselves, for so long or until the signal comes `again`; then has them end.
async fn drain(
    timeout: Duration,
    shards: Shards,
    commands: &shards::Commands,
    metrics: &Metrics,
    again: impl Future<Output = &'static str>,
) {
    let tell = |command: fn() -> Command| {
        for shard in commands {
            // A shard that has ended has nobody to tell.
            let _ = shard.send(command());
        }
    };
    let mut ended = std::pin::pin!(shards.ended());
    tell(|| Command::Drain);
    let left = || metrics.total(|shard| shard.clients_active.value().max(0).unsigned_abs());
    tokio::select! {
        () = &mut ended => return tracing::info!("drained"),
        () = tokio::time::sleep(timeout) => tracing::warn!(left = left(), "shutdown_timeout is over"),
        signal = again => tracing::warn!(left = left(), "second {signal}: ending at once"),
    }
    tell(|| Command::CutOff);
    tokio::select! {
        () = &mut ended => {}
        () = tokio::time::sleep(LAST_WORDS_LIMIT) => tracing::warn!(left = left(), "not everybody could be told"),
    }
}

/// All listeners, and what their clients are for.
fn listen(config: &Config) -> Result<Vec<(TcpListener, Mode)>, StartError> {
    let own: HashSet<_> = config.listen.addresses.iter().copied().collect();
    let own = own.into_iter().map(|address| (address, config.routing.mode));
    let further = config
        .listen
        .further()
        .into_iter()
        .flat_map(|(_, addresses, mode)| addresses.iter().map(move |address| (*address, mode)));
    own.chain(further)
        .map(|(address, mode)| {
            let listener = net::listen(address).map_err(|source| StartError::Listen { address, source })?;
            Ok((listener, mode))
        })
        .collect()
}

fn start_monitor(config: &Config, fence: Arc<dyn Fence>, metrics: Metrics) -> MonitorHandle {
    let nodes = config
        .cluster
        .nodes
        .iter()
        .map(|node| Node { weight: node.weight, ..Node::new(node.address.clone()) })
        .collect();
    let settings = topology::reconcile::Settings {
        probe_interval: config.topology.probe_interval,
        rapid_interval: config.topology.rapid_interval,
        sample_interval: config.topology.sample_interval,
        probe_timeout: config.topology.probe_timeout,
        connect_timeout: config.topology.connect_timeout,
        claim_ttl: config.topology.claim_ttl,
        replay_stall_timeout: config.topology.replay_stall_timeout,
        on_unreachable: config.topology.on_primary_unreachable,
        system_id: None,
    };
    let credentials = Credentials {
        user: config.cluster.user.clone(),
        password: config.cluster.password.as_ref().map(|password| password.expose().to_owned()),
        dbname: config.cluster.database.clone(),
    };
    let watch: Arc<dyn PromotionWatch> = match config.topology.promotion_watch {
        PromotionEvents::Watch => {
            Arc::new(promotion::ReplicationWatch::new(credentials.clone(), config.topology.connect_timeout))
        }
        PromotionEvents::Off => Arc::new(NoWatch),
    };
    Monitor::spawn(settings, nodes, credentials, fence, watch, metrics)
}

fn pool_settings(config: &Config) -> pool::Settings {
    let (pool, listen) = (&config.pool, &config.listen);
    let own = |of: &[config::Override]| of.iter().map(|it| (it.name.clone(), own_limits(it))).collect();
    pool::Settings {
        limits: pool::Limits {
            mode: pool.mode,
            size: count(pool.size),
            min_size: count(pool.min_pool_size),
            reserve_size: count(pool.reserve_pool_size),
            reserve_timeout: time_limit(pool.reserve_pool_timeout),
            database_max: count_limit(count(pool.max_db_connections)),
            user_max: count_limit(count(pool.max_user_connections)),
            server_lifetime: pool.server_lifetime,
            server_idle_timeout: time_limit(pool.server_idle_timeout),
            query_wait_timeout: time_limit(pool.query_wait_timeout),
            client_idle_timeout: time_limit(listen.client_idle_timeout),
            idle_transaction_timeout: time_limit(pool.idle_transaction_timeout),
        },
        databases: own(&pool.databases),
        users: own(&pool.users),
        connect_timeout: config.topology.connect_timeout,
        max_prepared_statements: count(pool.max_prepared_statements),
    }
}

fn own_limits(own: &config::Override) -> pool::OwnLimits {
    pool::OwnLimits {
        mode: own.mode,
        size: own.size.map(count),
        min_size: own.min_pool_size.map(count),
        reserve_size: own.reserve_pool_size.map(count),
        connections_max: own.max_connections.map(count),
        server_lifetime: own.server_lifetime,
        query_wait_timeout: own.query_wait_timeout,
        client_idle_timeout: own.client_idle_timeout,
        idle_transaction_timeout: own.idle_transaction_timeout,
    }
}

fn count(count: u64) -> usize {
    usize::try_from(count).unwrap_or(usize::MAX)
}

fn shared(config: &Config, monitor: &MonitorHandle, metrics: &Metrics, house: &Arc<House>) -> Shared {
    let (monitor, metrics) = (monitor.clone(), metrics.clone());
    let of_positions = monitor.clone();
    let [of_databases, of_users, of_sessions] = [(); 3].map(|()| Arc::clone(house));
    let mut routing = route::Settings::clone(&config.routing);
    // It is a term like those of `[routing]`, which listeners, users and sessions may have of their own.
    routing.terms.retry_buffer_bytes = u32::try_from(config.retry.buffer).unwrap_or(u32::MAX);
    Shared {
        settings: session::Settings {
            hold_timeout: config.hold.timeout,
            hold_count_max: usize::try_from(config.hold.max_count).unwrap_or(usize::MAX),
            hold_bytes_max: usize::try_from(config.hold.max_bytes).unwrap_or(usize::MAX),
            retry_attempts: usize::try_from(config.retry.attempts).unwrap_or(usize::MAX),
            retry_primary_budget: pool::Budget { percent: count(config.retry.primary_budget) },
            retry_steer_time: config.retry.steer_time,
            retry_hold_time: config.retry.hold_time,
            standby_stall_buffer_bytes: count(config.retry.standby_stall_buffer),
            standby_stall_timeout: config.retry.standby_stall_timeout,
            routing,
        },
        suspect: Arc::new(move |node, cause| {
            let why = match cause {
                SuspectCause::ConnectionLost => SuspectWhy::ConnectionBroke,
                SuspectCause::ShutdownAnnounced => SuspectWhy::Shutdown,
                SuspectCause::ReadOnly => SuspectWhy::ReadOnly,
            };
            monitor.suspect(node, why);
        }),
        held_count: AtomicUsize::new(0),
        held_bytes: AtomicUsize::new(0),
        reads_on_primary: Arc::default(),
        want_sample: Box::new(move || of_positions.want_sample()),
        answer_bytes: Allowance::new(count(config.retry.buffer_total)),
        forget_database: Box::new(move |database| of_databases.forget_database(database)),
        forget_users: Box::new(move |users| of_users.forget_users(users)),
        server_process: Box::new(move |process_id| of_sessions.server_process(process_id)),
        senders: Arc::default(),
        record_hold: Box::new(move |held: Duration| metrics.record_hold(held)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chain_names_each_cause_once() {
        let source = || std::io::Error::from(std::io::ErrorKind::AddrInUse);
        let address = std::net::SocketAddr::from(([127, 0, 0, 1], 6432));
        let error = anyhow::Error::from(StartError::Listen { address, source: source() });
        let expected =
            "cannot listen on 127.0.0.1:6432 (is another program using that address?): address in use";
        assert_eq!(format!("{error:#}"), expected);
        let error = anyhow::Error::from(StartError::Io(source()));
        assert_eq!(format!("{error:#}"), "cannot start: address in use");
    }
}
