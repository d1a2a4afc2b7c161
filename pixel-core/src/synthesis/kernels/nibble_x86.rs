//! Lookups in registers: AVX-512 permutes sixteen f32; AVX2 shuffles sixteen bytes, and VBMI permutes 64, of tables
//! that are rounded to two bytes a value.

use super::activations::{LARGEST, peak, rounds};
use super::nibble::{BAND, Strips};
use super::scratch::Scratch;
use crate::codec::nibble::{FIELD_BYTES, PATTERNS, QUAD, STRIP};
use crate::math::simd::{Simd, SimdLevel};
use std::arch::x86_64::*;

/// Proof that AVX-512 may run.
#[derive(Debug, Clone, Copy)]
pub(super) struct Avx512(());

impl Avx512 {
    /// The capability, if `simd` has it.
    pub(super) fn new(simd: Simd) -> Option<Self> {
        (simd.level() >= SimdLevel::Avx512).then_some(Self(()))
    }

    /// Adds to `sums` `[strips, 32]` what the strips look up in `tables` `[fields, 16]`, those of the fields from
    /// `first` on.
    pub(super) fn sum(self, strips: Strips<'_>, first: usize, tables: &[f32], sums: &mut [[f32; STRIP]]) {
        let fields = tables.len() / PATTERNS;
        let codes = |strip: usize| strips.fields(strip, first, fields);
        let mut strip = 0;
        // SAFETY (all three): `self` proves AVX-512; `fields` checks that the codes are as long as the tables.
        while strip + 4 <= sums.len() {
            let codes = std::array::from_fn(|s| codes(strip + s));
            // SAFETY: as above.
            unsafe { sum_avx512::<4>(codes, 16 * strips.strip_words, tables, &mut sums[strip..]) };
            strip += 4;
        }
        while strip < sums.len() {
            // SAFETY: as above.
            unsafe { sum_avx512::<1>([codes(strip)], 4 * strips.strip_words, tables, &mut sums[strip..]) };
            strip += 1;
        }
    }
}

/// Strips at the same time, so that a table is loaded once for all of them. They lie apart, and each is short: the
/// processor itself does not look ahead into the strips that follow, `next` bytes on, so it is prefetched.
///
/// # Safety
/// The machine has AVX-512 F; every `codes` has 16 bytes for each 16 values of `tables`.
#[target_feature(enable = "avx512f")]
unsafe fn sum_avx512<const STRIPS: usize>(
    codes: [&[u8]; STRIPS],
    next: usize,
    tables: &[f32],
    sums: &mut [[f32; STRIP]],
) {
    let mut totals = [[_mm512_setzero_ps(); 2]; STRIPS];
    for (field, table) in tables.as_chunks::<PATTERNS>().0.iter().enumerate() {
        if field % QUAD == 0 {
            for codes in codes {
                // Any address may be asked for.
                _mm_prefetch::<_MM_HINT_T0>(codes.as_ptr().wrapping_add(field * FIELD_BYTES + next).cast());
            }
        }
        // SAFETY: sixteen values; sixteen bytes, as the caller promises.
        unsafe {
            let table = _mm512_loadu_ps(table.as_ptr());
            for (codes, totals) in codes.iter().zip(&mut totals) {
                let codes = _mm512_cvtepu8_epi32(_mm_loadu_si128(codes.as_ptr().add(field * FIELD_BYTES).cast()));
                // A permutation reads the lowest four bits.
                totals[0] = _mm512_add_ps(totals[0], _mm512_permutexvar_ps(codes, table));
                totals[1] = _mm512_add_ps(totals[1], _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(codes), table));
            }
        }
    }
    for (totals, sums) in totals.into_iter().zip(sums) {
        for (total, sums) in totals.into_iter().zip(sums.as_chunks_mut::<FIELD_BYTES>().0) {
            // SAFETY: sixteen values.
            unsafe { _mm512_storeu_ps(sums.as_mut_ptr(), _mm512_add_ps(total, _mm512_loadu_ps(sums.as_ptr()))) };
        }
    }
}

/// Tables in 16 bits: `x·P_m[c] ≈ step · (integer − 32768)`, off by half a step at most, where the step is the largest
/// magnitude of all tables / 32767.
#[derive(Debug)]
pub(super) struct RoundedTables {
    simd: Simd,
    /// `[batch, quads]`, of each quad the lower bytes of its four tables, then the higher ones.
    bytes: Scratch<u8>,
    quads: usize,
    /// What an integer of a row stands for, per row of the batch; `None` if the row's tables cannot be rounded.
    steps: Vec<Option<f32>>,
}

