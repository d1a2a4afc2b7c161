//! A linear layer whose weight is patterns.

use crate::calibration;
use crate::dense::PixelModule;
use crate::error::LayerError;
use crate::shared_input::SharedInput;
use crate::synthesis::SynthesisMode;
use crate::weight::{LowRankParams, PatternWeight, read_floats};
use burn::config::Config;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::nn::{Initializer, Linear};
use burn::tensor::{Device, Tensor, TensorData, assert_shape};
use pixel_core::archive::Archive;
use pixel_core::math::metrics::ErrorSums;
use pixel_core::{CodecSpec, CodingSpec, Encoder, Matrix, Outcome, PackedWeight, Shape};

/// How a [`PIXELLinear`] is made.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use pixel_core::CodecSpec;
/// use pixel_nn::PIXELLinearConfig;
/// let device = Device::flex();
/// let layer = PIXELLinearConfig::new(64, 32).with_codec(CodecSpec::new("additive", 2.0)).init(&device);
/// assert_eq!(layer.forward(Tensor::<3>::zeros([2, 5, 64], &device)).dims(), [2, 5, 32]);
/// # }
/// ```
#[derive(Config, Debug)]
pub struct PIXELLinearConfig {
    /// The size of the input features.
    pub d_input: usize,
    /// The size of the output features.
    pub d_output: usize,
    /// Whether a bias is added. Default: true.
    #[config(default = true)]
    pub bias: bool,
    /// The codec of the weight. Default: `lapped:2`.
    #[config(default = "CodecSpec::new(pixel_core::codec::DEFAULT, 2.0)")]
    pub codec: CodecSpec,
    /// Whether the input side is rotated. Default: as the codec prefers.
    pub rotate: Option<bool>,
    /// The seed of the rotation's signs. Layers that share an input can share a rotation if they share the seed.
    /// Default: 0.
    #[config(default = 0)]
    pub seed: u64,
    /// The rank of a low-rank part in addition to the patterns, `x·down·up`. Default: none.
    pub rank: Option<usize>,
}

impl PIXELLinearConfig {
    /// A new layer: random codes whose weights have the standard deviation of Burn's default for `Linear`,
    /// `1/√(3·d_input)`; the bias uniform in `±1/√d_input`; a low-rank part that starts at zero. [`Device::seed`] makes
    /// it repeatable.
    ///
    /// # Panics
    /// If the configuration is invalid: [`try_init`](Self::try_init) returns it as an error.
    pub fn init(&self, device: &Device) -> PIXELLinear {
        self.try_init(device).unwrap_or_else(|error| panic!("PIXELLinear {}×{}: {error}", self.d_output, self.d_input))
    }

    /// [`init`](Self::init) for a configuration that the caller has not checked.
    ///
    /// # Errors
    /// [`LayerError`] for an empty shape, a codec that cannot be built, or a device without an implementation.
    pub fn try_init(&self, device: &Device) -> Result<PIXELLinear, LayerError> {
        let shape = Shape::new(self.d_output, self.d_input)?;
        let rotation = self.rotation()?;
        let largest = self.d_input.min(self.d_output);
        if let Some(rank) = self.rank.filter(|rank| !(1..=largest).contains(rank)) {
            return Err(pixel_core::ConfigError::Rank { rank, shape }.into());
        }
        let k = 1.0 / (self.d_input as f64).sqrt();
        let weight = PatternWeight::random(shape, &self.codec, rotation, (k / 3f64.sqrt()) as f32, device)?;
        let uniform = Initializer::Uniform { min: -k, max: k };
        let bias = self.bias.then(|| uniform.init([self.d_output], device));
        let low_rank = self.rank.map(|rank| LowRankParams {
            down: uniform.init([self.d_input, rank], device),
            up: Initializer::Zeros.init([rank, self.d_output], device),
        });
        // Random numbers need not be rotated.
        let weight = match low_rank {
            None => weight,
            Some(part) => weight.with_rotated_low_rank(part),
        };
        Ok(PIXELLinear { weight, bias, synthesis: SynthesisMode::OnDemand })
    }

    fn rotation(&self) -> Result<Option<u64>, LayerError> {
        rotation(&self.codec, self.rotate, self.seed)
    }
}

/// The rotation that a codec prefers, or the one asked for.
pub(crate) fn rotation(spec: &CodecSpec, rotate: Option<bool>, seed: u64) -> Result<Option<u64>, LayerError> {
    Ok(rotate.unwrap_or(spec.family()?.rotates()).then_some(seed))
}

