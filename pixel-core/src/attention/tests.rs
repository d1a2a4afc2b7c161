//! Attention beside its definition in plain f64 loops.

use super::*;
use crate::math::rotation::{reference_entry, split_mix};
use proptest::prelude::*;
use std::ops::Range;

/// Whole texts, and what is done to them.
#[derive(Clone)]
struct Case {
    spec: AttentionSpec,
    batch: usize,
    len: usize,
    qkv: Vec<f32>,
    /// Cosines and sines, each `[len, d_head / 2]`.
    rotary: Option<(Vec<f32>, Vec<f32>)>,
    norms: Option<(Vec<f32>, Vec<f32>)>,
    /// `[batch, len]`.
    padding: Option<Vec<bool>>,
}

/// A cache as its owner holds it.
#[derive(Debug, Clone, Default)]
struct Room {
    floats: [Vec<f32>; 2],
    words: [Vec<u32>; 2],
    scales: [Vec<f32>; 2],
}

/// Room beyond the last token.
const SPARE: usize = 3;

const KEYS: usize = 0;
const VALUES: usize = 1;

/// A number between −1 and 1.
fn number(seed: u64, i: usize) -> f32 {
    (split_mix(seed, i as u64) >> 40) as f32 / 8_388_608.0 - 1.0
}

fn numbers(seed: u64, len: usize) -> Vec<f32> {
    (0..len).map(|i| number(seed, i)).collect()
}

impl Case {
    /// Texts of numbers between −2 and 2 with everything that may be there.
    fn new(spec: AttentionSpec, batch: usize, len: usize, seed: u64) -> Self {
        let d = spec.d_head;
        let qkv = numbers(seed, batch * len * spec.d_qkv()).into_iter().map(|x| 2.0 * x).collect();
        let angles = || (0..len * (d / 2)).map(|at| (at / (d / 2)) as f32 * 0.7f32.powi((at % (d / 2)) as i32));
        let rotary = d.is_multiple_of(2).then(|| (angles().map(f32::cos).collect(), angles().map(f32::sin).collect()));
        let norms = spec.norm_epsilon.map(|_| (numbers(seed + 1, d), numbers(seed + 2, d)));
        Self { spec, batch, len, qkv, rotary, norms, padding: None }
    }

    fn capacity(&self) -> usize {
        self.len + SPARE
    }

    fn room(&self) -> Room {
        let (format, d) = (self.spec.format, self.spec.d_head);
        let heads = self.batch * self.spec.n_kv_heads * self.capacity();
        let (floats, words) = if format == CacheFormat::F32 { (d, 0) } else { (0, format.words(d)) };
        // What is not written must not be read.
        Room {
            floats: [(); 2].map(|()| vec![f32::NAN; heads * floats]),
            words: [(); 2].map(|()| vec![0; heads * words]),
            scales: [(); 2].map(|()| vec![f32::NAN; heads * format.scales()]),
        }
    }

    /// The tokens in `range` of every text, in the layout `[batch, tokens, width]`.
    fn cut<T: Copy>(&self, values: &[T], range: &Range<usize>, width: usize) -> Vec<T> {
        let texts = values.chunks_exact(self.len * width);
        texts.flat_map(|text| text[range.start * width..range.end * width].to_vec()).collect()
    }

    /// One call for the tokens in `range`; outputs `[batch, tokens, n_heads · d_head]`.
    fn call(&self, simd: Simd, room: &mut Room, range: Range<usize>) -> Vec<f32> {
        let half = self.spec.d_head / 2;
        let qkv = self.cut(&self.qkv, &range, self.spec.d_qkv());
        let padding = self.padding.as_ref().map(|padding| self.cut(padding, &(0..range.end), 1));
        let rows = range.start * half..range.end * half;
        let tokens = Tokens {
            batch: self.batch,
            seq: range.len(),
            start: range.start,
            qkv: &qkv,
            rotary: self.rotary.as_ref().map(|(cos, sin)| (&cos[rows.clone()], &sin[rows])),
            norms: self.norms.as_ref().map(|(query, key)| (&**query, &**key)),
            padding: padding.as_deref(),
        };
        let mut out = vec![f32::NAN; self.batch * range.len() * self.spec.n_heads * self.spec.d_head];
        attend_at(simd, &self.spec, &tokens, room.cache(self.capacity()), &mut out);
        out
    }

