//! Products of a few queries with keys as a cache holds them.

use super::cache::{SMALLEST_PEAK, magnitude};
use super::soften::{BLOCK, LANES, ROWS, total};
use crate::math::simd::{Simd, SimdLevel, for_every_level};
use crate::scratch::Scratch;

/// Values that a register of bytes holds.
pub(super) const CHUNK: usize = 64;

/// `tile[r][key] ← queries[r]·keys[key]` for up to [`ROWS`] queries `[rows, d]` and up to [`BLOCK`] keys `[n, d]`;
/// `tile` is `[rows, BLOCK]`.
///
/// # Panics
/// If a slice is too short for that.
pub(super) fn floats(simd: Simd, queries: &[f32], keys: &[f32], d: usize, tile: &mut [f32]) {
    let rows = queries.len() / d;
    assert!(rows <= ROWS && keys.len() <= BLOCK * d && tile.len() >= rows * BLOCK, "{rows} queries");
    #[cfg(target_arch = "x86_64")]
    if simd.level() >= SimdLevel::Avx512 && d.is_multiple_of(LANES) && !keys.is_empty() {
        return super::x86_64::scores_of_floats(simd, queries, keys, d, tile);
    }
    floats_plainly(simd, queries, keys, d, tile);
}

for_every_level! {
    fn floats_plainly(queries: &[f32], keys: &[f32], d: usize, tile: &mut [f32]) -> () {
        for (key, values) in keys.chunks_exact(d).enumerate() {
            for (query, tile) in queries.chunks_exact(d).zip(tile.chunks_exact_mut(BLOCK)) {
                tile[key] = dot(query, values);
            }
        }
    }
}

#[inline(always)]
fn dot(a: &[f32], b: &[f32]) -> f32 {
    let ((a, a_rest), (b, b_rest)) = (a.as_chunks::<LANES>(), b.as_chunks::<LANES>());
    let mut sums = [0.0; LANES];
    for (a, b) in a.iter().zip(b) {
        sums.iter_mut().zip(a.iter().zip(b)).for_each(|(sum, (a, b))| *sum += a * b);
    }
    total(sums) + a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum::<f32>()
}

/// Rows in integers of 16 bits: `x ≈ step · integer`, off by half a step at most.
#[derive(Debug)]
pub(super) struct RoundedRows {
    simd: Simd,
    d: usize,
    /// `[rows, d]`.
    integers: Scratch<i16>,
    /// Each integer as `256·high + low`, zeros from `d` on, `[rows, 2, d rounded up to CHUNK]`: the high bytes of a
    /// row, then the low ones.
    bytes: Scratch<i8>,
    /// What a one stands for, `[rows]`; NaN if a value of the row is not finite.
    steps: Scratch<f32>,
    /// The sums of the integers, `[rows]`.
    sums: Scratch<i32>,
}

/// Keys or values in integers, as [`RoundedRows`] multiplies them.
#[derive(Debug)]
pub(super) struct Codes<'a> {
    /// `[n, d]`.
    pub(super) codes: &'a [u8],
    /// What each is too large by.
    pub(super) offset: u8,
    /// The codes in the order of the kernels, where there are any.
    pub(super) interleaved: &'a [u8],
}

impl<'a> Codes<'a> {
    /// Keys `[n, d]`, [`BLOCK`] at most; `room` is `[BLOCK, d rounded up to CHUNK]`.
    pub(super) fn keys(simd: Simd, codes: &'a [u8], d: usize, offset: u8, room: &'a mut [u8]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if simd.level() >= SimdLevel::Avx512Vbmi {
            super::x86_64::interleave_keys(simd, codes, d, room);
        }
        let _ = (simd, d);
        Self { codes, offset, interleaved: room }
    }

