//! Writing a calibration file.

use super::{Accumulator, CalibrationFileError, Description};
use crate::archive::{ArchiveError, CheckpointWriter, FilePlan, OutputKind};
use crate::encode::Evidence;
use std::path::{Path, PathBuf};

/// Writes a calibration file group by group; it has its final name once it is [`finish`](Self::finish)ed.
#[derive(Debug)]
pub struct CalibrationWriter {
    writer: CheckpointWriter,
    description: Description,
    path: PathBuf,
}

impl CalibrationWriter {
    /// Starts a file for the groups of `description`, whose token counts are not known yet.
    ///
    /// # Errors
    /// [`ArchiveError::OutputExists`] unless `overwrite`; [`ArchiveError::ForeignFile`] for a file that PIXEL did not
    /// write, [`ArchiveError::OutputKind`] for a directory; [`ArchiveError::Io`].
    pub fn create(path: impl AsRef<Path>, mut description: Description, overwrite: bool) -> Result<Self, ArchiveError> {
        let path = path.as_ref();
        // The longest numbers that can occur.
        description.groups.values_mut().for_each(|group| group.tokens = u64::MAX);
        let file = FilePlan::new(path.to_string_lossy(), description.plans(), &description.to_metadata())?;
        description.groups.values_mut().for_each(|group| group.tokens = 0);
        let writer = CheckpointWriter::create(path, OutputKind::File, &[file], overwrite)?;
        Ok(Self { writer, description, path: path.to_owned() })
    }

    /// Writes one group.
    ///
    /// # Errors
    /// [`ArchiveError::Calibration`] for a group that was not announced or sums that are not finite;
    /// [`ArchiveError::Io`].
    pub fn write(&mut self, group: &str, sums: &Accumulator) -> Result<(), ArchiveError> {
        let place = self.description.groups.get_mut(group).filter(|place| place.d_input == sums.d_input);
        let not_announced = || CalibrationFileError::NotAnnounced { group: group.to_owned(), d_input: sums.d_input };
        place.ok_or_else(|| not_announced().in_file(&self.path))?.tokens = sums.tokens();
        let Evidence { ordinary, ordinary_squares, squares, .. } = sums.evidence;
        let powers = [ordinary, ordinary_squares, squares];
        for (part, values) in [("moments", &sums.products[..]), ("mean", &sums.sums), ("powers", &powers)] {
            let not_finite = |index| CalibrationFileError::Mean { group: group.to_owned(), part, index };
            let stored = sums.stored(values).map_err(|index| not_finite(index).in_file(&self.path))?;
            self.writer.file(0).write(&format!("{group}.{part}"), 0, &stored)?;
        }
        Ok(())
    }

    /// Gives the file its final name.
    ///
    /// # Errors
    /// [`ArchiveError::Io`].
    pub fn finish(self) -> Result<Description, ArchiveError> {
        self.writer.finish([self.description.to_metadata()], |_| Ok(()))?;
        Ok(self.description)
    }
}
