//! Configuration from file, environment and flags: defaults, precedence, and every fault with its place.
//!
//! Invariant under test: all faults come at once, each with line, key and what is expected; flags win over the
//! environment, the environment over the file; a secret is never shown.

use std::num::NonZeroUsize;
use std::time::Duration;

use clap::Parser;
use pgsteer::classify::{Consistency, NoStandby};
use pgsteer::config::{
    AuthMethod, Config, Faults, Node, Origin, Override, RunArgs, Secret, SourceFile, Sources, key_paths, load,
};
use pgsteer::pool::Mode as PoolMode;
use pgsteer::route::Mode;
use pgsteer::telemetry::LogFormat;
use pgsteer::topology::model::NodeAddress;

const REFERENCE: &str = include_str!("../config/pgsteer.toml");

#[derive(Parser)]
struct Command {
    #[command(flatten)]
    run: RunArgs,
}

fn sources(text: &str, environment: &[(&str, &str)], flags: &[&str]) -> Sources {
    let command = Command::try_parse_from(["pgsteer"].iter().chain(flags)).expect("flags parse");
    Sources {
        file: Some(SourceFile { name: "p.toml".to_owned(), text: text.to_owned() }),
        environment: environment
            .iter()
            .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
            .collect(),
        flags: command.run.flags(),
    }
}

fn loaded(text: &str, environment: &[(&str, &str)], flags: &[&str]) -> Config {
    load(sources(text, environment, flags)).unwrap_or_else(|faults| panic!("{faults}"))
}

fn faults(text: &str, environment: &[(&str, &str)], flags: &[&str]) -> Faults {
    load(sources(text, environment, flags)).expect_err("there are faults")
}

/// The faults of a file that names a node and holds this text after it.
fn faults_of(text: &str) -> Vec<String> {
    faults(text, &[], &["--nodes", "h1"]).to_string().lines().map(str::to_owned).collect()
}

fn node(name: &str, host: &str, port: u16) -> Node {
    Node { name: name.to_owned(), address: NodeAddress { host: host.to_owned(), port }, weight: 1 }
}

#[test]
fn nodes_and_listen_are_enough() {
    let mut given = sources("", &[], &["--nodes", "h1:5432,h2:5433", "--listen", "127.0.0.1:7000"]);
    given.file = None;
    let config = load(given).expect("enough");
    assert_eq!(config.cluster.nodes, [node("n1", "h1", 5432), node("n2", "h2", 5433)]);
    assert_eq!(config.listen.addresses, ["127.0.0.1:7000".parse().expect("address")]);
    assert_eq!(config.cluster.user, "postgres");
    assert_eq!(config.cluster.password, None);
    assert!(config.listen.shard_count().get() >= 1);
    assert_eq!(config.admin.address, None);
}

#[test]
fn the_reference_file_holds_exactly_the_defaults() {
    let mut expected = Config::default();
    expected.cluster.nodes = vec![node("n1", "h1", 5432)];
    assert_eq!(loaded(REFERENCE, &[], &["--nodes", "h1:5432"]), expected);
}

#[test]
fn the_reference_file_names_every_key() {
    for path in key_paths() {
        let (section, key) = path.split_once('.').expect("section.key");
        let is_table = REFERENCE.lines().any(|line| line == format!("# [[{path}]]"));
        let found = is_table || {
            let start = REFERENCE.find(&format!("\n[{section}]\n")).expect("section") + 2;
            let rest = &REFERENCE[start..];
            let body = &rest[..rest.find("\n[").unwrap_or(rest.len())];
            body.lines().any(|line| line.trim_start_matches("# ").starts_with(&format!("{key} = ")))
        };
        assert!(found, "{path} is missing in config/pgsteer.toml");
    }
}

#[test]
fn commented_values_of_the_reference_file_are_valid_too() {
    let text: String = REFERENCE
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if rest.starts_with("nodes = ") || rest.starts_with("password = ") => rest,
            _ => line,
        })
        .map(|line| format!("{line}\n"))
        .collect();
    let config = loaded(&text, &[], &[]);
    assert_eq!(config.cluster.nodes.len(), 2);
    assert!(config.cluster.password.is_some());
}

