//! Eight-bit floats as f32.

/// An eight-bit float of the Open Compute Project: a sign, an exponent, a mantissa.
///
/// Source: *OCP 8-bit Floating Point Specification* (2023); Micikevicius et al., *FP8 formats for deep learning*
/// (2022).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Float8 {
    /// Four bits of exponent, three of mantissa; the largest number is 448, there is no infinity.
    E4M3,
    /// Five bits of exponent, two of mantissa, as in F16.
    E5M2,
}

impl Float8 {
    /// The values of all bytes.
    pub(super) fn table(self) -> [f32; 256] {
        std::array::from_fn(|byte| self.value(byte as u8))
    }

    fn value(self, byte: u8) -> f32 {
        let sign = if byte & 0x80 == 0 { 1.0 } else { -1.0 };
        let (mantissa_bits, bias, largest) = match self {
            Self::E4M3 => (3, 7, 15),
            Self::E5M2 => (2, 15, 31),
        };
        let (exponent, mantissa) = (i32::from(byte & 0x7f) >> mantissa_bits, byte & ((1 << mantissa_bits) - 1));
        let fraction = f32::from(mantissa) / (1 << mantissa_bits) as f32;
        match (self, exponent, mantissa) {
            (Self::E4M3, _, 7) if exponent == largest => f32::NAN,
            (Self::E5M2, _, 0) if exponent == largest => sign * f32::INFINITY,
            (Self::E5M2, ..) if exponent == largest => f32::NAN,
            // Subnormal numbers have the exponent of the smallest normal ones, and no leading one.
            (_, 0, _) => sign * fraction * 2f32.powi(1 - bias),
            _ => sign * (1.0 + fraction) * 2f32.powi(exponent - bias),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use half::f16;

    /// E5M2 is the upper byte of an F16.
    #[test]
    fn every_e5m2_is_the_f16_that_begins_with_it() {
        for (byte, value) in Float8::E5M2.table().into_iter().enumerate() {
            let expected = f16::from_bits((byte as u16) << 8).to_f32();
            assert!(value == expected || value.is_nan() && expected.is_nan(), "{byte:#04x}: {value} {expected}");
        }
    }

    /// Values from the specification's table.
    #[test]
    fn e4m3_has_the_values_of_the_specification() {
        let table = Float8::E4M3.table();
        for (byte, value) in [
            (0x00, 0.0),
            (0x01, 2f32.powi(-9)),
            (0x07, 0.875 * 2f32.powi(-6)),
            (0x08, 2f32.powi(-6)),
            (0x38, 1.0),
            (0x7e, 448.0),
            (0xb8, -1.0),
            (0xfe, -448.0),
        ] {
            assert_eq!(table[byte], value, "{byte:#04x}");
        }
        assert!(table[0x7f].is_nan() && table[0xff].is_nan());
        let finite = table[..0x7f].windows(2).all(|pair| pair[0] < pair[1]);
        assert!(finite, "ascending");
    }
}
