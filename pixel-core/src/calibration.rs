//! Calibration: the second moments of each weight's inputs, collected from forward passes and kept in a file.
//!
//! The file is safetensors. A *group* is what weights that read the same inputs share; it is called after the first of
//! them and stored as `GROUP.moments`, F32 `[n·(n+1)/2]`, the lower triangle of `Σ x·xᵀ / tokens` row after row, and
//! `GROUP.mean`, F32 `[n]`, `Σ x / tokens`. `docs/format.md` has the rest. Files of the same model that were collected
//! from other texts, on other machines, are [`merge`]d by their token counts.

use crate::archive::shard_writer::{ShardWriter, TensorPlan, header, in_file_order};
use crate::archive::staging::Staging;
use crate::archive::{ArchiveError, Checkpoint, FloatType};
use crate::moments::Moments;
use safetensors::Dtype;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// The key of the description under `__metadata__`.
pub const CALIBRATION_KEY: &str = "pixel_calibration";
/// A reader refuses other major versions.
pub const VERSION_MAJOR: u32 = 1;
/// A reader accepts other minor versions and ignores the fields that it does not know.
pub const VERSION_MINOR: u32 = 0;

/// Widths above this are refused: their moments would not fit any memory.
const MAX_WIDTH: usize = 1 << 20;

/// How much each token counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Weighting {
    /// Every token the same: the moments of the inputs as they are, one group for all weights that read them.
    #[default]
    Uniform,
    /// By the power of the gradient of the model's output in the output of the layer, one group for each weight:
    /// `‖g‖²/d_output`. Then `½·tr(E·H·Eᵀ)` estimates what an error `E` of this weight does to the model's output.
    Gradient,
}

/// A text that was read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Source {
    /// Its name.
    pub name: String,
    /// BLAKE3 of its bytes.
    pub blake3: String,
    /// The tokens taken from it.
    pub tokens: u64,
}

/// Weights that share their inputs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Group {
    /// The width of the inputs.
    pub d_input: usize,
    /// The tokens seen.
    pub tokens: u64,
    /// The tensors, in the order of their names.
    pub weights: Vec<String>,
}

/// What a calibration file says of itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Description {
    /// `major.minor`.
    pub version: String,
    /// The program that wrote the file.
    pub producer: String,
    /// How much each token counts.
    pub weighting: Weighting,
    /// The texts.
    pub sources: Vec<Source>,
    /// The groups, by name.
    pub groups: BTreeMap<String, Group>,
}

impl Description {
    /// A description without groups.
    pub fn new(weighting: Weighting, sources: Vec<Source>) -> Self {
        Self {
            version: format!("{VERSION_MAJOR}.{VERSION_MINOR}"),
            producer: concat!("pixel-core ", env!("CARGO_PKG_VERSION")).to_owned(),
            weighting,
            sources,
            groups: BTreeMap::new(),
        }
    }

    fn to_metadata(&self) -> BTreeMap<String, String> {
        let text = serde_json::to_string(self).expect("strings, numbers and maps with string keys");
        [(CALIBRATION_KEY.to_owned(), text)].into()
    }

    fn plans(&self) -> Vec<(TensorPlan, usize)> {
        let plans = self.groups.iter().flat_map(|(name, group)| {
            let n = group.d_input;
            let plan =
                |suffix, len| TensorPlan { name: format!("{name}.{suffix}"), dtype: Dtype::F32, shape: vec![len] };
            [plan("moments", n * (n + 1) / 2), plan("mean", n)]
        });
        in_file_order(plans.collect())
    }
}

/// Sums over the inputs of one group, in f64.
#[derive(Debug, Clone, PartialEq)]
pub struct Accumulator {
    d_input: usize,
    tokens: u64,
    /// `Σ w·x·xᵀ`, the lower triangle row after row.
    products: Vec<f64>,
    /// `Σ x`.
    sums: Vec<f64>,
}

impl Accumulator {
    /// Nothing yet, for inputs of width `d_input`.
    pub fn new(d_input: usize) -> Self {
        Self { d_input, tokens: 0, products: vec![0.0; d_input * (d_input + 1) / 2], sums: vec![0.0; d_input] }
    }

