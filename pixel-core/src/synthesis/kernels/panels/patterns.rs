//! Sums of patterns in integers, in the order that the multiplication wants: a permutation of AVX-512 looks up two
//! columns of sixteen rows at once, a shuffle of AVX2 one byte of a column of 32 rows.

use super::super::scratch::Scratch;
use super::LANES;
use crate::codec::nibble::{EIGHT, FIELD_BYTES, NibbleLayout, PATTERNS, STRIP};
use crate::math::simd::{Simd, SimdLevel};
use std::arch::x86_64::*;

/// Pairs of columns of an eight.
const PAIRS: usize = EIGHT / 2;

/// Two columns of sixteen patterns: of each pattern the two integers; with AVX2 all lower bytes of the first column,
/// its higher ones, and the same of the second column.
type Table = [u8; 4 * PATTERNS];

/// Integers a unit of the row's scale at most for a weight whose root mean square is 1, so that a row's norm is rarely
/// larger than a block of the multiplication allows. The dictionaries of files are multiples of 1/64: powers of two
/// from 64 on make them integers.
const UNIT: f32 = 2048.0;

/// The most that patterns add up to.
const LARGEST: f32 = 32_000.0;

/// The patterns of a dictionary in integers.
#[derive(Debug)]
pub(super) struct Patterns {
    layout: NibbleLayout,
    simd: Simd,
    /// Of each eight that a window reaches, each nibble of an eight, and each pair of the former's columns,
    /// `[reached, M, 4]`; zero where the window does not reach.
    tables: Scratch<Table>,
    /// What an integer stands for, a power of two.
    pub(super) step: f32,
}

impl Patterns {
    /// `dictionary` in integers, if `simd` has the instructions and sums of its patterns are numbers that can be
    /// rounded.
    pub(super) fn new(layout: &NibbleLayout, dictionary: &[f32], simd: Simd) -> Option<Self> {
        if simd.level() < SimdLevel::Avx2 {
            return None;
        }
        let (largest, power) = extent(layout, dictionary);
        if !(1e-30..1e30).contains(&largest) {
            return None;
        }
        let unit = (LARGEST / largest).min(UNIT / power.sqrt()).log2().floor().exp2();
        let count = reached(layout) * layout.per_eight * PAIRS;
        let mut tables = Scratch::<Table>::new(count);
        for (i, table) in tables.iter_mut().enumerate() {
            let (reached, m, pair) = (i / PAIRS / layout.per_eight, i / PAIRS % layout.per_eight, i % PAIRS);
            for (pattern, side) in (0..PATTERNS).flat_map(|pattern| [(pattern, 0), (pattern, 1)]) {
                let value = value(layout, dictionary, m, pattern, reached * EIGHT + 2 * pair + side);
                let bytes = ((value * unit).round_ties_even() as i16).to_le_bytes();
                for (i, byte) in bytes.into_iter().enumerate() {
                    let split = (2 * side + i) * PATTERNS + pattern;
                    table[if simd.level() == SimdLevel::Avx2 { split } else { 4 * pattern + 2 * side + i }] = byte;
                }
            }
        }
        Some(Self { layout: *layout, simd, tables, step: 1.0 / unit })
    }

    /// Decodes the columns of `pairs` `[pairs of columns, rows, 2]`, from column `start` on, of strip `strip`.
    pub(super) fn decode(&self, words: &[u32], strip: usize, start: usize, pairs: &mut [[i16; 2 * LANES]]) {
        let words = &words[strip * self.layout.strip_words()..][..self.layout.strip_words()];
        let (fields, _) = bytemuck::cast_slice::<_, u8>(words).as_chunks::<FIELD_BYTES>();
        match self.simd.level() {
            // SAFETY: a `Simd` exists only for levels that the machine has.
            SimdLevel::Avx2 => unsafe { self.decode_avx2(fields, start / EIGHT, pairs) },
            // SAFETY: as above; the patterns do not exist below AVX2.
            _ => unsafe { self.decode_avx512(fields, start / EIGHT, pairs) },
        }
    }

