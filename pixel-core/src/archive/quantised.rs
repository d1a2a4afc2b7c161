//! Checkpoints whose weights another tool has quantised.

use super::checkpoint::Checkpoint;
use super::error::ArchiveError;
use serde_json::Value;

/// The fields of `config.json` that say so: of Transformers, of compressed-tensors before it came there, of MLX.
const CONFIG_FIELDS: [&str; 3] = ["quantization_config", "compression_config", "quantization"];

/// What names a weight's codes, or stands beside them: GPTQ and AWQ, compressed-tensors, block F8, bitsandbytes, MLX.
const MARKS: [&str; 9] = [
    "qweight",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight.absmax",
    "weight.quant_map",
    "SCB",
    "qzeros",
    "weight_zero_point",
];

impl Checkpoint {
    /// Refuses weights that are quantised already: by the `config.json` beside them, or by a tensor of codes or scales.
    /// Their floats are scales, and what is coded twice has both errors.
    ///
    /// # Errors
    /// [`ArchiveError::Quantised`] with what shows it.
    pub fn check_not_quantised(&self) -> Result<(), ArchiveError> {
        let refuse = |found| Err(ArchiveError::Quantised { path: self.root().to_owned(), found });
        if let Some(found) = self.quantisation_of_config() {
            return refuse(found);
        }
        let is_mark = |name: &&String| MARKS.iter().any(|mark| name.strip_suffix(mark).is_some_and(ends_a_part));
        match self.tensors().keys().find(is_mark) {
            Some(name) => refuse(format!("tensor \"{name}\" is of a quantised weight")),
            None => Ok(()),
        }
    }

    /// What the `config.json` beside the weights says of it. Whoever runs a model refuses files that are no JSON.
    fn quantisation_of_config(&self) -> Option<String> {
        let text = std::fs::read_to_string(self.shards().first()?.path.with_file_name("config.json")).ok()?;
        let config: Value = serde_json::from_str(&text).ok()?;
        let (field, value) = CONFIG_FIELDS.into_iter().find_map(|field| Some((field, config.get(field)?)))?;
        let value = value.as_object()?;
        let method = ["quant_method", "format", "mode"].into_iter().find_map(|key| value.get(key)?.as_str());
        Some(match method {
            Some(method) => format!("config.json has \"{field}\" of \"{method}\""),
            None => format!("config.json has \"{field}\""),
        })
    }
}

/// Whether a name is whole parts, and may go on.
fn ends_a_part(name: &str) -> bool {
    name.is_empty() || name.ends_with('.')
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{Dtype, TensorView, serialize};

    fn check(tensors: &[&str], config: &str) -> Result<(), String> {
        let zeros = [0u8; 64];
        let views = tensors.iter().map(|&name| (name, TensorView::new(Dtype::F32, vec![4, 4], &zeros).unwrap()));
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
        std::fs::write(dir.path().join("config.json"), config).unwrap();
        let check = |path: &std::path::Path| Checkpoint::open(path).unwrap().check_not_quantised();
        let [folder, file] = [dir.path().to_owned(), dir.path().join("model.safetensors")].map(|path| check(&path));
        assert_eq!(folder.is_err(), file.is_err(), "the file by itself");
        folder.map_err(|error| error.to_string().replace(dir.path().to_str().unwrap(), "in"))
    }

    #[test]
    fn configs_and_tensors_of_quantised_weights_are_refused() {
        for (field, found) in [
            (r#"{"quantization_config": {"quant_method": "gptq", "bits": 4}}"#, r#""quantization_config" of "gptq""#),
            (r#"{"quantization_config": {"quant_method": "fp8"}}"#, r#""quantization_config" of "fp8""#),
            (r#"{"compression_config": {"format": "int-quantized"}}"#, r#""compression_config" of "int-quantized""#),
            (r#"{"quantization": {"group_size": 64, "bits": 4}}"#, r#"has "quantization""#),
        ] {
            let error = check(&["a.weight"], field).unwrap_err();
            assert!(error.starts_with("in: ") && error.contains(found), "{error}");
        }
        for mark in [
            "model.layers.0.mlp.down_proj.qweight",
            "model.layers.0.mlp.down_proj.weight_scale_inv",
            "model.layers.0.mlp.down_proj.weight_scale",
            "model.layers.0.mlp.down_proj.weight_packed",
            "model.layers.0.mlp.down_proj.SCB",
            "model.layers.0.mlp.down_proj.weight.absmax",
            "qweight",
        ] {
            let error = check(&["a.weight", mark], "{}").unwrap_err();
            assert!(error.contains(mark), "{error}");
        }
    }

    #[test]
    fn weights_in_floats_pass() {
        for config in ["{}", r#"{"quantization_config": null}"#, "no json", r#"{"model_type": "llama"}"#] {
            assert_eq!(
                check(&["a.weight", "logit_scale", "a.seqweight", "my_weight_scale"], config),
                Ok(()),
                "{config}"
            );
        }
    }
}