    /// Bytes that the sums over inputs of width `d_input` take.
    pub const fn num_bytes(d_input: usize) -> u64 {
        8 * (d_input as u64 * (d_input as u64 + 1) / 2 + d_input as u64)
    }

    /// The tokens seen.
    pub const fn tokens(&self) -> u64 {
        self.tokens
    }

    /// Adds `tokens` inputs whose weighted products `Σ w·x·xᵀ`, `[d_input, d_input]`, and sums `Σ x`, `[d_input]`, were
    /// formed elsewhere, such as on a device.
    ///
    /// # Panics
    /// If a length differs.
    pub fn add_products(&mut self, products: &[f32], sums: &[f32], tokens: u64) {
        let n = self.d_input;
        assert_eq!((products.len(), sums.len()), (n * n, n), "lengths for width {n}");
        let mut triangle = self.products.iter_mut();
        for (i, row) in products.chunks_exact(n).enumerate() {
            row[..=i].iter().zip(&mut triangle).for_each(|(&product, sum)| *sum += f64::from(product));
        }
        self.sums.iter_mut().zip(sums).for_each(|(sum, &x)| *sum += f64::from(x));
        self.tokens += tokens;
    }

    /// Adds inputs `[tokens, d_input]`, row-major, every token the same.
    ///
    /// # Panics
    /// If `inputs` is not a whole number of rows.
    pub fn add_inputs(&mut self, inputs: &[f32]) {
        let n = self.d_input;
        assert_eq!(inputs.len() % n, 0, "{} values of width {n}", inputs.len());
        for row in inputs.chunks_exact(n) {
            let mut triangle = self.products.iter_mut();
            for (i, &x) in row.iter().enumerate() {
                let x = f64::from(x);
                row[..=i].iter().zip(&mut triangle).for_each(|(&y, sum)| *sum += x * f64::from(y));
                self.sums[i] += x;
            }
        }
        self.tokens += (inputs.len() / n) as u64;
    }

    /// The moments seen; zero if there was no token.
    pub fn moments(&self) -> Moments {
        let count = self.tokens.max(1) as f64;
        Moments::from_lower_triangle(self.d_input, self.products.iter().map(|sum| sum / count))
    }

    /// The tensor of `sums` as a file holds it, or the place of the first that F32 cannot hold.
    fn stored(&self, sums: &[f64]) -> Result<Vec<u8>, usize> {
        let count = self.tokens.max(1) as f64;
        let mut bytes = Vec::with_capacity(4 * sums.len());
        for (i, sum) in sums.iter().enumerate() {
            let mean = (sum / count) as f32;
            if !mean.is_finite() {
                return Err(i);
            }
            bytes.extend(mean.to_le_bytes());
        }
        Ok(bytes)
    }
}

/// Writes a calibration file group by group; it has its final name once it is [`finish`](Self::finish)ed.
#[derive(Debug)]
pub struct CalibrationWriter {
    staging: Staging,
    writer: ShardWriter,
    description: Description,
    path: PathBuf,
}

impl CalibrationWriter {
    /// Starts a file for the groups of `description`, whose token counts are not known yet.
    ///
    /// # Errors
    /// [`ArchiveError::OutputExists`] unless `overwrite`; [`ArchiveError::Io`].
    pub fn create(path: &Path, mut description: Description, overwrite: bool) -> Result<Self, ArchiveError> {
        let staging = Staging::file(path, overwrite)?;
        // The widest numbers that can come.
        description.groups.values_mut().for_each(|group| group.tokens = u64::MAX);
        let plans = description.plans();
        let header_len = header(&plans, &description.to_metadata()).len();
        let writer = ShardWriter::create(staging.path(), plans, header_len)?;
        description.groups.values_mut().for_each(|group| group.tokens = 0);
        Ok(Self { staging, writer, description, path: path.to_owned() })
    }

