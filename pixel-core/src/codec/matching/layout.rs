//! Which bits a tile is made of.

use crate::codec::{Options, read_bits, write_bits};
use crate::error::ConfigError;
use crate::matrix::{Shape, TileGrid, TileShape};

/// Patterns that are kept in memory, in values: 64 MB.
const MAX_DICTIONARY: usize = 1 << 24;
/// The largest tile that stands for a whole matrix, so that at least 64 patterns fit.
const MAX_WHOLE: usize = 1 << 18;
/// Terms of a whole matrix. Its patterns explain about 1/tile_len each: more only costs time.
const MAX_WHOLE_TERMS: usize = 256;
/// The gain has half-octave steps at least …
const MIN_GAIN_BITS: u32 = 4;
/// … and steps of 2 % at most, on eight octaves.
const MAX_GAIN_BITS: u32 = 8;

/// The requested options.
#[derive(Debug, Clone, Copy)]
pub(super) struct Parameters {
    bits: f64,
    tile: usize,
    index_bits: u32,
    scale_bits: u32,
    learned: usize,
    pub(super) beam: usize,
}

impl Parameters {
    pub(super) fn new(bits: f64, options: &Options) -> Result<Self, ConfigError> {
        let option = |name: &str| options.get(name).copied().unwrap_or_default();
        let parameters = Self {
            bits,
            tile: option("tile") as usize,
            index_bits: option("patterns"),
            scale_bits: option("scale_bits"),
            learned: option("learned") as usize,
            beam: option("beam").max(1) as usize,
        };
        let (tile, needed) = (parameters.tile, MIN_GAIN_BITS + parameters.scale_bits.max(1) + 1);
        let budget = (bits * (tile * tile) as f64) as u32;
        if tile > 0 && budget < needed {
            return Err(ConfigError::Tile { tile, bits, available: budget, needed });
        }
        let half = 1usize << (parameters.index_bits - 1);
        // Half of the patterns at most.
        ConfigError::range("learned", parameters.learned, 0..=half)?;
        Ok(parameters)
    }

    fn tile(&self, shape: Shape) -> TileShape {
        if self.tile == 0 { whole(shape) } else { clipped(self.tile, shape) }
    }
}

/// A square tile; where the matrix is narrower or lower than the tile, the other side grows to keep the number of
/// weights, so that a vector still has tiles worth a term.
fn clipped(side: usize, shape: Shape) -> TileShape {
    let (m, n) = (shape.d_output(), shape.d_input());
    let rows = if n < side { side * side / n } else { side };
    let cols = if m < side { side * side / m } else { side };
    TileShape { rows: rows.min(m), cols: cols.min(n) }
}

fn whole(shape: Shape) -> TileShape {
    let mut tile = TileShape { rows: shape.d_output(), cols: shape.d_input() };
    while tile.len() > MAX_WHOLE {
        let side = if tile.rows > tile.cols { &mut tile.rows } else { &mut tile.cols };
        *side = side.div_ceil(2);
    }
    tile
}

/// The bits of every tile of a weight.
///
/// With `budget` = ⌊bits · tile_len⌋: `index_bits` from the option, less where a single term would not fit or the
/// dictionary not into memory; `terms` = ⌊(budget − 4) / (index_bits + scale_bits)⌋, at least 1; `gain_bits` the rest
/// of the budget, 4 to 8. Only a weight smaller than a tile can exceed its budget.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Layout {
    pub(super) grid: TileGrid,
    pub(super) index_bits: u32,
    pub(super) scale_bits: u32,
    pub(super) gain_bits: u32,
    pub(super) terms: usize,
    /// Parts of the dictionary; term k picks from part k mod parts.
    pub(super) parts: usize,
    pub(super) learned: usize,
}

impl Layout {
    pub(super) fn new(parameters: &Parameters, shape: Shape) -> Self {
        let grid = TileGrid { shape, tile: parameters.tile(shape) };
        let tile_len = grid.tile.len();
        let is_whole = parameters.tile == 0;
        let budget = (parameters.bits * tile_len as f64).min(f64::from(u32::MAX)) as u32;
        let scale_bits = match parameters.scale_bits {
            0 if is_whole => 5,
            bits => bits.max(1),
        };
        let fit = (MAX_DICTIONARY / tile_len).max(2).ilog2();
        let single = budget.saturating_sub(MIN_GAIN_BITS + scale_bits).max(1);
        let index_bits = parameters.index_bits.min(fit).min(single);
        let width = index_bits + scale_bits;
        let most = if is_whole { MAX_WHOLE_TERMS } else { usize::MAX };
        let terms = ((budget.saturating_sub(MIN_GAIN_BITS) / width) as usize).clamp(1, most);
        let used = u32::try_from(terms).map_or(u32::MAX, |terms| terms.saturating_mul(width));
        let gain_bits = budget.saturating_sub(used).clamp(MIN_GAIN_BITS, MAX_GAIN_BITS);
        let parts = (MAX_DICTIONARY / (tile_len << index_bits)).clamp(1, terms);
        let learned = parameters.learned.min(1 << (index_bits - 1));
        Self { grid, index_bits, scale_bits, gain_bits, terms, parts, learned }
    }

