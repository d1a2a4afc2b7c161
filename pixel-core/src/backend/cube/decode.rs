//! One weight from its codes: the integer part in 32-bit words, the same on every device.

use crate::codec::CodecLayout;
use crate::codec::matching::MatchingLayout;
use crate::codec::nibble::{EIGHT, FIELD_BYTES, NibbleLayout, PATTERNS, STRIP, Windows};
use crate::codec::trellis::{TILE_LEN, TrellisLayout};
use crate::codec::uniform::UniformLayout;
use cubecl::prelude::*;

/// The weight at `(row, col)`, scaled, in the rotated basis.
#[cube]
pub(super) fn weight(
    codes: &Tensor<u32>,
    scales: &Tensor<f32>,
    dictionary: &Tensor<f32>,
    row: usize,
    col: usize,
    #[comptime] layout: CodecLayout,
) -> f32 {
    let per_row = comptime!(layout.scales_per_row());
    let group = comptime!(layout.scale_group());
    value(codes, dictionary, row, col, layout) * scales[row * per_row + col / group]
}

/// The weight at `(row, col)` in units of its scale.
#[cube]
pub(super) fn value(
    codes: &Tensor<u32>,
    dictionary: &Tensor<f32>,
    row: usize,
    col: usize,
    #[comptime] layout: CodecLayout,
) -> f32 {
    match comptime!(layout) {
        CodecLayout::Trellis(layout) => trellis(codes, dictionary, row, col, layout),
        CodecLayout::Nibble(layout) => summed(codes, dictionary, row, col, layout),
        CodecLayout::Matching(layout) => matching(codes, dictionary, row, col, layout),
        CodecLayout::Uniform(layout) => uniform(codes, dictionary, row, col, layout),
    }
}

/// Bits `shift … shift + width` of the two words, `width` ≤ 31.
#[cube]
pub(super) fn field(low: u32, high: u32, shift: u32, #[comptime] width: u32) -> u32 {
    let mask = comptime!((1u32 << width) - 1);
    // A shift by 32 is not defined; where `shift` is 0, the second word is not needed.
    let kept = high & ((1u32 << shift) - 1u32);
    ((low >> shift) | (kept << ((32u32 - shift) % 32u32))) & mask
}

/// The field of `width` bits at bit `offset` behind word `start`, in `words` words. Words and bits are kept apart: the
/// bits of a large table are more than 32-bit offsets can count.
#[cube]
fn read(codes: &Tensor<u32>, start: usize, offset: usize, #[comptime] words: usize, #[comptime] width: u32) -> u32 {
    let word = start + offset / 32;
    let next = select(word + 1 < words, word + 1, word);
    field(codes[word], codes[next], (offset % 32) as u32, width)
}

/// The hash of the window, times the unit.
#[cube]
fn trellis(
    codes: &Tensor<u32>,
    dictionary: &Tensor<f32>,
    row: usize,
    col: usize,
    #[comptime] layout: TrellisLayout,
) -> f32 {
    let rows = comptime!(layout.grid.tile.rows);
    let cols = comptime!(layout.grid.tile.cols);
    let tile_cols = comptime!(layout.grid.tile_cols());
    let words = comptime!(layout.tile_words());
    let weights = comptime!(layout.step.weights);
    let last = comptime!(TILE_LEN / layout.step.weights - 1);
    let bits = comptime!(layout.step.bits as usize);

    let base = (row / rows * tile_cols + col / cols) * words;
    let within = row % rows * cols + col % cols;
    let bit = (last - within / weights) * bits;
    let low = codes[base + bit / 32];
    let high = codes[base + (bit / 32 + 1) % words];
    let mixed = mixed(field(low, high, (bit % 32) as u32, layout.window), layout);
    let integer = if comptime!(weights == 2) {
        let half = (within % 2) as u32 * 16u32;
        pair_of(mixed, half)
    } else {
        single_of(mixed)
    };
    integer * dictionary[0]
}

/// The hash of a window.
#[cube]
fn mixed(window: u32, #[comptime] layout: TrellisLayout) -> u32 {
    let product = window * comptime!(layout.hash.multiplier);
    product ^ (product >> 16u32)
}

/// `integer`, of less than 23 bits, minus `centre`: the bits of the sum with 2²³ are the integer's, and to make a float
/// of them takes no conversion.
#[cube]
fn centred(integer: u32, #[comptime] centre: u32) -> f32 {
    f32::reinterpret(integer | 0x4B00_0000u32) - comptime!((8_388_608 + centre) as f32)
}

