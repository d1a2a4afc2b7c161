//! Kernels with AVX-512, and products with AVX2.

use super::product::{Element, Strided};
use super::scores::CHUNK;
use super::soften::{BLOCK, LANES, ROWS};
use crate::math::simd::{Simd, SimdLevel};
use std::arch::x86_64::*;

/// See [`super::product::multiply`], which has checked lengths; `n` is a multiple of [`LANES`].
pub(super) fn multiply<T: Element>(
    simd: Simd,
    (out, out_stride): (&mut [f32], usize),
    factors: Option<&[f32]>,
    (left, left_stride): Strided<'_, f32>,
    (right, right_stride): Strided<'_, T>,
    [m, k, n]: [usize; 3],
) {
    let wide = simd.level() >= SimdLevel::Avx512;
    assert!(wide || simd.level() >= SimdLevel::Avx2, "{simd:?}");
    let mut first = 0;
    while first < n {
        let panel = Panel {
            out: out[first..].as_mut_ptr(),
            out_stride,
            factors,
            left: left.as_ptr(),
            left_stride,
            right: right.as_ptr().wrapping_add(first),
            right_stride,
            k,
        };
        let columns = if wide { (n - first).min(4 * LANES) } else { LANES };
        macro_rules! run {
            ($($m:literal)+) => {
                match (m, wide, columns / LANES) {
                    $(
                        // SAFETY: the level was checked above, lengths by the caller.
                        ($m, false, _) => unsafe { multiply_avx2::<T, $m, 2>(panel) },
                        // SAFETY: as above.
                        ($m, true, 1) => unsafe { multiply_avx512::<T, $m, 1>(panel) },
                        // SAFETY: as above.
                        ($m, true, 2) => unsafe { multiply_avx512::<T, $m, 2>(panel) },
                        // SAFETY: as above.
                        ($m, true, 3) => unsafe { multiply_avx512::<T, $m, 3>(panel) },
                        // SAFETY: as above.
                        ($m, true, _) => unsafe { multiply_avx512::<T, $m, 4>(panel) },
                    )+
                    _ => unreachable!("{m} rows"),
                }
            };
        }
        run!(1 2 3 4 5 6);
        first += columns;
    }
}

/// Asks for the lines of the cache that hold `bytes`.
pub(super) fn prefetch(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        // SAFETY: any address may be asked for, and every x86-64 has the instruction.
        unsafe { _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast()) };
    }
}

/// Columns of a product that fit registers.
struct Panel<'a, T> {
    out: *mut f32,
    out_stride: usize,
    factors: Option<&'a [f32]>,
    left: *const f32,
    left_stride: usize,
    right: *const T,
    right_stride: usize,
    k: usize,
}

/// A product of `M` rows and `V` registers of columns.
macro_rules! multiply {
    (
        $name:ident, $features:literal, $load:ident, $lanes:literal,
        $zero:ident $set:ident $fma:ident $read:ident $write:ident
    ) => {
        /// # Safety
        /// The machine has the features; the matrices have `M` rows or `k`, and at least `V` registers of columns.
        #[target_feature(enable = $features)]
        unsafe fn $name<T: Element, const M: usize, const V: usize>(panel: Panel<'_, T>) {
            let Panel { out, out_stride, factors, left, left_stride, right, right_stride, k } = panel;
            let mut sums = [[$zero(); V]; M];
            for i in 0..k {
                let mut terms = [$zero(); V];
                for (v, term) in terms.iter_mut().enumerate() {
                    // SAFETY: within row `i` of `k`.
                    *term = unsafe { $load(right.add(i * right_stride + v * $lanes)) };
                }
                for (r, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: value `i` of row `r` of `M`.
                    let factor = $set(unsafe { *left.add(r * left_stride + i) });
                    for (sum, term) in sums.iter_mut().zip(terms) {
                        *sum = $fma(factor, term, *sum);
                    }
                }
            }
            for (r, sums) in sums.into_iter().enumerate() {
                for (v, sum) in sums.into_iter().enumerate() {
                    // SAFETY: within row `r` of `M`.
                    unsafe {
                        let out = out.add(r * out_stride + v * $lanes);
                        let sum = match factors {
                            Some(factors) => $fma($set(factors[r]), $read(out), sum),
                            None => sum,
                        };
                        $write(out, sum);
                    }
                }
            }
        }
    };
}

