//! [`PIXELCompressor`]: a model in memory, by one configuration.

use super::progress::Progress;
use crate::archive::{
    ARCHIVE_FILE, Archive, ArchiveError, ArchivePlan, ArchiveTensor, ArchiveWriter, FloatType, OutputKind, Record,
};
use crate::config::PIXELConfig;
use crate::encode::{CodingSpec, Encoder};
use crate::error::{ConfigError, WeightError};
use crate::math::metrics::ErrorSums;
use crate::matrix::{Matrix, MatrixRef};
use crate::packed::PackedWeight;
use rayon::prelude::*;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, PoisonError};

/// Compresses matrices by one configuration.
///
/// # Example
/// ```
/// use pixel_core::compressor::PIXELCompressor;
/// use pixel_core::{CodecSpec, Matrix, PIXELConfig, Shape};
/// let config = PIXELConfig { codec: Some("additive:2".parse()?), ..PIXELConfig::for_small_model() };
/// let weight = Matrix::new(Shape::new(3, 50)?, (0..150).map(|i| (i % 7) as f32 - 3.0).collect())?;
/// let compressor = PIXELCompressor::new(config)?;
/// let model = compressor.compress([("a", &weight)])?;
/// assert_eq!(model.compressed_size(), 3 * 2 + 3 * 16); // row scales, and rows of 7 groups of 16 bits
/// assert_eq!(compressor.decompress(&model)["a"].shape(), Shape::new(3, 50)?);
/// println!("{}", model.summary());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PIXELCompressor {
    config: PIXELConfig,
    spec: CodingSpec,
    stats: Mutex<CompressorStats>,
}

/// Why a model cannot be compressed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompressError {
    /// One of its weights cannot be.
    #[error("tensor \"{tensor}\"")]
    Tensor {
        /// The weight.
        tensor: String,
        /// Why.
        source: WeightError,
    },
    /// Two of its weights have one name.
    #[error("two weights are called \"{tensor}\"")]
    SameName {
        /// The name.
        tensor: String,
    },
    /// The caller asked to stop.
    #[error("cancelled after {done} of {tensors} weights")]
    Cancelled {
        /// Weights that were compressed before.
        done: usize,
        /// Weights of the model.
        tensors: usize,
    },
}

/// What a compressor has done since it was made.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CompressorStats {
    /// Weights compressed.
    pub tensors: usize,
    /// Their bytes as F32.
    pub original_bytes: usize,
    /// Their bytes packed.
    pub compressed_bytes: usize,
}

/// A compressed weight with its error.
#[derive(Debug)]
pub struct CompressedTensor {
    /// The weight.
    pub packed: PackedWeight,
    /// Its relative mean squared error.
    pub relative_mse: f64,
    /// The type that the weight takes when it is dense.
    pub dtype: FloatType,
    source_blake3: String,
}

/// A compressed model.
#[derive(Debug)]
pub struct CompressedModel {
    /// The weights: pattern indices and scales by name.
    pub pattern_refs: BTreeMap<String, CompressedTensor>,
    quality_threshold: f32,
}

impl PIXELCompressor {
    /// A compressor for `config`.
    ///
    /// # Errors
    /// [`ConfigError`].
    pub fn new(config: PIXELConfig) -> Result<Self, ConfigError> {
        config.validate()?;
        let codec = config.codec_spec()?;
        let rotates = config.quantization.dynamic_range && codec.family()?.rotates();
        let spec = CodingSpec::new(codec).with_rotation(rotates.then_some(config.seed));
        Ok(Self { spec, config, stats: Mutex::default() })
    }

    /// The configuration.
    pub const fn config(&self) -> &PIXELConfig {
        &self.config
    }

