//! Matching pursuit and orthogonal matching pursuit.

use super::cholesky::GrowingCholesky;
use crate::patterns::dot;
use serde::{Deserialize, Serialize};

/// What happens to the scales when another pattern is picked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PursuitMethod {
    /// Only the new pattern gets a scale: its inner product with the residual (Mallat & Zhang 1993).
    Matching,
    /// All scales are refitted by least squares (Pati, Rezaiifar & Krishnaprasad 1993).
    #[default]
    Orthogonal,
}

/// A target that is being written as a sum of scaled patterns, `target ≈ Σ sᵢ · pᵢ`.
///
/// The caller chooses the patterns; [`pick`](Self::pick) fits the scales and leaves the residual for the next choice.
/// The residual's energy falls with every pick that is taken. In [`PursuitMethod::Orthogonal`] it is orthogonal to
/// every picked pattern, to the rounding of f32; patterns that depend on one another share their scale by a ridge of
/// 1e-6.
///
/// # Example
/// ```
/// use pixel_core::dictionary::{Pursuit, PursuitMethod};
/// let mut pursuit = Pursuit::new(PursuitMethod::Orthogonal, &[3.0, 4.0]);
/// assert!(pursuit.pick(&[1.0, 0.0]));
/// assert_eq!(pursuit.residual(), [0.0, 4.0]);
/// assert!(!pursuit.pick(&[1.0, 0.0]), "explains nothing more");
/// ```
#[derive(Debug, Clone)]
pub struct Pursuit<'a> {
    method: PursuitMethod,
    target: &'a [f32],
    patterns: Vec<Vec<f32>>,
    scales: Vec<f64>,
    /// Inner products of the patterns with the target.
    products: Vec<f64>,
    gram: GrowingCholesky,
    residual: Vec<f32>,
    energy: f64,
}

impl<'a> Pursuit<'a> {
    /// Starts with no pattern: the residual is the target, whose values must be finite.
    pub fn new(method: PursuitMethod, target: &'a [f32]) -> Self {
        Self {
            method,
            target,
            patterns: Vec::new(),
            scales: Vec::new(),
            products: Vec::new(),
            gram: GrowingCholesky::default(),
            residual: target.to_vec(),
            energy: dot(target, target),
        }
    }

    /// The residual: the target minus the scaled patterns picked so far.
    pub fn residual(&self) -> &[f32] {
        &self.residual
    }

    /// The scale of each pattern, in the order of the picks.
    pub fn scales(&self) -> Vec<f32> {
        self.scales.iter().map(|scale| *scale as f32).collect()
    }

    /// `‖residual‖ / ‖target‖`, and 0 for a zero target.
    pub fn relative_error(&self) -> f64 {
        if self.energy == 0.0 { 0.0 } else { (self.energy / dot(self.target, self.target)).sqrt() }
    }

    /// Adds a pattern. Returns false, and changes nothing, if that would not lower the residual's energy.
    ///
    /// # Panics
    /// If the pattern is not as long as the target.
    pub fn pick(&mut self, pattern: &[f32]) -> bool {
        assert_eq!(pattern.len(), self.target.len(), "a pattern as long as the target");
        let energy = dot(pattern, pattern);
        if energy == 0.0 {
            return false;
        }
        let scales = match self.method {
            PursuitMethod::Matching => {
                let scale = dot(&self.residual, pattern) / energy;
                self.scales.iter().copied().chain([scale]).collect()
            }
            PursuitMethod::Orthogonal => self.refit(pattern, energy),
        };
        self.patterns.push(pattern.to_vec());
        let residual = self.subtracted(&scales);
        let energy = dot(&residual, &residual);
        if energy < self.energy {
            (self.scales, self.residual, self.energy) = (scales, residual, energy);
            return true;
        }
        self.patterns.pop();
        if self.method == PursuitMethod::Orthogonal {
            self.products.pop();
            self.gram.pop();
        }
        false
    }

