//! What a dictionary promises.

use super::*;
use crate::matrix::{Matrix, Shape};
use crate::patterns::PatternKind;
use approx::assert_abs_diff_eq;
use proptest::prelude::*;

fn shape(rows: usize, cols: usize) -> Shape {
    Shape::new(rows, cols).unwrap()
}

fn matrix(rows: usize, cols: usize, values: &[f32]) -> Matrix {
    Matrix::new(shape(rows, cols), values.to_vec()).unwrap()
}

/// The pattern of 1×8 that has a one at `place`.
fn spike(place: usize) -> Matrix {
    let mut spike = Matrix::zeros(shape(1, 8));
    spike.as_mut_slice()[place] = 1.0;
    spike
}

fn with_spikes(max_patterns: usize, count: usize) -> (PatternDictionary, Vec<PatternId>) {
    let mut dictionary = PatternDictionary::new(max_patterns, 4);
    let ids = (0..count).map(|place| dictionary.add(spike(place).as_ref(), PatternKind::Random).unwrap()).collect();
    (dictionary, ids)
}

#[test]
fn a_pattern_is_divided_by_its_norm_at_any_magnitude() {
    for magnitude in [1e-44, 1.0, 3e38] {
        let mut dictionary = PatternDictionary::default();
        let id = dictionary.add(matrix(1, 2, &[0.0, -magnitude]).as_ref(), PatternKind::Random).unwrap();
        assert_eq!(dictionary.get(id).unwrap().as_slice(), [0.0, -1.0]);
    }
}

#[test]
fn a_pattern_without_direction_is_refused() {
    let mut dictionary = PatternDictionary::default();
    let zero = dictionary.add(matrix(1, 2, &[0.0, 0.0]).as_ref(), PatternKind::Random);
    assert!(matches!(zero, Err(DictionaryError::ZeroPattern { .. })));
    let nan = dictionary.add(matrix(1, 2, &[0.0, f32::NAN]).as_ref(), PatternKind::Random);
    assert!(matches!(nan, Err(DictionaryError::NotFinite { index: 1, .. })));
}

#[test]
fn a_duplicate_up_to_sign_and_scale_gets_the_id_that_is_there() {
    let mut dictionary = PatternDictionary::default();
    let first = dictionary.add(matrix(1, 2, &[1.0, 0.0]).as_ref(), PatternKind::Random).unwrap();
    let merged = dictionary.add(matrix(1, 2, &[-5.0, 0.5]).as_ref(), PatternKind::Random).unwrap();
    let other_shape = dictionary.add(matrix(2, 1, &[1.0, 0.0]).as_ref(), PatternKind::Random).unwrap();
    let other = dictionary.add(matrix(1, 2, &[1.0, 0.5]).as_ref(), PatternKind::Random).unwrap();
    assert_eq!(merged, first);
    assert!(first != other && first != other_shape && dictionary.len() == 3);
}

#[test]
fn a_full_dictionary_evicts_what_is_used_least_and_never_uses_its_id_again() {
    let (mut dictionary, ids) = with_spikes(3, 3);
    dictionary.get(ids[0]).unwrap();
    dictionary.get(ids[2]).unwrap();
    let new = dictionary.add(spike(3).as_ref(), PatternKind::Learned).unwrap();
    assert!(matches!(dictionary.get(ids[1]), Err(DictionaryError::Absent { id }) if id == ids[1]));
    assert_eq!(dictionary.ids(shape(1, 8)), [ids[0], ids[2], new]);
    let again = dictionary.add(spike(1).as_ref(), PatternKind::Learned).unwrap();
    assert!(again > new, "{again} {new}");
}

#[test]
fn importance_decides_between_equally_used_patterns() {
    let (mut dictionary, ids) = with_spikes(2, 2);
    dictionary.set_importance(ids[0], 1.0).unwrap();
    dictionary.add(spike(5).as_ref(), PatternKind::Random).unwrap();
    assert!(dictionary.get(ids[0]).is_ok() && dictionary.get(ids[1]).is_err());
}

