//! Which files are a model's weights.

use super::error::ArchiveError;
use super::fault::IndexError;
use super::foreign::no_weights;
use super::names::{ARCHIVE_FILE, ARCHIVE_INDEX_FILE, INDEX_FILE, SINGLE_FILE, is_index, is_weights};
use super::remark::Remark;
use serde::Deserialize;
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// The weight files of a model.
#[derive(Debug)]
pub(super) struct Layout {
    /// The directory that they lie in; the file itself if one was asked for.
    pub(super) root: PathBuf,
    pub(super) files: Vec<PathBuf>,
    pub(super) index: Option<Index>,
    pub(super) remarks: Vec<Remark>,
}

/// An index of shards.
#[derive(Debug)]
pub(super) struct Index {
    pub(super) path: PathBuf,
    /// The file of each tensor.
    pub(super) weight_map: BTreeMap<String, String>,
}

impl Index {
    pub(super) fn name(&self) -> &str {
        file_name(&self.path)
    }
}

impl Layout {
    /// The weight files of what lies at `path`: a file of weights, an index, or a directory.
    pub(super) fn of(path: &Path) -> Result<Self, ArchiveError> {
        let path = model_folder(path)?;
        let metadata = std::fs::metadata(&path).map_err(ArchiveError::io("open", &path))?;
        if metadata.is_dir() {
            let names = file_names(&path)?;
            let taken = choose(&path, &names)?;
            return Self::take(&path, taken, &names);
        }
        if is_index(file_name(&path)) {
            let dir = path.parent().filter(|dir| !dir.as_os_str().is_empty()).unwrap_or(Path::new("."));
            return Self::take(dir, file_name(&path), &file_names(dir)?);
        }
        Ok(Self { root: path.clone(), files: vec![path], index: None, remarks: Vec::new() })
    }

    /// The weights that the file `taken` of `dir` holds, or places if it is an index.
    fn take(dir: &Path, taken: &str, names: &[String]) -> Result<Self, ArchiveError> {
        let path = dir.join(taken);
        let index = match is_index(taken) {
            true => Some(Index { weight_map: read_index(&path)?, path }),
            false => None,
        };
        let files: BTreeSet<&str> = match &index {
            Some(index) => index.weight_map.values().map(String::as_str).collect(),
            None => [taken].into(),
        };
        check_files(dir, taken, &files)?;
        let others = names.iter().filter(|name| is_weights(name) && !files.contains(name.as_str()));
        let remark = |name: &String| Remark::FileNotRead { file: dir.join(name), taken: taken.to_owned() };
        let remarks = others.map(remark).collect();
        let files = files.into_iter().map(|file| dir.join(file)).collect();
        Ok(Self { root: dir.to_owned(), files, index, remarks })
    }
}

/// The directory in which the files of the model at `path` lie, if `path` is the folder that the Hugging Face Hub's
/// cache has for a model (`models--OWNER--NAME`): the snapshot that `refs/main` names, or the only one there is. Any
/// other path is returned as it is.
///
/// # Errors
/// [`ArchiveError::SeveralModels`] if it cannot be told which snapshot is meant; [`ArchiveError::Io`].
pub fn model_folder(path: impl AsRef<Path>) -> Result<PathBuf, ArchiveError> {
    let path = path.as_ref();
    let snapshots = path.join("snapshots");
    if !snapshots.is_dir() || !path.join("blobs").is_dir() {
        return Ok(path.to_owned());
    }
    if let Ok(main) = std::fs::read_to_string(path.join("refs/main"))
        && is_plain(main.trim())
        && snapshots.join(main.trim()).is_dir()
    {
        return Ok(snapshots.join(main.trim()));
    }
    let entries = std::fs::read_dir(&snapshots).map_err(ArchiveError::io("list", &snapshots))?;
    let mut names: Vec<String> =
        entries.flatten().map(|entry| format!("snapshots/{}", entry.file_name().to_string_lossy())).collect();
    names.sort();
    match &names[..] {
        [only] => Ok(path.join(only)),
        [] => Err(ArchiveError::NoWeights { path: path.to_owned() }),
        _ => Err(ArchiveError::SeveralModels { path: path.to_owned(), names }),
    }
}

