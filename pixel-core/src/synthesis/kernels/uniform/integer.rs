//! Products with a uniform weight in integers: with activations rounded to `step·X`, a row of the weight gives
//!
//! ```text
//! y = step · Σ_groups scale · (Σ q·X − zero_point · ΣX)
//! ```
//!
//! where the sums within a group are exact. The second, `ΣX`, is known before the first weight is read, so that the
//! zero points of a row cost one multiply-add for sixteen groups.

use super::super::activations::{peak, round, rounds};
use super::super::scratch::Scratch;
use super::super::{Product, decoded};
use super::{avx2, avx512};
use crate::codec::uniform::UniformLayout;
use crate::math::simd::{Simd, SimdLevel, for_every_level};
use crate::pool::for_each_chunk;
use crate::pool::threads;

/// Weights whose products are summed as integers: a register of bytes. None belongs to two groups.
pub(super) const STEP: usize = 64;

/// Groups whose zero points are multiplied together.
pub(super) const GROUPS: usize = 16;

/// Rows that are multiplied together: their zero points begin and end with a byte.
pub(super) const ROWS: usize = 16;

/// The largest integer `256·high + low` of two signed bytes.
const LARGEST: f32 = 32639.0;

/// What scales are multiplied with and steps divided by: a sum is then of the size of its weights, far from overflow.
const UNIT: f32 = 1.0 / 32768.0;

/// Multiply-adds a nanosecond, roughly.
const RATE: usize = 40;

/// Bytes of indices that a task reads: at least, so that it is worth its start, and at most, so that all end together.
const TASK_BYTES: [usize; 2] = [1 << 14, 1 << 20];

/// The activations of a step: 64 integers of 16 bits, or for VNNI their high bytes and then their low ones.
pub(super) type Step = [i16; STEP];

/// A batch, rounded.
struct Rounded {
    /// Block after block of rows, `[steps, rows]` [`Step`]s.
    integers: Scratch<i16>,
    /// The sums of the integers of the groups: block after block, `[⌈groups/16⌉, rows]`.
    totals: Scratch<[f32; GROUPS]>,
    /// What an integer of a row stands for, by [`UNIT`], `[batch]`; 0 for a row that cannot be rounded, whose integers
    /// are zero.
    units: Scratch<f32>,
    /// The rows that cannot be rounded.
    unrounded: Vec<usize>,
}

/// What a kernel reads of the activations of `B` rows.
#[derive(Debug, Clone, Copy)]
pub(super) struct Activations<'a, const B: usize> {
    /// `[steps]`.
    pub(super) steps: &'a [[Step; B]],
    /// `[⌈groups/16⌉]`.
    pub(super) totals: &'a [[[f32; GROUPS]; B]],
    /// What an integer stands for, by [`UNIT`].
    pub(super) units: &'a [f32; B],
}

/// What a kernel reads of up to [`ROWS`] rows of the weight.
#[derive(Debug, Clone, Copy)]
pub(super) struct Rows<'a> {
    /// The indices, [`stride`](Self::stride) bytes from row to row.
    codes: &'a [u8],
    pub(super) stride: usize,
    /// Bytes of the indices of a row.
    width: usize,
    /// Bytes of the indices of a group.
    group: usize,
    /// `[rows, steps]`.
    scales: &'a [f32],
    /// Scales times zero points, `[rows, groups]`.
    offsets: &'a [f32],
    /// Steps and groups of a row.
    counts: [usize; 2],
}

/// One row of them.
#[derive(Debug, Clone, Copy)]
pub(super) struct Row<'a> {
    pub(super) codes: &'a [u8],
    /// `[steps]`.
    pub(super) scales: &'a [f32],
    /// `[groups]`.
    pub(super) offsets: &'a [f32],
}

impl<'a> Rows<'a> {
    /// Row `row`.
    #[inline(always)]
    pub(super) fn row(self, row: usize) -> Row<'a> {
        let [steps, groups] = self.counts;
        Row {
            codes: &self.codes[row * self.stride..][..self.width],
            scales: &self.scales[row * steps..][..steps],
            offsets: &self.offsets[row * groups..][..groups],
        }
    }

    /// Whether every step has `bytes` bytes.
    pub(super) fn are_whole(self, bytes: usize) -> bool {
        self.group.is_multiple_of(bytes) && self.width.is_multiple_of(bytes)
    }

    /// The indices of the steps of a row, up to `bytes` bytes each.
    pub(super) fn steps(self, codes: &'a [u8], bytes: usize) -> impl Iterator<Item = &'a [u8]> {
        codes.chunks(self.group).flat_map(move |codes| codes.chunks(bytes))
    }
}

/// The blocks of a batch: the first row and the number of rows, a power of two.
fn blocks(batch: usize, largest: usize) -> impl Iterator<Item = (usize, usize)> {
    let block = move |first: usize| {
        let rest = batch - first;
        (rest > 0).then(|| (first, largest.min(1 << rest.ilog2())))
    };
    std::iter::successors(block(0), move |(first, rows)| block(first + rows))
}

