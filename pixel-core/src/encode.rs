//! From one weight to its packed form: condition, encode, refit the row scales, pack.

use crate::codec::{Codec, CodecSpec};
use crate::codec::{Codes, Stream};
use crate::condition::{Conditioned, TakenOut, condition_without, exp2};
use crate::error::WeightError;
use crate::feedback::{Encoded, Feedback, FeedbackOptions};
use crate::low_rank::{FactorStorage, LowRank, LowRankFactors, LowRankSpec};
use crate::matrix::{Matrix, MatrixRef};
use crate::metrics::ErrorSums;
use crate::moments::Moments;
use crate::packed::{PackedHeader, PackedWeight};
use crate::protected::{check_count, largest_columns};
use crate::rotation::Rotation;
use half::f16;

/// How far a packed weight lies from its source.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Outcome {
    /// The error of the weight.
    pub weight: ErrorSums,
    /// The error of the layer's outputs, where the inputs' moments were given.
    pub output: Option<OutputError>,
}

/// The error of a layer's outputs on the inputs it was calibrated with, and how feedback got there.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OutputError {
    /// `tr(W·H·Wᵀ)` and `tr((W−Ŵ)·H·(W−Ŵ)ᵀ)`.
    pub sums: ErrorSums,
    /// What was added to the diagonal of `H`, in units of its mean.
    pub damping: f64,
    /// How often that was doubled because `H` was not positive definite.
    pub retries: u32,
}

/// How a weight is compressed, beside its codec.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct EncodeOptions {
    /// The seed of the rotation's signs. Default: no rotation.
    pub rotation: Option<u64>,
    /// Columns that are stored beside the codes, those with the largest `H_jj·‖w_j‖²`. Default: 0.
    pub protect: usize,
    /// How error feedback is done where the inputs' moments are given.
    pub feedback: FeedbackOptions,
}

/// Compresses one weight: [`compress_calibrated`] with `moments`, [`compress_owned`] without, and with
/// [protected columns](crate::protected) if `options` ask for some.
///
/// # Errors
/// [`WeightError`] for a weight that is not finite, moments of another width, as many protected columns as there are or
/// more, or a codec that cannot be built.
///
/// # Example
/// ```
/// use pixel_core::{EncodeOptions, Matrix, Shape, compress};
/// // One input counts a hundred times as much as the others.
/// let data = (0..64 * 64).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0) * if i % 64 == 5 { 100.0 } else { 1.0 });
/// let weight = Matrix::new(Shape::new(64, 64)?, data.collect())?;
/// let loss = |protect| {
///     let options = EncodeOptions { protect, ..Default::default() };
///     let (packed, outcome) = compress(weight.clone(), &"uniform:3".parse().unwrap(), None, options).unwrap();
///     assert_eq!(packed.protected().columns(), &[5][..protect]);
///     outcome.weight.relative_mse()
/// };
/// assert!(loss(1) < 0.1 * loss(0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn compress(
    weight: Matrix,
    spec: &CodecSpec,
    moments: Option<Moments>,
    options: EncodeOptions,
) -> Result<(PackedWeight, Outcome), WeightError> {
    compress_beside(weight, spec, moments, options, None)
}

