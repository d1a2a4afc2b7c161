//! The trellis with AVX2.
//!
//! A lane of 32 bits is a row: eight rows at a time, one step of each. Four rows lie within 16 bytes, from which a byte
//! shuffle brings 32 bits of each into its lane.

use super::MAX_BATCH;
use super::trellis::{Activations, CHUNK, COLS, ROWS};
use crate::codec::trellis::TrellisLayout;
use crate::math::simd::{Simd, SimdLevel};
use std::arch::x86_64::*;

/// Rows of a register.
const GROUP: usize = 8;

/// The constants of a layout.
#[derive(Debug)]
pub(super) struct Avx2Kernel {
    weights: usize,
    bits: usize,
    window: u32,
    multiplier: u32,
    tile_words: usize,
}

/// For each step, from the end of a row, where the bits of four rows are: bytes of the 16, and the shift then.
struct Places<const WEIGHTS: usize, const BITS: usize>;

impl<const WEIGHTS: usize, const BITS: usize> Places<WEIGHTS, BITS> {
    /// Steps of a row.
    const STEPS: usize = COLS / WEIGHTS;
    /// Bits of a row.
    const ROW_BITS: usize = Self::STEPS * BITS;
    /// Bytes of a tile.
    const TILE_BYTES: usize = ROWS * Self::ROW_BITS / 8;

    /// Steps whose windows lie within the same 32 bits: 3·4 + 16 bits, and 4 more where a row has an odd number of
    /// nibbles.
    const TOGETHER: usize = if BITS <= 4 { 4 } else { 2 };

    /// The first of the 16 bytes for four rows, `last` the last of them, and the steps from `step` on.
    const fn first_byte(last: usize, step: usize) -> usize {
        ((ROWS - 1 - last) * Self::ROW_BITS + step * BITS) / 8
    }

    /// The bit within the 16 bytes at which the windows of row `lane` of four begin, from step `step` on.
    const fn bit(lane: usize, step: usize) -> usize {
        (3 - lane) * Self::ROW_BITS + step * BITS % 8
    }

    /// The bytes of four rows, for the steps together.
    const SHUFFLES: [[u8; 16]; COLS] = {
        let mut shuffles = [[0; 16]; COLS];
        let mut i = 0;
        while i < Self::STEPS * 16 {
            let (step, byte) = (i / 16, i % 16);
            shuffles[step][byte] = (Self::bit(byte / 4, step) / 8 + byte % 4) as u8;
            i += 1;
        }
        shuffles
    };

    /// The shift of a step within the bytes of its steps together.
    const SHIFTS: [[u32; 4]; COLS] = {
        let mut shifts = [[0; 4]; COLS];
        let mut i = 0;
        while i < Self::STEPS * 4 {
            let (step, lane) = (i / 4, i % 4);
            let first = step / Self::TOGETHER * Self::TOGETHER;
            shifts[step][lane] = (Self::bit(lane, first) % 8 + (step - first) * BITS) as u32;
            i += 1;
        }
        shifts
    };
}

impl Avx2Kernel {
    /// The kernel, if `simd` has the instructions.
    pub(super) fn new(layout: &TrellisLayout, simd: Simd) -> Option<Self> {
        (simd.level() >= SimdLevel::Avx2).then(|| Self {
            weights: layout.step.weights,
            bits: layout.step.bits as usize,
            window: layout.window,
            multiplier: layout.hash.multiplier,
            tile_words: layout.tile_words(),
        })
    }

    /// The sums of the products of the weights of a band, in integers, with each row of `activations`.
    pub(super) fn run(&self, words: &[u32], activations: Activations<'_>, sums: &mut [[f32; ROWS]; MAX_BATCH]) {
        macro_rules! run {
            ($($weights:literal $bits:literal)+) => {
                match (self.weights, self.bits, activations.batch) {
                    $(
                        // SAFETY: the kernel exists where its instructions do.
                        ($weights, $bits, 1) => unsafe {
                            self.products::<$weights, $bits, 4, 1>(words, activations, sums)
                        },
                        // SAFETY: as above.
                        ($weights, $bits, 2) => unsafe {
                            self.products::<$weights, $bits, 2, 2>(words, activations, sums)
                        },
                        // SAFETY: as above.
                        ($weights, $bits, 4) => unsafe {
                            self.products::<$weights, $bits, 1, 4>(words, activations, sums)
                        },
                        // SAFETY: as above.
                        ($weights, $bits, 8) => unsafe {
                            self.products::<$weights, $bits, 1, 8>(words, activations, sums)
                        },
                    )+
                    (weights, bits, rows) => unreachable!("{weights} weights, {bits} bits a step, {rows} rows"),
                }
            };
        }
        run!(2 2  2 3  2 4  2 5  1 3  1 4);
    }