#[test]
fn flags_win_over_environment_over_file() {
    let text = "[cluster]\nnodes = [\"file\"]\n[pool]\nsize = 1\n[hold]\ntimeout = \"1s\"\n[routing]\nmax_lag = \"1ms\"\n";
    let environment = [
        ("PGSTEER_POOL_SIZE", "2"),
        ("PGSTEER_HOLD_TIMEOUT", "2s"),
        ("PGSTEER_RETRY_BUFFER", "1MiB"),
        ("PGSTEER_NODES", "env1, env2"),
        ("PGSTEER_LOG_FORMAT", ""),
        ("PGUSER", "alice"),
    ];
    let config = loaded(text, &environment, &["--pool-size", "3", "--mode", "primary"]);
    assert_eq!(config.pool.size, 3, "flag");
    assert_eq!(config.hold.timeout, Duration::from_secs(2), "environment");
    assert_eq!(config.routing.terms.max_lag, Duration::from_millis(1), "file");
    assert_eq!(config.routing.mode, Mode::Primary);
    assert_eq!(config.retry.buffer, 1 << 20);
    assert_eq!(config.cluster.nodes, [node("n1", "env1", 5432), node("n2", "env2", 5432)]);
    assert_eq!(config.log.format, LogFormat::Text, "an empty variable is none");
    assert_eq!(config.cluster.user, "alice");
    let config = loaded("[cluster]\nnodes = [\"a\"]\nuser = \"bob\"", &environment, &[]);
    assert_eq!(config.cluster.user, "bob", "PGUSER is a default, the file wins");
}

#[test]
fn every_flag_reaches_its_key() {
    let flags = "--nodes h1 --listen 0.0.0.0:1,[::]:2 --admin 127.0.0.1:3 --user u --database d --auth trust \
                 --max-lag 2s --mode split --pool-size 4 --shards 5 --log-level debug --log-format json \
                 --hold-timeout 6s --shutdown-timeout 7s --peers pods:6432,[::1]:2 --pool-mode session \
                 --listen-primary [::]:3 --listen-standby [::]:4,[::]:5 --listen-prefer-standby [::]:6";
    let config = loaded("", &[], &flags.split_whitespace().collect::<Vec<_>>());
    assert_eq!(config.listen.addresses.len(), 2);
    let further: Vec<usize> =
        config.listen.further().iter().map(|(_, addresses, _)| addresses.len()).collect();
    assert_eq!(further, [1, 2, 1]);
    assert_eq!(config.admin.address, Some("127.0.0.1:3".parse().expect("address")));
    assert_eq!((&*config.cluster.user, &*config.cluster.database), ("u", "d"));
    assert_eq!(config.auth.method, AuthMethod::Trust);
    assert_eq!(config.listen.shards, NonZeroUsize::new(5));
    let peers: Vec<String> = config.listen.peers.iter().map(ToString::to_string).collect();
    assert_eq!(peers, ["pods:6432", "[::1]:2"]);
    assert_eq!((config.pool.size, config.pool.mode), (4, PoolMode::Session));
    assert_eq!((&*config.log.filter, config.log.format), ("debug", LogFormat::Json));
    assert_eq!(config.shutdown.timeout, Duration::from_secs(7));
}

/// What an address is for must be clear.
#[test]
fn an_address_is_one_thing_only() {
    let text = "[cluster]\nnodes = [\"a\"]\n[listen]\naddress = \"[::]:1\"\nprimary_address = [\"[::]:2\", \"[::]:2\"]\n\
                standby_address = \"[::]:1\"\nprefer_standby_address = \"[::]:3\"\n[admin]\naddress = \"[::]:3\"\n";
    assert_eq!(
        faults_of(text),
        [
            "p.toml:5 listen.primary_address: [::]:2 is listed twice",
            "p.toml:6 listen.standby_address: [::]:1 is also in listen.address",
            "p.toml:9 admin.address: [::]:3 is also an address for clients",
        ]
    );
}

/// A peer has no usual port, and is reached by TCP.
#[test]
fn peers_need_a_port() {
    for bad in ["pods", "[::1]", "/tmp:6432", "pods:6432,other"] {
        let found = faults("[cluster]\nnodes = [\"a\"]", &[("PGSTEER_PEERS", bad)], &[]).to_string();
        assert!(
            found.starts_with("environment PGSTEER_PEERS listen.peers: expected a list of host:port"),
            "{found}"
        );
    }
}

