//! Whose an existing output is: PIXEL replaces, when asked to, what it wrote, and nothing else.
//!
//! A weight file that PIXEL wrote says so in its metadata. Config and tokenizer that are copied along cannot, so that
//! a directory holds a [list](FILE_LIST) of what was written there. It authorises nothing by itself: what it names has
//! to be there as it was written, and whatever else lies there is the user's own.

use super::calibration::CALIBRATION_KEY;
use super::checkpoint::Shard;
use super::error::ArchiveError;
use super::manifest::MANIFEST_KEY;
use super::staging::OutputKind;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::File;
use std::path::{Path, PathBuf};

/// The file, in a directory that PIXEL wrote, that lists what it wrote there.
pub const FILE_LIST: &str = ".pixel-files.json";
/// The key under `__metadata__` of a dense checkpoint that names the program that wrote it.
pub const PRODUCER_KEY: &str = "pixel_producer";
/// The program, as files name it.
pub(crate) const PRODUCER: &str = concat!("pixel-core ", env!("CARGO_PKG_VERSION"));

/// What PIXEL wrote into a directory, by path relative to it, with `/` between its parts.
#[derive(Debug, Default, Serialize, Deserialize)]
struct FileList {
    producer: String,
    /// The weight files that were made, each with its bytes: large, and known by their metadata.
    weights: BTreeMap<String, u64>,
    /// All other files, each with the BLAKE3 of its contents.
    files: BTreeMap<String, String>,
}

/// What a file is to a [`FileList`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// As it was written.
    Ours,
    /// Written by PIXEL, and changed since.
    Changed,
    /// Of somebody else.
    Foreign,
}

/// Writes the list of all that lies in `dir`, whose weight files are called `weights`; returns its size in bytes.
pub(crate) fn write_file_list(dir: &Path, weights: &[&str]) -> Result<u64, ArchiveError> {
    let mut list = FileList { producer: PRODUCER.to_owned(), ..FileList::default() };
    for path in files_below(dir)? {
        let name = relative_name(dir, &path);
        if weights.contains(&name.as_str()) {
            let bytes = path.metadata().map_err(ArchiveError::io("read", &path))?.len();
            list.weights.insert(name, bytes);
        } else {
            list.files.insert(name, hash(&path)?);
        }
    }
    let path = dir.join(FILE_LIST);
    let text = serde_json::to_string_pretty(&list).expect("maps of strings and numbers");
    let write = || {
        std::fs::write(&path, &text)?;
        File::open(&path)?.sync_all()
    };
    write().map_err(ArchiveError::io("write", &path))?;
    Ok(text.len() as u64)
}

/// Refuses to replace `target`, which exists and is of `kind`, unless PIXEL wrote it, or it is an empty directory.
pub(super) fn check_ours(target: &Path, kind: OutputKind) -> Result<(), ArchiveError> {
    match kind {
        OutputKind::File if is_weight_file(target) => Ok(()),
        OutputKind::File => Err(ArchiveError::ForeignFile { path: target.to_owned() }),
        OutputKind::Directory => check_directory(target),
    }
}

fn check_directory(dir: &Path) -> Result<(), ArchiveError> {
    let list = FileList::read(dir);
    for path in files_below(dir)? {
        let name = relative_name(dir, &path);
        let state = match &list {
            Some(_) if name == FILE_LIST => State::Ours,
            Some(list) => list.state(&name, &path)?,
            None => State::Foreign,
        };
        let (dir, file) = (dir.to_owned(), PathBuf::from(name));
        match state {
            State::Ours => {}
            State::Changed => return Err(ArchiveError::ChangedContents { path: dir, file }),
            State::Foreign => return Err(ArchiveError::ForeignContents { path: dir, file }),
        }
    }
    Ok(())
}

impl FileList {
    /// The list of `dir`, if there is one that can be read.
    fn read(dir: &Path) -> Option<Self> {
        serde_json::from_slice(&std::fs::read(dir.join(FILE_LIST)).ok()?).ok()
    }

    fn state(&self, name: &str, path: &Path) -> Result<State, ArchiveError> {
        let metadata = path.symlink_metadata().map_err(ArchiveError::io("read", path))?;
        let is_same = match (self.weights.get(name), self.files.get(name)) {
            (Some(&bytes), _) => metadata.is_file() && metadata.len() == bytes && is_weight_file(path),
            (None, Some(expected)) => metadata.is_file() && hash(path)? == *expected,
            (None, None) => return Ok(State::Foreign),
        };
        Ok(if is_same { State::Ours } else { State::Changed })
    }
}

/// Whether a file is an archive, a calibration or a dense checkpoint that PIXEL wrote.
fn is_weight_file(path: &Path) -> bool {
    let keys = [MANIFEST_KEY, CALIBRATION_KEY, PRODUCER_KEY];
    path.is_file() && Shard::open(path, 0).is_ok_and(|(shard, _)| keys.iter().any(|&k| shard.metadata.contains_key(k)))
}

fn hash(path: &Path) -> Result<String, ArchiveError> {
    let read = || {
        let mut hasher = blake3::Hasher::new();
        hasher.update_reader(File::open(path)?)?;
        Ok(hasher.finalize().to_hex().to_string())
    };
    read().map_err(ArchiveError::io("read", path))
}

/// All files in `dir` and the directories inside, hidden ones too, in the order of names. Links are files.
fn files_below(dir: &Path) -> Result<Vec<PathBuf>, ArchiveError> {
    let entries = std::fs::read_dir(dir).and_then(Iterator::collect::<std::io::Result<Vec<_>>>);
    let mut entries = entries.map_err(ArchiveError::io("list", dir))?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    let mut files = Vec::new();
    for entry in entries {
        let path = entry.path();
        match entry.file_type().map_err(ArchiveError::io("read", &path))?.is_dir() {
            true => files.extend(files_below(&path)?),
            false => files.push(path),
        }
    }
    Ok(files)
}

/// The path of a file in `dir`, with `/` between its parts on every system.
fn relative_name(dir: &Path, path: &Path) -> String {
    let relative = path.strip_prefix(dir).unwrap_or(path);
    let parts: Vec<_> = relative.components().map(|part| part.as_os_str().to_string_lossy()).collect();
    parts.join("/")
}