    /// Patterns of a part; the one of index 0 is zero: no pattern.
    pub(super) const fn patterns(&self) -> usize {
        1 << self.index_bits
    }

    /// The pattern that a term points at.
    pub(super) const fn index(&self, term: u32) -> usize {
        term as usize & (self.patterns() - 1)
    }

    /// Bits of a term.
    pub(super) const fn width(&self) -> u32 {
        self.index_bits + self.scale_bits
    }

    pub(super) const fn tile_bits(&self) -> usize {
        self.gain_bits as usize + self.terms * self.width() as usize
    }

    /// Bits of a tile row.
    pub(super) const fn band_bits(&self) -> usize {
        self.grid.tile_cols() * self.tile_bits()
    }

    /// Words of a tile row.
    pub(super) const fn words_per_band(&self) -> usize {
        self.band_bits().div_ceil(32)
    }

    /// Writes a tile into the zeros of its tile row.
    pub(super) fn write(&self, words: &mut [u32], tile_col: usize, gain: u32, terms: &[u32]) {
        let offset = tile_col * self.tile_bits();
        write_bits(words, offset, self.gain_bits, gain);
        let mut offset = offset + self.gain_bits as usize;
        for term in terms {
            write_bits(words, offset, self.width(), *term);
            offset += self.width() as usize;
        }
    }

    /// Reads a tile's terms and returns its gain.
    pub(super) fn read(&self, words: &[u32], tile_col: usize, terms: &mut [u32]) -> u32 {
        let start = tile_col * self.tile_bits();
        let mut offset = start + self.gain_bits as usize;
        for term in terms {
            *term = read_bits(words, offset, self.width());
            offset += self.width() as usize;
        }
        read_bits(words, start, self.gain_bits)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layout(bits: f64, options: &[(&str, u32)], shape: (usize, usize)) -> Layout {
        let mut all: Options = crate::codec::matching::OPTIONS.iter().map(|o| (o.name.into(), o.default)).collect();
        all.extend(options.iter().map(|(name, value)| ((*name).into(), *value)));
        Layout::new(&Parameters::new(bits, &all).unwrap(), Shape::new(shape.0, shape.1).unwrap())
    }

    #[test]
    fn a_tile_of_64_weights_spends_its_budget() {
        for (bits, terms, gain_bits) in [(1.0, 6, 4), (1.5, 9, 6), (2.0, 12, 8), (4.0, 25, 6)] {
            let layout = layout(bits, &[], (16, 24));
            assert_eq!((layout.terms, layout.gain_bits, layout.index_bits), (terms, gain_bits, 9), "{bits}");
            assert_eq!(layout.tile_bits(), (64.0 * bits) as usize);
            assert_eq!(layout.words_per_band(), (3.0 * 2.0 * bits) as usize);
        }
    }

    #[test]
    fn a_vector_has_tiles_as_long_as_a_matrix() {
        let tile = |shape| layout(1.0, &[], shape).grid.tile;
        assert_eq!(tile((1, 500)), TileShape { rows: 1, cols: 64 });
        assert_eq!(tile((500, 1)), TileShape { rows: 64, cols: 1 });
        assert_eq!(tile((3, 5)), TileShape { rows: 3, cols: 5 });
        assert_eq!(tile((5, 100)), TileShape { rows: 5, cols: 12 });
    }

    #[test]
    fn a_whole_matrix_is_halved_until_its_patterns_fit() {
        let small = layout(1.0, &[("tile", 0)], (100, 300));
        assert_eq!(small.grid.tile, TileShape { rows: 100, cols: 300 });
        let large = layout(1.0, &[("tile", 0)], (1 << 20, 1 << 10));
        assert!(large.grid.tile.len() <= MAX_WHOLE);
        assert!((large.parts * large.patterns()) * large.grid.tile.len() <= MAX_DICTIONARY);
        assert_eq!(large.index_bits, 6);
    }

    #[test]
    fn no_grid_of_options_exceeds_its_rate() {
        for bits in [0.5, 1.0, 1.5, 2.0, 2.5, 3.0, 4.0] {
            for (tile, patterns, scale_bits) in [(4, 9, 0), (4, 1, 2), (8, 14, 6), (16, 9, 0), (64, 5, 3), (0, 9, 0)] {
                let options = [("tile", tile), ("patterns", patterns), ("scale_bits", scale_bits)];
                let layout = layout(bits, &options, (64, 64));
                let stored = layout.tile_bits() as f64 / layout.grid.tile.len() as f64;
                assert!(stored <= bits, "{bits} {options:?}: {stored}");
            }
        }
    }

    #[test]
    fn a_tile_without_room_for_a_term_is_refused() {
        let options: Options = [("tile", 2), ("patterns", 9)].map(|(name, value)| (name.to_owned(), value)).into();
        let message = Parameters::new(1.0, &options).unwrap_err().to_string();
        assert_eq!(message, "tile = 2 holds 4 bits at 1 bits per weight, a term takes 6");
    }
}