/// The sum of the nibbles of the half of a hash that begins at bit `half`, centred.
#[cube]
fn pair_of(mixed: u32, half: u32) -> f32 {
    let pairs = (mixed & 0x0F0F_0F0Fu32) + ((mixed >> 4u32) & 0x0F0F_0F0Fu32);
    let sums = pairs + (pairs >> 8u32);
    centred((sums >> half) & 0xFFu32, 30u32)
}

/// The sum of the bytes of a hash, centred.
#[cube]
fn single_of(mixed: u32) -> f32 {
    let pairs = (mixed & 0x00FF_00FFu32) + ((mixed >> 8u32) & 0x00FF_00FFu32);
    centred((pairs & 0xFFFFu32) + (pairs >> 16u32), 510u32)
}

/// Whether the windows of eight weights may need a third word.
pub(super) const fn needs_three(layout: &TrellisLayout) -> bool {
    (8 / layout.step.weights - 1) * layout.step.bits as usize + layout.window as usize > 32
}

/// Eight weights of one row in units of the dictionary's value, whose bits begin at bit `shift` of three words that
/// follow on each other.
#[cube]
pub(super) fn windows(
    first: u32,
    second: u32,
    third: u32,
    shift: u32,
    values: &mut Array<f32>,
    #[comptime] layout: TrellisLayout,
) {
    let weights = comptime!(layout.step.weights);
    let steps = comptime!(8 / layout.step.weights);
    let bits = comptime!(layout.step.bits as usize);
    let low = field32(first, second, shift);
    let high = if comptime!(needs_three(&layout)) { field32(second, third, shift) } else { 0u32.runtime() };
    #[unroll]
    for step in 0..steps {
        let window = field(low, high, comptime!((step * bits) as u32).runtime(), layout.window);
        let mixed = mixed(window, layout);
        // The last of the eight comes first.
        let at = comptime!((steps - 1 - step) * weights);
        if comptime!(weights == 2) {
            values[at] = pair_of(mixed, 0u32.runtime());
            values[comptime!(at + 1)] = pair_of(mixed, 16u32.runtime());
        } else {
            values[at] = single_of(mixed);
        }
    }
}

/// 32 bits of two words from bit `shift` on. A shift by 32 is not defined, two are.
#[cube]
fn field32(low: u32, high: u32, shift: u32) -> u32 {
    (low >> shift) | ((high << 1u32) << (31u32 - shift))
}

/// The sum of the patterns that the nibbles select which reach the weight: see `NibbleLayout::reaching`.
#[cube]
fn summed(
    codes: &Tensor<u32>,
    dictionary: &Tensor<f32>,
    row: usize,
    col: usize,
    #[comptime] layout: NibbleLayout,
) -> f32 {
    let per_eight = comptime!(layout.per_eight);
    let grouped = comptime!(layout.windows == Windows::Grouped);
    let depth = comptime!(layout.depth());
    let period = comptime!(layout.period());
    let span = comptime!(layout.span());
    let end =
        if grouped { (col / EIGHT + 1) * per_eight } else { ((col + 1) * per_eight + comptime!(EIGHT - 1)) / EIGHT };
    let mut sum = 0.0f32;
    for k in 0..depth {
        // At the left edge fewer reach it.
        if end + k >= depth {
            let t = end + k - depth;
            let place = if grouped { col % EIGHT } else { col - t * EIGHT / per_eight };
            sum += dictionary[(t % period * PATTERNS + nibble(codes, row, t, layout)) * span + place];
        }
    }
    sum
}

/// Nibble `t` of row `row`: see `NibbleLayout::field`.
#[cube]
fn nibble(codes: &Tensor<u32>, row: usize, t: usize, #[comptime] layout: NibbleLayout) -> usize {
    let words = comptime!(layout.strip_words());
    let byte = t * FIELD_BYTES + row % FIELD_BYTES;
    let word = codes[row / STRIP * words + byte / 4];
    let shift = byte % 4 * 8 + row % STRIP / FIELD_BYTES * 4;
    ((word >> (shift as u32)) & 15u32) as usize
}

