//! The paths through one row.

use super::beam::{self, Ways};
use super::steps::{Lanes, PerPattern, REACH, Step};
use crate::codec::nibble::PATTERNS;
use crate::math::simd::Simd;
use std::collections::VecDeque;

/// The widest beam: with a fourth more and 16, which a step may choose, a link still has bits for every path.
pub const MAX_BEAM: usize = 3072;

/// How many paths are kept.
#[derive(Debug, Clone, Copy)]
pub(super) struct Width {
    /// From nibble to nibble, about.
    beam: usize,
    /// At most.
    capacity: usize,
}

impl Width {
    pub(super) fn new(beam: usize) -> Self {
        Self { beam, capacity: beam + beam / 4 + PATTERNS }
    }

    /// Bytes of the paths of one row that differ in `nibbles` nibbles.
    pub(super) const fn path_bytes(self, nibbles: usize) -> usize {
        self.capacity * (size_of::<Lanes>() + 4 + 4 * nibbles)
    }
}

/// The paths through one row, as far as they may differ.
#[derive(Debug)]
pub(super) struct Paths {
    width: Width,
    count: usize,
    /// What the columns ahead lack, for each path.
    residuals: Vec<Lanes>,
    /// Between blocks: what each path has cost, in squared units, less what all of them have.
    costs: Vec<i32>,
    /// How much more than the least the dearest way taken last cost.
    gap: i32,
    /// The blocks whose codes paths may differ in, the oldest first.
    open: VecDeque<Block>,
    /// The memory of blocks that were settled.
    spare: Vec<Block>,
}

/// How the paths came through one block of columns.
#[derive(Debug, Default)]
struct Block {
    /// `16·parent + code` for each nibble and path, `[nibbles, capacity]`.
    links: Vec<u16>,
    /// For each path at the block's end, which it was at its start.
    origins: Vec<u16>,
}

/// Memory that the paths of all rows take turns in.
#[derive(Debug)]
pub(super) struct Workspace {
    next: Vec<Lanes>,
    energies: Vec<i32>,
    costs: Vec<PerPattern>,
    ways: Ways,
}

impl Workspace {
    pub(super) fn new(Width { capacity, .. }: Width) -> Self {
        Self {
            next: vec![Lanes::ZERO; capacity],
            energies: vec![0; capacity],
            costs: vec![PerPattern([0; PATTERNS]); capacity],
            ways: Ways::new(capacity),
        }
    }
}

/// The first gap: the error of some weights at two bits.
const FIRST_GAP: i32 = 1 << 18;

impl Paths {
    pub(super) fn new(width: Width) -> Self {
        Self {
            width,
            count: 0,
            residuals: vec![Lanes::ZERO; width.capacity],
            costs: vec![0; width.capacity],
            gap: FIRST_GAP,
            open: VecDeque::new(),
            spare: Vec::new(),
        }
    }

    /// One path that has chosen nothing: all columns lack their targets.
    pub(super) fn start(&mut self, targets: &[i16; REACH]) {
        self.count = 1;
        self.residuals[0] = Lanes(*targets);
        self.costs[0] = 0;
        self.gap = FIRST_GAP;
        self.spare.extend(self.open.drain(..));
    }

