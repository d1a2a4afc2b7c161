//! The form that kernels read: one array of words, one of scales, one of values that the words select from.

use super::PatternSlices;
use super::arranged::Arranged;
use crate::codec::{CodecLayout, Codes, Stream, StreamSpec, StreamType};
use crate::encode::{COLUMNS, LowRank, LowRankSpec, VALUES};
use crate::error::FormatError;
use crate::packed::{PackedHeader, PackedWeight, ROW_SCALES};
use half::f16;

/// A packed weight as kernels read it:
///
/// ```text
/// W[r][c] = Σ_j (scales[r][j / group] · value(codes, dictionary)[r][j] + Σ_k up[r][k] · down[k][j]) · Q[c][j]
/// ```
///
/// The power of two of [`PackedHeader::exponent`] is part of the scales. Codes are constant; scales and dictionary may
/// be trained, and so may the factors of the low-rank part. Column `c` of `protected`, the `i`-th, is
/// `protected_values[:, i]` instead, which products take from the inputs before they are rotated.
///
/// # Example
/// ```
/// use pixel_core::synthesis::KernelForm;
/// use pixel_core::{MatrixRef, Shape, compress_weight};
/// let data: Vec<f32> = (0..64 * 32).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
/// let weight = MatrixRef::new(Shape::new(64, 32)?, &data)?;
/// let (packed, _) = compress_weight(weight, &"additive:2".parse()?, Some(1))?;
/// let form = KernelForm::new(&packed)?;
/// assert_eq!((form.codes.len(), form.scales.len(), form.dictionary.len()), (64 * 2, 64, 4 * 16 * 8));
/// assert_eq!(form.to_packed(packed.header())?.synthesize(), packed.synthesize());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, PartialEq)]
pub struct KernelForm {
    /// How the codes are read.
    pub layout: CodecLayout,
    /// The codes in the order of the layout, which is that of the file but for `additive` and `lapped`,
    /// `[layout.num_words()]`.
    pub codes: Vec<u32>,
    /// `[d_output, layout.scales_per_row()]`.
    pub scales: Vec<f32>,
    /// `[layout.dictionary_len()]`.
    pub dictionary: Vec<f32>,
    /// The protected columns, ascending, `[k]`; none for most weights.
    pub protected: Vec<u32>,
    /// Their weights, the power of two included, `[d_output, k]`.
    pub protected_values: Vec<f32>,
    /// The low-rank part in the basis of the rotation, the power of two included; none for most weights.
    pub low_rank: Option<LowRank>,
}

/// A packed weight and a kernel form that cannot be converted into one another.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum KernelFormError {
    /// The codec has no kernels.
    #[error("codec {codec} has no kernels")]
    NoKernels {
        /// The codec.
        codec: String,
    },
    /// A scale does not fit its type.
    #[error("the scale at index {index} is {value}, which {target} cannot hold")]
    Scale {
        /// Where in the scales.
        index: usize,
        /// The scale, without the exponent.
        value: f32,
        /// The type.
        target: &'static str,
    },
    /// A weight of a protected column does not fit its type.
    #[error("the protected weight at index {index} is {value}, which {target} cannot hold")]
    ProtectedValue {
        /// Where in the values.
        index: usize,
        /// The weight; without the exponent if it is to be stored.
        value: f32,
        /// The type.
        target: &'static str,
    },
    /// A value of the dictionary that no file stores was changed.
    #[error("dictionary value {index} of codec {codec} is {found}, and the file format fixes it at {expected}")]
    FixedDictionary {
        /// The codec.
        codec: String,
        /// Where in the dictionary.
        index: usize,
        /// The value.
        found: f32,
        /// The value of the format.
        expected: f32,
    },
    /// The form is that of another weight.
    #[error("the form is not that of {} as {} with exponent {}", header.shape, header.codec, header.exponent)]
    Header {
        /// The requested header.
        header: Box<PackedHeader>,
    },
    /// An array has another length than the layout says.
    #[error("{what} has {found} values, the layout asks for {expected}")]
    Length {
        /// Which array.
        what: &'static str,
        /// Its length.
        found: usize,
        /// The length asked for.
        expected: usize,
    },
    /// A number of the low-rank part does not fit its type.
    #[error("the low-rank factor at index {index} is beyond what {target} can hold")]
    LowRank {
        /// Its place in `up`.
        index: usize,
        /// The type.
        target: &'static str,
    },
    /// The result is no valid weight.
    #[error(transparent)]
    Format(#[from] FormatError),
}

