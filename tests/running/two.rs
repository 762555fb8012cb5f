//! Two clients that alternate on the same server connections.
//!
//! Must not know: what is tested.

use pgsteer::sandbox::{Auth, Sandbox};

use super::{RawClient, Running, value};

/// A proxy with a pool of one or a few connections, and two clients.
pub struct Two {
    pub sandbox: Sandbox,
    pub proxy: Running,
    pub one: RawClient,
    pub two: RawClient,
}

impl Two {
    /// One connection.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The first client with these parameters.
    pub async fn start_with(parameters: &[(&str, &str)]) -> Self {
        Self::start_sized("1", parameters).await
    }

    /// So many connections.
    pub async fn start_sized(pool_size: &str, parameters: &[(&str, &str)]) -> Self {
        let sandbox = Sandbox::builder().standbys(0).auth(Auth::Trust).start().await.unwrap();
        let args = ["--auth", "trust", "--shards", "1", "--pool-size", pool_size];
        let proxy = Running::start(&sandbox, &args).await;
        let mut one = proxy.raw().await;
        one.log_in_with(&[&[("user", sandbox.user()), ("database", "postgres")], parameters].concat()).await;
        let two = proxy.raw_logged_in().await;
        Self { sandbox, proxy, one, two }
    }

    /// How often sessions were pinned for this reason.
    pub async fn pins(&self, reason: &str) -> f64 {
        self.proxy.metric("pgsteer_pins_total", &[("reason", reason)]).await
    }

    /// Another client gets the connection, and finds it as new.
    pub async fn two_gets_through(&mut self) {
        assert_eq!(show(&mut self.two, "work_mem").await, "4MB");
    }
}

/// A setting as the client finds it.
pub async fn show(client: &mut RawClient, name: &str) -> String {
    value(client, &format!("SELECT coalesce(current_setting('{name}', true), '')")).await
}
