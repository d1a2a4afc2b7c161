//! Writing a weight as a sum of patterns by matching pursuit.

use super::{PatternRef, WeightSynthesizer, patterns, sum};
use crate::dictionary::error::check_finite;
use crate::dictionary::{DictionaryError, PatternDictionary, PatternId, Pursuit, PursuitMethod};
use crate::matrix::{Matrix, MatrixRef};
use crate::patterns::{PatternKind, norm};

/// Steps of the power iteration; a pair that has not settled by then is nearly tied with the next one.
const POWER_STEPS: usize = 30;

/// A weight as a sum of patterns.
#[derive(Debug, Clone, PartialEq)]
pub struct SynthesizedFit {
    /// The terms, one a pattern. Each holds a [reference](PatternDictionary::retain) to its pattern, which the caller
    /// [releases](PatternDictionary::release) with the term.
    pub refs: Vec<PatternRef>,
    /// `‖weight − Σ scale · pattern‖ / ‖weight‖`, 0 for a zero weight.
    pub relative_error: f64,
}

impl WeightSynthesizer {
    /// Writes `weight` as a sum of patterns by matching pursuit.
    ///
    /// Each step picks the pattern most like the residual. If none reaches the match threshold, the residual's leading
    /// singular pair becomes a new pattern. It stops at the quality threshold, at `max_patterns`, or when nothing
    /// lowers the residual any more: read `relative_error`. Terms below the pruning threshold are dropped; the
    /// orthogonal method then refits the others.
    ///
    /// # Errors
    /// [`DictionaryError::NotFinite`] for a weight; [`DictionaryError::Full`] if a new pattern is needed and there is
    /// no room. After an error the references are unchanged.
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

    /// The pattern most like the residual, above the threshold. The orthogonal method picks none twice: its residual is
    /// orthogonal to those it has.
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
