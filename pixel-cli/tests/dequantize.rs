//! Checkpoints that another tool has quantised, made dense and coded.

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use pixel_core::archive::Checkpoint;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};
use std::path::Path;
use tempfile::TempDir;

/// Runs the binary in `dir`.
fn pixel(dir: &Path, args: &[&str]) -> Assert {
    Command::cargo_bin("pixel").unwrap().current_dir(dir).args(args).assert()
}

const SHAPE: [usize; 2] = [32, 64];

/// Bytes of E4M3 that stand for numbers of moderate size.
fn codes() -> Vec<u8> {
    (0..SHAPE[0] * SHAPE[1]).map(|i| 0x28 + (i * 37 % 31) as u8 + if i % 3 == 0 { 0x80 } else { 0 }).collect()
}

/// What `code` stands for, from its bits.
fn value(code: u8) -> f32 {
    let (exponent, mantissa) = (i32::from(code >> 3 & 15), f32::from(code & 7));
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    sign * (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7)
}

/// A model of one F8 weight in blocks of 16 outputs, a norm, and the files beside them.
fn save(dir: &TempDir) {
    let model = dir.path().join("model");
    std::fs::create_dir_all(&model).unwrap();
    let floats = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
    let (codes, scales, norm) = (codes(), floats(&[0.5, 3.0]), floats(&[1.0; 64]));
    let view = |dtype, shape: &[usize], bytes| TensorView::new(dtype, shape.to_vec(), bytes).unwrap();
    let views = [
        ("model.layers.0.mlp.up_proj.weight", view(Dtype::F8_E4M3, &SHAPE, &codes)),
        ("model.layers.0.mlp.up_proj.weight_scale_inv", view(Dtype::F32, &[2, 1], &scales)),
        ("model.layers.0.mlp.up_proj.input_scale", view(Dtype::F32, &[1], &scales[..4])),
        ("model.layers.0.self_attn.k_scale", view(Dtype::F32, &[1], &scales[..4])),
        ("model.norm.weight", view(Dtype::F32, &[64], &norm)),
    ];
    safetensors::serialize_to_file(views, None, &model.join("model.safetensors")).unwrap();
    let quantisation = json!({"quant_method": "fp8", "weight_block_size": [16, 64]});
    let config = json!({"model_type": "other", "torch_dtype": "bfloat16", "quantization_config": quantisation});
    std::fs::write(model.join("config.json"), config.to_string()).unwrap();
    std::fs::write(model.join("hf_quant_config.json"), "{}").unwrap();
    std::fs::write(model.join("README.md"), "a model").unwrap();
}

#[test]
fn a_quantised_model_becomes_dense_and_is_coded() {
    let dir = TempDir::new().unwrap();
    save(&dir);
    let refused = pixel(dir.path(), &["compress", "model", "small"]).failure().code(2);
    refused.stderr(contains("config.json has \"quantization_config\" of \"fp8\"").and(contains("`pixel dequantize`")));

    let said = pixel(dir.path(), &["dequantize", "model", "dense"]).success();
    said.stdout(contains("wrote 1 dequantised weights and 1 other tensors").and(contains("hf_quant_config.json")));
    let dense = Checkpoint::open(dir.path().join("dense")).unwrap();
    let names: Vec<&String> = dense.tensors().keys().collect();
    assert_eq!(names, ["model.layers.0.mlp.up_proj.weight", "model.norm.weight"]);
    let scale = |at: usize| if at < 16 * 64 { 0.5 } else { 3.0 };
    let expected: Vec<f32> = codes().iter().enumerate().map(|(at, &code)| value(code) * scale(at)).collect();
    assert_eq!(dense.to_f32("model.layers.0.mlp.up_proj.weight").unwrap(), expected);
    let config: Value = serde_json::from_slice(&std::fs::read(dir.path().join("dense/config.json")).unwrap()).unwrap();
    assert_eq!(config, json!({"model_type": "other", "torch_dtype": "float32"}));
    assert!(dir.path().join("dense/README.md").exists());
    assert!(!dir.path().join("dense/hf_quant_config.json").exists());

    pixel(dir.path(), &["compress", "dense", "small", "--bits", "4"]).success();
    pixel(dir.path(), &["verify", "small", "--against", "dense"]).success();
    // It is ours to replace, in another type.
    pixel(dir.path(), &["dequantize", "model", "dense"]).failure().stderr(contains("--overwrite"));
    pixel(dir.path(), &["dequantize", "model", "dense", "--overwrite", "--dtype", "bf16", "-q"]).success();
    let dense = Checkpoint::open(dir.path().join("dense")).unwrap();
    assert_eq!(dense.info("model.layers.0.mlp.up_proj.weight").unwrap().dtype, Dtype::BF16);
    assert_eq!(dense.info("model.norm.weight").unwrap().dtype, Dtype::F32);
}

#[test]
fn what_is_dense_or_does_not_fit_is_refused() {
    let dir = TempDir::new().unwrap();
    save(&dir);
    pixel(dir.path(), &["dequantize", "model", "dense"]).success();
    let refused = pixel(dir.path(), &["dequantize", "dense", "again"]).failure().code(2);
    refused.stderr(contains("dense: no weight is quantised by another tool"));
    assert!(!dir.path().join("again").exists());

    let config = json!({"quantization_config": {"quant_method": "fp8", "weight_block_size": [8, 64]}});
    std::fs::write(dir.path().join("model/config.json"), config.to_string()).unwrap();
    let refused = pixel(dir.path(), &["dequantize", "model", "again"]).failure().code(2);
    refused.stderr(
        contains("the quantised weight \"model.layers.0.mlp.up_proj.weight\" cannot be read")
            .and(contains("tensor \"model.layers.0.mlp.up_proj.weight_scale_inv\" has shape [2, 1]")),
    );
    assert!(!dir.path().join("again").exists());
    // A number beyond F16.
    save(&dir);
    let model = dir.path().join("model/model.safetensors");
    let mut bytes = std::fs::read(&model).unwrap();
    let at = bytes.windows(4).position(|bytes| bytes == 3f32.to_le_bytes()).unwrap();
    bytes[at..at + 4].copy_from_slice(&1e6f32.to_le_bytes());
    std::fs::write(&model, bytes).unwrap();
    let refused = pixel(dir.path(), &["dequantize", "model", "again", "--dtype", "f16"]).failure();
    refused.stderr(contains("which F16 cannot; ask for a wider type"));
    assert!(!dir.path().join("again").exists());
}