    /// The outputs of texts read in pieces that end at `ends`, `[batch, len, n_heads · d_head]`, and the cache.
    fn run(&self, simd: Simd, ends: &[usize]) -> (Vec<f32>, Room) {
        let width = self.spec.n_heads * self.spec.d_head;
        let mut room = self.room();
        let mut out = vec![f32::NAN; self.batch * self.len * width];
        let mut start = 0;
        for end in ends.iter().copied().filter(|end| *end < self.len).chain([self.len]) {
            let found = self.call(simd, &mut room, start..end);
            for (out, found) in out.chunks_exact_mut(self.len * width).zip(found.chunks((end - start) * width)) {
                out[start * width..end * width].copy_from_slice(found);
            }
            start = end;
        }
        (out, room)
    }

    /// A head of the token at position `p`, normed and turned: number `head` of all query, key and value heads.
    fn head(&self, b: usize, p: usize, head: usize) -> Vec<f64> {
        let AttentionSpec { n_heads, n_kv_heads, d_head: d, norm_epsilon, .. } = self.spec;
        let at = (b * self.len + p) * self.spec.d_qkv() + head * d;
        let mut x: Vec<f64> = self.qkv[at..at + d].iter().map(|x| f64::from(*x)).collect();
        if head >= n_heads + n_kv_heads {
            return x;
        }
        if let (Some((query, key)), Some(epsilon)) = (&self.norms, norm_epsilon) {
            let root = (x.iter().map(|x| x * x).sum::<f64>() / d as f64 + epsilon).sqrt();
            let gamma = if head < n_heads { query } else { key };
            x = x.iter().zip(gamma).map(|(x, gamma)| x / root * f64::from(*gamma)).collect();
        }
        if let Some((cos, sin)) = &self.rotary {
            let pair = |i: usize| {
                let at = p * (d / 2) + i % (d / 2);
                (f64::from(cos[at]), f64::from(sin[at]))
            };
            let turned = |i: usize| match pair(i) {
                (cos, sin) if i < d / 2 => x[i] * cos - x[i + d / 2] * sin,
                (cos, sin) => x[i] * cos + x[i - d / 2] * sin,
            };
            x = (0..d).map(turned).collect();
        }
        x
    }

    fn key(&self, b: usize, p: usize, kv_head: usize) -> Vec<f64> {
        self.head(b, p, self.spec.n_heads + kv_head)
    }

    fn value(&self, b: usize, p: usize, kv_head: usize) -> Vec<f64> {
        self.head(b, p, self.spec.n_heads + self.spec.n_kv_heads + kv_head)
    }

    fn sees(&self, b: usize, query: usize, key: usize) -> bool {
        let is_hidden = self.padding.as_ref().is_some_and(|padding| padding[b * self.len + key]);
        let in_reach = self.spec.window.is_none_or(|window| key + window > query);
        !is_hidden && (!self.spec.causal || key <= query && in_reach)
    }

    /// The outputs, `[batch, len, n_heads · d_head]`, for keys and values by text, position and head: the definition.
    fn definition(
        &self,
        key: impl Fn(usize, usize, usize) -> Vec<f64>,
        value: impl Fn(usize, usize, usize) -> Vec<f64>,
    ) -> Vec<f64> {
        let AttentionSpec { n_heads, n_kv_heads, d_head, quiet_softmax, .. } = self.spec;
        let mut out = Vec::new();
        for b in 0..self.batch {
            for p in 0..self.len {
                for head in 0..n_heads {
                    let kv_head = head / (n_heads / n_kv_heads);
                    let query = self.head(b, p, head);
                    let seen: Vec<usize> = (0..self.len).filter(|k| self.sees(b, p, *k)).collect();
                    let score = |k: &usize| dot(&query, &key(b, *k, kv_head)) / (d_head as f64).sqrt();
                    let scores: Vec<f64> = seen.iter().map(score).collect();
                    let max = scores.iter().copied().fold(f64::MIN, f64::max);
                    let weights: Vec<f64> = scores.iter().map(|score| (score - max).exp()).collect();
                    let one = if quiet_softmax && !seen.is_empty() { (-max).exp() } else { 0.0 };
                    let sum = weights.iter().sum::<f64>() + one;
                    let mut row = vec![0.0; d_head];
                    for (k, weight) in seen.iter().zip(&weights) {
                        row.iter_mut().zip(value(b, *k, kv_head)).for_each(|(row, value)| *row += weight / sum * value);
                    }
                    out.extend(row);
                }
            }
        }
        out
    }

