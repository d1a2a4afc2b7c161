//! Rows from their first column to their last, with feedback of what is not yet chosen.
//!
//! With [`RowFeedback`] a target depends on the residuals of all columns before it, and these on the path. Three parts
//! make a path's targets:
//!
//! - columns less than 32 before: the path itself feeds their residuals back, nibble by nibble ([`Step::feedback`]);
//! - columns in blocks that are *settled*, where all paths agree: their residuals are in the targets of the row;
//! - columns between: paths that agree up to the block before the last form a [`Family`], which feeds its own back. Of
//!   the last block, whose residuals differ within a family and which the first part covers but for distances of 32 and
//!   more, the family's cheapest path speaks for all. At the next border that is corrected.
//!
//! So feedback is exact but for what a family disagrees on, a block long and a block away.

use super::paths::{Paths, Width, Workspace};
use super::steps::{Lanes, Lookahead, Place, REACH, Step, UNIT};
use crate::codec::RowFeedback;
use crate::codec::nibble::{EIGHT, NibbleLayout, PATTERNS};
use crate::math::linalg::add_product;
use crate::math::simd::{Simd, for_every_level};
use rayon::prelude::*;
use std::sync::Arc;

/// Columns of a block.
pub(super) const BLOCK: usize = REACH;

/// Blocks that stay open with feedback: paths that agree again after a longer time are hardly missed, and families take
/// the longer, the more columns are open.
const OPEN_WITH_FEEDBACK: usize = 6;

/// Blocks that stay open without.
const OPEN: usize = 16;

/// Rows that go on together, so that what was settled is fed back to all of them in one product.
const ROWS: usize = 32;

/// Times [`ROWS`] rows whose results are held at a time, for each thread that searches, and for all of them.
const TASKS_A_THREAD: usize = 2;
const MOST_TASKS: usize = 16;

/// Targets beyond this many standard deviations are cut off: sums of patterns do not reach that far.
const LARGEST: f32 = 6.0;

/// A target in units.
fn in_units(value: f32) -> i16 {
    (value.clamp(-LARGEST, LARGEST) / UNIT).round() as i16
}

/// What is the same for all rows of a weight.
#[derive(Debug)]
pub(super) struct Rows<'a> {
    simd: Simd,
    width: Width,
    layout: NibbleLayout,
    /// `[P, 16, S]`.
    dictionary: &'a [f32],
    feedback: Option<&'a RowFeedback>,
    /// The steps of each block of columns; without feedback those of all but the last blocks are one.
    blocks: Vec<Arc<[Step]>>,
    /// For each column of a block, the first column behind its nibble's that a path's own feedback does not reach.
    beyond: [usize; BLOCK],
}

/// A row that is under way.
#[derive(Debug)]
struct Row {
    paths: Paths,
    /// The codes of the blocks that are settled.
    codes: Vec<u8>,
    families: Vec<Family>,
    /// The family of each path at the last border.
    family_of: Vec<u16>,
    /// The targets of the columns that came into reach in the last block.
    incoming: [i16; REACH],
}

/// What was found for a row.
struct FoundRow {
    codes: Vec<u8>,
    /// What they decode to, `[d_input]`.
    decoded: Vec<f32>,
}

/// Paths that have the same codes up to the block before the last.
#[derive(Debug)]
struct Family {
    /// Which path they were before the last block.
    origin: u16,
    /// The cheapest of them.
    leader: usize,
    /// Residuals of the open columns up to the block before the last.
    residuals: Vec<f32>,
}

impl Row {
    fn new(width: Width) -> Self {
        let paths = Paths::new(width);
        Self { paths, codes: Vec::new(), families: Vec::new(), family_of: Vec::new(), incoming: [0; REACH] }
    }

    /// Closes the oldest block and returns its residuals, if there are families.
    fn settle(&mut self) -> Vec<f32> {
        self.paths.settle(&mut self.codes);
        let of_best = self.paths.origins()[self.paths.best()];
        let Some(&family) = self.family_of.get(usize::from(of_best)) else { return Vec::new() };
        let settled = self.families[usize::from(family)].residuals[..BLOCK].to_vec();
        for family in &mut self.families {
            family.residuals.drain(..BLOCK);
        }
        settled
    }