/// Bytes of the tables of a quad.
const QUAD_BYTES: usize = 2 * QUAD * PATTERNS;

/// The integer of zero.
const ZERO: i64 = 1 << 15;

/// Quads whose bytes AVX2 sums in 16 bits: a lane adds up two for each quad, and 257 bytes of 255 fit.
const CHUNK_AVX2: usize = 128;

/// Quads whose tables are used for all strips before the next: 16 KB of them.
const CHUNK_AVX512: usize = 128;

/// Quads whose integers are summed in 32 bits: 65536 fields of 65535 at most fit.
const SPAN: usize = (1 << 16) / QUAD;

impl RoundedTables {
    /// Whether `simd` adds up bytes so much faster than f32 that it pays to round the tables for `d_output` rows.
    pub(super) fn pay(simd: Simd, d_output: usize) -> bool {
        match simd.level() {
            SimdLevel::Portable | SimdLevel::Avx512 => false,
            SimdLevel::Avx2 => true,
            SimdLevel::Avx512Vbmi => d_output >= 256,
        }
    }

    /// `tables` `[batch, fields, 16]`, rounded, each row by itself; `None` if `simd` is below AVX2. A row cannot be
    /// rounded if one of its values is not finite, or all are nearly, but not quite, zero.
    pub(super) fn new(tables: &[f32], fields: usize, simd: Simd) -> Option<Self> {
        if simd.level() < SimdLevel::Avx2 {
            return None;
        }
        let quads = fields / QUAD;
        let batch = tables.len() / (fields * PATTERNS);
        let mut bytes = Scratch::new(batch * quads * QUAD_BYTES);
        let rows = tables.chunks_exact(fields * PATTERNS).zip(bytes.chunks_exact_mut(quads * QUAD_BYTES));
        let steps = rows.map(|(tables, bytes)| {
            let peak = peak(simd, tables);
            rounds(peak).then(|| {
                fill(simd, tables, if peak > 0.0 { LARGEST / peak } else { 0.0 }, bytes);
                peak / LARGEST
            })
        });
        let steps = steps.collect();
        Some(Self { simd, bytes, quads, steps })
    }

    /// Adds to `sums` `[strips, 32]` what the strips look up for row `b`; `false`, and `sums` unchanged, if the row
    /// could not be rounded.
    pub(super) fn sum(&self, b: usize, strips: Strips<'_>, sums: &mut [[f32; STRIP]]) -> bool {
        let Some(step) = self.steps[b] else { return false };
        let tables = &self.bytes[b * self.quads * QUAD_BYTES..][..self.quads * QUAD_BYTES];
        let mut exact = [[0i64; STRIP]; BAND];
        for (first, tables) in (0..).step_by(SPAN * QUAD).zip(tables.chunks(SPAN * QUAD_BYTES)) {
            let mut totals = [[0u32; STRIP]; BAND];
            self.sum_span(tables, first, strips, &mut totals[..sums.len()]);
            let zero = ZERO * (tables.len() / QUAD_BYTES * QUAD) as i64;
            for (exact, total) in exact.as_flattened_mut().iter_mut().zip(totals.as_flattened()) {
                *exact += i64::from(*total) - zero;
            }
        }
        for (sum, exact) in sums.as_flattened_mut().iter_mut().zip(exact.as_flattened()) {
            *sum += (*exact as f64 * f64::from(step)) as f32;
        }
        true
    }

