//! What a file or a directory is, if it is not what it should be, and the way out.

use super::error::ArchiveError;
use super::fault::SafetensorsError;
use super::names::is_weights;
use safetensors::{Dtype, SafeTensorError};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// What lies in place of safetensors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Foreign {
    /// No byte.
    Empty,
    /// The small text that stands for a file of Git LFS.
    LfsPointer,
    /// What a server answered in place of the file.
    Html,
    /// Pickles of PyTorch, in a ZIP archive or bare.
    PyTorch,
    /// A file of llama.cpp.
    Gguf,
    /// Weights of TensorFlow or Flax.
    TensorFlow,
    /// A graph with weights.
    Onnx,
}

impl fmt::Display for Foreign {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "empty: copy or download it again",
            Self::LfsPointer => "a Git LFS pointer in place of the file: run `git lfs pull` in its folder",
            Self::Html => {
                "an HTML page in place of the file: download it again, logged in and the licence accepted where the \
                 model asks for that"
            }
            Self::PyTorch => {
                "in PyTorch's format, which can run code when it is read: where you trust it, convert it, with \
                 `safetensors.torch.save_file` or `save_pretrained` of transformers"
            }
            Self::Gguf => {
                "a GGUF file, whose weights have been quantized already: take the checkpoint that it was made from"
            }
            Self::TensorFlow => "in the format of TensorFlow or Flax: convert it to safetensors with transformers",
            Self::Onnx => "an ONNX graph: take the checkpoint that it was exported from",
        })
    }
}

impl Foreign {
    /// What the bytes of a file show it to be; `None` if it may be safetensors, whole or damaged.
    pub(super) fn of_bytes(bytes: &[u8]) -> Option<Self> {
        let start = &bytes[..bytes.len().min(64)];
        let text = start.trim_ascii_start().to_ascii_lowercase();
        let is_pickle = matches!(start, [0x80, 1..=5, ..]) && !is_header_length(start);
        match start {
            [] => Some(Self::Empty),
            _ if start.starts_with(b"version https://git-lfs") => Some(Self::LfsPointer),
            _ if text.starts_with(b"<!doctype") || text.starts_with(b"<html") => Some(Self::Html),
            _ if start.starts_with(b"PK\x03\x04") || is_pickle => Some(Self::PyTorch),
            _ if start.starts_with(b"GGUF") => Some(Self::Gguf),
            _ if start.starts_with(b"\x89HDF\r\n\x1a\n") => Some(Self::TensorFlow),
            _ => None,
        }
    }

    /// What the name of a file says that it is.
    fn of_name(name: &str) -> Option<Self> {
        match Path::new(name).extension()?.to_str()? {
            "bin" | "pt" | "pth" | "ckpt" | "pkl" => Some(Self::PyTorch),
            "gguf" => Some(Self::Gguf),
            "h5" | "msgpack" | "tflite" => Some(Self::TensorFlow),
            "onnx" => Some(Self::Onnx),
            _ => None,
        }
    }
}

/// Whether the bytes may be the length of a header and its first brace: a pickle may begin with the same two bytes.
fn is_header_length(start: &[u8]) -> bool {
    matches!(start, [_, _, _, _, 0, 0, 0, 0, b'{', ..])
}

/// What is wrong with a header that the safetensors library refused, with the tensor at fault where the library does
/// not name it.
pub(super) fn explain(bytes: &[u8], error: SafeTensorError) -> SafetensorsError {
    if let Some(what) = Foreign::of_bytes(bytes) {
        return SafetensorsError::Foreign { what };
    }
    #[derive(Deserialize)]
    struct Entry {
        dtype: String,
        data_offsets: (u64, u64),
    }
    let known = |dtype: &str| serde_json::from_value::<Dtype>(dtype.into()).is_ok();
    let header = (|| {
        let length = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
        let header = bytes.get(8..usize::try_from(length.checked_add(8)?).ok()?)?;
        serde_json::from_slice::<BTreeMap<String, serde_json::Value>>(header).ok()
    })();
    let mut entries: Vec<(String, Entry)> = Vec::new();
    for (tensor, value) in header.into_iter().flatten().filter(|(name, _)| name != "__metadata__") {
        match serde_json::from_value::<Entry>(value) {
            Err(source) => return SafetensorsError::Entry { tensor, source },
            Ok(Entry { dtype, .. }) if !known(&dtype) => return SafetensorsError::UnknownDtype { tensor, dtype },
            Ok(entry) => entries.push((tensor, entry)),
        }
    }
    entries.sort_by_key(|(_, entry)| entry.data_offsets);
    let mut end = 0;
    for (tensor, entry) in entries {
        let (start, stop) = entry.data_offsets;
        if start < end {
            return SafetensorsError::Overlap { tensor, start, stop, end };
        }
        if start > end || stop < start {
            return SafetensorsError::Gap { tensor, start, stop, end };
        }
        end = stop;
    }
    match error {
        SafeTensorError::MetadataIncompleteBuffer => SafetensorsError::End { end, source: error },
        _ => SafetensorsError::Header { bytes: bytes.len(), source: error },
    }
}

/// Why the directory `dir` of the files `names` is no checkpoint: what it holds in place of weights.
pub(super) fn no_weights(dir: &Path, names: &[String]) -> ArchiveError {
    let path = dir.to_owned();
    let folders = folders_with_weights(dir);
    let other = names.iter().find_map(|name| Some((name.clone(), Foreign::of_name(name)?)));
    let is_pipeline = names.iter().any(|name| name == "model_index.json");
    match other {
        Some((file, format)) if !is_pipeline => ArchiveError::OtherFormat { path, file, format },
        _ if !folders.is_empty() => ArchiveError::WeightsInFolders { path, folders },
        _ => ArchiveError::NoWeights { path },
    }
}

/// The folders in `dir` that hold weights, by name.
fn folders_with_weights(dir: &Path) -> Vec<String> {
    let entries = |dir: &Path| std::fs::read_dir(dir).into_iter().flatten().flatten();
    let name = |entry: &std::fs::DirEntry| entry.file_name().to_string_lossy().into_owned();
    let holds = |entry: &std::fs::DirEntry| entries(&entry.path()).any(|file| is_weights(&name(&file)));
    let mut folders: Vec<String> = entries(dir).filter(holds).map(|entry| name(&entry)).collect();
    folders.sort();
    folders
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_safetensors_is_known_by_its_first_bytes() {
        let of = Foreign::of_bytes;
        assert_eq!(of(b""), Some(Foreign::Empty));
        assert_eq!(of(b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\n"), Some(Foreign::LfsPointer));
        assert_eq!(of(b"\n <!DOCTYPE html><html lang=\"en\">"), Some(Foreign::Html));
        assert_eq!(of(b"PK\x03\x04\x00\x00\x08\x08"), Some(Foreign::PyTorch));
        assert_eq!(of(b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."), Some(Foreign::PyTorch));
        assert_eq!(of(b"GGUF\x03\x00\x00\x00"), Some(Foreign::Gguf));
        assert_eq!(of(b"\x89HDF\r\n\x1a\n\0\0"), Some(Foreign::TensorFlow));
        // The length of a header is no pickle.
        assert_eq!(of(b"\x80\x02\0\0\0\0\0\0{\"w\":"), None);
        assert_eq!(of(b"hello"), None);
    }
}
