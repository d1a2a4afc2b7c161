//! The search: the nibbles of a row whose sum of overlapping patterns is nearest to it.
//!
//! Every nibble has a part in as many weights as a window is long, so that none can be chosen by itself. The search
//! goes from the left to the right and keeps the best few hundred choices of all nibbles so far, *paths*; each goes on
//! in sixteen ways, and the best of all ways are the paths of the next nibble (the M-algorithm). Three things make it
//! good and fast:
//!
//! - **Looking ahead.** A path is judged by the errors of the weights that no later nibble reaches, and, with a small
//!   weight, by all that the others still lack. Of two paths with equal errors the one that leaves less to do will end
//!   better: at 2 bits and a span of 16 that is worth eight times the paths (docs/architecture.md).
//! - **Whole numbers.** What a path leaves is 32 numbers of 16 bits, one register of AVX-512; the costs of its sixteen
//!   ways on are one register more, and one multiply-add gives what two weights contribute to all of them. The chosen
//!   are not sorted: a cost is looked for that about as many ways do not exceed as paths are wanted.
//! - **Feedback on the paths.** See `rows`.
//!
//! # Sources
//! Anderson and Mohan, "Sequential Coding Algorithms: A Survey and Cost Analysis", IEEE Trans. Comm. 1984, for the
//! M-algorithm.

mod beam;
mod paths;
mod rows;
mod steps;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use crate::codec::RowFeedback;
use crate::codec::nibble::{NibbleLayout, Windows};
use crate::math::simd::Simd;
use crate::matrix::{MatrixRef, Shape};
pub use paths::MAX_BEAM;
use paths::Width;
use rows::Rows;
pub use steps::Lookahead;

/// The longest window that can be searched.
pub const MAX_SPAN: usize = steps::REACH;

/// Finds the codes of rows, given the patterns.
#[derive(Debug, Clone)]
pub struct Search {
    simd: Simd,
    per_eight: usize,
    span: usize,
    /// `[P, 16, S]`.
    dictionary: Vec<f32>,
    lookahead: Lookahead,
    beam: usize,
}

/// A row with what was found for it.
#[derive(Debug, Clone, Copy)]
pub struct CodedRow<'a> {
    /// Its place.
    pub row: usize,
    /// The nibbles, one a byte.
    pub codes: &'a [u8],
    /// What they decode to, `[d_input]`.
    pub decoded: &'a [f32],
}

impl Search {
    /// A search through `dictionary`, `[P, 16, span]`, of a code with `per_eight` nibbles for eight weights.
    ///
    /// # Panics
    /// If there are fewer than 2 or more than 8 nibbles, if a window is longer than [`MAX_SPAN`], `beam` not in
    /// `1..=MAX_BEAM`, or `dictionary` of another length.
    pub fn new(per_eight: usize, span: usize, dictionary: Vec<f32>, lookahead: Lookahead, beam: usize) -> Self {
        assert!((2..=8).contains(&per_eight), "{per_eight} nibbles for eight weights");
        assert!((1..=MAX_SPAN).contains(&span), "a span of {span}");
        assert!((1..=MAX_BEAM).contains(&beam), "a beam of {beam}");
        assert!(lookahead.columns <= steps::REACH, "{} columns looked at", lookahead.columns);
        let search = Self { simd: Simd::detect(), per_eight, span, dictionary, lookahead, beam };
        let shape = Shape::new(1, 1).expect("one weight");
        assert_eq!(search.dictionary.len(), search.layout(shape).dictionary_len(), "values of the dictionary");
        search
    }

    /// The same search by other instructions, to compare them; the codes are the same.
    pub fn with_simd(self, simd: Simd) -> Self {
        Self { simd, ..self }
    }

    /// How many paths are kept, about.
    pub const fn beam(&self) -> usize {
        self.beam
    }

    /// Finds the codes of each row of `weight`, in units of the row scales, and hands them to `sink` in order. With
    /// `feedback` the residuals of each row are fed back as it says.
    pub fn encode(&self, weight: MatrixRef<'_>, feedback: Option<&RowFeedback>, mut sink: impl FnMut(CodedRow<'_>)) {
        let layout = self.layout(weight.shape());
        let how = (self.simd, Width::new(self.beam));
        // Without feedback paths may differ for longer: the codes are then the same whether it is given or not.
        let feedback = feedback.filter(|feedback| !feedback.is_zero());
        let rows = Rows::new(layout, &self.dictionary, self.lookahead, how, feedback);
        rows.encode(weight.as_slice(), |row, codes, decoded| sink(CodedRow { row, codes, decoded }));
    }

    /// An upper estimate of the bytes that searching a weight of `shape` takes.
    pub fn peak_bytes(&self, shape: Shape) -> usize {
        rows::peak_bytes(&self.layout(shape), Width::new(self.beam))
    }

    const fn layout(&self, shape: Shape) -> NibbleLayout {
        NibbleLayout { shape, per_eight: self.per_eight, windows: Windows::Lapped { span: self.span } }
    }
}

#[cfg(test)]
mod tests;