/// The level of the index, minus that of the zero point.
#[cube]
fn uniform(
    codes: &Tensor<u32>,
    dictionary: &Tensor<f32>,
    row: usize,
    col: usize,
    #[comptime] layout: UniformLayout,
) -> f32 {
    let bits = comptime!(layout.bits as usize);
    let row_words = comptime!(layout.row_words());
    let group = comptime!(layout.group);
    let words = comptime!(layout.code_words() + layout.zero_words());
    let index = read(codes, row * row_words, col * bits, words, layout.bits);
    dictionary[index as usize] - dictionary[zero_index(codes, row, col / group, layout)]
}

/// The zero point of group `group` of row `row`.
#[cube]
pub(super) fn zero_index(codes: &Tensor<u32>, row: usize, group: usize, #[comptime] layout: UniformLayout) -> usize {
    let bits = comptime!(layout.bits as usize);
    let zeros = comptime!(layout.code_words());
    let words = comptime!(layout.code_words() + layout.zero_words());
    // Zero points have no gaps between rows: 32 of them fill `bits` words.
    let place = row * comptime!(layout.num_groups()) + group;
    read(codes, zeros + place / 32 * bits, place % 32 * bits, words, layout.bits) as usize
}

/// The sum over the terms of the tile.
#[cube]
fn matching(
    codes: &Tensor<u32>,
    dictionary: &Tensor<f32>,
    row: usize,
    col: usize,
    #[comptime] layout: MatchingLayout,
) -> f32 {
    let rows = comptime!(layout.grid().tile.rows);
    let cols = comptime!(layout.grid().tile.cols);
    let len = comptime!(layout.grid().tile.len());
    let band_words = comptime!(layout.band_words());
    let tile_bits = comptime!(layout.tile_bits());
    let words = comptime!(layout.num_words());
    let gain_bits = comptime!(layout.gain_bits());
    let term_bits = comptime!(layout.term_bits());
    let index_bits = comptime!(layout.index_bits());
    let terms = comptime!(layout.terms());
    let parts = comptime!(layout.parts());
    let stored = comptime!(layout.stored());
    let computed = comptime!(layout.computed());
    let ladder = comptime!(layout.ladder_start());
    let patterns = comptime!(layout.stored_start());
    let norms = comptime!(layout.norms_start());

    let start = row / rows * band_words;
    let offset = col / cols * tile_bits;
    let place = row % rows * cols + col % cols;
    let gain = dictionary[read(codes, start, offset, words, gain_bits) as usize];
    let mut sum = 0.0f32;
    for k in 0..terms {
        let at = offset + comptime!(gain_bits as usize) + k * comptime!(term_bits as usize);
        let term = read(codes, start, at, words, term_bits);
        let index = (term & comptime!((1u32 << index_bits) - 1)) as usize;
        let code = term >> index_bits;
        if index > 0 {
            let magnitude = gain * dictionary[ladder + k] / f32::cast_from(1u32 << (code >> 1u32));
            let scale = select(code & 1u32 == 0u32, magnitude, -magnitude);
            if index <= stored {
                sum += scale * dictionary[patterns + (index - 1) * len + place];
            } else {
                let part = k % parts;
                let inverse_norm = dictionary[norms + part * computed + index - comptime!(1 + stored)];
                sum += scale * inverse_norm * computed_value(part as u32, index as u32, place, len);
            }
        }
    }
    sum
}

/// Value `place` of computed pattern `index` of part `part`, before the division by the norm.
#[cube]
fn computed_value(part: u32, index: u32, place: usize, #[comptime] len: usize) -> f32 {
    let seed = mix(part * 65536u32 + index);
    let mut value = nibbles(seed, place as u32);
    // A pattern whose values are all zero is one at its first place. Of eight values that never happens.
    if comptime!(len < 8) {
        let mut zeros = 0usize;
        for i in 0..len {
            if nibbles(seed, i as u32) == 0.0 {
                zeros += 1;
            }
        }
        if zeros == len && place == 0 {
            value = 1.0;
        }
    }
    value
}

#[cube]
fn nibbles(seed: u32, place: u32) -> f32 {
    let hash = mix(seed + place * 0x9E37_79B9u32);
    let sum = (hash & 15u32) + ((hash >> 4u32) & 15u32) + ((hash >> 8u32) & 15u32) + ((hash >> 12u32) & 15u32);
    f32::cast_from(sum) - 30.0
}

#[cube]
fn mix(x: u32) -> u32 {
    let a = (x ^ (x >> 16u32)) * 0x7FEB_352Du32;
    let b = (a ^ (a >> 15u32)) * 0x846C_A68Bu32;
    b ^ (b >> 16u32)
}