    /// The fields that reach eight `eight`, each with its tables.
    #[inline(always)]
    fn reaching<'a>(
        &'a self,
        fields: &'a [[u8; FIELD_BYTES]],
        eight: usize,
    ) -> impl Iterator<Item = (&'a [u8; FIELD_BYTES], &'a [Table; PAIRS])> {
        let per_eight = self.layout.per_eight;
        let tables = self.tables.as_chunks::<PAIRS>().0.chunks_exact(per_eight).enumerate().take(eight + 1);
        tables
            .flat_map(move |(reached, tables)| fields[(eight - reached) * per_eight..][..per_eight].iter().zip(tables))
    }

    /// Two pairs of columns at a time, whose integers take half of the registers.
    #[target_feature(enable = "avx2")]
    fn decode_avx2(&self, fields: &[[u8; FIELD_BYTES]], first: usize, pairs: &mut [[i16; 2 * LANES]]) {
        let nibble = _mm256_set1_epi8(15);
        for (i, pairs) in pairs.chunks_mut(2).enumerate() {
            // Of each column rows 0 to 7 and 16 to 23, then the others.
            let mut sums = [[[_mm256_setzero_si256(); 2]; 2]; 2];
            for (codes, tables) in self.reaching(fields, first + i / 2) {
                // SAFETY: sixteen bytes.
                let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
                let codes = _mm256_and_si256(_mm256_set_m128i(_mm_srli_epi16::<4>(codes), codes), nibble);
                for (sums, table) in sums.iter_mut().zip(&tables[i % 2 * 2..]) {
                    for (sums, table) in sums.iter_mut().zip(table.as_chunks::<{ 2 * PATTERNS }>().0) {
                        let bytes = table.as_chunks::<PATTERNS>().0;
                        let bytes: [_; 2] = std::array::from_fn(|byte| {
                            // SAFETY: sixteen bytes.
                            let table = unsafe { _mm_loadu_si128(bytes[byte].as_ptr().cast()) };
                            _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(table), codes)
                        });
                        sums[0] = _mm256_add_epi16(sums[0], _mm256_unpacklo_epi8(bytes[0], bytes[1]));
                        sums[1] = _mm256_add_epi16(sums[1], _mm256_unpackhi_epi8(bytes[0], bytes[1]));
                    }
                }
            }
            for (pair, [left, right]) in pairs.iter_mut().zip(sums) {
                for (i, (left, right)) in left.into_iter().zip(right).enumerate() {
                    let quarters = [_mm256_unpacklo_epi16(left, right), _mm256_unpackhi_epi16(left, right)];
                    for (j, rows) in quarters.into_iter().enumerate() {
                        let out = pair.as_chunks_mut::<8>().0;
                        // SAFETY: eight integers, four rows.
                        unsafe {
                            _mm_storeu_si128(out[2 * i + j].as_mut_ptr().cast(), _mm256_castsi256_si128(rows));
                            let rows = _mm256_extracti128_si256::<1>(rows);
                            _mm_storeu_si128(out[4 + 2 * i + j].as_mut_ptr().cast(), rows);
                        }
                    }
                }
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw")]
    fn decode_avx512(&self, fields: &[[u8; FIELD_BYTES]], first: usize, pairs: &mut [[i16; 2 * LANES]]) {
        for (eight, pairs) in (first..).zip(pairs.chunks_mut(PAIRS)) {
            let mut sums = [[_mm512_setzero_si512(); 2]; PAIRS];
            for (codes, tables) in self.reaching(fields, eight) {
                // SAFETY: sixteen bytes.
                let codes = _mm512_cvtepu8_epi32(unsafe { _mm_loadu_si128(codes.as_ptr().cast()) });
                // A permutation reads the lowest four bits.
                let codes = [codes, _mm512_srli_epi32::<4>(codes)];
                for (sums, table) in sums.iter_mut().zip(tables) {
                    // SAFETY: 64 bytes.
                    let table = unsafe { _mm512_loadu_si512(table.as_ptr().cast()) };
                    for (sum, codes) in sums.iter_mut().zip(codes) {
                        *sum = _mm512_add_epi16(*sum, _mm512_permutexvar_epi32(codes, table));
                    }
                }
            }
            for (pair, sums) in pairs.iter_mut().zip(sums) {
                for (half, sum) in pair.as_chunks_mut::<LANES>().0.iter_mut().zip(sums) {
                    // SAFETY: 32 integers.
                    unsafe { _mm512_storeu_si512(half.as_mut_ptr().cast(), sum) };
                }
            }
        }
    }
}

/// The eights that windows reach: their own, and those that begin within a span behind its last column.
pub(super) const fn reached(layout: &NibbleLayout) -> usize {
    (layout.start(layout.per_eight - 1) + layout.span()).div_ceil(EIGHT)
}

/// Weight `column` of a pattern of nibble `m` of an eight, counted from the first of the eight.
fn value(layout: &NibbleLayout, dictionary: &[f32], m: usize, pattern: usize, column: usize) -> f32 {
    match column.checked_sub(layout.start(m)) {
        Some(within) if within < layout.span() => {
            dictionary[(m % layout.period() * PATTERNS + pattern) * layout.span() + within]
        }
        _ => 0.0,
    }
}

/// The most that a column's patterns add up to, and the mean power of a weight whose patterns are equally likely.
fn extent(layout: &NibbleLayout, dictionary: &[f32]) -> (f32, f32) {
    let (mut largest, mut power) = (0f32, 0.0);
    for column in 0..EIGHT {
        let mut sum = 0.0;
        for m in 0..layout.per_eight {
            for column in (column..reached(layout) * EIGHT).step_by(EIGHT) {
                let values = (0..PATTERNS).map(|pattern| value(layout, dictionary, m, pattern, column));
                power += values.clone().map(|value| value * value).sum::<f32>() / (PATTERNS * EIGHT) as f32;
                // NaN stays.
                sum += values.fold(0.0, |peak, value| if value.abs() <= peak { peak } else { value.abs() });
            }
        }
        largest = if sum <= largest { largest } else { sum };
    }
    (largest, power)
}

const _: () = assert!(LANES == STRIP && LANES == 2 * PATTERNS);
