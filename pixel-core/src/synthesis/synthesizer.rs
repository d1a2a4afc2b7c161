//! Weights as sums of a dictionary's patterns, the original's form.

use crate::dictionary::{
    DictionaryError, GrowingCholesky, PatternDictionary, PatternId, PatternKind, Pursuit, PursuitMethod, check_finite,
    dot, norm,
};
use crate::error::ConfigError;
use crate::lru::Lru;
use crate::matrix::{Matrix, MatrixRef, Shape};
use serde::{Deserialize, Serialize};
use std::sync::{Arc, Mutex, PoisonError};

/// Steps of the power iteration; a pair that has not settled by then is nearly tied with the next one.
const POWER_STEPS: usize = 30;

/// One term of a weight: a pattern of norm 1 and its scale.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct PatternRef {
    /// The pattern.
    pub id: PatternId,
    /// What it is multiplied by.
    pub scale: f32,
}

/// How weights are matched and cached.
///
/// # Example
/// ```
/// use pixel_core::synthesis::WeightSynthesizerConfig;
/// let synthesizer = WeightSynthesizerConfig::new().with_max_patterns(8).init()?;
/// assert!(WeightSynthesizerConfig::new().with_quality_threshold(1.5).init().is_err());
/// # Ok::<(), pixel_core::ConfigError>(())
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct WeightSynthesizerConfig {
    /// Patterns of a weight, at least 1 (default 16).
    pub max_patterns: usize,
    /// The least |cosine| with the residual that counts as a match, 0 to 1 (default 0.1).
    pub match_threshold: f32,
    /// The quality at which to stop, `1 − ‖residual‖ / ‖weight‖`, 0 to 1 (default 0.95).
    pub quality_threshold: f32,
    /// Terms whose |scale| is below this share of the weight's norm are dropped, 0 to 1 (default 0.01).
    pub pruning_threshold: f32,
    /// What synthesised weights are kept, in bytes (default 200 MB).
    pub cache_bytes: usize,
    /// Whether scales are refitted after each pick (default orthogonal: they are).
    pub method: PursuitMethod,
}

impl Default for WeightSynthesizerConfig {
    fn default() -> Self {
        Self {
            max_patterns: 16,
            match_threshold: 0.1,
            quality_threshold: 0.95,
            pruning_threshold: 0.01,
            cache_bytes: 200 << 20,
            method: PursuitMethod::Orthogonal,
        }
    }
}

impl WeightSynthesizerConfig {
    /// The defaults.
    pub fn new() -> Self {
        Self::default()
    }

    /// Sets [`max_patterns`](Self::max_patterns).
    pub fn with_max_patterns(mut self, max_patterns: usize) -> Self {
        self.max_patterns = max_patterns;
        self
    }

    /// Sets [`match_threshold`](Self::match_threshold).
    pub fn with_match_threshold(mut self, match_threshold: f32) -> Self {
        self.match_threshold = match_threshold;
        self
    }

    /// Sets [`quality_threshold`](Self::quality_threshold).
    pub fn with_quality_threshold(mut self, quality_threshold: f32) -> Self {
        self.quality_threshold = quality_threshold;
        self
    }

    /// Sets [`pruning_threshold`](Self::pruning_threshold).
    pub fn with_pruning_threshold(mut self, pruning_threshold: f32) -> Self {
        self.pruning_threshold = pruning_threshold;
        self
    }

    /// Sets [`cache_bytes`](Self::cache_bytes).
    pub fn with_cache_bytes(mut self, cache_bytes: usize) -> Self {
        self.cache_bytes = cache_bytes;
        self
    }

    /// Sets [`method`](Self::method).
    pub fn with_method(mut self, method: PursuitMethod) -> Self {
        self.method = method;
        self
    }

    /// Refuses what is out of range.
    ///
    /// # Errors
    /// [`ConfigError::Range`] with the field.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let range = |field, value: String, range: &str| Err(ConfigError::Range { field, value, range: range.into() });
        if self.max_patterns == 0 {
            return range("max_patterns", "0".into(), "1..");
        }
        for (field, value) in [
            ("match_threshold", self.match_threshold),
            ("quality_threshold", self.quality_threshold),
            ("pruning_threshold", self.pruning_threshold),
        ] {
            if !(0.0..=1.0).contains(&value) {
                return range(field, value.to_string(), "0..=1");
            }
        }
        Ok(())
    }

    /// The synthesizer.
    ///
    /// # Errors
    /// As [`validate`](Self::validate).
    pub fn init(self) -> Result<WeightSynthesizer, ConfigError> {
        self.validate()?;
        Ok(WeightSynthesizer { cache: Mutex::new(Lru::new(self.cache_bytes)), config: self })
    }
}

