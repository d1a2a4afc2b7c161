//! Codecs: how a conditioned weight becomes codes, and codes become weights.
//!
//! A codec sees a *conditioned* weight (rotated if it asks for that, every row divided by its scale, see
//! [`condition`](crate::encode::condition)), never a file and never a model. It takes the weight in column blocks, in
//! whatever order the caller chooses, and reports what each block decodes to, so that error feedback can push the error
//! of one block into those not yet coded. A codec whose codes depend on all columns before takes whole rows instead,
//! and feeds back what it is told to ([`RowFeedback`]).
//!
//! To add a codec, write one file with a [`CodecFamily`] and list it in [`FAMILIES`]: every table, the command line and
//! the archive then know it. A [`CodecLayout`] of its own gives it a fast decoder and kernels, the same for files and
//! layers; without one it decodes by its definition.

pub mod additive;
pub mod bits;
pub mod lapped;
mod layout;
pub mod matching;
pub mod nibble;
pub mod spec;
mod stream;
pub mod trellis;
pub mod uniform;

pub use bits::{Field, read_bits, write_bits};
pub(crate) use layout::Readable;
pub use layout::{CodecLayout, LayoutTables};
pub use spec::{CodecSpec, OptionSpec, Options};
pub(crate) use stream::check_streams;
pub use stream::{Codes, Stream, StreamBytes, StreamSpec, StreamType, check_finite, check_row_padding};

use crate::error::{ConfigError, FormatError};
use crate::matrix::{MatrixRef, Shape};
use half::f16;

/// The codec of layers where none is asked for: near the trellis in quality, at the speed of `additive`.
pub const DEFAULT: &str = "lapped";

/// Every codec, in the order in which tables show them.
pub static FAMILIES: [&dyn CodecFamily; 5] =
    [&trellis::Trellis, &additive::Additive, &lapped::Lapped, &matching::Matching, &uniform::Uniform];

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

    /// Columns that are coded together; 1 for a codec that takes [rows](WeightEncoder::Rows). The last block of a
    /// weight may reach over its right edge.
    fn block_width(&self, shape: Shape) -> usize;

    /// Starts to encode `weight`, conditioned, from which per-weight patterns may be learned.
    fn encoder<'a>(&'a self, weight: MatrixRef<'_>) -> WeightEncoder<'a>;

    /// The definition of decoding: the value at `(row, col)` by itself, as `docs/format.md` says. `codes` have passed
    /// [`check`](Self::check). Slow: it is what decodes a codec without a [`layout`](Self::layout), and what the
    /// decoders of all others are tested against.
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

    /// The shape of the patterns that a weight of `shape` learns and stores; `None`, the default, if the codec learns
    /// none.
    fn pattern_shape(&self, _shape: Shape) -> Option<Shape> {
        None
    }

    /// The same codec, which stores `patterns` in place of those that it would learn from a weight: as many as its
    /// option `learned` says, `[learned, pattern_shape]` row-major, each of norm 1. `None`, the default, if the codec
    /// learns none.
    fn with_patterns(&self, _patterns: Vec<f32>) -> Option<Box<dyn Codec>> {
        None
    }

    /// An upper estimate of the bytes that encoding a weight of `shape` holds in addition to the weight and its codes.
    fn search_bytes(&self, shape: Shape) -> usize;

    /// The number of pattern indices stored for a weight of `shape`.
    fn num_indices(&self, shape: Shape) -> usize;

    /// Refuses codes that do not decode. Lengths and types have been checked against [`streams`](Self::streams).
    ///
    /// # Errors
    /// [`FormatError`] with the stream, the place and the value.
    fn check(&self, shape: Shape, codes: &Codes) -> Result<(), FormatError>;
}

/// How a codec takes a weight.
pub enum WeightEncoder<'a> {
    /// In blocks of columns, whose order does not matter to it.
    Blocks(Box<dyn BlockEncoder + 'a>),
    /// In whole rows, since the code of a column depends on all before it.
    Rows(Box<dyn RowEncoder + 'a>),
}

impl<'a> WeightEncoder<'a> {
    /// The encoder of a codec that takes blocks.
    pub fn into_blocks(self) -> Option<Box<dyn BlockEncoder + 'a>> {
        match self {
            Self::Blocks(encoder) => Some(encoder),
            Self::Rows(_) => None,
        }
    }
}

/// Linear feedback of a row's residuals: the target of column `j` is its weight and `Σ_{i<j} r_i·F_ij`, where `r_i` is
/// what the target of column `i` is more than what it is coded as.
#[derive(Debug, Clone, PartialEq)]
pub struct RowFeedback {
    d_input: usize,
    /// `F`, `[d_input, d_input]` row-major.
    factor: Vec<f32>,
}

impl RowFeedback {
    /// Feedback by `factor`, `[d_input, d_input]` row-major, of which only what is right of the diagonal counts.
    ///
    /// # Panics
    /// If `factor` has another length.
    pub fn new(d_input: usize, factor: Vec<f32>) -> Self {
        assert_eq!(factor.len(), d_input * d_input, "values of the factor");
        Self { d_input, factor }
    }

    /// Whether no column hears of another: as if there were no feedback.
    pub fn is_zero(&self) -> bool {
        let (n, mut rows) = (self.d_input, self.factor.chunks_exact(self.d_input).enumerate());
        rows.all(|(i, row)| row[(i + 1).min(n)..].iter().all(|factor| *factor == 0.0))
    }

    /// What the residual of column `i` adds to each target, followed by the rows of the columns behind it.
    pub fn row(&self, i: usize) -> &[f32] {
        &self.factor[i * self.d_input..]
    }
}

/// Encodes one weight, row by row.
pub trait RowEncoder {
    /// Encodes every row of `weight`, the one that the encoder was made for, and hands to `sink` its place and what it
    /// decodes to, `[d_input]`. Residuals are fed back as `feedback` says.
    fn encode_rows(
        self: Box<Self>,
        weight: MatrixRef<'_>,
        feedback: Option<&RowFeedback>,
        sink: &mut dyn FnMut(usize, &[f32]),
    ) -> Codes;
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

/// What `codes` decode to, in units of the row scales, by the one decoder.
#[cfg(test)]
pub(crate) fn decode(codec: &dyn Codec, shape: Shape, codes: &Codes) -> crate::matrix::Matrix {
    let layout = codec.layout(shape).expect("a codec with kernels");
    let words: Vec<u32> = codes.streams.iter().filter_map(Stream::as_words).flatten().copied().collect();
    let (words, dictionary) = (layout.arrange(&words), codec.dictionary(shape, codes));
    let mut decoded = crate::matrix::Matrix::zeros(shape);
    let (tables, simd) = (layout.tables(), crate::math::simd::Simd::detect());
    let readable = Readable { layout: &layout, tables: &tables, words: &words, dictionary: &dictionary };
    let band_len = layout.band_height() * shape.d_input();
    for (band, rows) in decoded.as_mut_slice().chunks_mut(band_len).enumerate() {
        readable.decode_columns(simd, band, 0..shape.d_input(), rows);
    }
    decoded
}