/// The steps of a row.
fn num_steps(layout: &UniformLayout) -> usize {
    let n = layout.shape.d_input();
    n / layout.group * layout.group.div_ceil(STEP) + (n % layout.group).div_ceil(STEP)
}

impl Rounded {
    /// Rounds `x` `[batch, d_input]`, each row by itself.
    fn new(layout: &UniformLayout, kernel: Kernel, x: &[f32]) -> Self {
        let n = layout.shape.d_input();
        let (batch, steps, parts) = (x.len() / n, num_steps(layout), layout.num_groups().div_ceil(GROUPS));
        let (mut row, mut units) = (Scratch::<i16>::new(n), Scratch::new(batch));
        let (mut integers, mut totals) = (Scratch::new(steps * batch * STEP), Scratch::new(parts * batch));
        let mut unrounded = Vec::new();
        for (first, rows) in blocks(batch, kernel.largest_block()) {
            let integers = &mut integers.as_chunks_mut().0[first * steps..][..rows * steps];
            let totals = &mut totals[first * parts..][..rows * parts];
            for b in 0..rows {
                let unit = quantize(kernel.simd, &x[(first + b) * n..][..n], &mut row);
                if unit.is_none() {
                    unrounded.push(first + b);
                }
                units[first + b] = unit.unwrap_or(0.0) / UNIT;
                arrange(layout, kernel, &row, &mut integers[b..], rows);
                sum_groups(layout.group, &row, &mut totals[b..], rows);
            }
        }
        Self { integers, totals, units, unrounded }
    }

    /// The block of `B` rows from `first` on.
    fn block<const B: usize>(&self, first: usize) -> Activations<'_, B> {
        let batch = self.units.len();
        let integers = self.integers.as_chunks().0;
        let (steps, parts) = (integers.len() / batch, self.totals.len() / batch);
        Activations {
            steps: integers[first * steps..][..B * steps].as_chunks().0,
            totals: self.totals[first * parts..][..B * parts].as_chunks().0,
            units: self.units[first..].first_chunk().expect("a block within the batch"),
        }
    }
}

/// Rounds `values` to multiples of the largest magnitude / 32639, and returns that. `None`, and zeros, if a value is
/// not finite or all are nearly, but not quite, zero.
fn quantize(simd: Simd, values: &[f32], out: &mut [i16]) -> Option<f32> {
    let peak = peak(simd, values);
    if peak == 0.0 || !rounds(peak) {
        out.fill(0);
        return (peak == 0.0).then_some(0.0);
    }
    round(simd, values, LARGEST / peak, out);
    Some(peak / LARGEST)
}

/// Puts the integers of a row into every `stride`-th step, with zeros where a group ends within one.
fn arrange(layout: &UniformLayout, kernel: Kernel, row: &[i16], steps: &mut [Step], stride: usize) {
    let groups = row.chunks(layout.group).flat_map(|group| group.chunks(STEP));
    for (step, values) in steps.iter_mut().step_by(stride).zip(groups) {
        step[..values.len()].copy_from_slice(values);
        step[values.len()..].fill(0);
        if kernel.splits() {
            split(kernel.simd, step);
        }
    }
}

for_every_level! {
    /// Replaces integers by the high and then the low bytes of `256·high + low`, both signed.
    fn split(step: &mut Step) -> () {
        let values = *step;
        let (high, low) = bytemuck::cast_slice_mut::<_, i8>(step).split_at_mut(STEP);
        for ((high, low), value) in high.iter_mut().zip(low).zip(values) {
            *high = ((value + 128) >> 8) as i8;
            *low = value as i8;
        }
    }
}

/// The sums of the groups of a row, in every `stride`-th part; zero beyond the last group.
fn sum_groups(group: usize, row: &[i16], totals: &mut [[f32; GROUPS]], stride: usize) {
    for (totals, row) in totals.iter_mut().step_by(stride).zip(row.chunks(group * GROUPS)) {
        *totals = [0.0; GROUPS];
        for (total, values) in totals.iter_mut().zip(row.chunks(group)) {
            *total = values.iter().map(|value| i32::from(*value)).sum::<i32>() as f32;
        }
    }
}

/// `x·Wᵀ`, `[d_output, batch]`, for `x` `[batch, d_input]`; from AVX2 on. Rows of `x` that cannot be rounded are
/// multiplied in f32; the others do not depend on them.
pub(super) fn linear(product: &Product<'_>, layout: &UniformLayout, x: &[f32], out: &mut [f32]) {
    let kernel = Kernel { simd: product.simd, bits: layout.bits };
    let rounded = Rounded::new(layout, kernel, x);
    if rounded.unrounded.len() < rounded.units.len() {
        multiply(product, layout, kernel, &rounded, out);
    }
    decoded::linear_of(product, &rounded.unrounded, x, out);
}