    /// Values `[n, d]`, likewise.
    pub(super) fn values(simd: Simd, codes: &'a [u8], d: usize, offset: u8, room: &'a mut [u8]) -> Self {
        #[cfg(target_arch = "x86_64")]
        if simd.level() >= SimdLevel::Avx512Vbmi {
            super::x86_64::interleave_values(simd, codes, d, room);
        }
        let _ = (simd, d);
        Self { codes, offset, interleaved: room }
    }
}

impl RoundedRows {
    /// Room for `rows` rows of `d` values.
    pub(super) fn new(simd: Simd, rows: usize, d: usize) -> Self {
        let bytes = Scratch::new(rows * 2 * d.next_multiple_of(CHUNK));
        Self { simd, d, integers: Scratch::new(rows * d), bytes, steps: Scratch::new(rows), sums: Scratch::new(rows) }
    }

    /// Rounds `rows`, `[rows, d]`, as many as there is room for or fewer.
    ///
    /// The largest integer is 32639, whose bytes are 127 and 127; beyond 518 values it is less, so that products with
    /// integers of 8 bits fit 32 bits.
    pub(super) fn fill(&mut self, rows: &[f32]) {
        let (d, width) = (self.d, self.d.next_multiple_of(CHUNK));
        let largest = (i32::MAX as usize / (127 * d)).min(32639) as f32;
        let places = self.integers.chunks_exact_mut(d).zip(self.bytes.chunks_exact_mut(2 * width));
        for (r, (row, (integers, bytes))) in rows.chunks_exact(d).zip(places).enumerate() {
            let (high, low) = bytes.split_at_mut(width);
            let (peak, sum) = round(self.simd, row, largest, integers, &mut high[..d], &mut low[..d]);
            high[d..].fill(0);
            low[d..].fill(0);
            self.sums[r] = sum;
            self.steps[r] = if peak.is_finite() { peak / largest } else { f32::NAN };
        }
    }

    /// `tile[r][key] ← step·scales[key]·(integers[r]·(codes[key] − offset))` for rows `from..to` and up to [`BLOCK`]
    /// keys `[n, d]`; `tile` is `[to − from, BLOCK]`.
    ///
    /// # Panics
    /// If a slice is too short for that, or there are more than [`ROWS`] rows.
    pub(super) fn scores(&self, (from, to): (usize, usize), keys: &Codes<'_>, scales: &[f32], tile: &mut [f32]) {
        let n = scales.len();
        assert!(to - from <= ROWS && n <= BLOCK && keys.codes.len() == n * self.d, "{n} keys");
        #[cfg(target_arch = "x86_64")]
        if self.simd.level() >= SimdLevel::Avx512Vbmi {
            let mut sums = [0; ROWS * BLOCK];
            let panels =
                self.products((from, to), &keys.interleaved[..n.next_multiple_of(2 * LANES) * self.width()], &mut sums);
            for (r, (tile, sums)) in (from..to).zip(tile.chunks_exact_mut(BLOCK).zip(sums.chunks_exact(panels))) {
                let excess = self.sums[r].wrapping_mul(keys.offset.into());
                scale(self.simd, sums, excess, self.steps[r], scales, tile);
            }
            return;
        }
        let rows = from * self.d..to * self.d;
        scores_plainly(self.simd, &self.integers[rows], &self.steps[from..to], keys, scales, tile);
    }

    /// `out[r] ← factors[r]·out[r] + weights[r]·(codes − offset)` for weights that are rounded first, `[rows, BLOCK]`,
    /// 0 beyond the last of the values `[n, d]`; `out` is `[rows, d]`. `false`, and nothing done, without the
    /// instructions.
    #[cfg(target_arch = "x86_64")]
    pub(super) fn add_values(
        &mut self,
        weights: &[f32],
        values: &Codes<'_>,
        d: usize,
        factors: &[f32],
        out: &mut [f32],
    ) -> bool {
        if self.simd.level() < SimdLevel::Avx512Vbmi {
            return false;
        }
        self.fill(weights);
        let rows = weights.len() / self.d;
        let mut sums = Scratch::<i32>::new(rows * d.next_multiple_of(CHUNK));
        let lanes = self.products((0, rows), values.interleaved, &mut sums);
        for (r, (out, sums)) in out.chunks_exact_mut(d).zip(sums.chunks_exact(lanes)).enumerate() {
            let excess = self.sums[r].wrapping_mul(values.offset.into());
            add(self.simd, sums, excess, self.steps[r], factors[r], out);
        }
        true
    }

