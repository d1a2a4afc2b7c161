//! What a replaced model computes.

use super::*;

#[test]
fn a_replaced_model_computes_what_its_synthesised_weights_say() {
    for device in devices() {
        for codec in ["uniform:8", "trellis:2:window=8", "additive:2:beam=1"] {
            let mut dense = Net::new(&device);
            let config = config(codec).with_min_weights(0).with_seed(3);
            let (mut small, report) = replace_linear_layers(dense.clone(), &config).unwrap();
            assert_eq!(report.layers.len(), 8);
            for ((_, dense), (_, small)) in dense.linears().into_iter().zip(small.linears()) {
                dense.weight = Param::from_tensor(pattern(small).weight.synthesize().transpose());
            }
            let (expected, found) = (dense.forward(tokens(&device)), small.forward(tokens(&device)));
            assert_eq!(floats(found), floats(expected), "{codec} on {device:?}");
        }
    }
}

#[test]
fn eight_bits_stay_close_to_the_dense_model_and_two_do_not() {
    let device = Device::flex();
    let dense = Net::new(&device);
    let error = |codec| {
        let (small, _) = replace_linear_layers(dense.clone(), &config(codec)).unwrap();
        distance(small.forward(tokens(&device)), dense.forward(tokens(&device)))
    };
    let (fine, coarse) = (error("uniform:8"), error("uniform:2"));
    assert!(fine < 0.02 && coarse > 10.0 * fine, "{fine} {coarse}");
}

#[test]
fn a_column_layout_survives_replacement_and_its_record() {
    let device = Device::flex();
    let config_of = |layout| LinearConfig::new(48, 96).with_layout(layout);
    let dense = config_of(LinearLayout::Col).init(&device);
    let (small, report) = replace_linear_layers(dense.clone(), &config("uniform:8")).unwrap();
    assert_eq!(report.layers[0].shape.to_string(), "96×48");
    let x = draws::normal([5, 48]);
    assert!(distance(small.forward(x.clone()), dense.forward(x.clone())) < 0.01);
    let fresh = replace_skeleton(config_of(LinearLayout::Col).init(&device), &config("uniform:8")).unwrap();
    let expected = floats(small.forward(x.clone()));
    let loaded = reload(small, fresh);
    assert_eq!(floats(loaded.forward(x.clone())), expected);
    let reloaded = reload(restore_dense(loaded), config_of(LinearLayout::Col).init(&device));
    assert!(distance(reloaded.forward(x), Tensor::from_data(TensorData::new(expected, [5, 96]), &device)) < 1e-6);
}

#[test]
fn embeddings_and_convolutions_are_replaced_on_request() {
    #[derive(Module, Debug)]
    struct Up {
        net: Net,
        up: ConvTranspose2d,
    }
    let device = Device::flex();
    let up = ConvTranspose2dConfig::new([LENGTH, 8], [3, 3]).init(&device);
    let dense = Up { net: Net::new(&device), up };
    let (untouched, report) = replace_linear_layers(dense.clone(), &config("uniform:8")).unwrap();
    for name in ["net.embedding.weight", "net.conv.weight", "up.weight"] {
        assert_eq!(reason(&report, name), &SkipReason::NotAsked);
    }
    assert_eq!(untouched.up.weight.dims(), [LENGTH, 8, 3, 3]);
    let config = config("uniform:4")
        .with_embeddings(Some(spec("uniform:8")))
        .with_convolutions(Some(spec("uniform:8:group=8")))
        .with_exclude(vec!["blocks|pair|heads".into()]);
    let (small, report) = replace_linear_layers(dense.clone(), &config).unwrap();
    let shapes: Vec<_> = report.layers.iter().map(|layer| (layer.name.as_str(), layer.shape.to_string())).collect();
    let expected = [("net.embedding.weight", "32×64"), ("net.conv.weight", "16×144"), ("up.weight", "16×72")];
    assert_eq!(shapes, expected.map(|(name, shape)| (name, shape.to_owned())));
    assert_eq!(small.net.conv.weight.val().dims(), [LENGTH, LENGTH, 3, 3]);
    assert!(distance(small.net.conv.weight.val(), dense.net.conv.weight.val()) < 0.01);
    assert!(distance(small.up.weight.val(), dense.up.weight.val()) < 0.01);
    let x = draws::normal([1, LENGTH, 4, 4]);
    assert!(distance(small.up.forward(x.clone()), dense.up.forward(x)) < 0.01);
    assert!(distance(small.net.forward(tokens(&device)), dense.net.forward(tokens(&device))) < 0.01);
}

