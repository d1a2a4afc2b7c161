//! A directory or file of safetensors, mapped into memory.

use super::dtype::FloatType;
use super::error::{ArchiveError, IndexError, SafetensorsError};
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensorError, SafeTensors};
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// The file name of a checkpoint of one shard.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The file name of the index of a checkpoint of several shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";

/// A checkpoint: the tensors of one or more safetensors files. Offsets and sizes have been checked.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorInfo>,
    has_index: bool,
}

/// One file.
#[derive(Debug)]
pub struct Shard {
    /// Where it lies.
    pub path: PathBuf,
    /// Its own file name.
    pub file_name: String,
    /// `__metadata__`.
    pub metadata: BTreeMap<String, String>,
    /// Bytes before the tensors' data: the length field and the header.
    pub header_bytes: u64,
    bytes: Mmap,
}

/// Where a tensor lies and what it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    /// The index of its shard.
    pub shard: usize,
    /// The type of its values.
    pub dtype: Dtype,
    /// Its shape.
    pub shape: Vec<usize>,
    range: Range<usize>,
}

impl TensorInfo {
    /// Bytes stored.
    pub fn num_bytes(&self) -> u64 {
        self.range.len() as u64
    }
}

/// The part of `model.safetensors.index.json` that readers use.
#[derive(Debug, Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

