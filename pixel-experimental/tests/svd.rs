//! Every solver against the definition of a singular value decomposition, and against the others.
//!
//! Tolerances are `k·√n·ε` of the largest singular value, `n` the longer side: rounding errors of `n` terms add up like
//! a random walk.

use approx::{abs_diff_eq, relative_eq};
use pixel_core::{Matrix, MatrixRef, Shape};
use pixel_experimental::svd::{FaerSvd, Svd, SvdError, SvdSolver};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

const EPSILON: f64 = f32::EPSILON as f64;

/// The solvers that are compiled in.
fn solvers() -> Vec<Box<dyn SvdSolver>> {
    vec![
        Box::new(FaerSvd),
        #[cfg(feature = "lapack")]
        Box::new(pixel_experimental::svd::LapackSvd),
        #[cfg(feature = "flex")]
        Box::new(pixel_experimental::svd::RandomizedSvd::new(&burn::tensor::Device::flex())),
    ]
}

/// Those that decompose all of a matrix, whatever its spectrum.
fn exact() -> Vec<Box<dyn SvdSolver>> {
    solvers().into_iter().filter(|solver| solver.name() != "randomized").collect()
}

fn gaussian(rows: usize, cols: usize, seed: u64) -> Matrix {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    let values = (0..rows * cols).map(|_| rng.sample::<f32, _>(StandardNormal)).collect();
    Matrix::new(Shape::new(rows, cols).unwrap(), values).unwrap()
}

/// `a·b`, in f64.
fn product(a: &Matrix, b: &Matrix) -> Matrix {
    let (m, k, n) = (a.shape().d_output(), a.shape().d_input(), b.shape().d_input());
    let entry = |at: usize| -> f32 {
        let terms = (0..k).map(|i| f64::from(a.as_slice()[at / n * k + i]) * f64::from(b.as_slice()[i * n + at % n]));
        terms.sum::<f64>() as f32
    };
    Matrix::new(Shape::new(m, n).unwrap(), (0..m * n).map(entry).collect()).unwrap()
}

fn transposed(a: &Matrix) -> Matrix {
    let (m, n) = (a.shape().d_output(), a.shape().d_input());
    let values = (0..m * n).map(|at| a.as_slice()[at % m * n + at / m]).collect();
    Matrix::new(Shape::new(n, m).unwrap(), values).unwrap()
}

fn distance(a: &Matrix, b: &Matrix) -> f64 {
    let square = |(a, b): (&f32, &f32)| (f64::from(*a) - f64::from(*b)).powi(2);
    a.as_slice().iter().zip(b.as_slice()).map(square).sum::<f64>().sqrt()
}

fn norm(a: &Matrix) -> f64 {
    distance(a, &Matrix::zeros(a.shape()))
}

/// How far the columns of `u` are from orthonormal.
fn skew(u: &Matrix) -> f64 {
    let gram = product(&transposed(u), u);
    let k = gram.shape().d_input();
    let identity = (0..k * k).map(|at| if at / k == at % k { 1.0 } else { 0.0 }).collect();
    distance(&gram, &Matrix::new(gram.shape(), identity).unwrap())
}

/// Orthonormal factors, values in order, and the distance to the matrix that a spectrum of `tail` below the rank
/// leaves.
fn check(solver: &dyn SvdSolver, matrix: &Matrix, rank: usize, tail: f64) -> Result<Svd, TestCaseError> {
    let svd = solver.svd(matrix.as_ref(), rank).unwrap();
    let (m, n) = (matrix.shape().d_output(), matrix.shape().d_input());
    let name = solver.name();
    prop_assert_eq!(<[usize; 2]>::from(svd.u.shape()), [m, rank]);
    prop_assert_eq!(<[usize; 2]>::from(svd.vt.shape()), [rank, n]);
    let tolerance = 16.0 * (m.max(n) as f64).sqrt() * EPSILON;
    for (what, skew) in [("U", skew(&svd.u)), ("V", skew(&transposed(&svd.vt)))] {
        prop_assert!(skew <= tolerance * (rank as f64).sqrt(), "{name}: {what} is off by {skew:e}");
    }
    let values = &svd.singular_values;
    prop_assert!(values.iter().all(|&s| s >= 0.0) && values.windows(2).all(|pair| pair[0] >= pair[1]), "{values:?}");
    let left = distance(&svd.clone().into_low_rank().product(), matrix);
    let bound = tail + tolerance * (rank as f64).sqrt() * norm(matrix);
    prop_assert!(left <= bound, "{name}: {left:e} > {bound:e}");
    Ok(svd)
}

