//! The one place where the sandbox waits for a condition by looking again. It knows nothing of what it waits for.

use std::future::Future;
use std::time::{Duration, Instant};

use super::Error;

/// The longest anything in a sandbox may take on a loaded machine.
pub(super) const BOUND: Duration = Duration::from_secs(60);

/// How long to wait between two looks.
const TICK: Duration = Duration::from_millis(1);

/// Looks until `holds` says yes, at most for `bound`.
pub(super) async fn until<F, Fut>(what: impl Into<String>, bound: Duration, mut holds: F) -> Result<(), Error>
where
    F: FnMut() -> Fut,
    Fut: Future<Output = Result<bool, Error>>,
{
    let started = Instant::now();
    while !holds().await? {
        if started.elapsed() > bound {
            return Err(Error::TimedOut { what: what.into(), after: bound });
        }
        tokio::time::sleep(TICK).await;
    }
    Ok(())
}

/// The same for `Drop`, which can't await. Says whether the condition came true.
pub(super) fn until_blocking(bound: Duration, mut holds: impl FnMut() -> bool) -> bool {
    let started = Instant::now();
    while !holds() {
        if started.elapsed() > bound {
            return false;
        }
        std::thread::sleep(TICK);
    }
    true
}