    /// Writes one group.
    ///
    /// # Errors
    /// [`ArchiveError::Calibration`] for a group that was not announced or sums that are not finite;
    /// [`ArchiveError::Io`].
    pub fn write(&mut self, group: &str, sums: &Accumulator) -> Result<(), ArchiveError> {
        let error = |message: String| ArchiveError::Calibration { path: self.path.clone(), message };
        let not_announced = || error(format!("group \"{group}\" of width {} was not announced", sums.d_input));
        let place = self.description.groups.get_mut(group).filter(|place| place.d_input == sums.d_input);
        place.ok_or_else(not_announced)?.tokens = sums.tokens;
        for (suffix, values) in [("moments", &sums.products), ("mean", &sums.sums)] {
            let not_finite = |i| error(format!("group \"{group}\": value {i} of the {suffix} is not finite in F32"));
            self.writer.write(&format!("{group}.{suffix}"), 0, &sums.stored(values).map_err(not_finite)?)?;
        }
        Ok(())
    }

    /// Gives the file its final name.
    ///
    /// # Errors
    /// [`ArchiveError::Io`].
    pub fn finish(self) -> Result<Description, ArchiveError> {
        self.writer.finish(&self.description.to_metadata())?;
        self.staging.commit()?;
        Ok(self.description)
    }
}

/// A calibration file, mapped into memory and checked.
#[derive(Debug)]
pub struct Calibration {
    path: PathBuf,
    checkpoint: Checkpoint,
    description: Description,
    /// The group of each weight.
    groups: BTreeMap<String, String>,
}

impl Calibration {
    /// Opens a calibration file.
    ///
    /// # Errors
    /// [`ArchiveError`] if it cannot be read, is no calibration file, or contradicts itself.
    pub fn open(path: &Path) -> Result<Self, ArchiveError> {
        let checkpoint = Checkpoint::open(path)?;
        let error = |message: String| ArchiveError::Calibration { path: path.to_owned(), message };
        let text = checkpoint.shards().first().and_then(|shard| shard.metadata.get(CALIBRATION_KEY));
        let text = text.ok_or_else(|| error("not a calibration file; `pixel calibrate` makes one".into()))?;
        #[derive(Deserialize)]
        struct Version {
            version: String,
        }
        let Version { version } = serde_json::from_str(text).map_err(|e| error(e.to_string()))?;
        if version.split('.').next() != Some(&VERSION_MAJOR.to_string()) {
            return Err(error(format!("version {version} cannot be read, this program reads {VERSION_MAJOR}.x")));
        }
        let description: Description = serde_json::from_str(text).map_err(|e| error(e.to_string()))?;
        let mut groups = BTreeMap::new();
        for (name, group) in &description.groups {
            if !(1..=MAX_WIDTH).contains(&group.d_input) {
                return Err(error(format!("group \"{name}\": d_input = {} is outside 1..={MAX_WIDTH}", group.d_input)));
            }
            for (suffix, len) in [("moments", group.d_input * (group.d_input + 1) / 2), ("mean", group.d_input)] {
                let tensor = checkpoint.info(&format!("{name}.{suffix}"))?;
                if tensor.dtype != Dtype::F32 || tensor.shape != [len] {
                    let found = format!("{} {:?}", tensor.dtype, tensor.shape);
                    return Err(error(format!("tensor \"{name}.{suffix}\" is {found}, expected F32 [{len}]")));
                }
            }
            for weight in &group.weights {
                if let Some(other) = groups.insert(weight.clone(), name.clone()) {
                    return Err(error(format!("tensor \"{weight}\" is in groups \"{other}\" and \"{name}\"")));
                }
            }
        }
        Ok(Self { path: path.to_owned(), checkpoint, description, groups })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file says of itself.
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
            let message = format!("tensor \"{tensor}\": the power of input {i} is {power}");
            return Err(ArchiveError::Calibration { path: self.path.clone(), message });
        }
        Ok(Some(Moments::from_lower_triangle(group.d_input, triangle.into_iter().map(f64::from))))
    }

    /// The mean of the inputs of the tensor `weight`, `[d_input]`; `None` if they were not seen.
    ///
    /// # Errors
    /// [`ArchiveError::Calibration`] with the first value that is not finite.
    pub fn mean(&self, weight: &str) -> Result<Option<Vec<f32>>, ArchiveError> {
        self.group(weight).map(|_| self.values(&format!("{}.mean", self.groups[weight]))).transpose()
    }

    /// Checks that the file fits `checkpoint`: every weight that it names and the checkpoint has is of its width.
    ///
    /// # Errors
    /// [`ArchiveError::Calibration`] with the first that is not, or if no weight is known to both.
    pub fn check(&self, checkpoint: &Checkpoint) -> Result<(), ArchiveError> {
        let error = |message: String| ArchiveError::Calibration { path: self.path.clone(), message };
        let mut known = 0;
        for (weight, name) in &self.groups {
            let Some(info) = checkpoint.tensors().get(weight) else { continue };
            let d_input = self.description.groups[name].d_input;
            if info.shape.len() != 2 || info.shape[1] != d_input {
                let (path, shape) = (checkpoint.path_of(info).display(), &info.shape);
                let message = format!("inputs of width {d_input} for \"{weight}\", which is {shape:?} in {path}");
                return Err(error(message));
            }
            known += 1;
        }
        match known {
            0 => Err(error(format!("knows no tensor of {}", checkpoint.root().display()))),
            _ => Ok(()),
        }
    }

    fn values(&self, tensor: &str) -> Result<Vec<f32>, ArchiveError> {
        let info = self.checkpoint.info(tensor)?;
        let mut values = vec![0.0; info.shape[0]];
        FloatType::F32.read(self.checkpoint.bytes(info), &mut values);
        match values.iter().position(|value| !value.is_finite()) {
            None => Ok(values),
            Some(i) => {
                let message = format!("tensor \"{tensor}\" holds {} at index {i}", values[i]);
                Err(ArchiveError::Calibration { path: self.path.clone(), message })
            }
        }
    }
}