/// [`compress`] of what a part of low rank leaves, and that part beside it: in the basis of the rotation, its factors
/// rounded to the storage, so that the codes make good for their rounding too. Errors are those of the whole.
///
/// # Errors
/// As [`compress`]; [`WeightError::LowRank`] for factors that are not finite or far larger than the weight, and
/// [`WeightError::Config`] for a rank beyond the weight's sides.
///
/// # Panics
/// If the part has another shape.
pub fn compress_beside(
    weight: Matrix,
    spec: &CodecSpec,
    moments: Option<Moments>,
    options: EncodeOptions,
    low_rank: Option<(&LowRank, FactorStorage)>,
) -> Result<(PackedWeight, Outcome), WeightError> {
    let shape = weight.shape();
    check_count("protect", options.protect, shape.d_input())?;
    if let Some((part, storage)) = low_rank {
        LowRankSpec { rank: part.rank(), storage }.check(shape)?;
    }
    if let Some(found) = moments.as_ref().map(Moments::d_input).filter(|&found| found != shape.d_input()) {
        return Err(WeightError::MomentsWidth { shape, found });
    }
    let columns = largest_columns(weight.as_ref(), moments.as_ref(), options.protect);
    match moments {
        None => {
            let (packed, weight) =
                compress_plain(weight, spec, options.rotation, TakenOut { columns: &columns, low_rank })?;
            Ok((packed, Outcome { weight, output: None }))
        }
        Some(moments) => {
            let width = spec.build()?.block_width(shape);
            let inputs = PreparedInputs::protecting(moments, options.rotation, width, options.feedback, columns);
            inputs.compress_beside(weight, spec, low_rank)
        }
    }
}

/// Compresses a copy of one weight; see [`compress_owned`].
///
/// # Errors
/// [`WeightError`] for a weight that is not finite or a codec that cannot be built.
pub fn compress_weight(
    weight: MatrixRef<'_>,
    spec: &CodecSpec,
    rotation: Option<u64>,
) -> Result<(PackedWeight, ErrorSums), WeightError> {
    compress_owned(Matrix::new(weight.shape(), weight.as_slice().to_vec())?, spec, rotation)
}

/// Compresses one weight with `spec`, rotated by the signs of `rotation` if that is given, and reports the error.
///
/// Condition in place, encode block by block, refit the row scales by least squares, pack.
///
/// # Errors
/// [`WeightError`] for a weight that is not finite or a codec that cannot be built.
pub fn compress_owned(
    weight: Matrix,
    spec: &CodecSpec,
    rotation: Option<u64>,
) -> Result<(PackedWeight, ErrorSums), WeightError> {
    compress_plain(weight, spec, rotation, TakenOut::default())
}

fn compress_plain(
    weight: Matrix,
    spec: &CodecSpec,
    rotation: Option<u64>,
    taken: TakenOut<'_>,
) -> Result<(PackedWeight, ErrorSums), WeightError> {
    let codec = spec.build()?;
    let original = original(&weight, taken);
    let rotation = rotation.map(|seed| Rotation::new(weight.shape().d_input(), seed));
    let conditioned = condition_without(weight, codec.row_scaling(), rotation, taken)?;
    let (codes, fits) = encode(&conditioned, &*codec);
    let scales = refit(&conditioned, &fits);
    let sums = sums_of(&fits, &conditioned, &scales, lost(&conditioned));
    let packed = pack(conditioned, spec, codes, scales);
    match original {
        None => Ok((packed, sums)),
        Some(original) => {
            let sums = ErrorSums::between(original.as_slice(), packed.synthesize().as_slice());
            Ok((packed, sums))
        }
    }
}

/// The weight as it came, where something is taken out of it: errors are then measured on what was packed, for the sums of
/// the codec's own blocks know nothing of that.
fn original(weight: &Matrix, taken: TakenOut<'_>) -> Option<Matrix> {
    (!taken.columns.is_empty() || taken.low_rank.is_some()).then(|| weight.clone())
}