#[test]
fn all_faults_come_at_once_with_line_and_key() {
    let text = "[listen]\naddress = \"localhost\"\nmax_client_conn = \"many\"\n\n[pool]\nsize = 0\n\
                server_lifetime = 3600\nserver_idle_timeout = \"10 parsecs\"\n[hold]\nmax_bytes = \"0B\"\n\
                timout = \"1s\"\n[rooting]\nmode = \"split\"\n[routing]\nmode = \"random\"\nconsistency = \"strong\"\n";
    let found =
        faults(text, &[("PGSTEER_RETRY_ATTEMPTS", "-1"), ("PGSTEER_POOLSIZE", "1")], &["--shards", "0"]);
    let lines: Vec<String> = found.to_string().lines().map(str::to_owned).collect();
    let expected = [
        "p.toml:2 listen.address: expected IP:port, or a list of them, such as \"127.0.0.1:6432\", got \"localhost\"",
        "p.toml:3 listen.max_client_conn: expected a whole number from 1 to 1000000, got \"many\"",
        "p.toml:6 pool.size: expected a whole number from 1 to 1000000, got 0",
        "p.toml:7 pool.server_lifetime: expected a duration with a unit (us, ms, s, m or min, h, d), such as \"100ms\", got 3600",
        "p.toml:8 pool.server_idle_timeout: expected a duration with a unit (us, ms, s, m or min, h, d), such as \"100ms\", got \"10 parsecs\"",
        "p.toml:10 hold.max_bytes: expected a size with a unit (B, KiB, MiB, GiB, kB, MB, GB), such as \"64KiB\", more than zero, got \"0B\"",
        "p.toml:11 hold.timout: unknown key; did you mean \"timeout\"?",
        "p.toml:12 rooting: unknown section; did you mean \"routing\"?",
        "p.toml:15 routing.mode: expected \"split\" or \"primary\", got \"random\"",
        "p.toml:16 routing.consistency: expected \"eventual\", \"session\" or \"primary\", got \"strong\"",
        "environment PGSTEER_RETRY_ATTEMPTS retry.attempts: expected a whole number from 0 to 1000000, got \"-1\"",
        "environment PGSTEER_POOLSIZE: unknown variable; did you mean PGSTEER_POOL_SIZE?",
        "flag --shards listen.shards: expected \"auto\" or a whole number from 1 to 1024, got \"0\"",
        "configuration: cluster.nodes: no nodes: give --nodes host:port,..., PGSTEER_NODES, or nodes under [cluster] in p.toml",
    ];
    for (found, expected) in lines.iter().zip(&expected) {
        assert_eq!(found, expected);
    }
    assert_eq!(lines.len(), expected.len(), "{found}");
    assert_eq!(found.list()[0].origin, Origin::File { name: "p.toml".to_owned(), line: 2 });
}

#[test]
fn a_key_in_the_wrong_place_is_pointed_home() {
    assert_eq!(
        faults_of("max_lag = \"1s\""),
        ["p.toml:1 max_lag: unknown section; did you mean \"routing.max_lag\"?"]
    );
    assert_eq!(
        faults_of("[hold]\n\nmax_lag = \"1s\"")[0],
        "p.toml:3 hold.max_lag: unknown key; did you mean \"routing.max_lag\"?"
    );
    assert_eq!(
        faults_of("[hold]\nzzzzzzzzz = 1")[0],
        "p.toml:2 hold.zzzzzzzzz: unknown key; [hold] has timeout, max_count, max_bytes"
    );
    assert_eq!(faults_of("hold = 3")[0], "p.toml:1 hold: expected a section [hold]");
}

#[test]
fn a_file_that_is_not_toml_is_one_fault() {
    let lines = faults("[pool]\nsize = 1\nsize = 2\n", &[], &[]).to_string();
    assert!(lines.starts_with("p.toml:3: not TOML: "), "{lines}");
    assert_eq!(lines.lines().count(), 1, "{lines}");
    assert!(faults_of("[pool\n")[0].starts_with("p.toml:1: not TOML: "));
}