multiply!(
    multiply_avx512, "avx512f", load_avx512, 16,
    _mm512_setzero_ps _mm512_set1_ps _mm512_fmadd_ps _mm512_loadu_ps _mm512_storeu_ps
);
multiply!(
    multiply_avx2, "avx2,fma", load_avx2, 8,
    _mm256_setzero_ps _mm256_set1_ps _mm256_fmadd_ps _mm256_loadu_ps _mm256_storeu_ps
);

/// # Safety
/// The machine has AVX-512 F, and there are sixteen numbers.
#[inline]
#[target_feature(enable = "avx512f")]
unsafe fn load_avx512<T: Element>(values: *const T) -> __m512 {
    // SAFETY: sixteen numbers of the size that `T` says.
    unsafe {
        if T::BYTE {
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(values.cast())))
        } else {
            _mm512_loadu_ps(values.cast())
        }
    }
}

/// # Safety
/// The machine has AVX2, and there are eight numbers.
#[inline]
#[target_feature(enable = "avx2,fma")]
unsafe fn load_avx2<T: Element>(values: *const T) -> __m256 {
    // SAFETY: eight numbers of the size that `T` says.
    unsafe {
        if T::BYTE {
            _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(_mm_loadl_epi64(values.cast())))
        } else {
            _mm256_loadu_ps(values.cast())
        }
    }
}

/// See [`super::product::transpose`]: both sides are multiples of sixteen.
pub(super) fn transpose(simd: Simd, rows: &[f32], width: usize, out: &mut [f32]) {
    assert!(simd.level() >= SimdLevel::Avx512, "{simd:?}");
    let block = rows.len() / width;
    for first in (0..block).step_by(LANES) {
        for column in (0..width).step_by(LANES) {
            let rows = &rows[first * width + column..][..(LANES - 1) * width + LANES];
            let out = &mut out[column * block + first..][..(LANES - 1) * block + LANES];
            // SAFETY: the level was checked; sixteen rows of sixteen values on both sides.
            unsafe { transpose_block(rows.as_ptr(), width, out.as_mut_ptr(), block) };
        }
    }
}

/// # Safety
/// The machine has AVX-512 F, and both sides have sixteen values in each of sixteen rows.
#[target_feature(enable = "avx512f")]
unsafe fn transpose_block(rows: *const f32, width: usize, out: *mut f32, block: usize) {
    // SAFETY: as the caller promises.
    let rows = std::array::from_fn(|r| unsafe { _mm512_loadu_si512(rows.add(r * width).cast()) });
    for (i, column) in transposed(rows).into_iter().enumerate() {
        // SAFETY: as the caller promises.
        unsafe { _mm512_storeu_si512(out.add(i * block).cast(), column) };
    }
}

/// Lane `j` of register `i` goes to lane `i` of register `j`.
#[inline]
#[target_feature(enable = "avx512f")]
fn transposed(rows: [__m512i; 16]) -> [__m512i; 16] {
    // Of four rows, lane by lane of 128 bits, one column each.
    let mut fours = [[_mm512_setzero_si512(); 4]; 4];
    for (four, rows) in fours.iter_mut().zip(rows.as_chunks::<4>().0) {
        let (low, high) = (_mm512_unpacklo_epi32(rows[0], rows[1]), _mm512_unpackhi_epi32(rows[0], rows[1]));
        let (low_2, high_2) = (_mm512_unpacklo_epi32(rows[2], rows[3]), _mm512_unpackhi_epi32(rows[2], rows[3]));
        *four = [
            _mm512_unpacklo_epi64(low, low_2),
            _mm512_unpackhi_epi64(low, low_2),
            _mm512_unpacklo_epi64(high, high_2),
            _mm512_unpackhi_epi64(high, high_2),
        ];
    }
    let mut columns = [_mm512_setzero_si512(); 16];
    for i in 0..4 {
        let [a, b, c, d] = fours.map(|four| four[i]);
        let (even, even_2) = (_mm512_shuffle_i32x4::<0x88>(a, b), _mm512_shuffle_i32x4::<0x88>(c, d));
        let (odd, odd_2) = (_mm512_shuffle_i32x4::<0xDD>(a, b), _mm512_shuffle_i32x4::<0xDD>(c, d));
        columns[i] = _mm512_shuffle_i32x4::<0x88>(even, even_2);
        columns[i + 4] = _mm512_shuffle_i32x4::<0x88>(odd, odd_2);
        columns[i + 8] = _mm512_shuffle_i32x4::<0xDD>(even, even_2);
        columns[i + 12] = _mm512_shuffle_i32x4::<0xDD>(odd, odd_2);
    }
    columns
}