    /// Compresses one weight of any shape.
    ///
    /// # Errors
    /// [`WeightError::NotFinite`].
    pub fn compress_tensor(&self, weight: MatrixRef<'_>) -> Result<CompressedTensor, WeightError> {
        let own = Matrix::new(weight.shape(), weight.as_slice().to_vec())?;
        let (packed, outcome) = Encoder::new(&self.spec).encode(own)?;
        let mut hasher = blake3::Hasher::new();
        weight.as_slice().iter().for_each(|w| {
            hasher.update(&w.to_le_bytes());
        });
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.tensors += 1;
        stats.original_bytes += 4 * weight.shape().num_weights();
        stats.compressed_bytes += packed.num_bytes();
        let source_blake3 = hasher.finalize().to_hex().to_string();
        let relative_mse = outcome.weight.relative_mse();
        Ok(CompressedTensor { packed, relative_mse, dtype: self.config.dtype, source_blake3 })
    }

    /// The dense form of a compressed weight.
    pub fn decompress_tensor(&self, tensor: &CompressedTensor) -> Matrix {
        tensor.packed.synthesize()
    }

    /// Compresses every weight of a map, or any other pairs of a name and a weight, in parallel.
    ///
    /// # Errors
    /// The first weight in the order of the names that cannot be compressed; [`CompressError::SameName`].
    pub fn compress<'w, N: Into<String>>(
        &self,
        tensors: impl IntoIterator<Item = (N, &'w Matrix)>,
    ) -> Result<CompressedModel, CompressError> {
        self.compress_with(tensors, &())
    }

    /// [`compress`](Self::compress), reporting to `progress`, until that asks to stop.
    ///
    /// # Errors
    /// As [`compress`](Self::compress); [`CompressError::Cancelled`].
    pub fn compress_with<'w, N: Into<String>>(
        &self,
        tensors: impl IntoIterator<Item = (N, &'w Matrix)>,
        progress: &dyn Progress,
    ) -> Result<CompressedModel, CompressError> {
        let mut by_name: BTreeMap<String, &Matrix> = BTreeMap::new();
        for (name, weight) in tensors {
            let name = name.into();
            if by_name.insert(name.clone(), weight).is_some() {
                return Err(CompressError::SameName { tensor: name });
            }
        }
        let tensors = by_name;
        let compress = |(name, weight): (&String, &&Matrix)| {
            if progress.is_cancelled() {
                return Ok(None);
            }
            let tensor = self.compress_tensor(weight.as_ref());
            let tensor = tensor.map_err(|source| CompressError::Tensor { tensor: name.clone(), source })?;
            progress.tensor_done(name, weight.shape().num_weights() as u64);
            Ok(Some((name.clone(), tensor)))
        };
        let compressed: Vec<Result<_, CompressError>> = tensors.par_iter().map(compress).collect();
        let found: Vec<Option<_>> = compressed.into_iter().collect::<Result<_, _>>()?;
        let pattern_refs: BTreeMap<_, _> = found.into_iter().flatten().collect();
        if pattern_refs.len() < tensors.len() {
            return Err(CompressError::Cancelled { done: pattern_refs.len(), tensors: tensors.len() });
        }
        Ok(CompressedModel { pattern_refs, quality_threshold: self.config.compression.quality_threshold })
    }

    /// The dense forms of all weights.
    pub fn decompress(&self, model: &CompressedModel) -> BTreeMap<String, Matrix> {
        model.pattern_refs.iter().map(|(name, tensor)| (name.clone(), self.decompress_tensor(tensor))).collect()
    }

    /// Writes a compressed model as an archive of one file.
    ///
    /// # Errors
    /// [`ArchiveError::OutputExists`] if the path exists; [`ArchiveError`]. Nothing is then left under the final name.
    pub fn save(&self, model: &CompressedModel, path: impl AsRef<Path>) -> Result<(), ArchiveError> {
        self.write(model, path.as_ref(), false)
    }

    /// [`save`](Self::save) in place of an existing file that PIXEL wrote.
    ///
    /// # Errors
    /// [`ArchiveError::OutputKind`] if the path is a directory; [`ArchiveError::ForeignFile`] if PIXEL did not write
    /// what is there; [`ArchiveError`]. An existing file is then unchanged.
    pub fn save_replacing(&self, model: &CompressedModel, path: impl AsRef<Path>) -> Result<(), ArchiveError> {
        self.write(model, path.as_ref(), true)
    }

