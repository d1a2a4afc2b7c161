//! Typed errors: who is wrong decides the type.

use crate::matrix::Shape;

/// A matrix that cannot be.
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

/// A configuration that cannot be carried out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A number lies outside its range.
    #[error("{field} = {value} is outside {range}")]
    Range {
        /// The field, as it is spelled in a file.
        field: &'static str,
        /// The value given.
        value: String,
        /// The values allowed.
        range: String,
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
    /// A recipe asks for low-rank parts, and nobody is there to find them.
    #[error("a rank is asked for, but the plan has no solver for low-rank parts (`Plan::with_low_rank_fitter`)")]
    NoLowRankFitter,
    /// A text does not parse.
    #[error("{what}: {message}")]
    Parse {
        /// What was read.
        what: String,
        /// Why it failed.
        message: String,
    },
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
    #[error("stream \"{stream}\" holds {found}, expected {expected}")]
    StreamShape {
        /// The suffix of the stream.
        stream: &'static str,
        /// The type and shape stored.
        found: String,
        /// The type and shape that the codec and the weight's shape ask for.
        expected: String,
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
        /// The columns that there are.
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
    /// A field of the manifest is outside what a reader accepts.
    #[error("field \"{field}\" = {value} is outside {range}")]
    Field {
        /// The field.
        field: &'static str,
        /// The value stored.
        value: String,
        /// The values allowed.
        range: String,
    },
    /// The codec that the manifest names cannot be built.
    #[error(transparent)]
    Codec(#[from] ConfigError),
    /// The shape that the manifest names cannot be.
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
    /// The shape cannot be.
    #[error(transparent)]
    Shape(#[from] ShapeError),
    /// The codec cannot be built.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The low-rank part cannot be stored.
    #[error("the low-rank part: {0}")]
    LowRank(#[source] Box<FormatError>),
    /// No low-rank part was found.
    #[error("the singular value decomposition by {solver} failed: {message}")]
    Decomposition {
        /// The solver.
        solver: String,
        /// What it said.
        message: String,
    },
}