/// See [`super::scores::floats`], which has checked lengths; `d` is a multiple of sixteen, and there is a key.
pub(super) fn scores_of_floats(simd: Simd, queries: &[f32], keys: &[f32], d: usize, tile: &mut [f32]) {
    assert!(simd.level() >= SimdLevel::Avx512, "{simd:?}");
    let n = keys.len() / d;
    for first in (0..n).step_by(LANES) {
        // Beyond the last key the last one stands once more.
        let rows = std::array::from_fn(|r| keys[(first + r).min(n - 1) * d..][..d].as_ptr());
        for (query, tile) in queries.chunks_exact(d).zip(tile.chunks_exact_mut(BLOCK)) {
            // SAFETY: the level was checked; all rows have `d` values, and a tile has whole registers.
            unsafe {
                let scores = dots(query, rows);
                _mm512_storeu_ps(tile[first..][..LANES].as_mut_ptr(), scores);
            }
        }
    }
}

/// The products of a query with sixteen keys.
///
/// # Safety
/// The machine has AVX-512 F, and every key is as long as the query, whose length is a multiple of sixteen.
#[target_feature(enable = "avx512f")]
unsafe fn dots(query: &[f32], keys: [*const f32; 16]) -> __m512 {
    let mut sums = [_mm512_setzero_ps(); 16];
    for (first, query) in (0..).step_by(LANES).zip(query.as_chunks::<LANES>().0) {
        // SAFETY: sixteen values.
        let query = unsafe { _mm512_loadu_ps(query.as_ptr()) };
        for (sum, key) in sums.iter_mut().zip(keys) {
            // SAFETY: sixteen values of as many as the query has.
            *sum = _mm512_fmadd_ps(query, unsafe { _mm512_loadu_ps(key.add(first)) }, *sum);
        }
    }
    lane_sums(sums)
}

/// Lane `i` is the sum of the lanes of register `i`.
#[inline]
#[target_feature(enable = "avx512f")]
fn lane_sums(sums: [__m512; 16]) -> __m512 {
    let mut fours = [_mm512_setzero_ps(); 4];
    for (four, sums) in fours.iter_mut().zip(sums.as_chunks::<4>().0) {
        let pair = |a, b| _mm512_castps_pd(_mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b)));
        let (a, b) = (pair(sums[0], sums[1]), pair(sums[2], sums[3]));
        let (low, high) = (_mm512_unpacklo_pd(a, b), _mm512_unpackhi_pd(a, b));
        *four = _mm512_add_ps(_mm512_castpd_ps(low), _mm512_castpd_ps(high));
    }
    let halves = |a, b| _mm512_add_ps(_mm512_shuffle_f32x4::<0x88>(a, b), _mm512_shuffle_f32x4::<0xDD>(a, b));
    halves(halves(fours[0], fours[1]), halves(fours[2], fours[3]))
}

/// Bytes of sixteen lanes of four.
const STEP: usize = 4 * LANES;

/// `codes`, `[n, d]`, as [`products`] wants keys: `[BLOCK / 16, steps, 16, 4]` with values `4·step` to `4·step + 3` of
/// a key in a lane, zeros beyond `d` and beyond the last key; there are `d / 4` steps for `d` rounded up to [`CHUNK`].
/// What no sixteen keys reach is left as it is.
pub(super) fn interleave_keys(simd: Simd, codes: &[u8], d: usize, out: &mut [u8]) {
    assert!(simd.level() >= SimdLevel::Avx512Vbmi, "{simd:?}");
    let (n, width) = (codes.len() / d, d.next_multiple_of(CHUNK));
    for (first, out) in (0..n).step_by(LANES).zip(out.chunks_exact_mut(LANES * width)) {
        for (column, out) in (0..d).step_by(CHUNK).zip(out.chunks_exact_mut(LANES * CHUNK)) {
            let rows = Rows { codes: &codes[first * d..], d, column };
            // SAFETY: the level was checked.
            unsafe { interleave_sixteen(rows, out) };
        }
    }
}

