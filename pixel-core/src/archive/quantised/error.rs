//! Why a quantised weight cannot be made floats again.

use safetensors::Dtype;

/// Why a weight that another tool has quantised cannot be read.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum QuantisedError {
    /// A tensor that belongs to it is not there.
    #[error("there is no tensor \"{part}\"")]
    Missing {
        /// The tensor.
        part: String,
    },
    /// A tensor that belongs to it has another type.
    #[error("tensor \"{part}\" is {found}, not {expected}")]
    Dtype {
        /// The tensor.
        part: String,
        /// Its type.
        found: Dtype,
        /// What it should be.
        expected: &'static str,
    },
    /// A tensor that belongs to it has another shape.
    #[error("tensor \"{part}\" has shape {found:?}, which is not {expected}")]
    Shape {
        /// The tensor.
        part: String,
        /// Its shape.
        found: Vec<usize>,
        /// What it should be.
        expected: String,
    },
    /// An input is said to be of a group that is not there.
    #[error("tensor \"{part}\" puts input {input} into group {group}, and there are {count}")]
    NoSuchGroup {
        /// The tensor.
        part: String,
        /// The input.
        input: usize,
        /// Its group.
        group: i32,
        /// The groups.
        count: usize,
    },
    /// The codes lie in an order that is not read.
    #[error("the layout \"{variant}\" is not read; gptq, gptq_v2 and gemm are")]
    Variant {
        /// The layout.
        variant: String,
    },
}
