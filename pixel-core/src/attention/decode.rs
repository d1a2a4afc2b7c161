//! Attention of a few new tokens, which read the cache as it is held.
//!
//! The keys of a text are cut into spans, tasks that leave sums behind, and the sums of all spans are merged.

use super::cache::Cache;
use super::for_each;
use super::prepare::{Call, Part};
use super::product::multiply;
use super::scores::{self, CHUNK, Codes, RoundedRows};
use super::soften::{BLOCK, LANES, NO_SCORE, ROWS, Sums, soften};
use super::spec::{AttentionSpec, CacheFormat};
use crate::disjoint::Disjoint;
use crate::math::exp::exp2;
use crate::math::simd::{Simd, for_every_level};
use crate::scratch::Scratch;
use std::ops::Range;

/// Keys of a task.
const SPAN: usize = 512;

/// Multiply-adds a nanosecond, roughly.
const RATE: usize = 16;

/// Attends to the cache; `out` is `[batch, seq, n_heads · d_head]`.
pub(super) fn attend(call: &Call<'_>, cache: &Cache<'_>, out: &mut [f32]) {
    let AttentionSpec { n_heads, n_kv_heads, d_head, .. } = *call.spec;
    let (seq, group) = (call.tokens.seq, call.spec.group());
    // As the outputs, `[batch, seq, n_heads, d_head]`.
    let mut queries = Scratch::new(out.len());
    for (at, query) in queries.chunks_exact_mut(d_head).enumerate() {
        let (token, head) = (at / n_heads, at % n_heads);
        call.prepare(Part::Query, [token / seq, token % seq, head], query);
    }
    let first = if seq == 0 { 0 } else { call.seen(0).start / SPAN };
    let spans = call.len().div_ceil(SPAN) - first;
    let tasks = call.tokens.batch * seq * n_kv_heads * spans;
    let len = group * (d_head + 2);
    let mut partial = Scratch::new(tasks * len);
    let parts = Disjoint::new(&mut partial);
    let work = 2 * out.len() * call.seen(seq.saturating_sub(1)).len();
    for_each(tasks, work / RATE, |task| {
        let (at, span) = (task / spans, first + task % spans);
        let (token, kv_head) = (at / n_kv_heads, at % n_kv_heads);
        // SAFETY: every task has a part of its own.
        let part = unsafe { parts.part(task * len..(task + 1) * len) };
        let queries = &queries[at * group * d_head..][..group * d_head];
        let place = Place { text: token / seq, token: token % seq, kv_head };
        place.sum(call, cache, span * SPAN..(span + 1) * SPAN, queries, &mut Partial::new(part, group));
    });
    for (out, parts) in out.chunks_exact_mut(group * d_head).zip(partial.chunks_exact_mut(spans * len)) {
        merge(call, parts, out);
    }
}

/// What the queries that share a key head have summed up over a span.
struct Partial<'a> {
    /// Weighted sums of values, `[group, d_head]`.
    values: &'a mut [f32],
    /// `[group]`.
    max: &'a mut [f32],
    /// `[group]`.
    sum: &'a mut [f32],
}

impl<'a> Partial<'a> {
    fn new(part: &'a mut [f32], group: usize) -> Self {
        let (values, rest) = part.split_at_mut(part.len() - 2 * group);
        let (max, sum) = rest.split_at_mut(group);
        Self { values, max, sum }
    }
}

/// The queries that share a key head.
#[derive(Debug, Clone, Copy)]
struct Place {
    text: usize,
    token: usize,
    kv_head: usize,
}

