//! [`Encoder`]: one weight into its packed form.

use super::coding::{Coded, code};
use super::condition::{Conditioned, Extracted, condition};
use super::inputs::{PreparedInputs, check_width};
use super::low_rank::{FactorStorage, LowRank, LowRankFactors};
use super::moments::Moments;
use super::protected::largest_columns;
use super::spec::CodingSpec;
use crate::codec::{CodecSpec, Codes, Stream};
use crate::dictionary::PatternDictionary;
use crate::error::{ConfigError, WeightError};
use crate::math::metrics::ErrorSums;
use crate::math::rotation::Rotation;
use crate::matrix::{Matrix, MatrixRef, Shape};
use crate::packed::PackedWeight;
use half::f16;
use std::sync::Once;

/// How far a packed weight lies from its source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// The error of the weight.
    pub weight: ErrorSums,
    /// The error of the layer's outputs, where the inputs' moments were given.
    pub output: Option<OutputError>,
}

/// The error of a layer's outputs on the inputs it was calibrated with, and the damping of feedback.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutputError {
    /// `tr(W·H·Wᵀ)` and `tr((W−Ŵ)·H·(W−Ŵ)ᵀ)`.
    pub sums: ErrorSums,
    /// What was added to the diagonal of `H`, in units of its mean.
    pub damping: f64,
    /// How often that was doubled because `H` was not positive definite.
    pub retries: u32,
}

/// Codes one weight as a [`CodingSpec`] asks.
///
/// # Example
/// ```
/// use pixel_core::{CodingSpec, Encoder, Matrix, Moments, Shape, compress_weight};
/// let data: Vec<f32> = (0..64 * 64).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0).powi(3)).collect();
/// let weight = Matrix::new(Shape::new(64, 64)?, data)?;
/// // Inputs that follow one another closely: neighbouring columns can make up for each other's errors.
/// let value = |i: usize| ((i / 64 + i % 64) as f32 / 9.0).sin() + (i % 7) as f32 / 50.0;
/// let moments = Moments::of_inputs(64, &(0..256 * 64).map(value).collect::<Vec<f32>>());
/// let spec = CodingSpec::new("trellis:2:window=12".parse()?).with_rotation(Some(1));
/// let (plain, _) = Encoder::new(&spec).encode(weight.clone())?;
/// let (packed, outcome) = Encoder::new(&spec).with_moments(moments.clone()).encode(weight.clone())?;
/// let loss = outcome.output.unwrap().sums.relative_mse();
/// assert!(loss < 0.5 * moments.output_error(weight.as_ref(), plain.synthesize().as_ref()).relative_mse());
/// assert_eq!(packed.num_bytes(), plain.num_bytes());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// An input whose weights are a hundred times as large as the others', stored separately:
/// ```
/// use pixel_core::{CodingSpec, Encoder, Matrix, Shape};
/// let data = (0..64 * 64).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * if i % 64 == 5 { 100.0 } else { 1.0 });
/// let weight = Matrix::new(Shape::new(64, 64)?, data.collect())?;
/// let loss = |columns| {
///     let spec = CodingSpec::new("uniform:3".parse().unwrap()).with_protect(columns);
///     let (packed, outcome) = Encoder::new(&spec).encode(weight.clone()).unwrap();
///     assert_eq!(packed.protected().columns(), &[5][..columns]);
///     outcome.weight.relative_mse()
/// };
/// assert!(loss(1) < 0.1 * loss(0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct Encoder<'a> {
    spec: &'a CodingSpec,
    inputs: Inputs<'a>,
    low_rank: Option<&'a LowRank>,
    dictionary: Option<&'a PatternDictionary>,
}

/// What is known about the inputs.
#[derive(Debug)]
enum Inputs<'a> {
    Unknown,
    Moments(Moments),
    Prepared(&'a PreparedInputs),
}

impl<'a> Encoder<'a> {
    /// An encoder without statistics of the inputs.
    pub const fn new(spec: &'a CodingSpec) -> Self {
        Self { spec, inputs: Inputs::Unknown, low_rank: None, dictionary: None }
    }