/// `codes`, `[n, d]`, as [`products`] wants values: `[d / 16, BLOCK / 4, 16, 4]` for `d` rounded up to [`CHUNK`], with
/// a value of keys `4·step` to `4·step + 3` in a lane, zeros beyond `d` and beyond the last key.
pub(super) fn interleave_values(simd: Simd, codes: &[u8], d: usize, out: &mut [u8]) {
    assert!(simd.level() >= SimdLevel::Avx512Vbmi, "{simd:?}");
    for (column, out) in (0..d).step_by(CHUNK).zip(out.chunks_exact_mut(BLOCK * CHUNK)) {
        for step in 0..BLOCK / 4 {
            let rows = Rows { codes: codes.get(4 * step * d..).unwrap_or(&[]), d, column };
            // SAFETY: the level was checked.
            unsafe { interleave_four(rows, step, out) };
        }
    }
}

/// [`CHUNK`] columns of rows of bytes.
#[derive(Clone, Copy)]
struct Rows<'a> {
    codes: &'a [u8],
    d: usize,
    column: usize,
}

impl Rows<'_> {
    /// The bytes of a row, zeros where there are none.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw")]
    fn load(self, row: usize) -> __m512i {
        let width = (self.d - self.column).min(CHUNK);
        match self.codes.get(row * self.d + self.column..) {
            // SAFETY: as many bytes as the mask has ones.
            Some(codes) if codes.len() >= width => unsafe {
                _mm512_maskz_loadu_epi8(u64::MAX >> (CHUNK - width), codes.as_ptr().cast())
            },
            _ => _mm512_setzero_si512(),
        }
    }
}

/// Four bytes of each of sixteen rows go to sixteen lanes, step by step.
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave_sixteen(rows: Rows<'_>, out: &mut [u8]) {
    let mut loaded = [_mm512_setzero_si512(); 16];
    for (r, row) in loaded.iter_mut().enumerate() {
        *row = rows.load(r);
    }
    for (out, step) in out.chunks_exact_mut(STEP).zip(transposed(loaded)) {
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), step) };
    }
}

/// A byte of each of four rows goes to a lane, for four times sixteen columns: step `step` of each in `out`,
/// `[4, BLOCK / 4, 16, 4]`.
#[target_feature(enable = "avx512f,avx512bw")]
fn interleave_four(rows: Rows<'_>, step: usize, out: &mut [u8]) {
    // Unpacking goes by quarters of registers; four columns of each sixteen in every quarter come out in order.
    let order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
    let load = |row| _mm512_permutexvar_epi32(order, rows.load(row));
    let (a, b, c, d) = (load(0), load(1), load(2), load(3));
    let (low, high) = (_mm512_unpacklo_epi8(a, b), _mm512_unpackhi_epi8(a, b));
    let (low_2, high_2) = (_mm512_unpacklo_epi8(c, d), _mm512_unpackhi_epi8(c, d));
    let columns = [
        _mm512_unpacklo_epi16(low, low_2),
        _mm512_unpackhi_epi16(low, low_2),
        _mm512_unpacklo_epi16(high, high_2),
        _mm512_unpackhi_epi16(high, high_2),
    ];
    for (out, column) in out.chunks_exact_mut(BLOCK / 4 * STEP).zip(columns) {
        // SAFETY: 64 bytes.
        unsafe { _mm512_storeu_si512(out[step * STEP..][..STEP].as_mut_ptr().cast(), column) };
    }
}