    /// The integers of a tile, `[pairs of columns, rows, 2]`.
    pub(super) fn decode_pairs(&self, words: &[u32], pairs: &mut [[i16; 2 * ROWS]; COLS / 2]) {
        macro_rules! decode {
            ($($weights:literal $bits:literal)+) => {
                match (self.weights, self.bits) {
                    $(
                        // SAFETY: the kernel exists where its instructions do.
                        ($weights, $bits) => unsafe { self.decode_tile_pairs::<$weights, $bits>(words, pairs) },
                    )+
                    (weights, bits) => unreachable!("{weights} weights, {bits} bits a step"),
                }
            };
        }
        decode!(2 2  2 3  2 4  2 5  1 3  1 4);
    }

    #[target_feature(enable = "avx2")]
    fn decode_tile_pairs<const WEIGHTS: usize, const BITS: usize>(
        &self,
        words: &[u32],
        pairs: &mut [[i16; 2 * ROWS]; COLS / 2],
    ) {
        let (steps, together) = (Places::<WEIGHTS, BITS>::STEPS, Places::<WEIGHTS, BITS>::TOGETHER);
        let tile = Tile::<WEIGHTS, BITS>::new(words);
        for group in 0..ROWS / GROUP {
            for first in (0..steps).step_by(together) {
                let rows = tile.rows(group * GROUP, first);
                for step in (first..first + together).step_by(2 / WEIGHTS) {
                    let values = if WEIGHTS == 2 {
                        _mm256_sub_epi16(self.fields::<WEIGHTS, BITS>(rows, step), _mm256_set1_epi16(30))
                    } else {
                        // From the end of the row: the later step is the earlier column.
                        let sum =
                            |step| _mm256_madd_epi16(self.fields::<WEIGHTS, BITS>(rows, step), _mm256_set1_epi16(1));
                        _mm256_blend_epi16::<0b1010_1010>(sum(step + 1), _mm256_slli_epi32::<16>(sum(step)))
                    };
                    let pair = (steps - 1 - step) * WEIGHTS / 2;
                    let out = &mut pairs[pair][group * 2 * GROUP..][..2 * GROUP];
                    // SAFETY: 16 integers.
                    unsafe { _mm256_storeu_si256(out.as_mut_ptr().cast(), values) };
                }
            }
        }
    }

    /// `G` groups of rows and `B` rows of activations at a time.
    #[target_feature(enable = "avx2")]
    fn products<const WEIGHTS: usize, const BITS: usize, const G: usize, const B: usize>(
        &self,
        words: &[u32],
        activations: Activations<'_>,
        sums: &mut [[f32; ROWS]; MAX_BATCH],
    ) {
        let together = Places::<WEIGHTS, BITS>::TOGETHER;
        for first in (0..ROWS / GROUP).step_by(G) {
            let mut totals = [[_mm256_setzero_ps(); B]; G];
            let chunks = words.chunks(CHUNK * self.tile_words).zip(activations.chunks::<B>());
            for (words, (columns, excess)) in chunks {
                let mut integers = [[_mm256_setzero_si256(); B]; G];
                for (words, columns) in words.chunks_exact(self.tile_words).zip(columns) {
                    let tile = Tile::<WEIGHTS, BITS>::new(words);
                    for step in (0..Places::<WEIGHTS, BITS>::STEPS).step_by(together) {
                        let rows: [__m256i; G] = std::array::from_fn(|g| tile.rows((first + g) * GROUP, step));
                        for step in step..step + together {
                            for (rows, integers) in rows.iter().zip(&mut integers) {
                                let fields = self.fields::<WEIGHTS, BITS>(*rows, step);
                                for (columns, integers) in columns.iter().zip(integers) {
                                    let columns = broadcast::<WEIGHTS, BITS>(columns, step);
                                    *integers = _mm256_add_epi32(*integers, _mm256_madd_epi16(fields, columns));
                                }
                            }
                        }
                    }
                }
                for (integers, totals) in integers.into_iter().zip(&mut totals) {
                    for ((integers, total), excess) in integers.into_iter().zip(totals).zip(excess) {
                        let sum = _mm256_sub_epi32(integers, _mm256_set1_epi32(excess[0] + excess[1]));
                        *total = _mm256_add_ps(*total, _mm256_cvtepi32_ps(sum));
                    }
                }
            }
            for (g, totals) in (first..).zip(totals) {
                for (total, sums) in totals.into_iter().zip(sums.iter_mut()) {
                    // SAFETY: eight values, the rows of the group.
                    unsafe { _mm256_storeu_ps(sums[g * GROUP..][..GROUP].as_mut_ptr(), total) };
                }
            }
        }
    }

