//! Heads of new tokens on their way from the projections to products: norm, position, rotation.

use super::spec::{AttentionSpec, CacheFormat};
use crate::math::rotation::{Rotation, RotationScratch};
use crate::math::simd::{Simd, for_every_level};
use std::cell::RefCell;
use std::ops::Range;

/// The seed of the rotation of narrow formats: any would do, but a cache is read with the one it was written with.
pub(super) const SEED: u64 = 0x0063_6163_6865;

/// The new tokens of a call, and where they stand.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    /// Number of texts.
    pub batch: usize,
    /// New tokens of each text.
    pub seq: usize,
    /// The position of the first: the number of tokens in the cache.
    pub start: usize,
    /// Query, key and value heads, `[batch, seq, (n_heads + 2·n_kv_heads) · d_head]`.
    pub qkv: &'a [f32],
    /// Cosines and sines of the angles of the positions from `start` on, each `[seq, d_head / 2]`: values `i` and
    /// `i + d_head / 2` of a head turn by angle `i`.
    pub rotary: Option<(&'a [f32], &'a [f32])>,
    /// What normed query heads and key heads are multiplied by, each `[d_head]`.
    pub norms: Option<(&'a [f32], &'a [f32])>,
    /// The keys that no query of their text sees, `[batch, start + seq]`, true = hidden.
    pub padding: Option<&'a [bool]>,
}

/// A checked call.
#[derive(Debug, Clone, Copy)]
pub(super) struct Call<'a> {
    pub(super) simd: Simd,
    pub(super) spec: &'a AttentionSpec,
    pub(super) tokens: &'a Tokens<'a>,
    /// Tokens that the cache has room for.
    pub(super) capacity: usize,
}

/// Which heads of a token.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part {
    Query,
    Key,
    Value,
}

impl<'a> Call<'a> {
    pub(super) fn new(simd: Simd, spec: &'a AttentionSpec, tokens: &'a Tokens<'a>, capacity: usize) -> Self {
        if let Err(error) = spec.validate() {
            panic!("{error}");
        }
        let Tokens { batch, seq, start, qkv, rotary, norms, padding } = *tokens;
        let len = start + seq;
        assert!(len <= capacity, "{len} tokens in a cache for {capacity}");
        assert!(spec.causal || start == 0, "attention that is not causal starts at 0, got {start}");
        assert_eq!(qkv.len(), batch * seq * spec.d_qkv(), "query, key and value heads");
        assert!(padding.is_none_or(|padding| padding.len() == batch * len), "padding is [{batch}, {len}]");
        assert_eq!(norms.is_some(), spec.norm_epsilon.is_some(), "norms and their epsilon");
        for gamma in norms.iter().flat_map(|(query, key)| [query, key]) {
            assert_eq!(gamma.len(), spec.d_head, "gamma");
        }
        for table in rotary.iter().flat_map(|(cos, sin)| [cos, sin]) {
            assert!(spec.d_head.is_multiple_of(2), "a head of {} values has no pairs", spec.d_head);
            assert_eq!(table.len(), seq * spec.d_head / 2, "cosines and sines");
        }
        Self { simd, spec, tokens, capacity }
    }

    /// Tokens in the cache, the new ones among them.
    pub(super) fn len(&self) -> usize {
        self.tokens.start + self.tokens.seq
    }

    /// The keys that new token `t` sees if none is hidden.
    pub(super) fn seen(&self, t: usize) -> Range<usize> {
        let end = self.tokens.start + t + 1;
        match self.spec.window {
            _ if !self.spec.causal => 0..self.len(),
            Some(window) => end.saturating_sub(window)..end,
            None => 0..end,
        }
    }

    /// Which keys of text `b` are hidden, `[start + seq]`.
    pub(super) fn hidden(&self, b: usize) -> Option<&'a [bool]> {
        self.tokens.padding.map(|padding| &padding[b * self.len()..][..self.len()])
    }

    /// Writes head `head` of new token `t` of text `b` to `out`, `[d_head]`: normed and turned by its position unless
    /// it is a value, rotated if the cache is, and a query in the units of scores, powers of two.
    pub(super) fn prepare(&self, part: Part, [b, t, head]: [usize; 3], out: &mut [f32]) {
        let AttentionSpec { n_heads, n_kv_heads, d_head, norm_epsilon, .. } = *self.spec;
        let (before, gammas) = match part {
            Part::Query => (0, self.tokens.norms.map(|(query, _)| query)),
            Part::Key => (n_heads, self.tokens.norms.map(|(_, key)| key)),
            Part::Value => (n_heads + n_kv_heads, None),
        };
        let token = b * self.tokens.seq + t;
        out.copy_from_slice(&self.tokens.qkv[token * self.spec.d_qkv() + (before + head) * d_head..][..d_head]);
        if let (Some(gamma), Some(epsilon)) = (gammas, norm_epsilon) {
            norm(self.simd, out, gamma, epsilon as f32);
        }
        if let (Some((cos, sin)), Part::Query | Part::Key) = (self.tokens.rotary, part) {
            let row = t * d_head / 2..(t + 1) * d_head / 2;
            turn(self.simd, out, &cos[row.clone()], &sin[row]);
        }
        if let Part::Query = part {
            let unit = std::f64::consts::LOG2_E / (d_head as f64).sqrt();
            out.iter_mut().for_each(|x| *x *= unit as f32);
        }
        if self.spec.format != CacheFormat::F32 {
            with_rotation(d_head, |rotation, scratch| rotation.forward(out, scratch));
        }
    }

    /// Turns an output head back if the cache is rotated.
    pub(super) fn restore(&self, out: &mut [f32]) {
        if self.spec.format != CacheFormat::F32 {
            with_rotation(out.len(), |rotation, scratch| rotation.inverse(out, scratch));
        }
    }
}

for_every_level! {
    /// Divides by the root mean square, and multiplies by `gamma`.
    fn norm(head: &mut [f32], gamma: &[f32], epsilon: f32) -> () {
        let squares: f32 = head.iter().map(|x| x * x).sum();
        let root = (squares / head.len() as f32 + epsilon).sqrt();
        head.iter_mut().zip(gamma).for_each(|(x, gamma)| *x = *x / root * gamma);
    }
}

for_every_level! {
    /// Turns the pairs of values that are half a head apart.
    fn turn(head: &mut [f32], cos: &[f32], sin: &[f32]) -> () {
        let (first, second) = head.split_at_mut(head.len() / 2);
        for ((a, b), (cos, sin)) in first.iter_mut().zip(second).zip(cos.iter().zip(sin)) {
            (*a, *b) = (*a * cos - *b * sin, *b * cos + *a * sin);
        }
    }
}

/// Calls `run` with the rotation of heads of `d_head` values, which its thread keeps.
fn with_rotation<R>(d_head: usize, run: impl FnOnce(&Rotation, &mut RotationScratch) -> R) -> R {
    thread_local! {
        static KEPT: RefCell<Vec<(Rotation, RotationScratch)>> = const { RefCell::new(Vec::new()) };
    }
    KEPT.with_borrow_mut(|kept| {
        let at = kept.iter().position(|(rotation, _)| rotation.d_input() == d_head).unwrap_or_else(|| {
            let rotation = Rotation::new(d_head, SEED);
            let scratch = rotation.scratch();
            kept.push((rotation, scratch));
            kept.len() - 1
        });
        let (rotation, scratch) = &mut kept[at];
        run(rotation, scratch)
    })
}