/// What a weight was written as.
#[derive(Debug, Clone, PartialEq)]
pub struct SynthesizedFit {
    /// The terms, one a pattern. Each holds a [reference](PatternDictionary::retain) to its pattern, which the caller
    /// [releases](PatternDictionary::release) with the term.
    pub refs: Vec<PatternRef>,
    /// `‖weight − Σ scale · pattern‖ / ‖weight‖`, 0 for a zero weight.
    pub relative_error: f64,
}

/// Writes weights as sums of patterns and sums them again: `W ≈ Σ sᵢ · P[idᵢ]`.
///
/// # Example
/// ```
/// use pixel_core::{Matrix, Shape, dictionary::PatternDictionary, synthesis::WeightSynthesizerConfig};
/// let shape = Shape::new(2, 3)?;
/// let weight = Matrix::new(shape, vec![1.0, 2.0, 3.0, -1.0, -2.0, -3.0])?;
/// let mut dictionary = PatternDictionary::default();
/// let synthesizer = WeightSynthesizerConfig::new().init()?;
/// // No pattern matches an empty dictionary: the leading singular pair becomes one.
/// let fit = synthesizer.compress_weights(weight.as_ref(), &mut dictionary)?;
/// assert_eq!((fit.refs.len(), dictionary.len()), (1, 1));
/// let again = synthesizer.synthesize(shape, &fit.refs, &dictionary)?;
/// assert!(again.as_slice().iter().zip(weight.as_slice()).all(|(a, b)| (a - b).abs() < 0.01));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct WeightSynthesizer {
    config: WeightSynthesizerConfig,
    cache: Mutex<Lru<Key, Arc<Matrix>>>,
}

/// A dictionary's number, a shape, and the terms with the bits of their scales: all that a weight depends on, since
/// patterns never change and ids are never used again.
type Key = (u64, Shape, Vec<(PatternId, u32)>);

impl WeightSynthesizer {
    /// The configuration.
    pub fn config(&self) -> &WeightSynthesizerConfig {
        &self.config
    }

