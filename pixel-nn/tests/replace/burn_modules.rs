//! Every module of Burn that holds a matrix: its forward pass, display, counts and records after a replacement.

use super::draws::normal;
use super::*;
use burn::nn::activation::ActivationConfig;
use burn::nn::attention::CrossAttentionConfig;
use burn::nn::conv::{Conv1dConfig, Conv3dConfig, ConvTranspose1dConfig, ConvTranspose3dConfig, DeformConv2dConfig};
use burn::nn::transformer::{
    PositionWiseFeedForwardConfig, TransformerDecoderConfig, TransformerDecoderInput, TransformerEncoderConfig,
    TransformerEncoderInput,
};
use burn::nn::{
    BiGruConfig, BiLstmConfig, BiRnnConfig, GruConfig, LstmConfig, RnnConfig, RotaryEncodingConfig, SwiGluConfig,
};
use std::fmt::Display;

/// Replaces all matrices of `make()`, which are those that the report must hold, and compares. Returns how both print,
/// without the number of parameters.
fn check<M: Module + Display, const D: usize>(
    make: impl Fn(&Device) -> M,
    forward: impl Fn(&M) -> Tensor<D>,
    expected: &[&str],
) -> [String; 2] {
    let device = Device::flex();
    let config = config("uniform:8").with_min_weights(1);
    let config = config.with_embeddings(Some(spec("uniform:8"))).with_convolutions(Some(spec("uniform:8")));
    let dense = make(&device).map(&mut Numbers(5));
    let wanted = forward(&dense);
    let (small, report) = replace_linear_layers(dense.clone(), &config).unwrap();
    let name = dense.to_string().split_once(' ').map(|(name, _)| name.to_owned()).unwrap();
    assert_eq!(names(&report), expected, "{name}");
    let error = distance(forward(&small), wanted);
    assert!(error < 0.02, "{name}: {error}");
    assert!(small.to_string().starts_with(&name), "{name}");
    assert_eq!(num_dense_params(&small), dense.num_params(), "{name}");
    assert_eq!(num_dense_params(&dense), dense.num_params(), "{name}");
    println!("| `{name}` | {} | {} | {error:.4} |", report.layers.len(), report.kept.len());

    let printed = [dense.to_string(), small.to_string()].map(|text| text.rsplit_once("params").unwrap().0.to_owned());

    // Once more: everything is kept, under the shape that it has.
    let (_, again) = replace_linear_layers(small.clone(), &config.clone().with_allow_nothing(true)).unwrap();
    let kept = |name: &str| again.kept.iter().find(|kept| kept.name == name).unwrap().shape.iter().product::<usize>();
    for layer in &report.layers {
        assert_eq!(kept(&layer.name), layer.shape.num_weights(), "{name}: {}", layer.name);
    }

    // A record goes into a fresh model, and into one that has run.
    let values = floats(forward(&small));
    let bytes = small.into_record().into_bytes().unwrap();
    let record = || ModuleRecord::from_bytes(bytes.clone()).unwrap();
    let loaded = replace_skeleton(make(&device), &config).unwrap().load_record(record());
    assert_eq!(floats(forward(&loaded)), values, "{name}");
    let (used, _) = replace_linear_layers(make(&device), &config).unwrap();
    forward(&used);
    assert_eq!(floats(forward(&used.load_record(record()))), values, "{name}");
    let restored = restore_dense(loaded);
    assert!(distance(forward(&restored), forward(&dense)) < 0.02, "{name}");
    assert_eq!(restored.num_params(), dense.num_params(), "{name}");
    printed
}

/// `prefix.SUFFIX.weight` for every suffix.
fn weights(prefix: &str, suffixes: &[&str]) -> Vec<String> {
    suffixes.iter().map(|suffix| format!("{prefix}{suffix}.weight")).collect()
}

fn strs(names: &[String]) -> Vec<&str> {
    names.iter().map(String::as_str).collect()
}

const HEADS: [&str; 4] = ["query", "key", "value", "output"];

#[test]
fn linear_and_what_is_made_of_it() {
    let x = normal([2, 3, 32]);
    check(|device| LinearConfig::new(32, 48).init(device), |m| m.forward(x.clone()), &["weight"]);
    check(
        |device| PositionWiseFeedForwardConfig::new(32, 48).with_dropout(0.0).init(device),
        |m| m.forward(x.clone()),
        &["linear_inner.weight", "linear_outer.weight"],
    );
    let gated = PositionWiseFeedForwardConfig::new(32, 48).with_activation(ActivationConfig::Relu).with_dropout(0.0);
    check(
        |device| gated.init(device),
        |m| m.forward(x.clone().reshape([6, 32])),
        &["linear_inner.weight", "linear_outer.weight"],
    );
    check(
        |device| SwiGluConfig::new(32, 48).init(device),
        |m| m.forward(x.clone()),
        &["linear_inner.weight", "linear_outer.weight"],
    );
}

