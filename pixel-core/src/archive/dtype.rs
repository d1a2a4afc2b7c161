//! Numbers of a checkpoint as `f32` and back.

use half::{bf16, f16};
use safetensors::Dtype;
use serde::{Deserialize, Serialize};

/// A type in which weights are stored densely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FloatType {
    /// IEEE 754 double precision; narrowed to f32 for coding.
    F64,
    /// IEEE 754 single precision.
    F32,
    /// IEEE 754 half precision.
    F16,
    /// The upper half of an F32.
    BF16,
}

impl FloatType {
    /// The float type that `dtype` is, if it is one.
    pub fn of(dtype: Dtype) -> Option<Self> {
        match dtype {
            Dtype::F64 => Some(Self::F64),
            Dtype::F32 => Some(Self::F32),
            Dtype::F16 => Some(Self::F16),
            Dtype::BF16 => Some(Self::BF16),
            _ => None,
        }
    }

    /// The type as safetensors spells it.
    pub const fn dtype(self) -> Dtype {
        match self {
            Self::F64 => Dtype::F64,
            Self::F32 => Dtype::F32,
            Self::F16 => Dtype::F16,
            Self::BF16 => Dtype::BF16,
        }
    }

    /// Bytes of one number.
    pub const fn size(self) -> usize {
        match self {
            Self::F64 => 8,
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    /// The largest finite number, or that of f32 where it is smaller: weights are f32 on the way.
    pub const fn max(self) -> f32 {
        match self {
            Self::F64 | Self::F32 => f32::MAX,
            Self::F16 => f16::MAX.to_f32_const(),
            Self::BF16 => bf16::MAX.to_f32_const(),
        }
    }

    /// Reads little-endian numbers into `out`.
    ///
    /// # Panics
    /// If `bytes` does not hold exactly `out.len()` numbers.
    pub fn read(self, bytes: &[u8], out: &mut [f32]) {
        assert_eq!(bytes.len(), out.len() * self.size(), "bytes of {self:?}");
        match self {
            Self::F64 => read_with(bytes, out, |b: [u8; 8]| f64::from_le_bytes(b) as f32),
            Self::F32 => read_with(bytes, out, f32::from_le_bytes),
            Self::F16 => read_with(bytes, out, |b: [u8; 2]| f16::from_le_bytes(b).to_f32()),
            Self::BF16 => read_with(bytes, out, |b: [u8; 2]| bf16::from_le_bytes(b).to_f32()),
        }
    }

    /// Appends `values` to `out` as little-endian numbers, rounded to nearest.
    pub fn write(self, values: &[f32], out: &mut Vec<u8>) {
        match self {
            Self::F64 => values.iter().for_each(|&v| out.extend(f64::from(v).to_le_bytes())),
            Self::F32 => values.iter().for_each(|&v| out.extend(v.to_le_bytes())),
            Self::F16 => values.iter().for_each(|&v| out.extend(f16::from_f32(v).to_le_bytes())),
            Self::BF16 => values.iter().for_each(|&v| out.extend(bf16::from_f32(v).to_le_bytes())),
        }
    }
}

fn read_with<const N: usize>(bytes: &[u8], out: &mut [f32], number: impl Fn([u8; N]) -> f32) {
    let (numbers, _) = bytes.as_chunks::<N>();
    out.iter_mut().zip(numbers).for_each(|(o, b)| *o = number(*b));
}

impl std::str::FromStr for FloatType {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.to_ascii_lowercase().as_str() {
            "f64" => Ok(Self::F64),
            "f32" => Ok(Self::F32),
            "f16" => Ok(Self::F16),
            "bf16" => Ok(Self::BF16),
            _ => Err(format!("\"{text}\" is none of f64, f32, f16, bf16")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_round_trip_through_every_type_that_holds_them() {
        let values = [0.0, 1.0, -2.5, 0.0078125];
        for float in [FloatType::F64, FloatType::F32, FloatType::F16, FloatType::BF16] {
            let mut bytes = Vec::new();
            float.write(&values, &mut bytes);
            let mut read = [9.0; 4];
            float.read(&bytes, &mut read);
            assert_eq!(read, values, "{float:?}");
        }
    }
}
