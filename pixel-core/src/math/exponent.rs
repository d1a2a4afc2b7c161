//! The power of two of a packed weight.

use crate::error::FormatError;

/// The exponent of the power of two by which a packed weight is multiplied. `2^exponent` and its inverse are normal f32
/// numbers, so that multiplying by either is exact up to the ends of f32's range.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Exponent(i32);

impl Exponent {
    /// The least exponent, −126: `2^126` is the inverse of the least normal number.
    pub const MIN: Self = Self(-126);
    /// The greatest exponent, 126: `2^−126` is the least normal number.
    pub const MAX: Self = Self(126);
    /// Exponent 0: nothing is multiplied.
    pub const ZERO: Self = Self(0);

    /// The exponent `value`.
    ///
    /// # Errors
    /// [`FormatError::Range`] outside −126 to 126.
    ///
    /// # Example
    /// ```
    /// use pixel_core::math::Exponent;
    /// assert_eq!(Exponent::new(-3)?.unit(), 0.125);
    /// assert!(Exponent::new(127).is_err());
    /// # Ok::<(), pixel_core::FormatError>(())
    /// ```
    pub fn new(value: i32) -> Result<Self, FormatError> {
        if (Self::MIN.0..=Self::MAX.0).contains(&value) {
            return Ok(Self(value));
        }
        let (low, high) = (Self::MIN.0.into(), Self::MAX.0.into());
        Err(FormatError::Range { field: "exponent", value: value.into(), low, high })
    }

    /// The greatest exponent with `2^exponent ≤ value`, within the range; 0 for 0.
    pub(crate) fn below(value: f64) -> Self {
        if value == 0.0 {
            return Self::ZERO;
        }
        // The exponent field of a normal f64 is the floor of its logarithm.
        let exponent = (value.to_bits() >> 52) as i32 - 1023;
        Self(exponent.clamp(Self::MIN.0, Self::MAX.0))
    }

    /// The exponent as a number.
    pub const fn get(self) -> i32 {
        self.0
    }

    /// `2^exponent`.
    pub const fn unit(self) -> f32 {
        f32::from_bits(((self.0 + 127) as u32) << 23)
    }

    /// `2^−exponent`.
    pub const fn inverse(self) -> f32 {
        Self(-self.0).unit()
    }
}

impl std::fmt::Display for Exponent {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn units_are_powers_of_two_and_their_inverses() {
        for value in -126..=126 {
            let exponent = Exponent::new(value).unwrap();
            assert_eq!(exponent.unit(), 2f32.powi(value), "{value}");
            assert_eq!(exponent.unit() * exponent.inverse(), 1.0, "{value}");
            assert_eq!(Exponent::below(f64::from(exponent.unit()) * 1.5), exponent);
        }
        assert_eq!((Exponent::below(0.0), Exponent::below(f64::MAX)), (Exponent::ZERO, Exponent::MAX));
    }

    #[test]
    fn what_is_outside_the_range_is_named() {
        let error = Exponent::new(127).unwrap_err().to_string();
        assert_eq!(error, "field \"exponent\" = 127 is outside -126..=126");
    }
}