#[test]
fn attention_and_transformers() {
    let (x, memory) = (normal([2, 3, 32]), normal([2, 5, 32]));
    check(
        |device| MultiHeadAttentionConfig::new(32, 4).with_dropout(0.0).init(device),
        |m| m.forward(MhaInput::self_attn(x.clone())).context,
        &strs(&weights("", &HEADS)),
    );
    let context = normal([2, 5, 24]);
    check(
        |device| CrossAttentionConfig::new(32, 24, 4, 2, 8).with_dropout(0.0).init(device),
        |m| m.forward(x.clone(), context.clone(), None),
        &strs(&weights("", &HEADS)),
    );
    let feed_forward = ["pwff.linear_inner", "pwff.linear_outer"];
    let encoder: Vec<String> = (0..2)
        .flat_map(|layer| {
            let layer = format!("layers.{layer}.");
            [weights(&format!("{layer}mha."), &HEADS), weights(&layer, &feed_forward)].concat()
        })
        .collect();
    check(
        |device| TransformerEncoderConfig::new(32, 48, 4, 2).with_dropout(0.0).init(device),
        |m| m.forward(TransformerEncoderInput::new(x.clone())),
        &strs(&encoder),
    );
    let cross: Vec<String> = HEADS.iter().map(|head| format!("cross_attn.{head}")).collect();
    let own: Vec<String> = HEADS.iter().map(|head| format!("self_attn.{head}")).collect();
    let decoder: Vec<String> =
        [strs(&cross), strs(&own), feed_forward.to_vec()].concat().into_iter().map(Into::into).collect();
    check(
        |device| TransformerDecoderConfig::new(32, 48, 4, 1).with_dropout(0.0).init(device),
        |m| m.forward(TransformerDecoderInput::new(x.clone(), memory.clone())),
        &strs(&weights("layers.0.", &strs(&decoder))),
    );
}

#[test]
fn recurrent_layers() {
    let x = normal([2, 3, 32]);
    let gates = |prefix: &str, gates: &[&str]| -> Vec<String> {
        let both = |gate: &&str| ["input_transform", "hidden_transform"].map(|part| format!("{prefix}{gate}.{part}"));
        gates.iter().flat_map(both).map(|path| path + ".weight").collect()
    };
    let two = |names: &[&str]| [gates("forward.", names), gates("reverse.", names)].concat();
    let (rnn, gru) = (["gate"], ["update_gate", "reset_gate", "new_gate"]);
    let lstm = ["input_gate", "forget_gate", "output_gate", "cell_gate"];
    // Their displays read the width of the input off a weight.
    let same = |[dense, small]: [String; 2]| assert_eq!(small, dense);
    same(check(
        |device| RnnConfig::new(32, 24, true).init(device),
        |m| m.forward(x.clone(), None).0,
        &strs(&gates("", &rnn)),
    ));
    same(check(
        |device| BiRnnConfig::new(32, 24, true).init(device),
        |m| m.forward(x.clone(), None).0,
        &strs(&two(&rnn)),
    ));
    same(check(
        |device| GruConfig::new(32, 24, true).init(device),
        |m| m.forward(x.clone(), None),
        &strs(&gates("", &gru)),
    ));
    same(check(
        |device| BiGruConfig::new(32, 24, true).init(device),
        |m| m.forward(x.clone(), None).0,
        &strs(&two(&gru)),
    ));
    same(check(
        |device| LstmConfig::new(32, 24, true).init(device),
        |m| m.forward(x.clone(), None).0,
        &strs(&gates("", &lstm)),
    ));
    same(check(
        |device| BiLstmConfig::new(32, 24, true).init(device),
        |m| m.forward(x.clone(), None).0,
        &strs(&two(&lstm)),
    ));
}

#[test]
fn embeddings_and_convolutions() {
    let device = Device::flex();
    check(|device| EmbeddingConfig::new(32, 48).init(device), |m| m.forward(tokens(&device)), &["weight"]);
    let (line, image, volume) = (normal([2, 8, 9]), normal([2, 8, 9, 9]), normal([2, 8, 5, 5, 5]));
    check(|device| Conv1dConfig::new(8, 6, 3).init(device), |m| m.forward(line.clone()), &["weight"]);
    check(|device| Conv2dConfig::new([8, 6], [3, 3]).init(device), |m| m.forward(image.clone()), &["weight"]);
    check(|device| Conv3dConfig::new([8, 6], [3, 3, 3]).init(device), |m| m.forward(volume.clone()), &["weight"]);
    check(|device| ConvTranspose1dConfig::new([8, 6], 3).init(device), |m| m.forward(line.clone()), &["weight"]);
    check(|device| ConvTranspose2dConfig::new([8, 6], [3, 3]).init(device), |m| m.forward(image.clone()), &["weight"]);
    check(
        |device| ConvTranspose3dConfig::new([8, 6], [3, 3, 3]).init(device),
        |m| m.forward(volume.clone()),
        &["weight"],
    );
}

/// Those that hold no matrix of a kind that is replaced are returned as they are, or refused in words.
#[test]
fn modules_without_a_weight_to_replace_say_so() {
    let device = Device::flex();
    let refused = |error: LayerError| error.to_string();
    let deform = DeformConv2dConfig::new([8, 6], [3, 3]).init(&device);
    let config = config("uniform:8").with_min_weights(1);
    assert_eq!(
        refused(replace_linear_layers(deform, &config).unwrap_err()),
        "no weight is to be replaced: weight (in a layer of type DeformConv2d); `allow_nothing` makes that no error"
    );
    let rotary = RotaryEncodingConfig::new(16, 8).init(&device);
    let message = refused(replace_linear_layers(rotary, &config).unwrap_err());
    assert!(message.starts_with("no weight is to be replaced"), "{message}");
    let norm = LayerNormConfig::new(8).init(&device);
    let message = refused(replace_linear_layers(norm.clone(), &config).unwrap_err());
    assert!(message.contains("the model has no matrix"), "{message}");
    let (_, report) = replace_linear_layers(norm, &config.with_allow_nothing(true)).unwrap();
    assert_eq!((report.layers.len(), report.kept.len()), (0, 0));
}
