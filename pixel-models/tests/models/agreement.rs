//! Against an independent implementation, and against itself.

use super::*;

#[test]
fn decoders_are_what_another_implementation_computes() {
    for name in DECODERS {
        let (model, expected) = (causal(&folder(name)), Expected::of(name));
        let found = model.network.forward(expected.ints("tokens"));
        let distance = distance(found, expected.floats("logits"));
        assert!(distance <= 1e-4, "{name}: {distance}");
        assert_eq!(model.unused, Vec::<String>::new(), "{name}");
    }
}

#[test]
fn the_encoder_is_what_another_implementation_computes() {
    let (model, expected) = (encoder(&folder("bert")), Expected::of("bert"));
    let (tokens, padding) = (expected.ints("tokens"), expected.padding());
    let states = model.network.forward(tokens.clone(), Some(padding.clone()));
    assert!(distance(states, expected.floats("states")) <= 1e-4);
    assert_eq!(model.pooling, Pooling::Mean);
    let vectors = model.embed(tokens.clone(), Some(padding.clone()));
    assert!(distance(vectors.clone(), expected.floats("embedding")) <= 1e-4);
    assert_eq!(model.unused, Vec::<String>::new());

    // What stands at padding is not read: other tokens there change nothing.
    let other = tokens.clone().mask_fill(padding.clone(), 7);
    assert!(distance(model.embed(other, Some(padding.clone())), vectors.clone()) < 1e-6);
    // The second type of token is another vector, the first the default.
    let types = Tensor::zeros_like(&tokens);
    let typed = |types| model.network.forward_typed(tokens.clone(), types, Some(padding.clone()));
    assert_eq!(host(typed(types.clone())), host(model.network.forward(tokens.clone(), Some(padding.clone()))));
    assert!(distance(typed(types.ones_like()), expected.floats("states")) > 0.01);
}

#[test]
fn a_text_in_pieces_is_the_text() {
    for name in DECODERS {
        let (model, tokens) = (causal(&folder(name)), Expected::of(name).ints("tokens"));
        let whole = model.network.forward(tokens.clone());
        let [_, seq, vocabulary] = whole.dims();
        for step in [1, 3, 4, seq] {
            let mut cache = model.network.cache();
            let mut all = Vec::new();
            for start in (0..seq).step_by(step) {
                let piece = tokens.clone().slice(s![.., start..(start + step).min(seq)]);
                all.push(model.network.forward_cached_all(piece, &mut cache));
            }
            assert_eq!(cache.len(), seq);
            let distance = distance(Tensor::cat(all, 1), whole.clone());
            assert!(distance < 1e-5, "{name}, {step} at a time: {distance}");
        }
        // The last logits alone, before and after some tokens are taken back.
        let mut cache = model.network.cache_with_capacity(seq);
        for _ in 0..2 {
            cache.truncate(2);
            let rest = tokens.clone().slice(s![.., cache.len()..]);
            let last = model.network.forward_cached(rest, &mut cache);
            let expected = whole.clone().slice(s![.., seq - 1.., ..]).reshape([2, vocabulary]);
            assert!(distance(last, expected) < 1e-5, "{name}");
        }
    }
}

#[test]
fn a_window_hides_what_lies_before_it() {
    let model = causal(&folder("mistral_window"));
    assert_eq!(model.config.windows, [Some(4), Some(4)]);
    let tokens = Expected::of("mistral_window").ints("tokens");
    let [batch, seq] = tokens.dims();
    // Two layers see two windows back: token 0 reaches position 6 and not 7.
    let first = tokens.clone().slice_fill(s![.., 0..1], 5);
    let change = (model.network.hidden(first) - model.network.hidden(tokens)).abs().max_dim(2);
    let change = host(change.reshape([batch, seq]).max_dim(0));
    assert!(change[..7].iter().all(|&c| c > 1e-4), "{change:?}");
    assert!(change[7..].iter().all(|&c| c == 0.0), "{change:?}");
}

#[test]
fn rotary_scaling_and_norms_matter() {
    // What a test against one fixture cannot show: that the fixture depends on the feature at all.
    let changes = [
        ("llama3_rope", "rope_scaling", Value::Null),
        ("llama3_rope", "rms_norm_eps", json!(1e-5)),
        ("mistral_window", "sliding_window", Value::Null),
    ];
    for (name, field, value) in changes {
        let dir = copy(name);
        edit_config(dir.path(), field, value);
        let expected = Expected::of(name);
        let found = causal(dir.path()).network.forward(expected.ints("tokens"));
        assert!(distance(found, expected.floats("logits")) > 1e-3, "{name}: {field}");
    }
}

#[test]
fn narrow_types_come_near() {
    let tokens = Expected::of("qwen3").ints("tokens");
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("packed");
    compress(&folder("qwen3"), &packed, UNIFORM);
    for path in [folder("qwen3"), packed] {
        let wide = causal(&path).network.forward(tokens.clone());
        let model = causal_with(&path, &LoadOptions::default().with_dtype(FloatDType::F16));
        assert_eq!(model.network.hidden(tokens.clone()).dtype(), DType::F16);
        let narrow = model.network.forward(tokens.clone());
        assert_eq!(narrow.dtype(), DType::F32);
        let distance = distance(narrow, wide);
        assert!(distance > 1e-6 && distance < 0.02, "{distance}");
    }
}

#[test]
fn the_first_token_is_pooled_where_the_model_says_so() {
    let dir = copy("bert");
    fs::create_dir(dir.path().join("1_Pooling")).unwrap();
    let pooling = dir.path().join("1_Pooling/config.json");
    fs::write(&pooling, json!({ "pooling_mode_cls_token": true, "pooling_mode_mean_tokens": false }).to_string())
        .unwrap();
    let (model, expected) = (encoder(dir.path()), Expected::of("bert"));
    assert_eq!(model.pooling, Pooling::First);
    let found = model.embed(expected.ints("tokens"), Some(expected.padding()));
    let states = expected.floats::<3>("states");
    let [batch, _, hidden] = states.dims();
    let first = states.slice(s![.., 0..1, ..]).reshape([batch, hidden]);
    let length = first.clone().square().sum_dim(1).sqrt();
    assert!(distance(found, first / length) < 1e-4);

    fs::write(&pooling, json!({ "pooling_mode_max_tokens": true }).to_string()).unwrap();
    let error = refused(dir.path());
    assert!(error.contains("1_Pooling/config.json") && error.contains("\"pooling_mode_max_tokens\" = true"), "{error}");
}
