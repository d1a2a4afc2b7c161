//! Which tensors make up a quantised weight.

use super::check::stem;
use super::error::QuantisedError;
use super::float8::Float8;
use super::packed_ints::{PackedInts, Packing};
use super::settings::Settings;
use super::weight::{Codes, Groups, QuantisedWeight};
use crate::archive::{ArchiveError, Checkpoint, FloatType, TensorInfo};
use safetensors::Dtype;
use std::collections::{BTreeMap, BTreeSet};

/// How a weight is quantised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// `qweight`, `qzeros`, `scales`, `g_idx` of GPTQ, or the same without `g_idx` of AWQ.
    Packed,
    /// `weight_packed`, `weight_shape`, `weight_scale`, `weight_zero_point`, `weight_g_idx` of compressed-tensors.
    PackedRows,
    /// `weight` of eight bits, integer or float, and its scales.
    Bytes,
}

/// What names the codes of a weight, as the end of a tensor's name after a dot.
const CODES: [(&str, Kind); 3] =
    [("qweight", Kind::Packed), ("weight_packed", Kind::PackedRows), ("weight", Kind::Bytes)];

/// Ends of names of what belongs to a weight of the same stem.
const PARTS: [&str; 8] = [
    "qzeros",
    "scales",
    "g_idx",
    "weight_scale",
    "weight_scale_inv",
    "weight_zero_point",
    "weight_shape",
    "weight_g_idx",
];

/// Ends of names of what activations, and keys and values, were to be quantised with: floats are not.
const ACTIVATIONS: [&str; 8] = [
    "input_scale",
    "input_zero_point",
    "input_global_scale",
    "activation_scale",
    "output_scale",
    "q_scale",
    "k_scale",
    "v_scale",
];

/// The tensors of one weight.
#[derive(Debug, Clone)]
pub(super) struct Parts {
    kind: Kind,
    /// What the names of all parts begin with.
    stem: String,
    /// The tensor of codes.
    pub(super) codes: String,
}

/// The quantised weights of a checkpoint by the name that each has as floats, and the tensors that are of no use beside
/// these.
///
/// # Errors
/// [`ArchiveError::TwoWeights`] for a weight with two sets of codes.
pub(super) fn find(checkpoint: &Checkpoint) -> Result<(BTreeMap<String, Parts>, BTreeSet<String>), ArchiveError> {
    let (mut weights, mut parts) = (BTreeMap::new(), BTreeSet::new());
    for (name, info) in checkpoint.tensors() {
        let is_one_number = info.shape.iter().product::<usize>() == 1;
        if is_one_number && ACTIVATIONS.iter().any(|end| stem(name, end).is_some()) {
            parts.insert(name.clone());
        }
        let codes = CODES.iter().find_map(|(end, kind)| Some((stem(name, end)?, *kind)));
        let Some((stem, kind)) = codes.filter(|(_, kind)| *kind != Kind::Bytes || has_byte_codes(info)) else {
            continue;
        };
        let found = Parts { kind, stem: stem.to_owned(), codes: name.clone() };
        if let Some(other) = weights.insert(format!("{stem}weight"), found) {
            let (path, codes) = (checkpoint.root().to_owned(), name.clone());
            return Err(ArchiveError::TwoWeights { path, tensor: other.codes, codes });
        }
        let belonging = PARTS.iter().map(|part| format!("{stem}{part}"));
        parts.extend(belonging.filter(|part| checkpoint.tensors().contains_key(part)));
        parts.insert(name.clone());
    }
    Ok((weights, parts))
}

fn has_byte_codes(info: &TensorInfo) -> bool {
    matches!(info.dtype, Dtype::I8 | Dtype::F8_E4M3 | Dtype::F8_E5M2)
}

/// The parts of one weight in its checkpoint.
struct Reader<'a> {
    checkpoint: &'a Checkpoint,
    settings: &'a Settings,
    parts: &'a Parts,
}

/// Opens the weight of `parts`: checks their types and shapes, reads the scales.
///
/// # Errors
/// [`ArchiveError::QuantisedWeight`].
pub(super) fn open<'a>(
    checkpoint: &'a Checkpoint,
    settings: &'a Settings,
    parts: &'a Parts,
) -> Result<QuantisedWeight<'a>, ArchiveError> {
    let reader = Reader { checkpoint, settings, parts };
    let weight = match parts.kind {
        Kind::Packed => reader.packed(),
        Kind::PackedRows => reader.packed_rows(),
        Kind::Bytes => reader.bytes(),
    };
    weight.map_err(|source| {
        let info = checkpoint.tensors().get(&parts.codes);
        let path = info.map_or(checkpoint.root(), |info| checkpoint.path_of(info)).to_owned();
        ArchiveError::QuantisedWeight { path, tensor: parts.codes.clone(), source: Box::new(source) }
    })
}

