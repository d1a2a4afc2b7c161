//! A lookup table whose rows are synthesised on demand.

use crate::dense::PixelModule;
use crate::error::LayerError;
use crate::linear::rotation;
use crate::synthesis::SynthesisMode;
use crate::weight::{PatternWeight, encode, read_floats};
use burn::config::Config;
use burn::module::{Content, DisplaySettings, Module, ModuleDisplay, Param};
use burn::nn::Embedding;
use burn::tensor::{Device, Int, Tensor};
use pixel_core::archive::Archive;
use pixel_core::math::metrics::ErrorSums;
use pixel_core::{CodecSpec, Matrix, PackedWeight, Shape};

/// How a [`PIXELEmbedding`] is made.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Int, Tensor};
/// use pixel_nn::PIXELEmbeddingConfig;
/// let device = Device::flex();
/// let layer = PIXELEmbeddingConfig::new(1000, 64).init(&device);
/// let tokens = Tensor::<2, Int>::from_data([[3, 999, 3]], &device);
/// assert_eq!(layer.forward(tokens).dims(), [1, 3, 64]);
/// # }
/// ```
#[derive(Config, Debug)]
pub struct PIXELEmbeddingConfig {
    /// The number of vectors.
    pub n_embedding: usize,
    /// The size of a vector.
    pub d_model: usize,
    /// The codec of the table. Default: `uniform:8`, as for embeddings in a recipe.
    #[config(default = "CodecSpec::new(\"uniform\", 8.0)")]
    pub codec: CodecSpec,
    /// Whether the vectors are rotated. Default: as the codec prefers.
    pub rotate: Option<bool>,
    /// The seed of the rotation's signs. Default: 0.
    #[config(default = 0)]
    pub seed: u64,
}

impl PIXELEmbeddingConfig {
    /// A new table: random codes, standard deviation 1, as Burn's `Embedding`.
    ///
    /// # Panics
    /// If the configuration is invalid: [`try_init`](Self::try_init) returns it as an error.
    pub fn init(&self, device: &Device) -> PIXELEmbedding {
        let fail = |error| panic!("PIXELEmbedding {}×{}: {error}", self.n_embedding, self.d_model);
        self.try_init(device).unwrap_or_else(fail)
    }

    /// [`init`](Self::init) for a configuration that the caller has not checked.
    ///
    /// # Errors
    /// [`LayerError`] for an empty shape, a codec that cannot be built, or a device without an implementation.
    pub fn try_init(&self, device: &Device) -> Result<PIXELEmbedding, LayerError> {
        let shape = Shape::new(self.n_embedding, self.d_model)?;
        let rotation = rotation(&self.codec, self.rotate, self.seed)?;
        let weight = PatternWeight::random(shape, &self.codec, rotation, 1.0, device)?;
        Ok(PIXELEmbedding { weight, synthesis: SynthesisMode::OnDemand })
    }
}

/// A lookup table of `n_embedding` vectors, of which a forward pass synthesises those that it needs.
#[derive(Module, Debug)]
#[module(custom_display)]
pub struct PIXELEmbedding {
    /// The table, `[n_embedding, d_model]`.
    pub weight: PatternWeight,
    #[module(skip)]
    synthesis: SynthesisMode,
}

impl PIXELEmbedding {
    /// Compresses a dense table, on its device, and reports the error.
    ///
    /// # Errors
    /// [`LayerError`] for a table that is not of a float type or not finite, or a codec that cannot be built.
    pub fn from_embedding(dense: &Embedding, codec: &CodecSpec, seed: u64) -> Result<(Self, ErrorSums), LayerError> {
        let device = dense.weight.device();
        let weight = dense.weight.val();
        let [n_embedding, d_model] = weight.dims();
        let matrix = Matrix::new(Shape::new(n_embedding, d_model)?, read_floats("weight", weight)?)?;
        let (packed, error) = encode(matrix, codec, rotation(codec, None, seed)?)?;
        Ok((Self::from_packed(&packed, &device)?, error))
    }

    /// A table from a packed weight, `[n_embedding, d_model]`.
    ///
    /// # Errors
    /// [`LayerError::Backend`].
    pub fn from_packed(packed: &PackedWeight, device: &Device) -> Result<Self, LayerError> {
        Ok(Self::from_weight(PatternWeight::from_packed(packed, device)?))
    }

    /// A table from a weight on its device, `[n_embedding, d_model]`.
    pub fn from_weight(weight: PatternWeight) -> Self {
        Self { weight, synthesis: SynthesisMode::OnDemand }
    }

    /// The table whose tensor is `NAME.weight`, packed. Hashes are checked.
    ///
    /// # Errors
    /// [`LayerError::Archive`] for a name that is not there or not packed and for damaged contents;
    /// [`LayerError::Backend`].
    pub fn from_archive(archive: &Archive, name: &str, device: &Device) -> Result<Self, LayerError> {
        Self::from_packed(&archive.packed(&format!("{name}.weight"))?, device)
    }

    /// Chooses when dense weights exist.
    pub fn with_synthesis(mut self, mode: SynthesisMode) -> Self {
        self.synthesis = mode;
        self
    }

    /// The vectors of `tokens` `[batch, length]`: `[batch, length, d_model]`.
    ///
    /// # Panics
    /// On CPU backends, if a token is `n_embedding` or more.
    pub fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let [batch, length] = tokens.dims();
        let rows = self.weight.rows(tokens.reshape([batch * length]), &self.synthesis);
        rows.reshape([batch, length, self.weight.shape().d_input()])
    }
}

impl PixelModule for PIXELEmbedding {
    type Dense = Embedding;

    fn to_dense(&self) -> Embedding {
        Embedding { weight: Param::from_tensor(self.weight.synthesize().detach()) }
    }

    fn bits_per_weight(&self) -> f64 {
        self.weight.bits_per_weight()
    }

    fn stored_bytes(&self) -> usize {
        self.weight.stored_bytes()
    }
}

impl ModuleDisplay for PIXELEmbedding {
    fn custom_settings(&self) -> Option<DisplaySettings> {
        DisplaySettings::new().with_new_line_after_attribute(false).optional()
    }

    fn custom_content(&self, content: Content) -> Option<Content> {
        let shape = self.weight.shape();
        content
            .add("n_embedding", &shape.d_output())
            .add("d_model", &shape.d_input())
            .add("codec", self.weight.codec().to_string().as_str())
            .add("bits_per_weight", format!("{:.3}", self.bits_per_weight()).as_str())
            .optional()
    }
}
