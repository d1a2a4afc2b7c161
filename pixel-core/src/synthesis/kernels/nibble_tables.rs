//! The tables of a product: what each nibble's pattern gives with the activations that it reaches,
//!
//! ```text
//! T_t[a] = Σ_j x[p_t + j]·D_{t mod P}[a][j]      j = 0 … S
//! ```
//!
//! summed in the order of `j`, so that every level of vector instructions gives the same bits.

#[cfg(target_arch = "x86_64")]
use super::nibble_tables_x86::Avx2;
use super::scratch::Scratch;
use crate::codec::nibble::{EIGHT, NibbleLayout, PATTERNS};
use crate::math::simd::Simd;

/// Patterns whose sums are kept in registers at the same time: those of several nibbles, so that a weight of all
/// patterns of a sub-dictionary is loaded once for them.
const SUMS: usize = 64;

/// How many times as many tables are made before those of the next sub-dictionary: 16 KB of them at most.
const BLOCK: usize = 8;

/// The dictionary as tables are made from it.
pub(super) struct Columns {
    layout: NibbleLayout,
    /// Weight `j` of the patterns of each sub-dictionary, `[P, S, 16]`; `[P, S, 8]` if they are symmetric.
    values: Scratch<f32>,
    /// Whether pattern `a + 8` is minus pattern `a`, so that half the sums are enough.
    symmetric: bool,
}

impl Columns {
    pub(super) fn new(layout: &NibbleLayout, dictionary: &[f32]) -> Self {
        let span = layout.span();
        let mut halves =
            dictionary.chunks_exact(PATTERNS * span).map(|patterns| patterns.split_at(PATTERNS / 2 * span));
        let symmetric = halves.all(|(positive, negative)| positive.iter().zip(negative).all(|(p, n)| *p == -n));
        let width = if symmetric { PATTERNS / 2 } else { PATTERNS };
        let mut values = Scratch::new(layout.period() * span * width);
        let sub_dictionaries = dictionary.chunks_exact(PATTERNS * span);
        for (patterns, columns) in sub_dictionaries.zip(values.chunks_exact_mut(span * width)) {
            for (j, column) in columns.chunks_exact_mut(width).enumerate() {
                for (a, value) in column.iter_mut().enumerate() {
                    *value = patterns[a * span + j];
                }
            }
        }
        Self { layout: *layout, values, symmetric }
    }

    /// The activations that windows reach, zeros behind the last included.
    pub(super) fn padded_len(&self) -> usize {
        self.layout.eights() * EIGHT + self.layout.span()
    }
}

/// Fills `tables` `[fields, 16]`, and what is behind them with zeros, for activations `x` with zeros behind them.
pub(super) fn fill_tables(simd: Simd, columns: &Columns, x: &[f32], tables: &mut [f32]) {
    let (tables, _) = tables.as_chunks_mut::<PATTERNS>();
    let (tables, padding) = tables.split_at_mut(columns.layout.fields());
    padding.fill([0.0; PATTERNS]);
    #[cfg(target_arch = "x86_64")]
    if let Some(avx2) = Avx2::new(simd) {
        return avx2.fill(columns, x, tables);
    }
    let _ = simd;
    columns.fill(Portable, x, tables);
}

/// How the sums of some tables are made.
pub(super) trait Sums: Copy {
    /// `Σ_j x[n·STEP + j]·taps[j]`, in the order of `j`, for `COUNT` nibbles `n`. `WIDTH` is a multiple of 8.
    fn sums<const STEP: usize, const WIDTH: usize, const COUNT: usize>(
        self,
        taps: &[[f32; WIDTH]],
        x: &[f32],
    ) -> [[f32; WIDTH]; COUNT];
}

impl Columns {
    /// All tables, sub-dictionary by sub-dictionary.
    #[inline(always)]
    pub(super) fn fill(&self, by: impl Sums, x: &[f32], tables: &mut [[f32; PATTERNS]]) {
        // How much later the next window of a sub-dictionary begins: a constant of the code, and half the instructions
        // are addresses no more.
        match self.layout.start(self.layout.period()) {
            1 => self.fill_by::<1>(by, x, tables),
            2 => self.fill_by::<2>(by, x, tables),
            4 => self.fill_by::<4>(by, x, tables),
            8 => self.fill_by::<8>(by, x, tables),
            step => unreachable!("windows {step} apart"),
        }
    }

    #[inline(always)]
    fn fill_by<const STEP: usize>(&self, by: impl Sums, x: &[f32], tables: &mut [[f32; PATTERNS]]) {
        if self.symmetric {
            self.fill_first::<STEP, { PATTERNS / 2 }, { 2 * SUMS / PATTERNS }>(by, x, tables);
        } else {
            self.fill_first::<STEP, PATTERNS, { SUMS / PATTERNS }>(by, x, tables);
        }
    }

    /// [`fill`](Self::fill) from the first `WIDTH` patterns, for `COUNT` nibbles at a time.
    #[inline(always)]
    fn fill_first<const STEP: usize, const WIDTH: usize, const COUNT: usize>(
        &self,
        by: impl Sums,
        x: &[f32],
        tables: &mut [[f32; PATTERNS]],
    ) {
        let (period, (taps, _)) = (self.layout.period(), self.values.as_chunks::<WIDTH>());
        // Blocks of tables, so that one is still near when its next sub-dictionary is.
        let len = BLOCK * COUNT * period;
        for (first, tables) in (0..).step_by(len).zip(tables.chunks_mut(len)) {
            for (phase, taps) in taps.chunks_exact(self.layout.span()).enumerate() {
                let mut t = phase;
                while t + (COUNT - 1) * period < tables.len() {
                    let sums = by.sums::<STEP, WIDTH, COUNT>(taps, &x[self.layout.start(first + t)..]);
                    for (n, sums) in sums.iter().enumerate() {
                        store(sums, &mut tables[t + n * period]);
                    }
                    t += COUNT * period;
                }
                for t in (t..tables.len()).step_by(period) {
                    let [sums] = by.sums::<STEP, WIDTH, 1>(taps, &x[self.layout.start(first + t)..]);
                    store(&sums, &mut tables[t]);
                }
            }
        }
    }
}

