//! Which rank pays for its bits.
//!
//! Codes of `b` bits a weight leave an error `∝ 4^(−b)`. A part of rank `r` that adds `Δ` bits pays if it divides the
//! error by more than `4^Δ`, the [break-even](break_even). What it can divide it by is known before anything is coded:
//!
//! - the codes' error is a share of the energy that they code: with the fraction `f` of it in `r` directions, `1 − f`
//!   is left, and what is lost of `f` by rounding the factors;
//! - without error feedback the codes' error is spread evenly over the rotated inputs, and the outputs feel it as
//!   strongly as these are: with the fraction `g` of the inputs' power in `r` directions, a part fitted to the error
//!   takes away at most `g` of it. (Feedback has taken that away already.)
//!
//! Both are bounds of what happens, not what happens: factors are rounded, and rows that lose their spike unevenly are
//! met unevenly. So [`auto_rank`] tries what they promise, and decides by what it measures.

use crate::dense;
use crate::fit::{Fit, check_finite, check_moments, fit, loss, protected_columns};
use crate::svd::SvdSolver;
use pixel_core::{CodingSpec, Encoder, FactorStorage, LowRankSpec, Matrix, Moments, Shape, WeightError};
use serde::Serialize;

/// The largest rank that is looked at: two bits a weight where both sides are 1024, half a bit where they are 4096.
const LARGEST: usize = 128;

/// The ratio of errors at which `bits` more a weight, given to the codec instead, would do as well: `4^(−bits)`.
pub fn break_even(bits: f64) -> f64 {
    4f64.powf(-bits)
}

/// The share of a part's energy that the rounding of its factors leaves to the codes. In 8 bits, 128 normal numbers
/// reach 2.7 deviations, so that a step is 2.7/127 of one, and its square over 12 is the error of either factor; in F16
/// a step is at most 2⁻¹⁰ of the number.
fn rounding(storage: FactorStorage) -> f64 {
    match storage {
        FactorStorage::Int8 => 2.0 * (2.7f64 / 127.0).powi(2) / 12.0,
        FactorStorage::F16 => 2.0 * 2f64.powi(-20) / 12.0,
    }
}

/// What was found out about a low-rank part for a weight.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct Verdict {
    /// The rank that pays; 0 if none does.
    pub rank: usize,
    /// The rank that promised most, and was tried if it promised anything.
    pub candidate: usize,
    /// The bits a weight that the candidate adds.
    pub extra_bits: f64,
    /// The ratio of errors that it has to beat.
    pub break_even: f64,
    /// The ratio of errors that the spectra promise.
    pub promised: f64,
    /// The ratio that was measured; absent if the promise was too small to try.
    pub measured: Option<f64>,
}

/// The rank of a low-rank part for `weight` that beats the same bits spent on codes, by the spectra of weight and
/// inputs and then by trial. Of the part that `spec` names, the storage alone is read; the default is taken if it names
/// none.
///
/// # Errors
/// As [`fit`].
pub fn auto_rank(
    weight: &Matrix,
    spec: &CodingSpec,
    moments: Option<&Moments>,
    rounds: usize,
    solver: &dyn SvdSolver,
) -> Result<Verdict, WeightError> {
    let shape = weight.shape();
    check_finite(weight)?;
    check_moments(shape, moments)?;
    let storage = spec.low_rank.map(|part| part.storage).unwrap_or_default();
    let largest = shape.d_output().min(shape.d_input()).min(LARGEST);
    let columns = protected_columns(weight, spec, moments);
    let mut left = Left::new(&dense::without_columns(weight.clone(), &columns), largest, solver)?;
    if let (Some(moments), None) = (moments, spec.feedback) {
        left.inputs = dense::eigenvalue_shares(&moments.clone().without(&columns), left.weight.len())?;
    }
    let part = |rank| LowRankSpec { rank, storage };
    let promise = |rank: usize| {
        let left = left.after(rank);
        left + rounding(storage) * (1.0 - left)
    };
    let value = |rank: usize| promise(rank) / break_even(part(rank).bits_per_weight(shape));
    let candidate = (1..=largest).min_by(|&a, &b| value(a).total_cmp(&value(b))).unwrap_or(1);
    let extra_bits = part(candidate).bits_per_weight(shape);
    let (even, promised) = (break_even(extra_bits), promise(candidate));
    let mut verdict = Verdict { rank: 0, candidate, extra_bits, break_even: even, promised, measured: None };
    if promised < even {
        let spec = spec.clone().with_low_rank(Some(part(candidate)));
        let measured = tried(weight, &spec, moments, rounds, solver)?;
        verdict.measured = Some(measured);
        verdict.rank = if measured < even { candidate } else { 0 };
    }
    Ok(verdict)
}

