//! Typed errors: the party at fault decides the type.

use crate::codec::StreamType;
use crate::matrix::Shape;
use safetensors::Dtype;

/// A shape that no matrix can have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ShapeError {
    /// A side is zero.
    #[error("a matrix of {d_output}×{d_input} holds no weights")]
    Empty {
        /// Rows asked for.
        d_output: usize,
        /// Columns asked for.
        d_input: usize,
    },
    /// There are more than 2⁴⁸ weights.
    #[error("a matrix of {d_output}×{d_input} is too large to address")]
    TooLarge {
        /// Rows asked for.
        d_output: usize,
        /// Columns asked for.
        d_input: usize,
    },
    /// The data do not fill the shape.
    #[error("a matrix of {shape} needs {} weights, {len} given", shape.num_weights())]
    Length {
        /// The shape asked for.
        shape: Shape,
        /// The values given.
        len: usize,
    },
}

/// The numbers that a field may hold, as messages state them.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NumberRange {
    low: f64,
    high: f64,
    /// Whether `low` itself is excluded.
    above: bool,
}

impl NumberRange {
    /// The numbers above `low`, up to `high`.
    pub const fn above(low: f64, high: f64) -> Self {
        Self { low, high, above: true }
    }

    fn contains(&self, value: f64) -> bool {
        value <= self.high && if self.above { value > self.low } else { value >= self.low }
    }
}

impl<T: Number> From<std::ops::RangeInclusive<T>> for NumberRange {
    fn from(range: std::ops::RangeInclusive<T>) -> Self {
        Self { low: range.start().to_f64(), high: range.end().to_f64(), above: false }
    }
}

impl<T: Number> From<std::ops::RangeFrom<T>> for NumberRange {
    fn from(range: std::ops::RangeFrom<T>) -> Self {
        Self { low: range.start.to_f64(), high: f64::INFINITY, above: false }
    }
}

impl std::fmt::Display for NumberRange {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { low, high, above } = self;
        match (above, high.is_infinite()) {
            (false, false) => write!(f, "{low} to {high}"),
            (false, true) => write!(f, "{low} and above"),
            (true, false) => write!(f, "the numbers above {low}, at most {high}"),
            (true, true) => write!(f, "the numbers above {low}"),
        }
    }
}

/// A number as an error shows it.
pub trait Number: Copy {
    /// The value, rounded to nearest beyond 2⁵³.
    fn to_f64(self) -> f64;
}

macro_rules! numbers {
    ($($type:ty),*) => {
        $(impl Number for $type {
            fn to_f64(self) -> f64 {
                self as f64
            }
        })*
    };
}

numbers!(u32, u64, usize, i32, i64, f32, f64);