    /// The families of the paths as they are now, with the residuals that they had before, and the family of each path.
    fn regroup(&self) -> (Vec<Family>, Vec<u16>) {
        let costs = self.paths.costs();
        let mut families: Vec<Family> = Vec::new();
        let mut family_of = Vec::with_capacity(costs.len());
        for (path, &origin) in self.paths.origins().iter().enumerate() {
            // Paths of one origin follow one another.
            match families.last_mut() {
                Some(family) if family.origin == origin => {
                    if costs[path] < costs[family.leader] {
                        family.leader = path;
                    }
                }
                _ => {
                    let before = self.family_of.get(usize::from(origin)).map(|&family| usize::from(family));
                    let residuals = before.map_or(Vec::new(), |family| self.families[family].residuals.clone());
                    families.push(Family { origin, leader: path, residuals });
                }
            }
            family_of.push((families.len() - 1) as u16);
        }
        (families, family_of)
    }
}

impl<'a> Rows<'a> {
    pub(super) fn new(
        layout: NibbleLayout,
        dictionary: &'a [f32],
        lookahead: Lookahead,
        (simd, width): (Simd, Width),
        feedback: Option<&'a RowFeedback>,
    ) -> Self {
        let mut rows =
            Self { simd, width, layout, dictionary, feedback, blocks: Vec::new(), beyond: std::array::from_fn(|_| 0) };
        for t in 0..rows.nibbles() {
            rows.beyond[layout.start(t)..layout.start(t + 1)].fill(layout.start(t) + REACH);
        }
        let n = layout.shape.d_input();
        let mut whole: Option<Arc<[Step]>> = None;
        for block in 0..n.div_ceil(BLOCK) {
            let is_inner = feedback.is_none() && (block + 2) * BLOCK <= n;
            let steps = match &whole {
                Some(steps) if is_inner => Arc::clone(steps),
                _ => rows.steps(block, lookahead),
            };
            if is_inner {
                whole = Some(Arc::clone(&steps));
            }
            rows.blocks.push(steps);
        }
        rows
    }

    /// Nibbles of a whole block.
    const fn nibbles(&self) -> usize {
        self.layout.per_eight * BLOCK / EIGHT
    }

    /// The steps of block `block`.
    fn steps(&self, block: usize, lookahead: Lookahead) -> Arc<[Step]> {
        let (layout, n) = (self.layout, self.layout.shape.d_input());
        let first = block * self.nibbles();
        let step = |t: usize| {
            let (start, end) = (layout.start(t), layout.start(t + 1));
            let place = Place { hop: end - start, inside: n.saturating_sub(start) };
            let feedback = self.feedback.map(|feedback| move |k: usize, h: usize| feedback.row(start + k)[start + h]);
            let feedback = feedback.as_ref().filter(|_| start < n).map(|f| f as &dyn Fn(usize, usize) -> f32);
            Step::new(self.patterns(t), place, lookahead, feedback)
        };
        (first..(first + self.nibbles()).min(layout.fields())).map(step).collect()
    }

