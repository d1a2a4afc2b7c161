//! Synthesis and products straight from the arrays of a [`KernelForm`](super::KernelForm), on the current thread pool.

use crate::codec::CodecLayout;
use rayon::prelude::*;

/// Multiply-adds below which a product stays on the calling thread: about 20 µs of work.
const PARALLEL_FROM: usize = 1 << 16;

/// Rows of a product that a thread takes at a time, at least.
const ROWS_PER_TASK: usize = 16;

/// The arrays of a kernel form, borrowed.
///
/// Everything here is in the rotated basis: [`linear`](Self::linear) takes rotated activations, [`rows`](Self::rows) gives
/// weights that the inverse rotation brings back. So protected columns, which are not rotated, come on top: inputs at zero
/// there before the rotation, and a product of their own.
#[derive(Debug, Clone, Copy)]
pub struct PatternSlices<'a> {
    layout: CodecLayout,
    codes: &'a [u32],
    scales: &'a [f32],
    dictionary: &'a [f32],
}

impl<'a> PatternSlices<'a> {
    /// Borrows `codes` `[layout.num_words()]`, `scales` `[d_output, layout.scales_per_row()]` and `dictionary`
    /// `[layout.dictionary_len()]`.
    ///
    /// # Panics
    /// If one has another length.
    pub fn new(layout: CodecLayout, codes: &'a [u32], scales: &'a [f32], dictionary: &'a [f32]) -> Self {
        assert_eq!(codes.len(), layout.num_words(), "words of the codes");
        assert_eq!(scales.len(), layout.shape().d_output() * layout.scales_per_row(), "scales");
        assert_eq!(dictionary.len(), layout.dictionary_len(), "values of the dictionary");
        Self { layout, codes, scales, dictionary }
    }

    /// The weight `[d_output, d_input]`, band by band.
    ///
    /// # Panics
    /// If `out` has another length.
    pub fn synthesize(&self, out: &mut [f32]) {
        let shape = self.layout.shape();
        assert_eq!(out.len(), shape.num_weights(), "weights");
        let band_len = self.layout.band_height() * shape.d_input();
        out.par_chunks_mut(band_len).enumerate().for_each(|(band, rows)| self.band(band, rows));
    }

    /// Rows `indices` of the weight, `[indices, d_input]`.
    ///
    /// # Panics
    /// If there is no such row, or `out` has another length.
    pub fn rows(&self, indices: &[usize], out: &mut [f32]) {
        let (shape, height) = (self.layout.shape(), self.layout.band_height());
        assert_eq!(out.len(), indices.len() * shape.d_input(), "weights of the rows");
        let start = || vec![0.0; height * shape.d_input()];
        out.par_chunks_mut(shape.d_input()).zip(indices).for_each_init(start, |band, (out, &row)| {
            assert!(row < shape.d_output(), "row {row} of a weight of {} rows", shape.d_output());
            let first = row / height * height;
            let rows = &mut band[..height.min(shape.d_output() - first) * shape.d_input()];
            self.band(row / height, rows);
            out.copy_from_slice(&rows[(row - first) * shape.d_input()..][..shape.d_input()]);
        });
    }

    /// `y = x · Wᵀ`: `x` is `[batch, d_input]`, `y` is `[batch, d_output]`. A band of the weight is decoded once and
    /// used for the whole batch.
    ///
    /// # Accuracy
    /// Sums of `d_input` products in f32, in sixteen lanes.
    ///
    /// # Panics
    /// If `x` or `y` has another length.
    pub fn linear(&self, x: &[f32], y: &mut [f32]) {
        let (m, n) = (self.layout.shape().d_output(), self.layout.shape().d_input());
        let batch = x.len() / n;
        assert_eq!((x.len(), y.len()), (batch * n, batch * m), "activations [{batch}, {n}] and outputs [{batch}, {m}]");
        if batch == 0 {
            return;
        }
        let height = self.layout.band_height();
        // Bands are rows of Wᵀ's columns: outputs of one band lie together only where the batch comes last.
        let mut columns = if batch == 1 { Vec::new() } else { vec![0.0; batch * m] };
        let out: &mut [f32] = if batch == 1 { &mut *y } else { &mut columns };
        let start = || vec![0.0; height * n];
        let run = |rows: &mut Vec<f32>, (band, out): (usize, &mut [f32])| {
            let rows = &mut rows[..out.len() / batch * n];
            self.band(band, rows);
            for (row, out) in rows.chunks_exact(n).zip(out.chunks_exact_mut(batch)) {
                out.iter_mut().zip(x.chunks_exact(n)).for_each(|(out, x)| *out = dot(row, x));
            }
        };
        if m * n * batch < PARALLEL_FROM {
            let mut rows = start();
            out.chunks_mut(height * batch).enumerate().for_each(|band| run(&mut rows, band));
        } else {
            let bands = out.par_chunks_mut(height * batch).enumerate();
            bands.with_min_len(ROWS_PER_TASK.div_ceil(height)).for_each_init(start, run);
        }
        if batch > 1 {
            for (i, y) in y.chunks_exact_mut(m).enumerate() {
                y.iter_mut().zip(columns[i..].iter().step_by(batch)).for_each(|(y, value)| *y = *value);
            }
        }
    }

    /// Decodes band `band`, scaled, into `rows`, `[rows of the band, d_input]`.
    fn band(&self, band: usize, rows: &mut [f32]) {
        let (n, per_row, group) =
            (self.layout.shape().d_input(), self.layout.scales_per_row(), self.layout.scale_group());
        self.layout.decode_band(self.codes, self.dictionary, band, rows);
        let first = band * self.layout.band_height() * per_row;
        for (row, scales) in rows.chunks_exact_mut(n).zip(self.scales[first..].chunks_exact(per_row)) {
            for (values, scale) in row.chunks_mut(group).zip(scales) {
                values.iter_mut().for_each(|value| *value *= scale);
            }
        }
    }
}

/// `Σ a·b`.
fn dot(a: &[f32], b: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut sums = [0.0f32; LANES];
    let (a, a_rest) = a.as_chunks::<LANES>();
    let (b, b_rest) = b.as_chunks::<LANES>();
    for (a, b) in a.iter().zip(b) {
        for i in 0..LANES {
            sums[i] += a[i] * b[i];
        }
    }
    let rest: f32 = a_rest.iter().zip(b_rest).map(|(a, b)| a * b).sum();
    sums.iter().sum::<f32>() + rest
}