/// Merges calibration files of one model into `output`: each counts by its tokens, group by group.
///
/// # Errors
/// [`ArchiveError::Calibration`] if the files differ in weighting or groups; what [`Calibration::open`] and
/// [`CalibrationWriter`] refuse.
///
/// # Panics
/// If there are no inputs.
pub fn merge(inputs: &[Calibration], output: &Path, overwrite: bool) -> Result<Description, ArchiveError> {
    let first = inputs.first().expect("files to merge");
    let mut description = Description::new(first.description.weighting, Vec::new());
    for input in inputs {
        let error = |message: String| ArchiveError::Calibration { path: input.path.clone(), message };
        let (a, b) = (&first.description, &input.description);
        if a.weighting != b.weighting {
            let message = format!("tokens weigh {:?}, in {} {:?}", b.weighting, first.path.display(), a.weighting);
            return Err(error(message));
        }
        let form = |d: &Description| -> Vec<(String, usize, Vec<String>)> {
            d.groups.iter().map(|(name, group)| (name.clone(), group.d_input, group.weights.clone())).collect()
        };
        if let Some(name) = form(a).into_iter().chain(form(b)).find(|g| !form(a).contains(g) || !form(b).contains(g)) {
            return Err(error(format!("group \"{}\" is not the same as in {}", name.0, first.path.display())));
        }
        description.sources.extend(b.sources.iter().cloned());
    }
    description.groups = first.description.groups.clone();
    let mut writer = CalibrationWriter::create(output, description, overwrite)?;
    for (name, group) in &first.description.groups {
        let mut sums = Accumulator::new(group.d_input);
        for input in inputs {
            let tokens = input.description.groups[name].tokens;
            let weighted = |mean: f32| f64::from(mean) * tokens as f64;
            for (sums, suffix) in [(&mut sums.products, "moments"), (&mut sums.sums, "mean")] {
                let means = input.values(&format!("{name}.{suffix}"))?;
                sums.iter_mut().zip(means).for_each(|(sum, mean)| *sum += weighted(mean));
            }
            sums.tokens += tokens;
        }
        writer.write(name, &sums)?;
    }
    writer.finish()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn description(tokens: u64) -> Description {
        let source = Source { name: "a.txt".into(), blake3: "0".repeat(64), tokens };
        let mut description = Description::new(Weighting::Uniform, vec![source]);
        let weights = vec!["a.weight".to_owned(), "b.weight".to_owned()];
        description.groups.insert("a.weight".into(), Group { d_input: 3, tokens, weights });
        description
    }

    fn written(path: &Path, inputs: &[f32]) -> Calibration {
        let mut sums = Accumulator::new(3);
        sums.add_inputs(inputs);
        let mut writer = CalibrationWriter::create(path, description(sums.tokens()), false).unwrap();
        assert!(!path.exists(), "nothing under the final name before it is complete");
        writer.write("a.weight", &sums).unwrap();
        writer.finish().unwrap();
        Calibration::open(path).unwrap()
    }

    #[test]
    fn what_is_written_is_read_for_every_weight_of_the_group() {
        let dir = tempfile::tempdir().unwrap();
        let inputs = [1.0, 2.0, 3.0, -1.0, 0.5, 0.0];
        let calibration = written(&dir.path().join("a.safetensors"), &inputs);
        assert_eq!(calibration.description(), &description(2));
        for weight in ["a.weight", "b.weight"] {
            let moments = calibration.moments(weight).unwrap().unwrap();
            let expected = Moments::of_inputs(3, &inputs);
            for (i, j) in [(0, 0), (1, 0), (2, 1), (1, 2)] {
                assert!((moments.at(i, j) - expected.at(i, j)).abs() < 1e-6, "({i}, {j})");
            }
            assert_eq!(calibration.mean(weight).unwrap().unwrap(), [0.0, 1.25, 1.5]);
        }
        assert_eq!(calibration.moments("c.weight").unwrap(), None);
    }

    #[test]
    fn products_formed_elsewhere_count_the_same() {
        let inputs = [1.0, 2.0, -3.0, 0.5];
        let (mut a, mut b) = (Accumulator::new(2), Accumulator::new(2));
        a.add_inputs(&inputs);
        b.add_products(&[10.0, 0.5, 0.5, 4.25], &[-2.0, 2.5], 2);
        assert_eq!(a, b);
        assert_eq!(Accumulator::num_bytes(2), 8 * (3 + 2));
    }

    #[test]
    fn merged_files_are_those_of_all_texts_together() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let (a, b) = ([1.0f32, 2.0, 3.0], [-1.0f32, 0.5, 0.0, 2.0, 2.0, 1.0]);
        let parts = [written(&path("a.safetensors"), &a), written(&path("b.safetensors"), &b)];
        let merged = merge(&parts, &path("c.safetensors"), false).unwrap();
        assert_eq!(merged.groups["a.weight"].tokens, 3);
        assert_eq!(merged.sources.len(), 2);
        let together = written(&path("d.safetensors"), &[&a[..], &b].concat());
        let merged = Calibration::open(&path("c.safetensors")).unwrap();
        let (found, expected) =
            (merged.moments("b.weight").unwrap().unwrap(), together.moments("b.weight").unwrap().unwrap());
        for (i, j) in [(0, 0), (1, 0), (2, 1), (2, 2)] {
            assert!((found.at(i, j) - expected.at(i, j)).abs() < 1e-6, "({i}, {j})");
        }
    }

    #[test]
    fn files_that_do_not_fit_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let a = written(&path("a.safetensors"), &[1.0, 2.0, 3.0]);
        let mut other = description(1);
        other.groups.get_mut("a.weight").unwrap().weights.pop();
        let mut writer = CalibrationWriter::create(&path("b.safetensors"), other, false).unwrap();
        writer.write("a.weight", &Accumulator::new(3)).unwrap();
        let error = writer.write("b.weight", &Accumulator::new(3)).unwrap_err();
        assert!(error.to_string().contains("group \"b.weight\" of width 3 was not announced"), "{error}");
        writer.finish().unwrap();
        let b = Calibration::open(&path("b.safetensors")).unwrap();
        assert_eq!(b.moments("a.weight").unwrap(), None, "no token was seen");
        let error = merge(&[a, b], &path("c.safetensors"), false).unwrap_err();
        assert!(error.to_string().contains("group \"a.weight\" is not the same"), "{error}");
        assert!(!path("c.safetensors").exists());

        let mut sums = Accumulator::new(3);
        sums.add_inputs(&[1.0, f32::NAN, 1.0]);
        let mut writer = CalibrationWriter::create(&path("d.safetensors"), description(1), false).unwrap();
        let error = writer.write("a.weight", &sums).unwrap_err();
        assert!(error.to_string().contains("value 1 of the moments is not finite"), "{error}");
    }
}
