//! One check of a suite that is written in Rust: bounded, a failure or panic becomes its line.
//!
//! Must not know: drivers.

use std::error::Error;
use std::panic::AssertUnwindSafe;
use std::time::Duration;

use futures_util::FutureExt;

/// A check that takes longer hangs.
const BOUND: Duration = Duration::from_secs(20);

pub type Checked = Result<(), Box<dyn Error + Send + Sync>>;

/// Runs a check; the line says how it went.
pub async fn line(name: &str, check: impl Future<Output = Checked>) -> String {
    // What a check has broken by its panic is its own, and gone.
    let outcome = match tokio::time::timeout(BOUND, AssertUnwindSafe(check).catch_unwind()).await {
        Ok(Ok(Ok(()))) => "ok".to_owned(),
        Ok(Ok(Err(error))) => format!("FAILED: {error:?}"),
        Ok(Err(panic)) => match panic.downcast::<String>() {
            Ok(text) => format!("FAILED: {text}"),
            Err(_) => "FAILED".to_owned(),
        },
        Err(_) => format!("FAILED: no end in {BOUND:?}"),
    };
    format!("{name}: {outcome}")
}