fn config(cases: u32) -> ProptestConfig {
    let seed = RngSeed::Fixed(1);
    ProptestConfig { failure_persistence: None, rng_seed: seed, ..ProptestConfig::with_cases(cases) }
}

proptest! {
    #![proptest_config(config(64))]

    /// Wide, tall and thin as a row, of full rank: the whole decomposition is the matrix, and solvers agree on every
    /// value.
    #[test]
    fn a_decomposition_of_full_rank_is_the_matrix(
        rows in 1usize..60, cols in 1usize..60, seed in any::<u64>(), magnitude in -120..120i32
    ) {
        let mut matrix = gaussian(rows, cols, seed);
        matrix.as_mut_slice().iter_mut().for_each(|v| *v *= 2f32.powi(magnitude));
        let rank = rows.min(cols);
        let found = solvers().iter().map(|solver| check(&**solver, &matrix, rank, 0.0)).collect::<Result<Vec<_>, _>>()?;
        let energy = norm(&matrix).powi(2);
        for svd in &found {
            let sum: f64 = svd.singular_values.iter().map(|s| s * s).sum();
            prop_assert!(relative_eq!(sum, energy, epsilon = 0.0, max_relative = 1e-4), "{sum:e} {energy:e}");
            let largest = found[0].singular_values[0];
            for (a, b) in svd.singular_values.iter().zip(&found[0].singular_values) {
                let tolerance = 16.0 * (rows.max(cols) as f64).sqrt() * EPSILON * largest;
                prop_assert!(abs_diff_eq!(*a, *b, epsilon = tolerance), "{a} {b}");
            }
        }
    }

    /// A matrix of a lower rank than its sides is met by its own rank, and nothing is beyond it.
    #[test]
    fn a_matrix_of_low_rank_is_met_by_its_rank(
        rows in 2usize..70, cols in 2usize..70, rank in 1usize..6, seed in any::<u64>()
    ) {
        let rank = rank.min(rows).min(cols);
        let matrix = product(&gaussian(rows, rank, seed), &gaussian(rank, cols, !seed));
        for solver in solvers() {
            let svd = check(&*solver, &matrix, rank, 0.0)?;
            let all = check(&*solver, &matrix, (rank + 2).min(rows.min(cols)), 0.0)?;
            let tolerance = 16.0 * (rows.max(cols) as f64).sqrt() * EPSILON * svd.singular_values[0];
            prop_assert!(all.singular_values[rank..].iter().all(|&s| s <= tolerance), "{:?}", all.singular_values);
        }
    }

    /// The leading part is the best of its rank: exact solvers leave what the values beyond it say, the randomized one
    /// a little more; and all find the same matrix where the spectrum has a gap.
    #[test]
    fn the_leading_part_is_the_best_of_its_rank(
        rows in 20usize..90, cols in 20usize..90, rank in 1usize..5, seed in any::<u64>()
    ) {
        let mut matrix = product(&gaussian(rows, rank, seed), &gaussian(rank, cols, !seed));
        let noise = gaussian(rows, cols, seed ^ 5);
        matrix.as_mut_slice().iter_mut().zip(noise.as_slice()).for_each(|(w, v)| *w += 0.01 * v);
        let full = FaerSvd.svd(matrix.as_ref(), rows.min(cols)).unwrap();
        let tail = full.singular_values[rank..].iter().map(|s| s * s).sum::<f64>().sqrt();
        let best = FaerSvd.svd(matrix.as_ref(), rank).unwrap().into_low_rank().product();
        for solver in solvers() {
            let slack = if solver.name() == "randomized" { 1.01 } else { 1.0 };
            let svd = check(&*solver, &matrix, rank, slack * tail)?;
            let apart = distance(&svd.into_low_rank().product(), &best);
            prop_assert!(apart <= 2e-2 * tail + 1e-5 * norm(&matrix), "{}: {apart:e} of {tail:e}", solver.name());
        }
    }
}

