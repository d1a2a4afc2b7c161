//! Calibration files written, read and merged again.

use super::*;
use crate::archive::ArchiveError;
use crate::encode::Moments;
use approx::abs_diff_eq;
use std::path::Path;

fn description(tokens: u64) -> Description {
    let source = Source { name: "a.txt".into(), blake3: "0".repeat(64), tokens };
    let mut description = Description::new(Weighting::Uniform, vec![source]);
    let weights = vec!["a.weight".to_owned(), "b.weight".to_owned()];
    description.groups.insert("a.weight".into(), Group { d_input: 3, tokens, weights });
    description
}

fn cause(error: ArchiveError) -> String {
    std::error::Error::source(&error).unwrap().to_string()
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
            assert!(abs_diff_eq!(moments.at(i, j), expected.at(i, j), epsilon = 1e-6), "({i}, {j})");
        }
        assert!(abs_diff_eq!(moments.unseen_power(), expected.unseen_power(), epsilon = 1e-5));
        assert!(moments.unseen_power() > 1.0);
        assert_eq!(calibration.mean(weight).unwrap().unwrap(), [0.0, 1.25, 1.5]);
    }
    assert_eq!(calibration.moments("c.weight").unwrap(), None);
}

#[test]
fn products_formed_elsewhere_count_the_same() {
    let inputs = [1.0, 2.0, -3.0, 0.5];
    let (mut a, mut b) = (Accumulator::new(2), Accumulator::new(2));
    a.add_inputs(&inputs);
    b.add_products(&[10.0, 0.5, 0.5, 4.25], &[-2.0, 2.5], &[5.0, 9.25]);
    assert_eq!(a, b);
    assert_eq!(Accumulator::num_bytes(2), 8 * (3 + 2));
}

#[test]
fn merged_files_are_those_of_all_texts_together() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let (a, b) = ([1.0f32, 2.0, 3.0], [-1.0f32, 0.5, 0.0, 2.0, 2.0, 1.0]);
    let parts = [written(&path("a.safetensors"), &a), written(&path("b.safetensors"), &b)];
    let merged = merge(&parts, path("c.safetensors"), false).unwrap();
    assert_eq!(merged.groups["a.weight"].tokens, 3);
    assert_eq!(merged.sources.len(), 2);
    let together = written(&path("d.safetensors"), &[&a[..], &b].concat());
    let merged = Calibration::open(path("c.safetensors")).unwrap();
    let (found, expected) =
        (merged.moments("b.weight").unwrap().unwrap(), together.moments("b.weight").unwrap().unwrap());
    for (i, j) in [(0, 0), (1, 0), (2, 1), (2, 2)] {
        assert!(abs_diff_eq!(found.at(i, j), expected.at(i, j), epsilon = 1e-6), "({i}, {j})");
    }
    assert!(abs_diff_eq!(found.unseen_power(), expected.unseen_power(), epsilon = 1e-5));
}

/// Files of version 1.0 have no powers: what is merged with one has none either.
#[test]
fn files_without_powers_are_read_and_merged() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let new = written(&path("new.safetensors"), &[1.0, 2.0, 3.0, 2.0, 0.0, 1.0]);
    let bytes = std::fs::read(path("new.safetensors")).unwrap();
    let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    let tensors = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let kept = tensors.tensors().into_iter().filter(|(name, _)| !name.ends_with(".powers"));
    safetensors::serialize_to_file(kept, header.metadata().clone(), &path("old.safetensors")).unwrap();
    let old = Calibration::open(path("old.safetensors")).unwrap();
    let moments = old.moments("a.weight").unwrap().unwrap();
    assert_eq!(moments.at(1, 0), new.moments("a.weight").unwrap().unwrap().at(1, 0));
    assert_eq!(moments.unseen_power(), 0.0);
    merge(&[new, old], path("both.safetensors"), false).unwrap();
    let both = Calibration::open(path("both.safetensors")).unwrap();
    assert_eq!(both.moments("a.weight").unwrap().unwrap(), moments);
}

#[test]
fn files_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let a = written(&path("a.safetensors"), &[1.0, 2.0, 3.0]);
    let mut other = description(1);
    other.groups.get_mut("a.weight").unwrap().weights.pop();
    let mut writer = CalibrationWriter::create(path("b.safetensors"), other, false).unwrap();
    writer.write("a.weight", &Accumulator::new(3)).unwrap();
    let error = cause(writer.write("b.weight", &Accumulator::new(3)).unwrap_err());
    assert!(error.contains("group \"b.weight\" of width 3 was not announced"), "{error}");
    writer.finish().unwrap();
    let b = Calibration::open(path("b.safetensors")).unwrap();
    assert_eq!(b.moments("a.weight").unwrap(), None, "no token was seen");
    let error = cause(merge(&[a, b], path("c.safetensors"), false).unwrap_err());
    assert!(error.contains("group \"a.weight\" is not the same"), "{error}");
    assert!(!path("c.safetensors").exists());

    let mut sums = Accumulator::new(3);
    sums.add_inputs(&[1.0, f32::NAN, 1.0]);
    let mut writer = CalibrationWriter::create(path("d.safetensors"), description(1), false).unwrap();
    let error = cause(writer.write("a.weight", &sums).unwrap_err());
    assert!(error.contains("value 1 of the moments is not finite"), "{error}");
}
