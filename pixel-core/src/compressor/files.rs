//! The files of a checkpoint in addition to its weights, and where an output may lie.

use crate::archive::{ArchiveError, Checkpoint, OutputKind, check_output, is_index, write_file_list};
use serde::Deserialize;
use serde_json::json;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Files that hold the same weights in another form: not copied.
const OTHER_WEIGHTS: [&str; 14] =
    ["safetensors", "pixel", "bin", "pt", "pth", "ckpt", "h5", "msgpack", "onnx", "gguf", "ot", "tflite", "npz", "pkl"];
/// Where sentence-transformers lists the modules of a model, some of them folders with weights of their own.
const MODULES_FILE: &str = "modules.json";

/// The files of a checkpoint's directory, by path relative to it.
#[derive(Debug, Default)]
pub(super) struct SideFiles {
    pub(super) copied: Vec<PathBuf>,
    /// Those of `copied` that hold weights of a module beside the model.
    pub(super) modules: Vec<PathBuf>,
    pub(super) left_out: Vec<PathBuf>,
    /// Files of these contents stand in place of those copied.
    replaced: BTreeMap<PathBuf, String>,
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
        let (modules, mut found) = (module_folders(root), Vec::new());
        list_visible(root, &mut found)?;
        for path in found.into_iter().filter(|path| !is_index_or_shard(checkpoint, path)) {
            let relative = path.strip_prefix(root).unwrap_or(&path).to_owned();
            let is_of_module = modules.iter().any(|folder| relative.starts_with(folder));
            match (path.is_file(), holds_weights(&relative)) {
                (true, true) if is_of_module => {
                    files.modules.push(relative.clone());
                    files.copied.push(relative);
                }
                (true, false) => files.copied.push(relative),
                _ => files.left_out.push(relative),
            }
        }
        Ok(files)
    }

    /// Does not copy the files that `is_obsolete` says.
    pub(super) fn leave_out(&mut self, is_obsolete: impl Fn(&Path) -> bool) {
        let (obsolete, copied) = std::mem::take(&mut self.copied).into_iter().partition(|path| is_obsolete(path));
        self.copied = copied;
        self.left_out.extend::<Vec<_>>(obsolete);
    }

    /// Gives the file `path`, if it is copied, the contents `text`.
    pub(super) fn replace(&mut self, path: impl Into<PathBuf>, text: String) {
        self.replaced.insert(path.into(), text);
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
                let bytes = match self.replaced.get(file) {
                    None => std::fs::copy(root.join(file), &to)?,
                    Some(text) => std::fs::write(&to, text).map(|()| text.len() as u64)?,
                };
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

/// Whether a file holds weights, or is an index of files that do, such as `pytorch_model.bin.index.json`.
fn holds_weights(path: &Path) -> bool {
    let extension = path.extension().map(|extension| extension.to_string_lossy().to_ascii_lowercase());
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    extension.is_some_and(|extension| OTHER_WEIGHTS.contains(&extension.as_str()))
        || name.ends_with(".index.json")
        || is_index(&name)
}

/// The folders of the modules beside the model, relative to `root`. Without them what `modules.json` describes is
/// incomplete: a `Dense` layer after the pooling, say.
fn module_folders(root: &Path) -> Vec<PathBuf> {
    #[derive(Deserialize)]
    struct Module {
        path: PathBuf,
    }
    let text = std::fs::read(root.join(MODULES_FILE)).unwrap_or_default();
    let modules: Vec<Module> = serde_json::from_slice(&text).unwrap_or_default();
    // The module without a folder is the model itself.
    let is_folder = |path: &PathBuf| path.components().next().is_some_and(|part| part.as_os_str() != ".");
    modules.into_iter().map(|module| module.path).filter(is_folder).collect()
}

fn is_index_or_shard(checkpoint: &Checkpoint, path: &Path) -> bool {
    checkpoint.index() == Some(path) || checkpoint.shards().iter().any(|shard| shard.path == path)
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
    /// What the index is called here, by what it is called there.
    pub(super) rename: fn(&str) -> String,
}

impl Extras<'_> {
    /// Adds them to `dir`: what is copied, an index where the model has one, and the list of all files. Returns their
    /// size in bytes.
    pub(super) fn write(&self, dir: &Path) -> Result<u64, ArchiveError> {
        let mut bytes = self.side_files.copy(self.checkpoint.root(), dir)?;
        if let Some(name) = self.checkpoint.index().and_then(Path::file_name) {
            let path = dir.join((self.rename)(&name.to_string_lossy()));
            bytes += write_index(&path, self.weight_map, self.tensor_bytes)?;
        }
        let weights: BTreeSet<&str> = self.weight_map.values().map(String::as_str).collect();
        Ok(bytes + write_file_list(dir, &weights.into_iter().collect::<Vec<_>>())?)
    }
}

/// Writes the index of a sharded output; returns its size in bytes.
fn write_index(path: &Path, weight_map: &BTreeMap<String, String>, total_size: u64) -> Result<u64, ArchiveError> {
    let index = json!({ "metadata": { "total_size": total_size }, "weight_map": weight_map });
    let text = serde_json::to_string_pretty(&index).expect("a map of strings");
    let write = || {
        let mut file = std::fs::File::create(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    write().map_err(ArchiveError::io("write", path))?;
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
