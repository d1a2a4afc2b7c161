//! The description of an archive's tensors: the JSON under `__metadata__`, key `pixel`.

use super::dtype::FloatType;
use super::error::ArchiveError;
use super::fault::ManifestError;
use super::ownership::PRODUCER;
use crate::codec::CodecSpec;
use crate::encode::LowRankSpec;
use crate::error::FormatError;
use crate::math::Exponent;
use crate::matrix::Shape;
use crate::packed::PackedHeader;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use std::collections::BTreeMap;
use std::path::Path;

/// The key of the manifest under `__metadata__`.
pub const MANIFEST_KEY: &str = "pixel";
/// The key of the manifest's own BLAKE3 hash.
pub const MANIFEST_HASH_KEY: &str = "pixel_blake3";
/// A reader refuses other major versions.
pub const VERSION_MAJOR: u32 = 1;
/// A reader accepts other minor versions and ignores the fields that it does not know.
pub const VERSION_MINOR: u32 = 3;

/// The manifest of one shard.
#[derive(Debug, Clone, PartialEq)]
pub struct Manifest {
    /// `major.minor`.
    pub version: String,
    /// The program that wrote the archive.
    pub producer: String,
    /// The packed weights of the shard.
    pub tensors: BTreeMap<String, PackedEntry>,
    /// The tensors stored unchanged, each with the BLAKE3 hash of its bytes.
    pub kept: BTreeMap<String, String>,
}

/// One packed weight.
#[derive(Debug, Clone, PartialEq)]
pub struct PackedEntry {
    /// What describes the weight: shape, codec, rotation, exponent, and the parts in addition to the codes.
    pub header: PackedHeader,
    /// The type of the dense weight.
    pub dtype: FloatType,
    /// Relative mean squared error against the source.
    pub relative_mse: f64,
    /// Relative error of the layer's outputs on the inputs of the calibration, `tr((W−Ŵ)·H·(W−Ŵ)ᵀ)/tr(W·H·Wᵀ)`, if
    /// there was one. Since 1.1.
    pub output_loss: Option<f64>,
    /// BLAKE3 of the source's bytes.
    pub source_blake3: String,
    /// BLAKE3 of the streams' bytes, one after the other.
    pub stored_blake3: String,
}

impl PackedEntry {
    /// The entry with the longest text that a weight of `header` can have.
    pub(super) fn widest(header: PackedHeader, dtype: FloatType) -> Self {
        const WIDEST: f64 = 2.225_073_858_507_201_4e-308;
        let hash = || "0".repeat(64);
        Self {
            header: PackedHeader { exponent: Exponent::MIN, ..header },
            dtype,
            relative_mse: WIDEST,
            output_loss: Some(WIDEST),
            source_blake3: hash(),
            stored_blake3: hash(),
        }
    }
}

/// A [`Manifest`] as JSON has it: fields in this order.
#[derive(Serialize, Deserialize)]
struct StoredManifest {
    version: String,
    producer: String,
    tensors: BTreeMap<String, StoredEntry>,
    kept: BTreeMap<String, String>,
}

/// A [`PackedEntry`] as JSON has it: one level, fields in this order.
#[derive(Serialize, Deserialize)]
struct StoredEntry {
    shape: Shape,
    dtype: FloatType,
    codec: CodecSpec,
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_seed")]
    rotation: Option<u64>,
    exponent: i32,
    #[serde(default, skip_serializing_if = "is_zero")]
    protected: usize,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    low_rank: Option<LowRankSpec>,
    relative_mse: f64,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    output_loss: Option<f64>,
    source_blake3: String,
    stored_blake3: String,
}

impl From<&PackedEntry> for StoredEntry {
    fn from(entry: &PackedEntry) -> Self {
        let PackedEntry { header, dtype, relative_mse, output_loss, source_blake3, stored_blake3 } = entry.clone();
        let PackedHeader { shape, codec, rotation, exponent, protected, low_rank } = header;
        let exponent = exponent.get();
        Self {
            shape,
            dtype,
            codec,
            rotation,
            exponent,
            protected,
            low_rank,
            relative_mse,
            output_loss,
            source_blake3,
            stored_blake3,
        }
    }
}

impl TryFrom<StoredEntry> for PackedEntry {
    type Error = FormatError;

