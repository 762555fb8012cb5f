//! The ways in which a client may be authenticated.
//!
//! Invariant: what is not named here is not accepted. Must not know: addresses, configuration files.

use serde::{Deserialize, Serialize};

/// How clients authenticate.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum AuthType {
    /// Everybody is who they say they are.
    Trust,
    /// SCRAM-SHA-256 by the verifiers of the servers.
    #[default]
    #[serde(rename = "scram-sha-256")]
    ScramSha256,
}

impl AuthType {
    /// The name in configuration, arguments and logs.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trust => "trust",
            Self::ScramSha256 => "scram-sha-256",
        }
    }
}

impl std::str::FromStr for AuthType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "trust" => Ok(Self::Trust),
            "scram-sha-256" => Ok(Self::ScramSha256),
            other => Err(format!("unknown authentication type {other:?}: trust or scram-sha-256")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::AuthType;

    #[test]
    fn names_are_the_same_in_serde_and_in_arguments() {
        for auth in [AuthType::Trust, AuthType::ScramSha256] {
            assert_eq!(serde_json::to_string(&auth).unwrap(), format!("{:?}", auth.as_str()));
            assert_eq!(auth.as_str().parse(), Ok(auth));
        }
        assert!("md5".parse::<AuthType>().is_err());
    }
}