impl<'a> Reader<'a> {
    fn name(&self, part: &str) -> String {
        format!("{}{part}", self.parts.stem)
    }

    fn optional(&self, part: &str) -> Option<&'a TensorInfo> {
        self.checkpoint.tensors().get(&self.name(part))
    }

    fn part(&self, part: &str) -> Result<&'a TensorInfo, QuantisedError> {
        self.optional(part).ok_or_else(|| QuantisedError::Missing { part: self.name(part) })
    }

    /// Bytes of the integers of `part`, `[_, _]`, and their shape.
    fn words(&self, part: &str) -> Result<(&'a [u8], [usize; 2]), QuantisedError> {
        let info = self.part(part)?;
        if !matches!(info.dtype, Dtype::I32 | Dtype::U32) {
            return Err(self.wrong_dtype(part, info, "I32"));
        }
        Ok((self.checkpoint.bytes(info), self.matrix(part, info)?))
    }

    fn matrix(&self, part: &str, info: &TensorInfo) -> Result<[usize; 2], QuantisedError> {
        match <[usize; 2]>::try_from(&info.shape[..]) {
            Ok(shape) if shape.iter().all(|&size| size > 0) => Ok(shape),
            _ => Err(self.wrong_shape(part, info, "a matrix")),
        }
    }

    fn wrong_dtype(&self, part: &str, info: &TensorInfo, expected: &'static str) -> QuantisedError {
        QuantisedError::Dtype { part: self.name(part), found: info.dtype, expected }
    }

    fn wrong_shape(&self, part: &str, info: &TensorInfo, expected: impl Into<String>) -> QuantisedError {
        QuantisedError::Shape { part: self.name(part), found: info.shape.clone(), expected: expected.into() }
    }

    /// Refuses `part` unless it has the shape `expected`.
    fn check_shape(&self, part: &str, expected: &[usize]) -> Result<(), QuantisedError> {
        let info = self.part(part)?;
        match info.shape == expected {
            true => Ok(()),
            false => Err(self.wrong_shape(part, info, format!("{expected:?}"))),
        }
    }

    /// The floats of `part`, powers of two among them.
    fn floats(&self, part: &str) -> Result<Vec<f32>, QuantisedError> {
        let info = self.part(part)?;
        let bytes = self.checkpoint.bytes(info);
        if info.dtype == Dtype::F8_E8M0 {
            // Exponents by themselves; 255 is no number.
            let power = |&byte: &u8| if byte == u8::MAX { f32::NAN } else { 2f32.powi(i32::from(byte) - 127) };
            return Ok(bytes.iter().map(power).collect());
        }
        let float = FloatType::of(info.dtype).ok_or_else(|| self.wrong_dtype(part, info, "a float type"))?;
        let mut values = vec![0.0; bytes.len() / float.size()];
        float.read(bytes, &mut values);
        Ok(values)
    }

    /// GPTQ: codes `[d_input, d_output]` down the columns, any order of groups. AWQ: interleaved, groups in order.
    fn packed(&self) -> Result<QuantisedWeight<'a>, QuantisedError> {
        if let Some(variant) = &self.settings.variant {
            return Err(QuantisedError::Variant { variant: variant.clone() });
        }
        let (words, [height, width]) = self.words("qweight")?;
        let (zero_words, [_, zero_width]) = self.words("qzeros")?;
        let scales = self.floats("scales")?;
        let scales_info = self.part("scales")?;
        let [num_groups, m] = self.matrix("scales", scales_info)?;
        let is_awq = 8 * width == m;
        let (bits, packing, zero_packing) = match is_awq {
            true => (4, Packing::Interleaved, Packing::Interleaved),
            false => (32 * zero_width / m, Packing::Columns, Packing::Rows),
        };
        // Layers may differ in it, whatever the configuration says.
        if ![2, 3, 4, 8].contains(&bits) {
            let expected = format!("zeros of {} bits for {m} outputs", self.settings.bits.unwrap_or(4));
            return Err(self.wrong_shape("qzeros", self.part("qzeros")?, expected));
        }
        let n = if is_awq { height } else { 32 * height / bits };
        let ints = |words, shape, packing, part: &str| {
            let expected = PackedInts::word_shape(shape, bits, packing);
            self.check_shape(part, &expected)?;
            PackedInts::new(words, shape, bits, packing)
                .ok_or_else(|| self.wrong_shape(part, scales_info, format!("{expected:?}")))
        };
        let codes = ints(words, [n, m], packing, "qweight")?;
        let zeros = ints(zero_words, [num_groups, m], zero_packing, "qzeros")?;
        let offset = if is_awq { 0 } else { self.settings.zero_offset };
        // Zero less one is all ones.
        let zero = |at: usize| ((zeros.at(at / m, at % m) + offset) & ((1 << bits) - 1)) as f32;
        let of_input = match self.optional("g_idx") {
            Some(_) => self.group_order("g_idx", n, num_groups)?,
            None => self.groups_in_order("scales", n, num_groups)?,
        };
        let zeros = (0..num_groups * m).map(zero).collect();
        let groups = Groups { of_input, outputs: 1, num_outputs: m, scales, zeros };
        Ok(QuantisedWeight { shape: [m, n], codes: Codes::InputMajor(codes), groups })
    }

    /// compressed-tensors, packed: codes along the rows, offset by half their range, as zeros are.
    fn packed_rows(&self) -> Result<QuantisedWeight<'a>, QuantisedError> {
        let (words, [m, width]) = self.words("weight_packed")?;
        let [stated_m, n] = self.stated_shape()?;
        if m != stated_m {
            return Err(self.wrong_shape("weight_packed", self.part("weight_packed")?, format!("{stated_m} rows")));
        }
        let fits = |bits: &usize| (1..=8).contains(bits) && (n * bits).div_ceil(32) == width;
        let bits = self.settings.bits.into_iter().chain([4, 8, 2, 3, 5, 6, 7, 1]).find(fits).ok_or_else(|| {
            let expected = format!("{n} codes of 1 to 8 bits a row");
            QuantisedError::Shape { part: self.name("weight_packed"), found: vec![m, width], expected }
        })?;
        let codes = PackedInts::new(words, [m, n], bits, Packing::Rows).expect("a width that was found for it");
        let mut groups = self.scale_grid("weight_scale", [m, n])?;
        let num_groups = groups.scales.len() / groups.num_outputs;
        let middle = (1 << (bits - 1)) as f32;
        groups.zeros = match self.optional("weight_zero_point") {
            None => vec![middle; groups.scales.len()],
            Some(_) => {
                let shape = [groups.num_outputs, num_groups];
                self.check_shape("weight_zero_point", &PackedInts::word_shape(shape, bits, Packing::Columns))?;
                let (words, _) = self.words("weight_zero_point")?;
                let zeros = PackedInts::new(words, shape, bits, Packing::Columns).expect("a shape that was checked");
                (0..groups.scales.len()).map(|at| zeros.at(at % shape[0], at / shape[0]) as f32).collect()
            }
        };
        if self.optional("weight_g_idx").is_some() {
            groups.of_input = self.group_order("weight_g_idx", n, num_groups)?;
        }
        Ok(QuantisedWeight { shape: [m, n], codes: Codes::OutputMajor(codes), groups })
    }

    /// Eight bits a weight.
    fn bytes(&self) -> Result<QuantisedWeight<'a>, QuantisedError> {
        let info = self.part("weight")?;
        let shape = self.matrix("weight", info)?;
        let scale = ["weight_scale_inv", "weight_scale"].into_iter().find(|part| self.optional(part).is_some());
        let scale = scale.ok_or_else(|| QuantisedError::Missing { part: self.name("weight_scale") })?;
        let mut groups = self.scale_grid(scale, shape)?;
        let bytes = self.checkpoint.bytes(info);
        let codes = match info.dtype {
            Dtype::F8_E4M3 => Codes::Float8(bytes, Box::new(Float8::E4M3.table())),
            Dtype::F8_E5M2 => Codes::Float8(bytes, Box::new(Float8::E5M2.table())),
            _ => Codes::Int8(bytes),
        };
        if let (Some(zeros), Codes::Int8(_)) = (self.optional("weight_zero_point"), &codes) {
            self.check_shape("weight_zero_point", &self.part(scale)?.shape)?;
            if zeros.dtype != Dtype::I8 {
                return Err(self.wrong_dtype("weight_zero_point", zeros, "I8"));
            }
            let zeros: Vec<f32> =
                self.checkpoint.bytes(zeros).iter().map(|byte| f32::from(byte.cast_signed())).collect();
            groups.zeros = transposed(&zeros, groups.num_outputs);
        }
        Ok(QuantisedWeight { shape, codes, groups })
    }

    /// `[d_output, d_input]` as `weight_shape` has it.
    fn stated_shape(&self) -> Result<[usize; 2], QuantisedError> {
        let info = self.part("weight_shape")?;
        let bytes = self.checkpoint.bytes(info);
        let numbers: Vec<i64> = match info.dtype {
            Dtype::I64 => bytes.as_chunks().0.iter().map(|&bytes| i64::from_le_bytes(bytes)).collect(),
            Dtype::I32 => bytes.as_chunks().0.iter().map(|&bytes| i64::from(i32::from_le_bytes(bytes))).collect(),
            _ => return Err(self.wrong_dtype("weight_shape", info, "I64")),
        };
        match numbers[..] {
            [m @ 1..=0x7fff_ffff, n @ 1..=0x7fff_ffff] => Ok([m as usize, n as usize]),
            _ => {
                let expected = format!("the shape of a matrix, and not {numbers:?}");
                Err(self.wrong_shape("weight_shape", info, expected))
            }
        }
    }

    /// Scales for one tensor, each row, groups of a row, or blocks, from the shape that they are stored in.
    fn scale_grid(&self, part: &str, [m, n]: [usize; 2]) -> Result<Groups, QuantisedError> {
        let (info, block) = (self.part(part)?, self.settings.block);
        let [rows, cols] = match info.shape[..] {
            [] => [1, 1],
            [rows] => [rows, 1],
            [rows, cols] => [rows, cols],
            _ => [0, 0],
        };
        let is_blocks = rows == m.div_ceil(block[0]) && cols == n.div_ceil(block[1]);
        let outputs = match rows {
            _ if is_blocks => block[0],
            1 => m,
            _ if rows == m => 1,
            _ => {
                let expected =
                    format!("a scale for all, each of {m} rows, or each block of {} × {}", block[0], block[1]);
                return Err(self.wrong_shape(part, info, expected));
            }
        };
        let of_input = match is_blocks {
            true => (0..n).map(|j| (j / block[1]) as u32).collect(),
            false => self.groups_in_order(part, n, cols)?,
        };
        let scales = transposed(&self.floats(part)?, rows);
        Ok(Groups { of_input, outputs, num_outputs: rows, scales, zeros: Vec::new() })
    }

    /// The group of each of `n` inputs, `count` groups one after the other.
    fn groups_in_order(&self, part: &str, n: usize, count: usize) -> Result<Vec<u32>, QuantisedError> {
        let stated = self.settings.group_size.filter(|size| n.div_ceil(*size) == count);
        let equal = (count > 0 && n.is_multiple_of(count)).then(|| n / count);
        let size = stated.or(equal).ok_or_else(|| {
            self.wrong_shape(part, self.part(part).expect("a part that was read"), format!("groups of {n} inputs"))
        })?;
        Ok((0..n).map(|j| (j / size) as u32).collect())
    }

    /// The group of each of `n` inputs, as `part` lists them.
    fn group_order(&self, part: &str, n: usize, count: usize) -> Result<Vec<u32>, QuantisedError> {
        self.check_shape(part, &[n])?;
        let info = self.part(part)?;
        if !matches!(info.dtype, Dtype::I32 | Dtype::U32) {
            return Err(self.wrong_dtype(part, info, "I32"));
        }
        let (groups, _) = self.checkpoint.bytes(info).as_chunks();
        let groups: Vec<u32> = groups.iter().map(|&group| u32::from_le_bytes(group)).collect();
        match groups.iter().position(|&group| group as usize >= count) {
            None => Ok(groups),
            Some(input) => {
                let (part, group) = (self.name(part), groups[input].cast_signed());
                Err(QuantisedError::NoSuchGroup { part, input, group, count })
            }
        }
    }
}

/// `[rows, _]` as `[_, rows]`.
fn transposed(values: &[f32], rows: usize) -> Vec<f32> {
    let cols = values.len() / rows;
    (0..values.len()).map(|at| values[at % rows * cols + at / rows]).collect()
}