#[test]
fn linear_layers_inside_burns_own_attention_are_replaced() {
    let device = Device::flex();
    let dense: MultiHeadAttention = MultiHeadAttentionConfig::new(64, 4).with_dropout(0.0).init(&device);
    let (small, report) = replace_linear_layers(dense.clone(), &config("uniform:8")).unwrap();
    assert_eq!(names(&report), ["query.weight", "key.weight", "value.weight", "output.weight"]);
    let x = draws::normal([2, 5, 64]);
    let run = |model: &MultiHeadAttention| model.forward(MhaInput::self_attn(x.clone())).context;
    assert!(distance(run(&small), run(&dense)) < 0.02);
}

#[test]
fn a_model_in_half_precision_stays_in_half_precision() {
    struct Half;
    impl ModuleMapper for Half {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|tensor| tensor.cast(DType::F16))
        }
    }
    let device = Device::flex();
    let dense = linear(64, 96, &device).map(&mut Half);
    let (small, report) = replace_linear_layers(dense.clone(), &config("uniform:8")).unwrap();
    assert_eq!(report.layers[0].original_bytes, 2 * 64 * 96);
    let x = Tensor::<2>::ones([3, 64], &device).cast(DType::F16);
    let (found, expected) = (small.forward(x.clone()), dense.forward(x.clone()));
    assert_eq!(found.dtype(), DType::F16);
    assert!(distance(found.clone(), expected) < 0.01);
    let loaded = reload(small, replace_skeleton(linear(64, 96, &device).map(&mut Half), &config("uniform:8")).unwrap());
    assert_eq!(floats(loaded.forward(x)), floats(found));
}

#[test]
fn cached_weights_are_synthesised_once_and_leave_with_the_layer() {
    let device = Device::flex();
    let cache = WeightCache::new(1 << 20);
    let config = config("trellis:2:window=8");
    let (demand, _) = replace_linear_layers(linear(64, 96, &device), &config).unwrap();
    let config = config.with_synthesis(SynthesisMode::Cached(cache.clone()));
    let (cached, _) = replace_linear_layers(linear(64, 96, &device), &config).unwrap();
    let x = Tensor::<2>::ones([3, 64], &device);
    let expected = floats(demand.forward(x.clone()));
    assert_eq!((floats(cached.forward(x.clone())), cache.used_bytes()), (expected.clone(), 4 * 64 * 96));
    assert_eq!((floats(cached.forward(x)), cache.used_bytes()), (expected, 4 * 64 * 96));
    drop(cached);
    assert_eq!(cache.used_bytes(), 0);
}

#[test]
fn moving_and_restoring_keep_the_values() {
    let device = Device::flex();
    for target in devices() {
        let (small, _) = replace_linear_layers(Net::new(&device), &config("trellis:2:window=8")).unwrap();
        let expected = small.forward(tokens(&device));
        let moved = small.to_device(&target);
        assert!(moved.devices().iter().all(|device| *device == target));
        let found = moved.forward(tokens(&target));
        assert!(distance(found.clone(), expected) < 1e-5, "{target:?}");
        let mut dense = restore_dense(moved);
        assert_eq!(floats(dense.forward(tokens(&target))), floats(found), "{target:?}");
        assert!(replaced_parameters(&dense).is_empty());
        assert_eq!(dense.linears()[0].1.weight.dims(), [WIDTH, 2 * WIDTH]);
    }
}
