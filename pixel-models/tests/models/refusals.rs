//! Faults of files, and inputs that are refused.

use super::*;

#[test]
fn faults_of_the_weights_name_file_and_tensor() {
    let name = "model.layers.1.mlp.up_proj.weight";
    let dir = copy("llama");
    edit_tensors(dir.path(), |tensors| drop(tensors.remove(name)));
    let error = load(dir.path(), &LoadOptions::default(), &Device::flex()).unwrap_err();
    assert!(matches!(&error, ModelError::MissingTensor { tensor, .. } if tensor == name), "{error}");
    assert_eq!(error.to_string(), format!("{}: tensor \"{name}\" is missing", dir.path().display()));

    let dir = copy("llama");
    edit_tensors(dir.path(), |tensors| tensors.get_mut(name).unwrap().1 = vec![32, 24]);
    let file = dir.path().join("model.safetensors");
    let expected = "has shape [32, 24], the configuration says [24, 32]";
    assert_eq!(refused(dir.path()), format!("{}: tensor \"{name}\" {expected}", file.display()));
    // The same in an archive.
    let packed = dir.path().with_extension("packed");
    compress(dir.path(), &packed, UNIFORM);
    assert!(refused(&packed).contains(&format!("model.pixel: tensor \"{name}\" {expected}")));
    fs::remove_dir_all(packed).unwrap();

    let dir = copy("llama");
    edit_tensors(dir.path(), |tensors| {
        let tensor = tensors.get_mut(name).unwrap();
        *tensor = (Dtype::I32, tensor.1.clone(), tensor.2.clone());
    });
    let error = refused(dir.path());
    assert!(error.contains("model.safetensors") && error.contains(name) && error.contains("I32"), "{error}");

    // A head of its own that is not there, and one that is there in vain.
    let dir = copy("llama");
    edit_config(dir.path(), "tie_word_embeddings", json!(false));
    assert!(refused(dir.path()).ends_with("tensor \"lm_head.weight\" is missing"));
    let dir = copy("llama3_rope");
    edit_config(dir.path(), "tie_word_embeddings", json!(true));
    assert_eq!(causal(dir.path()).unused, ["lm_head.weight"]);

    let dir = copy("llama");
    fs::write(dir.path().join("model.safetensors"), "x").unwrap();
    let error = refused(dir.path());
    assert!(error.contains("model.safetensors") && error.contains("not a valid safetensors file"), "{error}");
}

#[test]
fn faults_of_the_configuration_name_file_and_field() {
    let cases = [
        (
            "llama",
            "vocab_size",
            json!(49),
            "model.embed_tokens.weight\" has shape [48, 32], the configuration says [49, 32]",
        ),
        ("llama", "hidden_size", Value::Null, "field \"hidden_size\" is missing"),
        ("llama", "num_attention_heads", json!(3), "field \"num_key_value_heads\" is 2: num_attention_heads = 3"),
        (
            "llama",
            "rope_parameters",
            json!({ "rope_type": "yarn" }),
            "\"rope_parameters.rope_type\" = \"yarn\"; default,",
        ),
        ("llama", "num_hidden_layers", json!(3), "\"model.layers.2.input_layernorm.weight\" is missing"),
        ("qwen2", "model_type", json!("gpt2"), "field \"model_type\" = \"gpt2\"; llama,"),
        ("bert", "hidden_act", json!(3), "field \"hidden_act\" is 3: invalid type: integer `3`, expected a string"),
    ];
    for (name, field, value, expected) in cases {
        let dir = copy(name);
        edit_config(dir.path(), field, value);
        let error = refused(dir.path());
        assert!(error.contains(&dir.path().display().to_string()) && error.contains(expected), "{error}");
    }

    let dir = copy("llama");
    for (text, expected) in [("[]", "not a JSON object"), ("{\"model_type\":", "not a JSON object: EOF")] {
        fs::write(dir.path().join("config.json"), text).unwrap();
        let error = refused(dir.path());
        assert!(error.contains("config.json") && error.contains(expected), "{error}");
    }
    fs::remove_file(dir.path().join("config.json")).unwrap();
    assert!(refused(dir.path()).starts_with("cannot read ") && refused(dir.path()).ends_with("config.json"));
}

#[test]
fn a_model_of_the_other_kind_is_an_error() {
    let open = |name: &str| load(folder(name), &LoadOptions::default(), &Device::flex()).unwrap();
    assert!(matches!(open("bert"), LoadedModel::Encoder(_)));
    let error = open("bert").into_causal().unwrap_err().to_string();
    assert!(error.ends_with("bert holds an encoder, a decoder is needed"), "{error}");
    assert!(open("llama").into_encoder().is_err());
}

#[test]
fn a_damaged_archive_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("packed");
    compress(&folder("llama"), &packed, UNIFORM);
    let file = packed.join("model.pixel");
    let mut bytes = fs::read(&file).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 4;
    fs::write(&file, bytes).unwrap();
    let error = refused(&packed);
    assert!(error.contains("model.pixel") && error.contains("is damaged: BLAKE3"), "{error}");
}

#[test]
#[should_panic(expected = "a text of 17 tokens, the model has 16 positions")]
fn a_text_beyond_the_last_position_is_refused() {
    encoder(&folder("bert")).network.forward(Tensor::zeros([1, 17], &Device::flex()), None);
}

#[test]
#[should_panic(expected = "layers of the cache (left) and of the model (right)")]
fn a_cache_of_another_model_is_refused() {
    let dir = copy("llama");
    edit_config(dir.path(), "num_hidden_layers", json!(1));
    let network: Llama = causal(&folder("llama")).network;
    network.forward_cached(Tensor::zeros([1, 1], &Device::flex()), &mut causal(dir.path()).network.cache());
}
