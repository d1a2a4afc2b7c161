//! Working memory that a thread keeps from call to call.

use bytemuck::{Pod, Zeroable};
use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};

/// Bytes of the largest buffer that is kept.
const LARGEST_KEPT: usize = 16 << 20;

/// A line of the cache.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

// SAFETY: an array of bytes, as long as its alignment, is all zeros or any bits.
unsafe impl Zeroable for Line {}
// SAFETY: as above; no padding.
unsafe impl Pod for Line {}

thread_local! {
    static KEPT: RefCell<Vec<Vec<Line>>> = const { RefCell::new(Vec::new()) };
}

/// `len` values with arbitrary contents, aligned to 64 bytes; the memory goes back to its thread when dropped.
#[derive(Debug)]
pub(crate) struct Scratch<T> {
    lines: Vec<Line>,
    len: usize,
    values: PhantomData<T>,
}

impl<T: Pod> Scratch<T> {
    pub(crate) fn new(len: usize) -> Self {
        let mut lines = KEPT.with_borrow_mut(Vec::pop).unwrap_or_default();
        let count = lines_of::<T>(len);
        if lines.len() < count {
            lines.resize(count, Line::zeroed());
        }
        Self { lines, len, values: PhantomData }
    }
}

impl<T> Drop for Scratch<T> {
    fn drop(&mut self) {
        let lines = std::mem::take(&mut self.lines);
        if lines.len() * size_of::<Line>() <= LARGEST_KEPT {
            // A thread that is ending keeps nothing.
            let _ = KEPT.try_with(|kept| kept.borrow_mut().push(lines));
        }
    }
}

/// The lines that `len` values take; a value is a part of one, or several whole ones.
const fn lines_of<T>(len: usize) -> usize {
    (len * size_of::<T>()).div_ceil(size_of::<Line>())
}

impl<T: Pod> Deref for Scratch<T> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        &bytemuck::cast_slice(&self.lines[..lines_of::<T>(self.len)])[..self.len]
    }
}

impl<T: Pod> DerefMut for Scratch<T> {
    fn deref_mut(&mut self) -> &mut [T] {
        &mut bytemuck::cast_slice_mut(&mut self.lines[..lines_of::<T>(self.len)])[..self.len]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn buffers_are_aligned_and_two_at_a_time_are_two() {
        let mut a = Scratch::<i16>::new(33);
        let mut b = Scratch::<f32>::new(7);
        a.fill(1);
        b.fill(2.0);
        assert_eq!((a.len(), b.len()), (33, 7));
        assert!(a.iter().all(|x| *x == 1));
        assert_eq!(a.as_ptr().align_offset(64), 0);
        let first = b.as_ptr() as usize;
        drop(b);
        assert_eq!(Scratch::<f32>::new(4).as_ptr() as usize, first, "the last one given back is used again");
    }
}