    /// Feeds errors back through the second moments of the weight's inputs, so that the layer's outputs change least,
    /// or only measures the outputs' error if the request has no feedback. With [`Moments::identity`] the codes are
    /// those of an encoder without statistics, as they are with `None`.
    pub fn with_moments(mut self, moments: impl Into<Option<Moments>>) -> Self {
        self.inputs = moments.into().map_or(Inputs::Unknown, Inputs::Moments);
        self
    }

    /// [`with_moments`](Self::with_moments), rotated and factored before; protected columns are those of `inputs`.
    ///
    /// # Panics
    /// If `inputs` were prepared for another rotation or number of protected columns.
    pub fn with_inputs(mut self, inputs: &'a PreparedInputs) -> Self {
        assert_eq!(inputs.rotation(), self.spec.rotation, "rotation of the inputs and of the request");
        assert_eq!(inputs.columns().len(), self.spec.protect, "protected columns of the inputs and of the request");
        self.inputs = Inputs::Prepared(inputs);
        self
    }

    /// Codes the residual of `part` and stores the part in addition: in the basis of the rotation, its factors rounded
    /// as the request says, so that the codes compensate for their rounding too. Errors are those of the whole.
    pub const fn with_low_rank(mut self, part: &'a LowRank) -> Self {
        self.low_rank = Some(part);
        self
    }

    /// Takes the patterns that the codec would learn from the weight and store with it from `dictionary`: the first of
    /// the shape of its tiles, as many as the option `learned` says. [`PatternDictionary::codec`] sets it.
    ///
    /// # Example
    /// ```
    /// use pixel_core::dictionary::PatternDictionary;
    /// use pixel_core::{CodingSpec, Encoder, Matrix, Shape};
    /// let weight = Matrix::random(Shape::new(64, 64)?, 1);
    /// let mut dictionary = PatternDictionary::default();
    /// let tile = Shape::new(8, 8)?;
    /// dictionary.learn(tile, &weight.as_ref().tiles(tile), 32, 0)?;
    /// let spec = CodingSpec::new(dictionary.codec(&"matching:2".parse()?)?);
    /// assert_eq!(spec.codec.options["learned"], 32);
    /// let (packed, _) = Encoder::new(&spec).with_dictionary(&dictionary).encode(weight)?;
    /// assert_eq!(packed.num_bytes(), 64 * 64 / 4 + 64 * 2 + 32 * 64 * 2);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub const fn with_dictionary(mut self, dictionary: &'a PatternDictionary) -> Self {
        self.dictionary = Some(dictionary);
        self
    }

    /// Codes `weight`: condition in place, code block by block, refit the row scales, pack.
    ///
    /// # Errors
    /// [`WeightError`] for a weight that is not finite, moments of another width, a request that the weight's shape
    /// does not allow, a low-rank part that is not of the rank of the request, is not finite or is far larger than the
    /// weight, a dictionary that has too few patterns of the shape of the codec's tiles.
    ///
    /// # Panics
    /// If the low-rank part has another shape.
    pub fn encode(self, weight: Matrix) -> Result<(PackedWeight, Outcome), WeightError> {
        let shape = weight.shape();
        self.spec.check(shape)?;
        warn_if_unoptimised(shape);
        let low_rank = self.low_rank_part()?;
        let Self { spec, inputs, dictionary, .. } = self;
        let (owned, given, measured) = match inputs {
            Inputs::Unknown => (None, None, None),
            Inputs::Prepared(inputs) => (None, Some(inputs), None),
            Inputs::Moments(moments) => {
                check_width(&moments, shape)?;
                match spec.feedback {
                    None => (None, None, Some(moments)),
                    Some(_) => {
                        let columns = largest_columns(weight.as_ref(), Some(&moments), spec.protect);
                        (Some(PreparedInputs::new(moments, spec, columns)), None, None)
                    }
                }
            }
        };
        let inputs = given.or(owned.as_ref());
        let own_columns;
        let columns = match inputs {
            Some(inputs) => {
                inputs.check_width(shape)?;
                inputs.columns()
            }
            None => {
                own_columns = largest_columns(weight.as_ref(), None, spec.protect);
                &own_columns
            }
        };
        let codec = match dictionary {
            None => spec.codec.build()?,
            Some(dictionary) => dictionary.build(&spec.codec, shape)?,
        };
        let extracted = Extracted { columns, low_rank };
        let is_whole = extracted.is_empty();
        // The sums over the codec's blocks do not include extracted parts: errors are then measured on the whole.
        let original = (!is_whole || measured.is_some()).then(|| weight.clone());
        let rotation = spec.rotation.map(|seed| Rotation::new(shape.d_input(), seed));
        let conditioned = condition(weight, codec.row_scaling(), rotation, extracted)?;
        let Coded { codes, fits, damping } = code(&conditioned, &*codec, inputs);
        let scales = fits.refit(&conditioned);
        let mut weight = fits.weight_sums(&conditioned, &scales);
        let mut output = fits.output_sums(&conditioned, &scales);
        let packed = pack(conditioned, spec, codes, scales)?;
        if let Some(original) = original {
            match inputs {
                // The residual of the low-rank part has the error of the whole; only the power is that of the whole.
                Some(inputs) if columns.is_empty() => {
                    weight.power = original.as_slice().iter().map(|&w| f64::from(w) * f64::from(w)).sum();
                    let power = inputs.output_power(original)?;
                    output = output.map(|sums| ErrorSums { power, ..sums });
                }
                _ => {
                    let dense = packed.synthesize();
                    if !is_whole {
                        weight = ErrorSums::between(original.as_slice(), dense.as_slice());
                    }
                    let moments = inputs.and_then(PreparedInputs::original_moments).or(measured.as_ref());
                    output = moments.map(|moments| moments.output_error(original.as_ref(), dense.as_ref()));
                }
            }
        }
        let (damping, retries) = damping.map_or((0.0, 0), |damping| (damping.share, damping.retries));
        let output = output.map(|sums| OutputError { sums, damping, retries });
        Ok((packed, Outcome { weight, output }))
    }

    /// The part to be extracted, if it is the one that the request names.
    fn low_rank_part(&self) -> Result<Option<(&'a LowRank, FactorStorage)>, ConfigError> {
        match (self.spec.low_rank, self.low_rank) {
            (None, None) => Ok(None),
            (Some(spec), Some(part)) if spec.rank == part.rank() => Ok(Some((part, spec.storage))),
            (spec, part) => {
                let (asked, given) = (spec.map_or(0, |spec| spec.rank), part.map_or(0, LowRank::rank));
                Err(ConfigError::LowRankPart { asked, given })
            }
        }
    }
}

