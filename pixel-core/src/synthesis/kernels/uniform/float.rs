//! Products with a uniform weight in f32: indices to floats, sixteen at a time.

use super::super::Product;
use super::super::scratch::Scratch;
use super::{AHEAD, UNPACKED as STEP, prefetch};
use crate::codec::read_bits;
use crate::codec::uniform::UniformLayout;
use crate::math::simd::{Simd, SimdLevel};
use crate::pool::for_each_chunk;
use crate::pool::threads;

/// Multiply-adds a nanosecond, roughly.
const RATE: usize = 15;

/// `x·Wᵀ`, `[d_output, batch]`, for `x` `[batch, d_input]`; from AVX2 on, whole steps filling groups and rows.
pub(super) fn linear(product: &Product<'_>, layout: &UniformLayout, x: &[f32], out: &mut [f32]) {
    let (m, n, groups) = (layout.shape.d_output(), layout.shape.d_input(), layout.num_groups());
    let (batch, kernel) = (x.len() / n, Kernel { simd: product.simd, bits: layout.bits });
    let (codes, zeros) = product.codes.split_at(layout.code_words());
    let rows = (m / (16 * threads())).clamp(1, 256);
    for_each_chunk(out, rows * batch, product.is_parallel(batch, RATE), |band, out| {
        let mut zero_points = Scratch::<f32>::new(groups);
        for (row, out) in (band * rows..).zip(out.chunks_exact_mut(batch)) {
            read_zero_points(layout, zeros, row, &mut zero_points);
            let row = Row {
                codes: bytemuck::cast_slice(&codes[row * layout.row_words()..][..layout.row_words()]),
                scales: &product.scales[row * groups..][..groups],
                zero_points: &zero_points,
                group: layout.group,
            };
            out.iter_mut().zip(x.chunks_exact(n)).for_each(|(out, x)| *out = kernel.run(row, x));
        }
    });
}

/// The zero points of the groups of row `row`.
fn read_zero_points(layout: &UniformLayout, zeros: &[u32], row: usize, zero_points: &mut [f32]) {
    let first = row * zero_points.len();
    if layout.bits == 8 {
        let bytes = &bytemuck::cast_slice::<_, u8>(zeros)[first..];
        zero_points.iter_mut().zip(bytes).for_each(|(zero_point, byte)| *zero_point = f32::from(*byte));
    } else {
        for (i, zero_point) in (first..).zip(zero_points) {
            *zero_point = read_bits(zeros, i * layout.bits as usize, layout.bits) as f32;
        }
    }
}

/// One row of the weight.
#[derive(Clone, Copy)]
struct Row<'a> {
    codes: &'a [u8],
    scales: &'a [f32],
    zero_points: &'a [f32],
    group: usize,
}

/// `Σ scale·(index − zero point)·x` over the groups of a row.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    simd: Simd,
    bits: u32,
}

impl Kernel {
    fn run(self, row: Row<'_>, x: &[f32]) -> f32 {
        macro_rules! run {
            ($($bits:literal)+) => {
                match (self.bits, self.simd.level()) {
                    $(
                        // SAFETY: a `Simd` exists only for levels that the machine has.
                        ($bits, SimdLevel::Avx2) => unsafe { product_avx2::<$bits>(row, x) },
                        // SAFETY: as above; the kernel does not exist below AVX2.
                        ($bits, _) => unsafe { product_avx512::<$bits>(row, x) },
                    )+
                    (bits, _) => unreachable!("{bits} bits"),
                }
            };
        }
        run!(2 3 4 5 6 8)
    }
}

/// Where each of sixteen fields of `bits` bits begins: its byte, and the bit within it.
const fn places(bits: usize) -> ([u8; 4 * STEP], [u32; STEP]) {
    let (mut bytes, mut shifts) = ([0; 4 * STEP], [0; STEP]);
    let mut i = 0;
    while i < 4 * STEP {
        bytes[i] = (i / 4 * bits / 8 + i % 4) as u8;
        shifts[i / 4] = (i / 4 * bits % 8) as u32;
        i += 1;
    }
    (bytes, shifts)
}

/// The indices of a group, sixteen at a time, and the activations that go with them.
#[inline(always)]
fn steps<'a, const BITS: usize>(codes: &'a [u8], x: &'a [f32]) -> impl Iterator<Item = ([u8; 16], &'a [f32; STEP])> {
    let bytes = |codes: &[u8]| {
        let mut bytes = [0; 16];
        bytes[..2 * BITS].copy_from_slice(codes);
        bytes
    };
    codes.chunks_exact(2 * BITS).map(bytes).zip(x.as_chunks::<STEP>().0)
}

