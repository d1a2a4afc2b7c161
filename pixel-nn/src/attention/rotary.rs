//! Rotary positions: a head's values turn in pairs, by an angle that grows with the token's place.

use super::config::{AttentionConfigError, in_range};
use burn::config::Config;
use burn::tensor::{DType, Device, Tensor, TensorData, assert_shape, s};
use std::f64::consts::TAU;
use std::sync::{Arc, Mutex, PoisonError};

/// Positions that one table covers at least. Decoding rebuilds it once in so many tokens, which makes one row of
/// cosines a token, and a table of heads of 128 stays at 128 KiB.
const MIN_TABLE_LEN: usize = 256;

/// Configuration of rotary positions, in the order of Llama: `x[i]` and `x[i + d/2]` are one pair (`rotate_half` in
/// Hugging Face's `modeling_llama.py`). Burn's `RotaryEncoding` pairs neighbours instead, which is the order of GPT-J:
/// the two do not read each other's weights.
///
/// Source: Su et al., RoFormer, <https://arxiv.org/abs/2104.09864>.
#[derive(Config, Debug, PartialEq)]
pub struct RotaryConfig {
    /// The base θ: pair `i` of a head of size `d` turns by `θ^(−2i/d)` radians a position.
    #[config(default = 10000.0)]
    pub theta: f64,
    /// How frequencies are changed so that a model reads texts longer than those of its training.
    #[config(default = "RotaryScaling::None")]
    pub scaling: RotaryScaling,
}

/// How the frequencies of [`RotaryConfig`] are scaled.
#[derive(Config, Debug, PartialEq, Copy)]
pub enum RotaryScaling {
    /// Frequencies stay.
    None,
    /// Every frequency is divided by `factor`: positions are interpolated.
    ///
    /// Source: Chen et al., <https://arxiv.org/abs/2306.15595>.
    Linear {
        /// Text length over the length in training.
        factor: f64,
    },
    /// Frequencies `f` of wavelength `λ = 2π/f` are kept where `λ < L/high`, divided by `factor` where `λ > L/low`, and
    /// between the two `f·(r + (1 − r)/factor)` with `r = (L/λ − low) / (high − low)`, where `L` is
    /// `original_max_positions`.
    ///
    /// Source: `apply_scaling` in `models/llama3/reference_impl/model.py` of
    /// <https://github.com/meta-llama/llama-models>.
    Llama3 {
        /// What low frequencies are divided by.
        factor: f64,
        /// Turns over the original length, below which a frequency is low.
        low_freq_factor: f64,
        /// Turns over the original length, above which a frequency is high; more than `low_freq_factor`.
        high_freq_factor: f64,
        /// The length of a text in the first training, in tokens.
        original_max_positions: usize,
    },
}

impl RotaryConfig {
    /// Checks the numbers, and that a head of `d_head` values splits into pairs.
    ///
    /// # Errors
    /// The first rule that is broken.
    pub fn validate(&self, d_head: usize) -> Result<(), AttentionConfigError> {
        let positive = |field, value: f64| in_range(field, value, value > 0.0 && value.is_finite(), "(0, ∞)");
        if !d_head.is_multiple_of(2) {
            return Err(AttentionConfigError::OddRotaryHead { d_head });
        }
        positive("rotary.theta", self.theta)?;
        match self.scaling {
            RotaryScaling::None => Ok(()),
            RotaryScaling::Linear { factor } => positive("rotary.scaling.factor", factor),
            RotaryScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                positive("rotary.scaling.factor", factor)?;
                positive("rotary.scaling.low_freq_factor", low_freq_factor)?;
                let above = high_freq_factor > low_freq_factor && high_freq_factor.is_finite();
                in_range("rotary.scaling.high_freq_factor", high_freq_factor, above, "(low_freq_factor, ∞)")?;
                positive("rotary.scaling.original_max_positions", original_max_positions as f64)
            }
        }
    }

    /// Radians a position for each pair of a head, `[d_head / 2]`, scaled.
    pub fn frequencies(&self, d_head: usize) -> Vec<f64> {
        let pairs = (0..d_head / 2).map(|i| self.theta.powf(-2.0 * i as f64 / d_head as f64));
        pairs.map(|frequency| self.scaling.apply(frequency)).collect()
    }
}

impl RotaryScaling {
    /// The frequency that takes the place of `frequency`, both in radians a position.
    fn apply(self, frequency: f64) -> f64 {
        match self {
            Self::None => frequency,
            Self::Linear { factor } => frequency / factor,
            Self::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let turns = original_max_positions as f64 * frequency / TAU;
                let kept = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                frequency * (kept + (1.0 - kept) / factor)
            }
        }
    }
}