/// Products of up to [`ROWS`] rows of integers, in bytes `[rows, 2, 4 · steps]`, the high ones first, with
/// `[lanes / 16, steps, 16, 4]` codes; `out` is `[rows, lanes]`. Sums are taken modulo 2³².
pub(super) fn products(simd: Simd, left: &[i8], steps: usize, codes: &[u8], out: &mut [i32]) {
    assert!(simd.level() >= SimdLevel::Avx512Vbmi, "{simd:?}");
    let (rows, panels) = (left.len() / (8 * steps), codes.len() / (2 * steps * STEP));
    assert!(out.len() >= rows * panels * 2 * LANES, "{rows} rows of {panels} panels");
    macro_rules! run {
        ($($rows:literal)+) => {
            match rows {
                // SAFETY: the level and the lengths were checked.
                $($rows => unsafe { products_of_rows::<$rows>(left, steps, codes, out) },)+
                rows => unreachable!("{rows} rows"),
            }
        };
    }
    run!(1 2 3 4 5 6);
}

/// Two registers of lanes at a time: four bytes of each lane times four of a row are summed by one instruction.
///
/// # Safety
/// The machine has the features; `out` has `M` rows of as many lanes as there are codes for.
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn products_of_rows<const M: usize>(left: &[i8], steps: usize, codes: &[u8], out: &mut [i32]) {
    let lanes = codes.len() / (4 * steps);
    let left: &[i32] = bytemuck::cast_slice(left);
    for (panel, codes) in codes.chunks_exact(2 * steps * STEP).enumerate() {
        let mut sums = [[[_mm512_setzero_si512(); 2]; 2]; M];
        for step in 0..steps {
            // SAFETY: 64 bytes of step `step` of `steps`, in both halves.
            let codes =
                [0, steps].map(|first| unsafe { _mm512_loadu_si512(codes.as_ptr().add((first + step) * STEP).cast()) });
            for (r, sums) in sums.iter_mut().enumerate() {
                for (half, sums) in sums.iter_mut().enumerate() {
                    // SAFETY: four bytes of step `step` of `steps` of a row.
                    let bytes = _mm512_set1_epi32(unsafe { *left.get_unchecked((2 * r + half) * steps + step) });
                    for (sum, codes) in sums.iter_mut().zip(codes) {
                        *sum = _mm512_dpbusd_epi32(*sum, codes, bytes);
                    }
                }
            }
        }
        for (r, [high, low]) in sums.into_iter().enumerate() {
            for (half, (high, low)) in high.into_iter().zip(low).enumerate() {
                let sum = _mm512_add_epi32(_mm512_slli_epi32::<8>(high), low);
                let out = &mut out[r * lanes + (2 * panel + half) * LANES..][..LANES];
                // SAFETY: sixteen integers.
                unsafe { _mm512_storeu_si512(out.as_mut_ptr().cast(), sum) };
            }
        }
    }
}

/// The two integers of 4 bits of each byte, the lower first, as bytes; whole registers of them, whose number of bytes
/// in `codes` is returned.
pub(super) fn unpack_nibbles(simd: Simd, words: &[u32], codes: &mut [u8]) -> usize {
    assert!(simd.level() >= SimdLevel::Avx512, "{simd:?}");
    // SAFETY: the level was checked.
    unsafe { unpack_registers(bytemuck::cast_slice(words), codes) }
}

#[target_feature(enable = "avx512f,avx512bw")]
fn unpack_registers(bytes: &[u8], codes: &mut [u8]) -> usize {
    let mask = _mm512_set1_epi8(15);
    let (bytes, (codes, _)) = (bytes.as_chunks::<32>().0, codes.as_chunks_mut::<CHUNK>());
    for (bytes, codes) in bytes.iter().zip(codes.iter_mut()) {
        // SAFETY: 32 bytes; 64 bytes.
        unsafe {
            let wide = _mm512_cvtepu8_epi16(_mm256_loadu_si256(bytes.as_ptr().cast()));
            let both = _mm512_and_si512(_mm512_or_si512(wide, _mm512_slli_epi16::<4>(wide)), mask);
            _mm512_storeu_si512(codes.as_mut_ptr().cast(), both);
        }
    }
    bytes.len() * CHUNK
}

const _: () = assert!(ROWS == 6 && BLOCK.is_multiple_of(LANES), "what the kernels are written for");
