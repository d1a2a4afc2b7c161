//! What is read next, brought nearer by threads that have nothing to do.
//!
//! A product of few rows waits for memory, and between two products memory waits: for norms, tables, attention. The
//! steps of a model follow one another in the same order token after token, so a step is followed by the one that
//! followed it the last time, and the threads that wait for it ask for its codes. A wrong guess costs some memory
//! traffic and nothing else: an address that is only asked for need not even exist.

use super::{team, threads};
use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Ranges of a step, at most.
const PARTS: usize = 3;

/// Bytes of a line of a cache.
const LINE: usize = 64;

/// Lines that a thread asks for between two looks for a step.
const LINES: usize = 8;

/// Bytes that are asked for each idle thread: half of a cache of the second level.
const ROOM: usize = 1 << 19;

/// Steps whose successors are remembered.
const STEPS: usize = 1 << 12;

/// Address and lines of what a step reads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Ranges([(usize, usize); PARTS]);

impl Ranges {
    fn of<'a>(parts: impl Iterator<Item = &'a [u32]>) -> Self {
        let mut ranges = Self::default();
        for (range, part) in ranges.0.iter_mut().zip(parts) {
            *range = (part.as_ptr() as usize, size_of_val(part).div_ceil(LINE));
        }
        ranges
    }
}

/// Which step came after which.
#[derive(Debug, Default)]
struct Order {
    last: Option<usize>,
    /// By the address of the first range.
    after: HashMap<usize, Ranges>,
}

impl Order {
    /// Takes note of a step, and returns the one that may follow.
    fn note(&mut self, step: Ranges) -> Option<Ranges> {
        let address = step.0[0].0;
        if let Some(last) = self.last.replace(address) {
            if self.after.len() >= STEPS {
                self.after.clear();
            }
            self.after.insert(last, step);
        }
        self.after.get(&address).copied()
    }
}

/// What idle threads ask for. All of it may be read while it is written: a mixture of two steps is a wrong guess.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    address: [AtomicUsize; PARTS],
    lines: [AtomicUsize; PARTS],
    /// The line that is asked for next.
    next: AtomicUsize,
    /// The line at which it ends.
    end: AtomicUsize,
}

impl Ahead {
    /// Has `ranges` asked for from the beginning, if that has not begun already.
    fn ask(&self, ranges: Ranges, room: usize) {
        if self.ranges() == ranges {
            return;
        }
        self.end.store(0, Ordering::Relaxed);
        for (i, (address, lines)) in ranges.0.into_iter().enumerate() {
            self.address[i].store(address, Ordering::Relaxed);
            self.lines[i].store(lines, Ordering::Relaxed);
        }
        self.next.store(0, Ordering::Relaxed);
        let lines = ranges.0.iter().map(|(_, lines)| lines).sum::<usize>();
        self.end.store(lines.min(room / LINE), Ordering::Release);
    }

    fn ranges(&self) -> Ranges {
        let part = |i: usize| (self.address[i].load(Ordering::Relaxed), self.lines[i].load(Ordering::Relaxed));
        Ranges(std::array::from_fn(part))
    }

    /// Asks for a few lines; `false` if there is nothing to ask for.
    pub(super) fn fetch(&self) -> bool {
        let end = self.end.load(Ordering::Acquire);
        if self.next.load(Ordering::Relaxed) >= end {
            return false;
        }
        let first = self.next.fetch_add(LINES, Ordering::Relaxed);
        let ranges = self.ranges();
        for line in first..end.min(first + LINES) {
            let mut line = line;
            for (address, lines) in ranges.0 {
                if line < lines {
                    prefetch(address.wrapping_add(line * LINE));
                    break;
                }
                line -= lines;
            }
        }
        true
    }
}

/// Runs a step that reads `parts`, of which three count: idle threads ask for them until it needs threads, and for
/// those of the next step when it is done.
pub(crate) fn reading<'a, R>(parts: impl Iterator<Item = &'a [u32]>, run: impl FnOnce() -> R) -> R {
    static ORDER: Mutex<Option<Order>> = Mutex::new(None);
    let (ranges, room) = (Ranges::of(parts), ROOM * (threads() - 1));
    let ahead = &team().ahead;
    ahead.ask(ranges, room);
    let result = run();
    if let Ok(mut order) = ORDER.try_lock()
        && let Some(next) = order.get_or_insert_default().note(ranges)
    {
        ahead.ask(next, room);
    }
    result
}

/// Asks for the line at an address.
#[inline]
fn prefetch(address: usize) {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
        // SAFETY: any address may be asked for, and every x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(std::ptr::without_provenance(address)) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = address;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_step_is_followed_by_the_one_that_followed_it_before() {
        let words = [0u32; 64];
        let steps = [&words[..16], &words[16..40], &words[40..]].map(|part| Ranges::of([part].into_iter()));
        let mut order = Order::default();
        let first = steps.map(|step| order.note(step));
        assert_eq!(first, [None; 3]);
        for i in 0..7 {
            assert_eq!(order.note(steps[i % 3]), Some(steps[(i + 1) % 3]), "step {i}");
        }
        assert_eq!(order.after.len(), 3);
    }

    #[test]
    fn every_line_is_asked_for_once() {
        let words = vec![0u32; 16 * 100];
        let ranges = Ranges::of([&words[..16 * 21], &words[16 * 40..16 * 40 + 1]].into_iter());
        assert_eq!(ranges.0.map(|(_, lines)| lines), [21, 1, 0]);
        let ahead = Ahead::default();
        assert!(!ahead.fetch());
        ahead.ask(ranges, 1 << 20);
        assert_eq!((0..10).filter(|_| ahead.fetch()).count(), 22usize.div_ceil(LINES));
        // Asked for already.
        ahead.ask(ranges, 1 << 20);
        assert!(!ahead.fetch());
        // No more than there is room for.
        ahead.ask(Ranges::of([&words[..]].into_iter()), 2 * LINES * LINE);
        assert_eq!((0..10).filter(|_| ahead.fetch()).count(), 2);
    }
}
