//! Archives, shards, names: one model in many files.

use super::*;

#[test]
fn an_archive_is_the_dense_model_of_its_own_weights() {
    // Models as narrow as these make ten times more of an error than real ones do.
    for (name, recipe, most) in
        [("llama", UNIFORM, 0.1), ("llama3_rope", TRELLIS, 0.8), ("qwen2", TRELLIS, 0.8), ("qwen3", UNIFORM, 0.1)]
    {
        let dir = tempfile::tempdir().unwrap();
        let (packed, dense) = (dir.path().join("packed"), dir.path().join("dense"));
        compress(&folder(name), &packed, recipe);
        decompress(&packed, &dense);
        let tokens = Expected::of(name).ints("tokens");
        let expected = causal(&dense).network.forward(tokens.clone());

        let model = causal(&packed);
        assert!(model.network.projections().all(|projection| matches!(projection, Projection::Pixel(_))));
        let bits = model.network.linear_size().bits_per_weight();
        assert!((4.0..11.0).contains(&bits), "{name}: {bits}");
        let found = model.network.forward(tokens.clone());
        // Activations are rounded to 16 bits, unless everything is asked for in f32.
        assert!(distance(found.clone(), expected.clone()) < 1e-3, "{name}");
        let exact = causal_with(&packed, &LoadOptions::default().with_synthesis(SynthesisMode::OnDemandF32));
        assert!(distance(exact.network.forward(tokens.clone()), expected.clone()) < 1e-4, "{name}");
        assert_eq!(model.unused, Vec::<String>::new());
        // Packed at all, and not far from the original.
        let original = causal(&folder(name)).network.forward(tokens.clone());
        let loss = distance(found, original);
        assert!(loss > 1e-4 && loss < most, "{name}: {loss}");

        let cache = WeightCache::new(1 << 20);
        let options = LoadOptions::default().with_synthesis(SynthesisMode::Cached(cache.clone()));
        let cached = causal_with(&packed, &options);
        assert!(distance(cached.network.forward(tokens), expected) < 1e-4, "{name}");
        assert!(cache.used_bytes() > 0);
    }
}

#[test]
fn an_encoder_is_the_dense_model_of_its_own_weights() {
    let dir = tempfile::tempdir().unwrap();
    let (packed, dense) = (dir.path().join("packed"), dir.path().join("dense"));
    compress(&folder("bert"), &packed, UNIFORM);
    decompress(&packed, &dense);
    let expected = Expected::of("bert");
    let (tokens, padding) = (expected.ints("tokens"), expected.padding());
    let embed = |path: &Path| encoder(path).embed(tokens.clone(), Some(padding.clone()));
    assert!(distance(embed(&packed), embed(&dense)) < 1e-4);
    assert!(encoder(&packed).network.projections().all(|projection| matches!(projection, Projection::Pixel(_))));
}

#[test]
fn shards_are_one_model() {
    for name in ["llama", "llama3_rope"] {
        let dir = copy(name);
        let single = dir.path().join("model.safetensors");
        let tensors = read_tensors(&single);
        fs::remove_file(single).unwrap();
        let mut weight_map = BTreeMap::new();
        for shard in 0..3 {
            let file = format!("model-{:05}-of-00003.safetensors", shard + 1);
            let part: Tensors = tensors.clone().into_iter().skip(shard).step_by(3).collect();
            write_tensors(&dir.path().join(&file), &part);
            weight_map.extend(part.into_keys().map(|tensor| (tensor, file.clone())));
        }
        let index = json!({ "metadata": {}, "weight_map": weight_map });
        fs::write(dir.path().join("model.safetensors.index.json"), index.to_string()).unwrap();

        let tokens = Expected::of(name).ints("tokens");
        let expected = host(causal(&folder(name)).network.forward(tokens.clone()));
        assert_eq!(host(causal(dir.path()).network.forward(tokens.clone())), expected);

        // And an archive of several files.
        let packed = tempfile::tempdir().unwrap();
        let packed = packed.path().join("packed");
        compress(dir.path(), &packed, UNIFORM);
        let found = host(causal(&packed).network.forward(tokens));
        let largest = expected.iter().fold(0.0f32, |m, v| m.max(v.abs()));
        assert!(found.iter().zip(&expected).all(|(found, expected)| abs_diff_eq!(
            found,
            expected,
            epsilon = 0.1 * largest
        )));
    }
}

#[test]
fn a_file_is_a_model_with_the_files_beside_it() {
    let tokens = Expected::of("llama").ints("tokens");
    let file = causal(&folder("llama").join("model.safetensors")).network.forward(tokens.clone());
    assert_eq!(host(file), host(causal(&folder("llama")).network.forward(tokens)));
}

#[test]
fn names_with_and_without_a_prefix_are_the_same_model() {
    let dir = copy("llama");
    edit_tensors(dir.path(), |tensors| {
        let short = std::mem::take(tensors).into_iter();
        *tensors = short.map(|(name, tensor)| (name.strip_prefix("model.").unwrap().to_owned(), tensor)).collect();
    });
    let tokens = Expected::of("llama").ints("tokens");
    let model = causal(dir.path());
    assert_eq!(host(model.network.forward(tokens.clone())), host(causal(&folder("llama")).network.forward(tokens)));
    assert!(model.weight_names.values().any(|name| name == "layers.0.self_attn.q_proj.weight"));

    // The first checkpoints of BERT: a prefix, and other names for the norms.
    let dir = copy("bert");
    edit_tensors(dir.path(), |tensors| {
        let rename = |name: String| {
            let name = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta");
            format!("bert.{name}")
        };
        *tensors = std::mem::take(tensors).into_iter().map(|(name, tensor)| (rename(name), tensor)).collect();
        tensors.insert("cls.predictions.bias".into(), (Dtype::F32, vec![1], vec![0; 4]));
    });
    let (model, expected) = (encoder(dir.path()), Expected::of("bert"));
    let vectors = model.embed(expected.ints("tokens"), Some(expected.padding()));
    assert!(distance(vectors, expected.floats("embedding")) <= 1e-4);
    assert_eq!(model.unused, ["cls.predictions.bias"]);
}

