//! Error feedback around any codec: the columns not yet coded compensate the errors of those coded.
//!
//! The loss of a reproduction `Ŵ = W − E` is the error of the layer's outputs, `E‖E·x‖² = tr(E·H·Eᵀ)` with the second
//! moments `H = E[x·xᵀ]` of the inputs. With `H = L·D·Lᵀ`, `L` unit lower triangular in blocks of the codec's width,
//!
//! ```text
//! tr(E·H·Eᵀ) = Σ_J tr(R_J·D_J·R_Jᵀ),   R_J = E_J + Σ_{I>J} E_I·L_IJ
//! ```
//!
//! and blocks are coded from the last to the first, block `J` from the target `W_J + Σ_{I>J} E_I·L_IJ`: then `R_J` is
//! the codec's own error on its target, and the errors of other blocks add nothing.
//!
//! Sources: Frantar et al., *GPTQ* (2023); Chee et al., *QuIP* (2023), which calls it LDLQ and proves it optimal among
//! such feedbacks; the block form as in Tseng et al., *QuIP#* (2024).

use super::moments::Moments;
use crate::codec::{BlockEncoder, Codes};
use crate::error::ConfigError;
use crate::math::linalg::{add_product, cholesky};
use crate::matrix::{Matrix, MatrixRef, Shape};

/// Columns whose errors are gathered before the columns beyond them are updated.
const GATHERED: usize = 128;

/// The damping of moments that leave nothing open, in units of the mean diagonal.
const LEAST_DAMPING: f64 = 0.01;

/// Damping is doubled at most this often: from 10⁻⁶ of the mean diagonal on, that is far above any of `H`'s entries.
const MAX_DOUBLINGS: u32 = 40;

/// How error feedback is done.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FeedbackOptions {
    /// What is added to the diagonal of `H`, in units of its mean. Default: `None`, the power that the moments
    /// [do not show](Moments::unseen_power), and a hundredth at least.
    pub damping: Option<f64>,
    /// The order in which blocks are coded. Default: [`BlockOrder::Automatic`].
    pub order: BlockOrder,
}

impl FeedbackOptions {
    /// The defaults.
    pub const DEFAULT: Self = Self { damping: None, order: BlockOrder::Automatic };

    /// Checks every field.
    ///
    /// # Errors
    /// [`ConfigError::Range`] for a damping that is negative or above a thousand.
    pub fn check(&self) -> Result<(), ConfigError> {
        self.damping.map_or(Ok(()), |damping| ConfigError::range("damping", damping, 0.0..=1000.0))
    }
}

impl Default for FeedbackOptions {
    fn default() -> Self {
        Self::DEFAULT
    }
}

/// The order in which blocks of columns are coded. A codec that takes whole rows goes from the first column to the
/// last, whatever is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum BlockOrder {
    /// From the last to the first.
    Backward,
    /// Inputs with the most energy first, while most columns can still compensate their errors.
    Activation,
    /// By activation, unless the weight is rotated: rotated inputs have about the same energy everywhere.
    #[default]
    Automatic,
}

/// `H` of one weight, factored for the blocks of a codec.
#[derive(Debug)]
pub struct Feedback {
    width: usize,
    /// The blocks in the order of their places in `factor`, coded from the last to the first.
    order: Vec<usize>,
    /// The column at each place, `[n]`.
    columns: Vec<usize>,
    /// `L`, `[n, n]` row-major in places; its blocks on the diagonal are not used.
    factor: Vec<f32>,
    /// What made `H` positive definite.
    pub damping: Damping,
}

/// What was added to the diagonal of `H`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Damping {
    /// In units of the diagonal's mean.
    pub share: f64,
    /// How often it was doubled because `H` was not positive definite.
    pub retries: u32,
}

/// The result of coding a weight with feedback.
pub(super) struct Encoded {
    pub(super) codes: Codes,
    /// What the codes decode to.
    pub(super) decoded: Matrix,
}

impl Feedback {
    /// Factors `moments`, `[n, n]` and rotated as the weight is, for blocks of `width` columns.
    ///
    /// # Panics
    /// If `width` is 0.
    pub fn new(moments: &Moments, width: usize, rotated: bool, options: FeedbackOptions) -> Self {
        let n = moments.d_input();
        let mut order: Vec<usize> = (0..n.div_ceil(width)).collect();
        let by_energy = match options.order {
            BlockOrder::Backward => false,
            BlockOrder::Activation => true,
            BlockOrder::Automatic => !rotated,
        };
        let inside = |block: usize| block * width..(block * width + width).min(n);
        if by_energy {
            let energy = |block: usize| -> f64 {
                inside(block).map(|i| moments.at(i, i)).sum::<f64>() / inside(block).len() as f64
            };
            let energies: Vec<f64> = order.iter().map(|&block| energy(block)).collect();
            order.sort_by(|&a, &b| energies[a].total_cmp(&energies[b]));
        }
        let columns: Vec<usize> = order.iter().flat_map(|&block| inside(block)).collect();
        let (factor, damping) = factorise(moments, &columns, options.damping);
        let factor = unit_blocks(&factor, n, &order, width);
        Self { width, order, columns, factor, damping }
    }

    /// Columns of a block.
    pub(super) const fn width(&self) -> usize {
        self.width
    }

    /// Columns of each block by place.
    fn block_ranges(&self) -> Vec<std::ops::Range<usize>> {
        block_ranges(self.columns.len(), &self.order, self.width)
    }

