//! Which role a user name means, and which users something is about.
//!
//! Invariant: two roles of one name (the first was dropped or renamed, the second made since) are told apart by their OIDs;
//! where an OID is not known, nothing is claimed. Must not know: who asks, where OIDs come from.

use std::collections::BTreeSet;

/// The OID of a role, the same on all nodes of a cluster.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct RoleOid(pub u32);

impl RoleOid {
    /// Whether these are certainly two roles.
    pub fn differ(one: Option<Self>, other: Option<Self>) -> bool {
        matches!((one, other), (Some(one), Some(other)) if one != other)
    }
}

/// Users, as a statement about roles names them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Users {
    /// Those of these names; names of anything else may be among them.
    Named(BTreeSet<String>),
    /// All, or some that are not named.
    All,
}

impl Users {
    /// By all the names in a statement. ALL and CURRENT_USER and kin may be anybody.
    pub fn of(names: impl IntoIterator<Item = String>) -> Self {
        let names: BTreeSet<String> = names.into_iter().collect();
        if ["all", "current_role", "current_user", "session_user"].iter().any(|name| names.contains(*name)) {
            Self::All
        } else {
            Self::Named(names)
        }
    }

    /// Is this user among them?
    pub fn include(&self, user: &str) -> bool {
        match self {
            Self::Named(names) => names.contains(user),
            Self::All => true,
        }
    }

    /// These and those.
    pub fn and(self, others: Self) -> Self {
        match (self, others) {
            (Self::Named(mut names), Self::Named(others)) => {
                names.extend(others);
                Self::Named(names)
            }
            _ => Self::All,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{RoleOid, Users};

    #[test]
    fn an_unknown_role_is_no_other_role() {
        let [one, other] = [Some(RoleOid(1)), Some(RoleOid(2))];
        assert!(RoleOid::differ(one, other));
        assert!(!RoleOid::differ(one, one) && !RoleOid::differ(one, None) && !RoleOid::differ(None, other));
    }

    #[test]
    fn who_is_not_named_may_be_anybody() {
        let of = |names: &[&str]| Users::of(names.iter().map(|name| (*name).to_owned()));
        assert!(of(&["alter", "role", "a"]).include("a"));
        assert!(!of(&["alter", "role", "a"]).include("b"));
        assert!(of(&["alter", "role", "all", "set"]).include("b"));
        assert!(of(&["a"]).and(of(&["b"])).include("b"));
        assert!(of(&["a"]).and(Users::All).include("c"));
    }
}