/// Codes a copy of one weight by `codec`, rotated by the signs of `rotation` if that is given, and reports the error:
/// an [`Encoder`] in one line.
///
/// # Errors
/// [`WeightError`] for a weight that is not finite or a codec that cannot be built.
pub fn compress_weight(
    weight: MatrixRef<'_>,
    codec: &CodecSpec,
    rotation: Option<u64>,
) -> Result<(PackedWeight, ErrorSums), WeightError> {
    let spec = CodingSpec::new(codec.clone()).with_rotation(rotation);
    let weight = Matrix::new(weight.shape(), weight.as_slice().to_vec())?;
    let (packed, outcome) = Encoder::new(&spec).encode(weight)?;
    Ok((packed, outcome.weight))
}

/// Says once, on standard error, that this crate is compiled without optimisation, if that will be felt.
fn warn_if_unoptimised(shape: Shape) {
    /// Weights that take a second or so then.
    const MANY: usize = 1 << 14;
    static ONCE: Once = Once::new();
    if cfg!(unoptimised) && shape.num_weights() >= MANY {
        ONCE.call_once(|| {
            eprintln!(
                "pixel-core is compiled without optimisation: coding a weight takes some hundred times as long. These \
                 lines in Cargo.toml change that for all dependencies of a debug build:\n\n\
                 [profile.dev.package.\"*\"]\nopt-level = 2\n"
            );
        });
    }
}

