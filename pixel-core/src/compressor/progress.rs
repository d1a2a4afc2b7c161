//! How a long run reports its progress.

/// Listens to a run; every method may be called from several threads.
pub trait Progress: Sync {
    /// A tensor of `weights` values is done.
    fn tensor_done(&self, name: &str, weights: u64) {
        let _ = (name, weights);
    }

    /// Whether the run should stop at the next tensor, leaving nothing behind.
    fn is_cancelled(&self) -> bool {
        false
    }
}

/// Listens to nothing.
impl Progress for () {}
