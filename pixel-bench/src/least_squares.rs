//! Normal equations, for the programs that train dictionaries.

/// Solves `A X = B` in place by Cholesky's method, `A = L Lᵀ`, symmetric and positive definite; `a` is `[n, n]` and
/// becomes `L` below the diagonal, `b` is `[n, K]` and becomes `X`.
pub fn solve<const K: usize>(a: &mut [f64], b: &mut [[f64; K]]) {
    let n = b.len();
    for i in 0..n {
        for j in 0..=i {
            let sum = a[i * n + j] - (0..j).map(|k| a[i * n + k] * a[j * n + k]).sum::<f64>();
            a[i * n + j] = if i == j { sum.sqrt() } else { sum / a[j * n + j] };
        }
    }
    for i in 0..n {
        b[i] = std::array::from_fn(|j| {
            let sum = b[i][j] - (0..i).map(|k| a[i * n + k] * b[k][j]).sum::<f64>();
            sum / a[i * n + i]
        });
    }
    for i in (0..n).rev() {
        b[i] = std::array::from_fn(|j| {
            let sum = b[i][j] - (i + 1..n).map(|k| a[k * n + i] * b[k][j]).sum::<f64>();
            sum / a[i * n + i]
        });
    }
}

#[cfg(test)]
mod tests {
    use super::solve;

    #[test]
    fn a_solution_solves() {
        let mut a = [4.0, 2.0, 0.0, 2.0, 5.0, 1.0, 0.0, 1.0, 3.0];
        let before = a;
        let mut x = [[1.0, 0.0], [2.0, 1.0], [-1.0, 5.0]];
        let b = x;
        solve(&mut a, &mut x);
        for i in 0..3 {
            for k in 0..2 {
                let product: f64 = (0..3).map(|j| before[i * 3 + j] * x[j][k]).sum();
                assert!((product - b[i][k]).abs() < 1e-12);
            }
        }
    }
}