impl Checkpoint {
    /// Opens a safetensors file, or a directory that holds `model.safetensors`, `model.safetensors.index.json`, or any
    /// other single `.safetensors` file.
    ///
    /// # Errors
    /// [`ArchiveError`] if there is no such file, or one is not valid, or the index and the shards disagree.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ArchiveError> {
        let path = path.as_ref();
        let metadata = std::fs::metadata(path).map_err(ArchiveError::io("open", path))?;
        if !metadata.is_dir() {
            return Self::from_files(path, vec![path.to_owned()], None);
        }
        let index = path.join(INDEX_FILE);
        if index.exists() {
            let weight_map = read_index(&index)?;
            let files: BTreeSet<&String> = weight_map.values().collect();
            let files = files.into_iter().map(|file| path.join(file)).collect();
            return Self::from_files(path, files, Some(&weight_map));
        }
        Self::from_files(path, vec![only_file(path)?], None)
    }

    fn from_files(
        root: &Path,
        files: Vec<PathBuf>,
        weight_map: Option<&BTreeMap<String, String>>,
    ) -> Result<Self, ArchiveError> {
        let mut checkpoint = Self {
            root: root.to_owned(),
            shards: Vec::new(),
            tensors: BTreeMap::new(),
            has_index: weight_map.is_some(),
        };
        for path in files {
            let (shard, tensors) = Shard::open(&path, checkpoint.shards.len())?;
            for (name, info) in tensors {
                if weight_map.is_some_and(|map| map.get(&name) != Some(&shard.file_name)) {
                    return Err(ArchiveError::StrayTensor { path, tensor: name });
                }
                checkpoint.tensors.insert(name, info);
            }
            checkpoint.shards.push(shard);
        }
        for (tensor, file) in weight_map.into_iter().flatten() {
            if !checkpoint.tensors.contains_key(tensor) {
                return Err(ArchiveError::MissingTensor { path: root.join(file), tensor: tensor.clone() });
            }
        }
        Ok(checkpoint)
    }

    /// The file or directory that was opened.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it is a directory, with files in addition to the weights.
    pub fn is_dir(&self) -> bool {
        self.shards.iter().all(|shard| shard.path != self.root)
    }

    /// Whether an index lists the shards.
    pub fn has_index(&self) -> bool {
        self.has_index
    }

    /// The files.
    pub fn shards(&self) -> &[Shard] {
        &self.shards
    }

    /// Bytes of all weight files, including headers.
    pub fn file_bytes(&self) -> u64 {
        self.shards.iter().map(|shard| shard.bytes.len() as u64).sum()
    }

    /// All tensors by name, in order.
    pub fn tensors(&self) -> &BTreeMap<String, TensorInfo> {
        &self.tensors
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// [`ArchiveError::NoSuchTensor`].
    pub fn info(&self, name: &str) -> Result<&TensorInfo, ArchiveError> {
        self.tensors
            .get(name)
            .ok_or_else(|| ArchiveError::NoSuchTensor { path: self.root.clone(), tensor: name.to_owned() })
    }

    /// The file that holds a tensor.
    pub fn path_of(&self, info: &TensorInfo) -> &Path {
        &self.shards[info.shard].path
    }

    /// The stored bytes of a tensor.
    pub fn bytes(&self, info: &TensorInfo) -> &[u8] {
        &self.shards[info.shard].bytes[info.range.clone()]
    }

    /// The values of the float tensor `name`, row-major, narrowed to f32 where they are F64.
    ///
    /// # Errors
    /// [`ArchiveError::NoSuchTensor`], [`ArchiveError::NotFloat`].
    pub fn to_f32(&self, name: &str) -> Result<Vec<f32>, ArchiveError> {
        let info = self.info(name)?;
        let float = FloatType::of(info.dtype).ok_or_else(|| ArchiveError::NotFloat {
            path: self.path_of(info).to_owned(),
            tensor: name.to_owned(),
            dtype: info.dtype,
        })?;
        let bytes = self.bytes(info);
        let mut values = vec![0.0; bytes.len() / float.size()];
        float.read(bytes, &mut values);
        self.release(info);
        Ok(values)
    }

    /// Gives back the memory that the bytes of a tensor take in this process, now that they are copied; whoever reads
    /// them again gets them from the system's cache or the file.
    pub(super) fn release(&self, info: &TensorInfo) {
        #[cfg(target_os = "linux")]
        {
            let (shard, range) = (&self.shards[info.shard], &info.range);
            // SAFETY: the map is read-only and of a file, so pages that are dropped come back with the same bytes.
            let released = unsafe {
                shard.bytes.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
            // A system that refuses keeps the pages until it wants them itself.
            let _ = released;
        }
        #[cfg(not(target_os = "linux"))]
        let _ = info;
    }
}

impl Shard {
    /// Maps a file and reads its header.
    pub(super) fn open(path: &Path, index: usize) -> Result<(Self, Vec<(String, TensorInfo)>), ArchiveError> {
        let file = File::open(path).map_err(ArchiveError::io("open", path))?;
        // SAFETY: the map is read-only. Another process that truncates the file while it is mapped could make a read
        // fault; this is the accepted price of every reader of mapped checkpoints, and what is read is only ever
        // treated as bytes.
        let bytes = unsafe { Mmap::map(&file) }.map_err(ArchiveError::io("map", path))?;
        let (header_len, header) = SafeTensors::read_metadata(&bytes).map_err(|error| ArchiveError::Safetensors {
            path: path.to_owned(),
            source: Box::new(explain(&bytes, error)),
        })?;
        let data_start = header_len + 8;
        let tensors = header.tensors().into_iter().map(|(name, info)| {
            let range = data_start + info.data_offsets.0..data_start + info.data_offsets.1;
            (name, TensorInfo { shard: index, dtype: info.dtype, shape: info.shape.clone(), range })
        });
        let tensors = tensors.collect();
        let shard = Self {
            path: path.to_owned(),
            file_name: path.file_name().unwrap_or_default().to_string_lossy().into_owned(),
            metadata: header.metadata().clone().unwrap_or_default().into_iter().collect(),
            header_bytes: data_start as u64,
            bytes,
        };
        Ok((shard, tensors))
    }
}

/// What is wrong with a header that the safetensors library refused, with the tensor at fault where the library does
/// not name it.
fn explain(bytes: &[u8], error: SafeTensorError) -> SafetensorsError {
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

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ArchiveError> {
    let text = std::fs::read_to_string(path).map_err(ArchiveError::io("read", path))?;
    parse_index(&text).map_err(|source| ArchiveError::Index { path: path.to_owned(), source: Box::new(source) })
}

fn parse_index(text: &str) -> Result<BTreeMap<String, String>, IndexError> {
    let index: Index = serde_json::from_str(text)?;
    if index.weight_map.is_empty() {
        return Err(IndexError::Empty);
    }
    let is_plain = |file: &str| Path::new(file).file_name().is_some_and(|name| name == file);
    match index.weight_map.iter().find(|(_, file)| !is_plain(file)) {
        Some((tensor, file)) => Err(IndexError::NotPlain { tensor: tensor.clone(), file: file.clone() }),
        None => Ok(index.weight_map),
    }
}

/// The weights of a directory without an index.
fn only_file(dir: &Path) -> Result<PathBuf, ArchiveError> {
    let single = dir.join(SINGLE_FILE);
    if single.exists() {
        return Ok(single);
    }
    let entries = std::fs::read_dir(dir).map_err(ArchiveError::io("list", dir))?;
    let mut files: Vec<PathBuf> = entries
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .filter(|path| path.extension().is_some_and(|extension| extension == "safetensors"))
        .collect();
    match files.len() {
        1 => Ok(files.remove(0)),
        _ => Err(ArchiveError::NoWeights { path: dir.to_owned() }),
    }
}