/// A table from its sums, the second half the negative of the first if there is none.
#[inline(always)]
fn store<const WIDTH: usize>(sums: &[f32; WIDTH], table: &mut [f32; PATTERNS]) {
    let (first, second) = table.split_at_mut(WIDTH);
    first.copy_from_slice(sums);
    second.iter_mut().zip(sums).for_each(|(value, sum)| *value = -sum);
}

/// What every machine has.
#[derive(Debug, Clone, Copy)]
struct Portable;

impl Sums for Portable {
    #[inline(always)]
    fn sums<const STEP: usize, const WIDTH: usize, const COUNT: usize>(
        self,
        taps: &[[f32; WIDTH]],
        x: &[f32],
    ) -> [[f32; WIDTH]; COUNT] {
        let mut sums = [[0.0; WIDTH]; COUNT];
        // Registers of four values, sixteen of them, hold half the sums.
        let half = COUNT.div_ceil(2);
        for (sums, x) in sums.chunks_mut(half).zip((0..).step_by(half * STEP).map(|at| &x[at..])) {
            match half {
                4 => fill_sums::<STEP, WIDTH, 4>(taps, x, sums),
                2 => fill_sums::<STEP, WIDTH, 2>(taps, x, sums),
                _ => fill_sums::<STEP, WIDTH, 1>(taps, x, sums),
            }
        }
        sums
    }
}

/// [`Sums::sums`] for `COUNT` nibbles.
#[inline(always)]
fn fill_sums<const STEP: usize, const WIDTH: usize, const COUNT: usize>(
    taps: &[[f32; WIDTH]],
    x: &[f32],
    sums: &mut [[f32; WIDTH]],
) {
    let windows: [&[f32]; COUNT] = std::array::from_fn(|n| &x[n * STEP..][..taps.len()]);
    let mut totals = [[0.0; WIDTH]; COUNT];
    for (j, tap) in taps.iter().enumerate() {
        for (x, totals) in windows.iter().zip(&mut totals) {
            for (total, tap) in totals.iter_mut().zip(tap) {
                *total += x[j] * tap;
            }
        }
    }
    sums.copy_from_slice(&totals);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::nibble::Windows;
    use crate::math::rotation::split_mix;
    use crate::math::simd::SimdLevel;
    use crate::matrix::Shape;

    #[test]
    fn tables_are_the_same_to_the_bit_on_every_level_and_for_half_the_sums() {
        let windows = [(2, 32), (3, 24), (4, 16), (5, 8), (6, 64), (8, 16)];
        let lapped = windows.map(|(per_eight, span)| (per_eight, Windows::Lapped { span }));
        for (per_eight, windows) in lapped.into_iter().chain([2, 3, 5, 8].map(|m| (m, Windows::Grouped))) {
            for n in [1, 7, 40, 203] {
                let layout = NibbleLayout { shape: Shape::new(1, n).unwrap(), per_eight, windows };
                let value = |seed, i: usize| (split_mix(seed, i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0;
                let mut dictionary: Vec<f32> = (0..layout.dictionary_len()).map(|i| value(1, i)).collect();
                for patterns in dictionary.chunks_exact_mut(PATTERNS * layout.span()) {
                    let (positive, negative) = patterns.split_at_mut(PATTERNS / 2 * layout.span());
                    positive.iter().zip(negative).for_each(|(p, n)| *n = -p);
                }
                let mut columns = Columns::new(&layout, &dictionary);
                assert!(columns.symmetric);
                let mut x: Vec<f32> = (0..n).map(|i| value(2, i)).collect();
                x.resize(columns.padded_len(), 0.0);
                let fill = |simd, columns: &Columns| {
                    let mut tables = vec![f32::NAN; layout.quads() * 4 * PATTERNS];
                    fill_tables(simd, columns, &x, &mut tables);
                    tables
                };
                let expected = fill(Simd::at_most(SimdLevel::Portable), &columns);
                for (t, table) in expected.chunks_exact(PATTERNS).enumerate().take(layout.fields()) {
                    for (a, found) in table.iter().enumerate() {
                        let pattern = &dictionary[(t % layout.period() * PATTERNS + a) * layout.span()..];
                        let pairs = x[layout.start(t)..].iter().zip(&pattern[..layout.span()]);
                        let sum = pairs.fold(0.0, |sum, (x, weight)| sum + x * weight);
                        assert_eq!(*found, sum, "{layout:?}, nibble {t}, pattern {a}");
                    }
                }
                let all = Simd::available().into_iter().map(|simd| fill(simd, &columns)).collect::<Vec<_>>();
                assert!(all.iter().all(|tables| *tables == expected), "{layout:?}");
                // A dictionary that has lost its symmetry in one place.
                let last = dictionary.len() - 1;
                dictionary[last] += 1.0;
                columns = Columns::new(&layout, &dictionary);
                assert!(!columns.symmetric);
                let asymmetric = fill(Simd::at_most(SimdLevel::Portable), &columns);
                for simd in Simd::available() {
                    assert_eq!(fill(simd, &columns), asymmetric, "{layout:?}, {simd:?}");
                }
            }
        }
    }
}
