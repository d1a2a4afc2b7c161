//! The files of a checkpoint in addition to its weights, and where an output may lie.

use crate::archive::{ArchiveError, Checkpoint, OutputKind, check_output, write_file_list};
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Files that hold the same weights in another form: not copied.
const OTHER_WEIGHTS: [&str; 13] =
    ["safetensors", "bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "gguf", "ot", "tflite", "npz", "pkl"];

/// The files of a checkpoint's directory, by path relative to it.
#[derive(Debug, Default)]
pub(super) struct SideFiles {
    pub(super) copied: Vec<PathBuf>,
    pub(super) left_out: Vec<PathBuf>,
}

impl SideFiles {
    /// Lists the files other than the weights, without hidden ones and those of hidden directories. Links to files
    /// count as files, links to directories and broken links are skipped.
    pub(super) fn of(checkpoint: &Checkpoint) -> Result<Self, ArchiveError> {
        let mut files = Self::default();
        if !checkpoint.is_dir() {
            return Ok(files);
        }
        let root = checkpoint.root();
        let mut found = Vec::new();
        list_visible(root, &mut found)?;
        for path in found {
            if is_index_or_shard(checkpoint, &path) {
                continue;
            }
            let relative = path.strip_prefix(root).unwrap_or(&path).to_owned();
            if !path.is_file() {
                files.left_out.push(relative);
                continue;
            }
            let extension = relative.extension().map(|e| e.to_string_lossy().to_ascii_lowercase());
            if extension.is_some_and(|extension| OTHER_WEIGHTS.contains(&extension.as_str()))
                || is_weight_index(&relative)
            {
                files.left_out.push(relative);
            } else {
                files.copied.push(relative);
            }
        }
        Ok(files)
    }

    /// Copies the files to `target`; returns their size in bytes.
    pub(super) fn copy(&self, root: &Path, target: &Path) -> Result<u64, ArchiveError> {
        let mut bytes = 0;
        for file in &self.copied {
            let to = target.join(file);
            if let Some(parent) = to.parent() {
                std::fs::create_dir_all(parent).map_err(ArchiveError::io("create", parent))?;
            }
            let copy = || {
                let bytes = std::fs::copy(root.join(file), &to)?;
                // Elsewhere a file opened for reading cannot be synced.
                #[cfg(unix)]
                std::fs::File::open(&to)?.sync_all()?;
                Ok(bytes)
            };
            bytes += copy().map_err(ArchiveError::io("copy a file to", &to))?;
        }
        Ok(bytes)
    }
}

/// Adds all that is not hidden in `dir` and the directories inside, in the order of names. Links are not followed.
fn list_visible(dir: &Path, found: &mut Vec<PathBuf>) -> Result<(), ArchiveError> {
    let read = || -> std::io::Result<Vec<(PathBuf, bool)>> {
        let entries = std::fs::read_dir(dir)?.map(|entry| {
            let entry = entry?;
            Ok((entry.path(), entry.file_type()?.is_dir()))
        });
        entries.collect()
    };
    let mut entries = read().map_err(ArchiveError::io("read", dir))?;
    entries.sort();
    for (path, is_dir) in entries.into_iter().filter(|(path, _)| !is_hidden(path)) {
        match is_dir {
            true => list_visible(&path, found)?,
            false => found.push(path),
        }
    }
    Ok(())
}

fn is_hidden(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'))
}

/// Indices such as `pytorch_model.bin.index.json` describe files that are not copied.
fn is_weight_index(path: &Path) -> bool {
    path.file_name().is_some_and(|name| name.to_string_lossy().ends_with(".index.json"))
}

fn is_index_or_shard(checkpoint: &Checkpoint, path: &Path) -> bool {
    path == checkpoint.root().join(crate::archive::INDEX_FILE) || checkpoint.shards().iter().any(|s| s.path == path)
}

/// The files of a directory of weights in addition to these.
#[derive(Debug)]
pub(super) struct Extras<'a> {
    /// Where the model comes from.
    pub(super) checkpoint: &'a Checkpoint,
    pub(super) side_files: &'a SideFiles,
    /// The stored tensors by name, each with its file.
    pub(super) weight_map: &'a BTreeMap<String, String>,
    /// Their bytes.
    pub(super) tensor_bytes: u64,
}

