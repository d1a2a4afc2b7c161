//! What is coded where nobody asked for anything in particular, and what is said of it.

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use safetensors::tensor::{Dtype, TensorView};
use serde_json::Value;
use std::path::Path;
use tempfile::TempDir;

/// Runs the binary in `dir`.
fn pixel(dir: &Path, args: &[&str]) -> Assert {
    Command::cargo_bin("pixel").unwrap().current_dir(dir).args(args).assert()
}

/// The report of a run.
fn json_of(dir: &Path, args: &[&str]) -> Value {
    let run = pixel(dir, &[args, &["--json"]].concat()).success();
    serde_json::from_slice(&run.get_output().stdout).unwrap()
}

/// A checkpoint of F32 matrices by name, in `dir/model`.
fn save(dir: &TempDir, tensors: &[(&str, [usize; 2])], config: &str) {
    let folder = dir.path().join("model");
    std::fs::create_dir_all(&folder).unwrap();
    let value = |i: usize| (i.wrapping_mul(0x9E37_79B9) >> 8) as u16 as f32 / 32768.0 - 1.0;
    let values = |shape: [usize; 2], seed| (0..shape[0] * shape[1]).map(move |i| value(i + 7919 * seed));
    let bytes: Vec<Vec<u8>> =
        (0..tensors.len()).map(|seed| values(tensors[seed].1, seed).flat_map(f32::to_le_bytes).collect()).collect();
    let view = |(tensor, bytes)| {
        let (name, shape): &(&str, [usize; 2]) = tensor;
        let bytes: &Vec<u8> = bytes;
        (*name, TensorView::new(Dtype::F32, shape.to_vec(), bytes).unwrap())
    };
    let views = tensors.iter().zip(&bytes).map(view);
    safetensors::serialize_to_file(views, None, &folder.join("model.safetensors")).unwrap();
    std::fs::write(folder.join("config.json"), config).unwrap();
}

/// What is done with each tensor, by a dry run.
fn treatments(dir: &Path, more: &[&str]) -> Vec<(String, String, String)> {
    let report = json_of(dir, &[&["compress", "model", "--dry-run"], more].concat());
    let text = |value: &Value| value.as_str().unwrap().to_owned();
    let tensor = |tensor: &Value| (text(&tensor["name"]), text(&tensor["role"]), text(&tensor["treatment"]));
    report["tensors"].as_array().unwrap().iter().map(tensor).collect()
}

/// Of every role a tensor that is large enough to be coded.
const TENSORS: [(&str, [usize; 2]); 14] = [
    ("backbone.layers.0.mixer.A_log", [64, 64]),
    ("backbone.layers.0.mixer.dt_proj.weight", [64, 64]),
    ("base.lora_A.weight", [64, 64]),
    ("blocks.0.att.time_faaaa", [64, 64]),
    ("classifier.weight", [64, 64]),
    ("decoder.embed_positions.weight", [64, 64]),
    ("decoder.layers.0.fc1.weight", [64, 64]),
    ("encoder.relative_attention_bias.weight", [64, 64]),
    ("layers.0.attn.relative_position_bias_table", [64, 64]),
    ("lm_head.weight", [64, 64]),
    ("model.layers.0.block_sparse_moe.gate.weight", [64, 64]),
    ("model.layers.0.mlp.gate_proj.weight", [64, 64]),
    ("positional_embedding", [64, 64]),
    ("tower.mystery.weight", [64, 64]),
];

#[test]
fn only_what_multiplies_activations_is_coded_and_the_table_says_so() {
    let dir = TempDir::new().unwrap();
    save(&dir, &TENSORS, "{}");
    let found = treatments(dir.path(), &[]);
    let expected = [
        ("state_space", "kept (for its role)"),
        ("state_space", "kept (for its role)"),
        ("adapter", "kept (for its role)"),
        ("time_mixing", "kept (for its role)"),
        ("head", "uniform:8"),
        ("embedding", "uniform:8"),
        ("layer", "lapped:2"),
        ("relative_bias", "kept (for its role)"),
        ("relative_bias", "kept (for its role)"),
        ("head", "uniform:8"),
        ("router", "kept (for its role)"),
        ("layer", "lapped:2"),
        ("positions", "kept (for its role)"),
        ("unknown_layer", "lapped:2"),
    ];
    for ((name, role, treatment), expected) in found.iter().zip(expected) {
        assert_eq!((role.as_str(), treatment.as_str()), expected, "{name}");
    }
    assert_eq!(found.len(), expected.len());
    pixel(dir.path(), &["compress", "model", "--dry-run"])
        .success()
        .stdout(contains("router").and(contains("kept (for its role)")))
        .stderr(contains("coded as layers for the end of the name alone, see --exclude: tower.mystery.weight"));
    let run = pixel(dir.path(), &["compress", "model", "small"]).success();
    run.stdout(contains(
        "kept          for their role: 1 router, 2 state space, 1 time mixing, 1 positions, 2 relative",
    ));
    pixel(dir.path(), &["inspect", "small"]).success().stdout(contains("router").and(contains("time mixing")));
}