/// The packed form of a coded weight.
fn pack(
    conditioned: Conditioned,
    spec: &CodingSpec,
    codes: Codes,
    scales: Vec<f16>,
) -> Result<PackedWeight, WeightError> {
    let shape: Shape = conditioned.weight.shape();
    let mut streams = codes.streams;
    if !scales.is_empty() {
        streams.push(Stream::F16(scales));
    }
    let protected = &conditioned.protected;
    if !protected.is_empty() {
        streams.extend([Stream::U32(protected.columns().to_vec()), Stream::F16(protected.values().to_vec())]);
    }
    streams.extend(conditioned.low_rank.map(LowRankFactors::into_streams).unwrap_or_default());
    // Codes fail to decode only for weights beyond F16, which the residual of a large low-rank part can hold.
    PackedWeight::new(spec.header(shape, conditioned.exponent), streams)
        .map_err(|error| WeightError::Codes(Box::new(error)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Shape;
    use approx::relative_eq;

    /// What the hint of [`warn_if_unoptimised`] speaks of; run with and without
    /// `--config profile.dev.package.pixel-core.opt-level=0`.
    #[test]
    #[ignore = "measures, and asserts nothing"]
    fn time_of_coding() {
        let weight = Matrix::random(Shape::new(64, 64).unwrap(), 1);
        for text in ["trellis:2", "lapped:2", "uniform:4"] {
            let (spec, clock) = (text.parse().unwrap(), std::time::Instant::now());
            compress_weight(weight.as_ref(), &spec, Some(1)).unwrap();
            println!("{text}: {:.2} ms for 64×64 weights", 1e3 * clock.elapsed().as_secs_f64());
        }
    }

    #[test]
    fn a_zero_weight_comes_back_as_zero_from_every_codec() {
        let zeros = vec![0.0; 12 * 20];
        let weight = MatrixRef::new(Shape::new(12, 20).unwrap(), &zeros).unwrap();
        for family in crate::codec::FAMILIES {
            let spec = CodecSpec::new(family.name(), family.rates()[1]);
            let (packed, sums) = compress_weight(weight, &spec, family.rotates().then_some(5)).unwrap();
            assert_eq!(sums, ErrorSums::default(), "{spec}");
            assert!(packed.synthesize().as_slice().iter().all(|&w| w == 0.0), "{spec}");
        }
    }

    /// A weight of more rows than a thread takes at a time, with error feedback and without.
    #[test]
    fn threads_that_help_with_a_weight_change_no_code() {
        let shape = Shape::new(300, 48).unwrap();
        let moments = Moments::of_inputs(48, Matrix::random(shape, 2).as_slice());
        for family in crate::codec::FAMILIES {
            for moments in [None, Some(moments.clone())] {
                let codes = |threads| {
                    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
                    let spec =
                        CodingSpec::new(CodecSpec::new(family.name(), 2.0)).with_feedback(Some(Default::default()));
                    let weight = Matrix::random(shape, 1);
                    pool.install(|| Encoder::new(&spec).with_moments(moments.clone()).encode(weight).unwrap().0)
                };
                assert!(codes(1).streams().eq(codes(3).streams()), "{} {}", family.name(), moments.is_some());
            }
        }
    }

    #[test]
    fn the_reported_error_is_that_of_the_synthesised_weight() {
        let shape = Shape::new(33, 50).unwrap();
        let data: Vec<f32> = (0..shape.num_weights())
            .map(|i| (crate::math::rotation::split_mix(4, i as u64) >> 40) as f32 / 1e3 - 8e3)
            .collect();
        let weight = MatrixRef::new(shape, &data).unwrap();
        for family in crate::codec::FAMILIES {
            for rotation in [None, Some(3)] {
                let spec = CodecSpec::new(family.name(), 2.0);
                let (packed, sums) = compress_weight(weight, &spec, rotation).unwrap();
                let measured = ErrorSums::between(&data, packed.synthesize().as_slice());
                let (measured, stated) = (measured.relative_mse(), sums.relative_mse());
                let is_close = relative_eq!(stated, measured, epsilon = 0.0, max_relative = 1e-3);
                assert!(is_close, "{spec} {rotation:?}: {measured} {stated}");
                assert!(sums.relative_mse() < 0.5, "{spec}");
            }
        }
    }
}
