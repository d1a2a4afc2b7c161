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

/// Calls of a round, at most: what they return is held until the round is over.
const MOST: usize = 1 << 10;

/// Seconds for one call of `work`, many of which are asked for at a time: the median of some rounds. The number of the
/// call is passed. What a call returns is not thrown away before it is there: Burn would not compute it.
///
/// # Errors
/// What the device says.
pub fn seconds<T>(device: &Device, mut work: impl FnMut(usize) -> T) -> Result<f64> {
    // Kernels are compiled, and some tuned, at their first calls.
    round(device, 2, &mut work)?;
    let mut calls = 1;
    while round(device, calls, &mut work)? * 2 < ROUND && calls < MOST {
        calls *= 2;
    }
    let mut taken = (0..ROUNDS).map(|_| round(device, calls, &mut work)).collect::<Result<Vec<_>>>()?;
    taken.sort_unstable();
    Ok(taken[ROUNDS / 2].as_secs_f64() / calls as f64)
}

fn round<T>(device: &Device, calls: usize, work: impl FnMut(usize) -> T) -> Result<Duration> {
    let start = Instant::now();
    let results: Vec<T> = (0..calls).map(work).collect();
    wait(device)?;
    let taken = start.elapsed();
    drop(results);
    Ok(taken)
}

/// Bytes a second that a copy of `bytes` bytes reads and writes, together; each is waited for.
///
/// # Errors
/// What the device says.
pub fn copy_bandwidth(bytes: usize, device: &Device) -> Result<f64> {
    let x = Tensor::<1>::ones([bytes / 4], (device, DType::F32));
    let copy = |_| round(device, 1, |_| x.clone() * 1.5);
    // The first two compile.
    let mut taken = (0..ROUNDS + 2).map(copy).skip(2).collect::<Result<Vec<_>>>()?;
    taken.sort_unstable();
    Ok(2.0 * bytes as f64 / taken[ROUNDS / 2].as_secs_f64())
}
