//! One slice, of which every task writes its own parts.

use std::marker::PhantomData;

/// A mutable slice that several threads hold.
#[derive(Debug)]
pub(super) struct Parts<'a, T> {
    start: *mut T,
    len: usize,
    slice: PhantomData<&'a mut [T]>,
}

// SAFETY: what `part` returns is disjoint, as its callers promise: no value is shared.
unsafe impl<T: Send> Sync for Parts<'_, T> {}

impl<'a, T> Parts<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Self { start: slice.as_mut_ptr(), len: slice.len(), slice: PhantomData }
    }

    /// `len` values from `first` on.
    ///
    /// # Panics
    /// If they are not within the slice.
    ///
    /// # Safety
    /// No two parts that live at the same time have a value in common.
    #[expect(clippy::mut_from_ref, reason = "the parts are disjoint")]
    pub(super) unsafe fn part(&self, first: usize, len: usize) -> &mut [T] {
        assert!(first <= self.len && len <= self.len - first, "{len} values from {first} on of {}", self.len);
        // SAFETY: within the slice, and nobody else's, as the caller promises.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(first), len) }
    }
}