/// Compresses one weight with error feedback through the second moments of its inputs, so that the layer's outputs
/// change least; [`feedback`](crate::feedback) says how. Row scales are refitted to the outputs.
///
/// With [`Moments::identity`] the result is that of [`compress_owned`], to the byte.
///
/// # Errors
/// [`WeightError`] for a weight that is not finite, moments of another width, or a codec that cannot be built.
///
/// # Example
/// ```
/// use pixel_core::feedback::FeedbackOptions;
/// use pixel_core::{Matrix, Moments, Shape, compress_calibrated, compress_weight};
/// let data: Vec<f32> = (0..64 * 64).map(|i| ((i * 7919 % 1009) as f32 / 504.5 - 1.0).powi(3)).collect();
/// let weight = Matrix::new(Shape::new(64, 64)?, data)?;
/// // Inputs that follow one another closely: neighbouring columns can make up for each other's errors.
/// let inputs: Vec<f32> = (0..256 * 64).map(|i| ((i / 64 + i % 64) as f32 / 9.0).sin() + (i % 7) as f32 / 50.0).collect();
/// let moments = Moments::of_inputs(64, &inputs);
/// let spec = "trellis:2:window=12".parse()?;
/// let (plain, _) = compress_weight(weight.as_ref(), &spec, Some(1))?;
/// let options = FeedbackOptions::default();
/// let (packed, outcome) = compress_calibrated(weight.clone(), &spec, Some(1), moments.clone(), options)?;
/// let loss = outcome.output.unwrap().sums.relative_mse();
/// assert!(loss < 0.5 * moments.output_error(weight.as_ref(), plain.synthesize().as_ref()).relative_mse());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn compress_calibrated(
    weight: Matrix,
    spec: &CodecSpec,
    rotation: Option<u64>,
    moments: Moments,
    options: FeedbackOptions,
) -> Result<(PackedWeight, Outcome), WeightError> {
    let inputs = PreparedInputs::new(moments, rotation, spec.build()?.block_width(weight.shape()), options);
    inputs.compress(weight, spec)
}

/// The moments of a weight's inputs, rotated and factored: for one weight at several rates, or several weights that share
/// their inputs.
#[derive(Debug)]
pub struct PreparedInputs {
    rotation: Option<u64>,
    width: usize,
    /// Of the rotated inputs, the protected ones forgotten.
    moments: Moments,
    feedback: Feedback,
    protected: Option<ProtectedInputs>,
}

/// Columns that are protected, ascending, and the moments of all inputs as they were.
#[derive(Debug)]
struct ProtectedInputs {
    columns: Vec<u32>,
    moments: Moments,
}

impl PreparedInputs {
    /// Prepares `moments` for weights rotated with the signs of `rotation` and codecs of blocks of `width` columns.
    ///
    /// # Panics
    /// If `width` is 0.
    pub fn new(moments: Moments, rotation: Option<u64>, width: usize, options: FeedbackOptions) -> Self {
        Self::protecting(moments, rotation, width, options, Vec::new())
    }

    /// [`new`](Self::new) for weights of which `columns`, ascending, are [protected](crate::protected): errors of the codes
    /// there cost nothing.
    ///
    /// # Panics
    /// As [`new`](Self::new), or if there is no such column.
    pub fn protecting(
        moments: Moments,
        rotation: Option<u64>,
        width: usize,
        options: FeedbackOptions,
        columns: Vec<u32>,
    ) -> Self {
        let (moments, protected) = match columns.is_empty() {
            true => (moments, None),
            false => (moments.clone().without(&columns), Some(ProtectedInputs { columns, moments })),
        };
        let moments = match rotation {
            None => moments,
            Some(seed) => {
                let rotation = Rotation::new(moments.d_input(), seed);
                moments.rotated(&rotation)
            }
        };
        let feedback = Feedback::new(&moments, width, rotation.is_some(), options);
        Self { rotation, width, moments, feedback, protected }
    }

    /// [`compress_calibrated`] with these inputs.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// If the codec's blocks have another width.
    pub fn compress(&self, weight: Matrix, spec: &CodecSpec) -> Result<(PackedWeight, Outcome), WeightError> {
        self.compress_beside(weight, spec, None)
    }

