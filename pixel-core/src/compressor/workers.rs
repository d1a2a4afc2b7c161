//! A queue of tensors and the workers that empty it.

use super::progress::Progress;
use crate::archive::ArchiveError;
use crate::plan::num_workers;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Runs `work` on every item, one item at a time per worker, first to last; the first error stops the rest. There are
/// `threads` workers, or one a processor if that is 0. They are a pool of rayon's, in which `work` runs: a worker for
/// whom no item is left helps the others with what they do in parallel.
///
/// Put large items first: then no thread is still busy with one at the end, and no more than one item a thread is in
/// memory.
///
/// # Errors
/// The first error, [`ArchiveError::Cancelled`] naming `output`, or [`ArchiveError::Io`] if the system gives no
/// threads.
pub fn for_each_item<T: Sync>(
    threads: usize,
    items: &[T],
    output: &Path,
    progress: &dyn Progress,
    work: impl Fn(&T) -> Result<(), ArchiveError> + Sync,
) -> Result<(), ArchiveError> {
    let pool = rayon::ThreadPoolBuilder::new().num_threads(num_workers(threads)).build();
    let pool = pool.map_err(|e| ArchiveError::io("start the workers that write", output)(std::io::Error::other(e)))?;
    let (next, failed) = (AtomicUsize::new(0), AtomicBool::new(false));
    let first_error = Mutex::new(None);
    let fail = |error| {
        failed.store(true, Ordering::Relaxed);
        first_error.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(error);
    };
    pool.broadcast(|_| {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if failed.load(Ordering::Relaxed) {
                return;
            }
            if progress.is_cancelled() {
                return fail(ArchiveError::Cancelled { path: output.to_owned() });
            }
            if let Err(error) = work(item) {
                return fail(error);
            }
        }
    });
    first_error.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
}
