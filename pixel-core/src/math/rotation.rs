//! Randomized orthogonal rotation of the input side.
//!
//! A rotated weight looks Gaussian whatever it looked like before, so that one dictionary fits every model:
//!
//! ```text
//! W' = W·Q,   Q = diag(±1)·(R_m ⊗ H_2^p)/√n,   n = m·2^p, m odd
//! ```
//!
//! `H` is the Hadamard matrix of Sylvester's construction and `R` the discrete Hartley matrix, `R[j][k] = cas(2πjk/m)`,
//! `cas x = cos x + sin x`. `R·R = m·I` and `R = Rᵀ` for every `m`, so there is one formula for every width. A layer
//! may rotate its activations instead, since `x·Wᵀ = (x·Q)·W'ᵀ`. The signs come from a seed: nothing is stored.
//!
//! Sources: Chee et al., *QuIP* (2023) and Tseng et al., *QuIP#* (2024) for incoherence by rotation; Bracewell,
//! *Discrete Hartley transform* (1983) for `R`.

use crate::math::linalg::add_product;
use crate::math::simd::{Simd, for_every_level};
use crate::math::trigonometry::cas_turns;
use crate::matrix::Matrix;
use rustfft::{Fft, FftPlannerScalar, num_complex::Complex};
use std::cell::RefCell;
use std::sync::Arc;

/// Odd parts up to this are multiplied out; longer ones go through a fast Fourier transform.
const DENSE_LIMIT: usize = 128;

/// The rotation of rows of one width.
///
/// # Example
/// ```
/// use pixel_core::Rotation;
/// let rotation = Rotation::new(12, 7);
/// let mut row: Vec<f32> = (0..12).map(|i| i as f32).collect();
/// let mut scratch = rotation.scratch();
/// rotation.forward(&mut row, &mut scratch);
/// rotation.inverse(&mut row, &mut scratch);
/// assert!(row.iter().enumerate().all(|(i, x)| (x - i as f32).abs() < 1e-4));
/// ```
pub struct Rotation {
    seed: u64,
    /// ±1, `[n]`.
    signs: Vec<f32>,
    /// `2^p`.
    power: usize,
    odd: Odd,
    /// `1/√n`, or `1/√(2^p)` where the odd part is scaled already.
    scale: f32,
}

/// The transform over the odd part, `m`.
enum Odd {
    One,
    /// `R/√m`, `[m, m]`.
    Dense(Vec<f32>),
    /// In f64 by scalar code, so that the result does not depend on the machine's vector width.
    Fast(Arc<dyn Fft<f64>>),
}

/// Working memory of a [`Rotation`], reused from row to row.
#[derive(Debug, Default)]
pub struct RotationScratch<T = f32> {
    row: Vec<T>,
    spectrum: Vec<Complex<f64>>,
    fft: Vec<Complex<f64>>,
}

impl Rotation {
    /// The rotation of rows of `d_input` values whose signs come from `seed`.
    ///
    /// # Panics
    /// If `d_input` is zero.
    pub fn new(d_input: usize, seed: u64) -> Self {
        assert!(d_input > 0, "a rotation of width 0");
        let power = 1usize << d_input.trailing_zeros();
        let m = d_input / power;
        let odd = match m {
            1 => Odd::One,
            2..=DENSE_LIMIT => Odd::Dense(hartley(m)),
            _ => Odd::Fast(FftPlannerScalar::new().plan_fft_forward(m)),
        };
        let divisor = if matches!(odd, Odd::Fast(_)) { d_input } else { power };
        Self { seed, signs: signs(d_input, seed), power, odd, scale: (1.0 / (divisor as f64).sqrt()) as f32 }
    }

    /// The seed of the signs.
    pub const fn seed(&self) -> u64 {
        self.seed
    }

    /// The width of the rows.
    pub fn d_input(&self) -> usize {
        self.signs.len()
    }

    /// The odd part `m` of the width.
    pub fn odd_part(&self) -> usize {
        self.d_input() / self.power
    }

    /// Bit `i mod 32` of word `i / 32` is set where sign `i` is −1, `[⌈d_input / 32⌉]`.
    pub fn sign_words(&self) -> Vec<u32> {
        let bit = |(i, sign): (usize, &f32)| u32::from(*sign < 0.0) << i;
        self.signs.chunks(32).map(|signs| signs.iter().enumerate().map(bit).sum()).collect()
    }

    /// `cas(2πj/m)` for the odd part `m`, `[m]`: entry `(j, k)` of the Hartley matrix is value `j·k mod m`.
    pub fn hartley_values(&self) -> Vec<f32> {
        let m = self.odd_part() as u64;
        (0..m).map(|j| cas_turns(j, m) as f32).collect()
    }