#[test]
fn values_must_fit_together() {
    let lines = faults_of(
        "[topology]\nclaim_ttl = \"50ms\"\nrapid_interval = \"1s\"\n[admin]\naddress = \"127.0.0.1:6432\"",
    );
    assert_eq!(lines.len(), 3, "{lines:?}");
    let ttl = "p.toml:2 topology.claim_ttl: expected more than probe_interval (100ms), got 50ms";
    assert!(lines[0].starts_with(ttl), "the one that was given: {lines:?}");
    assert!(lines.iter().any(|line| line.starts_with("p.toml:3 topology.rapid_interval: expected at most")));
    assert!(lines.iter().any(|line| line.contains("p.toml:5 admin.address: 127.0.0.1:6432 is also")));

    let lines = faults("\n[cluster]\nnodes = [\"a:1\", \"b:1\", \"a:1\"]", &[], &[]).to_string();
    assert_eq!(lines, "p.toml:3 cluster.nodes: a:1 is listed twice");
    let lines = faults("[cluster]\nnodes = []", &[], &[]).to_string();
    assert!(lines.starts_with("p.toml:2 cluster.nodes: no nodes"), "{lines}");
    let lines = faults_of("[topology]\nclaim_ttl = \"1s\"\nprobe_interval = \"2s\"");
    assert!(
        lines[0].starts_with("p.toml:3 topology.probe_interval: expected less than claim_ttl (1s), got 2s")
    );
    let lines = faults_of("[topology]\nprobe_interval = \"1ms\"");
    assert_eq!(lines, ["p.toml:2 topology.probe_interval: expected at least rapid_interval (5ms), got 1ms"]);
}

#[test]
fn of_a_list_of_nodes_the_bad_one_is_named() {
    let refused = |text: &str| faults(&format!("[cluster]\nnodes = {text}"), &[], &[]).to_string();
    let port = "bad port in node address \"b:99999\" (expected a number from 1 to 65535)";
    assert_eq!(
        refused("[\"a:1\", \"b:99999\"]"),
        format!("p.toml:2 cluster.nodes: {port}"),
        "and not also missing"
    );
    let flag = faults("", &[], &["--nodes", "a:1,b:99999"]).to_string();
    assert_eq!(flag, format!("flag --nodes cluster.nodes: {port}"));
    assert!(refused("\"a:1,b:1\"").contains("comma"), "a text is one node");
    assert!(refused("3").contains("expected a list of host:port, such as"));
    let nowhere = Sources { file: None, ..sources("", &[], &[]) };
    assert_eq!(
        load(nowhere).expect_err("no nodes").to_string(),
        "configuration: cluster.nodes: no nodes: give --nodes host:port,..., PGSTEER_NODES, or nodes under [cluster] \
         in a file that --config names"
    );
}

#[test]
fn nodes_as_tables() {
    let text = "[[cluster.node]]\nhost = \"a\"\nport = 5433\nweight = 0\nname = \"left\"\n[[cluster.node]]\nhost = \"::1\"\n";
    let nodes = loaded(text, &[], &[]).cluster.nodes;
    assert_eq!((&*nodes[0].name, nodes[0].weight, nodes[0].address.port), ("left", 0, 5433));
    assert_eq!(nodes[1].address.to_string(), "[::1]:5432");

    let text = "[[cluster.node]]\nport = 70000\n\n[[cluster.node]]\nhost = \"a\"\nport = 70000\nwait = 1\n";
    let lines: Vec<String> = faults(text, &[], &[]).to_string().lines().map(str::to_owned).collect();
    assert_eq!(lines[0], "p.toml:1 cluster.node.host: expected a host name or address");
    assert_eq!(lines[1], "p.toml:6 cluster.node.port: expected a whole number from 1 to 65535");
    assert_eq!(
        lines[2],
        "p.toml:7 cluster.node: unknown key \"wait\" (expected one of host, port, weight, name)"
    );

    let both = "[cluster]\nnodes = [\"a\"]\n[[cluster.node]]\nhost = \"b\"\n";
    assert!(
        faults(both, &[], &[]).to_string().contains("either cluster.nodes or [[cluster.node]], not both")
    );
}

/// The tables of the reference file, without their comment signs.
fn tables_of_the_reference() -> String {
    let start = REFERENCE.find("# [[pool.database]]").expect("the tables");
    let end = start + REFERENCE[start..].find("\n\n").expect("an empty line");
    REFERENCE[start..end]
        .lines()
        .map(|line| format!("{}\n", line.trim_start_matches("# ")))
        .collect::<String>()
        .replace("\n#\n", "\n\n")
}

#[test]
fn a_database_and_a_user_have_limits_of_their_own() {
    let text = format!("[cluster]\nnodes = [\"a\"]\n{}", tables_of_the_reference());
    let pool = loaded(&text, &[], &[]).pool;
    let shop = Override {
        name: "shop".to_owned(),
        mode: Some(PoolMode::Session),
        size: Some(40),
        min_pool_size: Some(5),
        reserve_pool_size: Some(5),
        max_connections: Some(60),
        max_client_connections: Some(500),
        server_lifetime: Some(Duration::from_secs(1800)),
        query_wait_timeout: Some(Duration::from_secs(10)),
        ..Override::default()
    };
    let batch = Override {
        name: "batch".to_owned(),
        mode: Some(PoolMode::Session),
        size: Some(4),
        reserve_pool_size: Some(0),
        max_connections: Some(8),
        max_client_connections: Some(50),
        query_wait_timeout: Some(Duration::from_secs(3600)),
        client_idle_timeout: Some(Duration::from_secs(600)),
        idle_transaction_timeout: Some(Duration::from_secs(30)),
        ..Override::default()
    };
    assert_eq!((pool.databases, pool.users), (vec![shop], vec![batch]));
}

