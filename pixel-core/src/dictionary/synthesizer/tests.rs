//! Weights written as sums of patterns and summed again.

use super::*;
use crate::dictionary::PursuitMethod;
use crate::patterns::{PatternKind, norm};
use approx::assert_abs_diff_eq;
use proptest::prelude::*;

fn shape(rows: usize, cols: usize) -> Shape {
    Shape::new(rows, cols).unwrap()
}

fn synthesizer() -> WeightSynthesizer {
    WeightSynthesizerConfig::new().init().unwrap()
}

fn with_base(rows: usize, cols: usize) -> (PatternDictionary, Vec<PatternId>) {
    let mut dictionary = PatternDictionary::default();
    let ids = dictionary.generate_base_patterns(shape(rows, cols)).unwrap();
    (dictionary, ids)
}

#[test]
fn a_sum_of_patterns_is_found_again_with_its_scales() {
    let (mut dictionary, ids) = with_base(8, 8);
    let terms = [PatternRef { id: ids[0], scale: 3.0 }, PatternRef { id: ids[4], scale: -2.0 }];
    let weight = synthesizer().synthesize(shape(8, 8), &terms, &dictionary).unwrap();
    let fit = synthesizer().compress_weights((*weight).as_ref(), &mut dictionary).unwrap();
    assert_eq!(fit.refs.len(), 2, "{fit:?}");
    for term in terms {
        let found = fit.refs.iter().find(|found| found.id == term.id).unwrap();
        assert_abs_diff_eq!(found.scale, term.scale, epsilon = 1e-4);
        assert_eq!(dictionary.metadata(term.id).unwrap().references, 1);
    }
    assert!(fit.relative_error < 1e-5);
}

#[test]
fn a_ref_to_an_absent_pattern_is_an_error_with_its_id_even_if_cached() {
    let (mut dictionary, ids) = with_base(2, 3);
    let (synthesizer, refs) = (synthesizer(), [PatternRef { id: ids[1], scale: 1.0 }]);
    synthesizer.synthesize(shape(2, 3), &refs, &dictionary).unwrap();
    assert_eq!(synthesizer.cached_bytes(), 24);
    dictionary.prune(u64::MAX);
    let error = synthesizer.synthesize(shape(2, 3), &refs, &dictionary).unwrap_err();
    assert_eq!(error.to_string(), "pattern #1 is not in the dictionary");
}

#[test]
fn the_same_refs_into_another_dictionary_are_another_weight() {
    let (base, ids) = with_base(2, 2);
    let mut other = PatternDictionary::default();
    other.generate_random_patterns(shape(2, 2), 3).unwrap();
    let (synthesizer, refs) = (synthesizer(), [PatternRef { id: ids[0], scale: 1.0 }]);
    let first = synthesizer.synthesize(shape(2, 2), &refs, &base).unwrap();
    assert_ne!(first, synthesizer.synthesize(shape(2, 2), &refs, &other).unwrap());
    assert!(Arc::ptr_eq(&first, &synthesizer.synthesize(shape(2, 2), &refs, &base).unwrap()));
}

#[test]
fn the_cache_keeps_within_its_budget() {
    let (dictionary, ids) = with_base(4, 4);
    let synthesizer = WeightSynthesizerConfig::new().with_cache_bytes(150).init().unwrap();
    for (i, id) in ids.iter().enumerate() {
        synthesizer.synthesize(shape(4, 4), &[PatternRef { id: *id, scale: 2.0 }], &dictionary).unwrap();
        assert_eq!(synthesizer.cached_bytes(), 64 * (i + 1).min(2));
    }
}

#[test]
fn what_cannot_be_is_refused() {
    let (mut dictionary, ids) = with_base(2, 2);
    let nan = Matrix::new(shape(1, 2), vec![1.0, f32::NAN]).unwrap();
    let error = synthesizer().compress_weights(nan.as_ref(), &mut dictionary).unwrap_err();
    assert!(matches!(error, DictionaryError::NotFinite { what: "the weight", index: 1, .. }));
    let refs = [PatternRef { id: ids[0], scale: 1.0 }];
    let error = synthesizer().synthesize(shape(3, 3), &refs, &dictionary).unwrap_err();
    assert!(matches!(error, DictionaryError::ShapeMismatch { .. }));
    let error = synthesizer().synthesize(shape(2, 2), &[PatternRef { id: ids[0], scale: f32::NAN }], &dictionary);
    assert!(matches!(error, Err(DictionaryError::NotFinite { what: "the scales", .. })));
}

