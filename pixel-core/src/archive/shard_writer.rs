//! Writes one safetensors file whose sizes are known before its contents and its metadata.

use super::error::ArchiveError;
use safetensors::Dtype;
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

/// A tensor that will be written.
#[derive(Debug, Clone)]
pub(crate) struct TensorPlan {
    pub(crate) name: String,
    pub(crate) dtype: Dtype,
    pub(crate) shape: Vec<usize>,
}

impl TensorPlan {
    pub(crate) fn num_bytes(&self) -> usize {
        self.shape.iter().product::<usize>() * self.dtype.bitsize() / 8
    }
}

/// A file with room for its header, into which tensors are written in any order, from any thread.
#[derive(Debug)]
pub(crate) struct ShardWriter {
    path: PathBuf,
    file: Mutex<File>,
    header_room: usize,
    /// In file order, with offsets from the start of the data.
    tensors: Vec<(TensorPlan, usize)>,
    /// Places in `tensors` by name.
    places: HashMap<String, usize>,
}

/// The tensors of a file in its order: wide types first, so that each starts at a multiple of its size, then by name.
pub(crate) fn in_file_order(mut tensors: Vec<TensorPlan>) -> Vec<(TensorPlan, usize)> {
    tensors.sort_by(|a, b| b.dtype.bitsize().cmp(&a.dtype.bitsize()).then_with(|| a.name.cmp(&b.name)));
    let mut offset = 0;
    let place = |tensor: TensorPlan| {
        let start = offset;
        offset += tensor.num_bytes();
        (tensor, start)
    };
    tensors.into_iter().map(place).collect()
}

/// The header of a file, without padding.
pub(crate) fn header(tensors: &[(TensorPlan, usize)], metadata: &BTreeMap<String, String>) -> String {
    let mut entries = serde_json::Map::new();
    entries.insert("__metadata__".into(), json!(metadata));
    for (tensor, start) in tensors {
        let (dtype, shape) = (tensor.dtype.to_string(), &tensor.shape);
        let entry = json!({ "dtype": dtype, "shape": shape, "data_offsets": [start, start + tensor.num_bytes()] });
        entries.insert(tensor.name.clone(), entry);
    }
    Value::Object(entries).to_string()
}

/// Bytes before the data of a file whose header takes at most `header_len` bytes: the length field, the header, and
/// spaces up to a multiple of eight.
pub(crate) const fn data_start(header_len: usize) -> usize {
    8 + header_len.next_multiple_of(8)
}

impl ShardWriter {
    /// Creates `path` for `tensors`, with room for a header of `header_len` bytes.
    pub(crate) fn create(
        path: &Path,
        tensors: Vec<(TensorPlan, usize)>,
        header_len: usize,
    ) -> Result<Self, ArchiveError> {
        let file = File::create_new(path).map_err(ArchiveError::io("create", path))?;
        let places = tensors.iter().enumerate().map(|(place, (tensor, _))| (tensor.name.clone(), place)).collect();
        let header_room = data_start(header_len) - 8;
        Ok(Self { path: path.to_owned(), file: Mutex::new(file), header_room, tensors, places })
    }

    /// The file that is written.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Writes part of the tensor `name`, from byte `offset` of it on.
    ///
    /// # Panics
    /// If the tensor was not planned or would end after its planned end.
    pub(crate) fn write(&self, name: &str, offset: usize, bytes: &[u8]) -> Result<(), ArchiveError> {
        let (tensor, start) = &self.tensors[*self.places.get(name).expect("a planned tensor")];
        assert!(offset + bytes.len() <= tensor.num_bytes(), "{name}: {} bytes at {offset}", bytes.len());
        self.write_at(8 + self.header_room + start + offset, bytes)
    }

    /// Writes the header with `metadata` and flushes the file to disk.
    pub(crate) fn finish(self, metadata: &BTreeMap<String, String>) -> Result<(), ArchiveError> {
        let mut header = header(&self.tensors, metadata).into_bytes();
        assert!(header.len() <= self.header_room, "a header of {} bytes in {}", header.len(), self.header_room);
        header.resize(self.header_room, b' ');
        self.write_at(0, &(self.header_room as u64).to_le_bytes())?;
        self.write_at(8, &header)?;
        let file = self.file.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.sync_all().map_err(ArchiveError::io("write", &self.path))
    }

    fn write_at(&self, offset: usize, bytes: &[u8]) -> Result<(), ArchiveError> {
        let mut file = self.file.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        file.seek(SeekFrom::Start(offset as u64))
            .and_then(|_| file.write_all(bytes))
            .map_err(ArchiveError::io("write", &self.path))
    }
}