#[test]
fn faults_of_the_tables_are_all_named() {
    let text = "[[pool.database]]\nname = \"a\"\nsize = 0\nmode = \"statement\"\n[[pool.database]]\nname = \"a\"\n\
                [[pool.user]]\nsize = 1\n[[pool.user]]\nname = \"u\"\nmin_pool_size = 1\nquery_wait_timeout = 3\n";
    let expected = [
        "p.toml:3 pool.database.size: expected a whole number from 1 to 1000000",
        "p.toml:4 pool.database.mode: expected \"transaction\" or \"session\"",
        "p.toml:5 pool.database.name: \"a\" has a table already",
        "p.toml:7 pool.user.name: expected a text that is not empty",
        "p.toml:11 pool.user: unknown key \"min_pool_size\" (expected name, mode, size, reserve_pool_size, \
         max_user_connections, max_user_client_connections, query_wait_timeout, client_idle_timeout, \
         idle_transaction_timeout)",
        "p.toml:12 pool.user.query_wait_timeout: expected a duration with a unit (us, ms, s, m or min, h, d), such as \"100ms\"",
    ];
    assert_eq!(faults_of(text), expected);
    assert_eq!(faults_of("[pool]\nuser = 3"), ["p.toml:2 pool.user: expected tables [[pool.user]]"]);
    assert_eq!(
        faults_of("[pool]\ndefault_pool_size = 3"),
        ["p.toml:2 pool.default_pool_size: unknown key; did you mean \"pool.size\"?"]
    );
}

#[test]
fn terms_of_reads_have_tables_too() {
    let text = "[cluster]\nnodes = [\"a\"]\n[[routing.listener]]\nname = \"standby\"\nmax_lag = \"30s\"\n[[routing.user]]\nname = \"u\"\n\
                consistency = \"eventual\"\n[[routing.database]]\nname = \"d\"\nmax_lag_bytes = \"16MiB\"\nno_standby = \"error\"\nretry_buffer = \"0B\"\n";
    let own = loaded(text, &[], &[]).routing.own;
    assert_eq!(own.of(Mode::Standby, "u", "d").max_lag, Some(Duration::from_secs(30)));
    assert_eq!(own.of(Mode::Split, "u", "x").consistency, Some(Consistency::Eventual));
    assert_eq!(own.of(Mode::Split, "x", "d").no_standby, Some(NoStandby::Error));
    assert_eq!(own.of(Mode::Split, "x", "d").retry_buffer_bytes, Some(0));
    let text = "[[routing.listener]]\nname = \"reports\"\n[[routing.user]]\nname = \"u\"\nmax_lag = \"5\"\nmax_lagg = \"1s\"\n\
                [[routing.database]]\nconsistency = \"strong\"\n[[routing.database]]\nname = \"d\"\nno_standby = \"wait\"\nmax_lag_bytes = 3\nretry_buffer = \"64\"\n";
    let expected = [
        "p.toml:1 routing.listener.name: expected \"split\", \"primary\", \"standby\" or \"prefer-standby\", got \"reports\"",
        "p.toml:5 routing.user.max_lag: expected a duration with a unit (us, ms, s, m or min, h, d), such as \"100ms\", at most 24 days",
        "p.toml:6 routing.user: unknown key \"max_lagg\" (expected name, target, consistency, max_lag, max_lag_bytes, wait_for_standby, \
         no_standby, retry_buffer)",
        "p.toml:7 routing.database.name: expected a text that is not empty",
        "p.toml:11 routing.database.no_standby: expected primary or error",
        "p.toml:12 routing.database.max_lag_bytes: expected a size with a unit (B, KiB, MiB, GiB, kB, MB, GB), such as \"16MiB\", or \"off\"",
        "p.toml:13 routing.database.retry_buffer: expected a size with a unit (B, KiB, MiB, GiB, kB, MB, GB), such as \"64KiB\"",
    ];
    assert_eq!(faults_of(text), expected);
}

