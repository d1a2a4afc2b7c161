//! Keys and values of all tokens, and how they are rounded.

use super::for_each;
use super::prepare::{Call, Part};
use super::soften::LANES;
use super::spec::CacheFormat;
use crate::disjoint::Disjoint;
use crate::math::simd::{Simd, SimdLevel, for_every_level};
use crate::scratch::Scratch;

/// New tokens whose keys and values one task writes.
const CHUNK: usize = 32;

/// Nanoseconds, roughly, in which a value is prepared and written.
const WRITE_NANOSECONDS: usize = 1;

/// The least of the largest magnitudes that are rounded: below it the inverse of a scale leaves f32's range.
pub(super) const SMALLEST_PEAK: f32 = 1e-30;

/// The cache of a batch of texts, for one call.
#[derive(Debug)]
pub struct CacheMut<'a> {
    /// Tokens of each text that there is room for.
    pub capacity: usize,
    /// The keys.
    pub keys: HeldMut<'a>,
    /// The values.
    pub values: HeldMut<'a>,
}

/// Keys or values, as a [`CacheFormat`] holds them.
#[derive(Debug)]
pub enum HeldMut<'a> {
    /// `[batch, n_kv_heads, capacity, d_head]`.
    F32(&'a mut [f32]),
    /// Heads turned by the rotation of the format and rounded to integers of `bits` bits, 8 or 4.
    Rounded {
        /// `[batch, n_kv_heads, capacity, d_head · bits / 32]`: value `i` of a head, plus 128 or 8, is in the bits from
        /// `i · bits` on of its words, the lowest of the first word first.
        words: &'a mut [u32],
        /// What a one stands for, `[batch, n_kv_heads, capacity]`.
        scales: &'a mut [f32],
    },
}

/// A cache that is read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cache<'a> {
    pub(super) keys: Held<'a>,
    pub(super) values: Held<'a>,
}

/// Keys or values that are read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Held<'a> {
    format: CacheFormat,
    d_head: usize,
    floats: &'a [f32],
    words: &'a [u32],
    scales: &'a [f32],
}

impl<'a> CacheMut<'a> {
    /// Writes the keys and values of the new tokens.
    pub(super) fn write(self, call: &Call<'_>) -> Cache<'a> {
        Cache { keys: self.keys.write(call, Part::Key), values: self.values.write(call, Part::Value) }
    }
}

impl<'a> HeldMut<'a> {
    fn write(self, call: &Call<'_>, part: Part) -> Held<'a> {
        let (format, d_head) = (call.spec.format, call.spec.d_head);
        let heads = call.tokens.batch * call.spec.n_kv_heads * call.capacity;
        match (self, format) {
            (Self::F32(floats), CacheFormat::F32) => {
                assert_eq!(floats.len(), heads * d_head, "values of the cache");
                let room = Disjoint::new(floats);
                for_each_new(call, |at, text| {
                    // SAFETY: every head of every token has a place of its own.
                    let head = unsafe { room.part(at * d_head..(at + 1) * d_head) };
                    call.prepare(part, text, head);
                });
                Held { format, d_head, floats, words: &[], scales: &[] }
            }
            (Self::Rounded { words, scales }, CacheFormat::Bits8 | CacheFormat::Bits4) => {
                let n = format.words(d_head);
                assert_eq!((words.len(), scales.len()), (heads * n, heads), "words and scales of the cache");
                let (word_room, scale_room) = (Disjoint::new(words), Disjoint::new(scales));
                for_each_new(call, |at, text| {
                    let mut head = Scratch::new(d_head);
                    call.prepare(part, text, &mut head);
                    // SAFETY: every head of every token has a place of its own.
                    let (words, scale) = unsafe { (word_room.part(at * n..(at + 1) * n), scale_room.part(at..at + 1)) };
                    scale[0] = round(call, &head, words);
                });
                Held { format, d_head, floats: &[], words, scales }
            }
            (_, format) => panic!("the cache is not held as {format:?}"),
        }
    }
}

/// Calls `run` with the place of every key head of every new token, in heads, and its text, token and head.
fn for_each_new(call: &Call<'_>, run: impl Fn(usize, [usize; 3]) + Sync) {
    let (seq, n_kv_heads) = (call.tokens.seq, call.spec.n_kv_heads);
    let chunks = seq.div_ceil(CHUNK);
    let pairs = call.tokens.batch * n_kv_heads;
    for_each(pairs * chunks, pairs * seq * call.spec.d_head * WRITE_NANOSECONDS, |task| {
        let (pair, chunk) = (task / chunks, task % chunks);
        for t in chunk * CHUNK..seq.min((chunk + 1) * CHUNK) {
            let at = pair * call.capacity + call.tokens.start + t;
            run(at, [pair / n_kv_heads, t, pair % n_kv_heads]);
        }
    });
}

/// Rounds a head to the integers of its format, and returns their scale: NaN if a value is not finite.
fn round(call: &Call<'_>, head: &[f32], words: &mut [u32]) -> f32 {
    let format = call.spec.format;
    let peak = peak(call.simd, head);
    let largest = f32::from(format.largest());
    let factor = if peak >= SMALLEST_PEAK && peak.is_finite() { largest / peak } else { 0.0 };
    let mut codes = Scratch::<u8>::new(head.len());
    encode(call.simd, head, factor, format.offset(), &mut codes);
    match format {
        CacheFormat::Bits4 => pack_nibbles(call.simd, &codes, words),
        _ => words.iter_mut().zip(codes.as_chunks().0).for_each(|(word, codes)| *word = u32::from_le_bytes(*codes)),
    }
    if peak.is_finite() { peak / largest } else { f32::NAN }
}

for_every_level! {
    /// The largest magnitude; not finite if a value is not.
    fn peak(values: &[f32]) -> f32 {
        magnitude(values)
    }
}

/// See [`peak`]: as integers, because magnitudes are ordered like their bits, NaN above infinity.
#[inline(always)]
pub(super) fn magnitude(values: &[f32]) -> f32 {
    f32::from_bits(values.iter().fold(0, |peak, value| peak.max(value.to_bits() & 0x7FFF_FFFF)))
}

for_every_level! {
    /// The nearest integers of `values · factor`, plus `offset`.
    fn encode(values: &[f32], factor: f32, offset: u8, codes: &mut [u8]) -> () {
        /// Added, it leaves the nearest integer in the lower bits.
        const MAGIC: f32 = 12_582_912.0;
        for (code, value) in codes.iter_mut().zip(values) {
            // A head that cannot be rounded may have any code.
            *code = ((value * factor + MAGIC).to_bits() as u8).wrapping_add(offset);
        }
    }
}

for_every_level! {
    fn pack_nibbles(codes: &[u8], words: &mut [u32]) -> () {
        for (word, codes) in words.iter_mut().zip(codes.as_chunks::<8>().0) {
            *word = (0..8).map(|i| u32::from(codes[i]) << (4 * i)).sum();
        }
    }
}

impl<'a> Held<'a> {
    /// The heads of the tokens `[first, first + n)` as they lie, the first being head number `first`, `[n, d_head]`.
    pub(super) fn floats(&self, first: usize, n: usize) -> &'a [f32] {
        &self.floats[first * self.d_head..][..n * self.d_head]
    }