    /// The length of the longest value.
    fn longest_value(&self) -> f64 {
        longest(places(self).map(|[b, p, kv_head]| self.value(b, p, kv_head)))
    }

    /// The head of a rounded cache, by plain loops over its bits and by the matrix of the rotation, and its scale.
    fn read(&self, room: &Room, part: usize, [b, p, kv_head]: [usize; 3]) -> (Vec<f64>, f64) {
        let (format, d) = (self.spec.format, self.spec.d_head);
        let at = (b * self.spec.n_kv_heads + kv_head) * self.capacity() + p;
        let words = &room.words[part][at * format.words(d)..][..format.words(d)];
        let scale = f64::from(room.scales[part][at]);
        let (bits, offset) = (format.bits(), if format == CacheFormat::Bits8 { 128.0 } else { 8.0 });
        let code = |i: usize| words[i * bits / 32] >> (i * bits % 32) & ((1 << bits) - 1);
        let turned: Vec<f64> = (0..d).map(|i| (f64::from(code(i)) - offset) * scale).collect();
        let back = |i| (0..d).map(|j| turned[j] * reference_entry(d, prepare::SEED, i, j)).sum();
        ((0..d).map(back).collect(), scale)
    }
}

impl std::fmt::Debug for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { spec, batch, len, padding, .. } = self;
        write!(f, "{spec:?}, batch {batch}, {len} tokens, padding {padding:?}")
    }
}

impl Room {
    fn cache(&mut self, capacity: usize) -> CacheMut<'_> {
        let Self { floats, words, scales } = self;
        let [keys, values] = floats;
        if scales[KEYS].is_empty() {
            return CacheMut { capacity, keys: HeldMut::F32(keys), values: HeldMut::F32(values) };
        }
        let ([words, value_words], [scales, value_scales]) = (words, scales);
        CacheMut {
            capacity,
            keys: HeldMut::Rounded { words, scales },
            values: HeldMut::Rounded { words: value_words, scales: value_scales },
        }
    }
}

fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

fn spec(n_heads: usize, n_kv_heads: usize, d_head: usize) -> AttentionSpec {
    AttentionSpec {
        n_heads,
        n_kv_heads,
        d_head,
        causal: true,
        window: None,
        quiet_softmax: false,
        norm_epsilon: None,
        format: CacheFormat::F32,
    }
}

