//! The parameters of a POST that stand in its body: as a form, or as one JSON object.
//!
//! Invariant: what comes out has the form of a query (`name=value&name=value`), and nothing is passed over. Must not know: HTTP, what
//! the parameters mean.

/// Largest body taken in.
pub(super) const BODY_BYTES_MAX: usize = 4096;

/// The parameters of a query and a body together; or what is wrong with the body.
pub(super) fn joined(query: &str, body: &[u8]) -> Result<String, String> {
    let body = std::str::from_utf8(body).map_err(|_| "the body is no text".to_owned())?.trim();
    let of_body = if body.starts_with('{') { of_json(body)? } else { of_form(body)? };
    let parts = [query, &of_body];
    Ok(parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join("&"))
}

fn of_json(body: &str) -> Result<String, String> {
    let object: serde_json::Map<String, serde_json::Value> =
        serde_json::from_str(body).map_err(|error| format!("the body is no JSON object: {error}"))?;
    let pairs: Result<Vec<String>, String> = object
        .iter()
        .map(|(name, value)| match value.as_str() {
            Some(value) if !value.contains('&') => Ok(format!("{name}={value}")),
            _ => Err(format!("{name}: expected a text without \"&\"")),
        })
        .collect();
    Ok(pairs?.join("&"))
}

fn of_form(body: &str) -> Result<String, String> {
    let fault = || "the body is no form: a \"%\" without two hexadecimal digits".to_owned();
    let mut parts = body.split('%');
    let mut decoded = parts.next().unwrap_or_default().replace('+', " ").into_bytes();
    for part in parts {
        let (digits, rest) = part.split_at_checked(2).ok_or_else(fault)?;
        decoded.push(u8::from_str_radix(digits, 16).map_err(|_| fault())?);
        decoded.extend_from_slice(rest.replace('+', " ").as_bytes());
    }
    String::from_utf8(decoded).map_err(|_| "the body is no text".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_as_good_as_queries() {
        for (query, body, expected) in [
            ("", "", ""),
            ("node=a", "", "node=a"),
            ("", "node=db2:5432", "node=db2:5432"),
            ("", "node=db2%3a5432&x=1+2\r\n", "node=db2:5432&x=1 2"),
            ("", "{\"node\": \"db2:5432\"}\n", "node=db2:5432"),
            ("", "{}", ""),
            ("for=1s", "{\"until\": \"resume\"}", "for=1s&until=resume"),
        ] {
            assert_eq!(joined(query, body.as_bytes()).as_deref(), Ok(expected), "{body}");
        }
        for body in ["{\"node\": 1}", "{\"node\": \"a&b\"}", "{", "node=%3", "node=%zz", "node=%ff"] {
            assert!(joined("", body.as_bytes()).is_err(), "{body}");
        }
        assert!(joined("", b"\xff").is_err());
    }
}