    /// [`compress_beside`] with these inputs.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// As there, and if the codec's blocks have another width.
    pub fn compress_beside(
        &self,
        weight: Matrix,
        spec: &CodecSpec,
        low_rank: Option<(&LowRank, FactorStorage)>,
    ) -> Result<(PackedWeight, Outcome), WeightError> {
        let shape = weight.shape();
        if self.moments.d_input() != shape.d_input() {
            return Err(WeightError::MomentsWidth { shape, found: self.moments.d_input() });
        }
        let codec = spec.build()?;
        assert_eq!(codec.block_width(shape), self.width, "columns of a block of {spec}");
        let rotation = self.rotation.map(|seed| Rotation::new(shape.d_input(), seed));
        let columns = self.protected.as_ref().map_or(&[][..], |protected| &protected.columns);
        let taken = TakenOut { columns, low_rank };
        let original = original(&weight, taken);
        let conditioned = condition_without(weight, codec.row_scaling(), rotation, taken)?;
        let Encoded { codes, decoded } = self.feedback.encode(conditioned.weight.as_ref(), &*codec);
        let (plain, weighted) = fits_of(conditioned.weight.as_ref(), decoded.as_ref(), &self.moments);
        let scales = refit(&conditioned, &weighted);
        let mut output = sums_of(&weighted, &conditioned, &scales, ErrorSums::default());
        let mut weight = sums_of(&plain, &conditioned, &scales, lost(&conditioned));
        let packed = pack(conditioned, spec, codes, scales);
        match (original, &self.protected) {
            (None, _) => {}
            (Some(original), Some(protected)) => {
                let dense = packed.synthesize();
                weight = ErrorSums::between(original.as_slice(), dense.as_slice());
                output = protected.moments.output_error(original.as_ref(), dense.as_ref());
            }
            // What the low-rank part leaves is met as well as the whole is; only the power is that of the whole.
            (Some(original), None) => {
                weight.power = original.as_slice().iter().map(|&w| f64::from(w) * f64::from(w)).sum();
                output.power = self.output_power(original)?;
            }
        }
        let output = OutputError { sums: output, damping: self.feedback.damping, retries: self.feedback.retries };
        Ok((packed, Outcome { weight, output: Some(output) }))
    }

    /// What error feedback adds to the diagonal of `H`, in units of its mean, and how often that was doubled.
    pub const fn damping(&self) -> (f64, u32) {
        (self.feedback.damping, self.feedback.retries)
    }

    /// `tr(W·H·Wᵀ)` of a weight before it is rotated.
    ///
    /// # Errors
    /// [`WeightError`] for a weight that is not finite or of another width.
    pub fn output_power(&self, mut weight: Matrix) -> Result<f64, WeightError> {
        let shape = weight.shape();
        if self.moments.d_input() != shape.d_input() {
            return Err(WeightError::MomentsWidth { shape, found: self.moments.d_input() });
        }
        if let Some(protected) = &self.protected {
            return Ok(protected.moments.output_error(weight.as_ref(), Matrix::zeros(shape).as_ref()).power);
        }
        if let Some(seed) = self.rotation {
            Rotation::new(shape.d_input(), seed).rotate(&mut weight);
        }
        Ok(self.moments.output_error(weight.as_ref(), Matrix::zeros(shape).as_ref()).power)
    }
}

fn pack(conditioned: Conditioned, spec: &CodecSpec, codes: Codes, scales: Vec<f16>) -> PackedWeight {
    let mut streams = codes.streams;
    if !scales.is_empty() {
        streams.push(Stream::F16(scales));
    }
    let protected = &conditioned.protected;
    if !protected.is_empty() {
        streams.extend([Stream::U32(protected.columns().to_vec()), Stream::F16(protected.values().to_vec())]);
    }
    let low_rank = conditioned.low_rank.as_ref().map(LowRankFactors::spec);
    if let Some(factors) = conditioned.low_rank {
        streams.extend(factors.into_streams());
    }
    let header = PackedHeader {
        shape: conditioned.weight.shape(),
        codec: spec.clone(),
        rotation: conditioned.rotation.as_ref().map(Rotation::seed),
        exponent: conditioned.exponent,
        protected: conditioned.protected.len(),
        low_rank,
    };
    PackedWeight::new(header, streams).expect("a codec's own codes are valid")
}