/// Cases of every kind, and where texts are cut.
fn cases(formats: &'static [CacheFormat]) -> impl Strategy<Value = (Case, Vec<usize>)> {
    let heads = prop_oneof![Just((1, 1)), Just((9, 3)), Just((8, 1)), Just((3, 3)), Just((4, 2))];
    let d_head = prop_oneof![Just(2usize), Just(6), Just(8), Just(32), Just(64), Just(80), Just(128)];
    let rules = (any::<bool>(), prop::option::of(1usize..40), any::<bool>(), prop::option::of(1e-6..0.1f64));
    let hidden = prop_oneof![Just(0u64), Just(2), Just(8)];
    let sizes = (1usize..3, prop_oneof![1usize..12, 60usize..140], prop::collection::vec(1usize..140, 0..4));
    let format = prop::sample::select(formats);
    (heads, d_head, rules, format, sizes, hidden, any::<u32>()).prop_map(
        |(
            (n_heads, n_kv_heads),
            d_head,
            (causal, window, quiet_softmax, norm_epsilon),
            format,
            sizes,
            hidden,
            seed,
        )| {
            let (batch, len, mut ends) = sizes;
            let d_head = if format.fits(d_head) { d_head } else { 8 };
            let spec = AttentionSpec {
                causal,
                window,
                quiet_softmax,
                norm_epsilon,
                format,
                ..spec(n_heads, n_kv_heads, d_head)
            };
            let mut case = Case::new(spec, batch, len, seed.into());
            let is_hidden = |at: usize| split_mix(seed.into(), at as u64).is_multiple_of(hidden.max(1));
            case.padding = (hidden > 0).then(|| (0..batch * len).map(is_hidden).collect());
            ends.sort_unstable();
            ends.dedup();
            (case, if causal { ends } else { Vec::new() })
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn attention_is_that_of_the_definition((case, ends) in cases(&[CacheFormat::F32])) {
        let expected = case.definition(|b, p, h| case.key(b, p, h), |b, p, h| case.value(b, p, h));
        let bound = 1e-5 * case.longest_value();
        for simd in Simd::available() {
            let (found, _) = case.run(simd, &ends);
            for (found, expected) in found.iter().zip(&expected) {
                prop_assert!((f64::from(*found) - expected).abs() <= bound, "{simd:?}: {found} {expected}");
            }
        }
    }

    #[test]
    fn a_rounded_cache_holds_what_its_format_says(
        (case, ends) in cases(&[CacheFormat::Bits8, CacheFormat::Bits4]),
    ) {
        let (_, room) = case.run(Simd::detect(), &ends);
        let d = case.spec.d_head as f64;
        for [b, p, head] in places(&case) {
            for (part, exact) in [(KEYS, case.key(b, p, head)), (VALUES, case.value(b, p, head))] {
                let (held, scale) = case.read(&room, part, [b, p, head]);
                let off = held.iter().zip(&exact).map(|(held, exact)| (held - exact).powi(2)).sum::<f64>().sqrt();
                prop_assert!(off <= (0.5 * scale + 1e-6) * d.sqrt() * 1.001, "{off} {scale}");
                let largest = f64::from(case.spec.format.largest());
                prop_assert!(scale * largest <= dot(&exact, &exact).sqrt() * 1.001 + 1e-6);
            }
        }
    }

    #[test]
    fn attention_to_a_rounded_cache_is_that_to_what_it_holds(
        (case, ends) in cases(&[CacheFormat::Bits8, CacheFormat::Bits4]),
    ) {
        let d = case.spec.d_head as f64;
        for simd in Simd::available() {
            let (found, room) = case.run(simd, &ends);
            let held = |part| {
                let heads = places(&case).map(|place| (place, case.read(&room, part, place).0));
                heads.collect::<std::collections::HashMap<_, _>>()
            };
            let (keys, values) = (held(KEYS), held(VALUES));
            let expected = case.definition(|b, p, h| keys[&[b, p, h]].clone(), |b, p, h| values[&[b, p, h]].clone());
            // Half a step of the query for every value of a key, both turned: |q|∞ ≤ ‖q‖ and ‖k‖₁ ≤ √d·‖k‖.
            let query = longest(queries(&case).map(|[b, p, head]| case.head(b, p, head)));
            let key = longest(keys.values().cloned());
            let score = query / 65278.0 * key + 1e-6 * query * key / d.sqrt();
            // Half a step of a weight for every key of a block, where weights are rounded.
            let weight = soften::BLOCK as f64 / 65278.0;
            let bound = ((2.0 * score).exp() - 1.0 + weight + 1e-5) * longest(values.values().cloned());
            for (found, expected) in found.iter().zip(&expected) {
                prop_assert!((f64::from(*found) - expected).abs() <= bound, "{simd:?}: {found} {expected} {bound}");
            }
        }
    }
}

/// The length of the longest.
fn longest(heads: impl Iterator<Item = Vec<f64>>) -> f64 {
    heads.map(|head| dot(&head, &head).sqrt()).fold(0.0, f64::max)
}

/// Texts, positions and query heads.
fn queries(case: &Case) -> impl Iterator<Item = [usize; 3]> {
    let (len, heads) = (case.len, case.spec.n_heads);
    (0..case.batch * len * heads).map(move |at| [at / heads / len, at / heads % len, at % heads])
}

/// Texts, positions and key heads.
fn places(case: &Case) -> impl Iterator<Item = [usize; 3]> {
    let (len, heads) = (case.len, case.spec.n_kv_heads);
    (0..case.batch * len * heads).map(move |at| [at / heads / len, at / heads % len, at % heads])
}

#[test]
fn rounding_costs_what_the_format_says() {
    for (format, causal) in [(CacheFormat::Bits8, true), (CacheFormat::Bits4, true), (CacheFormat::Bits8, false)] {
        let case = Case::new(AttentionSpec { format, causal, ..spec(4, 2, 64) }, 1, 90, 5);
        let (found, room) = case.run(Simd::detect(), &[]);
        let exact = case.definition(|b, p, h| case.key(b, p, h), |b, p, h| case.value(b, p, h));
        // ‖q‖₁ of a turned query is √d·‖q‖ at most, so that δ ≤ ‖q‖·scale/2.
        let query = longest(queries(&case).map(|[b, p, head]| case.head(b, p, head)));
        let [key, value] = [KEYS, VALUES].map(|part| f64::from(room.scales[part].iter().copied().fold(0.0, f32::max)));
        let delta = query * key / 2.0;
        let bound = ((2.0 * delta).exp() - 1.0) * case.longest_value() + 8.0 * value / 2.0;
        let heads = found.chunks_exact(64).zip(exact.chunks_exact(64));
        let off = heads.map(|(found, exact)| {
            let squares = found.iter().zip(exact).map(|(found, exact)| (f64::from(*found) - exact).powi(2));
            squares.sum::<f64>().sqrt()
        });
        let worst = off.fold(0.0, f64::max);
        assert!(worst <= bound, "{format:?}: {worst} {bound}");
        // And typical values are far from the worst case.
        let typical = [0.02, 0.3][usize::from(format == CacheFormat::Bits4)] * case.longest_value();
        assert!(worst <= typical, "{format:?}: {worst} {typical}");
    }
}

#[test]
fn long_texts_are_cut_into_spans() {
    for format in [CacheFormat::F32, CacheFormat::Bits8] {
        for (window, quiet_softmax) in [(None, true), (Some(700), false)] {
            let case = Case::new(AttentionSpec { format, window, quiet_softmax, ..spec(2, 1, 16) }, 1, 1100, 3);
            let (whole, _) = case.run(Simd::detect(), &[]);
            let (pieces, _) = case.run(Simd::detect(), &[500, 1021, 1097, 1099]);
            for (a, b) in whole.iter().zip(&pieces) {
                assert!((a - b).abs() <= 1e-4, "{format:?} {window:?}: {a} {b}");
            }
        }
    }
}

#[test]
fn what_is_not_finite_stays_with_those_who_see_it() {
    for format in [CacheFormat::F32, CacheFormat::Bits8, CacheFormat::Bits4] {
        for (causal, window) in [(true, None), (true, Some(20)), (false, None)] {
            for (ends, bad) in [(&[][..], f32::NAN), (&[39, 40, 41], f32::INFINITY), (&[1, 2, 70], f32::NEG_INFINITY)] {
                // A query, the key, the value.
                for part in [0, 2, 3] {
                    let mut case = Case::new(AttentionSpec { format, causal, window, ..spec(2, 1, 32) }, 1, 100, 9);
                    let ends = if causal { ends } else { &[] };
                    let clean = case.run(Simd::detect(), ends).0;
                    let at = 40 * case.spec.d_qkv() + part * 32 + 7;
                    case.qkv[at] = bad;
                    for simd in Simd::available() {
                        let found = case.run(simd, ends).0;
                        for (at, (found, clean)) in found.iter().zip(&clean).enumerate() {
                            let (p, head) = (at / 64, at / 32 % 2);
                            let touched = if part == 0 { p == 40 && head == 0 } else { case.sees(0, p, 40) };
                            assert!(
                                touched || (found - clean).abs() < 1e-4,
                                "{format:?} {simd:?} {p}: {found} {clean}"
                            );
                            assert!(!touched || part != 3 || !found.is_finite() || at % 32 != 7, "{format:?} {p}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn hidden_tokens_may_hold_anything() {
    for format in [CacheFormat::F32, CacheFormat::Bits8] {
        let mut case = Case::new(AttentionSpec { format, ..spec(2, 1, 32) }, 2, 70, 4);
        case.padding = Some((0..140).map(|at| at % 70 < 5 || at == 30).collect());
        let clean = case.run(Simd::detect(), &[50, 51]).0;
        for at in [2 * 128 + 70, 30 * 128 + 64, 30 * 128 + 127] {
            case.qkv[at] = f32::NAN;
        }
        let found = case.run(Simd::detect(), &[50, 51]).0;
        assert_eq!(found, clean);
        assert!(found[..5 * 64].iter().all(|value| *value == 0.0), "queries that see nothing get zeros");
    }
}

#[test]
fn scores_at_the_ends_of_their_range_give_numbers() {
    for quiet_softmax in [false, true] {
        let case = |scale: f32| {
            let mut case = Case::new(AttentionSpec { quiet_softmax, ..spec(1, 1, 2) }, 1, 70, 6);
            case.rotary = None;
            case.qkv.chunks_exact_mut(6).for_each(|token| token[..4].copy_from_slice(&[scale, 0.0, scale.abs(), 0.0]));
            case
        };
        for simd in Simd::available() {
            for ends in [&[][..], &[69]] {
                let (large, small) = (case(1e6).run(simd, ends).0, case(-1e6).run(simd, ends).0);
                assert!(large.iter().all(|value| value.abs() <= 2.0 && *value != 0.0));
                assert!(small.iter().all(|value| value.abs() <= 2.0 && (*value == 0.0) == quiet_softmax));
            }
        }
    }
}

#[test]
fn specs_that_cannot_be_are_refused() {
    let bits = |d_head, format| AttentionSpec { format, ..spec(4, 2, d_head) };
    assert_eq!(bits(6, CacheFormat::Bits8).validate(), Err(AttentionSpecError::Words { d_head: 6, bits: 8 }));
    assert_eq!(bits(12, CacheFormat::Bits4).validate(), Err(AttentionSpecError::Words { d_head: 12, bits: 4 }));
    assert_eq!(bits(12, CacheFormat::Bits8).validate(), Ok(()));
    assert_eq!(spec(4, 0, 2).validate(), Err(AttentionSpecError::Zero { field: "n_kv_heads" }));
    assert_eq!(spec(4, 3, 2).validate(), Err(AttentionSpecError::Heads { n_heads: 4, n_kv_heads: 3 }));
    let epsilon = AttentionSpec { norm_epsilon: Some(0.0), ..spec(1, 1, 2) };
    assert_eq!(epsilon.validate(), Err(AttentionSpecError::Epsilon(0.0)));
}

#[test]
fn a_token_takes_as_many_bytes_as_its_format_says() {
    let bytes = [CacheFormat::F32, CacheFormat::Bits8, CacheFormat::Bits4].map(|format| format.bytes(64));
    assert_eq!(bytes, [256, 68, 36]);
}

#[test]
#[should_panic(expected = "3 tokens in a cache for 2")]
fn a_cache_without_room_is_refused() {
    let tokens = Tokens { batch: 1, seq: 1, start: 2, qkv: &[0.0; 6], rotary: None, norms: None, padding: None };
    let (mut keys, mut values) = ([0.0; 4], [0.0; 4]);
    let cache = CacheMut { capacity: 2, keys: HeldMut::F32(&mut keys), values: HeldMut::F32(&mut values) };
    attend(&spec(1, 1, 2), &tokens, cache, &mut [0.0; 2]);
}