#[test]
fn passwords_are_ranked_and_never_shown() {
    let directory = std::env::temp_dir().join(format!("pgsteer-config-{}", std::process::id()));
    std::fs::create_dir_all(&directory).expect("temporary directory");
    let path = directory.join("password");
    std::fs::write(&path, "from file\n").expect("write");
    let path = path.to_str().expect("text");

    let secret = |config: Config| config.cluster.password.map(|secret| secret.expose().to_owned());
    let text = "[cluster]\nnodes = [\"a\"]\npassword = \"hunter2\"\n";
    let config = loaded(text, &[("PGPASSWORD", "pg")], &[]);
    assert!(!format!("{config:?}").contains("hunter2"));
    assert!(format!("{config:?}").contains("***"));
    assert_eq!(secret(config).as_deref(), Some("hunter2"));
    assert_eq!(secret(loaded(text, &[("PGSTEER_PASSWORD", "env")], &[])).as_deref(), Some("env"));
    assert_eq!(secret(loaded(text, &[], &["--password-file", path])).as_deref(), Some("from file"));
    assert_eq!(
        secret(loaded("", &[("PGPASSWORD", "pg"), ("PGSTEER_NODES", "a")], &[])).as_deref(),
        Some("pg")
    );

    let both = format!("{text}password_file = \"{path}\"\n");
    assert!(faults(&both, &[], &[]).to_string().contains("give one of them"));
    let missing = faults(text, &[], &["--password-file", "/nonexistent/x"]).to_string();
    assert!(
        missing.starts_with("flag --password-file cluster.password_file: cannot read /nonexistent/x"),
        "{missing}"
    );
    let wrong_type = faults("[cluster]\nnodes = [\"a\"]\npassword = 12345\n", &[], &[]).to_string();
    assert!(!wrong_type.contains("12345"), "{wrong_type}");
    assert_eq!(Secret::new("x"), Secret::new("x"));
    std::fs::remove_dir_all(&directory).expect("remove");
}

#[test]
fn variables_of_a_kubernetes_service_are_no_faults() {
    let environment = [
        ("PGSTEER_SERVICE_HOST", "10.0.0.1"),
        ("PGSTEER_PORT", "tcp://10.0.0.1:6432"),
        ("PGSTEER_PORT_6432_TCP_PROTO", "tcp"),
        ("PGSTEER_ADMIN_SERVICE_HOST", "10.0.0.2"),
        ("PGSTEER_ADMIN_PORT", "tcp://10.0.0.2:9127"),
        ("PGSTEER_PG_BIN", "/usr/bin"),
    ];
    loaded("[cluster]\nnodes = [\"a\"]", &environment, &[]);
}

#[test]
fn a_file_that_cannot_be_read_is_a_fault() {
    let args = RunArgs { config: Some("/nonexistent/p.toml".into()), ..RunArgs::default() };
    let faults = args.sources().expect_err("no such file");
    assert!(faults.to_string().contains("cannot read /nonexistent/p.toml"), "{faults}");
}

/// What a session's SET refuses is no value here either.
#[test]
fn lags_and_waits_have_the_bounds_of_a_set() {
    let expected = "expected a duration with a unit (us, ms, s, m or min, h, d), such as \"100ms\", at most 24 days, got \"25d\"";
    for key in ["max_lag", "wait_for_standby"] {
        assert_eq!(
            faults_of(&format!("[routing]\n{key} = \"25d\"")),
            [format!("p.toml:2 routing.{key}: {expected}")]
        );
        let text = format!("[cluster]\nnodes = [\"a\"]\n[routing]\n{key} = \"24d\"");
        assert!(load(sources(&text, &[], &[])).is_ok(), "{key}");
    }
}

#[test]
fn a_share_of_the_primary_has_a_percent_sign() {
    for (text, percent) in [("0%", 0), ("33 %", 33), ("100%", 100)] {
        let file = format!("[retry]\nprimary_budget = \"{text}\"\n");
        assert_eq!(loaded(&file, &[], &["--nodes", "h1"]).retry.primary_budget, percent);
    }
    for text in ["\"101%\"", "\"50\"", "\"-1%\"", "50", "\"half\""] {
        let found = faults_of(&format!("[retry]\nprimary_budget = {text}\n"));
        let expected =
            format!("p.toml:2 retry.primary_budget: expected a share from \"0%\" to \"100%\", got {text}");
        assert_eq!(found, [expected]);
    }
}