impl KernelForm {
    /// The kernel form of `packed`.
    ///
    /// # Errors
    /// [`KernelFormError::NoKernels`]; [`KernelFormError::Scale`] and [`KernelFormError::ProtectedValue`] if one of
    /// these times the power of two leaves f32's range.
    pub fn new(packed: &PackedWeight) -> Result<Self, KernelFormError> {
        let header = packed.header();
        let no_kernels = || KernelFormError::NoKernels { codec: header.codec.codec.clone() };
        let Arranged { layout, words, scales: halves, dictionary } = Arranged::new(packed).ok_or_else(no_kernels)?;
        let unit = header.exponent.unit();
        let scales: Vec<f32> = halves.iter().map(|scale| scale.to_f32() * unit).collect();
        if let Some(index) = scales.iter().position(|scale| !scale.is_finite()) {
            return Err(KernelFormError::Scale { index, value: halves[index].to_f32(), target: "F32" });
        }
        let halves = packed.protected().values();
        let protected_values: Vec<f32> = halves.iter().map(|value| value.to_f32() * unit).collect();
        if let Some(index) = protected_values.iter().position(|value| !value.is_finite()) {
            return Err(KernelFormError::ProtectedValue { index, value: halves[index].to_f32(), target: "F32" });
        }
        let protected = packed.protected().columns().to_vec();
        let low_rank = packed.low_rank_part();
        if let Some(part) = &low_rank
            && let Some(index) = part.up.as_slice().iter().position(|value| !value.is_finite())
        {
            return Err(KernelFormError::LowRank { index, target: "F32" });
        }
        let codes = words.into_owned();
        Ok(Self { layout, codes, scales, dictionary, protected, protected_values, low_rank })
    }

    /// Back to what is stored. Scales are rounded to F16, learned patterns and protected columns too. A dictionary of
    /// one value, as the trellis has it, multiplies every weight: what training made of it goes into the scales.
    ///
    /// # Errors
    /// [`KernelFormError::Header`] for the header of another weight; [`KernelFormError::FixedDictionary`] if training
    /// changed what the format fixes; [`KernelFormError::Scale`] for a scale and [`KernelFormError::ProtectedValue`]
    /// for a weight beyond F16; [`KernelFormError::Length`]; [`KernelFormError::Format`].
    pub fn to_packed(&self, header: &PackedHeader) -> Result<PackedWeight, KernelFormError> {
        self.check_lengths(header.protected, header.low_rank)?;
        let storage = header.low_rank.map(|spec| spec.storage);
        let codec = header.codec.build().map_err(FormatError::from)?;
        if codec.layout(header.shape) != Some(self.layout) {
            return Err(KernelFormError::Header { header: Box::new(header.clone()) });
        }
        let unit = header.exponent.inverse();
        let halves: Vec<f16> = self.scales.iter().map(|scale| f16::from_f32(scale * unit)).collect();
        if let Some(index) = halves.iter().position(|scale| !scale.is_finite()) {
            return Err(KernelFormError::Scale { index, value: self.scales[index] * unit, target: "F16" });
        }
        let protected: Vec<f16> = self.protected_values.iter().map(|value| f16::from_f32(value * unit)).collect();
        if let Some(index) = protected.iter().position(|value| !value.is_finite()) {
            let value = self.protected_values[index] * unit;
            return Err(KernelFormError::ProtectedValue { index, value, target: "F16" });
        }
        let learned = codec.learned(header.shape, &self.dictionary);
        let stored = self.layout.stored_order(&self.codes);
        let (mut words, mut streams) = (&stored[..], Vec::new());
        let without_part = PackedHeader { low_rank: None, ..header.clone() };
        for spec in without_part.streams_of(&*codec) {
            streams.push(match spec.dtype {
                StreamType::U32 if spec.name == COLUMNS => Stream::U32(self.protected.clone()),
                StreamType::F16 if spec.name == VALUES => Stream::F16(protected.clone()),
                StreamType::U32 => {
                    let (stream, rest) = words.split_at(spec.len().min(words.len()));
                    words = rest;
                    Stream::U32(stream.to_vec())
                }
                StreamType::F16 if spec.name == ROW_SCALES => Stream::F16(halves.clone()),
                StreamType::F16 => Stream::F16(learned.clone()),
                StreamType::I8 => unreachable!("no codec stores a factor"),
            });
        }
        let packed = PackedWeight::new(without_part, streams)?;
        let expected = packed.codec().dictionary(header.shape, packed.codes());
        // Learned patterns are what was just rounded to F16; the rest is the same to the bit.
        let learned = self.layout.learned_range();
        let differs = |i: &usize| !learned.contains(i) && self.dictionary[*i].to_bits() != expected[*i].to_bits();
        match (0..expected.len()).find(differs) {
            Some(0) if expected.len() == 1 => {
                let factor = self.dictionary[0] / expected[0];
                let scales = self.scales.iter().map(|scale| scale * factor).collect();
                Self { scales, dictionary: expected, ..self.clone() }.to_packed(header)
            }
            None => match (&self.low_rank, storage) {
                (Some(part), Some(storage)) => Ok(packed.with_low_rank(part, storage)?),
                _ => Ok(packed),
            },
            Some(index) => Err(KernelFormError::FixedDictionary {
                codec: header.codec.codec.clone(),
                index,
                found: self.dictionary[index],
                expected: expected[index],
            }),
        }
    }

