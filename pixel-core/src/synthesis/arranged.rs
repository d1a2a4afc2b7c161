//! The codes of a packed weight as decoders read them.

use crate::codec::{CodecLayout, Stream};
use crate::packed::{PackedWeight, ROW_SCALES};
use half::f16;
use std::borrow::Cow;

/// Words in the order of a layout, scales as they are stored, and the values that the words select from.
#[derive(Debug)]
pub(super) struct Arranged<'a> {
    pub(super) layout: CodecLayout,
    pub(super) words: Cow<'a, [u32]>,
    /// `[d_output, layout.scales_per_row()]`.
    pub(super) scales: &'a [f16],
    pub(super) dictionary: Vec<f32>,
}

impl<'a> Arranged<'a> {
    /// The codes of `packed`; `None` if its codec has no layout. Words are copied where the layout has another order,
    /// or joins several streams.
    pub(super) fn new(packed: &'a PackedWeight) -> Option<Self> {
        let (shape, codec) = (packed.shape(), packed.codec());
        let layout = codec.layout(shape)?;
        let streams = &packed.codes().streams;
        let mut scales = packed.row_scales();
        for (spec, stream) in codec.streams(shape).iter().zip(streams) {
            if let Stream::F16(values) = stream
                && spec.name == ROW_SCALES
            {
                scales = values;
            }
        }
        let mut words = streams.iter().filter_map(Stream::as_words);
        let first = words.next().unwrap_or_default();
        let words = match words.next() {
            None => layout.arrange(first),
            Some(_) => {
                let all: Vec<u32> = streams.iter().filter_map(Stream::as_words).flatten().copied().collect();
                Cow::Owned(layout.arrange(&all).into_owned())
            }
        };
        Some(Self { layout, words, scales, dictionary: codec.dictionary(shape, packed.codes()) })
    }
}
