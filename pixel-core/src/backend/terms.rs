//! The integer part of decoding, codec by codec: which values of the dictionary each weight is made of.

use super::definition::{Term, indices};
use crate::codec::matching::{MatchingLayout, PatternValue};
use crate::codec::nibble::{NibbleLayout, PATTERNS};
use crate::codec::trellis::TrellisLayout;
use crate::codec::uniform::UniformLayout;
use crate::codec::{CodecLayout, Field};
use crate::patterns::computed_values;
use burn::backend::tensor::{Device, FloatTensor, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, IntDType, TensorData};

/// The terms of a weight, made one by one: each is as large as the dense weight.
pub(super) fn terms<'a, B: Backend>(
    codes: &'a IntTensor<B>,
    layout: &'a CodecLayout,
) -> Box<dyn Iterator<Item = Term<B>> + 'a> {
    match layout {
        CodecLayout::Trellis(layout) => Box::new(std::iter::once_with(|| trellis::<B>(codes, layout))),
        CodecLayout::Nibble(layout) => Box::new((0..layout.depth()).map(|k| nibble::<B>(codes, layout, k))),
        CodecLayout::Matching(layout) => Box::new((0..layout.terms()).flat_map(|k| matching::<B>(codes, layout, k))),
        CodecLayout::Uniform(layout) => Box::new(uniform::<B>(codes, layout).into_iter()),
    }
}

/// One term: the hash of the window times the unit.
fn trellis<B: Backend>(codes: &IntTensor<B>, layout: &TrellisLayout) -> Term<B> {
    let (device, v) = (codes.device(), layout.step.weights);
    let windows = read_fields::<B>(codes, cells(layout.grid.shape).map(|(r, c)| layout.field(r, c)), layout.window);
    let integers = (0..1u32 << layout.window).flat_map(|s| layout.hash.integers(s).into_iter().take(v));
    let integers = floats::<B>(integers.map(|integer| integer as f32).collect(), &device);
    let within = cells(layout.grid.shape).map(|(r, c)| layout.within_step(r, c) as i32).collect();
    let places = B::int_add(B::int_mul_scalar(windows, (v as i32).into()), indices::<B>(within, &device));
    let unit = indices::<B>(vec![0; layout.grid.shape.num_weights()], &device);
    Term { factor: Some(B::float_select(integers, 0, places)), indices: vec![unit] }
}

/// Term `k`: the pattern that nibble `k` of those that reach a weight selects. Where the left edge leaves fewer, the
/// term is zero times the last.
fn nibble<B: Backend>(codes: &IntTensor<B>, layout: &NibbleLayout, k: usize) -> Term<B> {
    let (device, n) = (codes.device(), layout.shape.d_input());
    let chosen = |col| layout.reaching(col).nth(k).unwrap_or(layout.reaching(col).end - 1);
    let nibbles = read_fields::<B>(codes, cells(layout.shape).map(|(r, c)| layout.field(r, chosen(c))), 4);
    let start = |col| {
        let t = chosen(col);
        (t % layout.period() * PATTERNS * layout.span() + col - layout.start(t)) as i32
    };
    let starts = indices::<B>(cells(layout.shape).map(|(_, c)| start(c)).collect(), &device);
    let places = B::int_add(B::int_mul_scalar(nibbles, (layout.span() as i32).into()), starts);
    let exists = |col| layout.reaching(col).len() > k;
    let factor = (!(0..n).all(exists))
        .then(|| floats::<B>(cells(layout.shape).map(|(_, c)| f32::from(u8::from(exists(c)))).collect(), &device));
    Term { factor, indices: vec![places] }
}

/// Two terms: the level of the index, and minus that of the zero point.
fn uniform<B: Backend>(codes: &IntTensor<B>, layout: &UniformLayout) -> Vec<Term<B>> {
    let index = read_fields::<B>(codes, cells(layout.shape).map(|(r, c)| layout.field(r, c)), layout.bits);
    let zero = read_fields::<B>(codes, cells(layout.shape).map(|(r, c)| layout.zero_field(r, c)), layout.bits);
    let minus = floats::<B>(vec![-1.0; layout.shape.num_weights()], &codes.device());
    vec![Term { factor: None, indices: vec![index] }, Term { factor: Some(minus), indices: vec![zero] }]
}

