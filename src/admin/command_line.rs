//! `pgsteer pause`, `pgsteer resume` and `pgsteer hint`: the arguments, and what is said to people.
//!
//! Must not know: what a pause is made of; it is the running pgsteer's.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::request;

/// How often a running pgsteer is asked what is still under way.
const ASKED_EVERY: Duration = Duration::from_millis(20);

/// Arguments of `pgsteer pause`.
#[derive(Debug, Clone, clap::Args)]
pub struct PauseArgs {
    /// Admin address of the running pgsteer
    #[arg(long, env = "PGSTEER_ADMIN", default_value = "127.0.0.1:9127", value_name = "ADDRESS")]
    pub admin: SocketAddr,
    /// How many seconds to wait for what runs on the primary to end
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    pub wait: u64,
    /// After how many seconds the pause ends by itself
    #[arg(long = "for", default_value_t = 60, value_name = "SECONDS", value_parser = clap::value_parser!(u64).range(1..=3600))]
    pub lasts: u64,
    /// What ends it before: "promotion" (a new primary, or the old one restarted; and resume), or "resume" alone
    #[arg(long, default_value = "promotion", value_parser = ["promotion", "resume"])]
    pub until: String,
}

/// Arguments of `pgsteer resume`.
#[derive(Debug, Clone, clap::Args)]
pub struct ResumeArgs {
    /// Admin address of the running pgsteer
    #[arg(long, env = "PGSTEER_ADMIN", default_value = "127.0.0.1:9127", value_name = "ADDRESS")]
    pub admin: SocketAddr,
}

/// Arguments of `pgsteer hint`.
#[derive(Debug, Clone, clap::Args)]
pub struct HintArgs {
    /// Admin address of the running pgsteer
    #[arg(long, env = "PGSTEER_ADMIN", default_value = "127.0.0.1:9127", value_name = "ADDRESS")]
    pub admin: SocketAddr,
    /// The new primary, if it is known: a node as in the configuration, by address or name
    #[arg(long, value_name = "HOST:PORT")]
    pub node: Option<String>,
}

/// Why nothing was done.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody answers there.
    #[error("no pgsteer answers at {address} (--admin): {source}")]
    Unreachable {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// It does not do it.
    #[error("pgsteer at {address} refuses: {text}")]
    Refused {
        /// Where.
        address: SocketAddr,
        /// In its words.
        text: String,
    },
}

/// Pauses, and waits until nothing runs on the primary any more. Fails (with status 3) when something still does after the wait;
/// the pause goes on then.
pub async fn pause(args: PauseArgs) -> Result<ExitCode, Error> {
    let target = format!("/pause?for={}s&until={}", args.lasts, args.until);
    let mut report = ask(args.admin, "POST", &target).await?;
    let deadline = Instant::now() + Duration::from_secs(args.wait);
    loop {
        let running = report["on_primary"].as_u64().unwrap_or(0);
        if report["state"] == "paused" {
            println!("paused: nothing runs on the primary through this pgsteer");
            return Ok(ExitCode::SUCCESS);
        }
        if report["state"] == "running" {
            println!("the pause is over already");
            return Ok(ExitCode::from(3));
        }
        if Instant::now() >= deadline {
            println!("nothing new begins on the primary, but {running} still run there");
            return Ok(ExitCode::from(3));
        }
        tokio::time::sleep(ASKED_EVERY).await;
        report = ask(args.admin, "GET", "/pause").await?;
    }
}

/// Ends the pause.
pub async fn resume(args: ResumeArgs) -> Result<ExitCode, Error> {
    ask(args.admin, "POST", "/resume").await?;
    println!("resumed");
    Ok(ExitCode::SUCCESS)
}

/// Tells it that the primary changes, or has changed.
pub async fn hint(args: HintArgs) -> Result<ExitCode, Error> {
    let query = args.node.map(|node| format!("?node={node}")).unwrap_or_default();
    ask(args.admin, "POST", &format!("/hint{query}")).await?;
    println!("told: all nodes are being looked at");
    Ok(ExitCode::SUCCESS)
}

async fn ask(address: SocketAddr, method: &str, target: &str) -> Result<Value, Error> {
    let unreachable = |source| Error::Unreachable { address, source };
    let (status, body) = request::send(address, method, target).await.map_err(unreachable)?;
    if status != 200 {
        return Err(Error::Refused { address, text: body.trim().to_owned() });
    }
    serde_json::from_str(&body).map_err(|error| unreachable(std::io::Error::other(error)))
}
