//! Waiting for a VMM's answer: not beyond its end, and not for ever.

use std::io;
use std::path::Path;
use std::time::Duration;

use crate::fault::ControlError;
use crate::process::Process;

/// Far above what any command takes, also on a host that swaps.
pub(crate) const DEADLINE: Duration = Duration::from_secs(30);
/// How long a VMM that hung up may take to be seen to end.
pub(crate) const DYING: Duration = Duration::from_secs(2);

/// How long it takes at most to read what a VMM said before it ended.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// Does `work` on the VMM's socket. A VMM that dies meanwhile is an error at once, and says why.
/// After an error the connection is not used again.
pub(crate) async fn watched<T>(
    process: &Process,
    command: &'static str,
    socket: &Path,
    work: impl Future<Output = io::Result<T>>,
) -> Result<T, ControlError> {
    let gone = |exit| ControlError::Gone { command, exit: Box::new(exit) };
    let mut work = Box::pin(work);
    tokio::select! {
        biased;
        done = &mut work => match done {
            Ok(done) => Ok(done),
            // It hung up: most likely it is dying, and its log says why.
            Err(source) => match tokio::time::timeout(DYING, process.exited()).await {
                Ok(exit) => Err(gone(exit)),
                Err(_) => Err(ControlError::Unreachable { socket: socket.to_owned(), source }),
            },
        },
        // A VMM that ends of a request has answered it before: the answer, which may have been
        // overtaken, says more than the end.
        exit = process.exited() => match tokio::time::timeout(LAST_WORDS, work).await {
            Ok(Ok(done)) => Ok(done),
            Ok(Err(_)) | Err(_) => Err(gone(exit)),
        },
        () = tokio::time::sleep(DEADLINE) => Err(ControlError::Silent { command, after: DEADLINE }),
    }
}
