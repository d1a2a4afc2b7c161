//! The definition of synthesis: every entry by itself, straight from the formula. Slow; tests hold the rest to it.

use crate::math::rotation::reference_entry;
use crate::matrix::Matrix;
use crate::packed::PackedWeight;

/// `W[r][c] = 2^exponent · Σ_j (scale[r] · decoded[r][j] + Σ_k up[k][r] · down[k][j]) · Q[c][j]`, in f64; without a
/// rotation `Q` is the identity, without a low-rank part there is no sum over `k`. In a protected column, the `i`-th,
/// `W[r][c] = 2^exponent · value[r][i]`.
pub fn synthesize(packed: &PackedWeight) -> Matrix {
    let (shape, header) = (packed.shape(), packed.header());
    let (m, n) = (shape.d_output(), shape.d_input());
    let (up, down) = packed.low_rank().map_or_else(Default::default, |part| (part.up(), part.down()));
    let mut dense = Matrix::zeros(shape);
    for (r, row) in dense.as_mut_slice().chunks_exact_mut(n).enumerate() {
        let unit = f64::from(header.exponent.unit());
        let scale = packed.row_scales().get(r).map_or(1.0, |scale| scale.to_f64());
        let coded = |j| scale * f64::from(packed.codec().decode_weight(shape, packed.codes(), r, j));
        let low_rank = |j| {
            let vectors = up.chunks_exact(m).zip(down.chunks_exact(n));
            vectors.map(|(up, down): (&[f32], &[f32])| f64::from(up[r]) * f64::from(down[j])).sum::<f64>()
        };
        let decoded: Vec<f64> = (0..n).map(|j| unit * (coded(j) + low_rank(j))).collect();
        for (c, weight) in row.iter_mut().enumerate() {
            *weight = match header.rotation {
                None => decoded[c],
                Some(seed) => (0..n).map(|j| decoded[j] * reference_entry(n, seed, c, j)).sum(),
            } as f32;
        }
        let protected = packed.protected();
        for (i, &c) in protected.columns().iter().enumerate() {
            row[c as usize] = (unit * protected.values()[r * protected.len() + i].to_f64()) as f32;
        }
    }
    dense
}
