//! Finding the terms of a tile: matching pursuit that keeps the best few sums at once.

use super::layout::Layout;
use super::patterns::{Patterns, Tables, halvings};
use crate::patterns::{dot, norm};

/// Extra gain over the share that the first pick explains on average: picks vary, and a scale that is too small leaves
/// a larger residual.
const GAIN_FACTOR: f64 = 1.05;
/// A first match this much stronger than a Gaussian tile's is structure: the gain then follows the match.
const STRUCTURE: f32 = 1.5;

/// Scratch and tables to encode tiles one after another.
pub(super) struct Search<'a> {
    layout: &'a Layout,
    tables: &'a Tables,
    patterns: &'a Patterns,
    beam: usize,
    /// Inner products `[beam, patterns]`.
    matches: Vec<f32>,
    learned: Vec<f32>,
    sums: Sums,
    next: Sums,
    candidates: Vec<Candidate>,
    decoded: Vec<f32>,
}

/// The partial sums that are kept: the residual of each, and its terms.
#[derive(Default)]
struct Sums {
    /// `[count, tile_len]`.
    residuals: Vec<f32>,
    errors: Vec<f32>,
    /// `[count, terms]`.
    terms: Vec<u32>,
}

impl Sums {
    fn clear(&mut self) {
        self.residuals.clear();
        self.errors.clear();
        self.terms.clear();
    }
}

/// One more pattern on one of the sums.
#[derive(Clone, Copy)]
struct Candidate {
    error: f32,
    sum: usize,
    term: u32,
    scale: f32,
}

impl<'a> Search<'a> {
    pub(super) fn new(layout: &'a Layout, tables: &'a Tables, patterns: &'a Patterns, beam: usize) -> Self {
        // A whole matrix is one long tile: keeping many sums of it costs memory and gains nothing.
        let beam = if layout.grid.tile.len() > 1 << 13 { 1 } else { beam };
        Self {
            layout,
            tables,
            patterns,
            beam,
            matches: vec![0.0; beam * layout.patterns()],
            learned: Vec::new(),
            sums: Sums::default(),
            next: Sums::default(),
            candidates: Vec::new(),
            decoded: vec![0.0; layout.grid.tile.len()],
        }
    }

    /// The gain and the terms of `tile`.
    pub(super) fn encode(&mut self, tile: &[f32]) -> (u32, Vec<u32>) {
        let usual = self.nearest_gain(GAIN_FACTOR * Tables::first_share(self.layout) * norm(tile));
        let strongest = self.strongest_match(tile);
        let (mut gain, mut terms) = (usual, self.pursue(tile, usual));
        let mut error = self.error(tile, gain, &terms);
        if strongest > STRUCTURE * self.tables.gains[usual as usize] {
            let other = self.nearest_gain(f64::from(strongest));
            let others = self.pursue(tile, other);
            let other_error = self.error(tile, other, &others);
            if other_error < error {
                (gain, terms, error) = (other, others, other_error);
            }
        }
        let refit = self.refit_gain(tile, gain, &terms);
        if refit != gain && self.error(tile, refit, &terms) < error {
            gain = refit;
        }
        (gain, terms)
    }

    fn nearest_gain(&self, wanted: f64) -> u32 {
        let above = self.tables.gains.partition_point(|gain| f64::from(*gain) < wanted);
        let last = self.tables.gains.len() - 1;
        if above == 0 || above > last {
            return above.min(last) as u32;
        }
        // Nearest on the logarithmic scale.
        let middle = f64::from(self.tables.gains[above]) * f64::from(self.tables.gains[above - 1]);
        (if wanted * wanted < middle { above - 1 } else { above }) as u32
    }

    fn strongest_match(&mut self, tile: &[f32]) -> f32 {
        let matches = &mut self.matches[..self.layout.patterns()];
        self.patterns.similarities(0, tile, &mut self.learned, matches);
        matches.iter().fold(0.0, |most, x| if x.abs() > most { x.abs() } else { most })
    }

    /// The squared error of `gain` and `terms` on the tile; writes the decoded tile to `self.decoded`.
    fn error(&mut self, tile: &[f32], gain: u32, terms: &[u32]) -> f64 {
        self.patterns.synthesize(self.layout, self.tables, gain, terms, &mut self.decoded);
        tile.iter().zip(&self.decoded).map(|(a, b)| f64::from(*a) - f64::from(*b)).map(|x| x * x).sum()
    }

    /// The gain that fits the terms best, by least squares.
    fn refit_gain(&mut self, tile: &[f32], gain: u32, terms: &[u32]) -> u32 {
        self.patterns.synthesize(self.layout, self.tables, gain, terms, &mut self.decoded);
        let fit = dot(tile, &self.decoded);
        let energy = dot(&self.decoded, &self.decoded);
        if fit > 0.0 { self.nearest_gain(f64::from(self.tables.gains[gain as usize]) * fit / energy) } else { gain }
    }

    /// Picks term after term, keeping the `beam` sums of least error.
    fn pursue(&mut self, tile: &[f32], gain: u32) -> Vec<u32> {
        self.sums.clear();
        self.sums.residuals.extend_from_slice(tile);
        self.sums.errors.push(dot(tile, tile) as f32);
        for k in 0..self.layout.terms {
            let top = self.tables.gains[gain as usize] * self.tables.ladder[k];
            self.find_candidates(k, top);
            self.extend_sums(k);
        }
        self.sums.terms[..self.layout.terms].to_vec()
    }

