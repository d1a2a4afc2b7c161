//! The step after a codec: the row scales that fit best, and the error that remains.

use super::condition::Conditioned;
use crate::math::metrics::ErrorSums;
use half::f16;

/// How well the decoded codes fit the rows of a conditioned weight.
pub(super) struct Fits {
    /// The weights of the rows.
    pub(super) plain: Vec<RowFit>,
    /// The outputs of the rows, where errors were fed back.
    pub(super) outputs: Option<Vec<RowFit>>,
    /// What damping added to the power of each input.
    pub(super) added: f64,
}

impl Fits {
    /// Those of a weight of whose inputs nothing is known.
    pub(super) const fn of_weights(plain: Vec<RowFit>) -> Self {
        Self { plain, outputs: None, added: 0.0 }
    }

    /// The row scales that fit best: the weights, or, where errors were fed back, the outputs under the damped moments.
    pub(super) fn refit(&self, conditioned: &Conditioned) -> Vec<f16> {
        let scales = conditioned.row_scales.iter();
        match &self.outputs {
            None => scales.zip(&self.plain).map(|(scale, fit)| fit.refit(*scale)).collect(),
            Some(outputs) => {
                let damped = outputs.iter().zip(&self.plain).map(|(fit, plain)| fit.plus(plain, self.added));
                scales.zip(damped).map(|(scale, fit)| fit.refit(*scale)).collect()
            }
        }
    }

    /// Power and error of the weight under `scales`, in units of the source. Rows too small for a scale lose all their
    /// power.
    pub(super) fn weight_sums(&self, conditioned: &Conditioned, scales: &[f16]) -> ErrorSums {
        let lost = ErrorSums { power: conditioned.lost_power, error: conditioned.lost_power };
        sums_of(&self.plain, conditioned, scales, lost)
    }

    /// Power and error of the layer's outputs under `scales`, where errors were fed back.
    pub(super) fn output_sums(&self, conditioned: &Conditioned, scales: &[f16]) -> Option<ErrorSums> {
        self.outputs.as_ref().map(|fits| sums_of(fits, conditioned, scales, ErrorSums::default()))
    }
}

/// Power and error of all rows under `scales`, added to `sums`, in units of the source.
fn sums_of(fits: &[RowFit], conditioned: &Conditioned, scales: &[f16], mut sums: ErrorSums) -> ErrorSums {
    if scales.is_empty() {
        fits.iter().for_each(|fit| sums += fit.sums(1.0, 1.0));
    }
    for ((old, new), fit) in conditioned.row_scales.iter().zip(scales).zip(fits) {
        sums += fit.sums(old.to_f64(), new.to_f64());
    }
    let unit = f64::from(conditioned.exponent.unit());
    ErrorSums { power: sums.power * unit * unit, error: sums.error * unit * unit }
}

/// Inner products of a row `v` and its reproduction `d`, from which the best scale and the error follow.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct RowFit {
    pub(super) vv: f64,
    pub(super) vd: f64,
    pub(super) dd: f64,
}

impl RowFit {
    /// Adds part of a row, in the order of its columns.
    pub(super) fn add(&mut self, values: &[f32], decoded: &[f32]) {
        for (&v, &d) in values.iter().zip(decoded) {
            let (v, d) = (f64::from(v), f64::from(d));
            self.vv += v * v;
            self.vd += v * d;
            self.dd += d * d;
        }
    }

    /// The fit under moments to whose diagonal `added` is added, `plain` being the fit under the identity.
    fn plus(&self, plain: &Self, added: f64) -> Self {
        Self { vv: self.vv + added * plain.vv, vd: self.vd + added * plain.vd, dd: self.dd + added * plain.dd }
    }

    /// The scale for which `‖scale·v − new·d‖²` is least, in F16; `scale` itself where no other is better.
    fn refit(&self, scale: f16) -> f16 {
        let new = f16::from_f64(scale.to_f64() * self.vd / self.dd);
        let error = |new: f16| self.sums(scale.to_f64(), new.to_f64()).error;
        if new.is_finite() && error(new) < error(scale) { new } else { scale }
    }

    /// Power and error of the row when `v` stands for `old·v` and is reproduced as `new·d`.
    fn sums(&self, old: f64, new: f64) -> ErrorSums {
        let error = old * old * self.vv - 2.0 * old * new * self.vd + new * new * self.dd;
        ErrorSums { power: old * old * self.vv, error: error.max(0.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_refitted_scale_is_the_least_squares_one() {
        let mut fit = RowFit::default();
        fit.add(&[1.0, 2.0], &[2.0, 4.0]);
        assert_eq!(fit.refit(f16::from_f32(3.0)), f16::from_f32(1.5));
        assert_eq!(fit.sums(3.0, 1.5).error, 0.0);
    }
}