    /// A weight of `shape` with random codes from `words`, whose values have the root mean square `scale`: how a layer
    /// starts that is trained from scratch. Rows have equal scales; no column is protected and there is no
    /// low-rank part, whatever the header says.
    ///
    /// # Errors
    /// [`KernelFormError::NoKernels`]; [`KernelFormError::Format`] if the codec cannot be built.
    pub fn random(header: &PackedHeader, scale: f32, mut words: impl FnMut() -> u32) -> Result<Self, KernelFormError> {
        let codec = header.codec.build().map_err(FormatError::from)?;
        let no_kernels = || KernelFormError::NoKernels { codec: header.codec.codec.clone() };
        let layout = codec.layout(header.shape).ok_or_else(no_kernels)?;
        let specs = codec.streams(header.shape);
        let num_words = specs.iter().filter(|spec| spec.dtype == StreamType::U32).map(StreamSpec::len).sum();
        let mut codes: Vec<u32> = std::iter::repeat_with(&mut words).take(num_words).collect();
        layout.tidy(&mut codes);
        let (mut rest, mut streams) = (&codes[..], Vec::new());
        for spec in specs {
            streams.push(match spec.dtype {
                StreamType::U32 => {
                    let (stream, behind) = rest.split_at(spec.len());
                    rest = behind;
                    Stream::U32(stream.to_vec())
                }
                StreamType::F16 => Stream::F16(vec![f16::ZERO; spec.len()]),
                StreamType::I8 => unreachable!("no codec stores a factor"),
            });
        }
        let dictionary = codec.dictionary(header.shape, &Codes { streams });
        let scales = vec![1.0; header.shape.d_output() * layout.scales_per_row()];
        let (protected, protected_values) = (Vec::new(), Vec::new());
        let codes = layout.arrange(&codes).into_owned();
        let mut form = Self { layout, codes, scales, dictionary, protected, protected_values, low_rank: None };
        let mut values = vec![0.0; header.shape.num_weights()];
        form.as_slices().synthesize(&mut values);
        let power = values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>() / values.len() as f64;
        if power > 0.0 {
            // As it would be stored.
            let unit = header.exponent.unit();
            let stored = f16::from_f64(f64::from(scale / unit) / power.sqrt());
            form.scales.fill(stored.to_f32() * unit);
        }
        Ok(form)
    }

    /// The arrays of the codes, borrowed: the weight without protected columns and low-rank part.
    pub fn as_slices(&self) -> PatternSlices<'_> {
        PatternSlices::new(self.layout, &self.codes, &self.scales, &self.dictionary)
    }

    fn check_lengths(&self, protected: usize, low_rank: Option<LowRankSpec>) -> Result<(), KernelFormError> {
        let scales = self.layout.shape().d_output() * self.layout.scales_per_row();
        let rank = low_rank.map_or(0, |spec| spec.rank);
        let len = |part: &LowRank| (part.up.shape().num_weights(), part.down.shape().num_weights());
        let low_rank_len = self.low_rank.as_ref().map_or((0, 0), len);
        for (what, found, expected) in [
            ("codes", self.codes.len(), self.layout.num_words()),
            ("scales", self.scales.len(), scales),
            ("dictionary", self.dictionary.len(), self.layout.dictionary_len()),
            ("rank", self.low_rank.as_ref().map_or(0, LowRank::rank), rank),
            ("low_rank.up", low_rank_len.0, self.layout.shape().d_output() * rank),
            ("low_rank.down", low_rank_len.1, self.layout.shape().d_input() * rank),
            ("protected", self.protected.len(), protected),
            ("protected_values", self.protected_values.len(), self.layout.shape().d_output() * protected),
        ] {
            if found != expected {
                return Err(KernelFormError::Length { what, found, expected });
            }
        }
        Ok(())
    }
}