    /// Fills `candidates` with the best extensions by term `k`, whose scale is at most `top`, best first.
    fn find_candidates(&mut self, k: usize, top: f32) {
        let Self { layout, patterns, sums, matches, candidates, .. } = self;
        let count = layout.patterns();
        let matches = &mut matches[..sums.errors.len() * count];
        patterns.similarities(k, &sums.residuals, &mut self.learned, matches);
        candidates.clear();
        let levels = 1 << (layout.scale_bits - 1);
        let least = top * halvings(levels - 1) / 2.0;
        for (sum, (&error, matches)) in sums.errors.iter().zip(matches.chunks_exact(count)).enumerate() {
            keep(candidates, self.beam, Candidate { error, sum, term: 0, scale: 0.0 });
            let mut bound = least_match(candidates, self.beam, error, least);
            for (block, start) in matches.chunks(16).zip((0u32..).step_by(16)) {
                // Rarely true, and without a branch per pattern.
                if block.iter().fold(false, |any, x| any | (x.abs() > bound)) {
                    for (&found, index) in block.iter().zip(start..) {
                        if found.abs() > bound {
                            let (scale, code) = quantised(found, top, levels);
                            let error = error - scale * (2.0 * found - scale);
                            let term = index | code << layout.index_bits;
                            keep(candidates, self.beam, Candidate { error, sum, term, scale });
                            bound = least_match(candidates, self.beam, sums.errors[sum], least);
                        }
                    }
                }
            }
        }
    }

    /// Makes the candidates the new sums.
    fn extend_sums(&mut self, k: usize) {
        let Self { layout, patterns, sums, next, candidates, .. } = self;
        let len = layout.grid.tile.len();
        next.clear();
        for candidate in candidates.iter() {
            let index = layout.index(candidate.term);
            let residual = &sums.residuals[candidate.sum * len..][..len];
            let pattern = patterns.pattern(k, index);
            next.residuals.extend(residual.iter().zip(pattern).map(|(value, p)| value - candidate.scale * p));
            next.errors.push(candidate.error);
            next.terms.extend_from_slice(&sums.terms[candidate.sum * k..][..k]);
            next.terms.push(candidate.term);
        }
        std::mem::swap(sums, next);
    }
}

/// The match below which nothing more can enter: a scale s explains `s(2·match − s) ≤ match²`.
fn least_match(candidates: &[Candidate], beam: usize, error: f32, least: f32) -> f32 {
    match candidates.last() {
        Some(worst) if candidates.len() == beam && error > worst.error => (error - worst.error).sqrt().max(least),
        _ => least,
    }
}

/// Inserts into the sorted list of at most `beam`; equals stay in the order of insertion.
fn keep(candidates: &mut Vec<Candidate>, beam: usize, new: Candidate) {
    let place = candidates.partition_point(|old| old.error.total_cmp(&new.error).is_le());
    if place < beam {
        candidates.truncate(beam - 1);
        candidates.insert(place, new);
    }
}

/// The scale nearest to `found` among `±top · 2^−m`, m < levels, and its code: the sign, then m.
fn quantised(found: f32, top: f32, levels: u32) -> (f32, u32) {
    let mut m = 0;
    // The middle between a level and the next is ¾ of it.
    while m + 1 < levels && found.abs() < 0.75 * top * halvings(m) {
        m += 1;
    }
    let magnitude = top * halvings(m);
    if found < 0.0 { (-magnitude, m << 1 | 1) } else { (magnitude, m << 1) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::Options;
    use crate::codec::matching::layout::Parameters;
    use crate::matrix::Shape;
    use rand::SeedableRng;
    use rand_distr::{Distribution, StandardNormal};

    #[test]
    fn no_neighbouring_gain_fits_the_terms_better() {
        let options: Options = [("tile", 8), ("patterns", 7)].map(|(name, value)| (name.to_owned(), value)).into();
        let layout = Layout::new(&Parameters::new(2.0, &options).unwrap(), Shape::new(8, 8).unwrap());
        let universal = crate::codec::matching::Universal::of(&layout);
        let (tables, patterns) = (Tables::new(&layout), Patterns::new(universal, &layout, &[]));
        let mut search = Search::new(&layout, &tables, &patterns, 2);
        let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(4);
        for _ in 0..50 {
            let tile: Vec<f32> = (0..64).map(|_| StandardNormal.sample(&mut rng)).collect();
            let (gain, terms) = search.encode(&tile);
            let error = search.error(&tile, gain, &terms);
            for neighbour in [gain - 1, gain + 1] {
                assert!(error < 1.001 * search.error(&tile, neighbour, &terms), "{gain} {neighbour}");
            }
        }
    }

    #[test]
    fn a_scale_takes_the_nearest_level() {
        assert_eq!(quantised(0.8, 1.0, 4), (1.0, 0));
        assert_eq!(quantised(-0.7, 1.0, 4), (-0.5, 0b11));
        assert_eq!(quantised(0.01, 1.0, 4), (0.125, 0b110));
        assert_eq!(quantised(-0.01, 1.0, 1), (-1.0, 1));
    }
}