    /// Working memory for [`forward`](Self::forward) and [`inverse`](Self::inverse).
    pub fn scratch(&self) -> RotationScratch {
        self.scratch_of()
    }

    fn scratch_of<T: Scalar>(&self) -> RotationScratch<T> {
        let mut scratch = RotationScratch::default();
        self.fit(&mut scratch);
        scratch
    }

    /// Gives working memory its sizes.
    fn fit<T: Scalar>(&self, scratch: &mut RotationScratch<T>) {
        scratch.row.resize(self.d_input(), T::default());
        if let Odd::Fast(fft) = &self.odd {
            scratch.spectrum.resize(fft.len(), Complex::default());
            scratch.fft.resize(fft.get_inplace_scratch_len(), Complex::default());
        }
    }

    /// `row ← row·Q`, `[d_input]`.
    ///
    /// # Panics
    /// If `row` or the scratch has another width.
    pub fn forward(&self, row: &mut [f32], scratch: &mut RotationScratch) {
        self.apply_signs(row);
        self.transform(row, scratch);
    }

    /// [`forward`](Self::forward) with working memory that the thread keeps.
    pub(crate) fn forward_row(&self, row: &mut [f32]) {
        thread_local! {
            static SCRATCH: RefCell<RotationScratch> = RefCell::default();
        }
        SCRATCH.with_borrow_mut(|scratch| {
            self.fit(scratch);
            self.forward(row, scratch);
        });
    }

    /// `row ← row·Qᵀ`, the inverse of [`forward`](Self::forward).
    ///
    /// # Panics
    /// If `row` or the scratch has another width.
    pub fn inverse(&self, row: &mut [f32], scratch: &mut RotationScratch) {
        self.transform(row, scratch);
        self.apply_signs(row);
    }

    /// [`forward`](Self::forward) on every row.
    ///
    /// # Panics
    /// If the matrix has another width.
    pub fn rotate(&self, weight: &mut Matrix) {
        let mut scratch = self.scratch();
        let n = self.d_input();
        assert_eq!(weight.shape().d_input(), n, "width");
        weight.as_mut_slice().chunks_exact_mut(n).for_each(|row| self.forward(row, &mut scratch));
    }

    /// `H ← Qᵀ·H·Q` for the second moments `H` of the inputs, `[n, n]` row-major and symmetric: the second moments of
    /// the rotated inputs, by the very `Q` that rotates weights.
    ///
    /// # Panics
    /// If the matrix has another width.
    pub(crate) fn rotate_symmetric(&self, h: &mut [f64]) {
        let n = self.d_input();
        assert_eq!(h.len(), n * n, "width");
        let mut scratch = self.scratch_of::<f64>();
        for _ in 0..2 {
            for row in h.chunks_exact_mut(n) {
                self.apply_signs(row);
                self.transform(row, &mut scratch);
            }
            transpose(h, n);
        }
    }

    fn apply_signs<T: Scalar>(&self, row: &mut [T]) {
        assert_eq!(row.len(), self.signs.len(), "width");
        row.iter_mut().zip(&self.signs).for_each(|(x, sign)| *x *= T::from(*sign));
    }

    /// Multiplies by `(R_m ⊗ H_2^p)/√n`, which is symmetric and its own inverse.
    fn transform<T: Scalar>(&self, row: &mut [T], scratch: &mut RotationScratch<T>) {
        T::hadamard(row, self.power);
        match &self.odd {
            Odd::One => {}
            Odd::Dense(matrix) => {
                scratch.row.copy_from_slice(row);
                T::multiply_odd(matrix, &scratch.row, row, self.power);
            }
            Odd::Fast(fft) => {
                for column in 0..self.power {
                    hartley_column(&**fft, &mut row[column..], self.power, &mut scratch.spectrum, &mut scratch.fft);
                }
            }
        }
        row.iter_mut().for_each(|x| *x *= T::from(self.scale));
    }
}

/// The numbers that are rotated: weights in f32, second moments in f64.
trait Scalar:
    Copy
    + Default
    + From<f32>
    + Into<f64>
    + std::ops::Add<Output = Self>
    + std::ops::Sub<Output = Self>
    + std::ops::Mul<Output = Self>
    + std::ops::AddAssign
    + std::ops::MulAssign
{
    /// The nearest value.
    fn from_f64(value: f64) -> Self;

    /// The fast Hadamard transform, unscaled, of every run of `run` values, a power of two, in Sylvester's order.
    fn hadamard(values: &mut [Self], run: usize);

    /// `out[j] = Σ_k R[j][k]·input[k]`, where an element is a run of `power` values; sums from `k = 0` upward.
    fn multiply_odd(matrix: &[f32], input: &[Self], out: &mut [Self], power: usize);
}