    /// Codes `weight` block by block, each block's error pushed into those not yet coded.
    pub(super) fn encode(&self, weight: MatrixRef<'_>, mut encoder: Box<dyn BlockEncoder + '_>) -> Encoded {
        let shape = weight.shape();
        let (m, n, width) = (shape.d_output(), shape.d_input(), self.width);
        let ranges = self.block_ranges();
        let mut targets = self.gathered(weight);
        let mut decoded = Matrix::zeros(shape);
        let (mut values, mut found) = (vec![0.0; m * width], vec![0.0; m * width]);
        let mut errors = vec![0.0; m * GATHERED.max(width)];
        let mut last = ranges.len();
        while last > 0 {
            let end = ranges[last - 1].end;
            let mut first = last - 1;
            while first > 0 && end - ranges[first - 1].start <= GATHERED {
                first -= 1;
            }
            let start = ranges[first].start;
            let stride = end - start;
            for place in (first..last).rev() {
                let range = ranges[place].clone();
                for (row, values) in targets.chunks_exact(n).zip(values.chunks_exact_mut(width)) {
                    values[..range.len()].copy_from_slice(&row[range.clone()]);
                    values[range.len()..].fill(0.0);
                }
                encoder.encode_block(self.order[place], &values, &mut found);
                let column = self.columns[range.start];
                for (row, found) in found.chunks_exact(width).enumerate() {
                    let original = &weight.row(row)[column..][..range.len()];
                    let error = &mut errors[row * stride + range.start - start..][..range.len()];
                    error.iter_mut().zip(original).zip(found).for_each(|((e, w), d)| *e = w - d);
                    decoded.as_mut_slice()[row * n + column..][..range.len()].copy_from_slice(&found[..range.len()]);
                }
                add_product(
                    (&mut targets[start..], n),
                    (&errors[range.start - start..], stride),
                    (&self.factor[range.start * n + start..], n),
                    [m, range.len(), range.start - start],
                );
            }
            add_product((&mut targets, n), (&errors, stride), (&self.factor[start * n..], n), [m, stride, start]);
            last = first;
        }
        Encoded { codes: encoder.finish(), decoded }
    }

    /// The columns of `weight` by place.
    fn gathered(&self, weight: MatrixRef<'_>) -> Vec<f32> {
        let rows = weight.as_slice().chunks_exact(self.columns.len());
        rows.flat_map(|row| self.columns.iter().map(|&column| row[column])).collect()
    }

    /// Bytes that encoding a weight of `shape` with feedback holds, without the weight itself.
    pub(super) fn peak_bytes(shape: Shape) -> u64 {
        let (m, n) = (shape.d_output() as u64, shape.d_input() as u64);
        // H, its damped copy and the trailing panel in f64; then H and L; targets and decoded values in f32.
        n * n * 8 * 2 + n * 64 * 16 + n * n * 4 + m * n * 8 + m * 4 * (GATHERED as u64 + 32)
    }
}

/// The Cholesky factor of `moments`, `[n, n]` with `columns` by place, with `damping` times the mean diagonal added, or
/// as often doubled as it takes.
pub(super) fn factorise(moments: &Moments, columns: &[usize], damping: Option<f64>) -> (Vec<f64>, Damping) {
    let share = damping.unwrap_or_else(|| default_share(moments));
    let (n, mut damping) = (columns.len(), Damping { share, retries: 0 });
    loop {
        match cholesky(damped(moments, columns, damping.share), n) {
            Some(factor) => return (factor, damping),
            None if damping.retries == MAX_DOUBLINGS => return (damped(&Moments::identity(n), columns, 0.0), damping),
            None => {
                damping = Damping { share: (2.0 * damping.share).max(1e-6), retries: damping.retries + 1 };
            }
        }
    }
}

/// The damping where none is asked for, in units of the mean diagonal.
fn default_share(moments: &Moments) -> f64 {
    let mean = moments.mean_diagonal();
    if mean > 0.0 { (moments.unseen_power() / mean).max(LEAST_DAMPING) } else { LEAST_DAMPING }
}

fn block_ranges(n: usize, order: &[usize], width: usize) -> Vec<std::ops::Range<usize>> {
    let mut start = 0;
    let range = |&block: &usize| {
        let range = start..start + width.min(n - block * width);
        start = range.end;
        range
    };
    order.iter().map(range).collect()
}

/// `H` by place, with `damping` times its mean diagonal on the diagonal; the identity where `H` is zero.
fn damped(moments: &Moments, columns: &[usize], damping: f64) -> Vec<f64> {
    let n = columns.len();
    let mean = moments.mean_diagonal();
    if mean == 0.0 {
        return damped(&Moments::identity(n), columns, damping);
    }
    let mut matrix = Vec::with_capacity(n * n);
    for (place, &i) in columns.iter().enumerate() {
        matrix.extend(columns.iter().map(|&j| moments.at(i, j)));
        matrix[place * n + place] += damping * mean;
    }
    matrix
}

/// `L = C·diag(C_JJ)⁻¹` below the blocks on the diagonal, from the Cholesky factor `C`.
fn unit_blocks(factor: &[f64], n: usize, order: &[usize], width: usize) -> Vec<f32> {
    let mut unit = vec![0.0f32; n * n];
    let mut solved = vec![0.0; width];
    for range in block_ranges(n, order, width) {
        let (start, len) = (range.start, range.len());
        let diagonal = |row: usize, col: usize| factor[(start + row) * n + start + col];
        for row in range.end..n {
            // solved · C_JJ = C_row: from the last column back.
            for col in (0..len).rev() {
                let known: f64 = (col + 1..len).map(|later| solved[later] * diagonal(later, col)).sum();
                solved[col] = (factor[row * n + start + col] - known) / diagonal(col, col);
            }
            let out = &mut unit[row * n + start..][..len];
            out.iter_mut().zip(&solved).for_each(|(out, &value)| *out = value as f32);
        }
    }
    unit
}
