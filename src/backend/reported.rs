//! The parameters that a server reports (ParameterStatus): as a server last reported them, or as a client was last told.
//!
//! Invariant: a client is told a value when it differs from the last one it was told, whichever server reports it: as a
//! server of its own would since PostgreSQL 14 (`ReportGUCOption`, guc.c). Must not know: sockets, sessions.

use std::rc::Rc;

/// Servers report some fifteen parameters, extensions a few more.
const NAMES_MAX: usize = 64;

/// What a server says of itself, whatever a session sets.
const OF_THE_SERVER: [&str; 4] = ["in_hot_standby", "server_version", "server_encoding", "integer_datetimes"];

/// Names and values as last reported. Cheap to clone.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Reported(Rc<Vec<(String, String)>>);

impl Reported {
    /// What was reported at a login.
    pub fn new(parameters: Vec<(String, String)>) -> Self {
        Self(Rc::new(parameters))
    }

    /// Whether this is another value than the last one.
    pub fn is_news(&self, name: &str, value: &str) -> bool {
        !self.0.iter().any(|(other, last)| other == name && last == value)
    }

    /// The value as last reported.
    pub fn value(&self, name: &str) -> Option<&str> {
        self.0.iter().find(|(other, _)| other == name).map(|(_, value)| value.as_str())
    }

    /// This value is reported now.
    pub fn report(&mut self, name: &str, value: &str) {
        if !self.is_news(name, value) {
            return;
        }
        let last = Rc::make_mut(&mut self.0);
        if let Some((_, last)) = last.iter_mut().find(|(other, _)| other == name) {
            value.clone_into(last);
        } else if last.len() < NAMES_MAX {
            last.push((name.to_owned(), value.to_owned()));
        }
    }

    /// What a session on the server that has reported this sees otherwise than who was told `told`.
    pub fn beyond<'r>(&'r self, told: &'r Self) -> impl Iterator<Item = (&'r str, &'r str)> {
        self.0
            .iter()
            .filter(|(name, value)| !OF_THE_SERVER.contains(&name.as_str()) && told.is_news(name, value))
            .map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Names and values.
    pub fn pairs(&self) -> &[(String, String)] {
        &self.0
    }

    /// Nobody else has it.
    pub fn is_unshared(&self) -> bool {
        Rc::strong_count(&self.0) == 1
    }
}

#[cfg(test)]
mod tests {
    use super::Reported;

    #[test]
    fn only_what_changed_is_news() {
        let first = Reported::new(vec![("TimeZone".to_owned(), "UTC".to_owned())]);
        let mut told = first.clone();
        assert!(!told.is_news("TimeZone", "UTC"));
        assert!(told.is_news("TimeZone", "CET"));
        told.report("TimeZone", "CET");
        assert!(told.is_news("TimeZone", "UTC") && !told.is_news("TimeZone", "CET"));
        told.report("search_path", "x");
        told.report("server_version", "18");
        assert!(!told.is_news("search_path", "x"));
        // What others share is not touched.
        assert!(!first.is_news("TimeZone", "UTC"));
        assert_eq!(told.beyond(&first).collect::<Vec<_>>(), [("TimeZone", "CET"), ("search_path", "x")]);
    }
}
