//! Factors and codes for one weight, fitted to one another in turns.
//!
//! Everything happens in the basis of the weight's rotation, protected columns at zero: `A = W·Q` is the target, `H`
//! the second moments of the rotated inputs, `P` what the codes decode to. The best part of rank `r` for given codes is
//! that of `A − P` under the norm `tr(X·H·Xᵀ)`: with `H = C·Cᵀ` and `U` the leading left singular vectors of
//! `(A − P)·C`,
//!
//! ```text
//! L = U·Uᵀ·(A − P),   up = U,   down = Uᵀ·(A − P)
//! ```
//!
//! which needs no inverse of `C`.
//!
//! With error feedback the codes' error is spread evenly over what the inputs feel, and what is left to gain is what
//! they need not code at all: the start is the plain decomposition of `A`. Without feedback the error is spread evenly
//! over the *weights*, so that a few directions in which the inputs are strong feel most of it: the start is the
//! weighted one, and the codes of the weight itself with a part fitted to their error.
//!
//! Sources: Saha et al., *CALDERA* (2024), for the alternation; Zhang et al., *QERA* (2025), for the weighted optimum.

use crate::dense;
use crate::svd::SvdSolver;
use pixel_core::encode::largest_columns;
use pixel_core::math::metrics::ErrorSums;
use pixel_core::plan::LowRankFitter;
use pixel_core::{
    CodingSpec, ConfigError, Encoder, LowRank, LowRankSpec, Matrix, Moments, Outcome, OutputError, PackedWeight,
    PreparedInputs, Rotation, Shape, WeightError,
};
use std::cell::OnceCell;
use std::sync::Arc;

/// A weight with the low-rank part that was found best.
#[derive(Debug)]
pub struct Fit {
    /// The weight.
    pub packed: PackedWeight,
    /// Its error.
    pub outcome: Outcome,
    /// The loss after each step, the error of the outputs where moments are known and that of the weight otherwise,
    /// with what was done.
    pub steps: Vec<(FitStep, f64)>,
}

/// One step of a fit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FitStep {
    /// What a given part leaves was coded.
    Codes,
    /// A part was fitted to what given codes leave.
    Factors,
}

/// Compresses `weight` into codes and a low-rank part, as `spec` says: a start, then `rounds` in which the part is
/// fitted to what the codes leave and the codes are made anew. The best of all that was seen is kept. `moments` are
/// those of the weight's inputs, if they are known; a `spec` without feedback still chooses the part by them.
///
/// # Errors
/// [`WeightError`] for a weight that is not finite, moments of another width, a `spec` that names no low-rank part or
/// that the weight's shape does not allow, or a decomposition that failed.
pub fn fit(
    weight: &Matrix,
    spec: &CodingSpec,
    moments: Option<&Moments>,
    rounds: usize,
    solver: &dyn SvdSolver,
) -> Result<Fit, WeightError> {
    let setting = Setting::new(weight, spec, moments, solver)?;
    let mut best = None;
    let mut steps = Vec::new();
    let mut current = setting.encode(Some(&setting.start()?))?;
    if !setting.feedback && moments.is_some() {
        // The codes of the weight itself, and a part for their error.
        let codes = setting.encode(None)?;
        let part = setting.leading(&setting.left(&codes.0))?;
        keep(&mut best, &mut steps, FitStep::Factors, setting.refit(codes, &part)?);
    }
    for _ in 0..rounds {
        let part = setting.leading(&setting.left(&current.0))?;
        let refitted = setting.refit(current.clone(), &part)?;
        keep(&mut best, &mut steps, FitStep::Codes, current);
        let before = best.as_ref().map_or(f64::INFINITY, |(loss, _)| *loss);
        keep(&mut best, &mut steps, FitStep::Factors, refitted);
        current = setting.encode(Some(&part))?;
        if loss(&current.1) >= before {
            break;
        }
    }
    keep(&mut best, &mut steps, FitStep::Codes, current);
    let (_, (packed, outcome)) = best.expect("at least the start was kept");
    Ok(Fit { packed, outcome, steps })
}

/// The relative error of the outputs where moments are known, of the weight otherwise.
pub(crate) fn loss(outcome: &Outcome) -> f64 {
    outcome.output.map_or(outcome.weight, |output| output.sums).relative_mse()
}

type Candidate = (PackedWeight, Outcome);

