//! The shipped sub-dictionaries, trained once on Gaussian groups.
//!
//! A rate of `R` bits a weight has `M = 2R` sub-dictionaries. One set serves every row of every weight, because a
//! rotated row divided by its scale is Gaussian whatever the layer.
//!
//! Weights of patterns are bytes in units of [`STEP`], so that a sub-dictionary takes 128 bytes. They are exact in F16,
//! and so is a sum of eight in `f32`: a decoder may add the patterns in any order. Rounding to `STEP` changes the error
//! by less than .15 % at every rate, since the search then finds other codes that are as good.
//!
//! The tables are written by `train_additive` (in `pixel-bench`), and the head of each names its arguments. They are
//! part of the stored format: another table decodes old files to something else.

mod m2;
mod m3;
mod m4;
mod m5;
mod m6;
mod m8;

use super::{GROUP, PATTERNS, Patterns};

/// The patterns of a sub-dictionary in units of [`STEP`].
pub type SubDictionary = [[i8; GROUP]; PATTERNS];

/// The unit of a pattern's weights.
pub const STEP: f32 = 1.0 / 64.0;

/// The rates in bits per weight, half as many as sub-dictionaries.
pub const RATES: [f64; 6] = [1.0, 1.5, 2.0, 2.5, 3.0, 4.0];

/// The sub-dictionaries of rate `bits`, the one with the most energy first; `None` for a rate not in [`RATES`].
pub fn sub_dictionaries(bits: f64) -> Option<&'static [SubDictionary]> {
    let all: [&'static [SubDictionary]; 6] =
        [&m2::PATTERNS, &m3::PATTERNS, &m4::PATTERNS, &m5::PATTERNS, &m6::PATTERNS, &m8::PATTERNS];
    RATES.iter().position(|&rate| rate == bits).map(|i| all[i])
}

/// The weights of a sub-dictionary, `integer · STEP`, exactly.
pub fn to_weights(sub_dictionary: &SubDictionary) -> Patterns {
    sub_dictionary.map(|pattern| pattern.map(|weight| f32::from(weight) * STEP))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_the_first_sub_dictionaries_have_mean_zero_and_ever_less_energy() {
        for bits in RATES {
            let all = sub_dictionaries(bits).unwrap();
            assert_eq!(all.len() as f64, 2.0 * bits);
            let energy =
                |table: &SubDictionary| -> i32 { table.as_flattened().iter().map(|&w| i32::from(w).pow(2)).sum() };
            // Rounding may swap neighbours that are all but equal.
            let in_order = |a: &SubDictionary, b: &SubDictionary| f64::from(energy(a)) > 0.99 * f64::from(energy(b));
            assert!(all.is_sorted_by(in_order), "{bits} bits: {:?}", all.iter().map(energy).collect::<Vec<_>>());
            for (table, j) in all[1..].iter().flat_map(|table| (0..GROUP).map(move |j| (table, j))) {
                let sum: i32 = table.iter().map(|pattern| i32::from(pattern[j])).sum();
                // Each of 16 weights was rounded by at most a half.
                assert!(sum.abs() <= 8, "{bits} bits, weight {j}: {sum}");
            }
        }
    }
    #[test]
    fn the_tables_are_those_that_old_files_were_written_with() {
        let all = RATES.iter().flat_map(|&bits| sub_dictionaries(bits).unwrap()).flatten().flatten();
        let bytes: Vec<u8> = all.map(|weight| weight.cast_unsigned()).collect();
        assert_eq!(bytes.len(), 28 * PATTERNS * GROUP);
        assert_eq!(blake3::hash(&bytes).to_hex()[..16], *"8377cb85a483422f");
    }
}
