//! The pools of one database and user on one shard, and what is known of that database and user beside the servers.
//!
//! Must not know: limits beyond their values, sessions.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Instant;

use super::hidden::Hidden;
use super::limits::Limits;
use super::set::Pool;

/// The pools of one (database, user), by node: what a session keeps, so that a lease costs no look-up by name.
#[derive(Debug)]
pub struct PoolGroup {
    database: Arc<str>,
    user: Arc<str>,
    limits: Limits,
    pub(super) by_node: RefCell<Vec<Option<Rc<Pool>>>>,
    /// Names of settings with a prefix that sessions of this group may make; the server does not list them.
    pub custom_settings: RefCell<CustomSettings>,
    /// What statements may do that their texts do not show.
    pub hidden: Arc<Hidden>,
}

/// Names of settings with a prefix (`app.tenant`), as far as they were met in statements and in the bodies of functions.
#[derive(Debug, Default)]
pub struct CustomSettings {
    /// In lower case.
    pub names: BTreeSet<String>,
    /// When the bodies of functions were last looked through.
    pub looked_at: Option<Instant>,
}

impl PoolGroup {
    pub(super) fn new(database: &Arc<str>, user: &Arc<str>, limits: Limits, hidden: Arc<Hidden>) -> Self {
        Self {
            database: Arc::clone(database),
            user: Arc::clone(user),
            limits,
            by_node: RefCell::default(),
            custom_settings: RefCell::default(),
            hidden,
        }
    }

    /// The database.
    pub fn database(&self) -> &Arc<str> {
        &self.database
    }

    /// The user.
    pub fn user(&self) -> &Arc<str> {
        &self.user
    }

    /// What holds for its pools.
    pub fn limits(&self) -> &Limits {
        &self.limits
    }
}