#[test]
fn without_a_match_the_leading_singular_pair_becomes_a_pattern() {
    let values = (0..35).map(|i| ((i / 7) as f32 - 1.5) * ((i % 7) as f32 + 0.5)).collect();
    let weight = Matrix::new(shape(5, 7), values).unwrap();
    let mut dictionary = PatternDictionary::default();
    let fit = synthesizer().compress_weights(weight.as_ref(), &mut dictionary).unwrap();
    assert_eq!(fit.refs.len(), 1);
    assert_eq!(dictionary.metadata(fit.refs[0].id).unwrap().kind, PatternKind::Svd);
    assert!(fit.relative_error < 1e-3, "{}", fit.relative_error);
}

#[test]
fn a_zero_weight_has_no_terms_and_no_terms_are_a_zero_weight() {
    let mut dictionary = PatternDictionary::default();
    let zero = Matrix::zeros(shape(3, 1));
    let fit = synthesizer().compress_weights(zero.as_ref(), &mut dictionary).unwrap();
    assert_eq!(fit, SynthesizedFit { refs: vec![], relative_error: 0.0 });
    assert_eq!(*synthesizer().synthesize(shape(3, 1), &[], &dictionary).unwrap(), zero);
}

#[test]
fn small_terms_are_pruned_and_their_references_released() {
    let (mut dictionary, ids) = with_base(8, 8);
    let terms = [PatternRef { id: ids[0], scale: 1.0 }, PatternRef { id: ids[4], scale: 0.1 }];
    let weight = synthesizer().synthesize(shape(8, 8), &terms, &dictionary).unwrap();
    let coarse = WeightSynthesizerConfig::new().with_pruning_threshold(0.3).init().unwrap();
    let fit = coarse.compress_weights((*weight).as_ref(), &mut dictionary).unwrap();
    assert_eq!(fit.refs.iter().map(|term| term.id).collect::<Vec<_>>(), [ids[0]]);
    assert_eq!(dictionary.metadata(ids[4]).unwrap().references, 0);
}

#[test]
fn a_full_dictionary_is_an_error_that_leaves_no_reference() {
    let mut dictionary = PatternDictionary::new(1, 1);
    let weight = Matrix::new(shape(4, 4), (0..16).map(|i| ((i * i * 7 + i) % 11) as f32 - 5.0).collect()).unwrap();
    let error = synthesizer().compress_weights(weight.as_ref(), &mut dictionary).unwrap_err();
    assert!(matches!(error, DictionaryError::Full { .. }), "{error}");
    assert_eq!(dictionary.metadata(dictionary.ids(shape(4, 4))[0]).unwrap().references, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_shape_is_written_to_the_quality_asked_for(
        rows in 1usize..9, cols in 1usize..9, values in prop::collection::vec(-2.0f32..2.0, 64),
        orthogonal in any::<bool>()
    ) {
        let method = if orthogonal { PursuitMethod::Orthogonal } else { PursuitMethod::Matching };
        let (mut dictionary, _) = with_base(rows, cols);
        let weight = Matrix::new(shape(rows, cols), values[..rows * cols].to_vec()).unwrap();
        let config = WeightSynthesizerConfig::new().with_method(method).with_max_patterns(60);
        let synthesizer = config.with_pruning_threshold(0.0).with_match_threshold(0.3).init().unwrap();
        let fit = synthesizer.compress_weights(weight.as_ref(), &mut dictionary).unwrap();
        prop_assert!(fit.relative_error <= 0.0501, "{}", fit.relative_error);
        let again = synthesizer.synthesize(weight.shape(), &fit.refs, &dictionary).unwrap();
        let left: Vec<f32> = again.as_slice().iter().zip(weight.as_slice()).map(|(a, b)| a - b).collect();
        assert_abs_diff_eq!(norm(&left), fit.relative_error * norm(weight.as_slice()), epsilon = 1e-4);
        for term in &fit.refs {
            prop_assert_eq!(dictionary.metadata(term.id).unwrap().references, 1);
        }
    }

    #[test]
    fn optimised_scales_leave_less_than_any_others(
        values in prop::collection::vec(-2.0f32..2.0, 12), scales in prop::collection::vec(-2.0f32..2.0, 4)
    ) {
        let (dictionary, ids) = with_base(3, 4);
        let weight = Matrix::new(shape(3, 4), values).unwrap();
        let refs: Vec<_> = ids.iter().zip(scales).map(|(&id, scale)| PatternRef { id, scale }).collect();
        let error = |refs: &[PatternRef]| {
            let decoded = synthesizer().synthesize(shape(3, 4), refs, &dictionary).unwrap();
            norm(&decoded.as_slice().iter().zip(weight.as_slice()).map(|(a, b)| a - b).collect::<Vec<_>>())
        };
        let best = synthesizer().optimize_scales(&refs, weight.as_ref(), &dictionary).unwrap();
        prop_assert!(error(&best) <= error(&refs) + 1e-5);
    }
}
