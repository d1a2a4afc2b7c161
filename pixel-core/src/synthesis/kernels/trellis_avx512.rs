//! The trellis with AVX-512 VBMI, VNNI and GFNI.
//!
//! A lane of 64 bits is a row and four of its columns: a byte permutation brings the bits of a row into its lane, a
//! multishift cuts windows out of it, and the fields of their hashes are added in 16 bits.

use super::MAX_BATCH;
use super::trellis::{Activations, CHUNK, COLS, ROWS};
use crate::codec::trellis::{TILE_LEN, TrellisLayout};
use crate::math::simd::{Simd, SimdLevel};
use std::arch::x86_64::*;

/// Rows of a register.
const GROUP: usize = 8;

/// What a tile's bits are permuted and shifted by.
#[derive(Debug)]
pub(super) struct Avx512Kernel {
    weights: usize,
    window: u32,
    multiplier: u32,
    tile_words: usize,
    /// For each group of rows the bytes of its rows; with one weight a step those of its even, then of its odd rows,
    /// twice each.
    gather: [[[u8; 64]; 2]; ROWS / GROUP],
    /// For each half of the columns the bits of the windows in a lane.
    shifts: [[u8; 64]; 2],
}

impl Avx512Kernel {
    /// The kernel, if `simd` has the instructions.
    pub(super) fn new(layout: &TrellisLayout, simd: Simd) -> Option<Self> {
        if simd.level() < SimdLevel::Avx512Vbmi {
            return None;
        }
        let (weights, k) = (layout.step.weights, layout.step.bits as usize);
        let (steps, tile_bits) = (COLS / weights, layout.tile_words() * 32);
        let row_bits = tile_bits / ROWS;
        let gather = std::array::from_fn(|group| {
            std::array::from_fn(|half| {
                std::array::from_fn(|byte| {
                    let lane = byte / 8;
                    let row = group * GROUP + if weights == 2 { lane } else { lane / 2 * 2 + half };
                    (((ROWS - 1 - row) * row_bits / 8 + byte % 8) % (tile_bits / 8)) as u8
                })
            })
        });
        let shifts = std::array::from_fn(|half| {
            std::array::from_fn(|byte| {
                let (lane, double) = (byte / 8, byte % 8 / 4);
                // An odd number of nibbles in a row puts every other row four bits beyond a byte.
                let (row, step) =
                    if weights == 2 { (lane, half * 2 + double) } else { (0, half * 4 + lane % 2 * 2 + double) };
                let bit = (ROWS - 1 - row) * row_bits % 8 + (steps - 1 - step) * k;
                (bit + byte % 4 * 8) as u8 % 64
            })
        });
        let (window, multiplier) = (layout.window, layout.hash.multiplier);
        Some(Self { weights, window, multiplier, tile_words: layout.tile_words(), gather, shifts })
    }

    /// The sums of the products of the weights of a band, in integers, with each row of `activations`.
    pub(super) fn run(&self, words: &[u32], activations: Activations<'_>, sums: &mut [[f32; ROWS]; MAX_BATCH]) {
        macro_rules! run {
            ($($weights:literal $full:literal $wide:literal)+) => {
                match (self.weights, self.window == 16, self.tile_words > 16, activations.batch) {
                    $(
                        // SAFETY: the kernel exists where its instructions do.
                        ($weights, $full, $wide, 1) => unsafe {
                            self.products::<$weights, $full, $wide, 4, 1>(words, activations, sums)
                        },
                        // SAFETY: as above.
                        ($weights, $full, $wide, 2) => unsafe {
                            self.products::<$weights, $full, $wide, 4, 2>(words, activations, sums)
                        },
                        // SAFETY: as above.
                        ($weights, $full, $wide, 4) => unsafe {
                            self.products::<$weights, $full, $wide, 2, 4>(words, activations, sums)
                        },
                        // SAFETY: as above.
                        ($weights, $full, $wide, 8) => unsafe {
                            self.products::<$weights, $full, $wide, 1, 8>(words, activations, sums)
                        },
                    )+
                    _ => unreachable!("{} weights a step, {} rows", self.weights, activations.batch),
                }
            };
        }
        run!(2 true false  2 true true  2 false false  2 false true  1 true true  1 false true);
    }

