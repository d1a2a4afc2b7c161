//! The kernel with AVX-512 and VNNI: 64 indices times bytes of activations is one instruction.

use super::integer::{Activations, GROUPS, ROWS, Row, Rows, STEP};
use super::{AHEAD, prefetch};
use std::arch::x86_64::*;

/// How `bits`-bit fields become bytes: eight of them fill `bits` bytes, which go to the lanes of 64 bits, and of these
/// each byte of the result takes the bits from its own on.
#[derive(Clone, Copy)]
struct Unpack {
    /// Where the bytes of a lane come from.
    bytes: __m512i,
    /// The first bit of each field within its lane.
    shifts: __m512i,
    /// The bits of a field.
    mask: __m512i,
    /// Bytes of a step.
    width: usize,
}

impl Unpack {
    #[target_feature(enable = "avx512f,avx512bw")]
    fn new(bits: u32) -> Self {
        let bits = bits as usize;
        let bytes: [u8; STEP] = std::array::from_fn(|i| (i / 8 * bits + i % 8).min(STEP - 1) as u8);
        let shifts: [u8; STEP] = std::array::from_fn(|i| (i % 8 * bits) as u8);
        Self {
            // SAFETY: 64 bytes.
            bytes: unsafe { _mm512_loadu_si512(bytes.as_ptr().cast()) },
            // SAFETY: 64 bytes.
            shifts: unsafe { _mm512_loadu_si512(shifts.as_ptr().cast()) },
            mask: _mm512_set1_epi8(((1u32 << bits) - 1) as i8),
            width: STEP / 8 * bits,
        }
    }

    /// The indices of a step, bytes; any value beyond the end of `codes`, where activations are zero.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512vbmi")]
    fn load<const PACKED: bool>(self, codes: &[u8]) -> __m512i {
        if !PACKED && codes.len() == STEP {
            // SAFETY: 64 bytes.
            return unsafe { _mm512_loadu_si512(codes.as_ptr().cast()) };
        }
        let mask = u64::MAX >> (STEP - codes.len().clamp(1, STEP));
        // SAFETY: the bytes of the mask are those of `codes`, of which there is at least one.
        let codes = unsafe { _mm512_maskz_loadu_epi8(mask, codes.as_ptr().cast()) };
        if !PACKED {
            return codes;
        }
        let lanes = _mm512_permutexvar_epi8(self.bytes, codes);
        _mm512_and_si512(_mm512_multishift_epi64_epi8(self.shifts, lanes), self.mask)
    }
}

/// The rows `rows` times a block of activations, into the first `B` of every `stride` values of `out`.
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
pub(super) fn run<const PACKED: bool, const B: usize>(
    bits: u32,
    rows: Rows<'_>,
    x: Activations<'_, B>,
    (out, stride): (&mut [f32], usize),
) {
    let unpack = Unpack::new(bits);
    let bytes = if PACKED { unpack.width } else { STEP };
    let (num_rows, together) = (out.len().div_ceil(stride), const { ROWS / B });
    let (is_whole, ahead) = (rows.are_whole(bytes), AHEAD.next_multiple_of(2 * rows.stride));
    let mut sums = [_mm512_setzero_ps(); ROWS];
    for (first, out) in (0..num_rows).step_by(together).zip(out.chunks_mut(together * stride)) {
        let pairs = (first..num_rows).step_by(2);
        for (sums, row) in sums.as_chunks_mut::<B>().0.as_chunks_mut::<2>().0.iter_mut().zip(pairs) {
            let (a, b) = (rows.row(row), rows.row((row + 1).min(num_rows - 1)));
            *sums = if is_whole {
                let codes = a.codes.chunks_exact(bytes).zip(b.codes.chunks_exact(bytes));
                products::<PACKED, B>((unpack, ahead), codes, [a, b], x)
            } else {
                let codes = rows.steps(a.codes, bytes).zip(rows.steps(b.codes, bytes));
                products::<PACKED, B>((unpack, ahead), codes, [a, b], x)
            };
        }
        let sums = reduce(sums);
        for (out, sums) in out.chunks_mut(stride).zip(sums.as_chunks::<B>().0) {
            out.iter_mut().zip(sums).zip(x.units).for_each(|((out, sum), unit)| *out = sum * unit);
        }
    }
}