    /// The products of rows with interleaved codes, `[rows, lanes]`, offset included; returns the number of lanes.
    #[cfg(target_arch = "x86_64")]
    fn products(&self, (from, to): (usize, usize), interleaved: &[u8], sums: &mut [i32]) -> usize {
        let width = self.width();
        let bytes = &self.bytes[from * 2 * width..to * 2 * width];
        super::x86_64::products(self.simd, bytes, width / 4, interleaved, sums);
        interleaved.len() / width
    }

    /// Bytes of half a row.
    #[cfg(target_arch = "x86_64")]
    fn width(&self) -> usize {
        self.d.next_multiple_of(CHUNK)
    }
}

for_every_level! {
    /// Rounds so that the largest magnitude becomes `largest`, and returns it and the sum of the integers; all of them
    /// are 0 if it is not finite.
    fn round(values: &[f32], largest: f32, integers: &mut [i16], high: &mut [i8], low: &mut [i8]) -> (f32, i32) {
        /// Added, it leaves the nearest integer in the lower bits.
        const MAGIC: f32 = 12_582_912.0;
        let peak = magnitude(values);
        if !peak.is_finite() {
            integers.fill(0);
            high.fill(0);
            low.fill(0);
            return (peak, 0);
        }
        let factor = if peak >= SMALLEST_PEAK { largest / peak } else { 0.0 };
        let mut sum = 0i32;
        let bytes = high.iter_mut().zip(low);
        for ((value, integer), (high, low)) in values.iter().zip(integers).zip(bytes) {
            *integer = (value * factor + MAGIC).to_bits() as i16;
            *low = *integer as i8;
            *high = ((i32::from(*integer) + 128) >> 8) as i8;
            sum += i32::from(*integer);
        }
        (peak, sum)
    }
}

for_every_level! {
    /// `out ← step·scales·(sums − excess)`.
    fn scale(sums: &[i32], excess: i32, step: f32, scales: &[f32], out: &mut [f32]) -> () {
        for ((out, sum), scale) in out.iter_mut().zip(sums).zip(scales) {
            *out = sum.wrapping_sub(excess) as f32 * (step * scale);
        }
    }
}

for_every_level! {
    /// `out ← factor·out + step·(sums − excess)`.
    fn add(sums: &[i32], excess: i32, step: f32, factor: f32, out: &mut [f32]) -> () {
        for (out, sum) in out.iter_mut().zip(sums) {
            *out = *out * factor + sum.wrapping_sub(excess) as f32 * step;
        }
    }
}