    /// The scales of heads, `[n]`.
    pub(super) fn scales(&self, first: usize, n: usize) -> &'a [f32] {
        &self.scales[first..][..n]
    }

    /// The integers of heads, offset included, `[n, d_head]`: as they lie, or unpacked into `room`.
    pub(super) fn codes<'b>(&self, call: &Call<'_>, first: usize, n: usize, room: &'b mut [u8]) -> &'b [u8]
    where
        'a: 'b,
    {
        let per_head = self.format.words(self.d_head);
        let words = &self.words[first * per_head..][..n * per_head];
        if cfg!(target_endian = "little") && self.format == CacheFormat::Bits8 {
            return bytemuck::cast_slice(words);
        }
        let room = &mut room[..n * self.d_head];
        match self.format {
            CacheFormat::Bits4 => unpack(call.simd, words, room),
            _ => room.as_chunks_mut().0.iter_mut().zip(words).for_each(|(codes, word)| *codes = word.to_le_bytes()),
        }
        room
    }

    /// Asks for heads that are read next, as far as there are any: the processor itself does not look beyond the end of
    /// a page.
    pub(super) fn prefetch(&self, first: usize, n: usize) {
        #[cfg(target_arch = "x86_64")]
        {
            let per_head = 4 * self.format.words(self.d_head);
            let bytes: &[u8] = match self.format {
                CacheFormat::F32 => bytemuck::cast_slice(self.floats),
                CacheFormat::Bits8 | CacheFormat::Bits4 => bytemuck::cast_slice(self.words),
            };
            let (from, to) = (first * per_head, (first + n) * per_head);
            super::x86_64::prefetch(&bytes[from.min(bytes.len())..to.min(bytes.len())]);
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = (first, n);
    }

    /// Writes the heads with numbers `heads` to `rows`, `[heads, width]`, zeros from `d_head` on; and returns whether
    /// all are finite.
    pub(super) fn rows(
        &self,
        call: &Call<'_>,
        heads: impl Iterator<Item = usize>,
        rows: &mut [f32],
        width: usize,
    ) -> bool {
        let mut room = Scratch::<u8>::new(self.d_head);
        let mut finite = true;
        for (head, row) in heads.zip(rows.chunks_exact_mut(width)) {
            let (values, padding) = row.split_at_mut(self.d_head);
            padding.fill(0.0);
            if self.format == CacheFormat::F32 {
                values.copy_from_slice(self.floats(head, 1));
                finite &= peak(call.simd, values).is_finite();
            } else {
                let codes = self.codes(call, head, 1, &mut room);
                let scale = self.scales[head];
                decode(call.simd, codes, scale, self.format.offset(), values);
                finite &= scale.is_finite();
            }
        }
        finite
    }
}

/// The integers of 4 bits of words, each in a byte.
fn unpack(simd: Simd, words: &[u32], codes: &mut [u8]) {
    #[cfg(target_arch = "x86_64")]
    let done = if simd.level() >= SimdLevel::Avx512 { super::x86_64::unpack_nibbles(simd, words, codes) } else { 0 };
    #[cfg(not(target_arch = "x86_64"))]
    let done = 0;
    unpack_nibbles(simd, &words[done / 8..], &mut codes[done..]);
}

for_every_level! {
    fn unpack_nibbles(words: &[u32], codes: &mut [u8]) -> () {
        for (word, codes) in words.iter().zip(codes.as_chunks_mut::<8>().0) {
            for (byte, codes) in word.to_le_bytes().into_iter().zip(codes.as_chunks_mut::<2>().0) {
                *codes = [byte & 15, byte >> 4];
            }
        }
    }
}

for_every_level! {
    fn decode(codes: &[u8], scale: f32, offset: u8, values: &mut [f32]) -> () {
        for (value, code) in values.iter_mut().zip(codes) {
            *value = (i32::from(*code) - i32::from(offset)) as f32 * scale;
        }
    }
}

/// The length of a row that holds a head, a multiple of [`LANES`].
pub(super) const fn padded(d_head: usize) -> usize {
    d_head.next_multiple_of(LANES)
}