impl Scalar for f32 {
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    fn hadamard(values: &mut [Self], run: usize) {
        hadamard_f32(Simd::detect(), values, run);
    }

    fn multiply_odd(matrix: &[f32], input: &[Self], out: &mut [Self], power: usize) {
        let m = input.len() / power;
        out.fill(0.0);
        add_product((out, power), (matrix, m), (input, power), [m, m, power]);
    }
}

impl Scalar for f64 {
    fn from_f64(value: f64) -> Self {
        value
    }

    fn hadamard(values: &mut [Self], run: usize) {
        hadamard_f64(Simd::detect(), values, run);
    }

    fn multiply_odd(matrix: &[f32], input: &[Self], out: &mut [Self], power: usize) {
        let m = input.len() / power;
        let matrix: Vec<f64> = matrix.iter().map(|value| f64::from(*value)).collect();
        out.fill(0.0);
        add_product((out, power), (&matrix, m), (input, power), [m, m, power]);
    }
}

for_every_level! {
    fn hadamard_f32(values: &mut [f32], run: usize) -> () {
        hadamard(values, run);
    }
}

for_every_level! {
    fn hadamard_f64(values: &mut [f64], run: usize) -> () {
        hadamard(values, run);
    }
}

/// Transposes a square matrix in place.
fn transpose(matrix: &mut [f64], n: usize) {
    for i in 0..n {
        for j in 0..i {
            matrix.swap(i * n + j, j * n + i);
        }
    }
}

impl std::fmt::Debug for Rotation {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "Rotation({} = {}·{}, seed {:#x})",
            self.d_input(),
            self.d_input() / self.power,
            self.power,
            self.seed
        )
    }
}

/// Sign `i` is bit `i mod 64`, from the least significant, of word `i / 64` of the SplitMix64 sequence that starts at
/// `seed`: −1 where the bit is set.
///
/// Source: Steele, Lea and Flood, *Fast splittable pseudorandom number generators* (2014).
fn signs(n: usize, seed: u64) -> Vec<f32> {
    (0..n).map(|i| if split_mix(seed, i as u64 / 64) >> (i % 64) & 1 == 1 { -1.0 } else { 1.0 }).collect()
}