/// Term `k` of every tile, as two: one where its pattern is stored, one where it is computed. The other one is zero.
fn matching<B: Backend>(codes: &IntTensor<B>, layout: &MatchingLayout, k: usize) -> [Term<B>; 2] {
    let (device, shape, len) = (codes.device(), layout.grid().shape, layout.grid().tile.len());
    let gains = read_fields::<B>(codes, cells(shape).map(|(r, c)| layout.gain_field(r, c)), layout.gain_bits());
    let terms = read_fields::<B>(codes, cells(shape).map(|(r, c)| layout.term_field(r, c, k)), layout.term_bits());
    let ladder = indices::<B>(vec![(layout.ladder_start() + k) as i32; shape.num_weights()], &device);
    // Sign and halvings, by their bits.
    let signed = (0..1u32 << (layout.term_bits() - layout.index_bits())).map(|code| {
        let magnitude = 0.5f32.powi((code >> 1) as i32);
        if code & 1 == 0 { magnitude } else { -magnitude }
    });
    let signed = floats::<B>(signed.collect(), &device);
    let signed =
        B::float_select(signed, 0, B::bitwise_right_shift_scalar(terms.clone(), (layout.index_bits() as i32).into()));
    // What each value of each pattern of the part is: a place in the dictionary, and a factor.
    let part = k % layout.parts();
    let (mut stored, mut computed) = (vec![(0, 0.0); layout.patterns() * len], vec![(0, 0.0); layout.patterns() * len]);
    let mut values = vec![0.0; len];
    for index in 0..layout.patterns() {
        computed_values(part as u16, index as u16, &mut values);
        for (place, value) in values.iter().enumerate() {
            match layout.value(part, index, place) {
                PatternValue::Nothing => {}
                PatternValue::Stored(at) => stored[index * len + place] = (at as i32, 1.0),
                PatternValue::Computed { inverse_norm } => {
                    computed[index * len + place] = (inverse_norm as i32, *value);
                }
            }
        }
    }
    let places = cells(shape).map(|(r, c)| layout.place(r, c) as i32).collect();
    let index = B::bitwise_and_scalar(terms, (layout.patterns() as i32 - 1).into());
    let at = B::int_add(B::int_mul_scalar(index, (len as i32).into()), indices::<B>(places, &device));
    [stored, computed].map(|table| {
        let (slots, factors): (Vec<i32>, Vec<f32>) = table.into_iter().unzip();
        let slot = B::int_select(indices::<B>(slots, &device), 0, at.clone());
        let factor = B::float_mul(B::float_select(floats::<B>(factors, &device), 0, at.clone()), signed.clone());
        Term { factor: Some(factor), indices: vec![gains.clone(), ladder.clone(), slot] }
    })
}

/// Row and column of every weight, in order.
fn cells(shape: crate::Shape) -> impl Iterator<Item = (usize, usize)> {
    let n = shape.d_input();
    (0..shape.num_weights()).map(move |i| (i / n, i % n))
}

/// The fields of `width` ≤ 31 bits in `words`, a tensor of U32; as I32.
pub(super) fn read_fields<B: Backend>(
    words: &IntTensor<B>,
    fields: impl Iterator<Item = Field>,
    width: u32,
) -> IntTensor<B> {
    let device = words.device();
    let (mut first, mut next, mut shift, mut kept, mut rest) = (vec![], vec![], vec![], vec![], vec![]);
    for field in fields {
        first.push(field.word as i32);
        next.push(field.next as i32);
        shift.push(field.shift);
        // Masked before they are shifted: a shift by 32 is not defined, and some backends check for overflow.
        kept.push((1u32 << field.shift) - 1);
        rest.push((32 - field.shift) % 32);
    }
    let low = B::int_select(words.clone(), 0, indices::<B>(first, &device));
    let high = B::int_select(words.clone(), 0, indices::<B>(next, &device));
    let low = B::bitwise_right_shift(low, unsigned::<B>(shift, &device));
    let high = B::bitwise_and(high, unsigned::<B>(kept, &device));
    let high = B::bitwise_left_shift(high, unsigned::<B>(rest, &device));
    let value = B::bitwise_and_scalar(B::bitwise_or(low, high), ((1u32 << width) - 1).into());
    B::int_cast(value, IntDType::I32)
}

fn unsigned<B: Backend>(values: Vec<u32>, device: &Device<B>) -> IntTensor<B> {
    let len = values.len();
    B::int_cast(B::int_from_data(TensorData::new(values, [len]), device), IntDType::U32)
}

fn floats<B: Backend>(values: Vec<f32>, device: &Device<B>) -> FloatTensor<B> {
    let len = values.len();
    B::float_cast(B::float_from_data(TensorData::new(values, [len]), device), FloatDType::F32)
}