/// An invalid configuration.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number lies outside its range.
    #[error("{field} = {value} is outside {range}")]
    Range {
        /// The field, as it is spelled in a file.
        field: &'static str,
        /// The value given.
        value: f64,
        /// The values allowed.
        range: NumberRange,
    },
    /// As many columns are to be protected as the weight has, or more.
    #[error("protect = {count} is outside 0 to {}: the weight has {d_input} columns, and codes need one", d_input - 1)]
    Protect {
        /// The columns asked for.
        count: usize,
        /// The columns of the weight.
        d_input: usize,
    },
    /// A low-rank part of a rank that the weight cannot have.
    #[error("rank = {rank} is outside 1 to {}: the weight is {shape}", shape.d_output().min(shape.d_input()))]
    Rank {
        /// The rank asked for.
        rank: usize,
        /// The shape of the weight.
        shape: Shape,
    },
    /// The low-rank part given is not the one requested.
    #[error("a low-rank part of rank {asked} is asked for, one of rank {given} is given (0: none)")]
    LowRankPart {
        /// The rank of the request.
        asked: usize,
        /// The rank of the part.
        given: usize,
    },
    /// Sides of patterns out of order, or beyond the matrix.
    #[error("pattern_sizes = {sizes:?}: the sides of patterns ascend, from 1 to matrix_size = {matrix_size}")]
    PatternSizes {
        /// The sides given.
        sizes: Vec<usize>,
        /// The side of the largest matrix.
        matrix_size: usize,
    },
    /// The codec does not go with a dictionary of patterns.
    #[error("codec {codec} over a dictionary: {message}")]
    Dictionary {
        /// The codec.
        codec: String,
        /// Why.
        message: String,
    },
    /// A tile too small for a term.
    #[error("tile = {tile} holds {available} bits at {bits} bits per weight, a term takes {needed}")]
    Tile {
        /// The side of the tile.
        tile: usize,
        /// The rate.
        bits: f64,
        /// Bits of a tile.
        available: u32,
        /// Bits of a gain and one term.
        needed: u32,
    },
    /// A field that has no effect together with the rest of the configuration.
    #[error("{field} has no effect: {reason}")]
    NoEffect {
        /// The field, as it is spelled in a file.
        field: &'static str,
        /// Why.
        reason: &'static str,
    },
    /// No codec of this name is known.
    #[error("unknown codec \"{name}\"; known: {known}")]
    UnknownCodec {
        /// The name given.
        name: String,
        /// The names known, separated by commas.
        known: String,
    },
    /// The codec has no such rate.
    #[error("codec {codec} has no rate of {bits} bits; it has {rates}")]
    Rate {
        /// The codec.
        codec: &'static str,
        /// Bits per weight asked for.
        bits: f64,
        /// The rates it has, separated by commas.
        rates: String,
    },
    /// The codec has no such option.
    #[error("codec {codec} has no option \"{option}\"; it has {known}")]
    UnknownOption {
        /// The codec.
        codec: &'static str,
        /// The option given.
        option: String,
        /// The options it has, separated by commas.
        known: String,
    },
    /// A recipe asks for low-rank parts, and the plan has no fitter for them.
    #[error("a rank is asked for, but the plan has no solver for low-rank parts (`Plan::with_low_rank_fitter`)")]
    NoLowRankFitter,
    /// A rule of a recipe selects a codec that cannot be built.
    #[error("rule {rule}, match '{pattern}': {error}")]
    Rule {
        /// Its place in the list, from 1 on.
        rule: usize,
        /// Its expression.
        pattern: String,
        /// What is wrong with it.
        error: Box<ConfigError>,
    },
    /// A text does not parse.
    #[error("{what}: {message}")]
    Parse {
        /// What was read.
        what: String,
        /// Why it failed.
        message: String,
    },
}

impl ConfigError {
    /// Refuses a `value` of `field` outside `range`; NaN is outside every range.
    ///
    /// # Errors
    /// [`ConfigError::Range`].
    ///
    /// # Example
    /// ```
    /// use pixel_core::ConfigError;
    /// assert!(ConfigError::range("damping", 0.01, 0.0..=1.0).is_ok());
    /// let error = ConfigError::range("window", 40u32, 8..=16u32).unwrap_err();
    /// assert_eq!(error.to_string(), "window = 40 is outside 8 to 16");
    /// ```
    pub fn range(field: &'static str, value: impl Number, range: impl Into<NumberRange>) -> Result<(), Self> {
        let (value, range) = (value.to_f64(), range.into());
        if range.contains(value) { Ok(()) } else { Err(Self::Range { field, value, range }) }
    }
}

