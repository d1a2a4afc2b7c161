//! Merging calibration files of one model.

use super::{Accumulator, Calibration, CalibrationFileError, CalibrationWriter, Description};
use crate::archive::ArchiveError;
use crate::encode::Evidence;
use std::path::Path;

/// Merges calibration files of one model into `output`: each counts by its tokens, group by group.
///
/// # Errors
/// [`ArchiveError::Calibration`] if the files differ in weighting or groups; what [`Calibration::open`] and
/// [`CalibrationWriter`] refuse.
///
/// # Panics
/// If there are no inputs.
pub fn merge(inputs: &[Calibration], output: impl AsRef<Path>, overwrite: bool) -> Result<Description, ArchiveError> {
    let first = inputs.first().expect("files to merge");
    let mut description = Description::new(first.description.weighting, Vec::new());
    for input in inputs {
        let (a, b) = (&first.description, &input.description);
        if a.weighting != b.weighting {
            let (found, path, expected) = (b.weighting, first.path.clone(), a.weighting);
            return Err(CalibrationFileError::Weighting { found, path, expected }.in_file(&input.path));
        }
        let form = |d: &Description| -> Vec<(String, usize, Vec<String>)> {
            d.groups.iter().map(|(name, group)| (name.clone(), group.d_input, group.weights.clone())).collect()
        };
        if let Some(name) = form(a).into_iter().chain(form(b)).find(|g| !form(a).contains(g) || !form(b).contains(g)) {
            let (group, path) = (name.0, first.path.clone());
            return Err(CalibrationFileError::GroupDiffers { group, path }.in_file(&input.path));
        }
        description.sources.extend(b.sources.iter().cloned());
    }
    description.groups = first.description.groups.clone();
    let mut writer = CalibrationWriter::create(output, description, overwrite)?;
    for (name, group) in &first.description.groups {
        let mut sums = Accumulator::new(group.d_input);
        let mut is_known = true;
        for input in inputs {
            let tokens = input.description.groups[name].tokens;
            let weighted = |mean: f32| f64::from(mean) * tokens as f64;
            for (sums, suffix) in [(&mut sums.products, "moments"), (&mut sums.sums, "mean")] {
                let means = input.values(&format!("{name}.{suffix}"))?;
                sums.iter_mut().zip(means).for_each(|(sum, mean)| *sum += weighted(mean));
            }
            let evidence = input.evidence(name)?;
            is_known &= evidence.is_some() || tokens == 0;
            let Evidence { ordinary, ordinary_squares, squares, .. } = evidence.unwrap_or_default();
            let total = &mut sums.evidence;
            total.ordinary += ordinary;
            total.ordinary_squares += ordinary_squares;
            total.squares += squares;
            total.tokens = total
                .tokens
                .checked_add(tokens)
                .ok_or_else(|| CalibrationFileError::TokenSum { group: name.clone(), tokens }.in_file(&input.path))?;
        }
        if !is_known {
            sums.evidence = Evidence { tokens: sums.tokens(), ..Evidence::default() };
        }
        writer.write(name, &sums)?;
    }
    writer.finish()
}