/// A linear layer whose weight is patterns: `y = x·W + b`, `W` synthesised on demand.
///
/// Made with [`PIXELLinearConfig`], from a dense layer ([`from_linear`](Self::from_linear)), from a packed weight
/// ([`from_packed`](Self::from_packed)) or from an archive ([`from_archive`](Self::from_archive)).
///
/// # Training
/// Scales, low-rank part and bias have gradients; codes do not, and the dictionary where
/// [`PatternWeight::with_trained_dictionary`] asks for it.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct PIXELLinear {
    /// The weight, `[d_output, d_input]`.
    pub weight: PatternWeight,
    /// `[d_output]`.
    pub bias: Option<Param<Tensor<1>>>,
    #[module(skip)]
    pub(crate) synthesis: SynthesisMode,
}

impl PIXELLinear {
    /// Compresses a dense layer, on its device, and reports the error of the weight. The bias stays as it is.
    ///
    /// # Errors
    /// [`LayerError`] for a weight that is not of a float type or not finite, or a codec that cannot be built.
    ///
    /// # Example
    /// ```
    /// # #[cfg(feature = "flex")] {
    /// use burn::{nn::LinearConfig, tensor::Device};
    /// use pixel_nn::PIXELLinear;
    /// let dense = LinearConfig::new(128, 64).init(&Device::flex());
    /// let (layer, error) = PIXELLinear::from_linear(&dense, &"trellis:3:window=12".parse()?, 0)?;
    /// assert!(error.relative_mse() < 0.03);
    /// assert!(layer.to_string().contains("codec: trellis:3:window=12, bits_per_weight: 3.125"));
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_linear(dense: &Linear, codec: &CodecSpec, seed: u64) -> Result<(Self, ErrorSums), LayerError> {
        let spec = CodingSpec::new(codec.clone()).with_rotation(rotation(codec, None, seed)?);
        let (layer, outcome) = Self::from_linear_with(dense, Encoder::new(&spec))?;
        Ok((layer, outcome.weight))
    }

    /// [`from_linear`](Self::from_linear) by an encoder of the caller's: with the moments of the layer's inputs, with
    /// protected columns, with a low-rank part. Reports the errors of the weight and, where the moments are known, of
    /// the outputs.
    ///
    /// # Errors
    /// [`LayerError`] for a weight that is not of a float type or not finite, or a request that its shape does not
    /// allow.
    ///
    /// # Example
    /// ```
    /// # #[cfg(feature = "flex")] {
    /// use burn::nn::LinearConfig;
    /// use burn::tensor::{Device, Distribution, Tensor};
    /// use pixel_core::{CodingSpec, Encoder};
    /// use pixel_nn::PIXELLinear;
    /// use pixel_nn::calibration::{InputMoments, InputSums};
    /// let device = Device::flex();
    /// let dense = LinearConfig::new(64, 32).init(&device);
    /// let mut sums = InputSums::default();
    /// sums.observe("fc", &Tensor::<2>::random([256, 64], Distribution::Default, &device))?;
    /// let spec = CodingSpec::new("lapped:2".parse()?).with_rotation(Some(1));
    /// let encoder = Encoder::new(&spec).with_moments(sums.moments("fc")?);
    /// let (_, outcome) = PIXELLinear::from_linear_with(&dense, encoder)?;
    /// assert!(outcome.output.unwrap().sums.relative_mse() < outcome.weight.relative_mse());
    /// # }
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn from_linear_with(dense: &Linear, encoder: Encoder<'_>) -> Result<(Self, Outcome), LayerError> {
        let device = dense.weight.device();
        let weight = dense.weight.val();
        let [d_input, d_output] = weight.dims();
        // Burn's layers hold the transpose.
        let values = read_floats("weight", weight.transpose())?;
        let (packed, outcome) = encoder.encode(Matrix::new(Shape::new(d_output, d_input)?, values)?)?;
        let weight = PatternWeight::from_packed(&packed, &device)?;
        Ok((Self { weight, bias: dense.bias.clone(), synthesis: SynthesisMode::OnDemand }, outcome))
    }

    /// A layer from a packed weight and a bias `[d_output]`, if there is one.
    ///
    /// # Errors
    /// [`LayerError::BiasShape`]; [`LayerError::Backend`].
    pub fn from_packed(packed: &PackedWeight, bias: Option<Vec<f32>>, device: &Device) -> Result<Self, LayerError> {
        Self::from_weight(PatternWeight::from_packed(packed, device)?, bias, device)
    }

    /// A layer from a weight on `device` and a bias `[d_output]`, if there is one.
    ///
    /// # Errors
    /// [`LayerError::BiasShape`].
    pub fn from_weight(weight: PatternWeight, bias: Option<Vec<f32>>, device: &Device) -> Result<Self, LayerError> {
        let shape = weight.shape();
        if let Some(bias) = bias.as_ref().filter(|bias| bias.len() != shape.d_output()) {
            return Err(LayerError::BiasShape { tensor: "bias".into(), found: vec![bias.len()], weight: shape });
        }
        let bias = bias.map(|bias| Param::from_data(TensorData::new(bias, [shape.d_output()]), device));
        Ok(Self { weight, bias, synthesis: SynthesisMode::OnDemand })
    }

