//! What a checkpoint's configuration says of the way in which its weights are quantised.

use crate::archive::Checkpoint;
use serde_json::{Map, Value, json};
use std::path::Path;

/// The file in which it stands.
pub(super) const CONFIG_FILE: &str = "config.json";
/// The fields of `config.json` that say so: of Transformers, of compressed-tensors before it came there, of MLX.
pub(super) const CONFIG_FIELDS: [&str; 3] = ["quantization_config", "compression_config", "quantization"];
/// What a method is called by, in the words of different tools.
pub(super) const METHOD_FIELDS: [&str; 3] = ["quant_method", "format", "mode"];
/// Where some versions of AutoGPTQ say it.
const SEPARATE_FILE: &str = "quantize_config.json";
/// The methods, or formats, whose codes and scales are all there is to a weight.
const METHODS: [&str; 10] = [
    "gptq",
    "awq",
    "fp8",
    "fbgemm_fp8",
    "modelopt",
    "compressed-tensors",
    "pack-quantized",
    "int-quantized",
    "float-quantized",
    "naive-quantized",
];
/// Models whose layers store a weight as `[d_input, d_output]`.
const CONV1D_MODELS: [&str; 3] = ["gpt2", "openai-gpt", "imagegpt"];
/// Fields that say in which type the weights are.
const DTYPE_FIELDS: [&str; 2] = ["torch_dtype", "dtype"];

/// What tensors alone do not tell.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Settings {
    /// Inputs that share a scale.
    pub(super) group_size: Option<usize>,
    /// Bits of an integer.
    pub(super) bits: Option<usize>,
    /// Outputs and inputs that share the scale of a block.
    pub(super) block: [usize; 2],
    /// What GPTQ's zeros are stored without.
    pub(super) zero_offset: u32,
    /// A variant of GPTQ or AWQ whose tensors lie otherwise.
    pub(super) variant: Option<String>,
    /// What makes the weights something else than their codes and scales say, or may do so.
    pub(super) unread: Option<String>,
}

/// The configuration beside the weights.
#[derive(Debug)]
pub(super) struct ConfigFile {
    pub(super) fields: Map<String, Value>,
    /// What a file of its own says of the quantisation.
    pub(super) separate: Option<Map<String, Value>>,
}

impl ConfigFile {
    /// The `config.json` beside the weights; `None` if there is none, or it is no JSON: whoever runs the model says so.
    pub(super) fn of(checkpoint: &Checkpoint) -> Option<Self> {
        let beside = &checkpoint.shards().first()?.path;
        let read = |name| serde_json::from_str(&std::fs::read_to_string(beside.with_file_name(name)).ok()?).ok();
        Some(Self { fields: read(CONFIG_FILE)?, separate: read(SEPARATE_FILE) })
    }

    /// The field that says how the weights are quantised, and what it holds.
    pub(super) fn quantisation(&self) -> Option<(&'static str, &Map<String, Value>)> {
        quantisation_in(&self.fields)
    }

    /// The text of the file once the weights are floats of type `dtype`, as Transformers calls it.
    pub(super) fn dense(&self, dtype: &str) -> String {
        let mut fields = self.fields.clone();
        make_dense(&mut fields, dtype);
        format!("{:#}\n", Value::Object(fields))
    }
}

/// The field of a configuration, or of one inside it such as `text_config`, that says how weights are quantised.
fn quantisation_in(fields: &Map<String, Value>) -> Option<(&'static str, &Map<String, Value>)> {
    let own = CONFIG_FIELDS.into_iter().find_map(|field| Some((field, fields.get(field)?.as_object()?)));
    own.or_else(|| fields.values().filter_map(Value::as_object).find_map(quantisation_in))
}

fn make_dense(fields: &mut Map<String, Value>, dtype: &str) {
    CONFIG_FIELDS.iter().for_each(|field| drop(fields.remove(*field)));
    for (field, value) in fields.iter_mut() {
        match value {
            Value::Object(inner) => make_dense(inner, dtype),
            Value::String(_) if DTYPE_FIELDS.contains(&field.as_str()) => *value = dtype.into(),
            _ => {}
        }
    }
}

