//! Output that appears under its final name only when it is complete: the one way in which files are written.

use super::error::ArchiveError;
use super::names::is_weights;
use super::ownership::check_ours;
use super::partial::{self, remove};
use std::io::Write;
use std::path::{Path, PathBuf};

/// What an output is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutputKind {
    /// One file.
    File,
    /// A directory of files.
    Directory,
}

impl OutputKind {
    /// The kind that archives and checkpoints derive from a path: a file if it is called like one of weights, by ending
    /// in `.safetensors` or `.pixel`, a directory otherwise.
    pub fn of(path: impl AsRef<Path>) -> Self {
        let name = path.as_ref().file_name().unwrap_or_default().to_string_lossy().into_owned();
        if is_weights(&name) { Self::File } else { Self::Directory }
    }
}

impl std::fmt::Display for OutputKind {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::File => "a file",
            Self::Directory => "a directory",
        })
    }
}

/// What an output may take the place of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Replace {
    /// Nothing: the name has to be free.
    Nothing,
    /// What PIXEL wrote, or an empty directory.
    Ours,
    /// Any file.
    AnyFile,
}

impl Replace {
    /// What a request to overwrite allows.
    pub(crate) const fn ours_if(overwrite: bool) -> Self {
        if overwrite { Self::Ours } else { Self::Nothing }
    }
}

/// A file or directory under a temporary name next to its final one; removed unless [`commit`](Self::commit)ted.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    target: PathBuf,
    kind: OutputKind,
    replace: Replace,
    /// Whether to remove what lies at `path` on drop.
    armed: bool,
}

impl Staging {
    /// An output that will become `target`. A directory is created at [`path`](Self::path), a file is for the caller to
    /// create there.
    ///
    /// # Errors
    /// What [`check_output`] refuses; [`ArchiveError::Io`].
    pub(crate) fn new(target: &Path, kind: OutputKind, replace: Replace) -> Result<Self, ArchiveError> {
        // Without a trailing `.` or `/`, which a rename would refuse.
        let target: PathBuf = target.components().collect();
        check_target(&target, kind, replace)?;
        let invalid = || std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path names no file or directory");
        let name = target.file_name().ok_or_else(invalid).map_err(ArchiveError::io("create", &target))?;
        if let Some(parent) = target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(ArchiveError::io("create", parent))?;
        }
        let partial = format!(".{}.{:016x}.partial", name.to_string_lossy(), unique());
        let path = target.with_file_name(partial);
        if kind == OutputKind::Directory {
            std::fs::create_dir(&path).map_err(ArchiveError::io("create", &path))?;
        }
        // The name is unique to this value, so whatever appears there may be removed with it.
        partial::note(&path);
        Ok(Self { path, target, kind, replace, armed: true })
    }

    /// The temporary name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// What the output is.
    pub(crate) const fn kind(&self) -> OutputKind {
        self.kind
    }

    /// Gives the output its final name. However the process ends, that name leads to the whole of the old output or the
    /// whole of the new one, where the file system can exchange two directories (Linux and macOS can); elsewhere a
    /// directory that is replaced is absent between two renames.
    ///
    /// # Errors
    /// As [`new`](Self::new), for what has appeared there meanwhile; [`ArchiveError::Io`]. An existing output is then
    /// unchanged, unless the error says where it is.
    pub(crate) fn commit(mut self) -> Result<(), ArchiveError> {
        check_target(&self.target, self.kind, self.replace)?;
        let rename = ArchiveError::io("rename the output to", &self.target);
        let replaces = self.kind == OutputKind::Directory && self.target.symlink_metadata().is_ok();
        if replaces && exchange(&self.path, &self.target).is_ok() {
            // The replaced output has the temporary name now and is removed when this is dropped.
            return Ok(());
        }
        if replaces {
            let old = self.path.with_extension("old");
            std::fs::rename(&self.target, &old).map_err(ArchiveError::io("replace", &self.target))?;
            if let Err(error) = std::fs::rename(&self.path, &self.target) {
                if let Err(error) = std::fs::rename(&old, &self.target) {
                    // Both outputs stay: one of them has to be given its name by hand.
                    self.armed = false;
                    return Err(ArchiveError::io("restore from its temporary name the output", &old)(error));
                }
                return Err(rename(error));
            }
            // The output is in place: failing to remove the replaced one is no error.
            let _ = remove(&old);
        } else if self.kind == OutputKind::File && self.replace != Replace::Nothing {
            // Over a file, this replaces it at once.
            std::fs::rename(&self.path, &self.target).map_err(rename)?;
        } else {
            rename_new(&self.path, &self.target).map_err(|error| match error.kind() {
                // The second is said where a file system cannot tell the first, of the directory of another run.
                std::io::ErrorKind::AlreadyExists | std::io::ErrorKind::DirectoryNotEmpty => {
                    ArchiveError::OutputExists { path: self.target.clone() }
                }
                _ => rename(error),
            })?;
        }
        self.armed = false;
        Ok(())
    }
}