    /// What the cached weights take, in bytes; never more than [`WeightSynthesizerConfig::cache_bytes`].
    pub fn cached_bytes(&self) -> usize {
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).used()
    }

    /// The weight `Σ scale · pattern` of `shape`; zero without terms.
    ///
    /// # Errors
    /// [`DictionaryError::Absent`] for a pattern that has gone, even if the weight is still cached;
    /// [`DictionaryError::ShapeMismatch`]; [`DictionaryError::NotFinite`] for a scale.
    pub fn synthesize(
        &self,
        shape: Shape,
        refs: &[PatternRef],
        dictionary: &PatternDictionary,
    ) -> Result<Arc<Matrix>, DictionaryError> {
        let scales: Vec<f32> = refs.iter().map(|term| term.scale).collect();
        check_finite("the scales", &scales)?;
        refs.iter().try_for_each(|term| check_shape(term.id, shape, dictionary))?;
        let terms = refs.iter().map(|term| (term.id, term.scale.to_bits())).collect();
        let key: Key = (dictionary.instance(), shape, terms);
        if let Some(weight) = self.cache.lock().unwrap_or_else(PoisonError::into_inner).get(&key) {
            return Ok(weight);
        }
        let weight = Arc::new(sum(shape, &scales, &patterns(shape, refs, dictionary)?));
        let bytes = 4 * shape.num_weights();
        self.cache.lock().unwrap_or_else(PoisonError::into_inner).insert(key, Arc::clone(&weight), bytes);
        Ok(weight)
    }

    /// The same terms with the scales that fit `weight` best, by least squares; where patterns depend on one another, a
    /// ridge of 1e-6 decides.
    ///
    /// # Errors
    /// [`DictionaryError::Absent`], [`DictionaryError::ShapeMismatch`]; [`DictionaryError::NotFinite`] for a weight.
    pub fn optimize_scales(
        &self,
        refs: &[PatternRef],
        weight: MatrixRef<'_>,
        dictionary: &PatternDictionary,
    ) -> Result<Vec<PatternRef>, DictionaryError> {
        check_finite("the weight", weight.as_slice())?;
        let patterns = patterns(weight.shape(), refs, dictionary)?;
        let mut gram = GrowingCholesky::default();
        for (i, pattern) in patterns.iter().enumerate() {
            let products: Vec<f64> = patterns[..=i].iter().map(|p| dot(p.as_slice(), pattern.as_slice())).collect();
            gram.push(&products);
        }
        let products: Vec<f64> = patterns.iter().map(|p| dot(p.as_slice(), weight.as_slice())).collect();
        let scales = gram.solve(&products);
        Ok(refs.iter().zip(scales).map(|(term, scale)| PatternRef { id: term.id, scale: scale as f32 }).collect())
    }

    /// Writes `weight` as a sum of patterns by matching pursuit.
    ///
    /// Each step picks the pattern most like the residual. If none reaches the match threshold, the residual's leading
    /// singular pair becomes a new pattern. It stops at the quality threshold, at `max_patterns`, or when nothing lowers
    /// the residual any more: read `relative_error`. Terms below the pruning threshold are dropped; the orthogonal method
    /// then refits the others.
    ///
    /// # Errors
    /// [`DictionaryError::NotFinite`] for a weight; [`DictionaryError::Full`] if a new pattern is needed and there is no
    /// room. After an error the references are as before.
    pub fn compress_weights(
        &self,
        weight: MatrixRef<'_>,
        dictionary: &mut PatternDictionary,
    ) -> Result<SynthesizedFit, DictionaryError> {
        check_finite("the weight", weight.as_slice())?;
        let mut picked = Vec::new();
        let fit = self.pursue(weight, dictionary, &mut picked).and_then(|refs| self.pruned(refs, weight, dictionary));
        // One reference a term that stays; the picks held one each.
        let kept = fit.as_ref().map_or(&[][..], |fit| &fit.refs);
        kept.iter().try_for_each(|term| dictionary.retain(term.id))?;
        picked.into_iter().try_for_each(|id| dictionary.release(id))?;
        fit
    }

    /// The terms of a pursuit, one a pattern. Every pick is retained, and noted in `picked`, so that a later one cannot
    /// evict it.
    fn pursue(
        &self,
        weight: MatrixRef<'_>,
        dictionary: &mut PatternDictionary,
        picked: &mut Vec<PatternId>,
    ) -> Result<Vec<PatternRef>, DictionaryError> {
        let mut pursuit = Pursuit::new(self.config.method, weight.as_slice());
        let goal = 1.0 - f64::from(self.config.quality_threshold);
        while picked.len() < self.config.max_patterns && pursuit.relative_error() > goal {
            let residual = MatrixRef::new(weight.shape(), pursuit.residual())?;
            let id = match self.best_match(residual, dictionary, picked)? {
                Some(id) => id,
                None => dictionary.add(leading_pair(residual)?.as_ref(), PatternKind::Svd)?,
            };
            if !pursuit.pick(dictionary.get(id)?.as_slice()) {
                break;
            }
            dictionary.retain(id)?;
            picked.push(id);
        }
        let mut refs: Vec<PatternRef> = Vec::new();
        for (&id, scale) in picked.iter().zip(pursuit.scales()) {
            match refs.iter_mut().find(|term| term.id == id) {
                Some(term) => term.scale += scale,
                None => refs.push(PatternRef { id, scale }),
            }
        }
        Ok(refs)
    }

    /// The pattern most like the residual, above the threshold. The orthogonal method takes none twice: to what it has,
    /// its residual is orthogonal.
    fn best_match(
        &self,
        residual: MatrixRef<'_>,
        dictionary: &PatternDictionary,
        picked: &[PatternId],
    ) -> Result<Option<PatternId>, DictionaryError> {
        let taken = if self.config.method == PursuitMethod::Orthogonal { picked } else { &[] };
        let matches = dictionary.find_best_matches(residual, taken.len() + 1, self.config.match_threshold)?;
        Ok(matches.into_iter().map(|found| found.id).find(|id| !taken.contains(id)))
    }

    fn pruned(
        &self,
        mut refs: Vec<PatternRef>,
        weight: MatrixRef<'_>,
        dictionary: &PatternDictionary,
    ) -> Result<SynthesizedFit, DictionaryError> {
        let weight_norm = norm(weight.as_slice());
        let least = f64::from(self.config.pruning_threshold) * weight_norm;
        let count = refs.len();
        refs.retain(|term| f64::from(term.scale.abs()) >= least);
        if refs.len() < count && self.config.method == PursuitMethod::Orthogonal {
            refs = self.optimize_scales(&refs, weight, dictionary)?;
        }
        let patterns = patterns(weight.shape(), &refs, dictionary)?;
        let scales: Vec<f32> = refs.iter().map(|term| term.scale).collect();
        let decoded = sum(weight.shape(), &scales, &patterns);
        let left: Vec<f32> = weight.as_slice().iter().zip(decoded.as_slice()).map(|(a, b)| a - b).collect();
        let relative_error = if weight_norm > 0.0 { norm(&left) / weight_norm } else { 0.0 };
        Ok(SynthesizedFit { refs, relative_error })
    }
}

