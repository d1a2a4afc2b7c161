//! Rates under a budget: which of its choices each tensor takes, so that the sum of losses is least.

/// One way to store a tensor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// Bytes stored.
    pub bytes: u64,
    /// What it costs in quality; losses of all tensors add up.
    pub loss: f64,
}

/// How often the price of a byte is halved in search of the budget.
const BISECTIONS: usize = 100;

/// Picks a choice for each tensor, the sum of bytes within `budget`; `None` if even the smallest choices exceed it.
///
/// Each tensor minimises `loss + λ·bytes` under one price `λ` for all, the highest quality that the budget pays; the
/// remaining bytes then buy the steps that gain most a byte, as long as one fits. The picks lie on the lower convex
/// hull of each tensor's choices but for that last step, so the sum is within one step of the optimum.
///
/// # Panics
/// If a tensor has no choices or a loss is not finite.
///
/// # Sources
/// Shoham and Gersho, *Efficient bit allocation for an arbitrary set of quantizers* (1988).
///
/// # Example
/// ```
/// use pixel_core::plan::allocation::{Choice, allocate};
/// let small_or_good = |loss| vec![Choice { bytes: 10, loss: 4.0 * loss }, Choice { bytes: 20, loss }];
/// // Thirty bytes pay for one upgrade: that of the tensor that suffers more.
/// assert_eq!(allocate(&[small_or_good(1.0), small_or_good(3.0)], 30), Some(vec![0, 1]));
/// assert_eq!(allocate(&[small_or_good(1.0), small_or_good(3.0)], 19), None);
/// ```
pub fn allocate(tensors: &[Vec<Choice>], budget: u64) -> Option<Vec<usize>> {
    if let Some(choice) = tensors.iter().flatten().find(|choice| !choice.loss.is_finite()) {
        panic!("a choice of {} bytes has the loss {}", choice.bytes, choice.loss);
    }
    let bytes =
        |picks: &[usize]| -> u64 { picks.iter().zip(tensors).map(|(&pick, choices)| choices[pick].bytes).sum() };
    let (mut low, mut high) = (0.0, 1.0);
    let smallest = at_price(tensors, f64::INFINITY);
    if bytes(&smallest) > budget {
        return None;
    }
    let mut picks = at_price(tensors, low);
    if bytes(&picks) <= budget {
        return Some(picks);
    }
    while bytes(&at_price(tensors, high)) > budget && high < f64::MAX / 2.0 {
        high *= 2.0;
    }
    picks = smallest;
    for _ in 0..BISECTIONS {
        let price = 0.5 * (low + high);
        let found = at_price(tensors, price);
        if bytes(&found) <= budget {
            (high, picks) = (price, found);
        } else {
            low = price;
        }
    }
    let mut left = budget - bytes(&picks);
    while let Some((tensor, choice)) = best_step(tensors, &picks, left) {
        left -= tensors[tensor][choice].bytes - tensors[tensor][picks[tensor]].bytes;
        picks[tensor] = choice;
    }
    Some(picks)
}

/// The choice of least `loss + price·bytes` for each tensor, the smaller one of equals.
fn at_price(tensors: &[Vec<Choice>], price: f64) -> Vec<usize> {
    let cost = |choice: &Choice| {
        if price.is_infinite() { choice.bytes as f64 } else { choice.loss + price * choice.bytes as f64 }
    };
    let pick = |choices: &Vec<Choice>| {
        let compare = |&a: &usize, &b: &usize| {
            cost(&choices[a]).total_cmp(&cost(&choices[b])).then(choices[a].bytes.cmp(&choices[b].bytes))
        };
        (0..choices.len()).min_by(compare).expect("a tensor has choices")
    };
    tensors.iter().map(pick).collect()
}

