//! Files that a launch reads.

use std::fs::File;
use std::path::Path;

use crate::fault::LaunchError;

/// Opens a file that a launch reads; `what` names it in the error.
pub(crate) fn open(what: &'static str, path: &Path) -> Result<File, LaunchError> {
    File::open(path).map_err(|source| LaunchError::Open { what, path: path.to_owned(), source })
}