fn check_shape(id: PatternId, expected: Shape, dictionary: &PatternDictionary) -> Result<(), DictionaryError> {
    let found = dictionary.shape(id)?;
    if found == expected { Ok(()) } else { Err(DictionaryError::ShapeMismatch { id, found, expected }) }
}

fn patterns(
    shape: Shape,
    refs: &[PatternRef],
    dictionary: &PatternDictionary,
) -> Result<Vec<Arc<Matrix>>, DictionaryError> {
    let get = |term: &PatternRef| check_shape(term.id, shape, dictionary).and_then(|()| dictionary.get(term.id));
    refs.iter().map(get).collect()
}

fn sum(shape: Shape, scales: &[f32], patterns: &[Arc<Matrix>]) -> Matrix {
    let mut weight = Matrix::zeros(shape);
    for (scale, pattern) in scales.iter().zip(patterns) {
        let values = weight.as_mut_slice().iter_mut().zip(pattern.as_slice());
        values.for_each(|(out, value)| *out += scale * value);
    }
    weight
}

/// The leading singular pair `u·vᵀ` of a residual, by power iteration from its row of greatest norm: deterministic, and
/// never orthogonal to the answer unless several pairs tie. Zero for a zero residual.
fn leading_pair(residual: MatrixRef<'_>) -> Result<Matrix, DictionaryError> {
    let rows = residual.shape().d_output();
    let start = (0..rows).max_by(|a, b| norm(residual.row(*a)).total_cmp(&norm(residual.row(*b)))).unwrap_or(0);
    let mut v: Vec<f64> = residual.row(start).iter().map(|x| f64::from(*x)).collect();
    let mut u = vec![0.0; rows];
    for _ in 0..POWER_STEPS {
        unit(&mut v);
        for (r, u) in u.iter_mut().enumerate() {
            *u = residual.row(r).iter().zip(&v).map(|(x, v)| f64::from(*x) * v).sum();
        }
        unit(&mut u);
        v.fill(0.0);
        for (r, u) in u.iter().enumerate() {
            v.iter_mut().zip(residual.row(r)).for_each(|(v, x)| *v += u * f64::from(*x));
        }
    }
    unit(&mut v);
    let pair = u.iter().flat_map(|u| v.iter().map(move |v| (u * v) as f32)).collect();
    Ok(Matrix::new(residual.shape(), pair)?)
}

fn unit(values: &mut [f64]) {
    let norm = values.iter().map(|x| x * x).sum::<f64>().sqrt();
    if norm > 0.0 {
        values.iter_mut().for_each(|x| *x /= norm);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
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
            assert!((found.scale - term.scale).abs() < 1e-4, "{fit:?}");
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
            rows in 1usize..9, cols in 1usize..9, values in prop::collection::vec(-2.0f32..2.0, 64), orthogonal in any::<bool>()
        ) {
            let method = if orthogonal { PursuitMethod::Orthogonal } else { PursuitMethod::Matching };
            let (mut dictionary, _) = with_base(rows, cols);
            let weight = Matrix::new(shape(rows, cols), values[..rows * cols].to_vec()).unwrap();
            let config = WeightSynthesizerConfig::new().with_method(method).with_max_patterns(60).with_pruning_threshold(0.0);
            let synthesizer = config.with_match_threshold(0.3).init().unwrap();
            let fit = synthesizer.compress_weights(weight.as_ref(), &mut dictionary).unwrap();
            prop_assert!(fit.relative_error <= 0.0501, "{}", fit.relative_error);
            let again = synthesizer.synthesize(weight.shape(), &fit.refs, &dictionary).unwrap();
            let left: Vec<f32> = again.as_slice().iter().zip(weight.as_slice()).map(|(a, b)| a - b).collect();
            prop_assert!((norm(&left) - fit.relative_error * norm(weight.as_slice())).abs() < 1e-4);
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
}