#[target_feature(enable = "avx512f,avx512bw")]
fn product_avx512<const BITS: usize>(row: Row<'_>, x: &[f32]) -> f32 {
    use std::arch::x86_64::*;
    let (bytes, shifts) = const { places(BITS) };
    // SAFETY: 64 bytes each.
    let (bytes, shifts) =
        unsafe { (_mm512_loadu_si512(bytes.as_ptr().cast()), _mm512_loadu_si512(shifts.as_ptr().cast())) };
    let mask = _mm512_set1_epi32((1 << BITS) - 1);
    let mut sum = _mm512_setzero_ps();
    let groups = row.codes.chunks(row.group / 8 * BITS).zip(x.chunks(row.group));
    for ((codes, x), (scale, zero)) in groups.zip(row.scales.iter().zip(row.zero_points)) {
        codes.chunks(64).for_each(|codes| prefetch(codes, AHEAD));
        let (zero, mut lanes) = (_mm512_set1_ps(*zero), _mm512_setzero_ps());
        for (codes, x) in steps::<BITS>(codes, x) {
            // SAFETY: 16 bytes; sixteen values.
            let (codes, x) = unsafe { (_mm_loadu_si128(codes.as_ptr().cast()), _mm512_loadu_ps(x.as_ptr())) };
            let fields = if BITS == 8 {
                _mm512_cvtepu8_epi32(codes)
            } else {
                let fields = _mm512_shuffle_epi8(_mm512_broadcast_i32x4(codes), bytes);
                _mm512_and_si512(_mm512_srlv_epi32(fields, shifts), mask)
            };
            lanes = _mm512_fmadd_ps(_mm512_sub_ps(_mm512_cvtepi32_ps(fields), zero), x, lanes);
        }
        sum = _mm512_fmadd_ps(_mm512_set1_ps(*scale), lanes, sum);
    }
    _mm512_reduce_add_ps(sum)
}

#[target_feature(enable = "avx2,fma")]
fn product_avx2<const BITS: usize>(row: Row<'_>, x: &[f32]) -> f32 {
    use std::arch::x86_64::*;
    let (bytes, shifts) = const { places(BITS) };
    let mask = _mm256_set1_epi32((1 << BITS) - 1);
    let mut sums = [_mm256_setzero_ps(); 2];
    let groups = row.codes.chunks(row.group / 8 * BITS).zip(x.chunks(row.group));
    for ((codes, x), (scale, zero)) in groups.zip(row.scales.iter().zip(row.zero_points)) {
        codes.chunks(64).for_each(|codes| prefetch(codes, AHEAD));
        let (zero, mut lanes) = (_mm256_set1_ps(*zero), [_mm256_setzero_ps(); 2]);
        for (codes, x) in steps::<BITS>(codes, x) {
            for (half, lanes) in lanes.iter_mut().enumerate() {
                // SAFETY: 16 bytes; 32 bytes of 64, twice; eight values of sixteen.
                let (codes, bytes, shifts, x) = unsafe {
                    (
                        _mm_loadu_si128(codes.as_ptr().cast()),
                        _mm256_loadu_si256(bytes.as_ptr().add(32 * half).cast()),
                        _mm256_loadu_si256(shifts.as_ptr().add(8 * half).cast()),
                        _mm256_loadu_ps(x.as_ptr().add(8 * half)),
                    )
                };
                let fields = _mm256_shuffle_epi8(_mm256_broadcastsi128_si256(codes), bytes);
                let fields = _mm256_and_si256(_mm256_srlv_epi32(fields, shifts), mask);
                *lanes = _mm256_fmadd_ps(_mm256_sub_ps(_mm256_cvtepi32_ps(fields), zero), x, *lanes);
            }
        }
        for (sum, lanes) in sums.iter_mut().zip(lanes) {
            *sum = _mm256_fmadd_ps(_mm256_set1_ps(*scale), lanes, *sum);
        }
    }
    let mut lanes = [0f32; 8];
    // SAFETY: eight values.
    unsafe { _mm256_storeu_ps(lanes.as_mut_ptr(), _mm256_add_ps(sums[0], sums[1])) };
    lanes.iter().sum()
}
