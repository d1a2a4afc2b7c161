//! Least squares over patterns that are chosen one after another.

/// Added to a pivot that vanishes, relative to the pattern's energy.
const RIDGE: f64 = 1e-6;
/// A pivot below this share of the pattern's energy has vanished: the pattern is a sum of the others.
const SINGULAR: f64 = 1e-10;

/// The Cholesky factor of a Gram matrix, `G = L·Lᵀ`, that grows by one row with each pattern.
///
/// # Sources
/// Rubinstein, Zibulevsky & Elad 2008 (the progressive factorisation of orthogonal matching pursuit).
#[derive(Debug, Clone, Default)]
pub(crate) struct GrowingCholesky {
    /// Row i of L, i + 1 long.
    rows: Vec<Vec<f64>>,
}

impl GrowingCholesky {
    /// Adds a pattern, given its inner products with those already in and, last, with itself.
    pub(crate) fn push(&mut self, products: &[f64]) {
        let mut row = self.solve_lower(products);
        let energy = products[self.rows.len()];
        let pivot = energy - row.iter().map(|x| x * x).sum::<f64>();
        let pivot = if pivot <= SINGULAR * energy { RIDGE * energy.max(f64::MIN_POSITIVE) } else { pivot };
        row.push(pivot.sqrt());
        self.rows.push(row);
    }

    /// Removes the last pattern.
    pub(crate) fn pop(&mut self) {
        self.rows.pop();
    }

    /// The scales `x` with `G·x = products`.
    pub(crate) fn solve(&self, products: &[f64]) -> Vec<f64> {
        let mut x = self.solve_lower(products);
        for i in (0..x.len()).rev() {
            let above: f64 = (i + 1..x.len()).map(|j| self.rows[j][i] * x[j]).sum();
            x[i] = (x[i] - above) / self.rows[i][i];
        }
        x
    }

    /// `y` with `L·y = products`.
    fn solve_lower(&self, products: &[f64]) -> Vec<f64> {
        let mut y: Vec<f64> = Vec::with_capacity(self.rows.len() + 1);
        for (row, product) in self.rows.iter().zip(products) {
            let left: f64 = row.iter().zip(&y).map(|(l, y)| l * y).sum();
            y.push((product - left) / row[y.len()]);
        }
        y
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use approx::assert_abs_diff_eq;

    #[test]
    fn the_solution_solves_the_normal_equations() {
        let mut factor = GrowingCholesky::default();
        factor.push(&[4.0]);
        factor.push(&[2.0, 3.0]);
        // [4 2; 2 3]·x = [8, 7] has x = (1.25, 1.5).
        let x = factor.solve(&[8.0, 7.0]);
        assert_abs_diff_eq!(x.as_slice(), [1.25, 1.5].as_slice(), epsilon = 1e-12);
    }

    #[test]
    fn a_repeated_pattern_leaves_the_sum_of_its_scales() {
        let mut factor = GrowingCholesky::default();
        factor.push(&[1.0]);
        factor.push(&[1.0, 1.0]);
        let x = factor.solve(&[3.0, 3.0]);
        assert_abs_diff_eq!(x[0] + x[1], 3.0, epsilon = 1e-6);
    }
}
