//! The step in the middle: a codec is driven over the columns of a conditioned weight.

use super::condition::Conditioned;
use super::feedback::{Damping, Encoded};
use super::inputs::PreparedInputs;
use super::moments::Moments;
use super::refit::{Fits, RowFit};
use crate::codec::{BlockEncoder, Codec, Codes, RowEncoder, WeightEncoder};
use crate::matrix::{Matrix, MatrixRef};

/// Codes, and how well they fit the weight.
pub(super) struct Coded {
    pub(super) codes: Codes,
    pub(super) fits: Fits,
    /// That of the moments, if errors were fed back.
    pub(super) damping: Option<Damping>,
}

/// Codes a conditioned weight: block after block from the first or row after row, or, where the inputs are known, in
/// the order and from the targets of error feedback.
pub(super) fn code(conditioned: &Conditioned, codec: &dyn Codec, inputs: Option<&PreparedInputs>) -> Coded {
    let weight = conditioned.weight.as_ref();
    let Some(inputs) = inputs else {
        let (codes, fits) = match codec.encoder(weight) {
            WeightEncoder::Blocks(encoder) => blocks(conditioned, codec.block_width(weight.shape()), encoder),
            WeightEncoder::Rows(encoder) => rows(conditioned, encoder),
        };
        return Coded { codes, fits: Fits::of_weights(fits), damping: None };
    };
    let (Encoded { codes, decoded }, damping) = match codec.encoder(weight) {
        WeightEncoder::Blocks(encoder) => {
            let feedback = inputs.feedback(codec.block_width(weight.shape()));
            (feedback.encode(weight, encoder), feedback.damping)
        }
        WeightEncoder::Rows(encoder) => {
            let factored = inputs.row_feedback();
            let mut decoded = Matrix::zeros(weight.shape());
            let n = weight.shape().d_input();
            let mut sink = |row: usize, values: &[f32]| {
                decoded.as_mut_slice()[row * n..][..n].copy_from_slice(values);
            };
            let codes = encoder.encode_rows(weight, Some(&factored.feedback), &mut sink);
            (Encoded { codes, decoded }, factored.damping)
        }
    };
    let added = damping.share * inputs.moments().mean_diagonal();
    let (plain, outputs) = fits_of(weight, decoded.as_ref(), inputs.moments());
    Coded { codes, fits: Fits { plain, outputs: Some(outputs), added }, damping: Some(damping) }
}

/// Codes all rows and sums up the error of each.
fn rows(conditioned: &Conditioned, encoder: Box<dyn RowEncoder + '_>) -> (Codes, Vec<RowFit>) {
    let weight = conditioned.weight.as_ref();
    let protected = rows_of_rotation(conditioned);
    let mut fits = vec![RowFit::default(); weight.shape().d_output()];
    let codes = encoder.encode_rows(weight, None, &mut |row, decoded| {
        let fit = &mut fits[row];
        fit.add(weight.row(row), decoded);
        for q in &protected {
            let there: f64 = decoded.iter().zip(q).map(|(d, q)| f64::from(*d) * f64::from(*q)).sum();
            // The target is zero in these columns, so that only this product includes them.
            fit.dd = (fit.dd - there * there).max(0.0);
        }
    });
    (codes, fits)
}

/// Codes all blocks, first to last, and sums up the error of each row; no more than a block is decoded at a time.
fn blocks(conditioned: &Conditioned, width: usize, mut encoder: Box<dyn BlockEncoder + '_>) -> (Codes, Vec<RowFit>) {
    let weight = conditioned.weight.as_ref();
    let shape = weight.shape();
    let mut fits = vec![RowFit::default(); shape.d_output()];
    let mut values = vec![0.0; shape.d_output() * width];
    let mut decoded = values.clone();
    let protected = rows_of_rotation(conditioned);
    let mut there = vec![0.0; shape.d_output() * protected.len()];
    for (block, start) in (0..shape.d_input()).step_by(width).enumerate() {
        weight.copy_columns(start, &mut values);
        encoder.encode_block(block, &values, &mut decoded);
        let inside = width.min(shape.d_input() - start);
        let rows = values.chunks_exact(width).zip(decoded.chunks_exact(width));
        for (fit, (values, decoded)) in fits.iter_mut().zip(rows) {
            fit.add(&values[..inside], &decoded[..inside]);
        }
        if !protected.is_empty() {
            let rows = decoded.chunks_exact(width).zip(there.chunks_exact_mut(protected.len()));
            for (decoded, there) in rows {
                for (there, q) in there.iter_mut().zip(&protected) {
                    *there += decoded
                        .iter()
                        .zip(&q[start..start + inside])
                        .map(|(d, q)| f64::from(*d) * f64::from(*q))
                        .sum::<f64>();
                }
            }
        }
    }
    for (fit, there) in fits.iter_mut().zip(there.chunks_exact(protected.len().max(1))) {
        // The target is zero in these columns, so that only this product includes them.
        fit.dd = (fit.dd - there.iter().map(|d| d * d).sum::<f64>()).max(0.0);
    }
    (encoder.finish(), fits)
}

/// Row `c` of `Q` for each protected column `c`: its product with a decoded row is the decoded value in that column.
fn rows_of_rotation(conditioned: &Conditioned) -> Vec<Vec<f32>> {
    let n = conditioned.weight.shape().d_input();
    let row = |&column: &u32| {
        let mut row = vec![0.0; n];
        row[column as usize] = 1.0;
        if let Some(rotation) = &conditioned.rotation {
            rotation.forward(&mut row, &mut rotation.scratch());
        }
        row
    };
    conditioned.protected.columns().iter().map(row).collect()
}

/// Rows whose products with `H` are computed together.
const ROWS: usize = 64;

/// The fit of each row, of its weights and of its outputs.
fn fits_of(weight: MatrixRef<'_>, decoded: MatrixRef<'_>, moments: &Moments) -> (Vec<RowFit>, Vec<RowFit>) {
    let n = weight.shape().d_input();
    let widened = |rows: &[f32]| rows.iter().map(|&x| f64::from(x)).collect::<Vec<f64>>();
    let (mut plain, mut weighted) = (Vec::new(), Vec::new());
    let mut products = [vec![0.0; ROWS * n], vec![0.0; ROWS * n]];
    for (v, d) in weight.as_slice().chunks(ROWS * n).zip(decoded.as_slice().chunks(ROWS * n)) {
        let (wide_v, wide_d) = (widened(v), widened(d));
        let [hv, hd] = &mut products;
        moments.multiply(&wide_v, &mut hv[..v.len()]);
        moments.multiply(&wide_d, &mut hd[..d.len()]);
        for row in (0..v.len()).step_by(n) {
            let row = row..row + n;
            let mut fit = RowFit::default();
            fit.add(&v[row.clone()], &d[row.clone()]);
            plain.push(fit);
            let mut fit = RowFit::default();
            let values = wide_v[row.clone()].iter().zip(&wide_d[row.clone()]);
            for ((v, d), (hv, hd)) in values.zip(hv[row.clone()].iter().zip(&hd[row])) {
                fit.vv += v * hv;
                fit.vd += d * hv;
                fit.dd += d * hd;
            }
            weighted.push(fit);
        }
    }
    (plain, weighted)
}
