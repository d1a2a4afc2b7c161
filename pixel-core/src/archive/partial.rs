//! The temporary names under which outputs of this process grow, for a process that is told to stop.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

static GROWING: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn growing() -> std::sync::MutexGuard<'static, BTreeSet<PathBuf>> {
    GROWING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Notes that an output grows at `path`.
pub(super) fn note(path: &Path) {
    growing().insert(path.to_owned());
}

/// Notes that nothing of an output is left at `path`.
pub(super) fn forget(path: &Path) {
    growing().remove(path);
}

/// Removes what outputs of this process that are not complete have left so far: for a program that exits at a signal,
/// where nothing is dropped. Whoever goes on writing them meets errors.
pub fn remove_partial_outputs() {
    let remove_all = || {
        for path in growing().iter() {
            // What cannot be removed says by its name that it is partial.
            let _ = remove(path);
        }
    };
    remove_all();
    // Another thread may have been about to create a file: it has done so by now.
    std::thread::sleep(Duration::from_millis(20));
    remove_all();
}

/// Removes a file, a link, or a directory with all that it holds.
pub(super) fn remove(path: &Path) -> std::io::Result<()> {
    // A link is removed itself, not its target.
    let is_dir = path.symlink_metadata()?.is_dir();
    if is_dir { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}