#[test]
fn a_rule_for_many_does_not_mean_a_router_and_one_that_says_so_does() {
    let dir = TempDir::new().unwrap();
    save(&dir, &TENSORS, "{}");
    let with = |rule: &str| {
        std::fs::write(dir.path().join("recipe.toml"), format!("[[rule]]\nmatch = 'gate'\nbits = 4\n{rule}")).unwrap();
        let of_gates = |(name, ..): &(String, _, _)| name.contains("gate");
        let found = treatments(dir.path(), &["--recipe", "recipe.toml"]).into_iter().filter(of_gates);
        found.map(|(_, _, treatment)| treatment).collect::<Vec<_>>()
    };
    assert_eq!(with(""), ["kept (for its role)", "lapped:4"]);
    let noted = "rule 1 'gate' names model.layers.0.block_sparse_moe.gate.weight, kept for the role";
    pixel(dir.path(), &["compress", "model", "--recipe", "recipe.toml", "--dry-run"]).success().stderr(contains(noted));
    assert_eq!(with("keep = false"), ["lapped:4", "lapped:4"]);
}

#[test]
fn expressions_that_match_nothing_are_named() {
    let dir = TempDir::new().unwrap();
    save(&dir, &TENSORS[9..12], "{}");
    let rules = [("lm_head", "keep = true"), ("^lm_head", "bits = 4"), ("ffn", "bits = 4")];
    let recipe: String = rules.map(|(name, how)| format!("[[rule]]\nmatch = '{name}'\n{how}\n")).concat();
    std::fs::write(dir.path().join("recipe.toml"), recipe).unwrap();
    let run = |more: &[&str]| pixel(dir.path(), &[&["compress", "model", "--dry-run"], more].concat()).success();
    run(&["--recipe", "recipe.toml", "--exclude", "lm_hed"]).stderr(
        contains("note: exclude 1 'lm_hed' matches no tensor")
            .and(contains("note: rule 3 'ffn' matches no tensor"))
            .and(contains("note: rule 2 '^lm_head' never applies: rules before it match its 1 tensor(s) too"))
            .and(contains("rule 1").not()),
    );
    // A preset has rules for many families.
    run(&["--preset", "balanced"]).stderr(contains("matches no tensor").not());
    run(&["--exclude", "lm_hed", "--quiet"]).stderr("");
    // What was not meant is said before it is refused.
    pixel(dir.path(), &["compress", "model", "--dry-run", "--include", "q_poj"]).failure().stderr(
        contains("note: include 1 'q_poj' matches no tensor\n")
            .and(contains("no tensor would be compressed (3 as asked)")),
    );
}

#[test]
fn a_tensor_too_small_for_a_part_is_coded_without_it() {
    let dir = TempDir::new().unwrap();
    save(&dir, &[("a.q_proj.weight", [32, 64]), ("b.q_proj.weight", [512, 512])], "{}");
    let options = ["--codec", "trellis", "--option", "window=10", "--hybrid", "48", "--protect", "300"];
    let run = pixel(dir.path(), &[&["compress", "model", "small"], &options[..]].concat()).success();
    run.stderr(
        contains("note: too small for a low-rank part of rank 48, done without: a.q_proj.weight")
            .and(contains("note: too small for 300 protected columns, done without: a.q_proj.weight")),
    );
    let tensors = &json_of(dir.path(), &["inspect", "small"])["tensors"];
    let parts = |name: &str| (tensors[name]["protected"].as_u64(), tensors[name]["low_rank"]["rank"].as_u64());
    assert_eq!(parts("a.q_proj.weight"), (Some(0), None));
    assert_eq!(parts("b.q_proj.weight"), (Some(300), Some(48)));
}

#[test]
fn quantised_sources_are_refused_by_name() {
    let dir = TempDir::new().unwrap();
    save(&dir, &[("a.q_proj.weight", [64, 64])], r#"{"quantization_config": {"quant_method": "awq"}}"#);
    let refused = || pixel(dir.path(), &["compress", "model", "small"]).failure();
    refused().stderr(contains("model: quantised already, config.json has \"quantization_config\" of \"awq\""));
    save(&dir, &[("a.q_proj.weight", [64, 64]), ("a.q_proj.weight_scale_inv", [64, 64])], "{}");
    refused().stderr(contains("tensor \"a.q_proj.weight_scale_inv\" is of a quantised weight"));
    assert!(!dir.path().join("small").exists());
}