    fn try_from(stored: StoredEntry) -> Result<Self, FormatError> {
        let StoredEntry { shape, codec, rotation, exponent, protected, low_rank, .. } = stored;
        let exponent = Exponent::new(exponent)?;
        Ok(Self {
            header: PackedHeader { shape, codec, rotation, exponent, protected, low_rank },
            dtype: stored.dtype,
            relative_mse: stored.relative_mse,
            output_loss: stored.output_loss,
            source_blake3: stored.source_blake3,
            stored_blake3: stored.stored_blake3,
        })
    }
}

impl Manifest {
    /// A manifest without tensors.
    pub fn new() -> Self {
        Self {
            version: format!("{VERSION_MAJOR}.{VERSION_MINOR}"),
            producer: PRODUCER.to_owned(),
            tensors: BTreeMap::new(),
            kept: BTreeMap::new(),
        }
    }

    /// Reads the manifest of `path` from its `__metadata__`.
    ///
    /// # Errors
    /// [`ArchiveError`] if there is none, it is damaged, or its version cannot be read.
    pub fn read(path: impl AsRef<Path>, metadata: &BTreeMap<String, String>) -> Result<Self, ArchiveError> {
        let path = path.as_ref();
        let error = |source: ManifestError| ArchiveError::manifest(path, source);
        let text = metadata.get(MANIFEST_KEY).ok_or_else(|| ArchiveError::NotAnArchive { path: path.to_owned() })?;
        check_version(path, text)?;
        let expected = metadata.get(MANIFEST_HASH_KEY);
        let expected = expected.ok_or_else(|| error(ManifestError::MissingKey { key: MANIFEST_HASH_KEY }))?;
        let found = blake3::hash(text.as_bytes()).to_hex();
        if found.as_str() != expected {
            let (expected, found) = (expected.clone(), found.to_string());
            return Err(error(ManifestError::Damaged { expected, found }));
        }
        let stored: StoredManifest = serde_json::from_str(text).map_err(|e| error(e.into()))?;
        let StoredManifest { version, producer, tensors, kept } = stored;
        let tensors = tensors.into_iter().map(|(name, stored)| match PackedEntry::try_from(stored) {
            Ok(entry) => Ok((name, entry)),
            Err(source) => Err(ArchiveError::Format { path: path.to_owned(), tensor: name, source }),
        });
        Ok(Self { version, producer, tensors: tensors.collect::<Result<_, _>>()?, kept })
    }

    /// The two entries of `__metadata__`.
    pub(crate) fn to_metadata(&self) -> [(String, String); 2] {
        let Self { version, producer, kept, .. } = self.clone();
        let tensors = self.tensors.iter().map(|(name, entry)| (name.clone(), entry.into())).collect();
        let stored = StoredManifest { version, producer, tensors, kept };
        let text = serde_json::to_string(&stored).expect("strings, numbers and maps with string keys");
        let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
        [(MANIFEST_KEY.into(), text), (MANIFEST_HASH_KEY.into(), hash)]
    }
}

impl Default for Manifest {
    fn default() -> Self {
        Self::new()
    }
}

/// Refuses other major versions before anything else of the manifest is read.
fn check_version(path: &Path, text: &str) -> Result<(), ArchiveError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: String,
    }
    let Versioned { version } = serde_json::from_str(text).map_err(|e| ArchiveError::manifest(path, e.into()))?;
    let major = version.split('.').next().and_then(|major| major.parse::<u32>().ok());
    match major {
        Some(VERSION_MAJOR) => Ok(()),
        _ => Err(ArchiveError::Version {
            path: path.to_owned(),
            found: version,
            supported: format!("{VERSION_MAJOR}.x"),
        }),
    }
}

fn is_zero(count: &usize) -> bool {
    *count == 0
}

/// Seeds as 16 hexadecimal digits: JSON numbers of 64 bits do not survive every reader.
mod hex_seed {
    use super::*;

    pub(super) fn serialize<S: Serializer>(seed: &Option<u64>, serializer: S) -> Result<S::Ok, S::Error> {
        seed.map(|seed| format!("{seed:016x}")).serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
        let Some(text) = Option::<String>::deserialize(deserializer)? else { return Ok(None) };
        let digits = text.len() == 16 && text.bytes().all(|b| b.is_ascii_hexdigit());
        match u64::from_str_radix(&text, 16) {
            Ok(seed) if digits => Ok(Some(seed)),
            _ => Err(serde::de::Error::custom(format!("rotation \"{text}\" is not 16 hexadecimal digits"))),
        }
    }
}
