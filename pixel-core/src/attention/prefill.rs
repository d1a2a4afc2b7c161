//! Attention of many new tokens: blocks of queries times blocks of keys.
//!
//! The rows of a block are the tokens of a run, each with all query heads that share a key head, so that a block of
//! keys, made ready once, serves them all.

use super::cache::{Cache, padded};
use super::for_each;
use super::prepare::{Call, Part};
use super::product::{multiply, transpose};
use super::soften::{BLOCK, LANES, NO_SCORE, ROWS, Seen, Sums, soften};
use super::spec::AttentionSpec;
use crate::disjoint::Disjoint;
use crate::scratch::Scratch;
use std::ops::Range;

/// Rows of a block that are aimed at: their queries and sums, beside a block of keys and values, fit the second cache.
const BLOCK_ROWS: usize = 192;

/// Multiply-adds a nanosecond, roughly.
const RATE: usize = 32;

/// Attends to the cache; `out` is `[batch, seq, n_heads · d_head]`.
pub(super) fn attend(call: &Call<'_>, cache: &Cache<'_>, out: &mut [f32]) {
    let AttentionSpec { n_kv_heads, causal, .. } = *call.spec;
    let seq = call.tokens.seq;
    let run = (BLOCK_ROWS / call.spec.group()).clamp(16, BLOCK);
    let blocks = seq.div_ceil(run);
    let work = 2 * out.len() * call.seen(seq / 2).len() / RATE;
    let out = Disjoint::new(out);
    let attend = |pair: usize, block: usize| {
        let tokens = block * run..seq.min((block + 1) * run);
        Block::new(call, pair / n_kv_heads, pair % n_kv_heads, tokens).attend(cache, &out);
    };
    // Of a causal attention the first block has the least work and the last one the most: a task has one of each.
    let tasks = if causal { blocks.div_ceil(2) } else { blocks };
    for_each(call.tokens.batch * n_kv_heads * tasks, work, |task| {
        let (pair, block) = (task / tasks, task % tasks);
        attend(pair, block);
        if causal && blocks - 1 - block != block {
            attend(pair, blocks - 1 - block);
        }
    });
}

/// The queries of a run of tokens that share a key head, and their sums so far: row `t · group + g` is head `g` of
/// token `t`.
struct Block<'a> {
    call: &'a Call<'a>,
    text: usize,
    kv_head: usize,
    tokens: Range<usize>,
    /// Length of a row: that of a head, or more, with zeros.
    width: usize,
    /// `[rows, width]`.
    queries: Scratch<f32>,
    /// Weighted sums of values, `[rows, width]`.
    values: Scratch<f32>,
    /// `[rows]`.
    max: Scratch<f32>,
    /// `[rows]`.
    sum: Scratch<f32>,
}

/// Keys and values of up to [`BLOCK`] tokens.
struct Keys {
    /// Their positions.
    positions: [usize; BLOCK],
    n: usize,
    /// `[width, BLOCK]`.
    keys: Scratch<f32>,
    /// `[BLOCK, width]`, of which `n` are there.
    values: Scratch<f32>,
    /// Whether all values are finite.
    finite: bool,
}

impl<'a> Block<'a> {
    fn new(call: &'a Call<'a>, text: usize, kv_head: usize, tokens: Range<usize>) -> Self {
        let (d, group, width) = (call.spec.d_head, call.spec.group(), padded(call.spec.d_head));
        let rows = tokens.len() * group;
        let mut queries = Scratch::<f32>::new(rows * width);
        for (r, row) in queries.chunks_exact_mut(width).enumerate() {
            let (query, padding) = row.split_at_mut(d);
            call.prepare(Part::Query, [text, tokens.start + r / group, kv_head * group + r % group], query);
            padding.fill(0.0);
        }
        let mut values = Scratch::<f32>::new(rows * width);
        values.fill(0.0);
        let (mut max, mut sum) = (Scratch::<f32>::new(rows), Scratch::<f32>::new(rows));
        // The one of a quiet softmax is the weight of a score of 0.
        let (first, one) = if call.spec.quiet_softmax { (0.0, 1.0) } else { (NO_SCORE, 0.0) };
        max.fill(first);
        sum.fill(one);
        Self { call, text, kv_head, tokens, width, queries, values, max, sum }
    }

    /// Attends to all keys that a token of the block sees, and writes the outputs.
    fn attend(mut self, cache: &Cache<'_>, out: &Disjoint<'_, f32>) {
        let range = self.call.seen(self.tokens.start).start..self.call.seen(self.tokens.end - 1).end;
        let hidden = self.call.hidden(self.text);
        let mut positions = range.filter(|key| hidden.is_none_or(|hidden| !hidden[*key]));
        let mut keys = Keys::new(self.width);
        while keys.load(&self, cache, &mut positions) {
            for first in (0..self.max.len()).step_by(ROWS) {
                self.add(first, &keys);
            }
        }
        self.write(out);
    }