impl Place {
    /// Attends to the keys in `span`; `queries` is `[group, d_head]`.
    fn sum(self, call: &Call<'_>, cache: &Cache<'_>, span: Range<usize>, queries: &[f32], partial: &mut Partial<'_>) {
        partial.values.fill(0.0);
        partial.max.fill(NO_SCORE);
        partial.sum.fill(0.0);
        let seen = call.seen(self.token);
        let range = span.start.max(seen.start)..span.end.min(seen.end);
        let head = (self.text * call.spec.n_kv_heads + self.kv_head) * call.capacity;
        let blocks = blocks(call.hidden(self.text), range);
        let blocks = blocks.map(|keys| (head + keys.start, keys.len()));
        match call.spec.format {
            CacheFormat::F32 => sum_floats(call, cache, blocks, queries, partial),
            CacheFormat::Bits8 | CacheFormat::Bits4 => sum_codes(call, cache, blocks, queries, partial),
        }
    }
}

/// Runs of up to [`BLOCK`] keys of `range` that are not hidden.
fn blocks(hidden: Option<&[bool]>, mut range: Range<usize>) -> impl Iterator<Item = Range<usize>> {
    std::iter::from_fn(move || {
        let is_hidden = |key: usize| hidden.is_some_and(|hidden| hidden[key]);
        let start = range.clone().find(|key| !is_hidden(*key))?;
        let limit = range.end.min(start + BLOCK);
        let end = if hidden.is_none() { limit } else { (start..limit).find(|key| is_hidden(*key)).unwrap_or(limit) };
        range.start = end;
        Some(start..end)
    })
}

/// Sums over blocks of heads of the cache, the first head and the number of each.
fn sum_floats(
    call: &Call<'_>,
    cache: &Cache<'_>,
    blocks: impl Iterator<Item = (usize, usize)>,
    queries: &[f32],
    partial: &mut Partial<'_>,
) {
    let d = call.spec.d_head;
    let group = queries.len() / d;
    let mut tile = [0.0; ROWS * BLOCK];
    for (first, n) in blocks {
        let (keys, values) = (cache.keys.floats(first, n), cache.values.floats(first, n));
        cache.keys.prefetch(first + n, n);
        cache.values.prefetch(first + n, n);
        for from in (0..group).step_by(ROWS) {
            let to = group.min(from + ROWS);
            scores::floats(call.simd, &queries[from * d..to * d], keys, d, &mut tile);
            let factors = partial.soften(call, (from, to), n, &mut tile);
            let out = &mut partial.values[from * d..];
            multiply(call.simd, (out, d), Some(&factors), (&tile, BLOCK), (values, d), [to - from, n, d]);
        }
    }
}

/// [`sum_floats`] where heads are rounded.
///
/// Weights, times the scales of their values, are rounded to 16 bits as queries are, where there are instructions for
/// it: each block by itself, to multiples of its largest / 32639.
fn sum_codes(
    call: &Call<'_>,
    cache: &Cache<'_>,
    blocks: impl Iterator<Item = (usize, usize)>,
    queries: &[f32],
    partial: &mut Partial<'_>,
) {
    let (simd, d, offset) = (call.simd, call.spec.d_head, call.spec.format.offset());
    let group = queries.len() / d;
    let mut rounded = RoundedRows::new(simd, group, d);
    rounded.fill(queries);
    #[cfg(target_arch = "x86_64")]
    let mut rounded_weights = RoundedRows::new(simd, ROWS, BLOCK);
    let mut room = Scratch::<u8>::new(2 * BLOCK * (d + d.next_multiple_of(CHUNK)));
    let (unpacked, interleaved) = room.split_at_mut(2 * BLOCK * d);
    let (key_codes, value_codes) = unpacked.split_at_mut(BLOCK * d);
    let (keys_room, values_room) = interleaved.split_at_mut(BLOCK * d.next_multiple_of(CHUNK));
    let mut tile = [0.0; ROWS * BLOCK];
    for (first, n) in blocks {
        let half = n.div_ceil(2);
        let keys = Codes::keys(simd, cache.keys.codes(call, first, n, key_codes), d, offset, keys_room);
        // Of the next block, piece by piece: a thread can wait for some dozen lines at a time.
        cache.keys.prefetch(first + n, half);
        let values = Codes::values(simd, cache.values.codes(call, first, n, value_codes), d, offset, values_room);
        cache.keys.prefetch(first + n + half, half);
        for from in (0..group).step_by(ROWS) {
            let to = group.min(from + ROWS);
            rounded.scores((from, to), &keys, cache.keys.scales(first, n), &mut tile);
            let piece = |i| {
                if from == 0 {
                    cache.values.prefetch(first + n + i * half, half)
                }
            };
            piece(0);
            let factors = partial.soften(call, (from, to), n, &mut tile);
            piece(1);
            let weights = &mut tile[..(to - from) * BLOCK];
            weigh(simd, weights, cache.values.scales(first, n));
            let out = &mut partial.values[from * d..to * d];
            #[cfg(target_arch = "x86_64")]
            if rounded_weights.add_values(weights, &values, d, &factors, out) {
                continue;
            }
            add_values(simd, weights, &values, d, &factors, out);
        }
    }
}

