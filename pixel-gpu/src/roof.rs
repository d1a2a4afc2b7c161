//! What devices can do, by what their maker publishes.

use crate::assembler::Resources;
use crate::record::Launch;
use crate::sass::Counts;

/// A device.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Device {
    /// Its name.
    pub name: &'static str,
    /// Its compute capability.
    pub sm: u32,
    /// Multiprocessors.
    pub multiprocessors: f64,
    /// Clock under load, in Hz: the one that the published peak rates are stated for.
    pub clock: f64,
    /// Bytes a second from memory.
    pub bandwidth: f64,
    /// Shared memory of a multiprocessor, in bytes.
    shared: usize,
}

/// Source: NVIDIA's data sheets and architecture papers of A100 (80 GB, SXM), H100 (SXM5) and B200.
pub const DEVICES: [Device; 3] = [
    Device { name: "A100", sm: 80, multiprocessors: 108.0, clock: 1.41e9, bandwidth: 2.039e12, shared: 164 << 10 },
    Device { name: "H100", sm: 90, multiprocessors: 132.0, clock: 1.98e9, bandwidth: 3.35e12, shared: 228 << 10 },
    Device { name: "B200", sm: 100, multiprocessors: 148.0, clock: 1.965e9, bandwidth: 8.0e12, shared: 228 << 10 },
];

/// What a product would take, were nothing waited for.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Seconds that the memory takes to read the weight once.
    pub memory: f64,
    /// Seconds that the busiest multiprocessor computes.
    pub compute: f64,
    /// What it waits for.
    pub limit: &'static str,
}

impl Estimate {
    /// The time of the roof as a share of the time of the product: 1 where the memory is waited for alone.
    pub fn of_roof(&self) -> f64 {
        self.memory / self.memory.max(self.compute)
    }

    /// What takes longest.
    pub fn limit(&self) -> &'static str {
        if self.memory >= self.compute { "memory" } else { self.limit }
    }
}

impl Device {
    /// The device of compute capability `sm`.
    pub fn of(sm: u32) -> Option<Self> {
        DEVICES.into_iter().find(|device| device.sm == sm)
    }

    /// Warps that a multiprocessor holds at a time, of 64.
    ///
    /// Source: *CUDA C++ Programming Guide*, "Compute Capabilities": 64 warps, 32 blocks, 64 K registers given out to
    /// warps in units of 256, shared memory with 1 KB for the system in each block.
    pub fn occupancy(&self, resources: &Resources, launch: &Launch) -> usize {
        let warps = launch.threads().div_ceil(32);
        let registers = (resources.registers * 32).next_multiple_of(256) * warps;
        let by_registers = (64 << 10) / registers.max(1);
        let by_shared = self.shared / (resources.shared + launch.shared + 1024);
        (64 / warps).min(by_registers).min(by_shared).min(32) * warps
    }

    /// What launches take whose warps each carry out `total`, with `bytes` of a weight.
    pub fn estimate(&self, launches: &[Launch], total: &Counts, bytes: usize) -> Estimate {
        let (cycles, limit) = total.cycles();
        let warps = |launch: &Launch| {
            let blocks = (launch.blocks() as f64 / self.multiprocessors).ceil();
            blocks * launch.threads().div_ceil(32) as f64
        };
        let compute = launches.iter().map(warps).sum::<f64>() * cycles / self.clock;
        Estimate { memory: bytes as f64 / self.bandwidth, compute, limit }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAUNCH: Launch = Launch { kernel: 0, grid: [264, 1, 1], block: [32, 4, 1], shared: 0 };

    #[test]
    fn whatever_is_scarce_bounds_the_warps() {
        let device = Device::of(90).unwrap();
        let with =
            |registers, shared| device.occupancy(&Resources { registers, shared, ..Resources::default() }, &LAUNCH);
        assert_eq!(with(32, 0), 64);
        assert_eq!(with(64, 0), 32);
        // 100 KB a block: two of four warps.
        assert_eq!(with(32, 100 << 10), 8);
    }

    #[test]
    fn an_estimate_is_bound_by_what_takes_longest() {
        let device = Device::of(90).unwrap();
        let total = Counts { all: 1980.0, ..Counts::default() };
        // Two blocks of four warps, 495 cycles a warp.
        let estimate = device.estimate(&[LAUNCH], &total, 3_350_000);
        assert!((estimate.compute - 2e-6).abs() < 1e-12, "{estimate:?}");
        assert!((estimate.memory - 1e-6).abs() < 1e-12, "{estimate:?}");
        assert_eq!((estimate.of_roof(), estimate.limit()), (0.5, "issue"));
        assert_eq!(device.estimate(&[LAUNCH], &total, 33_500_000).limit(), "memory");
    }
}