impl Settings {
    /// The settings of a configuration, or those that every tool takes without one.
    pub(super) fn of(config: Option<&ConfigFile>) -> Self {
        let stated = config.and_then(ConfigFile::quantisation).map(|(_, fields)| fields);
        let field = stated.or(config.and_then(|config| config.separate.as_ref()));
        // compressed-tensors: the weights of the first group of modules; the scheme is in the tensors' shapes.
        let groups = field.and_then(|field| field.get("config_groups")?.as_object());
        let weights = groups.and_then(|groups| groups.values().find_map(|group| group.get("weights")?.as_object()));
        let value = |keys: &[&str]| {
            let mut maps = [field, weights].into_iter().flatten();
            maps.find_map(|map| keys.iter().find_map(|key| map.get(*key))).cloned()
        };
        let number = |keys: &[&str]| value(keys).and_then(|value| usize::try_from(value.as_u64()?).ok());
        let text = |keys: &[&str]| Some(value(keys)?.as_str()?.to_ascii_lowercase());
        let block = value(&["weight_block_size", "block_structure"]).and_then(|block| {
            let numbers: Vec<usize> = serde_json::from_value(block).ok()?;
            <[usize; 2]>::try_from(numbers).ok().filter(|block| block.iter().all(|&size| size > 0))
        });
        let layout = text(&["packing_format", "checkpoint_format", "version"]);
        let method = text(&METHOD_FIELDS);
        let other = |name: Option<String>, known: &[&str]| name.filter(|name| !known.contains(&name.as_str()));
        let is_transformed =
            value(&["transform_config"]).is_some_and(|value| value != json!(null) && value != json!({}));
        let model_type = config.and_then(|config| config.fields.get("model_type")?.as_str());
        let unread = is_transformed.then(|| "transform_config".to_owned());
        let unread = unread.or_else(|| other(method, &METHODS));
        let conv1d = model_type.filter(|name| CONV1D_MODELS.contains(name)).map(|name| format!("Conv1D of {name}"));
        Self {
            unread,
            group_size: number(&["group_size"]).filter(|&size| size > 0),
            bits: number(&["bits", "w_bit", "num_bits"]),
            block: block.unwrap_or([128, 128]),
            zero_offset: u32::from(layout.as_deref() != Some("gptq_v2")),
            variant: conv1d.or_else(|| other(layout, &["gptq", "gptq_v2", "gemm", "exllama"])),
        }
    }
}

/// Whether a file of this name beside the weights says how they are quantised, and nothing else.
pub(super) fn describes_quantisation(path: &Path) -> bool {
    let names = ["quantize_config.json", "quant_config.json", "hf_quant_config.json", "recipe.yaml"];
    path.to_str().is_some_and(|name| names.contains(&name))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(fields: Value) -> Settings {
        let Value::Object(fields) = fields else { unreachable!() };
        Settings::of(Some(&ConfigFile { fields, separate: None }))
    }

    #[test]
    fn every_tool_has_its_own_words() {
        let gptq = json!({"quant_method": "gptq", "bits": 3, "group_size": 64, "checkpoint_format": "gptq_v2"});
        let found = settings(json!({"quantization_config": gptq}));
        assert_eq!((found.bits, found.group_size, found.zero_offset, found.variant), (Some(3), Some(64), 0, None));
        let awq = json!({"quant_method": "awq", "bits": 4, "group_size": 128, "version": "GEMV"});
        assert_eq!(settings(json!({"quantization_config": awq})).variant.as_deref(), Some("gemv"));
        let block = json!({"quant_method": "fp8", "weight_block_size": [64, 32]});
        assert_eq!(settings(json!({"quantization_config": block})).block, [64, 32]);
        let weights = json!({"num_bits": 4, "group_size": 32, "type": "int"});
        let groups = json!({"format": "pack-quantized", "config_groups": {"group_0": {"weights": weights}}});
        let found = settings(json!({"compression_config": groups}));
        assert_eq!((found.bits, found.group_size, found.unread), (Some(4), Some(32), None));
        for (fields, unread) in [
            (json!({"quant_method": "paroquant"}), Some("paroquant")),
            (json!({"quant_method": "compressed-tensors", "transform_config": {"a": 1}}), Some("transform_config")),
            (json!({"quant_method": "compressed-tensors", "transform_config": {}}), None),
        ] {
            assert_eq!(settings(json!({"quantization_config": fields})).unread.as_deref(), unread);
        }
        let gpt2 = json!({"model_type": "gpt2", "quantization_config": {"quant_method": "gptq"}});
        assert_eq!(settings(gpt2).variant.as_deref(), Some("Conv1D of gpt2"));
        // One scale a row.
        assert_eq!(settings(json!({"quantization_config": {"group_size": -1}})).group_size, None);
    }

    #[test]
    fn a_dense_configuration_says_nothing_of_it() {
        let text = r#"{"a": 1, "torch_dtype": "bfloat16", "text_config": {"quantization_config": {"bits": 4}}}"#;
        let config = ConfigFile { fields: serde_json::from_str(text).unwrap(), separate: None };
        let found: Value = serde_json::from_str(&config.dense("float32")).unwrap();
        assert_eq!(found, json!({"a": 1, "torch_dtype": "float32", "text_config": {}}));
    }
}
