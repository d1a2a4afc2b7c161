//! What moments of few inputs cannot know.
//!
//! A sum over `T` inputs says nothing of the directions that none of them has, and error feedback would move all errors
//! there. So a prior is added: the power that an input yet to come is expected to have along an axis, beyond what the
//! sum shows. With `p = w·‖x‖²`, the power of an input as it counts,
//!
//! ```text
//! λ = (1 − ρ) · E'[p²] / (E'[p] · T),     ρ² = Σ w_s·w_t·(x_s·x_t)² / Σ p_s·p_t  over pairs s ≠ t
//! ```
//!
//! `E'[p]/T` is one more ordinary input along every axis; `E'[p²]/E'[p]²` says by how much fewer inputs there are in
//! effect because their weights differ. `E'` leaves out the twentieth of every batch that has the most power: attention
//! sinks and the like, which may hold nearly all of it, in a few directions that are known well. `ρ` is what two inputs
//! have in common, near 1 where the same directions come again and again; giants are among them, and where they hold
//! all power, `λ` vanishes, and a share of that power is what remains ([`FeedbackOptions`](super::FeedbackOptions)).
//! `docs/quality.md` has the measurements.

use super::moments::Moments;

/// One input in so many is out of the ordinary.
const ORDINARY: usize = 20;

/// Sums over the powers `p` of inputs, from which follows how much their moments leave open.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Evidence {
    /// The number of inputs, `T`.
    pub tokens: u64,
    /// `Σ' p`, over ordinary inputs.
    pub ordinary: f64,
    /// `Σ' p²`, over ordinary inputs.
    pub ordinary_squares: f64,
    /// `Σ p²`, over all inputs.
    pub squares: f64,
}

impl Evidence {
    /// That of one batch of inputs `[tokens, d_input]`, row-major, of weight 1.
    ///
    /// # Panics
    /// If `d_input` is 0.
    pub fn of_inputs(d_input: usize, inputs: &[f32]) -> Self {
        let power = |row: &[f32]| row.iter().map(|&x| f64::from(x) * f64::from(x)).sum::<f64>() as f32;
        let powers: Vec<f32> = inputs.chunks_exact(d_input).map(power).collect();
        let mut evidence = Self::default();
        evidence.add(&powers);
        evidence
    }

    /// Adds a batch of inputs of the given powers.
    pub fn add(&mut self, powers: &[f32]) {
        let mut powers: Vec<f64> = powers.iter().map(|&p| f64::from(p)).collect();
        powers.sort_unstable_by(f64::total_cmp);
        let ordinary = &powers[..powers.len() - powers.len() / ORDINARY];
        self.tokens += powers.len() as u64;
        self.ordinary += ordinary.iter().sum::<f64>();
        self.ordinary_squares += ordinary.iter().map(|p| p * p).sum::<f64>();
        self.squares += powers.iter().map(|p| p * p).sum::<f64>();
    }

    /// `λ`, in the units of the diagonal of `moments`, which are those of the same inputs; 0 if nothing is known.
    pub(super) fn unseen_power(&self, moments: &Moments) -> f64 {
        match self.ordinary > 0.0 {
            true => (1.0 - self.common(moments)) * self.ordinary_squares / (self.ordinary * self.tokens as f64),
            false => 0.0,
        }
    }

    /// `ρ`, between 0 and 1: over all `s` and `t`, the sums are `T²·‖H‖²` and `T²·(tr H)²`, and each pair `s = t` is
    /// `p_t²` in both.
    fn common(&self, moments: &Moments) -> f64 {
        let same = self.squares / (self.tokens as f64).powi(2);
        let (shared, all) = (moments.squared_norm() - same, moments.trace().powi(2) - same);
        // One input has no pair, and rounding may leave less than nothing.
        if all > 0.0 { (shared / all).clamp(0.0, 1.0).sqrt() } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::rotation::split_mix;
    use approx::assert_relative_eq;

    fn unseen(d_input: usize, inputs: &[f32]) -> f64 {
        Evidence::of_inputs(d_input, inputs).unseen_power(&Moments::of_inputs(d_input, inputs))
    }

    fn noise(count: u64) -> Vec<f32> {
        (0..count).map(|i| (split_mix(9, i) >> 40) as f32 / 1e7 - 0.8).collect()
    }

    #[test]
    fn orthogonal_inputs_have_nothing_in_common() {
        // Powers 9 and 1: 82/10 a typical input, and two of them.
        assert_relative_eq!(unseen(3, &[3.0, 0.0, 0.0, 0.0, -1.0, 0.0]), 4.1, max_relative = 1e-6);
    }

    #[test]
    fn inputs_in_one_direction_leave_nothing_open() {
        assert_relative_eq!(unseen(2, &[1.0, 2.0, -2.0, -4.0, 0.5, 1.0]), 0.0, epsilon = 1e-5);
    }

    /// By the definition, pair by pair.
    #[test]
    fn what_inputs_have_in_common_is_their_mean_squared_cosine() {
        let (n, inputs) = (5, noise(5 * 7));
        let rows: Vec<&[f32]> = inputs.chunks(n).collect();
        let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
        let (mut shared, mut all) = (0.0, 0.0);
        for (i, a) in rows.iter().enumerate() {
            for (_, b) in rows.iter().enumerate().filter(|(j, _)| *j != i) {
                shared += dot(a, b).powi(2);
                all += dot(a, a) * dot(b, b);
            }
        }
        let found = Evidence::of_inputs(n, &inputs).common(&Moments::of_inputs(n, &inputs));
        assert_relative_eq!(found, (shared / all).sqrt(), max_relative = 1e-6);
    }

    /// A giant makes the mean power a thousand times as large, and what is unseen hardly larger.
    #[test]
    fn giants_are_out_of_the_ordinary() {
        let mut inputs = noise(8 * 64);
        let before = unseen(8, &inputs);
        inputs[..8].fill(100.0);
        assert!(unseen(8, &inputs) < 1.5 * before, "{} {before}", unseen(8, &inputs));
    }

    #[test]
    fn inputs_of_unequal_weight_are_fewer_in_effect() {
        let power = |powers: &[f32]| {
            let mut evidence = Evidence::default();
            evidence.add(powers);
            evidence.unseen_power(&Moments::identity(1000))
        };
        assert!(power(&[1.0, 3.0, 1.0, 3.0]) > power(&[2.0; 4]));
    }

    #[test]
    fn nothing_seen_is_nothing_known() {
        assert_eq!(Evidence::default().unseen_power(&Moments::identity(3)), 0.0);
        assert_eq!(unseen(2, &[0.0; 6]), 0.0);
        assert_relative_eq!(unseen(2, &[1.0, 1.0]), 2.0, max_relative = 1e-6);
    }
}