impl Extras<'_> {
    /// Adds them to `dir`: what is copied, an index where the model has one, and the list of all files. Returns their
    /// size in bytes.
    pub(super) fn write(&self, dir: &Path) -> Result<u64, ArchiveError> {
        let mut bytes = self.side_files.copy(self.checkpoint.root(), dir)?;
        if self.checkpoint.has_index() {
            bytes += write_index(dir, self.weight_map, self.tensor_bytes)?;
        }
        let weights: BTreeSet<&str> = self.weight_map.values().map(String::as_str).collect();
        Ok(bytes + write_file_list(dir, &weights.into_iter().collect::<Vec<_>>())?)
    }
}

/// Writes the index of a sharded output; returns its size in bytes.
fn write_index(dir: &Path, weight_map: &BTreeMap<String, String>, total_size: u64) -> Result<u64, ArchiveError> {
    let path = dir.join(crate::archive::INDEX_FILE);
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    let text = serde_json::to_string_pretty(&index).expect("a map of strings");
    let write = || {
        let mut file = std::fs::File::create(&path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(ArchiveError::io("write", &path))?;
    Ok(text.len() as u64)
}

/// Refuses an output of [`compress_checkpoint`](super::compress_checkpoint) as that would do, before anything is
/// computed for it: one that overlaps the model or would take one of the files `inputs` with it, and one that is in the
/// way of [what exists](crate::archive::check_output).
///
/// # Errors
/// [`ArchiveError::Overlap`], those of [`check_output`](crate::archive::check_output), and [`ArchiveError::Io`].
pub fn check_model_output<'a>(
    checkpoint: &'a Checkpoint,
    inputs: impl IntoIterator<Item = &'a Path>,
    output: impl AsRef<Path>,
    overwrite: bool,
) -> Result<(), ArchiveError> {
    let output = output.as_ref();
    check_overlap(checkpoint.root(), output)?;
    check_inputs(checkpoint.shards().iter().map(|shard| shard.path.as_path()).chain(inputs), output)?;
    check_output(output, OutputKind::of(output), overwrite)
}

/// Refuses an output inside the input and an input inside the output.
fn check_overlap(input: &Path, output: &Path) -> Result<(), ArchiveError> {
    let input_full = std::fs::canonicalize(input).map_err(ArchiveError::io("open", input))?;
    let output_full = resolve(output)?;
    if output_full.starts_with(&input_full) || input_full.starts_with(&output_full) {
        return Err(ArchiveError::Overlap { output: output.to_owned(), input: input.to_owned() });
    }
    Ok(())
}

/// Refuses an output that would replace one of the files `inputs`, or a directory in which one lies, wherever links
/// lead.
fn check_inputs<'a>(inputs: impl Iterator<Item = &'a Path>, output: &Path) -> Result<(), ArchiveError> {
    let output_full = resolve(output)?;
    for input in inputs {
        let full = std::fs::canonicalize(input).map_err(ArchiveError::io("open", input))?;
        if full.starts_with(&output_full) {
            return Err(ArchiveError::Overlap { output: output.to_owned(), input: input.to_owned() });
        }
    }
    Ok(())
}

/// The absolute path of something that need not exist yet.
fn resolve(path: &Path) -> Result<PathBuf, ArchiveError> {
    let absolute = std::path::absolute(path).map_err(ArchiveError::io("resolve", path))?;
    let existing = absolute.ancestors().find(|ancestor| ancestor.exists()).unwrap_or(Path::new("/"));
    let rest = absolute.strip_prefix(existing).unwrap_or(Path::new(""));
    if rest.components().any(|part| part == std::path::Component::ParentDir) {
        let error =
            std::io::Error::new(std::io::ErrorKind::InvalidInput, "\"..\" after a directory that does not exist");
        return Err(ArchiveError::io("resolve", path)(error));
    }
    Ok(std::fs::canonicalize(existing).map_err(ArchiveError::io("resolve", existing))?.join(rest))
}
