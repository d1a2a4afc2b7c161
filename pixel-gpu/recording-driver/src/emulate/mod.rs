//! Kernels carried out on the host, as their PTX says.
//!
//! ```text
//!  PTX ──▶ Kernel ──▶ Launch ──▶ Block × grid ──▶ memory
//! ```
//!
//! Threads of a block run one after the other, each until it has to meet others: at a barrier of the block, or at an
//! instruction of its warp. What a device would do silently is an error here: an access outside of what is allocated,
//! shared memory that is read before it is written, two threads at one word of it without a barrier between, lanes that
//! do not meet, an instruction that is not known.

mod arithmetic;
mod block;
mod instruction;
mod memory;
mod parse;
mod warp;

use block::{Block, Launch};
use instruction::Kernel;
use memory::Global;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// A module's kernels.
#[derive(Debug, Clone, Default)]
pub struct Program {
    kernels: Vec<Kernel>,
}

impl Program {
    /// Reads PTX.
    ///
    /// # Errors
    /// The line that is not understood, and what stands there.
    pub fn parse(text: &str) -> Result<Self, String> {
        Ok(Self { kernels: parse::parse(text)? })
    }

    /// The offsets and sizes of the parameters of kernel `name`, if there is one.
    pub fn parameters(&self, name: &str) -> Option<&[(usize, usize)]> {
        self.kernel(name).map(|kernel| &kernel.parameters[..])
    }

    fn kernel(&self, name: &str) -> Option<&Kernel> {
        self.kernels.iter().find(|kernel| kernel.name == name)
    }

    /// Carries out kernel `name` in blocks of `block` threads with `shared` bytes of shared memory that it did not ask
    /// for itself; `allocations` are the beginnings and lengths of what it may read and write.
    ///
    /// # Errors
    /// The first error that a thread of any block makes.
    pub fn launch(
        &self,
        name: &str,
        parameters: Vec<u8>,
        [grid, block]: [[u32; 3]; 2],
        shared: usize,
        allocations: impl Iterator<Item = (u64, usize)>,
    ) -> Result<(), String> {
        let kernel = self.kernel(name).ok_or_else(|| format!("there is no kernel {name}"))?;
        let global = Global::new(allocations);
        let launch = Launch { kernel, parameters, grid, block, shared, global: &global };
        let count = grid.iter().map(|side| *side as usize).product::<usize>();
        let (next, failure) = (AtomicUsize::new(0), Mutex::new(None));
        let work = || {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                if at >= count {
                    return;
                }
                let [x, y, _] = grid.map(|side| side as usize);
                let place = [at % x, at / x % y, at / (x * y)].map(|place| place as u32);
                if let Err(what) = Block::new(&launch, place).run() {
                    // The others need not go on.
                    next.store(count, Ordering::Relaxed);
                    failure.lock().unwrap_or_else(std::sync::PoisonError::into_inner).get_or_insert(what);
                    return;
                }
            }
        };
        let workers = std::thread::available_parallelism().map_or(1, usize::from).min(count);
        std::thread::scope(|scope| {
            (1..workers).for_each(|_| _ = scope.spawn(work));
            work();
        });
        failure.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner).map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests;
