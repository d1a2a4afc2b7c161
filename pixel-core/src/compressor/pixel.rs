//! [`PIXELCompressor`]: a model in memory, by one configuration.

use super::compress::write_streams;
use super::plan::{stream_plans, with_manifest};
use super::progress::Progress;
use crate::archive::error::ArchiveError;
use crate::archive::shard_writer::{ShardWriter, header, in_file_order};
use crate::archive::staging::Staging;
use crate::archive::{Archive, FloatType, Manifest, PackedEntry};
use crate::codec::CodecSpec;
use crate::config::PIXELConfig;
use crate::encode::compress_weight;
use crate::error::{ConfigError, WeightError};
use crate::matrix::{Matrix, MatrixRef};
use crate::metrics::ErrorSums;
use crate::packed::{PackedWeight, stored_streams};
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
/// let model = compressor.compress(&[("a".to_owned(), weight)].into(), &())?;
/// assert_eq!(model.compressed_size(), 3 * 2 + 3 * 16); // row scales, and rows of 7 groups of 16 bits
/// assert_eq!(compressor.decompress(&model)["a"].shape(), Shape::new(3, 50)?);
/// println!("{}", model.summary());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct PIXELCompressor {
    config: PIXELConfig,
    spec: CodecSpec,
    rotation: Option<u64>,
    stats: Mutex<CompressorStats>,
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
        let spec = config.codec_spec()?;
        let rotates = config.quantization.dynamic_range && spec.family()?.rotates();
        Ok(Self { rotation: rotates.then_some(config.seed), spec, config, stats: Mutex::default() })
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
        let (packed, error) = compress_weight(weight, &self.spec, self.rotation)?;
        let mut hasher = blake3::Hasher::new();
        weight.as_slice().iter().for_each(|w| {
            hasher.update(&w.to_le_bytes());
        });
        let mut stats = self.stats.lock().unwrap_or_else(PoisonError::into_inner);
        stats.tensors += 1;
        stats.original_bytes += 4 * weight.shape().num_weights();
        stats.compressed_bytes += packed.num_bytes();
        let source_blake3 = hasher.finalize().to_hex().to_string();
        Ok(CompressedTensor { packed, relative_mse: error.relative_mse(), dtype: self.config.dtype, source_blake3 })
    }

    /// The dense form of a compressed weight.
    pub fn decompress_tensor(&self, tensor: &CompressedTensor) -> Matrix {
        tensor.packed.synthesize()
    }

    /// Compresses every weight, in parallel.
    ///
    /// # Errors
    /// The first [`WeightError`] in the order of the names.
    pub fn compress(
        &self,
        tensors: &BTreeMap<String, Matrix>,
        progress: &dyn Progress,
    ) -> Result<CompressedModel, WeightError> {
        let compressed: Vec<_> = tensors
            .par_iter()
            .map(|(name, weight)| {
                let tensor = self.compress_tensor(weight.as_ref())?;
                progress.tensor_done(name, weight.shape().num_weights() as u64);
                Ok((name.clone(), tensor))
            })
            .collect();
        Ok(CompressedModel {
            pattern_refs: compressed.into_iter().collect::<Result<_, WeightError>>()?,
            quality_threshold: self.config.compression.quality_threshold,
        })
    }

    /// The dense forms of all weights.
    pub fn decompress(&self, model: &CompressedModel) -> BTreeMap<String, Matrix> {
        model.pattern_refs.iter().map(|(name, tensor)| (name.clone(), self.decompress_tensor(tensor))).collect()
    }

    /// Writes a compressed model as an archive of one file, in place of what was there.
    ///
    /// # Errors
    /// [`ArchiveError`]; nothing is then left under the final name.
    pub fn save(&self, model: &CompressedModel, path: &Path) -> Result<(), ArchiveError> {
        let staging = Staging::file(path, true)?;
        let mut tensors = Vec::new();
        let mut manifest = Manifest::new();
        for (name, tensor) in &model.pattern_refs {
            let header = tensor.packed.header();
            tensors.extend(stream_plans(
                name,
                &stored_streams(&header.codec, header.shape, header.protected, header.low_rank)?,
            ));
            let entry = PackedEntry {
                shape: header.shape,
                dtype: tensor.dtype,
                codec: header.codec.clone(),
                rotation: header.rotation,
                exponent: header.exponent,
                protected: header.protected,
                low_rank: header.low_rank,
                relative_mse: tensor.relative_mse,
                output_loss: None,
                source_blake3: tensor.source_blake3.clone(),
                stored_blake3: "0".repeat(64),
            };
            manifest.tensors.insert(name.clone(), entry);
        }
        let tensors = in_file_order(tensors);
        let room = header(&tensors, &with_manifest(&BTreeMap::new(), &manifest)).len();
        let writer = ShardWriter::create(staging.path(), tensors, room)?;
        for (name, tensor) in &model.pattern_refs {
            let hash = write_streams(name, &tensor.packed, &writer)?;
            if let Some(entry) = manifest.tensors.get_mut(name) {
                entry.stored_blake3 = hash;
            }
        }
        writer.finish(&with_manifest(&BTreeMap::new(), &manifest))?;
        staging.commit()
    }

    /// Reads the packed weights of an archive; tensors that were stored as they were are left aside.
    ///
    /// # Errors
    /// [`ArchiveError`].
    pub fn load(&self, path: &Path) -> Result<CompressedModel, ArchiveError> {
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

    /// A few lines for people.
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
    use crate::matrix::Shape;

    fn weights() -> BTreeMap<String, Matrix> {
        [(1, 100), (40, 40), (7, 3)]
            .into_iter()
            .map(|(m, n)| {
                let shape = Shape::new(m, n).unwrap();
                let data = (0..m * n).map(|i| crate::rotation::split_mix(8, i as u64) as u32 as f32 / 2e9 - 1.0);
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
        let model = compressor.compress(&weights(), &()).unwrap();
        compressor.save(&model, &path).unwrap();
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
        let model = compressor.compress(&weights(), &()).unwrap();
        assert!(model.below_quality().any(|name| name == "40x40"));
        assert!(model.summary().contains("below quality 0.95"));
    }
}
