//! A directory or file of safetensors, mapped into memory.

use super::dtype::FloatType;
use super::error::ArchiveError;
use super::foreign::explain;
use super::layout::{Index, Layout};
use super::remark::Remark;
use memmap2::Mmap;
use safetensors::{Dtype, SafeTensors};
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// A checkpoint: the tensors of one or more safetensors files. Offsets and sizes have been checked.
#[derive(Debug)]
pub struct Checkpoint {
    root: PathBuf,
    shards: Vec<Shard>,
    tensors: BTreeMap<String, TensorInfo>,
    index: Option<PathBuf>,
    remarks: Vec<Remark>,
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

impl Checkpoint {
    /// Opens a safetensors file, an index of shards, or a directory with weights: that holds `model.safetensors`,
    /// `model.safetensors.index.json`, the same of an archive (`model.pixel`), or a single other index or weight file.
    /// Of the cache folder of a model (`models--OWNER--NAME`) it is the [snapshot](super::model_folder) in use.
    ///
    /// An index decides which tensors a model has. What does not agree with it and can be read all the same is told by
    /// [`remarks`](Self::remarks).
    ///
    /// # Errors
    /// [`ArchiveError`] if there is no such file, one is not valid, the index names a file or tensor that is not there,
    /// or several models lie in the directory.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ArchiveError> {
        let Layout { root, files, index, remarks } = Layout::of(path.as_ref())?;
        let mut checkpoint = Self { root, shards: Vec::new(), tensors: BTreeMap::new(), index: None, remarks };
        for path in files {
            let (shard, tensors) = Shard::open(&path, checkpoint.shards.len())?;
            checkpoint.take(tensors, &shard, index.as_ref());
            checkpoint.shards.push(shard);
        }
        if let Some(index) = index {
            checkpoint.find_missing(&index)?;
            checkpoint.index = Some(index.path);
        }
        Ok(checkpoint)
    }

    /// Takes the tensors of `shard`, those alone that the index places there if there is one.
    fn take(&mut self, tensors: Vec<(String, TensorInfo)>, shard: &Shard, index: Option<&Index>) {
        let is_placed = |name: &String| index.is_none_or(|index| index.weight_map.get(name) == Some(&shard.file_name));
        let (placed, others): (Vec<_>, Vec<_>) = tensors.into_iter().partition(|(name, _)| is_placed(name));
        self.tensors.extend(placed);
        if let (Some(index), false) = (index, others.is_empty()) {
            let mut tensors: Vec<String> = others.into_iter().map(|(name, _)| name).collect();
            tensors.sort();
            let (file, index) = (shard.path.clone(), index.name().to_owned());
            self.remarks.push(Remark::TensorsNotTaken { file, index, tensors });
        }
    }

    /// Refuses an index that places a tensor where it is not, unless the model has it under another name.
    fn find_missing(&mut self, index: &Index) -> Result<(), ArchiveError> {
        let missing = index.weight_map.iter().filter(|(tensor, _)| !self.tensors.contains_key(*tensor));
        let mut remarks = Vec::new();
        for (tensor, file) in missing {
            let (tensor, file) = (tensor.clone(), self.root.join(file));
            match tied_to(&tensor, &self.tensors) {
                Some(same_as) => remarks.push(Remark::TiedTensor { file, tensor, same_as: same_as.to_owned() }),
                None => return Err(ArchiveError::MissingTensor { path: file, tensor }),
            }
        }
        self.remarks.extend(remarks);
        Ok(())
    }

    /// The file that was opened, or the directory in which the weights lie.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Whether it is a directory, with files in addition to the weights.
    pub fn is_dir(&self) -> bool {
        self.shards.iter().all(|shard| shard.path != self.root)
    }

    /// The index that lists the shards, if there is one.
    pub fn index(&self) -> Option<&Path> {
        self.index.as_deref()
    }

    /// What the owner of the files may not expect: worth saying, and no error.
    pub fn remarks(&self) -> &[Remark] {
        &self.remarks
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

/// Names under which a model may have a tensor that an index lists and no file holds: a head that is the embedding, or
/// the embeddings of encoder and decoder that are one. Each is the end of a name.
const TIED: [(&str, &[&str]); 4] = [
    ("lm_head.weight", &["embed_tokens.weight", "wte.weight", "word_embeddings.weight", "shared.weight"]),
    ("predictions.decoder.weight", &["word_embeddings.weight"]),
    ("predictions.decoder.bias", &["predictions.bias"]),
    ("embed_tokens.weight", &["shared.weight"]),
];

/// The tensor that `missing` is known to be tied to, if the model has it.
fn tied_to<'a>(missing: &str, tensors: &'a BTreeMap<String, TensorInfo>) -> Option<&'a str> {
    let sources = TIED.iter().filter(|(end, _)| missing.ends_with(end)).flat_map(|(_, sources)| *sources);
    let find = |source: &&str| tensors.keys().map(String::as_str).find(|name| name.ends_with(source));
    sources.copied().find_map(|source| find(&source))
}