#[test]
fn a_zero_matrix_has_zero_values_and_orthonormal_vectors() {
    for (rows, cols) in [(1, 1), (1, 9), (9, 1), (5, 40), (40, 5)] {
        let zero = Matrix::zeros(Shape::new(rows, cols).unwrap());
        for solver in solvers() {
            let rank = rows.min(cols);
            let svd = check(&*solver, &zero, rank, 0.0).unwrap();
            assert!(svd.singular_values.iter().all(|&s| s == 0.0), "{} {rows}×{cols}", solver.name());
        }
    }
}

#[test]
fn values_worked_by_hand_are_found() {
    // [[3, 0], [4, 5]]: values √45 and √5.
    let matrix = Matrix::new(Shape::new(2, 2).unwrap(), vec![3.0, 0.0, 4.0, 5.0]).unwrap();
    for solver in exact() {
        let svd = solver.svd(matrix.as_ref(), 2).unwrap();
        for (found, expected) in svd.singular_values.iter().zip([45f64.sqrt(), 5f64.sqrt()]) {
            assert!(abs_diff_eq!(*found, expected, epsilon = 1e-5), "{}: {found}", solver.name());
        }
    }
}

#[test]
fn what_cannot_be_decomposed_is_refused() {
    let shape = Shape::new(4, 6).unwrap();
    for solver in solvers() {
        for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut matrix = gaussian(4, 6, 1);
            matrix.as_mut_slice()[13] = value;
            let error = solver.svd(matrix.as_ref(), 2).unwrap_err();
            assert!(matches!(error, SvdError::NotFinite { row: 2, col: 1, .. }), "{error:?}");
        }
        for rank in [0, 5, usize::MAX] {
            let error = solver.svd(gaussian(4, 6, 1).as_ref(), rank).unwrap_err();
            assert_eq!(error, SvdError::Rank { rank, largest: 4, shape }, "{}", solver.name());
        }
    }
}

#[test]
fn the_extremes_of_f32_are_decomposed() {
    for value in [f32::MIN_POSITIVE / 8.0, 1e-38, 1e38, f32::MAX] {
        let data = [value, 0.0, 0.0, value / 2.0];
        let matrix = MatrixRef::new(Shape::new(2, 2).unwrap(), &data).unwrap();
        for solver in solvers() {
            let svd = solver.svd(matrix, 2).unwrap();
            for (found, expected) in svd.singular_values.iter().zip([f64::from(value), f64::from(value / 2.0)]) {
                let is_met = relative_eq!(*found, expected, epsilon = 0.0, max_relative = 1e-5);
                assert!(is_met, "{} {value:e}: {found:e}", solver.name());
            }
        }
    }
}

/// What makes random projections worth their speed: rank 64 within 2 % of the best residual, also on a spectrum without
/// any gap.
#[cfg(feature = "flex")]
#[test]
fn random_projections_come_within_two_percent_of_the_best_residual() {
    use pixel_experimental::svd::RandomizedSvd;
    let randomized = RandomizedSvd::new(&burn::tensor::Device::flex());
    for decay in [0.0, 0.5, 1.0] {
        // Gaussian; then columns of falling size.
        let mut matrix = gaussian(300, 400, 3);
        for row in matrix.as_mut_slice().chunks_mut(400) {
            row.iter_mut().enumerate().for_each(|(j, w)| *w *= (1.0 + j as f32).powf(-decay));
        }
        let left = |solver: &dyn SvdSolver| {
            distance(&solver.svd(matrix.as_ref(), 64).unwrap().into_low_rank().product(), &matrix)
        };
        let ratio = left(&randomized) / left(&FaerSvd);
        assert!((0.999..1.02).contains(&ratio), "decay {decay}: {ratio}");
    }
}
