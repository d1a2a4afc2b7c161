//! The memories of a device.

use std::sync::Mutex;

/// Memory that all blocks see: what was allocated when a kernel was launched.
pub(crate) struct Global {
    /// Beginnings and lengths, ascending.
    allocations: Vec<(u64, usize)>,
    atomic: Mutex<()>,
}

impl Global {
    pub(crate) fn new(allocations: impl Iterator<Item = (u64, usize)>) -> Self {
        let mut allocations: Vec<_> = allocations.collect();
        allocations.sort_unstable();
        Self { allocations, atomic: Mutex::new(()) }
    }

    fn has(&self, address: u64, bytes: usize) -> bool {
        let behind = self.allocations.partition_point(|(start, _)| *start <= address);
        let Some(&(start, len)) = behind.checked_sub(1).and_then(|at| self.allocations.get(at)) else { return false };
        (address - start) as usize + bytes <= len
    }

    pub(crate) fn load(&self, address: u64, bytes: usize) -> Option<u64> {
        if !self.has(address, bytes) {
            return None;
        }
        let mut value = [0u8; 8];
        // SAFETY: the bytes lie in an allocation that lives until the launch is over.
        unsafe { std::ptr::copy_nonoverlapping(address as *const u8, value.as_mut_ptr(), bytes) };
        Some(u64::from_le_bytes(value))
    }

    pub(crate) fn store(&self, address: u64, bytes: usize, value: u64) -> Option<()> {
        if !self.has(address, bytes) {
            return None;
        }
        // SAFETY: as above; who else writes there is the kernel's affair, as on a device.
        unsafe { std::ptr::copy_nonoverlapping(value.to_le_bytes().as_ptr(), address as *mut u8, bytes) };
        Some(())
    }

    /// Replaces a value, unseen by other updates; returns the one before.
    pub(crate) fn update(&self, address: u64, bytes: usize, new: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        let _alone = self.atomic.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let old = self.load(address, bytes)?;
        self.store(address, bytes, new(old)?)?;
        Some(old)
    }
}

/// Memory of a block, which finds accesses that no barrier orders.
pub(crate) struct SharedMemory {
    bytes: Vec<u8>,
    /// For each word: whether it was written, who wrote it last and who read it.
    words: Vec<Word>,
    epoch: u32,
    warp_epochs: Vec<u32>,
}

#[derive(Clone, Copy)]
struct Word {
    is_written: bool,
    written: Access,
    read: Access,
}

/// Who was at a word, and after how many barriers of the block and of the warp.
#[derive(Clone, Copy, PartialEq, Eq)]
struct Access {
    thread: u32,
    epoch: u32,
    warp_epoch: u32,
}

/// Several threads.
const MANY: u32 = u32::MAX;

/// Threads of a warp.
const WARP: u32 = 32;

impl SharedMemory {
    /// Memory of a block of `threads` threads.
    pub(crate) fn new(bytes: usize, threads: usize) -> Self {
        let nobody = Access { thread: 0, epoch: 0, warp_epoch: 0 };
        let word = Word { is_written: false, written: nobody, read: nobody };
        Self {
            bytes: vec![0; bytes.next_multiple_of(8)],
            words: vec![word; bytes.div_ceil(4)],
            epoch: 1,
            warp_epochs: vec![0; threads.div_ceil(WARP as usize)],
        }
    }

    /// All accesses of a warp from now on come after all before of the same warp.
    pub(crate) fn begin_warp_epoch(&mut self, warp: usize) {
        self.warp_epochs[warp] += 1;
    }

    fn access(&self, thread: usize) -> Access {
        let warp_epoch = self.warp_epochs[thread / WARP as usize];
        Access { thread: thread as u32, epoch: self.epoch, warp_epoch }
    }

    /// Whether nothing orders an access before `now`.
    fn is_unordered(before: Access, now: Access) -> bool {
        let is_of_warp = before.thread != MANY && before.thread / WARP == now.thread / WARP;
        before.epoch == now.epoch && before.thread != now.thread && !(is_of_warp && before.warp_epoch < now.warp_epoch)
    }

    /// All accesses from now on come after all before.
    pub(crate) fn begin_epoch(&mut self) {
        self.epoch += 1;
    }

    fn outside(&self, address: usize, bytes: usize) -> Result<(), String> {
        if address.checked_add(bytes).is_none_or(|end| end.div_ceil(4) > self.words.len()) {
            return Err(format!("{bytes} bytes at {address:#x} of {} of shared memory", 4 * self.words.len()));
        }
        Ok(())
    }

    pub(crate) fn load(&mut self, thread: usize, address: usize, bytes: usize) -> Result<u64, String> {
        self.outside(address, bytes)?;
        let now = self.access(thread);
        for word in &mut self.words[address / 4..(address + bytes).div_ceil(4)] {
            if !word.is_written {
                return Err(format!("shared memory is read at {address:#x} before anything is written there"));
            }
            if Self::is_unordered(word.written, now) && bytes >= 4 {
                let writer = word.written.thread;
                return Err(format!("shared memory at {address:#x} is written by thread {writer} meanwhile"));
            }
            let is_other = word.read.epoch == now.epoch && word.read.thread != now.thread;
            word.read = Access { thread: if is_other { MANY } else { now.thread }, ..now };
        }
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(&self.bytes[address..address + bytes]);
        Ok(u64::from_le_bytes(value))
    }

    pub(crate) fn store(&mut self, thread: usize, address: usize, bytes: usize, value: u64) -> Result<(), String> {
        self.outside(address, bytes)?;
        let now = self.access(thread);
        for word in &mut self.words[address / 4..(address + bytes).div_ceil(4)] {
            let (is_written, is_read) = (Self::is_unordered(word.written, now), Self::is_unordered(word.read, now));
            if (is_written || is_read) && bytes >= 4 {
                let what = if is_written { "written" } else { "read" };
                return Err(format!("shared memory at {address:#x} is {what} by another thread meanwhile"));
            }
            *word = Word { is_written: true, written: now, ..*word };
        }
        self.bytes[address..address + bytes].copy_from_slice(&value.to_le_bytes()[..bytes]);
        Ok(())
    }

    /// Replaces a value; returns the one before. Such accesses need no order.
    pub(crate) fn update(&mut self, address: usize, bytes: usize, new: impl Fn(u64) -> Option<u64>) -> Option<u64> {
        self.outside(address, bytes).ok()?;
        let mut value = [0; 8];
        value[..bytes].copy_from_slice(&self.bytes[address..address + bytes]);
        let old = u64::from_le_bytes(value);
        self.bytes[address..address + bytes].copy_from_slice(&new(old)?.to_le_bytes()[..bytes]);
        for word in &mut self.words[address / 4..(address + bytes).div_ceil(4)] {
            word.is_written = true;
        }
        Some(old)
    }
}