/// The step to a larger choice that gains most a byte, within `left` bytes.
fn best_step(tensors: &[Vec<Choice>], picks: &[usize], left: u64) -> Option<(usize, usize)> {
    let mut best: Option<((usize, usize), f64)> = None;
    for (tensor, choices) in tensors.iter().enumerate() {
        let now = choices[picks[tensor]];
        for (index, choice) in choices.iter().enumerate() {
            let gain = now.loss - choice.loss;
            if choice.bytes <= now.bytes || choice.bytes - now.bytes > left || gain <= 0.0 {
                continue;
            }
            let rate = gain / (choice.bytes - now.bytes) as f64;
            if best.is_none_or(|(_, found)| rate > found) {
                best = Some(((tensor, index), rate));
            }
        }
    }
    best.map(|(step, _)| step)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::rotation::split_mix;

    /// Tensors of random sizes and sensitivities, losses falling fourfold a bit.
    fn random(seed: u64, count: usize) -> Vec<Vec<Choice>> {
        let number = |i: u64| (split_mix(seed, i) >> 40) as f64 / (1u64 << 24) as f64;
        let tensor = |t: u64| {
            let (weights, loss) = (100 + (number(2 * t) * 900.0) as u64, 0.1 + number(2 * t + 1) * 10.0);
            (1..=4).map(|bits| Choice { bytes: weights * bits, loss: loss * 0.25f64.powi(bits as i32) }).collect()
        };
        (0..count as u64).map(tensor).collect()
    }

    fn sums(tensors: &[Vec<Choice>], picks: &[usize]) -> (u64, f64) {
        let chosen = || picks.iter().zip(tensors).map(|(&pick, choices)| choices[pick]);
        (chosen().map(|c| c.bytes).sum(), chosen().map(|c| c.loss).sum())
    }

    #[test]
    fn few_tensors_come_close_to_the_best_of_all_picks() {
        for seed in 0..50 {
            let tensors = random(seed, 6);
            let largest: u64 = tensors.iter().map(|choices| choices[3].bytes).sum();
            let budget = largest * 6 / 10;
            let picks = allocate(&tensors, budget).unwrap();
            let (bytes, loss) = sums(&tensors, &picks);
            assert!(bytes <= budget);
            let all = (0..4usize.pow(6)).map(|code| (0..6).map(|t| code / 4usize.pow(t) % 4).collect::<Vec<_>>());
            let best = all.map(|picks| sums(&tensors, &picks)).filter(|(bytes, _)| *bytes <= budget);
            let best = best.map(|(_, loss)| loss).fold(f64::INFINITY, f64::min);
            assert!(loss <= 1.3 * best, "seed {seed}: {loss}, the best is {best}");
        }
    }

    #[test]
    fn many_tensors_beat_one_rate_for_all_by_what_theory_says() {
        let tensors = random(7, 200);
        let (budget, uniform) = sums(&tensors, &[1; 200]);
        let (bytes, loss) = sums(&tensors, &allocate(&tensors, budget).unwrap());
        assert!(bytes <= budget && budget - bytes < 100);
        assert!(loss < 0.85 * uniform, "{loss} {uniform}");
    }

    #[test]
    fn a_loss_that_is_no_number_is_refused_whatever_the_budget() {
        for loss in [f64::NAN, f64::INFINITY] {
            let choices = vec![Choice { bytes: 1, loss: 1.0 }, Choice { bytes: 2, loss }];
            for budget in [0, 1, 9] {
                let found = std::panic::catch_unwind(|| allocate(std::slice::from_ref(&choices), budget));
                assert!(found.is_err(), "{loss} {budget}");
            }
        }
    }

    #[test]
    fn a_budget_for_everything_takes_the_best_and_none_takes_nothing() {
        let tensors = random(3, 5);
        assert_eq!(allocate(&tensors, u64::MAX), Some(vec![3; 5]));
        let (smallest, _) = sums(&tensors, &[0; 5]);
        assert_eq!(allocate(&tensors, smallest), Some(vec![0; 5]));
        assert_eq!(allocate(&tensors, smallest - 1), None);
        assert_eq!(allocate(&[], 0), Some(vec![]));
    }
}