    /// The sums of the fields of one step in eight rows, 16 bits each: of its two weights, which count from zero, or
    /// halves of the sum of its one weight, centred.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn fields<const WEIGHTS: usize, const BITS: usize>(&self, rows: __m256i, step: usize) -> __m256i {
        let (ones, nibble) = (_mm256_set1_epi8(1), _mm256_set1_epi8(15));
        // SAFETY: 16 bytes.
        let shift = unsafe { _mm_loadu_si128(Places::<WEIGHTS, BITS>::SHIFTS[step].as_ptr().cast()) };
        let windows = _mm256_srlv_epi32(rows, _mm256_broadcastsi128_si256(shift));
        let windows = _mm256_and_si256(windows, _mm256_set1_epi32((1 << self.window) - 1));
        let product = _mm256_mullo_epi32(windows, _mm256_set1_epi32(self.multiplier as i32));
        let mixed = _mm256_xor_si256(product, _mm256_srli_epi32::<16>(product));
        if WEIGHTS == 2 {
            let low = _mm256_and_si256(mixed, nibble);
            let high = _mm256_and_si256(_mm256_srli_epi32::<4>(mixed), nibble);
            _mm256_maddubs_epi16(_mm256_add_epi8(low, high), ones)
        } else {
            _mm256_sub_epi16(_mm256_maddubs_epi16(mixed, ones), _mm256_set1_epi16(255))
        }
    }
}

/// The activations that the fields of a step, counted from the end of a row, are multiplied by.
#[inline]
#[target_feature(enable = "avx2")]
fn broadcast<const WEIGHTS: usize, const BITS: usize>(columns: &[i16; COLS], step: usize) -> __m256i {
    let step = Places::<WEIGHTS, BITS>::STEPS - 1 - step;
    if WEIGHTS == 2 {
        // From memory: a cast of the array would first store it, and wait for that.
        // SAFETY: two of eight integers, for a step below four.
        _mm256_set1_epi32(unsafe { columns.as_ptr().add(2 * step).cast::<i32>().read_unaligned() })
    } else {
        _mm256_set1_epi16(columns[step])
    }
}

/// The words of a tile, and 16 bytes before and behind its end, where its beginning follows.
struct Tile<'a, const WEIGHTS: usize, const BITS: usize> {
    bytes: &'a [u8],
    seam: [u8; 32],
}

impl<'a, const WEIGHTS: usize, const BITS: usize> Tile<'a, WEIGHTS, BITS> {
    #[inline]
    fn new(words: &'a [u32]) -> Self {
        let bytes: &[u8] = bytemuck::cast_slice(words);
        let mut seam = [0; 32];
        seam[..16].copy_from_slice(&bytes[bytes.len() - 16..]);
        seam[16..].copy_from_slice(&bytes[..16]);
        Self { bytes: &bytes[..Places::<WEIGHTS, BITS>::TILE_BYTES], seam }
    }

    /// The bits of the eight rows from `row` on that hold the windows of the steps from `step` on.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn rows(&self, row: usize, step: usize) -> __m256i {
        // SAFETY: 16 bytes.
        let shuffle = unsafe { _mm_loadu_si128(Places::<WEIGHTS, BITS>::SHUFFLES[step].as_ptr().cast()) };
        let rows = _mm256_set_m128i(self.load(row + 7, step), self.load(row + 3, step));
        _mm256_shuffle_epi8(rows, _mm256_broadcastsi128_si256(shuffle))
    }

    /// The bytes of the four rows to `last`.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load(&self, last: usize, step: usize) -> __m128i {
        let (place, end) = (Places::<WEIGHTS, BITS>::first_byte(last, step), Places::<WEIGHTS, BITS>::TILE_BYTES);
        // SAFETY: the tile has `end` bytes; a place beyond the last 16 is before the end, and the seam has 16 bytes on
        // either side of it.
        unsafe {
            let bytes = if place + 16 <= end {
                self.bytes.as_ptr().add(place)
            } else {
                self.seam.as_ptr().add(place + 16 - end)
            };
            _mm_loadu_si128(bytes.cast())
        }
    }
}
