//! The kernel with AVX2: indices become integers of 16 bits, sixteen at a time.

use super::integer::{Activations, GROUPS, Row, Rows, STEP};
use super::{AHEAD, UNPACKED, prefetch};
use std::arch::x86_64::*;

/// Sixteens of a step.
const PARTS: usize = STEP / UNPACKED;

/// How `bits`-bit fields become integers of 16 bits: each takes the two bytes that it lies in, loses the bits above it
/// by a product with a power of two, and those below by a shift.
#[derive(Clone, Copy)]
struct Unpack {
    /// For each sixteen of a step, where sixteen bytes begin that hold them.
    starts: [usize; PARTS],
    /// Where in these the two bytes of each field are.
    bytes: [__m256i; PARTS],
    powers: __m256i,
    shift: __m128i,
    /// Bytes of a step.
    width: usize,
}

impl Unpack {
    #[target_feature(enable = "avx2")]
    fn new(bits: u32) -> Self {
        let (bits, width) = (bits as usize, STEP / 8 * bits as usize);
        let starts = std::array::from_fn(|part| (2 * bits * part).min(width - UNPACKED));
        let bytes = std::array::from_fn(|part| {
            let first = 2 * bits * part - starts[part];
            let bytes: [u8; 32] = std::array::from_fn(|i| (first + i / 2 * bits / 8 + i % 2).min(15) as u8);
            // SAFETY: 32 bytes.
            unsafe { _mm256_loadu_si256(bytes.as_ptr().cast()) }
        });
        let powers: [u16; UNPACKED] = std::array::from_fn(|i| 1 << (16 - bits - i * bits % 8));
        // SAFETY: 32 bytes.
        let powers = unsafe { _mm256_loadu_si256(powers.as_ptr().cast()) };
        Self { starts, bytes, powers, shift: _mm_cvtsi32_si128(16 - bits as i32), width }
    }

    /// The `part`-th sixteen fields of a step.
    #[inline]
    #[target_feature(enable = "avx2")]
    fn load<const PACKED: bool>(&self, codes: &[u8], part: usize) -> __m256i {
        let start = if PACKED { self.starts[part] } else { UNPACKED * part };
        let codes = &codes[start..][..UNPACKED];
        // SAFETY: sixteen bytes.
        let codes = unsafe { _mm_loadu_si128(codes.as_ptr().cast()) };
        if !PACKED {
            return _mm256_cvtepu8_epi16(codes);
        }
        let fields = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(codes), self.bytes[part]);
        _mm256_srl_epi16(_mm256_mullo_epi16(fields, self.powers), self.shift)
    }
}

/// The rows `rows`, of whole steps, times a block of activations, into the first `B` of every `stride` values of `out`.
#[target_feature(enable = "avx2,fma")]
pub(super) fn run<const PACKED: bool, const B: usize>(
    bits: u32,
    rows: Rows<'_>,
    x: Activations<'_, B>,
    (out, stride): (&mut [f32], usize),
) {
    let unpack = Unpack::new(bits);
    let bytes = if PACKED { unpack.width } else { STEP };
    for (i, out) in out.chunks_mut(stride).enumerate() {
        let Row { codes, scales, offsets } = rows.row(i);
        let sums = row::<PACKED, B>(&unpack, codes.chunks_exact(bytes), scales, offsets, x);
        for ((out, sum), unit) in out.iter_mut().zip(sums).zip(x.units) {
            *out = reduce(sum) * unit;
        }
    }
}

/// The sums of one row in eight parts, in units of those of the activations. `codes` are the indices of its steps.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn row<'a, const PACKED: bool, const B: usize>(
    unpack: &Unpack,
    codes: impl Iterator<Item = &'a [u8]>,
    scales: &[f32],
    offsets: &[f32],
    x: Activations<'_, B>,
) -> [__m256; B] {
    let mut sums = [_mm256_setzero_ps(); B];
    for ((codes, scale), x) in codes.zip(scales).zip(x.steps) {
        prefetch(codes, AHEAD);
        let (scale, mut products) = (_mm256_set1_ps(*scale), [_mm256_setzero_si256(); B]);
        for part in 0..PARTS {
            let indices = unpack.load::<PACKED>(codes, part);
            for (products, x) in products.iter_mut().zip(x) {
                // SAFETY: sixteen integers.
                let x = unsafe { _mm256_loadu_si256(x[UNPACKED * part..][..UNPACKED].as_ptr().cast()) };
                *products = _mm256_add_epi32(*products, _mm256_madd_epi16(indices, x));
            }
        }
        for (sum, products) in sums.iter_mut().zip(products) {
            *sum = _mm256_fmadd_ps(scale, _mm256_cvtepi32_ps(products), *sum);
        }
    }
    subtract(offsets, x, &mut sums);
    sums
}

/// Subtracts the zero points' share.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn subtract<const B: usize>(offsets: &[f32], x: Activations<'_, B>, sums: &mut [__m256; B]) {
    for (offsets, totals) in offsets.chunks(GROUPS).zip(x.totals) {
        let mut padded = [0.0; GROUPS];
        padded[..offsets.len()].copy_from_slice(offsets);
        for (sum, totals) in sums.iter_mut().zip(totals) {
            for (offsets, totals) in padded.as_chunks::<8>().0.iter().zip(totals.as_chunks::<8>().0) {
                // SAFETY: eight values each.
                let (offsets, totals) =
                    unsafe { (_mm256_loadu_ps(offsets.as_ptr()), _mm256_loadu_ps(totals.as_ptr())) };
                *sum = _mm256_fnmadd_ps(offsets, totals, *sum);
            }
        }
    }
}

/// The sum of eight values.
#[inline]
#[target_feature(enable = "avx2")]
fn reduce(v: __m256) -> f32 {
    let v = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps::<1>(v));
    let v = _mm_add_ps(v, _mm_movehl_ps(v, v));
    _mm_cvtss_f32(_mm_add_ss(v, _mm_movehdup_ps(v)))
}