for_every_level! {
    fn scores_plainly(integers: &[i16], steps: &[f32], keys: &Codes<'_>, scales: &[f32], tile: &mut [f32]) -> () {
        let d = integers.len() / steps.len();
        let offset = i16::from(keys.offset);
        for ((key, codes), scale) in keys.codes.chunks_exact(d).enumerate().zip(scales) {
            for (r, (integers, step)) in integers.chunks_exact(d).zip(steps).enumerate() {
                let product = |(code, integer): (&u8, &i16)| i32::from(i16::from(*code) - offset) * i32::from(*integer);
                let dot = codes.iter().zip(integers).map(product).fold(0i32, i32::wrapping_add);
                tile[r * BLOCK + key] = dot as f32 * (step * scale);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn number(i: usize) -> f32 {
        (i * 7919 % 1009) as f32 / 504.5 - 1.0
    }

    fn rounded(simd: Simd, rows: &[f32], d: usize) -> RoundedRows {
        let mut rounded = RoundedRows::new(simd, rows.len() / d, d);
        rounded.fill(rows);
        rounded
    }

    #[test]
    fn scores_are_dot_products() {
        for (d, rows, n) in [(2, 1, 3), (64, 6, 64), (80, 2, 17), (128, 5, 33), (6, 3, 1), (1024, 4, 7)] {
            let queries: Vec<f32> = (0..rows * d).map(number).collect();
            let keys: Vec<f32> = (0..n * d).map(|i| number(i + 5)).collect();
            for simd in Simd::available() {
                let mut tile = [0.0; ROWS * BLOCK];
                floats(simd, &queries, &keys, d, &mut tile);
                for (r, key) in (0..rows).flat_map(|r| (0..n).map(move |key| (r, key))) {
                    let product = |i| f64::from(queries[r * d + i]) * f64::from(keys[key * d + i]);
                    let expected: f64 = (0..d).map(product).sum();
                    assert!(
                        (f64::from(tile[r * BLOCK + key]) - expected).abs() < 1e-7 * (d + 1) as f64,
                        "{simd:?} {d}"
                    );
                }
            }
        }
    }

    #[test]
    fn rounded_scores_are_within_half_a_step_and_alike_at_every_level() {
        for (d, rows, n) in [(4, 1, 3), (64, 6, 64), (80, 2, 17), (128, 5, 33), (1024, 4, 7)] {
            let queries: Vec<f32> = (0..rows * d).map(number).collect();
            let codes: Vec<u8> = (0..n * d).map(|i| (i * 31 % 255 + 1) as u8).collect();
            let scales: Vec<f32> = (0..n).map(|i| 1.0 + i as f32).collect();
            let run = |simd| {
                let mut tile = vec![0.0; rows * BLOCK];
                let mut room = vec![0; BLOCK * d.next_multiple_of(CHUNK)];
                let keys = Codes::keys(simd, &codes, d, 128, &mut room);
                rounded(simd, &queries, d).scores((0, rows), &keys, &scales, &mut tile);
                let kept = tile.chunks_exact(BLOCK).flat_map(|tile| tile[..n].to_vec());
                kept.collect::<Vec<f32>>()
            };
            let found = run(Simd::available()[0]);
            assert!(Simd::available().into_iter().all(|simd| run(simd) == found));
            for (at, found) in found.into_iter().enumerate() {
                let (r, key) = (at / n, at % n);
                let code = |i| f64::from(codes[key * d + i]) - 128.0;
                let product = |i| f64::from(queries[r * d + i]) * code(i);
                let expected = (0..d).map(product).sum::<f64>() * f64::from(scales[key]);
                let step = 1.0 / (i32::MAX as usize / (127 * d)).min(32639) as f64;
                let bound = 0.51 * step * (0..d).map(|i| code(i).abs()).sum::<f64>() * f64::from(scales[key]);
                assert!(
                    (f64::from(found) - expected).abs() <= bound + 1e-6 * expected.abs(),
                    "{d}: {found} {expected}"
                );
            }
        }
    }

    #[test]
    fn a_query_that_is_not_finite_has_no_scores() {
        for simd in Simd::available() {
            for bad in [f32::NAN, f32::INFINITY] {
                let mut queries = [1.0; 128];
                queries[70] = bad;
                let mut tile = [0.0; 2 * BLOCK];
                let mut room = vec![0; BLOCK * 64];
                let keys = Codes::keys(simd, &[129; 64], 64, 128, &mut room);
                rounded(simd, &queries, 64).scores((0, 2), &keys, &[1.0], &mut tile);
                assert!(tile[BLOCK].is_nan() && (tile[0] - 64.0).abs() < 0.01, "{}", tile[0]);
            }
        }
    }
}