    /// Adds to `totals` `[strips, 32]` the integers that the strips look up in `tables`, those of the fields from
    /// `field` on, of [`SPAN`] quads at most.
    fn sum_span(&self, tables: &[u8], field: usize, strips: Strips<'_>, totals: &mut [[u32; STRIP]]) {
        // The codes of `tables`, which begin at `quad` of the span.
        let codes = |strip, quad: usize, tables: &[u8]| {
            strips.fields(strip, field + quad * QUAD, tables.len() / QUAD_BYTES * QUAD)
        };
        if self.simd.level() == SimdLevel::Avx512Vbmi {
            for (quad, tables) in (0..).step_by(CHUNK_AVX512).zip(tables.chunks(CHUNK_AVX512 * QUAD_BYTES)) {
                let (fours, rest) = totals.as_chunks_mut::<4>();
                let next = 16 * strips.strip_words;
                for (i, totals) in fours.iter_mut().enumerate() {
                    let codes = std::array::from_fn::<_, 4, _>(|s| codes(4 * i + s, quad, tables));
                    // SAFETY: the level is VBMI's; the codes are as long as the tables.
                    unsafe { sum_vbmi(codes, next, tables, totals) };
                }
                for (strip, total) in (4 * fours.len()..).zip(rest) {
                    // SAFETY: as above.
                    unsafe { sum_vbmi([codes(strip, quad, tables)], next / 4, tables, std::array::from_mut(total)) };
                }
            }
        } else {
            for (quad, tables) in (0..).step_by(CHUNK_AVX2).zip(tables.chunks(CHUNK_AVX2 * QUAD_BYTES)) {
                for (strip, totals) in totals.iter_mut().enumerate() {
                    // SAFETY: the tables exist from AVX2 on; there are as many codes as tables, for 128 quads at most.
                    unsafe { sum_avx2(codes(strip, quad, tables), 4 * strips.strip_words, tables, totals) };
                }
            }
        }
    }
}

crate::math::simd::for_every_level! {
    /// The values in steps from [`ZERO`].
    fn fill(tables: &[f32], factor: f32, bytes: &mut [u8]) -> () {
        /// Added, it leaves the nearest integer in the lower bits, [`ZERO`] included.
        const MAGIC: f32 = 12_582_912.0 + ZERO as f32;
        let (quads, _) = tables.as_chunks::<{ QUAD * PATTERNS }>();
        for (values, bytes) in quads.iter().zip(bytes.chunks_exact_mut(QUAD_BYTES)) {
            let (low, high) = bytes.split_at_mut(QUAD_BYTES / 2);
            for ((value, low), high) in values.iter().zip(low).zip(high) {
                let bits = (value * factor + MAGIC).to_bits();
                (*low, *high) = (bits as u8, (bits >> 8) as u8);
            }
        }
    }
}

/// Adds what strips look up, `tables` being those of their `codes`: the bytes of four fields of a row are brought side
/// by side, looked up in all four tables at once, and added by one instruction.
///
/// # Safety
/// The machine has what [`SimdLevel::Avx512Vbmi`] names; every `codes` has 64 bytes for each [`QUAD_BYTES`] of
/// `tables`.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni")]
unsafe fn sum_vbmi<const STRIPS: usize>(
    codes: [&[u8]; STRIPS],
    next: usize,
    tables: &[u8],
    totals: &mut [[u32; STRIP]; STRIPS],
) {
    /// `A & B | C`, a truth table.
    const AND_OR: i32 = 0xEA;
    let order: [u8; 64] = std::array::from_fn(|i| (i % QUAD * FIELD_BYTES + i / QUAD) as u8);
    // SAFETY: 64 bytes.
    let order = unsafe { _mm512_loadu_si512(order.as_ptr().cast()) };
    let (nibble, ones) = (_mm512_set1_epi8(15), _mm512_set1_epi8(1));
    // Table `f` begins at byte `16·f`.
    let field = _mm512_set1_epi32(0x3020_1000);
    // For the lower and the upper nibbles, the lower and the higher bytes.
    let mut sums = [[[_mm512_setzero_si512(); 2]; 2]; STRIPS];
    for (quad, tables) in tables.chunks_exact(QUAD_BYTES).enumerate() {
        // SAFETY: 64 bytes, twice.
        let tables =
            unsafe { [tables.as_ptr(), tables.as_ptr().add(QUAD_BYTES / 2)].map(|at| _mm512_loadu_si512(at.cast())) };
        for (codes, sums) in codes.iter().zip(&mut sums) {
            // SAFETY: 64 bytes, as the caller promises; any address may be asked for.
            let codes = unsafe {
                let at = codes.as_ptr().add(quad * QUAD * FIELD_BYTES);
                _mm_prefetch::<_MM_HINT_T0>(at.wrapping_add(next).cast());
                _mm512_permutexvar_epi8(order, _mm512_loadu_si512(at.cast()))
            };
            let places = [codes, _mm512_srli_epi16::<4>(codes)];
            for (places, sums) in places.into_iter().zip(sums) {
                let places = _mm512_ternarylogic_epi32::<AND_OR>(places, nibble, field);
                for (table, sum) in tables.into_iter().zip(sums) {
                    *sum = _mm512_dpbusd_epi32(*sum, _mm512_permutexvar_epi8(places, table), ones);
                }
            }
        }
    }
    for (sums, totals) in sums.into_iter().zip(totals) {
        for ([low, high], totals) in sums.into_iter().zip(totals.as_chunks_mut::<FIELD_BYTES>().0) {
            let sum = _mm512_add_epi32(low, _mm512_slli_epi32::<8>(high));
            // SAFETY: sixteen values.
            unsafe {
                let old = _mm512_loadu_si512(totals.as_ptr().cast());
                _mm512_storeu_si512(totals.as_mut_ptr().cast(), _mm512_add_epi32(sum, old));
            }
        }
    }
}