/// The ratio of errors with and without the part that `spec` names.
fn tried(
    weight: &Matrix,
    spec: &CodingSpec,
    moments: Option<&Moments>,
    rounds: usize,
    solver: &dyn SvdSolver,
) -> Result<f64, WeightError> {
    let plain = spec.clone().with_low_rank(None);
    let (_, plain) = Encoder::new(&plain).with_moments(moments.cloned()).encode(weight.clone())?;
    let Fit { outcome, .. } = fit(weight, spec, moments, rounds, solver)?;
    let (with, without) = (loss(&outcome), loss(&plain));
    Ok(if without == 0.0 { 1.0 } else { with / without })
}

/// What is left of a weight's energy, and of its inputs' power, after the leading directions.
struct Left {
    /// `σᵢ²` over the energy, descending.
    weight: Vec<f64>,
    /// Eigenvalues of the moments over their sum, where errors are not fed back.
    inputs: Vec<f64>,
}

impl Left {
    fn new(weight: &Matrix, count: usize, solver: &dyn SvdSolver) -> Result<Self, WeightError> {
        let energy = energy(weight);
        let values = solver.svd(weight.as_ref(), count)?.singular_values;
        let share = |s: f64| if energy == 0.0 { 0.0 } else { s * s / energy };
        Ok(Self { weight: values.into_iter().map(share).collect(), inputs: Vec::new() })
    }

    fn after(&self, rank: usize) -> f64 {
        let left = |shares: &[f64]| (1.0 - shares.iter().take(rank).sum::<f64>()).max(0.0);
        left(&self.weight).min(left(&self.inputs))
    }
}

/// The smallest rank whose directions hold the fraction `threshold` of the energy of `weight`: the rule of the
/// original.
///
/// # Errors
/// As the solver.
pub fn rank_by_energy(weight: &Matrix, threshold: f64, solver: &dyn SvdSolver) -> Result<usize, WeightError> {
    let shape = weight.shape();
    let largest = shape.d_output().min(shape.d_input());
    let shares = Left::new(weight, largest, solver)?;
    let enough = (1..=largest).find(|&rank| shares.after(rank) <= 1.0 - threshold + 1e-9);
    Ok(enough.unwrap_or(largest))
}

/// The largest rank that adds at most `bits` a weight; 0 if not even one does.
pub fn rank_by_budget(shape: Shape, bits: f64, storage: FactorStorage) -> usize {
    let largest = shape.d_output().min(shape.d_input());
    let one = LowRankSpec { rank: 1, storage }.bits_per_weight(shape);
    ((bits / one * (1.0 + 1e-12)).floor().max(0.0) as usize).min(largest)
}

pub(crate) fn energy(weight: &Matrix) -> f64 {
    weight.as_slice().iter().map(|&w| f64::from(w) * f64::from(w)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::svd::FaerSvd;

    fn diagonal(values: &[f32]) -> Matrix {
        let n = values.len();
        dense::matrix(n, n, (0..n * n).map(|at| if at / n == at % n { values[at / n] } else { 0.0 }).collect())
    }

    #[test]
    fn energies_choose_the_rank() {
        // Energies 16, 4, 1, 1 of 22.
        let weight = diagonal(&[1.0, 4.0, 1.0, 2.0]);
        for (threshold, rank) in [(0.0, 1), (0.72, 1), (0.73, 2), (0.90, 2), (0.91, 3), (0.96, 4), (1.0, 4)] {
            assert_eq!(rank_by_energy(&weight, threshold, &FaerSvd).unwrap(), rank, "{threshold}");
        }
    }

    #[test]
    fn a_budget_buys_what_it_pays_for() {
        let shape = Shape::new(256, 512).unwrap();
        // (256 + 512)·8 bits and six scales of 16, over 131072 weights.
        let one = (768.0 * 8.0 + 96.0) / 131072.0;
        assert_eq!(rank_by_budget(shape, 3.0 * one, FactorStorage::Int8), 3);
        assert_eq!(rank_by_budget(shape, 2.99 * one, FactorStorage::Int8), 2);
        assert_eq!(rank_by_budget(shape, 0.9 * one, FactorStorage::Int8), 0);
        assert_eq!(rank_by_budget(shape, 1e9, FactorStorage::Int8), 256);
        assert_eq!(rank_by_budget(shape, f64::NAN, FactorStorage::Int8), 0);
    }

    #[test]
    fn a_bit_is_worth_a_factor_of_four() {
        assert_eq!([break_even(0.0), break_even(0.5), break_even(1.0)], [1.0, 0.5, 0.25]);
    }
}