/// Turns queries and keys by their positions; it has no parameters and no last position.
///
/// # Accuracy
/// Angles are formed and their sines and cosines taken in `f64` on the host, then rounded to the tensor's type. On the
/// device, in `f32`, the angle itself would carry an error of up to `position · 2⁻²⁴` radians: 0.008 at position
/// 131072. Tables are kept for a window of positions on the device last used; they move there when a module does.
#[derive(Debug)]
pub struct Rotary {
    theta: f64,
    frequencies: Arc<[f64]>,
    tables: Mutex<Option<Tables>>,
}

/// Cosines and sines of the positions from `start` on, each `[len, d_head / 2]`.
#[derive(Clone, Debug)]
struct Tables {
    start: usize,
    len: usize,
    cos: Tensor<2>,
    sin: Tensor<2>,
}

impl Rotary {
    /// Positions for heads of `d_head` values.
    ///
    /// # Panics
    /// If [`RotaryConfig::validate`] returns an error, with its message.
    pub fn new(config: &RotaryConfig, d_head: usize) -> Self {
        if let Err(error) = config.validate(d_head) {
            panic!("{error}");
        }
        Self { theta: config.theta, frequencies: config.frequencies(d_head).into(), tables: Mutex::new(None) }
    }

    /// The base θ.
    pub fn theta(&self) -> f64 {
        self.theta
    }

    /// Turns token `t` of `heads` as the one at position `start + t`: for pair `i` and angle `φ = (start + t)·f[i]`,
    /// `x[i]·cos φ − x[i + d/2]·sin φ` and `x[i + d/2]·cos φ + x[i]·sin φ`.
    ///
    /// # Shapes
    /// - heads: `[batch, n_heads, seq, d_head]`
    /// - output: `[batch, n_heads, seq, d_head]`
    ///
    /// # Panics
    /// If the last axis is not the `d_head` of [`new`](Self::new).
    pub fn rotate(&self, heads: Tensor<4>, start: usize) -> Tensor<4> {
        let half = self.frequencies.len();
        assert_shape!(heads, [_, _, _, 2 * half]);
        let [_, _, seq, _] = heads.dims();
        let (cos, sin) = self.tables(start, seq, &heads.device(), heads.dtype());
        let (cos, sin) = (cos.reshape([1, 1, seq, half]), sin.reshape([1, 1, seq, half]));

        let first = heads.clone().narrow(3, 0, half);
        let second = heads.narrow(3, half, half);
        let turned_first = first.clone() * cos.clone() - second.clone() * sin.clone();
        let turned_second = second * cos + first * sin;
        Tensor::cat(vec![turned_first, turned_second], 3)
    }

    /// Cosines and sines of a window of positions, each `[positions, d_head / 2]`, F32, and the row of position
    /// `start`, from which on there are `seq`.
    pub(super) fn window(&self, start: usize, seq: usize, device: &Device) -> (Tensor<2>, Tensor<2>, usize) {
        self.current(start, seq, device, DType::F32)
    }

    /// The rows of cosines and sines for `seq` positions from `start` on, from the current window or a new one.
    fn tables(&self, start: usize, seq: usize, device: &Device, dtype: DType) -> (Tensor<2>, Tensor<2>) {
        let (cos, sin, row) = self.current(start, seq, device, dtype);
        let rows = |table: Tensor<2>| table.slice(s![row..row + seq, ..]);
        (rows(cos), rows(sin))
    }

    fn current(&self, start: usize, seq: usize, device: &Device, dtype: DType) -> (Tensor<2>, Tensor<2>, usize) {
        // A table is replaced as a whole, so a panic elsewhere cannot have left half of one.
        let mut slot = self.tables.lock().unwrap_or_else(PoisonError::into_inner);
        let tables = match slot.take().filter(|tables| tables.serves(start, seq, device, dtype)) {
            Some(tables) => slot.insert(tables),
            None => slot.insert(self.build(start, seq, device, dtype)),
        };
        (tables.cos.clone(), tables.sin.clone(), start - tables.start)
    }

    /// A window that begins at `start` and covers `seq` positions and some to come.
    fn build(&self, start: usize, seq: usize, device: &Device, dtype: DType) -> Tables {
        let len = seq.next_power_of_two().max(MIN_TABLE_LEN);
        let table = |function: fn(f64) -> f64| {
            let angles = (start..start + len).flat_map(|p| self.frequencies.iter().map(move |f| p as f64 * f));
            let data = TensorData::new(angles.map(function).collect::<Vec<_>>(), [len, self.frequencies.len()]);
            Tensor::from_data(data, (device, dtype))
        };
        Tables { start, len, cos: table(f64::cos), sin: table(f64::sin) }
    }
}

/// A clone has a table of its own, so that copies of a module on several devices do not take turns rebuilding one.
impl Clone for Rotary {
    fn clone(&self) -> Self {
        let tables = self.tables.lock().unwrap_or_else(PoisonError::into_inner).clone();
        Self { theta: self.theta, frequencies: Arc::clone(&self.frequencies), tables: Mutex::new(tables) }
    }
}