#[test]
fn a_reference_counts_for_more_than_use() {
    let (mut dictionary, ids) = with_spikes(2, 2);
    dictionary.retain(ids[0]).unwrap();
    dictionary.get(ids[1]).unwrap();
    dictionary.add(spike(5).as_ref(), PatternKind::Random).unwrap();
    assert!(dictionary.get(ids[0]).is_ok() && dictionary.get(ids[1]).is_err());
}

#[test]
fn what_is_referred_to_is_neither_evicted_nor_pruned() {
    let (mut dictionary, ids) = with_spikes(2, 2);
    ids.iter().for_each(|id| dictionary.retain(*id).unwrap());
    let full = dictionary.add(spike(5).as_ref(), PatternKind::Random);
    assert!(matches!(full, Err(DictionaryError::Full { referenced: 2, .. })));
    assert_eq!(dictionary.prune(9), []);
    dictionary.release(ids[1]).unwrap();
    assert!(matches!(dictionary.release(ids[1]), Err(DictionaryError::NotRetained { .. })));
    assert_eq!(dictionary.prune(9), [ids[1]]);
    assert!(dictionary.get(ids[0]).is_ok());
}

#[test]
fn the_budget_in_bytes_is_obeyed() {
    let mut dictionary = PatternDictionary::default().with_max_bytes(40);
    for place in 0..8 {
        dictionary.add(spike(place).as_ref(), PatternKind::Random).unwrap();
    }
    assert_eq!((dictionary.len(), dictionary.num_bytes()), (2, 32));
    let large = dictionary.add(matrix(3, 7, &[1.0; 21]).as_ref(), PatternKind::Random);
    assert!(matches!(large, Err(DictionaryError::Full { bytes: 42, max_bytes: 40, .. })));
    assert_eq!(dictionary.len(), 2, "nothing is evicted in vain");
}

#[test]
fn matches_come_best_first_above_the_threshold() {
    let (dictionary, ids) = with_spikes(8, 8);
    let target = matrix(1, 8, &[0.0, 3.0, 0.0, -4.0, 0.0, 0.01, 0.0, 0.0]);
    let found = dictionary.find_best_matches(target.as_ref(), 5, 0.1).unwrap();
    assert_eq!(found.iter().map(|found| found.id).collect::<Vec<_>>(), [ids[3], ids[1]]);
    assert_abs_diff_eq!(found[0].cosine, -0.8, epsilon = 1e-5);
    assert_abs_diff_eq!(found[1].cosine, 0.6, epsilon = 1e-5);
    assert_eq!(dictionary.find_best_matches(target.as_ref(), 1, 0.0).unwrap().len(), 1);
    assert_eq!(dictionary.find_best_matches(Matrix::zeros(shape(1, 8)).as_ref(), 5, 0.0).unwrap(), []);
    assert_eq!(dictionary.find_best_matches(Matrix::zeros(shape(2, 2)).as_ref(), 5, 0.0).unwrap(), []);
}

#[test]
fn uses_are_counted_by_layer() {
    let (mut dictionary, ids) = with_spikes(2, 2);
    dictionary.get(ids[0]).unwrap();
    dictionary.record_use(ids[0], "h.0.attn").unwrap();
    let metadata = dictionary.metadata(ids[0]).unwrap();
    assert_eq!((metadata.usage, metadata.layers.get("h.0.attn")), (2, Some(&1)));
    assert_eq!(dictionary.prune(1), [ids[1]]);
}

#[test]
fn learned_patterns_are_found_again() {
    let tiles: Vec<f32> =
        (1..=10).flat_map(|i| if i % 2 == 0 { [i as f32, 0.0] } else { [0.0, -(i as f32)] }).collect();
    let mut dictionary = PatternDictionary::default();
    let ids = dictionary.learn(shape(2, 1), &tiles, 2, 0).unwrap();
    assert_eq!(ids.len(), 2);
    let found = dictionary.find_best_matches(matrix(2, 1, &[7.0, 0.0]).as_ref(), 1, 0.1).unwrap();
    assert!(found[0].cosine.abs() > 0.999);
    assert!(matches!(dictionary.learn(shape(2, 1), &[1.0; 3], 2, 0), Err(DictionaryError::PartialTile { len: 3, .. })));
}

