//! The affine map that an attention applies, whatever its weight is stored as.

use crate::calibration;
use crate::dense::PixelModule;
use crate::error::LayerError;
use crate::linear::{PIXELLinear, bias_of};
use crate::shared_input::SharedInput;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param, ParamId};
use burn::nn::Linear;
use burn::tensor::{Device, Tensor, TensorData};
use pixel_core::archive::Archive;
use pixel_core::math::transposed;
use pixel_core::{CodecSpec, Encoder, Outcome, Shape};

/// `y = x·W + b` over the last axis.
///
/// The variant is part of a parameter's path in a record (`query.Dense.weight`); the stores of Burn leave it out with
/// `skip_enum_variants`.
#[derive(Module, Debug)]
#[module(custom_display)]
#[non_exhaustive]
#[allow(clippy::large_enum_variant, reason = "a model has far fewer of them than numbers, and a box is no module")]
pub enum Projection {
    /// The weight as it is: `[d_input, d_output]` floats.
    Dense(Linear),
    /// The weight as patterns.
    Pixel(PIXELLinear),
}

impl Projection {
    /// Applies the map to every vector of the last axis.
    ///
    /// # Shapes
    /// - input: `[..., d_input]`
    /// - output: `[..., d_output]`
    ///
    /// # Panics
    /// If the last axis of `input` is not [`d_input`](Self::d_input).
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        match self {
            Self::Dense(linear) => {
                calibration::observe(linear.weight.id, &input);
                calibration::tap(linear.weight.id, linear.forward(input))
            }
            Self::Pixel(linear) => linear.forward(input),
        }
    }

    /// [`forward`](Self::forward) of an input that other maps read as well.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_shared<const D: usize>(&self, input: &SharedInput<D>) -> Tensor<D> {
        match self {
            Self::Dense(_) => self.forward(input.get()),
            Self::Pixel(linear) => linear.forward_shared(input),
        }
    }

    /// The map whose tensors are `NAME.weight` and `NAME.bias`, if the archive has that: with patterns where the weight
    /// is packed, dense where it is kept, `[d_output, d_input]` in the archive. Hashes are checked.
    ///
    /// # Errors
    /// As [`PIXELLinear::from_archive`]; [`LayerError::OtherForm`] for a weight that is no matrix.
    pub fn from_archive(archive: &Archive, name: &str, device: &Device) -> Result<Self, LayerError> {
        let weight = format!("{name}.weight");
        if !archive.kept().contains_key(&weight) {
            return Ok(Self::Pixel(PIXELLinear::from_archive(archive, name, device)?));
        }
        let (info, _) = archive.kept_bytes(&weight)?;
        let &[d_output, d_input] = &info.shape[..] else {
            let found = format!("values of shape {:?}", info.shape);
            return Err(LayerError::OtherForm { found, expected: "a matrix".into() }.at(&weight));
        };
        let shape = Shape::new(d_output, d_input)?;
        // Turned here: products of more than two axes would copy a weight that a device has turned.
        let values = TensorData::new(transposed(&archive.checkpoint().to_f32(&weight)?, d_input), [d_input, d_output]);
        let bias = bias_of(archive, name, shape)?;
        Ok(Self::Dense(Linear {
            weight: Param::from_data(values, device),
            bias: bias.map(|bias| Param::from_data(TensorData::new(bias, [d_output]), device)),
        }))
    }

    /// The same map with its weight as patterns; one that has patterns already stays as it is.
    ///
    /// # Errors
    /// As [`PIXELLinear::from_linear`].
    pub fn compress(&self, codec: &CodecSpec, seed: u64) -> Result<Self, LayerError> {
        match self {
            Self::Dense(linear) => Ok(Self::Pixel(PIXELLinear::from_linear(linear, codec, seed)?.0)),
            Self::Pixel(linear) => Ok(Self::Pixel(linear.clone())),
        }
    }

    /// [`compress`](Self::compress) by an encoder of the caller's, with the moments of the inputs for instance; the
    /// errors are those of [`PIXELLinear::from_linear_with`], `None` if the map has patterns already.
    ///
    /// # Errors
    /// As [`PIXELLinear::from_linear_with`].
    pub fn compress_with(&self, encoder: Encoder<'_>) -> Result<(Self, Option<Outcome>), LayerError> {
        match self {
            Self::Dense(linear) => {
                let (linear, outcome) = PIXELLinear::from_linear_with(linear, encoder)?;
                Ok((Self::Pixel(linear), Some(outcome)))
            }
            Self::Pixel(linear) => Ok((Self::Pixel(linear.clone()), None)),
        }
    }

    /// The same map with a dense weight.
    pub fn to_dense(&self) -> Self {
        match self {
            Self::Dense(linear) => Self::Dense(linear.clone()),
            Self::Pixel(linear) => Self::Dense(linear.to_dense()),
        }
    }

    /// Bytes of the weight: of its codes and scales as an archive holds them, or of its floats.
    pub fn stored_bytes(&self) -> usize {
        match self {
            Self::Dense(linear) => linear.weight.dtype().size() * self.d_input() * self.d_output(),
            Self::Pixel(linear) => linear.stored_bytes(),
        }
    }

    /// The id by which [`calibrate`](crate::calibration::calibrate) knows the weight: that of the dense parameter, or
    /// of the codes.
    pub fn weight_id(&self) -> ParamId {
        match self {
            Self::Dense(linear) => linear.weight.id,
            Self::Pixel(linear) => linear.weight.codes().id,
        }
    }

    /// The length of a vector that goes in.
    pub fn d_input(&self) -> usize {
        match self {
            Self::Dense(linear) => linear.weight.lazy_shape()[0],
            Self::Pixel(linear) => linear.d_input(),
        }
    }

    /// The length of a vector that comes out.
    pub fn d_output(&self) -> usize {
        match self {
            Self::Dense(linear) => linear.weight.lazy_shape()[1],
            Self::Pixel(linear) => linear.d_output(),
        }
    }
}

impl From<PIXELLinear> for Projection {
    fn from(linear: PIXELLinear) -> Self {
        Self::Pixel(linear)
    }
}

impl From<Linear> for Projection {
    fn from(linear: Linear) -> Self {
        Self::Dense(linear)
    }
}

/// Shows the layer inside, as if it stood there by itself.
impl ModuleDisplay for Projection {
    fn format(&self, passed_settings: DisplaySettings) -> String {
        match self {
            Self::Dense(linear) => linear.format(passed_settings),
            Self::Pixel(linear) => linear.format(passed_settings),
        }
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        match self {
            Self::Dense(linear) => linear.custom_content(content),
            Self::Pixel(linear) => linear.custom_content(content),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use burn::nn::LinearConfig;

    #[test]
    fn a_dense_projection_is_its_linear_layer() {
        let device = Device::flex();
        let linear = LinearConfig::new(3, 5).init(&device);
        let projection = Projection::from(linear.clone());
        let input = Tensor::<2>::from_data([[1.0, -2.0, 0.5]], &device);

        assert_eq!((projection.d_input(), projection.d_output()), (3, 5));
        assert_eq!(projection.num_params(), 20);
        assert_eq!(projection.to_string(), linear.to_string());
        projection.forward(input.clone()).into_data().assert_eq(&linear.forward(input).into_data(), true);
    }
}
