//! Reading a calibration file, with everything in it checked.

use super::{CALIBRATION_KEY, CalibrationFileError, Description, Group, MAX_WIDTH, VERSION_MAJOR};
use crate::archive::{ArchiveError, Checkpoint, FloatType};
use crate::encode::{Evidence, Moments};
use safetensors::Dtype;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A calibration file, mapped into memory and checked.
#[derive(Debug)]
pub struct Calibration {
    pub(super) path: PathBuf,
    checkpoint: Checkpoint,
    pub(super) description: Description,
    /// The group of each weight.
    groups: BTreeMap<String, String>,
}

impl Calibration {
    /// Opens a calibration file.
    ///
    /// # Errors
    /// [`ArchiveError`] if it cannot be read, is no calibration file, or contradicts itself.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, ArchiveError> {
        let path = path.as_ref();
        let checkpoint = Checkpoint::open(path)?;
        let description = read_description(&checkpoint).map_err(|error| error.in_file(path))?;
        let groups = check_groups(&checkpoint, &description).map_err(|error| match error {
            GroupError::Content(error) => error.in_file(path),
            GroupError::Absent(error) => error,
        })?;
        Ok(Self { path: path.to_owned(), checkpoint, description, groups })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The description of the file.
    pub const fn description(&self) -> &Description {
        &self.description
    }

    /// The group of the tensor `weight`, if its inputs were seen.
    pub fn group(&self, weight: &str) -> Option<&Group> {
        self.groups.get(weight).map(|name| &self.description.groups[name]).filter(|group| group.tokens > 0)
    }

    /// The moments of the inputs of the tensor `weight`; `None` if they were not seen.
    ///
    /// # Errors
    /// [`ArchiveError::Calibration`] with the first value that is not finite, or a negative power.
    pub fn moments(&self, weight: &str) -> Result<Option<Moments>, ArchiveError> {
        let Some(group) = self.group(weight) else { return Ok(None) };
        let tensor = format!("{}.moments", self.groups[weight]);
        let triangle = self.values(&tensor)?;
        let powers = (0..group.d_input).map(|i| triangle[i * (i + 3) / 2]);
        if let Some((i, power)) = powers.enumerate().find(|(_, power)| *power < 0.0) {
            return Err(CalibrationFileError::NegativePower { tensor, input: i, power }.in_file(&self.path));
        }
        let moments = Moments::from_lower_triangle(group.d_input, triangle.into_iter().map(f64::from));
        Ok(Some(moments.with_evidence(&self.evidence(&self.groups[weight])?.unwrap_or_default())))
    }

    /// How much the moments of the group `name` leave open; files of version 1.0 do not say.
    pub(super) fn evidence(&self, name: &str) -> Result<Option<Evidence>, ArchiveError> {
        let tensor = format!("{name}.powers");
        if !self.checkpoint.tensors().contains_key(&tensor) {
            return Ok(None);
        }
        let tokens = self.description.groups[name].tokens;
        let sum = |mean: f32| f64::from(mean) * tokens as f64;
        let means = <[f32; 3]>::try_from(self.values(&tensor)?).expect("a length that was checked");
        let [ordinary, ordinary_squares, squares] = means.map(sum);
        // Zeros stand for what is not known.
        Ok((ordinary > 0.0).then_some(Evidence { tokens, ordinary, ordinary_squares, squares }))
    }

    /// The mean of the inputs of the tensor `weight`, `[d_input]`; `None` if they were not seen.
    ///
    /// # Errors
    /// [`ArchiveError::Calibration`] with the first value that is not finite.
    pub fn mean(&self, weight: &str) -> Result<Option<Vec<f32>>, ArchiveError> {
        self.group(weight).map(|_| self.values(&format!("{}.mean", self.groups[weight]))).transpose()
    }

    /// Checks that the file fits `checkpoint`: every weight that both name has the width of its group.
    ///
    /// # Errors
    /// [`ArchiveError::Calibration`] with the first that has not, or if both name no weight in common.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<(), ArchiveError> {
        let mut known = 0;
        for (weight, name) in &self.groups {
            let Some(info) = checkpoint.tensors().get(weight) else { continue };
            let d_input = self.description.groups[name].d_input;
            if info.shape.len() != 2 || info.shape[1] != d_input {
                let (path, shape) = (checkpoint.path_of(info).to_owned(), info.shape.clone());
                let error = CalibrationFileError::OtherWidth { weight: weight.clone(), d_input, shape, path };
                return Err(error.in_file(&self.path));
            }
            known += 1;
        }
        match known {
            0 => {
                let checkpoint = checkpoint.root().to_owned();
                Err(CalibrationFileError::KnowsNone { checkpoint }.in_file(&self.path))
            }
            _ => Ok(()),
        }
    }

    pub(super) fn values(&self, tensor: &str) -> Result<Vec<f32>, ArchiveError> {
        let info = self.checkpoint.info(tensor)?;
        let mut values = vec![0.0; info.shape[0]];
        FloatType::F32.read(self.checkpoint.bytes(info), &mut values);
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(index) => {
                let (tensor, value) = (tensor.to_owned(), values[index]);
                Err(CalibrationFileError::NotFinite { tensor, index, value }.in_file(&self.path))
            }
        }
    }
}

/// The description in a calibration file.
fn read_description(checkpoint: &Checkpoint) -> Result<Description, CalibrationFileError> {
    #[derive(Deserialize)]
    struct Version {
        version: String,
    }
    let text = checkpoint.shards().first().and_then(|shard| shard.metadata.get(CALIBRATION_KEY));
    let text = text.ok_or(CalibrationFileError::NotOne)?;
    let Version { version } = serde_json::from_str(text)?;
    if version.split('.').next() != Some(&VERSION_MAJOR.to_string()) {
        return Err(CalibrationFileError::Version { found: version });
    }
    Ok(serde_json::from_str(text)?)
}

/// Why the groups of a file cannot be used.
enum GroupError {
    Content(CalibrationFileError),
    Absent(ArchiveError),
}

/// The group of each weight, if every group's tensors match its description.
fn check_groups(checkpoint: &Checkpoint, description: &Description) -> Result<BTreeMap<String, String>, GroupError> {
    let mut groups = BTreeMap::new();
    for (name, group) in &description.groups {
        if !(1..=MAX_WIDTH).contains(&group.d_input) {
            let error = CalibrationFileError::Width { group: name.clone(), d_input: group.d_input };
            return Err(GroupError::Content(error));
        }
        let lengths = [("moments", group.d_input * (group.d_input + 1) / 2), ("mean", group.d_input), ("powers", 3)];
        for (part, expected) in lengths {
            let tensor = format!("{name}.{part}");
            if part == "powers" && !checkpoint.tensors().contains_key(&tensor) {
                continue;
            }
            let info = checkpoint.info(&tensor).map_err(GroupError::Absent)?;
            if info.dtype != Dtype::F32 || info.shape != [expected] {
                let (dtype, shape) = (info.dtype, info.shape.clone());
                return Err(GroupError::Content(CalibrationFileError::Tensor { tensor, dtype, shape, expected }));
            }
        }
        for weight in &group.weights {
            if let Some(first) = groups.insert(weight.clone(), name.clone()) {
                let (weight, second) = (weight.clone(), name.clone());
                return Err(GroupError::Content(CalibrationFileError::TwoGroups { weight, first, second }));
            }
        }
    }
    Ok(groups)
}