#[test]
fn a_saved_dictionary_is_the_one_that_is_loaded() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dictionary.json");
    let mut dictionary = PatternDictionary::new(64, 8);
    let ids = dictionary.generate_base_patterns(shape(3, 5)).unwrap();
    dictionary.generate_random_patterns(shape(4, 4), 5).unwrap();
    dictionary.retain(ids[1]).unwrap();
    dictionary.record_use(ids[2], "layer").unwrap();
    dictionary.prune(0);
    dictionary.save(&path).unwrap();
    let loaded = PatternDictionary::load(&path).unwrap();
    assert_eq!(loaded.to_json().unwrap(), dictionary.to_json().unwrap());
    assert_eq!(loaded.metadata(ids[1]).unwrap().references, 1);
    ids.iter().for_each(|id| assert_eq!(loaded.get(*id).unwrap(), dictionary.get(*id).unwrap()));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1, "nothing is left beside it");
}

#[test]
fn a_state_that_contradicts_itself_is_refused() {
    let (dictionary, _) = with_spikes(4, 2);
    let json = String::from_utf8(dictionary.to_json().unwrap()).unwrap();
    for (from, to, message) in [
        ("\"version\":1", "\"version\":2", "\"version\" = 2"),
        ("\"next_id\":2", "\"next_id\":1", "\"id\" = 1"),
        ("\"next_id\":2", "\"next_id\":18446744073709551615", "\"next_id\" = 1844"),
        ("\"max_patterns\":4", "\"max_patterns\":1", "\"patterns\" = 2"),
        ("\"id\":1", "\"id\":0", "#0 is stored twice"),
        ("\"max_bytes\":104857600", "\"max_bytes\":4", "\"max_bytes\" = 4"),
        ("[1,8]", "[1,7]", "\"values\" = 8"),
        ("[1,8]", "[0,8]", "does not parse"),
        ("\"values\":[0.0", "\"values\":[9.0", "a mean square of 1"),
        ("\"importance\":0.0", "\"importance\":-1.0", "\"importance\" = -1"),
    ] {
        assert!(json.contains(from), "{from}");
        let error = PatternDictionary::from_json(json.replacen(from, to, 1).as_bytes()).unwrap_err().to_string();
        assert!(error.contains(message), "{from}: {error}");
    }
}

#[test]
fn counts_stop_at_their_limit() {
    let (dictionary, ids) = with_spikes(4, 1);
    let json = String::from_utf8(dictionary.to_json().unwrap()).unwrap();
    let json = json.replace("\"usage\":0,", "\"usage\":18446744073709551615,");
    let json = json.replace("\"references\":0", "\"references\":18446744073709551615");
    let mut full = PatternDictionary::from_json(json.as_bytes()).unwrap();
    full.record_use(ids[0], "layer").unwrap();
    full.retain(ids[0]).unwrap();
    let metadata = full.metadata(ids[0]).unwrap();
    assert_eq!((metadata.usage, metadata.references), (u64::MAX, u64::MAX));
}

proptest! {
    #[test]
    fn no_cut_or_flip_of_a_state_panics(place in any::<prop::sample::Index>(), byte in any::<u8>()) {
        let (dictionary, _) = with_spikes(4, 3);
        let mut json = dictionary.to_json().unwrap();
        let place = place.index(json.len());
        prop_assert!(PatternDictionary::from_json(&json[..place]).is_err());
        json[place] = byte;
        if let Ok(dictionary) = PatternDictionary::from_json(&json) {
            for id in dictionary.ids(shape(1, 8)) {
                let energy: f32 = dictionary.get(*id).unwrap().as_slice().iter().map(|x| x * x).sum();
                assert_abs_diff_eq!(energy, 1.0, epsilon = 1e-5);
            }
        }
    }
}