/// Stored bytes that do not make a weight.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum FormatError {
    /// A stream of the weight is absent.
    #[error("stream \"{stream}\" is missing")]
    MissingStream {
        /// The suffix of the stream.
        stream: &'static str,
    },
    /// A stream has the wrong type or size.
    #[error("stream \"{stream}\" holds {found} {found_shape:?}, expected {expected:?} {expected_shape:?}")]
    StreamShape {
        /// The suffix of the stream.
        stream: &'static str,
        /// The type stored.
        found: Dtype,
        /// The shape stored; the number of values where the shape is not known.
        found_shape: Vec<usize>,
        /// The type that the codec asks for.
        expected: StreamType,
        /// The shape that codec and weight ask for.
        expected_shape: Vec<usize>,
    },
    /// There are more streams than the codec stores.
    #[error("{found} streams are given, the weight has {expected}")]
    ExtraStreams {
        /// The streams given.
        found: usize,
        /// The streams of the weight.
        expected: usize,
    },
    /// A number is NaN or infinite where the decoder multiplies by it.
    #[error("stream \"{stream}\" holds {value} at index {index}")]
    NotFinite {
        /// The suffix of the stream.
        stream: &'static str,
        /// Where, in values.
        index: usize,
        /// The value.
        value: f32,
    },
    /// An index points beyond its dictionary.
    #[error("stream \"{stream}\" points at pattern {value} of {limit} at index {index}")]
    IndexOutOfRange {
        /// The suffix of the stream.
        stream: &'static str,
        /// Which code.
        index: usize,
        /// The pattern asked for.
        value: usize,
        /// The number of patterns.
        limit: usize,
    },
    /// A protected column is not one of the weight's.
    #[error("stream \"{stream}\" holds column {value} of {d_input} at index {index}")]
    Column {
        /// The suffix of the stream.
        stream: &'static str,
        /// Where, in columns.
        index: usize,
        /// The column named.
        value: usize,
        /// The number of columns.
        d_input: usize,
    },
    /// Protected columns are out of order, or one is named twice.
    #[error("stream \"{stream}\" holds {value} after {previous} at index {index}, and has to ascend")]
    NotAscending {
        /// The suffix of the stream.
        stream: &'static str,
        /// Where, in columns.
        index: usize,
        /// The column named.
        value: usize,
        /// The one before it.
        previous: usize,
    },
    /// A bit that carries no meaning is set.
    #[error("stream \"{stream}\" has a padding bit set in row {row}")]
    Padding {
        /// The suffix of the stream.
        stream: &'static str,
        /// Which row of the stream.
        row: usize,
    },
    /// A number of the manifest is outside what a reader accepts.
    #[error("field \"{field}\" = {value} is outside {low}..={high}")]
    Range {
        /// The field.
        field: &'static str,
        /// The value stored.
        value: i64,
        /// The least value allowed.
        low: i64,
        /// The greatest value allowed.
        high: i64,
    },
    /// The weight would take far more memory than its stored bytes.
    #[error("field \"shape\" = {shape} is more than {stored} stored bytes may stand for")]
    Expansion {
        /// The shape stored.
        shape: Shape,
        /// Bytes of all streams.
        stored: usize,
    },
    /// The codec that the manifest names cannot be built.
    #[error(transparent)]
    Codec(#[from] ConfigError),
    /// The shape in the manifest is invalid.
    #[error(transparent)]
    Shape(#[from] ShapeError),
}

/// A weight that cannot be coded.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum WeightError {
    /// A weight is NaN or infinite.
    #[error("the weight at row {row}, column {col} is {value}")]
    NotFinite {
        /// Its row.
        row: usize,
        /// Its column.
        col: usize,
        /// Its value.
        value: f32,
    },
    /// The statistics of the inputs belong to another width.
    #[error("a weight of {shape} takes inputs of width {}, the statistics are of width {found}", shape.d_input())]
    MomentsWidth {
        /// The shape of the weight.
        shape: Shape,
        /// The width of the statistics.
        found: usize,
    },
    /// The shape is invalid.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The codec cannot be built.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// A row cannot be divided by its scale: the residual of the low-rank part is far larger than the weight.
    #[error(
        "the scale of row {row} is {value:e} in units of the weight, which F16 cannot hold: \
         the residual of the low-rank part is far larger than the weight"
    )]
    RowScale {
        /// The row.
        row: usize,
        /// The scale, in units of the weight's power of two.
        value: f64,
    },
    /// The low-rank part cannot be stored.
    #[error("the low-rank part: {0}")]
    LowRank(Box<FormatError>),
    /// The codes cannot be stored: the residual of the extracted parts is beyond F16 scales.
    #[error("the coded weight: {0}")]
    Codes(Box<FormatError>),
    /// No low-rank part was found.
    #[error("the singular value decomposition by {solver} failed: {message}")]
    Decomposition {
        /// The solver.
        solver: String,
        /// Its message.
        message: String,
    },
}