/// The product with the rounded rows, `[d_output, batch]`.
fn multiply(product: &Product<'_>, layout: &UniformLayout, kernel: Kernel, rounded: &Rounded, out: &mut [f32]) {
    let (batch, groups, stride) = (rounded.units.len(), layout.num_groups(), 4 * layout.row_words());
    let codes: &[u8] = bytemuck::cast_slice(product.codes);
    let zeros = &codes[4 * layout.code_words()..];
    let [least, most] = TASK_BYTES;
    let bytes = (codes.len() / (8 * threads())).clamp(least, most);
    let rows = (bytes / stride).next_multiple_of(ROWS).max(ROWS);
    let counts = [num_steps(layout), groups];
    for_each_chunk(out, rows * batch, product.is_parallel(batch, RATE), |band, out| {
        let [mut scales, mut offsets] = counts.map(|count| Scratch::new(ROWS * count));
        for (first, out) in (band * rows..).step_by(ROWS).zip(out.chunks_mut(ROWS * batch)) {
            let len = out.len() / batch;
            let [scales, offsets] = [&mut scales[..len * counts[0]], &mut offsets[..len * groups]];
            let from = &product.scales[first * groups..][..len * groups];
            spread(layout, from, scales);
            offset(kernel.simd, layout.bits, &zeros[first / 8 * groups * layout.bits as usize..], from, offsets);
            let rows = Rows {
                codes: &codes[first * stride..],
                stride,
                width: layout.shape.d_input() * layout.bits as usize / 8,
                group: layout.group * layout.bits as usize / 8,
                scales,
                offsets,
                counts,
            };
            kernel.run(rows, rounded, out);
        }
    });
}

/// The scales of the steps in [`UNIT`]s, `[rows, steps]`, from those of the groups.
fn spread(layout: &UniformLayout, from: &[f32], scales: &mut [f32]) {
    if from.len() == scales.len() {
        scales.iter_mut().zip(from).for_each(|(scale, from)| *scale = from * UNIT);
        return;
    }
    let rows = scales.chunks_exact_mut(num_steps(layout)).zip(from.chunks_exact(layout.num_groups()));
    for (scales, from) in rows {
        let groups = scales.chunks_mut(layout.group.div_ceil(STEP)).zip(from);
        groups.for_each(|(scales, from)| scales.fill(from * UNIT));
    }
}

for_every_level! {
    /// Scales in [`UNIT`]s times zero points, which are fields of `bits` bits from the first byte on.
    fn offset(bits: u32, zeros: &[u8], scales: &[f32], offsets: &mut [f32]) -> () {
        if bits == 8 {
            let zeros = zeros.iter().map(|zero| f32::from(*zero));
            offsets.iter_mut().zip(scales).zip(zeros).for_each(|((offset, scale), zero)| *offset = scale * UNIT * zero);
            return;
        }
        for (i, (offsets, scales)) in offsets.chunks_mut(8).zip(scales.chunks(8)).enumerate() {
            let fields = first_word(&zeros[i * bits as usize..]);
            for (j, (offset, scale)) in offsets.iter_mut().zip(scales).enumerate() {
                let zero = (fields >> (bits * j as u32)) as u32 & ((1 << bits) - 1);
                *offset = scale * UNIT * zero as f32;
            }
        }
    }
}

/// The first eight bytes as an integer, zeros behind the last.
#[inline(always)]
fn first_word(bytes: &[u8]) -> u64 {
    u64::from_le_bytes(bytes.first_chunk().copied().unwrap_or_else(|| {
        let mut word = [0; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        word
    }))
}

/// The kernel of a level from AVX2 on.
#[derive(Debug, Clone, Copy)]
struct Kernel {
    simd: Simd,
    bits: u32,
}

impl Kernel {
    /// Whether the kernel multiplies by bytes.
    fn splits(self) -> bool {
        self.simd.level() == SimdLevel::Avx512Vbmi
    }

    /// The rows of activations that a pass over the indices serves, at most.
    fn largest_block(self) -> usize {
        if self.splits() { 8 } else { 4 }
    }

    /// Rows `rows` times all activations, `[rows, batch]`.
    fn run(self, rows: Rows<'_>, rounded: &Rounded, out: &mut [f32]) {
        let batch = rounded.units.len();
        for (first, width) in blocks(batch, self.largest_block()) {
            let out = (&mut out[first..], batch);
            match width {
                1 => self.run_block::<1>(rows, rounded.block(first), out),
                2 => self.run_block::<2>(rows, rounded.block(first), out),
                4 => self.run_block::<4>(rows, rounded.block(first), out),
                8 => self.run_block::<8>(rows, rounded.block(first), out),
                width => unreachable!("{width} rows"),
            }
        }
    }

    /// The same for a block, into the first `B` of every `stride` values of `out`.
    fn run_block<const B: usize>(self, rows: Rows<'_>, x: Activations<'_, B>, out: (&mut [f32], usize)) {
        match (self.splits(), self.bits) {
            // SAFETY: a `Simd` exists only for levels that the machine has.
            (true, 8) => unsafe { avx512::run::<false, B>(8, rows, x, out) },
            // SAFETY: as above.
            (true, bits) => unsafe { avx512::run::<true, B>(bits, rows, x, out) },
            // SAFETY: as above; there is no kernel below AVX2.
            (false, 8) => unsafe { avx2::run::<false, B>(8, rows, x, out) },
            // SAFETY: as above.
            (false, bits) => unsafe { avx2::run::<true, B>(bits, rows, x, out) },
        }
    }
}
