//! The request for a codec: name, rate, options.

use super::{Codec, CodecFamily, family};
use crate::error::ConfigError;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

/// The options of a codec, every one present and within its range.
pub type Options = BTreeMap<String, u32>;

/// One option of a codec family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OptionSpec {
    /// The name in recipes, archives and on the command line.
    pub name: &'static str,
    /// The value if none is given.
    pub default: u32,
    /// The least value allowed.
    pub min: u32,
    /// The greatest value allowed.
    pub max: u32,
    /// Whether it steers the search alone, so that codes read the same whatever its value.
    pub search_only: bool,
    /// What it does, in one sentence.
    pub help: &'static str,
}

/// A request for a codec: its name, its rate and the options that differ from the defaults.
///
/// In text: `trellis:2`, `trellis:2:window=16`.
///
/// # Example
/// ```
/// use pixel_core::CodecSpec;
/// let spec: CodecSpec = "trellis:2:window=16".parse()?;
/// assert_eq!((spec.codec.as_str(), spec.bits), ("trellis", 2.0));
/// assert_eq!(spec.to_string(), "trellis:2:window=16");
/// assert!("trellis:7".parse::<CodecSpec>()?.build().is_err());
/// # Ok::<(), pixel_core::ConfigError>(())
/// ```
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CodecSpec {
    /// The name of the family.
    pub codec: String,
    /// The rate in bits per weight, indices alone.
    pub bits: f64,
    /// Options that differ from their defaults.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub options: BTreeMap<String, u32>,
}

impl CodecSpec {
    /// Codec `codec` at `bits` bits per weight, with default options.
    pub fn new(codec: &str, bits: f64) -> Self {
        Self { codec: codec.to_owned(), bits, options: BTreeMap::new() }
    }

    /// Sets an option.
    pub fn with_option(mut self, name: &str, value: u32) -> Self {
        self.options.insert(name.to_owned(), value);
        self
    }

    /// The requested family.
    ///
    /// # Errors
    /// [`ConfigError::UnknownCodec`].
    pub fn family(&self) -> Result<&'static dyn CodecFamily, ConfigError> {
        family(&self.codec)
    }

    /// Checks the request and builds the codec.
    ///
    /// # Errors
    /// [`ConfigError`] for an unknown name, rate or option, or an option outside its range.
    pub fn build(&self) -> Result<Box<dyn Codec>, ConfigError> {
        let family = self.family()?;
        if !family.rates().contains(&self.bits) {
            return Err(ConfigError::Rate {
                codec: family.name(),
                bits: self.bits,
                rates: join(family.rates().iter()),
            });
        }
        family.build(self.bits, &self.resolve(family)?)
    }

    /// The same request with every option that decoding depends on, those at their defaults too, and no other: two
    /// codecs read each other's codes if these are equal.
    ///
    /// # Errors
    /// [`ConfigError`] for an unknown name or option, or an option outside its range.
    ///
    /// # Example
    /// ```
    /// use pixel_core::CodecSpec;
    /// let spec: CodecSpec = "trellis:2:beam=4".parse()?;
    /// assert_eq!(spec.decoding()?, "trellis:2:window=16".parse()?);
    /// # Ok::<(), pixel_core::ConfigError>(())
    /// ```
    pub fn decoding(&self) -> Result<Self, ConfigError> {
        let family = self.family()?;
        let mut options = self.resolve(family)?;
        family.options().iter().filter(|option| option.search_only).for_each(|option| {
            options.remove(option.name);
        });
        Ok(Self { codec: self.codec.clone(), bits: self.bits, options })
    }

    /// All options of the family, those not given at their defaults.
    fn resolve(&self, family: &dyn CodecFamily) -> Result<Options, ConfigError> {
        let known = family.options();
        let mut resolved: Options = known.iter().map(|o| (o.name.to_owned(), o.default)).collect();
        for (name, &value) in &self.options {
            let Some(option) = known.iter().find(|o| o.name == name) else {
                return Err(ConfigError::UnknownOption {
                    codec: family.name(),
                    option: name.clone(),
                    known: if known.is_empty() { "none".into() } else { join(known.iter().map(|o| o.name)) },
                });
            };
            ConfigError::range(option.name, value, option.min..=option.max)?;
            resolved.insert(name.clone(), value);
        }
        Ok(resolved)
    }
}

fn join<T: ToString>(items: impl Iterator<Item = T>) -> String {
    items.map(|item| item.to_string()).collect::<Vec<_>>().join(", ")
}

impl std::fmt::Display for CodecSpec {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.codec, self.bits)?;
        self.options.iter().try_for_each(|(name, value)| write!(f, ":{name}={value}"))
    }
}

impl std::str::FromStr for CodecSpec {
    type Err = ConfigError;

    fn from_str(text: &str) -> Result<Self, ConfigError> {
        let parse_error =
            |message: &str| ConfigError::Parse { what: format!("codec \"{text}\""), message: message.into() };
        let mut parts = text.split(':');
        let (Some(codec), Some(bits)) = (parts.next(), parts.next()) else {
            return Err(parse_error("expected NAME:BITS or NAME:BITS:OPTION=VALUE"));
        };
        let mut spec = Self::new(codec, bits.parse().map_err(|_| parse_error("the bits are not a number"))?);
        for part in parts {
            let (name, value) = part.split_once('=').ok_or_else(|| parse_error("an option is written NAME=VALUE"))?;
            let value = value.parse().map_err(|_| parse_error("an option's value is a whole number"))?;
            if spec.options.insert(name.to_owned(), value).is_some() {
                return Err(parse_error(&format!("{name} is given twice")));
            }
        }
        Ok(spec)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_builds_at_every_rate_with_defaults() {
        for family in super::super::FAMILIES {
            for &bits in family.rates() {
                CodecSpec::new(family.name(), bits).build().unwrap();
            }
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let message = |text: &str| match text.parse::<CodecSpec>().and_then(|spec| spec.build()) {
            Ok(codec) => panic!("{text} was accepted as {codec:?}"),
            Err(error) => error.to_string(),
        };
        assert!(message("treillis:2").contains("\"treillis\"; known: trellis, additive"));
        assert!(message("trellis:7").contains("no rate of 7 bits"));
        assert!(message("trellis:2:windows=12").contains("\"windows\"; it has window"));
        assert!(message("trellis:2:window=40").contains("window = 40 is outside 8 to 16"));
        assert!(message("trellis:2:window=12:window=10").contains("window is given twice"));
        assert!(message("trellis").contains("expected NAME:BITS"));
    }
}