/// Refuses an output that is in the way of what exists, as every writer does before it writes: for programs that would
/// rather know before long computations.
///
/// # Errors
/// If something is there: [`ArchiveError::OutputExists`] unless `overwrite`; [`ArchiveError::OutputKind`] if it is of
/// the other kind; [`ArchiveError::ForeignFile`], [`ArchiveError::ForeignContents`] and
/// [`ArchiveError::ChangedContents`] if it is not what PIXEL wrote, nor an empty directory. [`ArchiveError::Io`].
pub fn check_output(path: impl AsRef<Path>, kind: OutputKind, overwrite: bool) -> Result<(), ArchiveError> {
    check_target(path.as_ref(), kind, Replace::ours_if(overwrite))
}

/// Writes `contents` to the file `path`, which appears complete or not at all; with `overwrite` it takes the place of
/// any file.
///
/// # Errors
/// [`ArchiveError::OutputExists`] unless `overwrite`; [`ArchiveError::OutputKind`] for a directory;
/// [`ArchiveError::Io`].
///
/// # Example
/// ```
/// # let dir = tempfile::tempdir()?;
/// # let path = dir.path().join("note.txt");
/// use pixel_core::archive::write_file;
/// write_file(&path, b"one", false)?;
/// assert!(write_file(&path, b"two", false).is_err());
/// write_file(&path, b"two", true)?;
/// assert_eq!(std::fs::read(&path)?, b"two");
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_file(path: impl AsRef<Path>, contents: &[u8], overwrite: bool) -> Result<(), ArchiveError> {
    let replace = if overwrite { Replace::AnyFile } else { Replace::Nothing };
    let staging = Staging::new(path.as_ref(), OutputKind::File, replace)?;
    let write = || {
        let mut file = std::fs::File::create_new(staging.path())?;
        file.write_all(contents)?;
        file.sync_all()
    };
    write().map_err(ArchiveError::io("write", path.as_ref()))?;
    staging.commit()
}

/// Refuses a target that may not be replaced.
fn check_target(target: &Path, kind: OutputKind, replace: Replace) -> Result<(), ArchiveError> {
    if target.symlink_metadata().is_err() {
        return Ok(());
    }
    if replace == Replace::Nothing {
        return Err(ArchiveError::OutputExists { path: target.to_owned() });
    }
    let found = if target.is_dir() { OutputKind::Directory } else { OutputKind::File };
    match replace {
        _ if found != kind => Err(ArchiveError::OutputKind { path: target.to_owned(), found, wanted: kind }),
        Replace::Ours => check_ours(target, kind),
        _ => Ok(()),
    }
}

/// Swaps two paths atomically.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn exchange(a: &Path, b: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}

/// Renames `from` to `to`, unless something is there, where the file system can tell.
#[cfg(any(target_os = "linux", target_os = "macos"))]
fn rename_new(from: &Path, to: &Path) -> std::io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    match renameat_with(CWD, from, CWD, to, RenameFlags::NOREPLACE) {
        Err(rustix::io::Errno::INVAL | rustix::io::Errno::NOSYS | rustix::io::Errno::NOTSUP) => {
            std::fs::rename(from, to)
        }
        result => Ok(result?),
    }
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn rename_new(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::rename(from, to)
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
fn exchange(_: &Path, _: &Path) -> std::io::Result<()> {
    Err(std::io::ErrorKind::Unsupported.into())
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.armed {
            // Nothing can be done about a failure here; the name says that the file is partial.
            let _ = remove(&self.path);
        }
        partial::forget(&self.path);
    }
}

/// A number that no other run has, in this process or another, also where process ids repeat.
fn unique() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Keyed by the operating system's random numbers.
    RandomState::new().hash_one(std::process::id())
}

#[cfg(test)]
mod tests {
    use super::super::ownership::write_file_list;
    use super::*;

    fn count(dir: &Path) -> usize {
        std::fs::read_dir(dir).unwrap().count()
    }

