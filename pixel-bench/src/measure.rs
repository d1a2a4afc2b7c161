//! Timing in turns: machines are shared, so that a time means little and a ratio of neighbouring times a lot.

use std::time::{Duration, Instant};

/// How long a contender runs in one round, at least.
const TURN: Duration = Duration::from_millis(4);

/// The seconds that one call of each contender takes, round by round: `[contenders][rounds]`. In each round every
/// contender has its turn, after one call that does not count.
pub fn in_turns(contenders: &mut [&mut dyn FnMut()], rounds: usize) -> Vec<Vec<f64>> {
    let mut times = vec![Vec::with_capacity(rounds); contenders.len()];
    for _ in 0..rounds {
        for (run, times) in contenders.iter_mut().zip(&mut times) {
            run();
            let (start, mut calls) = (Instant::now(), 0u32);
            while calls == 0 || start.elapsed() < TURN {
                run();
                calls += 1;
            }
            times.push(start.elapsed().as_secs_f64() / f64::from(calls));
        }
    }
    times
}

/// The median.
///
/// # Panics
/// If there are no values.
pub fn median(values: &[f64]) -> f64 {
    let mut values = values.to_vec();
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

/// The median over the rounds of how many times as fast `times` is as `base`.
pub fn speedup(base: &[f64], times: &[f64]) -> f64 {
    median(&base.iter().zip(times).map(|(base, time)| base / time).collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ratios_are_taken_round_by_round() {
        // The machine was half as fast in the second round.
        assert_eq!(speedup(&[2.0, 4.0, 2.0], &[1.0, 2.0, 1.0]), 2.0);
        assert_eq!(median(&[3.0, 1.0, 2.0]), 2.0);
    }

    #[test]
    fn everybody_has_a_turn_in_every_round() {
        let (mut a, mut b) = (0, 0);
        let times = in_turns(&mut [&mut || a += 1, &mut || b += 1], 3);
        assert_eq!(times.iter().map(Vec::len).collect::<Vec<_>>(), [3, 3]);
        assert!(a >= 6 && b >= 6);
    }
}
