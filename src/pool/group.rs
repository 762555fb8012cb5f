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
    /// Settings with a prefix that its functions make; the server does not list them.
    pub custom_settings: RefCell<CustomSettings>,
    /// What statements may do that their texts do not show.
    pub hidden: Arc<Hidden>,
}

/// What functions of a database show of the settings with a prefix (`app.tenant`) that they make.
#[derive(Debug, Default)]
pub struct CustomSettings {
    /// Names, in lower case.
    pub names: BTreeSet<String>,
    /// Functions that may make others, or call one that does.
    pub unnamed_by: BTreeSet<String>,
    /// Functions that make those that they are called with.
    pub passed_by: BTreeSet<String>,
    /// There are more names or functions than are listed.
    pub is_cut: bool,
    /// When the bodies of functions were last looked through, and what `Hidden::definitions` was then.
    pub looked_at: Option<(Instant, u64)>,
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