impl Tables {
    /// Whether the window covers the positions, on that device and in that type.
    ///
    /// Equality of devices leaves autodiff out, but tensors with and without it do not mix.
    fn serves(&self, start: usize, seq: usize, device: &Device, dtype: DType) -> bool {
        let own = self.cos.device();
        self.start <= start
            && start + seq <= self.start + self.len
            && own == *device
            && own.is_autodiff() == device.is_autodiff()
            && self.cos.dtype() == dtype
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::abs_diff_eq;

    const LLAMA3: RotaryScaling = RotaryScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_max_positions: 8192,
    };

    /// The frequency that makes `turns` over 8192 positions.
    fn frequency(turns: f64) -> f64 {
        turns * TAU / 8192.0
    }

    fn row(tensor: Tensor<4>) -> Vec<f32> {
        tensor.into_data().try_to_vec().unwrap()
    }

    #[test]
    fn frequencies_fall_from_one_by_powers_of_theta() {
        let found = RotaryConfig::new().frequencies(8);
        for (found, expected) in found.iter().zip([1.0, 0.1, 0.01, 0.001]) {
            assert!(abs_diff_eq!(*found, expected, epsilon = 1e-15), "{found} {expected}");
        }
        let scaling = RotaryScaling::Linear { factor: 4.0 };
        let scaled = RotaryConfig::new().with_scaling(scaling).frequencies(8);
        assert!(scaled.iter().zip(found).all(|(scaled, found)| *scaled == found / 4.0));
    }

    #[test]
    fn llama3_keeps_high_divides_low_and_blends_between() {
        // r = (2 − 1)/(4 − 1) = 1/3, so f·(1/3 + 2/3/8) = 5f/12.
        for (turns, ratio) in [(40.0, 1.0), (4.0, 1.0), (2.0, 5.0 / 12.0), (1.0, 1.0 / 8.0), (0.1, 1.0 / 8.0)] {
            let found = LLAMA3.apply(frequency(turns)) / frequency(turns);
            assert!(abs_diff_eq!(found, ratio, epsilon = 1e-12), "{turns} turns: {found}, {ratio} expected");
        }
    }

    #[test]
    fn halves_are_paired_and_not_neighbours() {
        // One pair a half turn per position and one at rest: θ^(−2/4) = 0 nearly, the first frequency is always 1.
        let rotary = Rotary::new(&RotaryConfig::new().with_theta(1e30), 4);
        let heads = Tensor::<4>::from_data([[[[1.0, 2.0, 3.0, 4.0]]]], &Device::flex());
        let (sin, cos) = (1.0f32.sin(), 1.0f32.cos());
        let expected = [cos - 3.0 * sin, 2.0, 3.0 * cos + sin, 4.0];
        for (found, expected) in row(rotary.rotate(heads, 1)).iter().zip(expected) {
            assert!(abs_diff_eq!(*found, expected, epsilon = 1e-6), "{found} {expected}");
        }
    }

    #[test]
    fn position_zero_changes_nothing_and_any_window_gives_the_same_rows() {
        let rotary = Rotary::new(&RotaryConfig::new(), 6);
        let heads = Tensor::<4>::from_data([[[[0.5, -1.0, 2.0, 4.0, 0.25, -3.0]]]], &Device::flex());
        assert_eq!(row(rotary.rotate(heads.clone(), 0)), row(heads.clone()));

        // From the middle of a window, at its last row, behind it, far behind it, and back.
        for start in [3, MIN_TABLE_LEN - 1, MIN_TABLE_LEN, 70_000, 3] {
            let fresh = Rotary::new(&RotaryConfig::new(), 6).rotate(heads.clone(), start);
            assert_eq!(row(rotary.rotate(heads.clone(), start)), row(fresh), "{start}");
        }
    }

    #[test]
    fn a_distant_position_is_as_exact_as_a_near_one() {
        let config = RotaryConfig::new();
        let position = 1_000_003;
        let heads = Tensor::<4>::from_data([[[[1.0, 1.0, 0.0, 0.0]]]], &Device::flex());
        let found = row(Rotary::new(&config, 4).rotate(heads, position));
        for (i, frequency) in config.frequencies(4).iter().enumerate() {
            let (sin, cos) = (position as f64 * frequency).sin_cos();
            // One rounding to f32. The second angle, 10000 in f32, would be off by up to 0.001.
            assert!(
                abs_diff_eq!(f64::from(found[i]), cos, epsilon = 1e-7)
                    && abs_diff_eq!(f64::from(found[i + 2]), sin, epsilon = 1e-7)
            );
        }
    }

    #[test]
    #[should_panic(expected = "axis 3 expected 4, got 6")]
    fn another_head_size_is_refused() {
        let heads = Tensor::<4>::zeros([1, 1, 2, 6], &Device::flex());
        Rotary::new(&RotaryConfig::new(), 4).rotate(heads, 0);
    }
}
