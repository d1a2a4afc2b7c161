//! The request: how one weight is coded.

use super::feedback::FeedbackOptions;
use super::low_rank::LowRankSpec;
use crate::codec::{CodecSpec, StreamSpec};
use crate::error::ConfigError;
use crate::math::Exponent;
use crate::matrix::Shape;
use crate::packed::PackedHeader;

/// How one weight is coded: the request to an [`Encoder`](super::Encoder), and what a
/// [`Decision`](crate::plan::Decision) carries from a recipe to the compressor.
///
/// What an archive stores of it is a [`PackedHeader`], which [`header`](Self::header) alone derives.
///
/// # Example
/// ```
/// use pixel_core::{CodingSpec, Shape};
/// let spec = CodingSpec::new("trellis:2".parse()?).with_rotation(Some(7)).with_protect(2);
/// // 2 bits of codes, F16 row scales, two columns in F16 and their numbers.
/// assert_eq!(spec.stored_bytes(Shape::new(64, 128)?)?, 64 * 128 / 4 + 64 * 2 + 2 * 64 * 2 + 2 * 4);
/// assert!(spec.with_protect(128).check(Shape::new(64, 128)?).is_err());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct CodingSpec {
    /// The codec with its rate and options.
    pub codec: CodecSpec,
    /// The seed of the rotation's signs. Default: no rotation.
    pub rotation: Option<u64>,
    /// Columns that are stored in F16 in place of codes, those with the largest `H_jj·‖w_j‖²`, or `‖w_j‖²` where no
    /// errors are fed back. Default: 0.
    pub protect: usize,
    /// Rank and storage of a low-rank part in addition to the codes. Default: none.
    pub low_rank: Option<LowRankSpec>,
    /// How errors are fed back where the moments of the inputs are given; `None` only measures them. Default: the
    /// default options.
    pub feedback: Option<FeedbackOptions>,
}

impl CodingSpec {
    /// Codes of `codec`, neither rotated nor with anything in addition.
    pub const fn new(codec: CodecSpec) -> Self {
        let feedback = Some(FeedbackOptions::DEFAULT);
        Self { codec, rotation: None, protect: 0, low_rank: None, feedback }
    }

    /// Sets [`rotation`](Self::rotation).
    pub const fn with_rotation(mut self, seed: Option<u64>) -> Self {
        self.rotation = seed;
        self
    }

    /// Sets [`protect`](Self::protect).
    pub const fn with_protect(mut self, columns: usize) -> Self {
        self.protect = columns;
        self
    }

    /// Sets [`low_rank`](Self::low_rank).
    pub const fn with_low_rank(mut self, low_rank: Option<LowRankSpec>) -> Self {
        self.low_rank = low_rank;
        self
    }

    /// Sets [`feedback`](Self::feedback).
    pub const fn with_feedback(mut self, feedback: Option<FeedbackOptions>) -> Self {
        self.feedback = feedback;
        self
    }

    /// The same request at another rate.
    pub fn with_bits(&self, bits: f64) -> Self {
        let mut spec = self.clone();
        spec.codec.bits = bits;
        spec
    }

    /// Refuses what a weight of `shape` cannot be coded as.
    ///
    /// # Errors
    /// [`ConfigError`] if the codec cannot be built, every column is to be protected, the rank exceeds the shorter
    /// side, or the options of feedback are out of range.
    pub fn check(&self, shape: Shape) -> Result<(), ConfigError> {
        if let Some(feedback) = self.feedback {
            feedback.check()?;
        }
        self.streams(shape).map(|_| ())
    }

    /// Everything that is stored for a weight of `shape`, in order.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn streams(&self, shape: Shape) -> Result<Vec<StreamSpec>, ConfigError> {
        self.header(shape, Exponent::ZERO).streams()
    }

    /// Bytes stored for a weight of `shape`.
    ///
    /// # Errors
    /// As [`check`](Self::check).
    pub fn stored_bytes(&self, shape: Shape) -> Result<u64, ConfigError> {
        Ok(self.streams(shape)?.iter().map(|stream| stream.num_bytes() as u64).sum())
    }

    /// What is stored of the request, for a weight of `shape` in units of `2^exponent`.
    pub fn header(&self, shape: Shape, exponent: Exponent) -> PackedHeader {
        PackedHeader {
            shape,
            codec: self.codec.clone(),
            rotation: self.rotation,
            exponent,
            protected: self.protect,
            low_rank: self.low_rank,
        }
    }
}

impl From<CodecSpec> for CodingSpec {
    fn from(codec: CodecSpec) -> Self {
        Self::new(codec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_damping_out_of_range_is_refused_by_value() {
        for damping in [f64::NAN, -0.1, 1001.0] {
            let feedback = FeedbackOptions { damping: Some(damping), ..FeedbackOptions::DEFAULT };
            let spec = CodingSpec::new(CodecSpec::new("uniform", 4.0)).with_feedback(Some(feedback));
            let message = spec.check(Shape::new(8, 8).unwrap()).unwrap_err().to_string();
            assert!(message.contains(&format!("damping = {damping} is outside 0 to 1000")), "{message}");
        }
    }
}