/// The sums of two rows in sixteen parts, in units of those of the activations. `codes` are the indices of their steps.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512vbmi,avx512vnni")]
fn products<'a, const PACKED: bool, const B: usize>(
    (unpack, ahead): (Unpack, usize),
    codes: impl Iterator<Item = (&'a [u8], &'a [u8])>,
    [first, second]: [Row<'_>; 2],
    x: Activations<'_, B>,
) -> [[__m512; B]; 2] {
    let mut sums = [[_mm512_setzero_ps(); B]; 2];
    let scales = first.scales.iter().zip(second.scales);
    for ((codes, scales), x) in codes.zip(scales).zip(x.steps) {
        prefetch(codes.0, ahead);
        prefetch(codes.1, ahead);
        let indices = [unpack.load::<PACKED>(codes.0), unpack.load::<PACKED>(codes.1)];
        let scales = [_mm512_set1_ps(*scales.0), _mm512_set1_ps(*scales.1)];
        for (b, x) in x.iter().enumerate() {
            // SAFETY: 128 bytes, twice 64.
            let (high, low) =
                unsafe { (_mm512_loadu_si512(x.as_ptr().cast()), _mm512_loadu_si512(x.as_ptr().add(STEP / 2).cast())) };
            for ((sums, indices), scale) in sums.iter_mut().zip(indices).zip(scales) {
                let high = _mm512_slli_epi32::<8>(_mm512_dpbusd_epi32(_mm512_setzero_si512(), indices, high));
                let products = _mm512_cvtepi32_ps(_mm512_dpbusd_epi32(high, indices, low));
                sums[b] = _mm512_fmadd_ps(scale, products, sums[b]);
            }
        }
    }
    subtract(first.offsets, x, &mut sums[0]);
    subtract(second.offsets, x, &mut sums[1]);
    sums
}

/// Subtracts the zero points' share.
#[inline]
#[target_feature(enable = "avx512f")]
fn subtract<const B: usize>(offsets: &[f32], x: Activations<'_, B>, sums: &mut [__m512; B]) {
    for (offsets, totals) in offsets.chunks(GROUPS).zip(x.totals) {
        let mask = u16::MAX >> (GROUPS - offsets.len());
        // SAFETY: the values of the mask are those of `offsets`.
        let offsets = unsafe { _mm512_maskz_loadu_ps(mask, offsets.as_ptr()) };
        for (sum, totals) in sums.iter_mut().zip(totals) {
            // SAFETY: sixteen values.
            *sum = _mm512_fnmadd_ps(offsets, unsafe { _mm512_loadu_ps(totals.as_ptr()) }, *sum);
        }
    }
}

/// The sums of sixteen vectors, each added up in the same order.
#[inline]
#[target_feature(enable = "avx512f")]
fn reduce(v: [__m512; ROWS]) -> [f32; ROWS] {
    let halves = |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x44>(a, b), _mm512_shuffle_f32x4::<0xEE>(a, b));
    let quarters = |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
    // Of four vectors one, each in 128 bits.
    let fours = |i: usize| quarters(halves(v[i], v[i + 1]), halves(v[i + 2], v[i + 3]));
    let pairs = |a, b| _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
    let [a, b] = [pairs(fours(0), fours(4)), pairs(fours(8), fours(12))].map(|v| _mm512_castps_pd(v));
    let [low, high] = [_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b)].map(|v| _mm512_castpd_ps(v));
    // Vector `i + 4·j` is now lane `4·i + j`.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let mut lanes = [0.0; ROWS];
    // SAFETY: sixteen values.
    unsafe { _mm512_storeu_ps(lanes.as_mut_ptr(), _mm512_permutexvar_ps(order, _mm512_add_ps(low, high))) };
    lanes
}
