//! Where the nibbles of `additive` and `lapped` lie, and which weights the pattern of each reaches.
//!
//! Both codecs add up patterns, each chosen by a nibble out of sixteen, and both store `M` nibbles for eight weights of
//! a row:
//!
//! ```text
//! ŵ[i] = s · Σ_t D_{t mod P}[c_t][i − p_t]      over the nibbles t with 0 ≤ i − p_t < S
//! ```
//!
//! They differ in the [windows](Windows): where that of nibble `t` begins, `p_t`, its length `S`, and after how many
//! nibbles the sub-dictionaries repeat, `P`.

mod layout;
mod stored;

pub use layout::{NibbleLayout, Windows};
pub(super) use stored::StoredRows;

/// Weights for which a row has [`NibbleLayout::per_eight`] nibbles.
pub const EIGHT: usize = 8;

/// Patterns in a sub-dictionary.
pub const PATTERNS: usize = 16;

/// Rows of a strip.
pub const STRIP: usize = 32;

/// Bytes that hold nibble `t` of all rows of a strip: the lower nibble of byte `i` is row `i`, the higher one row
/// `i + 16`.
pub const FIELD_BYTES: usize = STRIP / 2;

/// Fields that fill a register of 512 bits; a strip has a multiple of it.
pub const QUAD: usize = 4;

/// Nibble `m` of the codes of eight weights.
#[inline]
pub(super) const fn nibble(codes: u32, m: usize) -> usize {
    (codes >> (4 * m) & 15) as usize
}

#[cfg(test)]
mod tests;