    #[test]
    fn a_file_appears_only_when_committed_and_nothing_is_left_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let staging = Staging::new(&target, OutputKind::File, Replace::Nothing).unwrap();
        std::fs::write(staging.path(), "half").unwrap();
        assert!(!target.exists());
        drop(staging);
        assert_eq!(count(dir.path()), 0);
    }

    #[test]
    fn what_exists_is_replaced_only_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        std::fs::write(&target, "old").unwrap();
        let refused = Staging::new(&target, OutputKind::File, Replace::Nothing);
        assert!(matches!(refused, Err(ArchiveError::OutputExists { .. })));
        let staging = Staging::new(&target, OutputKind::File, Replace::AnyFile).unwrap();
        std::fs::write(staging.path(), "new").unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "old");
        staging.commit().unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "new");
        assert_eq!(count(dir.path()), 1);
    }

    #[test]
    fn a_directory_takes_the_place_of_one_and_nothing_of_the_old_is_left() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        std::fs::create_dir(&target).unwrap();
        std::fs::write(target.join("old"), "old").unwrap();
        write_file_list(&target, &[]).unwrap();
        let staging = Staging::new(&target, OutputKind::Directory, Replace::Ours).unwrap();
        std::fs::write(staging.path().join("new"), "new").unwrap();
        assert!(target.join("old").exists());
        staging.commit().unwrap();
        assert!(target.join("new").exists() && !target.join("old").exists());
        assert_eq!(count(dir.path()), 1);
    }

    #[test]
    fn nothing_takes_the_place_of_what_is_of_another_kind() {
        let dir = tempfile::tempdir().unwrap();
        let (folder, file) = (dir.path().join("folder"), dir.path().join("file"));
        std::fs::create_dir(&folder).unwrap();
        std::fs::write(folder.join("precious"), "data").unwrap();
        std::fs::write(&file, "data").unwrap();
        let refused = |path: &Path, kind| Staging::new(path, kind, Replace::Ours).unwrap_err().to_string();
        assert!(refused(&folder, OutputKind::File).ends_with("is a directory, the output would be a file"));
        assert!(refused(&file, OutputKind::Directory).ends_with("is a file, the output would be a directory"));
        // Nor what appeared there after the output was started.
        let late = dir.path().join("late");
        let staging = Staging::new(&late, OutputKind::File, Replace::Nothing).unwrap();
        std::fs::write(staging.path(), "new").unwrap();
        std::fs::create_dir(&late).unwrap();
        assert!(matches!(staging.commit(), Err(ArchiveError::OutputExists { .. })));
        let staging = Staging::new(&dir.path().join("later"), OutputKind::File, Replace::Ours).unwrap();
        std::fs::write(staging.path(), "new").unwrap();
        std::fs::create_dir(dir.path().join("later")).unwrap();
        assert!(matches!(staging.commit(), Err(ArchiveError::OutputKind { .. })));
        std::fs::remove_dir(dir.path().join("later")).unwrap();
        assert!(write_file(&folder, b"new", true).is_err());
        assert_eq!(std::fs::read_to_string(folder.join("precious")).unwrap(), "data");
        assert_eq!(std::fs::read_to_string(&file).unwrap(), "data");
        assert_eq!(count(dir.path()), 3);
    }

    #[test]
    fn what_appeared_meanwhile_is_not_replaced_unasked() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [OutputKind::File, OutputKind::Directory] {
            let (target, other) = (dir.path().join(format!("{kind}")), dir.path().join(format!("new {kind}")));
            let write = |path: &Path, text: &str| match kind {
                OutputKind::File => std::fs::write(path, text).unwrap(),
                OutputKind::Directory => {
                    std::fs::create_dir_all(path).unwrap();
                    std::fs::write(path.join("data"), text).unwrap();
                }
            };
            let staging = Staging::new(&target, kind, Replace::Nothing).unwrap();
            write(staging.path(), "ours");
            write(&target, "theirs");
            assert!(matches!(staging.commit(), Err(ArchiveError::OutputExists { .. })), "{kind}");
            let data = if kind == OutputKind::File { target.clone() } else { target.join("data") };
            assert_eq!(std::fs::read_to_string(data).unwrap(), "theirs");
            // Nor between the look and the rename.
            write(&other, "ours");
            assert_eq!(rename_new(&other, &target).unwrap_err().kind(), std::io::ErrorKind::AlreadyExists, "{kind}");
        }
    }

    #[test]
    fn a_name_that_is_replaced_is_never_away() {
        let dir = tempfile::tempdir().unwrap();
        for kind in [OutputKind::File, OutputKind::Directory] {
            let target = dir.path().join(format!("{kind}"));
            let put = |replace| {
                let staging = Staging::new(&target, kind, replace).unwrap();
                match kind {
                    OutputKind::File => std::fs::write(staging.path(), "contents").unwrap(),
                    OutputKind::Directory => {
                        std::fs::write(staging.path().join("a"), "contents").unwrap();
                        write_file_list(staging.path(), &[]).unwrap();
                    }
                }
                staging.commit().unwrap();
            };
            let again = if kind == OutputKind::File { Replace::AnyFile } else { Replace::Ours };
            put(Replace::Nothing);
            let is_done = std::sync::atomic::AtomicBool::new(false);
            std::thread::scope(|scope| {
                let watcher = scope.spawn(|| {
                    let mut looks = 0u64;
                    while !is_done.load(std::sync::atomic::Ordering::Relaxed) {
                        assert!(target.exists(), "{kind} after {looks} looks");
                        looks += 1;
                    }
                });
                (0..200).for_each(|_| put(again));
                is_done.store(true, std::sync::atomic::Ordering::Relaxed);
                watcher.join().unwrap();
            });
        }
    }
}