    /// Lets up to [`ROWS`] rows from `first` on attend to a block of keys.
    fn add(&mut self, first: usize, keys: &Keys) {
        let (width, simd, end) = (self.width, self.call.simd, self.max.len().min(first + ROWS));
        let m = end - first;
        let mut seen = [(0, 0); ROWS];
        for (seen, row) in seen.iter_mut().zip(first..end) {
            *seen = keys.seen(self.call.seen(self.tokens.start + row / self.call.spec.group()));
        }
        let seen = &seen[..m];
        // Rows stand in the order of their tokens, so that windows move to the right.
        let (from, to) = (seen[0].0, seen[m - 1].1);
        if from >= to {
            return;
        }
        let columns = to.next_multiple_of(LANES);
        let mut tile = [0.0; ROWS * BLOCK];
        let queries = (&self.queries[first * width..], width);
        multiply(simd, (&mut tile, BLOCK), None, queries, (&keys.keys, BLOCK), [m, width, columns]);
        let mut factors = [0.0; ROWS];
        let mut sums = Sums { max: &mut self.max[first..end], sum: &mut self.sum[first..end] };
        soften(simd, &mut tile, columns, seen, &mut sums, &mut factors);
        let out = &mut self.values[first * width..end * width];
        if keys.finite {
            let weights = (&tile[from..], BLOCK);
            let values = (&keys.values[from * width..], width);
            multiply(simd, (out, width), Some(&factors), weights, values, [m, to - from, width]);
        } else {
            add_seen(self.call, out, width, &factors, &tile, keys, seen);
        }
    }

    /// Writes `values / sum` to the outputs.
    fn write(mut self, out: &Disjoint<'_, f32>) {
        let AttentionSpec { n_heads, d_head, .. } = *self.call.spec;
        let group = self.call.spec.group();
        for (r, row) in self.values.chunks_exact_mut(self.width).enumerate() {
            let token = self.text * self.call.tokens.seq + self.tokens.start + r / group;
            let at = (token * n_heads + self.kv_head * group + r % group) * d_head;
            // SAFETY: a head of a token belongs to one block.
            let out = unsafe { out.part(at..at + d_head) };
            let factor = if self.sum[r] == 0.0 { 0.0 } else { 1.0 / self.sum[r] };
            out.iter_mut().zip(row).for_each(|(out, value)| *out = *value * factor);
            self.call.restore(out);
        }
    }
}

/// `out ← factors·out + weights·values`, each row over the keys that it sees alone: 0 times infinity is not 0.
fn add_seen(call: &Call<'_>, out: &mut [f32], width: usize, factors: &[f32], tile: &[f32], keys: &Keys, seen: &[Seen]) {
    for (r, (&(from, to), out)) in seen.iter().zip(out.chunks_exact_mut(width)).enumerate() {
        let weights = (&tile[r * BLOCK + from..], BLOCK);
        let values = (&keys.values[from * width..], width);
        let shape = [1, to.saturating_sub(from), width];
        multiply(call.simd, (out, width), Some(&factors[r..=r]), weights, values, shape);
    }
}

impl Keys {
    fn new(width: usize) -> Self {
        let (keys, values) = (Scratch::new(BLOCK * width), Scratch::new(BLOCK * width));
        Self { positions: [0; BLOCK], n: 0, keys, values, finite: true }
    }

    /// Takes up to [`BLOCK`] keys; `false` if there are none.
    fn load(&mut self, block: &Block<'_>, cache: &Cache<'_>, positions: &mut impl Iterator<Item = usize>) -> bool {
        let (call, width) = (block.call, block.width);
        self.n = 0;
        for (place, position) in self.positions.iter_mut().zip(positions) {
            *place = position;
            self.n += 1;
        }
        let head = (block.text * call.spec.n_kv_heads + block.kv_head) * call.capacity;
        let heads = || self.positions[..self.n].iter().map(|position| head + position);
        let mut rows = Scratch::<f32>::new(BLOCK * width);
        cache.keys.rows(call, heads(), &mut rows, width);
        rows[self.n * width..].fill(0.0);
        transpose(call.simd, &rows, width, &mut self.keys);
        self.finite = cache.values.rows(call, heads(), &mut self.values, width);
        self.n > 0
    }

    /// Which of the keys are in `range`.
    fn seen(&self, range: Range<usize>) -> Seen {
        let positions = &self.positions[..self.n];
        let place = |key: usize| match positions {
            [first, ..] if *first >= key => 0,
            [.., last] if *last < key => positions.len(),
            _ => positions.partition_point(|position| *position < key),
        };
        (place(range.start), place(range.end))
    }
}
