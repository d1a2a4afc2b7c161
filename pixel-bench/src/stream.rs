//! What memory gives: the roof over every product whose weight is read once.

use crate::measure::{in_turns, median};
use rayon::prelude::*;

/// Values that are read: far more than caches hold.
const LEN: usize = 1 << 26;

/// Bytes a second that all threads of the pool read together, the median of several passes.
pub fn read_bandwidth() -> f64 {
    let values = vec![1f32; LEN];
    let mut total = 0.0;
    let mut pass = || {
        let part = LEN / rayon::current_num_threads();
        total += values.par_chunks(part).map(sum).sum::<f32>();
    };
    let times = in_turns(&mut [&mut pass], 7);
    assert!(total > 0.0, "ones add up");
    (4 * LEN) as f64 / median(&times[0])
}

/// The sum, in as many lanes as keep the loads coming.
fn sum(values: &[f32]) -> f32 {
    let mut lanes = [0f32; 128];
    for block in values.as_chunks::<128>().0 {
        lanes.iter_mut().zip(block).for_each(|(lane, value)| *lane += value);
    }
    lanes.iter().sum()
}
