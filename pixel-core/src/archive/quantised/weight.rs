//! One weight that another tool has quantised, and its values.

use super::packed_ints::PackedInts;
use std::ops::Range;

/// A weight `[d_output, d_input]`: `w = (code − zero) · scale`, scale and zero being those of the group of the weight.
#[derive(Debug)]
pub(super) struct QuantisedWeight<'a> {
    pub(super) shape: [usize; 2],
    pub(super) codes: Codes<'a>,
    pub(super) groups: Groups,
}

/// The codes of a weight.
#[derive(Debug)]
pub(super) enum Codes<'a> {
    /// Eight-bit floats, `[d_output, d_input]`, and what each byte stands for.
    Float8(&'a [u8], Box<[f32; 256]>),
    /// Signed bytes, `[d_output, d_input]`.
    Int8(&'a [u8]),
    /// Packed integers, `[d_output, d_input]`.
    OutputMajor(PackedInts<'a>),
    /// Packed integers, `[d_input, d_output]`.
    InputMajor(PackedInts<'a>),
}

/// Scales and zeros of groups of weights: so many inputs of so many outputs.
#[derive(Debug)]
pub(super) struct Groups {
    /// The group of each input, `[d_input]`.
    pub(super) of_input: Vec<u32>,
    /// Outputs that share a group.
    pub(super) outputs: usize,
    /// Groups along the outputs.
    pub(super) num_outputs: usize,
    /// `[groups along the inputs, num_outputs]`.
    pub(super) scales: Vec<f32>,
    /// As the scales; none if they are zero.
    pub(super) zeros: Vec<f32>,
}

impl QuantisedWeight<'_> {
    /// The values of `rows`, `[rows, d_input]`, into `out`.
    ///
    /// # Panics
    /// If `out` has another size.
    pub(super) fn read_rows(&self, rows: Range<usize>, out: &mut [f32]) {
        let n = self.shape[1];
        assert_eq!(out.len(), rows.len() * n, "values of {rows:?}");
        match &self.codes {
            Codes::Float8(bytes, table) => self.fill(rows, out, |i, j| table[usize::from(bytes[i * n + j])]),
            Codes::Int8(bytes) => self.fill(rows, out, |i, j| f32::from(bytes[i * n + j].cast_signed())),
            Codes::OutputMajor(ints) => self.fill(rows, out, |i, j| ints.at(i, j) as f32),
            Codes::InputMajor(ints) => self.fill(rows, out, |i, j| ints.at(j, i) as f32),
        }
    }

    fn fill(&self, rows: Range<usize>, out: &mut [f32], code: impl Fn(usize, usize) -> f32) {
        let Groups { of_input, outputs, num_outputs, scales, zeros } = &self.groups;
        for (i, row) in rows.zip(out.chunks_exact_mut(self.shape[1])) {
            for (j, (value, &group)) in row.iter_mut().zip(of_input).enumerate() {
                let group = group as usize * num_outputs + i / outputs;
                let zero = zeros.get(group).copied().unwrap_or(0.0);
                *value = (code(i, j) - zero) * scales[group];
            }
        }
    }
}