    /// Adds to the residuals of path `p`, by its place, what `change(p)` says.
    pub(super) fn correct<'a>(&mut self, change: impl Fn(usize) -> &'a Lanes) {
        for (path, lanes) in self.residuals[..self.count].iter_mut().enumerate() {
            for (value, change) in lanes.0.iter_mut().zip(&change(path).0) {
                *value = value.saturating_add(*change);
            }
        }
    }

    /// Goes on by a block of `steps`, one nibble each. `incoming` are the targets of the columns that come into reach.
    pub(super) fn advance(&mut self, simd: Simd, steps: &[Step], mut incoming: &[i16], work: &mut Workspace) {
        let Width { beam, capacity } = self.width;
        let mut block = self.spare.pop().unwrap_or_default();
        block.links.resize(steps.len() * capacity, 0);
        let mut least = 0;
        for (step, links) in steps.iter().zip(block.links.chunks_exact_mut(capacity)) {
            let n = self.count;
            let residuals = &mut self.residuals[..n];
            let (energies, costs) = (&mut work.energies[..n], &mut work.costs[..n]);
            beam::enter(simd, step, residuals, &self.costs[..n], least, energies);
            least = beam::costs(simd, step, residuals, energies, costs);
            let limit = beam::limit(simd, costs, beam, least, &mut self.gap);
            self.count = beam::choose(simd, costs, limit, &mut work.ways);
            let n = self.count;
            let (now, later) = incoming.split_at(step.hop);
            incoming = later;
            let mut last = Lanes::ZERO;
            last.0[REACH - step.hop..].copy_from_slice(now);
            let chosen = &work.ways.links[..n];
            links[..n].copy_from_slice(chosen);
            let left = (&mut work.next[..n], &mut self.costs[..n]);
            beam::extend(simd, step, residuals, (chosen, costs), &last, left);
            std::mem::swap(&mut self.residuals, &mut work.next);
        }
        for cost in &mut self.costs[..self.count] {
            *cost = cost.wrapping_sub(least);
        }
        block.origins.clear();
        block.origins.extend(0..self.count as u16);
        for links in block.links.chunks_exact(capacity).rev() {
            for origin in &mut block.origins {
                *origin = links[usize::from(*origin)] / PATTERNS as u16;
            }
        }
        self.open.push_back(block);
    }

    /// For each path which it was before the last block.
    pub(super) fn origins(&self) -> &[u16] {
        self.open.back().map_or(&[], |block| &block.origins)
    }

    /// What each path has cost, less what all of them have.
    pub(super) fn costs(&self) -> &[i32] {
        &self.costs[..self.count]
    }

    /// The path that has cost least.
    pub(super) fn best(&self) -> usize {
        self.costs().iter().enumerate().min_by_key(|(_, cost)| **cost).map_or(0, |(path, _)| path)
    }

    /// The codes of path `path` in the last `blocks` of the open blocks.
    pub(super) fn trace(&self, mut path: usize, blocks: usize, codes: &mut Vec<u8>) {
        codes.clear();
        for block in self.open.iter().rev().take(blocks) {
            path = block.trace(path, self.width.capacity, codes);
        }
        codes.reverse();
    }

    /// Closes the oldest block and appends its codes, which are those of the best path; paths with others are dropped.
    pub(super) fn settle(&mut self, codes: &mut Vec<u8>) {
        let mut ancestors: Vec<u16> = (0..self.count as u16).collect();
        for block in self.open.iter().skip(1).rev() {
            for ancestor in &mut ancestors {
                *ancestor = block.origins[usize::from(*ancestor)];
            }
        }
        let chosen = ancestors[self.best()];
        let is_split = ancestors.iter().any(|ancestor| *ancestor != chosen);
        if is_split && let Some(last) = self.open.back_mut() {
            let links = last.links.len() - self.width.capacity;
            let mut kept = 0;
            for path in (0..self.count).filter(|path| ancestors[*path] == chosen) {
                self.residuals[kept] = self.residuals[path];
                self.costs[kept] = self.costs[path];
                last.links[links + kept] = last.links[links + path];
                last.origins[kept] = last.origins[path];
                kept += 1;
            }
            last.origins.truncate(kept);
            self.count = kept;
        }
        if let Some(block) = self.open.pop_front() {
            let first = codes.len();
            block.trace(usize::from(chosen), self.width.capacity, codes);
            codes[first..].reverse();
            self.spare.push(block);
        }
    }
}

impl Block {
    /// Appends the codes of what is path `path` at the block's end, the last first; returns which it was at its start.
    fn trace(&self, mut path: usize, capacity: usize, codes: &mut Vec<u8>) -> usize {
        for links in self.links.chunks_exact(capacity).rev() {
            let link = usize::from(links[path]);
            codes.push((link % PATTERNS) as u8);
            path = link / PATTERNS;
        }
        path
    }
}