fn keep(best: &mut Option<(f64, Candidate)>, steps: &mut Vec<(FitStep, f64)>, step: FitStep, candidate: Candidate) {
    let loss = loss(&candidate.1);
    steps.push((step, loss));
    if best.as_ref().is_none_or(|(found, _)| loss < *found) {
        *best = Some((loss, candidate));
    }
}

/// One weight in the basis of its rotation, with what its inputs say.
struct Setting<'a> {
    weight: &'a Matrix,
    spec: &'a CodingSpec,
    /// The part that `spec` names.
    low_rank: LowRankSpec,
    moments: Option<&'a Moments>,
    /// Whether errors are fed back.
    feedback: bool,
    columns: Vec<u32>,
    rotation: Option<Rotation>,
    /// `A`.
    target: Matrix,
    /// `C`, if the moments are known; found when it is asked for.
    root: OnceCell<Option<Matrix>>,
    /// The moments as error feedback takes them, if it does; likewise.
    inputs: OnceCell<Option<PreparedInputs>>,
    solver: &'a dyn SvdSolver,
}

impl<'a> Setting<'a> {
    fn new(
        weight: &'a Matrix,
        spec: &'a CodingSpec,
        moments: Option<&'a Moments>,
        solver: &'a dyn SvdSolver,
    ) -> Result<Self, WeightError> {
        let shape = weight.shape();
        let low_rank = spec.low_rank.ok_or(ConfigError::Rank { rank: 0, shape })?;
        spec.check(shape)?;
        check_finite(weight)?;
        check_moments(shape, moments)?;
        let feedback = spec.feedback.is_some() && moments.is_some();
        let columns = protected_columns(weight, spec, moments);
        let rotation = spec.rotation.map(|seed| Rotation::new(shape.d_input(), seed));
        let target = in_basis(weight.clone(), &columns, rotation.as_ref());
        let (root, inputs) = (OnceCell::new(), OnceCell::new());
        Ok(Self { weight, spec, low_rank, moments, feedback, columns, rotation, target, root, inputs, solver })
    }

    fn root(&self) -> Option<&Matrix> {
        let find = || {
            let moments = self.moments?.clone().without(&self.columns);
            Some(dense::square_root(&match &self.rotation {
                None => moments,
                Some(rotation) => moments.rotated(rotation),
            }))
        };
        self.root.get_or_init(find).as_ref()
    }

    fn inputs(&self) -> Option<&PreparedInputs> {
        let prepare = || {
            let moments = self.moments.filter(|_| self.feedback)?;
            Some(PreparedInputs::new(moments.clone(), self.spec, self.columns.clone()))
        };
        self.inputs.get_or_init(prepare).as_ref()
    }

    /// The part with which to begin.
    fn start(&self) -> Result<LowRank, WeightError> {
        if self.feedback { self.plain(&self.target) } else { self.leading(&self.target) }
    }

    fn plain(&self, left: &Matrix) -> Result<LowRank, WeightError> {
        Ok(self.solver.svd(left.as_ref(), self.low_rank.rank)?.into_low_rank())
    }

    /// The best part of `left`, weighted by the moments if they are known.
    fn leading(&self, left: &Matrix) -> Result<LowRank, WeightError> {
        let Some(root) = self.root() else { return self.plain(left) };
        let up = self.solver.svd(dense::product(left, root).as_ref(), self.low_rank.rank)?.u;
        let down = dense::transposed_product(&up, left);
        Ok(LowRank { up, down })
    }

    /// The weight as codes of what `part` leaves, or of all of it.
    fn encode(&self, part: Option<&LowRank>) -> Result<Candidate, WeightError> {
        let spec = self.spec.clone().with_low_rank(part.map(|_| self.low_rank));
        let encoder = Encoder::new(&spec);
        let encoder = match self.inputs() {
            Some(inputs) => encoder.with_inputs(inputs),
            None => encoder.with_moments(self.moments.cloned()),
        };
        let encoder = match part {
            Some(part) => encoder.with_low_rank(part),
            None => encoder,
        };
        encoder.encode(self.weight.clone())
    }

