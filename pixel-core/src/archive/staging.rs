//! Output that appears under its final name only when it is complete.

use super::error::ArchiveError;
use std::path::{Path, PathBuf};

/// A file or directory under a temporary name beside its final one; removed unless [`commit`](Self::commit)ted.
#[derive(Debug)]
pub(crate) struct Staging {
    path: PathBuf,
    target: PathBuf,
    overwrite: bool,
    /// Whether what lies at `path` is this one's to remove.
    armed: bool,
}

impl Staging {
    /// A directory that will become `target`.
    ///
    /// # Errors
    /// [`ArchiveError::OutputExists`] unless `overwrite`, [`ArchiveError::Io`].
    pub(crate) fn directory(target: &Path, overwrite: bool) -> Result<Self, ArchiveError> {
        let mut staging = Self::new(target, overwrite)?;
        std::fs::create_dir(&staging.path).map_err(ArchiveError::io("create", &staging.path))?;
        staging.armed = true;
        Ok(staging)
    }

    /// A file that will become `target`; the caller creates it at [`path`](Self::path).
    ///
    /// # Errors
    /// [`ArchiveError::OutputExists`] unless `overwrite`, [`ArchiveError::Io`].
    pub(crate) fn file(target: &Path, overwrite: bool) -> Result<Self, ArchiveError> {
        // The name is this process's own, so what appears there is this one's.
        let mut staging = Self::new(target, overwrite)?;
        staging.armed = true;
        Ok(staging)
    }

    fn new(target: &Path, overwrite: bool) -> Result<Self, ArchiveError> {
        // Without a trailing `.` or `/`, which a rename would not take.
        let target: PathBuf = target.components().collect();
        if target.symlink_metadata().is_ok() && !overwrite {
            return Err(ArchiveError::OutputExists { path: target });
        }
        let invalid = || std::io::Error::new(std::io::ErrorKind::InvalidInput, "the path names no file or directory");
        let name = target.file_name().ok_or_else(invalid).map_err(ArchiveError::io("create", &target))?;
        if let Some(parent) = target.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            std::fs::create_dir_all(parent).map_err(ArchiveError::io("create", parent))?;
        }
        let partial = format!(".{}.{:016x}.partial", name.to_string_lossy(), unique());
        Ok(Self { path: target.with_file_name(partial), target, overwrite, armed: false })
    }

    /// The temporary name.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Gives the output its final name.
    ///
    /// # Errors
    /// [`ArchiveError::Io`]; what was there before is then still there.
    pub(crate) fn commit(mut self) -> Result<(), ArchiveError> {
        let old = self.path.with_extension("old");
        let replaces = self.overwrite && self.target.symlink_metadata().is_ok();
        if replaces {
            std::fs::rename(&self.target, &old).map_err(ArchiveError::io("replace", &self.target))?;
        }
        if let Err(error) = std::fs::rename(&self.path, &self.target) {
            if replaces {
                std::fs::rename(&old, &self.target).map_err(ArchiveError::io("restore", &self.target))?;
            }
            return Err(ArchiveError::io("rename the output to", &self.target)(error));
        }
        self.armed = false;
        if replaces {
            // The output is in place: what is left of the old one is no reason to fail.
            let _ = remove(&old);
        }
        Ok(())
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        if self.armed {
            // Nothing can be done about a failure here; the name says that the file is partial.
            let _ = remove(&self.path);
        }
    }
}

/// A number that no other run has, in this process or another, also where process ids repeat.
fn unique() -> u64 {
    use std::hash::{BuildHasher, RandomState};
    // Keyed by the operating system's random numbers.
    RandomState::new().hash_one(std::process::id())
}

fn remove(path: &Path) -> std::io::Result<()> {
    if path.is_dir() { std::fs::remove_dir_all(path) } else { std::fs::remove_file(path) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_appears_only_when_committed_and_nothing_is_left_otherwise() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        let staging = Staging::file(&target, false).unwrap();
        std::fs::write(staging.path(), "half").unwrap();
        assert!(!target.exists());
        drop(staging);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
    }

    #[test]
    fn what_exists_is_replaced_only_on_request() {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        std::fs::write(&target, "old").unwrap();
        assert!(matches!(Staging::file(&target, false), Err(ArchiveError::OutputExists { .. })));
        let staging = Staging::file(&target, true).unwrap();
        std::fs::write(staging.path(), "new").unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "old");
        staging.commit().unwrap();
        assert_eq!(std::fs::read_to_string(&target).unwrap(), "new");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