/// The row scales that fit best.
fn refit(conditioned: &Conditioned, fits: &[RowFit]) -> Vec<f16> {
    conditioned.row_scales.iter().zip(fits).map(|(scale, fit)| fit.refit(*scale)).collect()
}

/// What rows too small for a scale lose: all that they have.
fn lost(conditioned: &Conditioned) -> ErrorSums {
    ErrorSums { power: conditioned.lost_power, error: conditioned.lost_power }
}

/// Power and error of all rows under `scales`, added to `sums`, in units of the source.
fn sums_of(fits: &[RowFit], conditioned: &Conditioned, scales: &[f16], mut sums: ErrorSums) -> ErrorSums {
    if scales.is_empty() {
        fits.iter().for_each(|fit| sums += fit.sums(1.0, 1.0));
    }
    for ((old, new), fit) in conditioned.row_scales.iter().zip(scales).zip(fits) {
        sums += fit.sums(old.to_f64(), new.to_f64());
    }
    let unit = f64::from(exp2(conditioned.exponent));
    ErrorSums { power: sums.power * unit * unit, error: sums.error * unit * unit }
}

/// Encodes all blocks of a conditioned weight, first to last, and sums up how well each row is met.
fn encode(conditioned: &Conditioned, codec: &dyn Codec) -> (Codes, Vec<RowFit>) {
    let weight = conditioned.weight.as_ref();
    let shape = weight.shape();
    let width = codec.block_width(shape);
    let mut encoder = codec.encoder(weight);
    let mut fits = vec![RowFit::default(); shape.d_output()];
    let mut values = vec![0.0; shape.d_output() * width];
    let mut decoded = values.clone();
    let protected = rows_of_rotation(conditioned);
    let mut there = vec![0.0; shape.d_output() * protected.len()];
    for (block, start) in (0..shape.d_input()).step_by(width).enumerate() {
        weight.copy_columns(start, &mut values);
        encoder.encode_block(block, &values, &mut decoded);
        let inside = width.min(shape.d_input() - start);
        let rows = values.chunks_exact(width).zip(decoded.chunks_exact(width));
        for (fit, (values, decoded)) in fits.iter_mut().zip(rows) {
            fit.add(&values[..inside], &decoded[..inside]);
        }
        if !protected.is_empty() {
            let rows = decoded.chunks_exact(width).zip(there.chunks_exact_mut(protected.len()));
            for (decoded, there) in rows {
                for (there, q) in there.iter_mut().zip(&protected) {
                    *there += decoded
                        .iter()
                        .zip(&q[start..start + inside])
                        .map(|(d, q)| f64::from(*d) * f64::from(*q))
                        .sum::<f64>();
                }
            }
        }
    }
    for (fit, there) in fits.iter_mut().zip(there.chunks_exact(protected.len().max(1))) {
        // The target is zero in these columns, so that only this product knows of them.
        fit.dd = (fit.dd - there.iter().map(|d| d * d).sum::<f64>()).max(0.0);
    }
    (encoder.finish(), fits)
}

/// Row `c` of `Q` for each protected column `c`: what a decoded row is multiplied by to see what it says there.
fn rows_of_rotation(conditioned: &Conditioned) -> Vec<Vec<f32>> {
    let n = conditioned.weight.shape().d_input();
    let row = |&column: &u32| {
        let mut row = vec![0.0; n];
        row[column as usize] = 1.0;
        if let Some(rotation) = &conditioned.rotation {
            rotation.forward(&mut row, &mut rotation.scratch());
        }
        row
    };
    conditioned.protected.columns().iter().map(row).collect()
}

/// Rows whose products with `H` are taken together.
const ROWS: usize = 64;

