//! What an archive says of its tensors: the JSON under `__metadata__`, key `pixel`.

use super::dtype::FloatType;
use super::error::ArchiveError;
use crate::codec::CodecSpec;
use crate::low_rank::LowRankSpec;
use crate::matrix::Shape;
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
pub const VERSION_MINOR: u32 = 2;

/// The manifest of one shard.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Manifest {
    /// `major.minor`.
    pub version: String,
    /// The program that wrote the archive.
    pub producer: String,
    /// The packed weights of the shard.
    pub tensors: BTreeMap<String, PackedEntry>,
    /// The tensors stored as they were, each with the BLAKE3 hash of its bytes.
    pub kept: BTreeMap<String, String>,
}

/// One packed weight.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PackedEntry {
    /// The shape of the dense weight.
    pub shape: Shape,
    /// The type of the dense weight.
    pub dtype: FloatType,
    /// The codec with the options that differ from their defaults.
    pub codec: CodecSpec,
    /// The seed of the rotation, if there is one; in the file as 16 hexadecimal digits.
    #[serde(default, skip_serializing_if = "Option::is_none", with = "hex_seed")]
    pub rotation: Option<u64>,
    /// The power of two by which everything is multiplied.
    pub exponent: i32,
    /// How many columns are stored beside the codes. Since 1.1.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub protected: usize,
    /// Rank and storage of the low-rank part beside the codes, if there is one. Since 1.2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub low_rank: Option<LowRankSpec>,
    /// Relative mean squared error against the source.
    pub relative_mse: f64,
    /// Relative error of the layer's outputs on the inputs of the calibration, `tr((W−Ŵ)·H·(W−Ŵ)ᵀ)/tr(W·H·Wᵀ)`, if
    /// there was one. Since 1.1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output_loss: Option<f64>,
    /// BLAKE3 of the source's bytes.
    pub source_blake3: String,
    /// BLAKE3 of the streams' bytes, one after the other.
    pub stored_blake3: String,
}

impl Manifest {
    /// A manifest without tensors.
    pub fn new() -> Self {
        Self {
            version: format!("{VERSION_MAJOR}.{VERSION_MINOR}"),
            producer: concat!("pixel-core ", env!("CARGO_PKG_VERSION")).to_owned(),
            tensors: BTreeMap::new(),
            kept: BTreeMap::new(),
        }
    }

    /// Reads the manifest of `path` from its `__metadata__`.
    ///
    /// # Errors
    /// [`ArchiveError`] if there is none, it is damaged, or its version cannot be read.
    pub fn read(path: &Path, metadata: &BTreeMap<String, String>) -> Result<Self, ArchiveError> {
        let error = |message: String| ArchiveError::Manifest { path: path.to_owned(), message };
        let text = metadata.get(MANIFEST_KEY).ok_or_else(|| ArchiveError::NotAnArchive { path: path.to_owned() })?;
        check_version(path, text)?;
        let expected =
            metadata.get(MANIFEST_HASH_KEY).ok_or_else(|| error(format!("\"{MANIFEST_HASH_KEY}\" is missing")))?;
        let found = blake3::hash(text.as_bytes()).to_hex();
        if found.as_str() != expected {
            return Err(error(format!("damaged: BLAKE3 is {found}, \"{MANIFEST_HASH_KEY}\" says {expected}")));
        }
        serde_json::from_str(text).map_err(|e| error(e.to_string()))
    }

    /// The two entries of `__metadata__`.
    pub(crate) fn to_metadata(&self) -> [(String, String); 2] {
        let text = serde_json::to_string(self).expect("strings, numbers and maps with string keys");
        let hash = blake3::hash(text.as_bytes()).to_hex().to_string();
        [(MANIFEST_KEY.into(), text), (MANIFEST_HASH_KEY.into(), hash)]
    }
}

impl Default for Manifest {
    fn default() -> Self {
        Self::new()
    }
}

/// Refuses other major versions before anything else of the manifest is looked at.
fn check_version(path: &Path, text: &str) -> Result<(), ArchiveError> {
    #[derive(Deserialize)]
    struct Versioned {
        version: String,
    }
    let error = |message: String| ArchiveError::Manifest { path: path.to_owned(), message };
    let Versioned { version } = serde_json::from_str(text).map_err(|e| error(e.to_string()))?;
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