    /// The layer whose tensors are `NAME.weight`, packed, and `NAME.bias`, kept, if the archive has that. Hashes are
    /// checked.
    ///
    /// # Errors
    /// [`LayerError::Archive`] for a name that is not there or not packed and for damaged contents;
    /// [`LayerError::NotFloat`] for a bias that is packed, [`LayerError::BiasShape`] for one that does not fit;
    /// [`LayerError::Backend`].
    pub fn from_archive(archive: &Archive, name: &str, device: &Device) -> Result<Self, LayerError> {
        let packed = archive.packed(&format!("{name}.weight"))?;
        let bias = bias_of(archive, name, packed.shape())?;
        Self::from_packed(&packed, bias, device)
    }

    /// Chooses when dense weights exist.
    pub fn with_synthesis(mut self, mode: SynthesisMode) -> Self {
        self.synthesis = mode;
        self
    }

    /// Adds a low-rank part to the patterns, for training for instance; see [`PatternWeight::with_low_rank`], also for
    /// what protected columns do to it.
    ///
    /// # Panics
    /// If its shapes are not `[d_input, rank]` and `[rank, d_output]`, or the rank exceeds the shorter side.
    pub fn with_low_rank(mut self, low_rank: LowRankParams) -> Self {
        self.weight = self.weight.with_low_rank(low_rank);
        self
    }

    /// The size of the input features.
    pub fn d_input(&self) -> usize {
        self.weight.shape().d_input()
    }

    /// The size of the output features.
    pub fn d_output(&self) -> usize {
        self.weight.shape().d_output()
    }

    /// Applies the layer: `[…, d_input]` to `[…, d_output]`.
    ///
    /// # Panics
    /// If the last axis of `input` is not `d_input`.
    pub fn forward<const D: usize>(&self, input: Tensor<D>) -> Tensor<D> {
        self.forward_shared(&input.into())
    }

    /// [`forward`](Self::forward) of an input that other layers read as well.
    ///
    /// # Panics
    /// As [`forward`](Self::forward).
    pub fn forward_shared<const D: usize>(&self, shared: &SharedInput<D>) -> Tensor<D> {
        let (d_input, input) = (self.d_input(), shared.get());
        assert_shape!(input, [.., d_input]);
        let weight = self.weight.codes().id;
        calibration::observe(weight, &input);
        let output = self.weight.linear_shared(shared, &self.synthesis);
        let output = match &self.bias {
            None => output,
            Some(bias) => {
                let bias = bias.val().cast(output.dtype()).unsqueeze();
                output + bias
            }
        };
        calibration::tap(weight, output)
    }
}

/// The bias `NAME.bias` of a weight of `shape`, if the archive has one.
pub(crate) fn bias_of(archive: &Archive, name: &str, shape: Shape) -> Result<Option<Vec<f32>>, LayerError> {
    let tensor = format!("{name}.bias");
    if archive.entries().contains_key(&tensor) {
        return Err(LayerError::NotFloat { tensor, found: "codes".into() });
    }
    if !archive.kept().contains_key(&tensor) {
        return Ok(None);
    }
    let (info, _) = archive.kept_bytes(&tensor)?;
    if info.shape != [shape.d_output()] {
        let found = info.shape.clone();
        return Err(LayerError::BiasShape { tensor, found, weight: shape });
    }
    Ok(Some(archive.checkpoint().to_f32(&tensor)?))
}

impl PixelModule for PIXELLinear {
    type Dense = Linear;

    fn to_dense(&self) -> Linear {
        let weight = self.weight.synthesize().transpose();
        Linear { weight: Param::from_tensor(weight.detach()), bias: self.bias.clone() }
    }

    fn bits_per_weight(&self) -> f64 {
        8.0 * self.stored_bytes() as f64 / self.weight.shape().num_weights() as f64
    }

    /// Codes, scales, learned patterns and low-rank factors as an archive holds them.
    fn stored_bytes(&self) -> usize {
        self.weight.stored_bytes()
    }
}

impl ModuleDisplay for PIXELLinear {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let content = content
            .add("d_input", &self.d_input())
            .add("d_output", &self.d_output())
            .add("bias", &self.bias.is_some())
            .add("codec", self.weight.codec().to_string().as_str())
            .add("bits_per_weight", format!("{:.3}", self.bits_per_weight()).as_str());
        match self.weight.low_rank() {
            None => content.optional(),
            Some(low_rank) => content.add("rank", &low_rank.rank()).optional(),
        }
    }
}
