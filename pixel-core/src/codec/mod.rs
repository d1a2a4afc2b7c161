//! Codecs: how a conditioned weight becomes codes, and codes become weights.
//!
//! A codec sees a *conditioned* weight (rotated if it asks for that, every row divided by its scale, see
//! [`condition`](crate::condition)), never a file and never a model. It takes the weight in column blocks, in whatever
//! order the caller chooses, and reports what each block decodes to, so that error feedback can push the error of one
//! block into those not yet coded.
//!
//! To add a codec, write one file with a [`CodecFamily`] and list it in [`FAMILIES`]: every table, the command line and
//! the archive then know it.

pub mod additive;
pub mod bits;
mod layout;
pub mod matching;
pub mod spec;
pub mod trellis;
pub mod uniform;

pub use bits::{Field, read_bits, write_bits};
pub use layout::CodecLayout;
pub use spec::{CodecSpec, OptionSpec, Options};

use crate::error::{ConfigError, FormatError};
use crate::matrix::{MatrixRef, Shape};
use half::f16;

/// Every codec that there is, in the order in which tables show them.
pub static FAMILIES: [&dyn CodecFamily; 4] =
    [&trellis::Trellis, &additive::Additive, &matching::Matching, &uniform::Uniform];

/// The codec family called `name`.
///
/// # Errors
/// [`ConfigError::UnknownCodec`], which lists the names known.
pub fn family(name: &str) -> Result<&'static dyn CodecFamily, ConfigError> {
    FAMILIES.into_iter().find(|family| family.name() == name).ok_or_else(|| ConfigError::UnknownCodec {
        name: name.to_owned(),
        known: FAMILIES.map(|family| family.name()).join(", "),
    })
}

/// What a codec is called, which rates and options it has, and how to build it.
pub trait CodecFamily: Sync {
    /// The name in recipes, archives and tables.
    fn name(&self) -> &'static str;

    /// One sentence for help texts.
    fn summary(&self) -> &'static str;

    /// The rates in bits per weight (indices alone; scales come on top), ascending.
    fn rates(&self) -> &'static [f64];

    /// The options with their defaults and ranges.
    fn options(&self) -> &'static [OptionSpec];

    /// Whether the weight is rotated before it is coded, unless the caller says otherwise.
    fn rotates(&self) -> bool;

    /// Builds the codec; `bits` is one of [`rates`](Self::rates), `options` hold every option within its range.
    ///
    /// # Errors
    /// If options that are each in range contradict one another.
    fn build(&self, bits: f64, options: &Options) -> Result<Box<dyn Codec>, ConfigError>;
}

/// What divides each row of a weight before a codec sees it.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum RowScaling {
    /// The row's root mean square times this factor; stored as one F16 a row.
    RootMeanSquare(f32),
    /// Nothing: the codec stores scales of its own.
    None,
}

/// A codec with all its parameters fixed.
pub trait Codec: std::fmt::Debug + Send + Sync {
    /// How rows are normalised before [`encoder`](Self::encoder) sees them.
    fn row_scaling(&self) -> RowScaling;

    /// Exactly what is stored for a weight of `shape`, in the order of [`Codes::streams`].
    fn streams(&self, shape: Shape) -> Vec<StreamSpec>;

    /// Columns that are coded together. The last block of a weight may reach over its right edge.
    fn block_width(&self, shape: Shape) -> usize;

    /// Rows that are decoded together. The last band of a weight may reach over its lower edge.
    fn band_height(&self, shape: Shape) -> usize;

    /// Starts to encode `weight`, conditioned, from which per-weight patterns may be learned.
    fn encoder<'a>(&'a self, weight: MatrixRef<'_>) -> Box<dyn BlockEncoder + 'a>;

    /// Decodes band `band` into `rows`, `[rows of the band inside the weight, d_input]`. `codes` have passed
    /// [`check`](Self::check).
    fn decode_band(&self, shape: Shape, codes: &Codes, band: usize, rows: &mut [f32]);

    /// The definition of decoding: the value at `(row, col)` by itself, as `docs/format.md` says. Slow.
    fn decode_weight(&self, shape: Shape, codes: &Codes, row: usize, col: usize) -> f32;

    /// How kernels read the codes of a weight of `shape`; `None`, the default, if none can.
    fn layout(&self, _shape: Shape) -> Option<CodecLayout> {
        None
    }

    /// The values that the codes select from, in the order of [`layout`](Self::layout).
    fn dictionary(&self, _shape: Shape, _codes: &Codes) -> Vec<f32> {
        Vec::new()
    }

    /// The part of such a dictionary that is stored with the weight; the rest is the same for every weight.
    fn learned(&self, _shape: Shape, _dictionary: &[f32]) -> Vec<f16> {
        Vec::new()
    }

    /// An upper estimate of the bytes that encoding a weight of `shape` holds beside the weight and its codes.
    fn search_bytes(&self, shape: Shape) -> usize;

    /// The number of pattern indices stored for a weight of `shape`.
    fn num_indices(&self, shape: Shape) -> usize;

    /// Refuses codes that do not decode. Lengths and types have been checked against [`streams`](Self::streams).
    ///
    /// # Errors
    /// [`FormatError`] with the stream, the place and the value.
    fn check(&self, shape: Shape, codes: &Codes) -> Result<(), FormatError>;
}

/// Encodes one weight, block by block.
pub trait BlockEncoder {
    /// Encodes column block `block` (columns `block · block_width` and on) and reports what it decodes to. Both slices
    /// are `[d_output, block_width]` row-major; values beyond the right edge are zero and what is decoded there is
    /// ignored. Each block is encoded once, in any order.
    fn encode_block(&mut self, block: usize, values: &[f32], decoded: &mut [f32]);

    /// The codes, after every block has been encoded.
    fn finish(self: Box<Self>) -> Codes;
}

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

/// What a codec stores for one weight: the streams that [`Codec::streams`] announces, in that order.
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

/// Refuses rows of `row_words` words in which a bit beyond the first `row_bits` is set: what carries no meaning is zero.
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