/// The ids of a module's parameters of two axes and of its codes.
#[derive(Default)]
struct Ids(BTreeSet<ParamId>);

impl ModuleVisitor for Ids {
    fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
        if D == 2 {
            self.0.insert(param.id);
        }
    }

    fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
        self.0.insert(param.id);
    }
}

#[test]
fn every_weight_has_the_name_of_its_tensor() {
    let model = causal(&folder("llama3_rope"));
    let mut ids = Ids::default();
    model.network.visit(&mut ids);
    assert!(model.weight_names.keys().eq(&ids.0));
    let names: BTreeSet<&str> = model.weight_names.values().map(String::as_str).collect();
    let tensors = read_tensors(&folder("llama3_rope").join("model.safetensors"));
    assert!(names.into_iter().eq(tensors.iter().filter(|(_, t)| t.1.len() == 2).map(|(name, _)| name.as_str())));
    let Projection::Dense(up) = &model.network.layers[1].mlp.up else { panic!("a dense file") };
    assert_eq!(model.weight_names[&up.weight.id], "model.layers.1.mlp.up_proj.weight");

    let dir = tempfile::tempdir().unwrap();
    let packed = dir.path().join("packed");
    compress(&folder("llama3_rope"), &packed, UNIFORM);
    let model = causal(&packed);
    let mut ids = Ids::default();
    model.network.visit(&mut ids);
    assert!(model.weight_names.keys().all(|id| ids.0.contains(id)));
    let Projection::Pixel(up) = &model.network.layers[1].mlp.up else { panic!("an archive") };
    assert_eq!(model.weight_names[&up.weight.codes().id], "model.layers.1.mlp.up_proj.weight");
    assert_eq!(model.weight_names.len(), tensors.values().filter(|tensor| tensor.1.len() == 2).count());
}

#[test]
fn fewer_layers_than_the_file_has_leave_tensors_unused() {
    let dir = copy("llama");
    edit_config(dir.path(), "num_hidden_layers", json!(1));
    let unused = causal(dir.path()).unused;
    assert_eq!(unused.len(), 9);
    assert!(unused.iter().all(|name| name.starts_with("model.layers.1.")), "{unused:?}");
}

#[test]
fn what_is_not_read_is_listed_with_the_reason() {
    let reasons = |dir: &Path| -> BTreeSet<String> {
        let unread = causal(dir).unread();
        unread.into_iter().map(|tensor| tensor.reason.map_or("unknown".into(), |reason| reason.to_string())).collect()
    };
    let set = |reasons: &[&str]| reasons.iter().map(|reason| (*reason).to_owned()).collect::<BTreeSet<_>>();
    let dir = copy("llama");
    edit_config(dir.path(), "num_hidden_layers", json!(1));
    assert_eq!(reasons(dir.path()), set(&["config.json says num_hidden_layers = 1"]));

    // Biases that the configuration does not ask for, a tensor of nobody knows what, and two that are known as idle.
    let dir = copy("llama");
    edit_tensors(dir.path(), |tensors| {
        for name in ["self_attn.q_proj.bias", "mlp.up_proj.bias", "self_attn.rotary_emb.inv_freq", "position_ids"] {
            tensors.insert(format!("model.layers.0.{name}"), (Dtype::F32, vec![1], vec![0; 4]));
        }
        tensors.insert("other".into(), (Dtype::F32, vec![1], vec![0; 4]));
    });
    let expected = ["config.json does not set attention_bias", "config.json does not set mlp_bias", "unknown"];
    assert_eq!(reasons(dir.path()), set(&expected));
    assert_eq!(causal(dir.path()).unused.len(), 3);

    let dir = copy("bert");
    edit_tensors(dir.path(), |tensors| {
        tensors.insert("classifier.bias".into(), (Dtype::F32, vec![1], vec![0; 4]));
    });
    let unread = load(dir.path(), &LoadOptions::default(), &Device::flex()).unwrap().unread();
    let expected = UnreadTensor { name: "classifier.bias".into(), reason: Some(UnreadReason::Task) };
    assert_eq!(unread, [expected]);
}

#[test]
fn a_tied_head_is_told_if_it_is_not_the_embedding() {
    for (equal, unread) in [(true, vec![]), (false, vec!["lm_head.weight"])] {
        let dir = copy("llama");
        edit_tensors(dir.path(), |tensors| {
            let mut head = tensors["model.embed_tokens.weight"].clone();
            if !equal {
                head.2[0] ^= 1;
            }
            tensors.insert("lm_head.weight".into(), head);
        });
        let archives = tempfile::tempdir().unwrap();
        let packed = archives.path().join("packed");
        // At 8 bits the last bit of a float is lost, and the head kept as it is.
        compress(dir.path(), &packed, "min_weights = 1\n[[rule]]\nmatch = 'embed|head'\nkeep = true\n");
        for path in [dir.path(), &packed] {
            assert_eq!(causal(path).unused, unread);
        }
        let coded = archives.path().join("coded");
        compress(dir.path(), &coded, UNIFORM);
        assert_eq!(causal(&coded).unused, Vec::<String>::new());
    }
}
