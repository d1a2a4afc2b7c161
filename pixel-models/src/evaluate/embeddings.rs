//! The embeddings of a compressed encoder compared with those of the dense one.

use super::estimate::Mean;
use super::{Estimate, EvaluationError};
use serde::Serialize;
use std::iter::zip;

/// The usual number of neighbours to look at.
pub const NEIGHBOURS: usize = 10;

/// How close the embeddings of a compressed encoder are to the dense ones.
#[derive(Debug, Clone, Copy, PartialEq, Serialize)]
pub struct EmbeddingComparison {
    /// The mean cosine of an embedding and its compressed one.
    pub cosine: Estimate,
    /// The mean part of an embedding's nearest neighbours that are the same in both sets.
    pub overlap: Estimate,
    /// The number of neighbours looked at.
    pub neighbours: usize,
    /// The number of embeddings.
    pub embeddings: usize,
}

/// Compares the embeddings of the same texts: the cosine of each pair, and how many of its
/// `neighbours` nearest within its own set, by cosine and without itself, a text keeps. Of equally near ones, the first
/// count. The time grows with the square of the number of embeddings.
///
/// # Errors
/// [`EvaluationError::EmbeddingCount`] if the sets differ in size, [`EvaluationError::TooFewEmbeddings`] if there are
/// not that many neighbours, or none are asked for; [`EvaluationError::EmbeddingLength`],
/// [`EvaluationError::EmbeddingNorm`].
///
/// # Example
/// ```
/// use pixel_models::evaluate::compare_embeddings;
///
/// let dense = [vec![1.0, 0.0], vec![0.9, 0.1], vec![0.0, 1.0]];
/// let longer = dense.clone().map(|embedding| embedding.iter().map(|x| 3.0 * x).collect());
/// let comparison = compare_embeddings(&dense, &longer, 1)?;
/// assert!((comparison.cosine.value - 1.0).abs() < 1e-12);
/// assert_eq!(comparison.overlap.value, 1.0);
/// # Ok::<(), pixel_models::evaluate::EvaluationError>(())
/// ```
pub fn compare_embeddings(
    dense: &[Vec<f32>],
    compressed: &[Vec<f32>],
    neighbours: usize,
) -> Result<EmbeddingComparison, EvaluationError> {
    let embeddings = dense.len();
    if compressed.len() != embeddings {
        return Err(EvaluationError::EmbeddingCount { dense: embeddings, compressed: compressed.len() });
    }
    if neighbours == 0 || neighbours >= embeddings {
        return Err(EvaluationError::TooFewEmbeddings { neighbours, found: embeddings });
    }
    let expected = dense[0].len();
    let [dense, compressed] = [directions(dense, expected)?, directions(compressed, expected)?];
    let cosines = zip(&dense, &compressed).map(|(a, b)| dot(a, b));
    let cosine = cosines.collect::<Mean>().estimate();
    let [dense, compressed] = [dense, compressed].map(|directions| nearest(&directions, neighbours));
    let kept = |(a, b): (&Vec<usize>, &Vec<usize>)| a.iter().filter(|index| b.contains(index)).count();
    let overlaps = zip(&dense, &compressed).map(|pair| kept(pair) as f64 / neighbours as f64);
    Ok(EmbeddingComparison { cosine, overlap: overlaps.collect::<Mean>().estimate(), neighbours, embeddings })
}

/// Vectors of length 1.
fn directions(embeddings: &[Vec<f32>], expected: usize) -> Result<Vec<Vec<f64>>, EvaluationError> {
    let direction = |(index, embedding): (usize, &Vec<f32>)| {
        let found = embedding.len();
        if found != expected {
            return Err(EvaluationError::EmbeddingLength { index, found, expected });
        }
        let wide = embedding.iter().copied().map(f64::from).collect::<Vec<_>>();
        let norm = dot(&wide, &wide).sqrt();
        if !(norm > 0.0 && norm.is_finite()) {
            return Err(EvaluationError::EmbeddingNorm { index, norm });
        }
        Ok(wide.iter().map(|x| x / norm).collect())
    };
    embeddings.iter().enumerate().map(direction).collect()
}

