//! The arrays that codecs store.

use crate::error::FormatError;
use half::f16;
use safetensors::Dtype;
use std::borrow::Cow;

/// The values of a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StreamType {
    /// 32-bit words, for packed indices.
    U32,
    /// Half-precision numbers, for scales and learned patterns.
    F16,
    /// Whole numbers of 8 bits with a sign, for low-rank factors.
    I8,
}

impl StreamType {
    /// Bytes of one value.
    pub const fn size(self) -> usize {
        match self {
            Self::U32 => 4,
            Self::F16 => 2,
            Self::I8 => 1,
        }
    }

    /// The type as safetensors spells it.
    pub const fn safetensors(self) -> Dtype {
        match self {
            Self::U32 => Dtype::U32,
            Self::F16 => Dtype::F16,
            Self::I8 => Dtype::I8,
        }
    }
}

/// One stored array of a codec.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StreamSpec {
    /// The suffix under which an archive stores it: `NAME.codes`.
    pub name: &'static str,
    /// The type of its values.
    pub dtype: StreamType,
    /// Its shape; no codec stores an empty stream.
    pub shape: Vec<usize>,
}

impl StreamSpec {
    /// The number of values.
    pub fn len(&self) -> usize {
        self.shape.iter().product()
    }

    /// Whether nothing is stored.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes stored.
    pub fn num_bytes(&self) -> usize {
        self.len() * self.dtype.size()
    }
}

/// The values of one stored array.
#[derive(Debug, Clone, PartialEq)]
pub enum Stream {
    /// Packed indices.
    U32(Vec<u32>),
    /// Scales or learned patterns.
    F16(Vec<f16>),
    /// A low-rank factor.
    I8(Vec<i8>),
}

impl Stream {
    /// The type of the values.
    pub const fn dtype(&self) -> StreamType {
        match self {
            Self::U32(_) => StreamType::U32,
            Self::F16(_) => StreamType::F16,
            Self::I8(_) => StreamType::I8,
        }
    }

    /// The number of values.
    pub const fn len(&self) -> usize {
        match self {
            Self::U32(values) => values.len(),
            Self::F16(values) => values.len(),
            Self::I8(values) => values.len(),
        }
    }

    /// Whether there is no value.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The words, if the stream holds indices.
    pub fn as_words(&self) -> Option<&[u32]> {
        match self {
            Self::U32(words) => Some(words),
            Self::F16(_) | Self::I8(_) => None,
        }
    }

    /// The words of an index stream.
    ///
    /// # Panics
    /// If the stream holds something else.
    pub fn words(&self) -> &[u32] {
        match self {
            Self::U32(values) => values,
            other => panic!("a stream of {:?} where one of U32 belongs", other.dtype()),
        }
    }

    /// The numbers of a scale or pattern stream.
    ///
    /// # Panics
    /// If the stream holds something else.
    pub fn halves(&self) -> &[f16] {
        match self {
            Self::F16(values) => values,
            other => panic!("a stream of {:?} where one of F16 belongs", other.dtype()),
        }
    }
}

/// The values of a stream, borrowed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum StreamBytes<'a> {
    /// Packed indices.
    Words(&'a [u32]),
    /// Scales or patterns.
    Halves(&'a [f16]),
    /// A low-rank factor.
    Bytes(&'a [i8]),
}

impl<'a> StreamBytes<'a> {
    pub(crate) fn of(stream: &'a Stream) -> Self {
        match stream {
            Stream::U32(words) => Self::Words(words),
            Stream::F16(halves) => Self::Halves(halves),
            Stream::I8(bytes) => Self::Bytes(bytes),
        }
    }

    /// The values as little-endian bytes.
    pub fn to_le_bytes(self) -> Cow<'a, [u8]> {
        match self {
            Self::Bytes(bytes) => Cow::Borrowed(bytemuck::cast_slice(bytes)),
            Self::Words(words) if cfg!(target_endian = "little") => Cow::Borrowed(bytemuck::cast_slice(words)),
            Self::Halves(halves) if cfg!(target_endian = "little") => Cow::Borrowed(bytemuck::cast_slice(halves)),
            Self::Words(words) => words.iter().flat_map(|w| w.to_le_bytes()).collect(),
            Self::Halves(halves) => halves.iter().flat_map(|h| h.to_le_bytes()).collect(),
        }
    }
}

/// What a codec stores for one weight: the streams that [`Codec::streams`](super::Codec::streams) announces, in that
/// order.
#[derive(Debug, Clone, PartialEq)]
pub struct Codes {
    /// The stored arrays.
    pub streams: Vec<Stream>,
}

/// Refuses NaN and infinity among numbers that a decoder multiplies by.
///
/// # Errors
/// [`FormatError::NotFinite`] with the first.
pub fn check_finite(stream: &'static str, values: &[f16]) -> Result<(), FormatError> {
    match values.iter().position(|value| !value.is_finite()) {
        None => Ok(()),
        Some(index) => Err(FormatError::NotFinite { stream, index, value: values[index].to_f32() }),
    }
}

/// Refuses rows of `row_words` words in which a bit beyond the first `row_bits` is set: what carries no meaning is
/// zero.
///
/// # Errors
/// [`FormatError::Padding`] with the first such row.
pub fn check_row_padding(
    stream: &'static str,
    words: &[u32],
    row_words: usize,
    row_bits: usize,
) -> Result<(), FormatError> {
    let used = row_bits % 32;
    let is_padded = |row: &[u32]| used == 0 || row[row_words - 1] >> used == 0;
    match words.chunks_exact(row_words).position(|row| !is_padded(row)) {
        None => Ok(()),
        Some(row) => Err(FormatError::Padding { stream, row }),
    }
}

/// Refuses streams that are not as many, of the types and of the lengths that `specs` say.
///
/// # Errors
/// [`FormatError`] with the first that is missing or differs, or the number of streams.
pub(crate) fn check_streams(specs: &[StreamSpec], streams: &[Stream]) -> Result<(), FormatError> {
    for (i, spec) in specs.iter().enumerate() {
        let stream = streams.get(i).ok_or(FormatError::MissingStream { stream: spec.name })?;
        if stream.dtype() != spec.dtype || stream.len() != spec.len() {
            return Err(FormatError::StreamShape {
                stream: spec.name,
                found: stream.dtype().safetensors(),
                found_shape: vec![stream.len()],
                expected: spec.dtype,
                expected_shape: spec.shape.clone(),
            });
        }
    }
    match streams.len() {
        found if found > specs.len() => Err(FormatError::ExtraStreams { found, expected: specs.len() }),
        _ => Ok(()),
    }
}