    /// `A − P`: what the codes of `packed` leave.
    fn left(&self, packed: &PackedWeight) -> Matrix {
        let dense = packed.synthesize();
        let mut error = self.weight.clone();
        error.as_mut_slice().iter_mut().zip(dense.as_slice()).for_each(|(w, d)| *w -= d);
        let mut left = in_basis(error, &self.columns, self.rotation.as_ref());
        if let Some(part) = packed.low_rank_part() {
            part.add_scaled(&mut left, 1.0);
        }
        left
    }

    /// The codes of a candidate with `part` in place of its own.
    fn refit(&self, (packed, outcome): Candidate, part: &LowRank) -> Result<Candidate, WeightError> {
        let packed = packed.with_low_rank(part, self.low_rank.storage);
        let packed = packed.map_err(|error| WeightError::LowRank(Box::new(error)))?;
        let dense = packed.synthesize();
        let weight = ErrorSums::between(self.weight.as_slice(), dense.as_slice());
        // Damping is that of the codes.
        let output = outcome.output.zip(self.moments).map(|(output, moments)| {
            let sums = moments.output_error(self.weight.as_ref(), dense.as_ref());
            OutputError { sums, ..output }
        });
        Ok((packed, Outcome { weight, output }))
    }
}

/// The columns that an [`Encoder`] protects, for `moments` of the right width.
pub(crate) fn protected_columns(weight: &Matrix, spec: &CodingSpec, moments: Option<&Moments>) -> Vec<u32> {
    largest_columns(weight.as_ref(), moments.filter(|_| spec.feedback.is_some()), spec.protect)
}

/// `weight` in the basis of `rotation`, `columns` at zero.
fn in_basis(weight: Matrix, columns: &[u32], rotation: Option<&Rotation>) -> Matrix {
    let mut weight = dense::without_columns(weight, columns);
    if let Some(rotation) = rotation {
        rotation.rotate(&mut weight);
    }
    weight
}

/// Names the first weight that is not finite by its place before it is rotated.
pub(crate) fn check_finite(weight: &Matrix) -> Result<(), WeightError> {
    let n = weight.shape().d_input();
    match weight.as_slice().iter().position(|w| !w.is_finite()) {
        None => Ok(()),
        Some(at) => Err(WeightError::NotFinite { row: at / n, col: at % n, value: weight.as_slice()[at] }),
    }
}

pub(crate) fn check_moments(shape: Shape, moments: Option<&Moments>) -> Result<(), WeightError> {
    match moments.map(Moments::d_input).filter(|&found| found != shape.d_input()) {
        None => Ok(()),
        Some(found) => Err(WeightError::MomentsWidth { shape, found }),
    }
}

/// Fits low-rank parts for the plans of [`pixel_core::plan`].
#[derive(Debug, Clone)]
pub struct HybridFitter {
    /// Who decomposes.
    pub solver: Arc<dyn SvdSolver>,
    /// Rounds of [`fit`].
    pub rounds: usize,
}

impl LowRankFitter for HybridFitter {
    fn compress(
        &self,
        weight: Matrix,
        spec: &CodingSpec,
        moments: Option<Moments>,
    ) -> Result<(PackedWeight, Outcome), WeightError> {
        let Fit { packed, outcome, .. } = fit(&weight, spec, moments.as_ref(), self.rounds, &*self.solver)?;
        Ok((packed, outcome))
    }

    fn residual(&self, mut weight: Matrix, spec: &CodingSpec, moments: Option<Moments>) -> Result<Matrix, WeightError> {
        let part = {
            let setting = Setting::new(&weight, spec, moments.as_ref(), &*self.solver)?;
            let mut product = setting.start()?.product();
            if let Some(rotation) = &setting.rotation {
                let mut scratch = rotation.scratch();
                let rows = product.as_mut_slice().chunks_exact_mut(weight.shape().d_input());
                rows.for_each(|row| rotation.inverse(row, &mut scratch));
            }
            product
        };
        weight.as_mut_slice().iter_mut().zip(part.as_slice()).for_each(|(w, p)| *w -= p);
        Ok(weight)
    }

    fn peak_bytes(&self, shape: Shape) -> u64 {
        let (m, n) = (shape.d_output() as u64, shape.d_input() as u64);
        // Target, what is left, its weighted form, a copy for the codes, two candidates' dense forms and codes; the
        // solver's copy and both orthogonal factors. Then `C` and three forms of `H`.
        4 * m * n * 10 + 4 * m.min(n) * (m + n) + n * n * (4 + 3 * 8)
    }
}