/// How well each row is met, as it stands and in its outputs.
fn fits_of(weight: MatrixRef<'_>, decoded: MatrixRef<'_>, moments: &Moments) -> (Vec<RowFit>, Vec<RowFit>) {
    let n = weight.shape().d_input();
    let widened = |rows: &[f32]| rows.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let (mut plain, mut weighted) = (Vec::new(), Vec::new());
    let mut products = [vec![0.0; ROWS * n], vec![0.0; ROWS * n]];
    for (v, d) in weight.as_slice().chunks(ROWS * n).zip(decoded.as_slice().chunks(ROWS * n)) {
        let (wide_v, wide_d) = (widened(v), widened(d));
        let [hv, hd] = &mut products;
        moments.multiply(&wide_v, &mut hv[..v.len()]);
        moments.multiply(&wide_d, &mut hd[..d.len()]);
        for row in (0..v.len()).step_by(n) {
            let row = row..row + n;
            let mut fit = RowFit::default();
            fit.add(&v[row.clone()], &d[row.clone()]);
            plain.push(fit);
            let mut fit = RowFit::default();
            let values = wide_v[row.clone()].iter().zip(&wide_d[row.clone()]);
            for ((v, d), (hv, hd)) in values.zip(hv[row.clone()].iter().zip(&hd[row])) {
                fit.vv += v * hv;
                fit.vd += d * hv;
                fit.dd += d * hd;
            }
            weighted.push(fit);
        }
    }
    (plain, weighted)
}

/// Inner products of a row `v` and its reproduction `d`, from which the best scale and the error follow.
#[derive(Debug, Clone, Copy, Default)]
struct RowFit {
    vv: f64,
    vd: f64,
    dd: f64,
}

impl RowFit {
    /// Adds part of a row, in the order of its columns.
    fn add(&mut self, values: &[f32], decoded: &[f32]) {
        for (&v, &d) in values.iter().zip(decoded) {
            let (v, d) = (f64::from(v), f64::from(d));
            self.vv += v * v;
            self.vd += v * d;
            self.dd += d * d;
        }
    }

    /// The scale for which `‖scale·v − new·d‖²` is least, in F16; `scale` itself where no other is better.
    fn refit(&self, scale: f16) -> f16 {
        let new = f16::from_f64(scale.to_f64() * self.vd / self.dd);
        let error = |new: f16| self.sums(scale.to_f64(), new.to_f64()).error;
        if new.is_finite() && error(new) < error(scale) { new } else { scale }
    }

    /// Power and error of the row when `v` stands for `old·v` and is reproduced as `new·d`.
    fn sums(&self, old: f64, new: f64) -> ErrorSums {
        let error = old * old * self.vv - 2.0 * old * new * self.vd + new * new * self.dd;
        ErrorSums { power: old * old * self.vv, error: error.max(0.0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::matrix::Shape;

    #[test]
    fn a_refitted_scale_is_the_least_squares_one() {
        let mut fit = RowFit::default();
        fit.add(&[1.0, 2.0], &[2.0, 4.0]);
        assert_eq!(fit.refit(f16::from_f32(3.0)), f16::from_f32(1.5));
        assert_eq!(fit.sums(3.0, 1.5).error, 0.0);
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

    #[test]
    fn the_reported_error_is_that_of_the_synthesised_weight() {
        let shape = Shape::new(33, 50).unwrap();
        let data: Vec<f32> = (0..shape.num_weights())
            .map(|i| (crate::rotation::split_mix(4, i as u64) >> 40) as f32 / 1e3 - 8e3)
            .collect();
        let weight = MatrixRef::new(shape, &data).unwrap();
        for family in crate::codec::FAMILIES {
            for rotation in [None, Some(3)] {
                let spec = CodecSpec::new(family.name(), 2.0);
                let (packed, sums) = compress_weight(weight, &spec, rotation).unwrap();
                let measured = ErrorSums::between(&data, packed.synthesize().as_slice());
                let ratio = measured.relative_mse() / sums.relative_mse();
                assert!((ratio - 1.0).abs() < 1e-3, "{spec} {rotation:?}: {measured:?} {sums:?}");
                assert!(sums.relative_mse() < 0.5, "{spec}");
            }
        }
    }
}