/// `out ← factors·out + weights·(values − offset)`: weights `[rows, BLOCK]`, values `[n, d]`, `out` `[rows, d]`.
fn add_values(simd: Simd, weights: &[f32], values: &Codes<'_>, d: usize, factors: &[f32], out: &mut [f32]) {
    let (rows, n) = (weights.len() / BLOCK, values.codes.len() / d);
    multiply(simd, (out, d), Some(factors), (weights, BLOCK), (values.codes, d), [rows, n, d]);
    for (out, weights) in out.chunks_exact_mut(d).zip(weights.chunks_exact(BLOCK)) {
        let excess = f32::from(values.offset) * weights[..n].iter().sum::<f32>();
        out.iter_mut().for_each(|out| *out -= excess);
    }
}

for_every_level! {
    /// Multiplies weights, `[rows, BLOCK]`, by the scales of their values, `[n]`; those beyond the last become 0.
    fn weigh(tile: &mut [f32], scales: &[f32]) -> () {
        for row in tile.chunks_exact_mut(BLOCK) {
            let (weights, rest) = row.split_at_mut(scales.len());
            weights.iter_mut().zip(scales).for_each(|(weight, scale)| *weight *= scale);
            rest.fill(0.0);
        }
    }
}

impl Partial<'_> {
    /// Turns the scores of rows `from..to` with `n` keys into weights, and returns what each row is multiplied by.
    fn soften(&mut self, call: &Call<'_>, (from, to): (usize, usize), n: usize, tile: &mut [f32]) -> [f32; ROWS] {
        let mut factors = [0.0; ROWS];
        let mut sums = Sums { max: &mut self.max[from..to], sum: &mut self.sum[from..to] };
        let seen = [(0, n); ROWS];
        soften(call.simd, tile, n.next_multiple_of(LANES), &seen[..to - from], &mut sums, &mut factors);
        factors
    }
}

/// Merges the sums of spans, `[spans, group · (d_head + 2)]`, into outputs `[group, d_head]`.
fn merge(call: &Call<'_>, parts: &mut [f32], out: &mut [f32]) {
    let AttentionSpec { d_head, quiet_softmax, .. } = *call.spec;
    let group = call.spec.group();
    for (r, out) in out.chunks_exact_mut(d_head).enumerate() {
        let len = group * (d_head + 2);
        let parts = || parts.chunks_exact(len).map(|part| part.split_at(group * d_head));
        // The one of a quiet softmax is the weight of a score of 0.
        let start = if quiet_softmax { 0.0 } else { NO_SCORE };
        let max = parts().map(|(_, sums)| sums[r]).fold(start, f32::max);
        let mut sum = if quiet_softmax { exp2(-max) } else { 0.0 };
        out.fill(0.0);
        for (values, sums) in parts() {
            let factor = exp2(sums[r] - max);
            sum += sums[group + r] * factor;
            let values = &values[r * d_head..][..d_head];
            out.iter_mut().zip(values).for_each(|(out, value)| *out += value * factor);
        }
        if sum != 0.0 {
            out.iter_mut().for_each(|out| *out /= sum);
        }
        call.restore(out);
    }
}