    /// The sixteen patterns of nibble `t`, `[16, S]`.
    fn patterns(&self, t: usize) -> &'a [f32] {
        let len = PATTERNS * self.layout.span();
        &self.dictionary[t % self.layout.period() * len..][..len]
    }

    /// Adds to `values`, the columns from `start` on, what `codes` select, those of the nibbles from `first` on.
    fn add_patterns(&self, first: usize, codes: &[u8], start: usize, values: &mut [f32]) {
        let span = self.layout.span();
        for (t, code) in (first..).zip(codes) {
            let pattern = &self.patterns(t)[usize::from(*code) * span..][..span];
            let at = self.layout.start(t);
            let cut = start.saturating_sub(at).min(span);
            let values = values.get_mut((at + cut).saturating_sub(start)..).unwrap_or_default();
            values.iter_mut().zip(&pattern[cut..]).for_each(|(value, weight)| *value += weight);
        }
    }

    /// Hands `sink` the place, the codes and what they decode to of each row of `weights`, `[rows, d_input]`. Groups of
    /// rows are searched on all threads of rayon's pool.
    pub(super) fn encode(&self, weights: &[f32], mut sink: impl FnMut(usize, &[u8], &[f32])) {
        let n = self.layout.shape.d_input();
        let together = if self.feedback.is_some() { ROWS } else { 1 };
        let at_once = (TASKS_A_THREAD * rayon::current_num_threads()).min(MOST_TASKS) * ROWS;
        let state = || (Workspace::new(self.width), (0..together).map(|_| Row::new(self.width)).collect::<Vec<_>>());
        for (first, weights) in weights.chunks(at_once * n).enumerate() {
            let found = weights.par_chunks(ROWS * n).map_init(state, |(work, rows), weights| {
                let groups = weights.chunks(together * n);
                groups.flat_map(|weights| self.encode_group(weights, rows, work)).collect::<Vec<FoundRow>>()
            });
            let found: Vec<Vec<FoundRow>> = found.collect();
            for (row, FoundRow { codes, decoded }) in (first * at_once..).zip(found.iter().flatten()) {
                sink(row, codes, decoded);
            }
        }
    }

    /// Searches the rows of `weights`, which go on together, with as many of `rows`.
    fn encode_group(&self, weights: &[f32], rows: &mut [Row], work: &mut Workspace) -> Vec<FoundRow> {
        let n = self.layout.shape.d_input();
        let rows = &mut rows[..weights.len() / n];
        let mut targets = weights.to_vec();
        for (block, steps) in self.blocks.iter().enumerate() {
            self.settle(block, rows, &mut targets);
            for (row, targets) in rows.iter_mut().zip(targets.chunks_exact(n)) {
                self.advance(block, steps, row, targets, work);
            }
        }
        let finish = |row: &mut Row| {
            let (mut rest, mut decoded) = (Vec::new(), vec![0.0; n]);
            row.paths.trace(row.paths.best(), usize::MAX, &mut rest);
            let mut codes = std::mem::take(&mut row.codes);
            codes.append(&mut rest);
            self.add_patterns(0, &codes, 0, &mut decoded);
            FoundRow { codes, decoded }
        };
        rows.iter_mut().map(finish).collect()
    }

    /// Before block `block`: closes the oldest block if as many are open as may be, and feeds its residuals back.
    fn settle(&self, block: usize, rows: &mut [Row], targets: &mut [f32]) {
        let n = self.layout.shape.d_input();
        let most = if self.feedback.is_some() { OPEN_WITH_FEEDBACK } else { OPEN };
        if block < most {
            return;
        }
        let residuals: Vec<f32> = rows.iter_mut().flat_map(Row::settle).collect();
        if let Some(feedback) = self.feedback {
            let settled = (block - most) * BLOCK;
            let rest = settled + BLOCK;
            add_product(
                (&mut targets[rest..], n),
                (&residuals, BLOCK),
                (&feedback.row(settled)[rest..], n),
                [rows.len(), BLOCK, n - rest],
            );
        }
    }

    /// Takes the paths of a row through block `block`.
    fn advance(&self, block: usize, steps: &[Step], row: &mut Row, targets: &[f32], work: &mut Workspace) {
        let start = block * BLOCK;
        let target = |column: usize, fed: f32| targets.get(column).map_or(0, |target| in_units(target + fed));
        let mut incoming = std::array::from_fn(|h| target(start + REACH + h, 0.0));
        if block == 0 {
            row.paths.start(&std::array::from_fn(|h| target(h, 0.0)));
            row.codes.clear();
            row.families.clear();
            row.family_of.clear();
        } else if let Some(feedback) = self.feedback {
            let (mut families, family_of) = row.regroup();
            let best = usize::from(family_of[row.paths.best()]);
            let fed = self.feed_back(block, &mut families, &row.paths, targets, feedback);
            let mut changes = vec![Lanes::ZERO; families.len()];
            for (change, fed) in changes.iter_mut().zip(fed.chunks_exact(2 * BLOCK)) {
                for (h, change) in change.0.iter_mut().enumerate() {
                    *change = target(start + h, fed[h]) - row.incoming[h];
                }
            }
            let of_best = &fed[best * 2 * BLOCK..];
            incoming = std::array::from_fn(|h| target(start + REACH + h, of_best[REACH + h]));
            row.paths.correct(|path| &changes[usize::from(family_of[path])]);
            (row.families, row.family_of) = (families, family_of);
        }
        row.incoming = incoming;
        row.paths.advance(self.simd, steps, &incoming, work);
    }

    /// What the residuals in the open columns of each family add to the targets of block `block` and the next,
    /// `[families, 2·BLOCK]`, but for what paths feed back themselves. Appends the residuals of the block before the
    /// last to those of the families.
    fn feed_back(
        &self,
        block: usize,
        families: &mut [Family],
        paths: &Paths,
        targets: &[f32],
        feedback: &RowFeedback,
    ) -> Vec<f32> {
        let n = targets.len();
        let start = block * BLOCK;
        let (first, last) = (start.saturating_sub(2 * BLOCK), start - BLOCK);
        let end = (start + 2 * BLOCK).min(n);
        // Of the columns from `first` on; those before are the same number for every family.
        let width = start + 2 * BLOCK - first;
        let mut fed = vec![0.0; families.len() * width];
        let known: Vec<f32> = families.iter().flat_map(|family| family.residuals.iter().copied()).collect();
        let len = known.len() / families.len();
        let factors = &feedback.row(first - len)[first..];
        add_product((&mut fed, width), (&known, len), (factors, n), [families.len(), len, end - first]);

        // Windows that reach these columns begin a block before.
        let blocks = block.min(3);
        let mut decoded = vec![0.0; families.len() * (start - first)];
        let mut codes = Vec::new();
        for (family, decoded) in families.iter().zip(decoded.chunks_exact_mut(start - first)) {
            paths.trace(family.leader, blocks, &mut codes);
            self.add_patterns((block - blocks) * self.nibbles(), &codes, first, decoded);
        }
        for settling in (first..start).step_by(BLOCK) {
            let place = settling - first;
            let mut residuals = vec![0.0; families.len() * BLOCK];
            let rows = fed.chunks_exact_mut(width).zip(decoded.chunks_exact(start - first));
            for ((fed, decoded), residuals) in rows.zip(residuals.chunks_exact_mut(BLOCK)) {
                let targets = &targets[settling..][..BLOCK];
                let inside = (&feedback.row(settling)[settling..], n);
                residuals_of(self.simd, targets, &mut fed[place..], &decoded[place..], inside, residuals);
            }
            let behind = settling + BLOCK;
            let mut factors = (&feedback.row(settling)[behind..], n);
            let within_reach;
            if settling == last {
                within_reach = self.without_reach(factors, end - behind);
                factors = (&within_reach, 2 * BLOCK);
            } else {
                let families = families.iter_mut().zip(residuals.chunks_exact(BLOCK));
                families.for_each(|(family, residuals)| family.residuals.extend_from_slice(residuals));
            }
            let shape = [families.len(), BLOCK, end - behind];
            add_product((&mut fed[place + BLOCK..], width), (&residuals, BLOCK), factors, shape);
        }
        fed.chunks_exact(width).flat_map(|fed| &fed[start - first..]).copied().collect()
    }

    /// The factors of a block for the `columns` columns behind it, `[BLOCK, 2·BLOCK]`, zero where paths feed back
    /// themselves.
    fn without_reach(&self, (factors, stride): (&[f32], usize), columns: usize) -> Vec<f32> {
        let mut kept = vec![0.0; BLOCK * 2 * BLOCK];
        for (i, (kept, beyond)) in kept.chunks_exact_mut(2 * BLOCK).zip(self.beyond).enumerate() {
            let columns = (beyond - BLOCK).min(columns)..columns;
            kept[columns.clone()].copy_from_slice(&factors[i * stride..][columns]);
        }
        kept
    }
}

