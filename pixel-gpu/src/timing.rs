//! Times on a device that works while the host goes on.

use anyhow::{Result, anyhow};
use burn::tensor::{DType, Device, Tensor};
use std::time::{Duration, Instant};

/// A round takes about this long.
const ROUND: Duration = Duration::from_millis(20);

/// Rounds, of which the median counts.
const ROUNDS: usize = 5;

/// Waits until all that was asked of `device` is done.
///
/// # Errors
/// What the device says.
pub fn wait(device: &Device) -> Result<()> {
    device.sync().map_err(|error| anyhow!("{device:?}: {error:?}"))
}

/// Seconds for one call of `work`, many of which are asked for at a time: the median of some rounds. The number of the
/// call is passed.
///
/// # Errors
/// What the device says.
pub fn seconds(device: &Device, mut work: impl FnMut(usize)) -> Result<f64> {
    // Kernels are compiled, and some tuned, at their first calls.
    (0..2).for_each(&mut work);
    wait(device)?;
    let mut calls = 1;
    loop {
        let taken = round(device, calls, &mut work)?;
        if taken * 2 >= ROUND || calls >= 1 << 14 {
            break;
        }
        calls *= 2;
    }
    let mut taken = (0..ROUNDS).map(|_| round(device, calls, &mut work)).collect::<Result<Vec<_>>>()?;
    taken.sort_unstable();
    Ok(taken[ROUNDS / 2].as_secs_f64() / calls as f64)
}

fn round(device: &Device, calls: usize, mut work: impl FnMut(usize)) -> Result<Duration> {
    let start = Instant::now();
    (0..calls).for_each(&mut work);
    wait(device)?;
    Ok(start.elapsed())
}

/// Bytes a second that a copy of `bytes` bytes reads and writes, together.
///
/// # Errors
/// What the device says.
pub fn copy_bandwidth(bytes: usize, device: &Device) -> Result<f64> {
    let x = Tensor::<1>::ones([bytes / 4], (device, DType::F32));
    let seconds = seconds(device, |_| drop(x.clone() * 1.5))?;
    Ok(2.0 * bytes as f64 / seconds)
}