    /// Adds the pattern to the normal equations and solves them.
    fn refit(&mut self, pattern: &[f32], energy: f64) -> Vec<f64> {
        let products: Vec<f64> = self.patterns.iter().map(|other| dot(other, pattern)).chain([energy]).collect();
        self.gram.push(&products);
        self.products.push(dot(self.target, pattern));
        self.gram.solve(&self.products)
    }

    /// The target minus the scaled patterns, summed in f64.
    fn subtracted(&self, scales: &[f64]) -> Vec<f32> {
        let mut residual: Vec<f64> = self.target.iter().map(|value| f64::from(*value)).collect();
        for (pattern, scale) in self.patterns.iter().zip(scales) {
            residual.iter_mut().zip(pattern).for_each(|(out, value)| *out -= scale * f64::from(*value));
        }
        residual.into_iter().map(|value| value as f32).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patterns::{computed_pattern, norm};
    use approx::assert_abs_diff_eq;
    use proptest::prelude::*;

    fn pattern(index: u16, len: usize) -> Vec<f32> {
        let mut pattern = vec![0.0; len];
        computed_pattern(0, index, &mut pattern);
        pattern
    }

    proptest! {
        #[test]
        fn the_residual_never_grows(
            target in prop::collection::vec(-3.0f32..3.0, 1..24), picks in prop::collection::vec(0u16..12, 1..10),
            orthogonal in any::<bool>()
        ) {
            let method = if orthogonal { PursuitMethod::Orthogonal } else { PursuitMethod::Matching };
            let mut pursuit = Pursuit::new(method, &target);
            let mut last = norm(&target);
            for index in picks {
                let picked = pursuit.pick(&pattern(index, target.len()));
                let now = norm(pursuit.residual());
                let is_lower = if picked { now < last } else { now == last };
                prop_assert!(is_lower, "{} to {}", last, now);
                last = now;
            }
        }

        #[test]
        fn an_orthogonal_residual_is_orthogonal_to_what_was_picked(
            target in prop::collection::vec(-3.0f32..3.0, 12..24), picks in prop::collection::btree_set(0u16..40, 1..8)
        ) {
            let mut pursuit = Pursuit::new(PursuitMethod::Orthogonal, &target);
            let patterns: Vec<_> = picks.into_iter().map(|index| pattern(index, target.len())).collect();
            let picked: Vec<_> = patterns.into_iter().filter(|pattern| pursuit.pick(pattern)).collect();
            for pattern in &picked {
                assert_abs_diff_eq!(dot(pattern, pursuit.residual()), 0.0, epsilon = 1e-4 * (1.0 + norm(&target)));
            }
        }
    }

    #[test]
    fn matching_leaves_earlier_scales_alone_and_orthogonal_refits_them() {
        let (target, a, b) = ([1.0, 1.0], [1.0, 0.0], [0.6, 0.8]);
        let scales = |method| {
            let mut pursuit = Pursuit::new(method, &target);
            assert!(pursuit.pick(&a) && pursuit.pick(&b));
            pursuit.scales()
        };
        for (method, expected) in [(PursuitMethod::Matching, [1.0, 0.8]), (PursuitMethod::Orthogonal, [0.25, 1.25])] {
            assert_abs_diff_eq!(scales(method).as_slice(), expected.as_slice(), epsilon = 1e-6);
        }
    }

    #[test]
    fn a_pick_that_is_refused_changes_nothing() {
        let (target, a, b) = ([1.0, 1.0, 0.5], [1.0, 0.0, 0.0], [0.6, 0.8, 0.0]);
        let pursue = |picks: &[[f32; 3]]| {
            let mut pursuit = Pursuit::new(PursuitMethod::Orthogonal, &target);
            let picked: Vec<bool> = picks.iter().map(|pattern| pursuit.pick(pattern)).collect();
            (picked, pursuit.scales(), pursuit.residual().to_vec())
        };
        let (picked, scales, residual) = pursue(&[a, a, [0.0; 3], b]);
        assert_eq!(picked, [true, false, false, true]);
        assert_eq!((vec![true; 2], scales, residual), pursue(&[a, b]));
    }
}