for_every_level! {
    /// The residuals of one block, each of which is fed back to the columns behind it in the block.
    fn residuals_of(
        targets: &[f32],
        fed: &mut [f32],
        decoded: &[f32],
        factors: (&[f32], usize),
        residuals: &mut [f32],
    ) {
        let (fed, _) = fed.split_at_mut(BLOCK);
        for i in 0..BLOCK {
            let residual = targets[i] + fed[i] - decoded[i];
            residuals[i] = residual;
            let factors = &factors.0[i * factors.1..][..BLOCK];
            for (fed, factor) in fed[i + 1..].iter_mut().zip(&factors[i + 1..]) {
                *fed += residual * factor;
            }
        }
    }
}

/// An upper estimate of the bytes that searching a weight takes a thread: the steps and the paths of the rows that go
/// on together, and what was found for rows.
pub(super) fn peak_bytes(layout: &NibbleLayout, width: Width) -> usize {
    let nibbles = layout.per_eight * BLOCK / EIGHT;
    let step = size_of::<Step>() + 4 * size_of::<Lanes>();
    let found = (TASKS_A_THREAD * ROWS).min(layout.shape.d_output()) * (4 * layout.shape.d_input() + layout.fields());
    found
        + layout.fields() * step
        + ROWS * width.path_bytes(OPEN_WITH_FEEDBACK * nibbles)
        + width.path_bytes(OPEN * nibbles)
}
