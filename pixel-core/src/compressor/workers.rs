//! A queue of tensors and the workers that empty it.

use super::progress::Progress;
use crate::archive::error::ArchiveError;
use std::path::Path;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

/// Runs `work` on every item, one item at a time per thread of the pool, first to last; the first error stops the rest.
///
/// Put large items first: then no thread is left with one at the end, and no more than one item a thread is in memory.
///
/// # Errors
/// The first error, or [`ArchiveError::Cancelled`] naming `output`.
pub(super) fn run<T: Sync>(
    pool: &rayon::ThreadPool,
    items: &[T],
    output: &Path,
    progress: &dyn Progress,
    work: impl Fn(&T) -> Result<(), ArchiveError> + Sync,
) -> Result<(), ArchiveError> {
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

/// A pool of `threads` threads; 0 means as many as there are processors.
///
/// # Panics
/// If the operating system gives no threads.
pub(super) fn pool(threads: usize) -> rayon::ThreadPool {
    rayon::ThreadPoolBuilder::new().num_threads(threads).build().expect("threads for the pool")
}
