//! A faster search: coarse costs in the forward pass, a beam with exact costs in the traceback.
//!
//! The [exhaustive search](super::viterbi) spends its time on costs that the traceback hardly reads. Here the pass over
//! all states keeps 8-bit estimates, 64 states to a register: a pattern is known to one of at most 128 levels, and the
//! cost of a weight is a function of the distance in levels, 0 to 15. The traceback then follows not one path but the
//! `beam` best, which it ranks by their exact cost so far plus the estimate of what leads up to them; so it recovers
//! nearly all that the estimates lost.
//!
//! Four tiles go together, since their steps read the same tables. Everything is integers: all engines and any
//! grouping of tiles make the same choices.
//!
//! Sources: the estimates are the heuristic of an A* search (Hart, Nilsson and Raphael, 1968), the traceback is an M
//! algorithm (Anderson and Mohan, *Sequential coding algorithms*, 1984). An M algorithm alone, without estimates of the
//! rest, needs 1024 states for 1 % more error at 2 bits and 2 % at 3 and 4, and is then no faster than the exhaustive
//! search; with 256 states it loses 6, 10 and 8 %.

mod beam;
mod engine;
mod search;
mod tables;
#[cfg(target_arch = "x86_64")]
mod x86_64;

pub(super) use search::{CoarseSearch, search_bytes};
pub(super) use tables::CoarseTables;

/// States that a vector step handles together; tables are blocked by it.
const LANES: usize = 64;

/// Tiles that are searched together.
pub(super) const BATCH: usize = 4;

/// The most paths that the traceback follows.
pub(super) const MAX_BEAM: usize = 64;