    fn write(&self, model: &CompressedModel, path: &Path, overwrite: bool) -> Result<(), ArchiveError> {
        let tensors = model.pattern_refs.iter().map(|(name, tensor)| ArchiveTensor::Packed {
            name: name.clone(),
            header: tensor.packed.header().clone(),
            dtype: tensor.dtype,
        });
        let plan = ArchivePlan::new(ARCHIVE_FILE, BTreeMap::new(), tensors)?;
        let writer = ArchiveWriter::create(path, OutputKind::File, &[plan], overwrite)?;
        for (name, CompressedTensor { packed, relative_mse, dtype, source_blake3 }) in &model.pattern_refs {
            let (dtype, relative_mse, source_blake3) = (*dtype, *relative_mse, source_blake3.clone());
            let record = Record { dtype, relative_mse, output_loss: None, source_blake3 };
            writer.write_packed(0, name, packed, record)?;
        }
        writer.finish(|_| Ok(()))
    }

    /// Reads the packed weights of an archive; tensors that were stored unchanged are skipped.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn load(&self, path: impl AsRef<Path>) -> Result<CompressedModel, ArchiveError> {
        let archive = Archive::open(path)?;
        let tensors = archive.entries().iter().map(|(name, entry)| {
            let tensor = CompressedTensor {
                packed: archive.packed(name)?,
                relative_mse: entry.manifest().relative_mse,
                dtype: entry.manifest().dtype,
                source_blake3: entry.manifest().source_blake3.clone(),
            };
            Ok((name.clone(), tensor))
        });
        Ok(CompressedModel {
            pattern_refs: tensors.collect::<Result<_, ArchiveError>>()?,
            quality_threshold: self.config.compression.quality_threshold,
        })
    }

    /// What has been done so far.
    pub fn stats(&self) -> CompressorStats {
        *self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl CompressedModel {
    /// Bytes of the weights as F32.
    pub fn original_size(&self) -> usize {
        self.pattern_refs.values().map(|tensor| 4 * tensor.packed.shape().num_weights()).sum()
    }

    /// Bytes of all streams, as an archive stores them.
    pub fn compressed_size(&self) -> usize {
        self.pattern_refs.values().map(|tensor| tensor.packed.num_bytes()).sum()
    }

    /// Pattern indices stored.
    pub fn num_patterns(&self) -> usize {
        self.pattern_refs.values().map(|tensor| tensor.packed.codec().num_indices(tensor.packed.shape())).sum()
    }

    /// Relative error `‖W − Ŵ‖/‖W‖`: the root of the mean of the weights' relative squared errors, by size.
    pub fn reconstruction_error(&self) -> f64 {
        let mut sums = ErrorSums::default();
        for tensor in self.pattern_refs.values() {
            let weights = tensor.packed.shape().num_weights() as f64;
            sums += ErrorSums { power: weights, error: weights * tensor.relative_mse };
        }
        sums.relative_mse().sqrt()
    }

    /// Original over compressed size.
    pub fn compression_ratio(&self) -> f64 {
        self.original_size() as f64 / self.compressed_size() as f64
    }

    /// The weights whose quality, 1 − relative error, is below the configuration's threshold.
    pub fn below_quality(&self) -> impl Iterator<Item = &str> {
        let limit = 1.0 - f64::from(self.quality_threshold);
        self.pattern_refs.iter().filter(move |(_, t)| t.relative_mse.sqrt() > limit).map(|(name, _)| name.as_str())
    }

    /// A short summary as text.
    pub fn summary(&self) -> String {
        format!(
            "{} weights, {} patterns\n{} -> {} bytes, {:.2}×\nrelative error {:.4}; {} weights below quality {}",
            self.pattern_refs.len(),
            self.num_patterns(),
            self.original_size(),
            self.compressed_size(),
            self.compression_ratio(),
            self.reconstruction_error(),
            self.below_quality().count(),
            self.quality_threshold,
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::CodecSpec;
    use crate::matrix::Shape;

    fn weights() -> BTreeMap<String, Matrix> {
        [(1, 100), (40, 40), (7, 3)]
            .into_iter()
            .map(|(m, n)| {
                let shape = Shape::new(m, n).unwrap();
                let data = (0..m * n).map(|i| crate::math::rotation::split_mix(8, i as u64) as u32 as f32 / 2e9 - 1.0);
                (format!("{m}x{n}"), Matrix::new(shape, data.collect()).unwrap())
            })
            .collect()
    }

    #[test]
    fn a_model_survives_saving_and_loading() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let codec = Some(CodecSpec::new("trellis", 4.0).with_option("window", 9));
        let compressor = PIXELCompressor::new(PIXELConfig { codec, ..Default::default() }).unwrap();
        let model = compressor.compress(&weights()).unwrap();
        compressor.save(&model, &path).unwrap();
        assert!(matches!(compressor.save(&model, &path), Err(ArchiveError::OutputExists { .. })));
        compressor.save_replacing(&model, &path).unwrap();
        let loaded = compressor.load(&path).unwrap();
        assert_eq!(compressor.decompress(&loaded), compressor.decompress(&model));
        assert_eq!(loaded.compressed_size(), model.compressed_size());
        assert_eq!(compressor.stats().compressed_bytes, model.compressed_size());
        assert!(model.reconstruction_error() < 0.15, "{}", model.summary());
    }

    #[test]
    fn weights_below_the_quality_are_told() {
        let codec = Some(CodecSpec::new("additive", 1.0));
        let compressor = PIXELCompressor::new(PIXELConfig { codec, ..Default::default() }).unwrap();
        let model = compressor.compress(&weights()).unwrap();
        assert!(model.below_quality().any(|name| name == "40x40"));
        assert!(model.summary().contains("below quality 0.95"));
    }

    #[test]
    fn a_directory_is_never_replaced_by_a_model() {
        let dir = tempfile::tempdir().unwrap();
        let models = dir.path().join("models");
        std::fs::create_dir(&models).unwrap();
        std::fs::write(models.join("precious"), "data").unwrap();
        let codec = Some(CodecSpec::new("uniform", 4.0));
        let compressor = PIXELCompressor::new(PIXELConfig { codec, ..Default::default() }).unwrap();
        let model = compressor.compress(&weights()).unwrap();
        assert!(matches!(compressor.save(&model, &models), Err(ArchiveError::OutputExists { .. })));
        assert!(matches!(compressor.save_replacing(&model, &models), Err(ArchiveError::OutputKind { .. })));
        assert_eq!(std::fs::read_to_string(models.join("precious")).unwrap(), "data");
    }

    /// Asks to stop once a weight is done.
    #[derive(Default)]
    struct Once(std::sync::atomic::AtomicUsize);

    impl Progress for Once {
        fn tensor_done(&self, _: &str, _: u64) {
            self.0.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        }

        fn is_cancelled(&self) -> bool {
            self.0.load(std::sync::atomic::Ordering::Relaxed) > 0
        }
    }

    #[test]
    fn a_run_that_is_cancelled_stops_and_a_weight_at_fault_is_named() {
        let codec = Some(CodecSpec::new("uniform", 4.0));
        let compressor = PIXELCompressor::new(PIXELConfig { codec, ..Default::default() }).unwrap();
        let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
        let error = pool.install(|| compressor.compress_with(&weights(), &Once::default()).unwrap_err());
        assert_eq!(error.to_string(), "cancelled after 1 of 3 weights");
        let mut weights = weights();
        weights.get_mut("40x40").unwrap().as_mut_slice()[41] = f32::NAN;
        let twice = [("a", &weights["7x3"]), ("a", &weights["40x40"])];
        assert_eq!(compressor.compress(twice).unwrap_err().to_string(), "two weights are called \"a\"");
        let error = compressor.compress(&weights).unwrap_err();
        assert_eq!(error.to_string(), "tensor \"40x40\"");
        assert!(std::error::Error::source(&error).unwrap().to_string().contains("row 1, column 1 is NaN"));
    }
}