/// The name of the file that says what the model in `dir` is: names that all tools write first, an index before a file.
fn choose<'a>(dir: &Path, names: &'a [String]) -> Result<&'a str, ArchiveError> {
    let find = |wanted: &str| names.iter().map(String::as_str).find(|name| *name == wanted);
    let those = |is: fn(&str) -> bool| names.iter().map(String::as_str).filter(|name| is(name)).collect::<Vec<_>>();
    let dense = find(INDEX_FILE).or(find(SINGLE_FILE));
    let packed = find(ARCHIVE_INDEX_FILE).or(find(ARCHIVE_FILE));
    let several = |names: &[&str]| {
        let names = names.iter().map(|&name| name.to_owned()).collect();
        Err(ArchiveError::SeveralModels { path: dir.to_owned(), names })
    };
    match (dense, packed, &those(is_index)[..], &those(is_weights)[..]) {
        (Some(dense), Some(packed), ..) => several(&[dense, packed]),
        (Some(only), None, ..) | (None, Some(only), ..) => Ok(only),
        (None, None, [only], _) | (None, None, [], [only]) => Ok(*only),
        (None, None, [], []) => Err(no_weights(dir, names)),
        (None, None, [], many) | (None, None, many, _) => several(many),
    }
}

/// The names of the visible files in `dir`, in order; links count as what they lead to.
fn file_names(dir: &Path) -> Result<Vec<String>, ArchiveError> {
    let entries = std::fs::read_dir(dir).map_err(ArchiveError::io("list", dir))?;
    let files = entries.flatten().filter(|entry| entry.path().is_file());
    let names = files.map(|entry| entry.file_name().to_string_lossy().into_owned());
    let mut names: Vec<String> = names.filter(|name| !name.starts_with('.')).collect();
    names.sort();
    Ok(names)
}

/// Refuses an index that places tensors in files that are not there.
fn check_files(dir: &Path, index: &str, files: &BTreeSet<&str>) -> Result<(), ArchiveError> {
    let missing: Vec<String> =
        files.iter().filter(|file| !dir.join(file).exists()).map(|&file| file.to_owned()).collect();
    match missing.is_empty() {
        true => Ok(()),
        false => Err(ArchiveError::MissingFiles { path: dir.join(index), files: files.len(), missing }),
    }
}

/// The part of an index that readers use.
#[derive(Debug, Deserialize)]
struct StoredIndex {
    weight_map: BTreeMap<String, String>,
}

fn read_index(path: &Path) -> Result<BTreeMap<String, String>, ArchiveError> {
    let text = std::fs::read_to_string(path).map_err(ArchiveError::io("read", path))?;
    parse_index(&text).map_err(|source| ArchiveError::Index { path: path.to_owned(), source: Box::new(source) })
}

fn parse_index(text: &str) -> Result<BTreeMap<String, String>, IndexError> {
    let index: StoredIndex = serde_json::from_str(text)?;
    if index.weight_map.is_empty() {
        return Err(IndexError::Empty);
    }
    match index.weight_map.iter().find(|(_, file)| !is_plain(file)) {
        Some((tensor, file)) => Err(IndexError::NotPlain { tensor: tensor.clone(), file: file.clone() }),
        None => Ok(index.weight_map),
    }
}

/// Whether a name is that of a file in the directory at hand.
fn is_plain(file: &str) -> bool {
    Path::new(file).file_name().is_some_and(|name| name == file)
}

fn file_name(path: &Path) -> &str {
    path.file_name().and_then(std::ffi::OsStr::to_str).unwrap_or_default()
}