    /// Decodes the tiles of a band into columns of `rows`, `[32, width]`, the width a multiple of 8, in units of
    /// `unit`.
    pub(super) fn decode(&self, words: &[u32], unit: f32, rows: &mut [f32]) {
        let tiles = words.len() / self.tile_words;
        assert_eq!(rows.len(), ROWS * tiles * COLS, "rows of the band");
        // SAFETY: the kernel exists where its instructions do; the lengths were checked above.
        unsafe {
            match (self.weights, self.tile_words > 16) {
                (2, false) => self.decode_tiles::<2, false>(words, unit, rows),
                (2, _) => self.decode_tiles::<2, true>(words, unit, rows),
                _ => self.decode_tiles::<1, true>(words, unit, rows),
            }
        }
    }

    /// The integers of a tile, `[pairs of columns, rows, 2]`.
    pub(super) fn decode_pairs(&self, words: &[u32], pairs: &mut [[i16; 2 * ROWS]; COLS / 2]) {
        assert_eq!(words.len(), self.tile_words, "words of a tile");
        // SAFETY: the kernel exists where its instructions do.
        unsafe {
            match (self.weights, self.tile_words > 16) {
                (2, false) => self.decode_tile_pairs::<2, false>(words, pairs),
                (2, _) => self.decode_tile_pairs::<2, true>(words, pairs),
                _ => self.decode_tile_pairs::<1, true>(words, pairs),
            }
        }
    }

    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512vbmi2,gfni")]
    fn decode_tile_pairs<const WEIGHTS: usize, const WIDE: bool>(
        &self,
        words: &[u32],
        pairs: &mut [[i16; 2 * ROWS]; COLS / 2],
    ) {
        let centre = _mm512_set1_epi16(if WEIGHTS == 2 { 30 } else { 0 });
        // The first pairs of sixteen rows, then the second ones.
        let even = _mm512_setr_epi32(0, 2, 4, 6, 8, 10, 12, 14, 16, 18, 20, 22, 24, 26, 28, 30);
        let odd = _mm512_add_epi32(even, _mm512_set1_epi32(1));
        let bits = self.load::<WIDE>(words);
        for groups in 0..ROWS / GROUP / 2 {
            let first = self.gather::<WEIGHTS, WIDE>(bits, 2 * groups);
            let second = self.gather::<WEIGHTS, WIDE>(bits, 2 * groups + 1);
            for half in 0..2 {
                let first = _mm512_sub_epi16(self.fields::<WEIGHTS, false>(first, half), centre);
                let second = _mm512_sub_epi16(self.fields::<WEIGHTS, false>(second, half), centre);
                let even = _mm512_permutex2var_epi32(first, even, second);
                let odd = _mm512_permutex2var_epi32(first, odd, second);
                // SAFETY: 32 of 64 integers.
                unsafe {
                    _mm512_storeu_si512(pairs[2 * half].as_mut_ptr().add(groups * 4 * GROUP).cast(), even);
                    _mm512_storeu_si512(pairs[2 * half + 1].as_mut_ptr().add(groups * 4 * GROUP).cast(), odd);
                }
            }
        }
    }