/// Word `index` of the SplitMix64 sequence of `seed`.
pub(crate) fn split_mix(seed: u64, index: u64) -> u64 {
    let mut z = seed.wrapping_add((index + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15));
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Entry `(i, j)` of `Q` for width `n`, straight from the formula: the definition.
pub(crate) fn reference_entry(n: usize, seed: u64, i: usize, j: usize) -> f64 {
    let power = 1 << n.trailing_zeros();
    let m = n / power;
    let angle = std::f64::consts::TAU * ((i / power) * (j / power) % m) as f64 / m as f64;
    let hadamard = if ((i % power) & (j % power)).count_ones().is_multiple_of(2) { 1.0 } else { -1.0 };
    let sign = if split_mix(seed, i as u64 / 64) >> (i % 64) & 1 == 1 { -1.0 } else { 1.0 };
    sign * (angle.cos() + angle.sin()) * hadamard / (n as f64).sqrt()
}

/// `R/√m`, row-major.
fn hartley(m: usize) -> Vec<f32> {
    let entry = |j: usize, k: usize| (cas_turns((j * k % m) as u64, m as u64) / (m as f64).sqrt()) as f32;
    (0..m * m).map(|i| entry(i / m, i % m)).collect()
}

/// See [`Scalar::hadamard`].
#[inline(always)]
fn hadamard<T: Scalar>(values: &mut [T], run: usize) {
    /// Values whose first steps are taken together.
    const BLOCK: usize = 16;
    let mut half = 1;
    if run >= BLOCK {
        for block in values.as_chunks_mut::<BLOCK>().0 {
            butterflies::<T, 1, BLOCK>(block);
            butterflies::<T, 2, BLOCK>(block);
            butterflies::<T, 4, BLOCK>(block);
            butterflies::<T, 8, BLOCK>(block);
        }
        half = BLOCK;
    }
    while half < run {
        for pair in values.chunks_exact_mut(2 * half) {
            let (low, high) = pair.split_at_mut(half);
            for (a, b) in low.iter_mut().zip(high) {
                (*a, *b) = (*a + *b, *a - *b);
            }
        }
        half *= 2;
    }
}

/// Sums and differences of values that are `HALF` apart.
#[inline(always)]
fn butterflies<T: Scalar, const HALF: usize, const BLOCK: usize>(block: &mut [T; BLOCK]) {
    let old = *block;
    for (i, value) in block.iter_mut().enumerate() {
        let other = old[i ^ HALF];
        *value = if i & HALF == 0 { old[i] + other } else { other - old[i] };
    }
}

/// The Hartley transform, unscaled, of every `stride`-th value: the real minus the imaginary part of the Fourier one.
fn hartley_column<T: Scalar>(
    fft: &dyn Fft<f64>,
    values: &mut [T],
    stride: usize,
    spectrum: &mut [Complex<f64>],
    scratch: &mut [Complex<f64>],
) {
    for (c, x) in spectrum.iter_mut().zip(values.iter().step_by(stride)) {
        *c = Complex::new((*x).into(), 0.0);
    }
    fft.process_with_scratch(spectrum, scratch);
    for (c, x) in spectrum.iter().zip(values.iter_mut().step_by(stride)) {
        *x = T::from_f64(c.re - c.im);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::{abs_diff_eq, relative_eq};

    fn rows(n: usize) -> Vec<f32> {
        (0..n).map(|i| ((split_mix(99, i as u64) >> 40) as f32) / 8_388_608.0 - 1.0).collect()
    }

    #[test]
    fn a_row_is_multiplied_by_the_matrix_of_the_formula() {
        // 387 = 3·129 has an odd part beyond the dense limit, 254 = 2·127 one below.
        for n in [1, 2, 3, 5, 12, 24, 100, 129, 254, 258, 387] {
            let rotation = Rotation::new(n, 11);
            let x = rows(n);
            let mut y = x.clone();
            rotation.forward(&mut y, &mut rotation.scratch());
            for (j, &found) in y.iter().enumerate() {
                let expected: f64 = (0..n).map(|i| f64::from(x[i]) * reference_entry(n, 11, i, j)).sum();
                let is_close = abs_diff_eq!(f64::from(found), expected, epsilon = 2e-6 * (n as f64).sqrt());
                assert!(is_close, "width {n}, column {j}");
            }
        }
    }

    #[test]
    fn every_width_to_600_keeps_lengths_and_is_inverted() {
        for n in 1..=600 {
            let rotation = Rotation::new(n, n as u64);
            let mut scratch = rotation.scratch();
            let x = rows(n);
            let mut y = x.clone();
            rotation.forward(&mut y, &mut scratch);
            let norm = |v: &[f32]| v.iter().map(|x| f64::from(x * x)).sum::<f64>().sqrt();
            assert!(relative_eq!(norm(&y), norm(&x), epsilon = 0.0, max_relative = 1e-5), "width {n}");
            rotation.inverse(&mut y, &mut scratch);
            assert!(abs_diff_eq!(x.as_slice(), y.as_slice(), epsilon = 1e-5), "width {n}");
        }
    }

    #[test]
    fn second_moments_are_rotated_on_both_sides() {
        for n in [1, 6, 16, 24, 258] {
            let rotation = Rotation::new(n, 3);
            // H = a·bᵀ + b·aᵀ becomes a'·b'ᵀ + b'·a'ᵀ.
            let (a, b) = (rows(n), rows(2 * n)[n..].to_vec());
            let outer = |a: &[f32], b: &[f32]| -> Vec<f64> {
                let entry = |i, j| f64::from(a[i]) * f64::from(b[j]) + f64::from(b[i]) * f64::from(a[j]);
                (0..n * n).map(|at| entry(at / n, at % n)).collect()
            };
            let mut h = outer(&a, &b);
            rotation.rotate_symmetric(&mut h);
            let rotated = |row: &[f32]| {
                let mut row = row.to_vec();
                rotation.forward(&mut row, &mut rotation.scratch());
                row
            };
            for (found, expected) in h.iter().zip(outer(&rotated(&a), &rotated(&b))) {
                assert!(abs_diff_eq!(*found, expected, epsilon = 1e-5), "width {n}: {found} {expected}");
            }
        }
    }

    #[test]
    fn the_signs_are_those_of_split_mix() {
        // The first word of SplitMix64 from seed 0 is 0xE220A8397B1DCDAF: its lowest bits are 1, 1, 1, 1, 0.
        assert_eq!(split_mix(0, 0), 0xE220_A839_7B1D_CDAF);
        assert_eq!(signs(5, 0), [-1.0, -1.0, -1.0, -1.0, 1.0]);
    }
}
