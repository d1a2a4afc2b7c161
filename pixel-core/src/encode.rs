//! From one weight to its packed form, without error feedback.

use crate::codec::{Codec, CodecSpec};
use crate::codec::{Codes, Stream};
use crate::condition::{Conditioned, condition, exp2};
use crate::error::WeightError;
use crate::matrix::{Matrix, MatrixRef};
use crate::metrics::ErrorSums;
use crate::packed::{PackedHeader, PackedWeight};
use crate::rotation::Rotation;
use half::f16;

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
    let codec = spec.build()?;
    let shape = weight.shape();
    let rotation = rotation.map(|seed| Rotation::new(shape.d_input(), seed));
    let conditioned = condition(weight, codec.row_scaling(), rotation)?;
    let (codes, mut fits) = encode(&conditioned, &*codec);
    let mut streams = codes.streams;
    let mut sums = ErrorSums { power: conditioned.lost_power, error: conditioned.lost_power };
    if conditioned.row_scales.is_empty() {
        fits.iter().for_each(|fit| sums += fit.sums(1.0, 1.0));
    } else {
        let refitted: Vec<f16> = conditioned.row_scales.iter().zip(&mut fits).map(|(s, fit)| fit.refit(*s)).collect();
        for ((&old, &new), fit) in conditioned.row_scales.iter().zip(&refitted).zip(&fits) {
            sums += fit.sums(old.to_f64(), new.to_f64());
        }
        streams.push(Stream::F16(refitted));
    }
    let unit = f64::from(exp2(conditioned.exponent));
    let sums = ErrorSums { power: sums.power * unit * unit, error: sums.error * unit * unit };
    let header = PackedHeader {
        shape,
        codec: spec.clone(),
        rotation: conditioned.rotation.as_ref().map(Rotation::seed),
        exponent: conditioned.exponent,
    };
    let packed = PackedWeight::new(header, streams).expect("a codec's own codes are valid");
    Ok((packed, sums))
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
    for (block, start) in (0..shape.d_input()).step_by(width).enumerate() {
        weight.copy_columns(start, &mut values);
        encoder.encode_block(block, &values, &mut decoded);
        let inside = width.min(shape.d_input() - start);
        let rows = values.chunks_exact(width).zip(decoded.chunks_exact(width));
        for (fit, (values, decoded)) in fits.iter_mut().zip(rows) {
            fit.add(&values[..inside], &decoded[..inside]);
        }
    }
    (encoder.finish(), fits)
}

/// Inner products of a row `v` and its reproduction `d`, from which the best scale and the error follow.
#[derive(Debug, Clone, Copy, Default)]
struct RowFit {
    vv: f64,
    vd: f64,
    dd: f64,
}

impl RowFit {
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
