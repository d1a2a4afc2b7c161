//! Whether weights are quantised already.

use super::settings::{ConfigFile, METHOD_FIELDS};
use super::{ArchiveError, Checkpoint, QuantisedCheckpoint};
use crate::archive::TensorInfo;
use safetensors::Dtype;

/// What names a weight's codes, or stands beside them: GPTQ and AWQ, compressed-tensors, F8, bitsandbytes, ModelOpt.
const MARKS: [&str; 11] = [
    "qweight",
    "weight_packed",
    "weight_scale",
    "weight_scale_inv",
    "weight.absmax",
    "weight.quant_map",
    "SCB",
    "qzeros",
    "weight_zero_point",
    "pre_quant_scale",
    "act.scales",
];

impl Checkpoint {
    /// Refuses weights that are quantised already: by the `config.json` beside them, or by a tensor of codes or scales.
    /// Their floats are scales, and what is coded twice has both errors.
    ///
    /// # Errors
    /// [`ArchiveError::Quantised`] with what shows it, and whether [`QuantisedCheckpoint`] reads them.
    pub fn check_not_quantised(&self) -> Result<(), ArchiveError> {
        match self.mark_of_quantisation() {
            None => Ok(()),
            Some(found) => Err(refusal(self, found, QuantisedCheckpoint::of(self).is_ok())),
        }
    }

    /// What shows that weights are quantised already.
    pub(super) fn mark_of_quantisation(&self) -> Option<String> {
        let of_tensor = |(name, info): (&String, &TensorInfo)| {
            let what = if is_mark(name) { String::new() } else { format!(" is {} and", info.dtype) };
            (is_mark(name) || is_narrow(info.dtype))
                .then(|| format!("tensor \"{name}\"{what} is of a quantised weight"))
        };
        mark_of_config(self).or_else(|| self.tensors().iter().find_map(of_tensor))
    }
}

/// Refuses `checkpoint` for what `found` says; `is_readable` if its weights can be made floats again.
pub(super) fn refusal(checkpoint: &Checkpoint, found: String, is_readable: bool) -> ArchiveError {
    let way_out = match is_readable {
        true => "make it dense by `pixel dequantize`, or start from the model in F16, BF16 or F32",
        false => "start from the model in F16, BF16 or F32, or have the tool that made it write it dense",
    };
    ArchiveError::Quantised { path: checkpoint.root().to_owned(), found, way_out }
}

/// What the `config.json` beside the weights says of it.
fn mark_of_config(checkpoint: &Checkpoint) -> Option<String> {
    let config = ConfigFile::of(checkpoint)?;
    let (field, value) = config.quantisation()?;
    let method = METHOD_FIELDS.into_iter().find_map(|key| value.get(key)?.as_str());
    Some(match method {
        Some(method) => format!("config.json has \"{field}\" of \"{method}\""),
        None => format!("config.json has \"{field}\""),
    })
}

/// Whether a tensor of this name is a part of a quantised weight.
pub(super) fn is_mark(name: &str) -> bool {
    MARKS.iter().any(|mark| stem(name, mark).is_some())
}

/// Whether floats of this type need a scale.
pub(super) const fn is_narrow(dtype: Dtype) -> bool {
    matches!(dtype, Dtype::F8_E4M3 | Dtype::F8_E5M2 | Dtype::F8_E4M3FNUZ | Dtype::F8_E5M2FNUZ)
}

/// What comes before `end`, if `name` ends in it after a dot or is nothing else.
pub(super) fn stem<'a>(name: &'a str, end: &str) -> Option<&'a str> {
    name.strip_suffix(end).filter(|stem| stem.is_empty() || stem.ends_with('.'))
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