/// Adds what one strip looks up, `tables` being those of its `codes`.
///
/// # Safety
/// The machine has AVX2; `codes` has 64 bytes for each [`QUAD_BYTES`] of `tables`, of 128 quads at most.
#[target_feature(enable = "avx2")]
unsafe fn sum_avx2(codes: &[u8], next: usize, tables: &[u8], totals: &mut [u32; STRIP]) {
    let nibble = _mm256_set1_epi8(15);
    // For the lower and the upper nibbles, the lower and the higher bytes of the values: all bytes as 16-bit numbers,
    // whose higher halves are corrected by the second sum, that of the odd bytes alone.
    let mut sums = [[[_mm256_setzero_si256(); 2]; 2]; 2];
    for (codes, tables) in codes.chunks_exact(2 * STRIP).zip(tables.chunks_exact(QUAD_BYTES)) {
        // Any address may be asked for.
        _mm_prefetch::<_MM_HINT_T0>(codes.as_ptr().wrapping_add(next).cast());
        for pair in 0..2 {
            // SAFETY: 32 of 64 bytes; 32 of each 64 of the tables.
            let (codes, tables) = unsafe {
                let at = tables.as_ptr().add(pair * 2 * PATTERNS);
                let tables = [at, at.add(QUAD_BYTES / 2)].map(|at| _mm256_loadu_si256(at.cast()));
                (_mm256_loadu_si256(codes.as_ptr().add(pair * STRIP).cast()), tables)
            };
            let nibbles = [_mm256_and_si256(codes, nibble), _mm256_and_si256(_mm256_srli_epi16::<4>(codes), nibble)];
            for (nibbles, sums) in nibbles.into_iter().zip(&mut sums) {
                for (table, [all, odd]) in tables.into_iter().zip(sums) {
                    let values = _mm256_shuffle_epi8(table, nibbles);
                    *all = _mm256_add_epi16(*all, values);
                    *odd = _mm256_add_epi16(*odd, _mm256_srli_epi16::<8>(values));
                }
            }
        }
    }
    for (half, sums) in sums.into_iter().enumerate() {
        for (byte, [all, odd]) in sums.into_iter().enumerate() {
            let even = _mm256_sub_epi16(all, _mm256_slli_epi16::<8>(odd));
            for (parity, values) in [even, odd].into_iter().enumerate() {
                let mut lanes = [0u16; 16];
                // SAFETY: 32 bytes.
                unsafe { _mm256_storeu_si256(lanes.as_mut_ptr().cast(), values) };
                for (i, lane) in lanes.into_iter().enumerate() {
                    totals[half * FIELD_BYTES + i % 8 * 2 + parity] += u32::from(lane) << (8 * byte);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_integers_of_more_fields_than_32_bits_hold_are_summed_exactly() {
        // All values the largest: fields · 65535 leaves 32 bits.
        let (fields, strip_count) = (1 << 17, 5);
        for simd in Simd::available().into_iter().filter(|simd| simd.level() >= SimdLevel::Avx2) {
            for value in [1.0f32, -1.0] {
                let tables = vec![value; fields * PATTERNS];
                let rounded = RoundedTables::new(&tables, fields, simd).expect("a level that rounds");
                let strip_words = fields * FIELD_BYTES / 4;
                let codes = vec![0x7654_3210; strip_count * strip_words];
                let strips = Strips { codes: &codes, strip_words, count: strip_count };
                let mut sums = vec![[0.0; STRIP]; strip_count];
                assert!(rounded.sum(0, strips, &mut sums), "{simd:?}: finite tables");
                let expected = value * fields as f32;
                assert!(sums.as_flattened().iter().all(|sum| *sum == expected), "{simd:?} {value}: {:?}", sums[0]);
            }
        }
    }
}