    /// `G` groups of rows and `B` rows of activations at a time.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512vbmi2,gfni")]
    fn products<const WEIGHTS: usize, const FULL: bool, const WIDE: bool, const G: usize, const B: usize>(
        &self,
        words: &[u32],
        activations: Activations<'_>,
        sums: &mut [[f32; ROWS]; MAX_BATCH],
    ) {
        for first in (0..ROWS / GROUP).step_by(G) {
            let mut totals = [[_mm512_setzero_ps(); B]; G];
            let chunks = words.chunks(CHUNK * self.tile_words).zip(activations.chunks::<B>());
            for (words, (columns, excess)) in chunks {
                let mut integers = [[_mm512_setzero_si512(); B]; G];
                for (words, columns) in words.chunks_exact(self.tile_words).zip(columns) {
                    prefetch(words);
                    let bits = self.load::<WIDE>(words);
                    let rows: [[__m512i; 2]; G] =
                        std::array::from_fn(|g| self.gather::<WEIGHTS, WIDE>(bits, first + g));
                    for half in 0..2 {
                        for (rows, integers) in rows.iter().zip(&mut integers) {
                            let fields = self.fields::<WEIGHTS, FULL>(*rows, half);
                            for (columns, integers) in columns.iter().zip(integers) {
                                let columns = bytemuck::cast::<_, [i64; 2]>(*columns)[half];
                                *integers = _mm512_dpwssd_epi32(*integers, fields, _mm512_set1_epi64(columns));
                            }
                        }
                    }
                }
                for (integers, totals) in integers.into_iter().zip(&mut totals) {
                    for ((integers, total), excess) in integers.into_iter().zip(totals).zip(excess) {
                        let sum = _mm512_sub_epi32(integers, _mm512_set1_epi64(bytemuck::cast(*excess)));
                        *total = _mm512_add_ps(*total, _mm512_cvtepi32_ps(sum));
                    }
                }
            }
            for (g, totals) in totals.into_iter().enumerate() {
                for (total, sums) in totals.into_iter().zip(sums.iter_mut()) {
                    let mut lanes = [0f32; 2 * GROUP];
                    // SAFETY: 16 values.
                    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), total) };
                    let rows = &mut sums[(first + g) * GROUP..][..GROUP];
                    rows.iter_mut().zip(lanes.as_chunks::<2>().0).for_each(|(row, lanes)| *row = lanes[0] + lanes[1]);
                }
            }
        }
    }

    /// # Safety
    /// The machine has what [`SimdLevel::Avx512Vbmi`] names; `rows` is `[32, 8·tiles]`.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512vbmi2,gfni")]
    unsafe fn decode_tiles<const WEIGHTS: usize, const WIDE: bool>(&self, words: &[u32], unit: f32, rows: &mut [f32]) {
        let width = rows.len() / ROWS;
        let centre = _mm512_set1_epi16(if WEIGHTS == 2 { 30 } else { 0 });
        let unit = _mm512_set1_ps(unit);
        for (tile, words) in words.chunks_exact(self.tile_words).enumerate() {
            let bits = self.load::<WIDE>(words);
            for group in 0..ROWS / GROUP {
                let gathered = self.gather::<WEIGHTS, WIDE>(bits, group);
                let fields: [__m512i; 2] =
                    std::array::from_fn(|half| _mm512_sub_epi16(self.fields::<WEIGHTS, false>(gathered, half), centre));
                // Each lane of 128 bits is the eight columns of an even, then of an odd row.
                let parities =
                    [_mm512_unpacklo_epi64(fields[0], fields[1]), _mm512_unpackhi_epi64(fields[0], fields[1])];
                for (parity, values) in parities.into_iter().enumerate() {
                    let halves = [_mm512_castsi512_si256(values), _mm512_extracti64x4_epi64::<1>(values)];
                    for (half, values) in halves.into_iter().enumerate() {
                        let values = _mm512_mul_ps(_mm512_cvtepi32_ps(_mm512_cvtepi16_epi32(values)), unit);
                        let row = group * GROUP + half * 4 + parity;
                        // SAFETY: rows `row` and `row + 2` < 32, columns below the width.
                        unsafe {
                            let out = rows.as_mut_ptr().add(row * width + tile * COLS);
                            _mm256_storeu_ps(out, _mm512_castps512_ps256(values));
                            _mm256_storeu_ps(out.add(2 * width), _mm512_extractf32x8_ps::<1>(values));
                        }
                    }
                }
            }
        }
    }

    /// The words of a tile.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512vbmi2,gfni")]
    fn load<const WIDE: bool>(&self, words: &[u32]) -> [__m512i; 2] {
        let mask = |count: usize| if count >= 16 { u16::MAX } else { (1 << count) - 1 };
        // SAFETY: masked lanes are not read.
        unsafe {
            let low = _mm512_maskz_loadu_epi32(mask(words.len()), words.as_ptr().cast());
            if !WIDE {
                return [low; 2];
            }
            [low, _mm512_maskz_loadu_epi32(mask(words.len() - 16), words.as_ptr().add(16).cast())]
        }
    }

    /// The bits of a group of rows, in one register or two.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512vbmi2,gfni")]
    fn gather<const WEIGHTS: usize, const WIDE: bool>(&self, bits: [__m512i; 2], group: usize) -> [__m512i; 2] {
        let gather = |part: usize| {
            // SAFETY: 64 bytes.
            let places = unsafe { _mm512_loadu_si512(self.gather[group][part].as_ptr().cast()) };
            if WIDE {
                _mm512_permutex2var_epi8(bits[0], places, bits[1])
            } else {
                _mm512_permutexvar_epi8(places, bits[0])
            }
        };
        let first = gather(0);
        [first, if WEIGHTS == 1 { gather(1) } else { first }]
    }

    /// The sums of the fields of four columns, 16 bits each, four to a row; with two weights a step they count from
    /// zero.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vbmi,avx512vnni,avx512vbmi2,gfni")]
    fn fields<const WEIGHTS: usize, const FULL: bool>(&self, rows: [__m512i; 2], half: usize) -> __m512i {
        /// What the linear map of each byte must be for a shift to the right by four.
        const HIGH_NIBBLE: i64 = 0x1020_4080_0000_0000;
        // SAFETY: 64 bytes.
        let shifts = unsafe { _mm512_loadu_si512(self.shifts[half].as_ptr().cast()) };
        let ones = _mm512_set1_epi8(1);
        let mixed = |rows: __m512i| {
            // The lower two bytes of each 32 bits, 16 bits of the row from the window's first on.
            let mut windows = _mm512_maskz_multishift_epi64_epi8(0x3333_3333_3333_3333, shifts, rows);
            if !FULL {
                windows = _mm512_and_si512(windows, _mm512_set1_epi32((1 << self.window) - 1));
            }
            let product = _mm512_mullo_epi32(windows, _mm512_set1_epi32(self.multiplier as i32));
            _mm512_xor_si512(product, _mm512_srli_epi32::<16>(product))
        };
        if WEIGHTS == 2 {
            let mixed = mixed(rows[0]);
            let low = _mm512_and_si512(mixed, _mm512_set1_epi8(15));
            let high = _mm512_gf2p8affine_epi64_epi8::<0>(mixed, _mm512_set1_epi64(HIGH_NIBBLE));
            _mm512_maddubs_epi16(_mm512_add_epi8(low, high), ones)
        } else {
            let sum = |rows| _mm512_dpbusd_epi32(_mm512_set1_epi32(-510), mixed(rows), ones);
            _mm512_packs_epi32(sum(rows[0]), sum(rows[1]))
        }
    }
}

/// Asks for the words of a tile further on: a tile is so much work that the processor itself looks ahead less than a
/// page of memory, and waits at the end of each. Measured where the weight comes from memory: see
/// `docs/performance.md`.
#[inline]
#[target_feature(enable = "avx512f")]
fn prefetch(words: &[u32]) {
    const AHEAD: usize = 4096;
    for line in words.chunks(16) {
        // Any address may be asked for.
        _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().wrapping_byte_add(AHEAD).cast());
    }
}

const _: () = assert!(TILE_LEN == ROWS * COLS);