/// The indices of the `neighbours` nearest of each, in no order.
fn nearest(directions: &[Vec<f64>], neighbours: usize) -> Vec<Vec<usize>> {
    let of = |own: usize| {
        let others = directions.iter().enumerate().filter(|(index, _)| *index != own);
        let mut cosines = others.map(|(index, other)| (index, dot(&directions[own], other))).collect::<Vec<_>>();
        cosines.select_nth_unstable_by(neighbours - 1, |a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        cosines[..neighbours].iter().map(|(index, _)| *index).collect()
    };
    (0..directions.len()).map(of).collect()
}

/// The scalar product, as eight sums side by side: additions in sequence would wait for each other.
fn dot(a: &[f64], b: &[f64]) -> f64 {
    let mut sums = [0.0; 8];
    for (a, b) in zip(a.chunks(sums.len()), b.chunks(sums.len())) {
        for (sum, (a, b)) in zip(&mut sums, zip(a, b)) {
            *sum += a * b;
        }
    }
    sums.iter().sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::{abs_diff_eq, assert_abs_diff_eq};

    /// Unit vectors of the plane at these angles, in degrees.
    fn at(degrees: &[f32]) -> Vec<Vec<f32>> {
        degrees.iter().map(|angle| angle.to_radians().sin_cos()).map(|(sine, cosine)| vec![cosine, sine]).collect()
    }

    #[test]
    fn a_set_beside_itself_is_the_same() {
        let set = at(&[0.0, 10.0, 30.0, 70.0]);
        let comparison = compare_embeddings(&set, &set, 2).unwrap();
        assert!(abs_diff_eq!(comparison.cosine.value, 1.0, epsilon = 1e-15) && comparison.cosine.error < 1e-15);
        assert_eq!(comparison.overlap, Estimate { value: 1.0, error: 0.0 });
        assert_eq!((comparison.neighbours, comparison.embeddings), (2, 4));
    }

    #[test]
    fn cosine_and_overlap_are_as_worked_by_hand() {
        // The last one turns by 60 degrees: one cosine of four is 1/2.
        let (dense, compressed) = (at(&[0.0, 10.0, 30.0, 70.0]), at(&[0.0, 10.0, 30.0, 10.1]));
        let comparison = compare_embeddings(&dense, &compressed, 1).unwrap();
        assert_abs_diff_eq!(comparison.cosine.value, (3.0 + 59.9f64.to_radians().cos()) / 4.0, epsilon = 1e-6);
        // Nearest are 1, 0, 1, 2 in the one and 1, 3, 3, 1 in the other: one of four stays.
        assert_eq!(comparison.overlap.value, 0.25);
        // Squares around the mean: 9/16 + 3/16 = 3/4, over 4·3.
        assert_abs_diff_eq!(comparison.overlap.error, 0.25, epsilon = 1e-15);
        // Nearest two: 12, 02, 10, 21 and 13, 03, 13, 01: a half each of them.
        assert_eq!(compare_embeddings(&dense, &compressed, 2).unwrap().overlap.value, 0.5);
    }

    #[test]
    fn long_vectors_are_used_to_their_end() {
        let mut set = vec![vec![0.0; 19]; 3];
        set[0][18] = 1.0;
        set[1][18] = 2.0;
        set[2][17] = 1.0;
        assert_eq!(nearest(&directions(&set, 19).unwrap(), 1), [[1], [0], [0]]);
    }

    #[test]
    fn sets_that_cannot_be_compared_are_refused() {
        let set = at(&[0.0, 10.0, 30.0]);
        let error = |other: &[Vec<f32>], neighbours| compare_embeddings(&set, other, neighbours).unwrap_err();
        assert_eq!(error(&set[..2], 1), EvaluationError::EmbeddingCount { dense: 3, compressed: 2 });
        assert_eq!(error(&set, 3), EvaluationError::TooFewEmbeddings { neighbours: 3, found: 3 });
        assert_eq!(error(&set, 0), EvaluationError::TooFewEmbeddings { neighbours: 0, found: 3 });
        let with = |embedding: Vec<f32>| [set[0].clone(), embedding, set[2].clone()];
        let length = EvaluationError::EmbeddingLength { index: 1, found: 3, expected: 2 };
        assert_eq!(error(&with(vec![1.0; 3]), 1), length);
        assert_eq!(error(&with(vec![0.0; 2]), 1), EvaluationError::EmbeddingNorm { index: 1, norm: 0.0 });
        assert!(matches!(error(&with(vec![f32::NAN; 2]), 1), EvaluationError::EmbeddingNorm { index: 1, .. }));
    }
}
