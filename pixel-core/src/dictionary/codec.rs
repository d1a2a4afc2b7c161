//! A codec over the patterns of a dictionary.

use super::store::PatternDictionary;
use crate::codec::{Codec, CodecSpec};
use crate::error::ConfigError;
use crate::matrix::Shape;

impl PatternDictionary {
    /// `spec` with as many stored patterns as this dictionary has of the shape of its tiles: what
    /// [`Encoder::with_dictionary`](crate::Encoder::with_dictionary) codes by. The patterns are stored with every
    /// weight, two bytes a value, and stand before the computed ones.
    ///
    /// # Errors
    /// [`ConfigError::Dictionary`] for a codec that stores no patterns, or if there are none of that shape;
    /// [`ConfigError`] if there are more than the codec takes, half of what its terms choose from.
    pub fn codec(&self, spec: &CodecSpec) -> Result<CodecSpec, ConfigError> {
        // A weight that is no narrower than a tile.
        let large = Shape::new(1 << 12, 1 << 12).expect("not empty");
        let shape = spec.clone().with_option("learned", 1).build().ok().and_then(|codec| codec.pattern_shape(large));
        let shape = shape.ok_or_else(|| ConfigError::Dictionary {
            codec: spec.codec.clone(),
            message: "it stores no patterns; `matching` does".into(),
        })?;
        let count = self.ids(shape).len();
        if count == 0 {
            let message = format!("the dictionary has no pattern of its tiles, {shape}");
            return Err(ConfigError::Dictionary { codec: spec.codec.clone(), message });
        }
        let spec = spec.clone().with_option("learned", u32::try_from(count).unwrap_or(u32::MAX));
        spec.build()?;
        Ok(spec)
    }

    /// The codec of a weight of `shape`.
    ///
    /// # Errors
    /// [`ConfigError`] if the codec cannot be built, or takes other patterns than there are.
    pub(crate) fn build(&self, spec: &CodecSpec, shape: Shape) -> Result<Box<dyn Codec>, ConfigError> {
        let codec = spec.build()?;
        let refuse = |message: String| Err(ConfigError::Dictionary { codec: spec.codec.clone(), message });
        let Some(tile) = codec.pattern_shape(shape) else {
            return refuse("it stores no patterns; `matching` does, as many as its option `learned` says".into());
        };
        let learned = spec.options.get("learned").map_or(0, |&count| count as usize);
        let ids = self.ids(tile);
        if ids.len() < learned {
            return refuse(format!("the dictionary has {} patterns of its tiles, {tile}, of {learned}", ids.len()));
        }
        let mut patterns = Vec::with_capacity(learned * tile.num_weights());
        for id in &ids[..learned] {
            patterns.extend_from_slice(self.get(*id).expect("an id of the dictionary's own").as_slice());
        }
        Ok(codec.with_patterns(patterns).expect("it stores patterns"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::patterns::PatternKind;
    use crate::{CodingSpec, Encoder, Matrix};

    fn tile() -> Shape {
        Shape::new(8, 8).unwrap()
    }

    /// 24 patterns, of which every tile of the weight is one, times a factor.
    fn planted() -> (PatternDictionary, Matrix) {
        let mut dictionary = PatternDictionary::default();
        let patterns: Vec<Matrix> = (0..24).map(|seed| Matrix::random(tile(), 100 + seed)).collect();
        for pattern in &patterns {
            dictionary.add(pattern.as_ref(), PatternKind::Learned).unwrap();
        }
        let shape = Shape::new(64, 96).unwrap();
        let mut weight = Matrix::zeros(shape);
        for (at, value) in weight.as_mut_slice().iter_mut().enumerate() {
            let (row, col) = (at / 96, at % 96);
            let pattern = &patterns[(row / 8 * 12 + col / 8) * 7 % 24];
            *value = pattern.as_slice()[row % 8 * 8 + col % 8];
        }
        (dictionary, weight)
    }

    #[test]
    fn a_weight_made_of_the_patterns_is_coded_by_them() {
        let (dictionary, weight) = planted();
        let spec = CodingSpec::new(dictionary.codec(&"matching:1".parse().unwrap()).unwrap());
        let error = |encoder: Encoder<'_>| {
            let (packed, outcome) = encoder.encode(weight.clone()).unwrap();
            let again = crate::math::metrics::ErrorSums::between(weight.as_slice(), packed.synthesize().as_slice());
            assert!((again.relative_mse() - outcome.weight.relative_mse()).abs() < 1e-4);
            outcome.weight.relative_mse()
        };
        let own = error(Encoder::new(&spec).with_dictionary(&dictionary));
        let plain = CodingSpec::new("matching:1".parse().unwrap());
        let computed = error(Encoder::new(&plain));
        assert!(own < 0.1 && own < 0.3 * computed, "{own} with its patterns, {computed} with computed ones");
    }

    #[test]
    fn what_does_not_go_together_is_told() {
        let (dictionary, weight) = planted();
        let message = |spec: &str| dictionary.codec(&spec.parse().unwrap()).unwrap_err().to_string();
        assert!(
            message("trellis:2").contains("trellis stores no patterns")
                || message("trellis:2").contains("stores no patterns")
        );
        assert!(message("matching:2:tile=4").contains("no pattern of its tiles, 4×4"));
        assert!(message("matching:2:patterns=4").contains("learned = 24 is outside 0 to 8"));
        let encode = |spec: &str| {
            let spec = CodingSpec::new(spec.parse().unwrap());
            Encoder::new(&spec).with_dictionary(&dictionary).encode(weight.clone()).unwrap_err().to_string()
        };
        assert!(encode("matching:2:learned=25").contains("has 24 patterns of its tiles, 8×8, of 25"));
        assert!(encode("matching:2").contains("stores no patterns"));
        assert!(encode("uniform:4").contains("stores no patterns"));
    }
}
