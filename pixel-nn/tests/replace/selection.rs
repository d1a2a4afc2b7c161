//! Which weights are replaced, and which are refused.

use super::*;

#[test]
fn reports_name_every_weight_by_its_path_and_others_stay_as_they_are() {
    #[derive(Default)]
    struct Others(Vec<String>, Vec<(String, Vec<f32>)>);
    impl ModuleVisitor for Others {
        fn enter_module(&mut self, name: &str, _: &str) {
            self.0.push(name.into());
        }
        fn exit_module(&mut self, _: &str, _: &str) {
            self.0.pop();
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            let is_placeholder = D > 1 && param.dims()[1..].iter().all(|&axis| axis == 1);
            if !is_placeholder && !self.0.contains(&"pixel".into()) {
                self.1.push((self.0.join("."), floats(param.base())));
            }
        }
    }
    let others = |model: &Net| {
        let mut others = Others::default();
        model.visit(&mut others);
        others.1
    };
    let mut dense = Net::new(&Device::flex());
    let (mut small, report) = replace_linear_layers(dense.clone(), &config("uniform:4")).unwrap();
    let mut expected: Vec<_> = dense.linears().into_iter().map(|(name, linear)| (name, linear.weight.id)).collect();
    let ids: Vec<_> = small.linears().into_iter().map(|(name, linear)| (name, linear.weight.id)).collect();
    assert_eq!(ids, expected, "ids");
    let (head, _) = expected.pop().unwrap();
    assert_eq!(names(&report), expected.iter().map(|(name, _)| *name).collect::<Vec<_>>());
    assert_eq!(reason(&report, head), &SkipReason::Small);
    let replaced: Vec<_> = replaced_parameters(&small);
    assert_eq!(replaced.len(), report.layers.len());
    for (found, layer) in replaced.iter().zip(&report.layers) {
        assert_eq!((&found.name, found.shape, &found.codec), (&layer.name, layer.shape, &layer.codec));
        assert_eq!(found.bits_per_weight(), layer.bits_per_weight);
    }
    let mut kept = others(&dense);
    kept.retain(|(name, _)| !names(&report).contains(&name.as_str()));
    assert_eq!(kept.len(), 1 + 2 + 3 * 3 + 2 + 2);
    assert_eq!(others(&small), kept);
    let table = report.to_string();
    assert!(table.contains("\npair.0.weight               64×64  uniform:4  "), "{table}");
    assert!(table.contains("\nkept heads.1.Plain.weight [64, 4]: small\n7 of 10 weights replaced: "), "{table}");
}

#[test]
fn include_exclude_and_rules_choose_by_path() {
    let device = Device::flex();
    let config = config("uniform:2")
        .with_include(vec![r"^blocks\.".into(), "^pair".into()])
        .with_exclude(vec![r"outer".into()])
        .with_rule(r"blocks\.1", spec("uniform:4"))
        .with_rule("blocks", spec("uniform:8"));
    let (_, report) = replace_linear_layers(Net::new(&device), &config).unwrap();
    let chosen: Vec<_> = report.layers.iter().map(|layer| (layer.name.as_str(), layer.codec.to_string())).collect();
    let expected = [
        ("blocks.0.inner.weight", "uniform:8"),
        ("blocks.1.inner.weight", "uniform:4"),
        ("pair.0.weight", "uniform:2"),
        ("pair.1.weight", "uniform:2"),
    ];
    assert_eq!(chosen, expected.map(|(name, codec)| (name, codec.to_owned())));
    assert_eq!(reason(&report, "blocks.0.outer.weight"), &SkipReason::Excluded);
    assert_eq!(reason(&report, "heads.0.Deep.inner.weight"), &SkipReason::NotIncluded);
}

#[test]
fn expressions_that_do_not_parse_or_match_are_refused() {
    let run = |config: ReplaceConfig| replace_linear_layers(Net::lazy(&Device::flex()), &config).unwrap_err();
    let base = || config("uniform:4");
    for config in [
        base().with_include(vec!["(".into()]),
        base().with_exclude(vec!["(".into()]),
        base().with_rule("(", spec("uniform:4")),
    ] {
        assert!(matches!(run(config), LayerError::Pattern { pattern, .. } if pattern == "("));
    }
    // The embedding is there, but not asked for.
    for wrong in ["^nothing", "embedding"] {
        for config in [
            base().with_include(vec!["blocks".into(), wrong.into()]),
            base().with_exclude(vec![wrong.into()]),
            base().with_rule(wrong, spec("uniform:8")),
        ] {
            assert!(matches!(run(config), LayerError::Unmatched { pattern } if pattern == wrong));
        }
    }
    assert!(matches!(run(base().with_rule("pair", spec("uniform:7"))), LayerError::Config(_)));
    assert!(matches!(run(base().with_embeddings(Some(spec("magic:7")))), LayerError::Config(_)));
}

#[test]
fn what_carries_something_already_is_kept() {
    let device = Device::flex();
    let adapted = linear(64, 64, &device).apply_lora(Lora::new(2, 4.0));
    let (adapted, report) = replace_linear_layers(adapted, &config("uniform:4").with_allow_nothing(true)).unwrap();
    assert_eq!(reason(&report, "weight"), &SkipReason::Reparameterized { by: "lora".into() });
    assert!(report.layers.is_empty() && adapted.weight.adapter().is_some());
    assert_eq!(adapted.weight.dims(), [64, 64]);

    let (once, first) = replace_linear_layers(linear(64, 64, &device), &config("uniform:4")).unwrap();
    let values = floats(once.weight.val());
    let again = config("uniform:2");
    let error = replace_linear_layers(once.clone(), &again).unwrap_err().to_string();
    assert_eq!(
        error,
        "no weight is to be replaced: weight (\"pixel\" is attached to it); `allow_nothing` makes that no error"
    );
    assert!(matches!(replace_skeleton(once.clone(), &again), Err(LayerError::NothingToReplace { .. })));
    let (twice, second) = replace_linear_layers(once, &again.with_allow_nothing(true)).unwrap();
    assert_eq!(second.kept[0].shape, [64, 64]);
    assert_eq!(reason(&second, "weight"), &SkipReason::Reparameterized { by: "pixel".into() });
    assert_eq!((first.layers.len(), second.layers.len(), second.kept.len()), (1, 0, 1));
    assert_eq!(floats(twice.weight.val()), values);
    assert_eq!((second.compression_ratio(), second.relative_error(), second.bits_per_weight()), (1.0, 0.0, 0.0));
}

#[test]
fn adapters_on_a_replaced_weight_are_laid_on_its_scales() {
    let device = Device::flex();
    let (small, _) = replace_linear_layers(linear(64, 96, &device), &config("uniform:4")).unwrap();
    let values = floats(small.weight.val());
    let adapted = small.apply_lora(Lora::new(2, 4.0));
    assert!(pattern(&adapted).weight.scales().adapter().is_some() && adapted.weight.adapter().is_none());
    assert_eq!(floats(adapted.weight.val()), values);
}

#[test]
fn compressed_layers_and_quantized_weights_are_not_touched() {
    #[derive(Module, Debug)]
    struct Mixed {
        ours: PIXELLinear,
        theirs: Linear,
        plain: Linear,
    }
    let device = Device::flex();
    // Scales of a group are a matrix of 256×32.
    let ours = PIXELLinearConfig::new(256, 256).with_codec(spec("uniform:4:group=8")).init(&device);
    let scales = floats(ours.weight.scales().val());
    let mut quantizer = Quantizer::new(Calibration::MinMax, QuantScheme::default());
    let theirs = linear(64, 64, &device).quantize_weights(&mut quantizer);
    let model = Mixed { ours, theirs, plain: linear(64, 64, &device) };
    let (small, report) = replace_linear_layers(model, &config("uniform:4")).unwrap();
    assert_eq!(names(&report), ["plain.weight"]);
    assert_eq!(reason(&report, "theirs.weight"), &SkipReason::Quantized);
    assert_eq!(report.kept.len(), 1);
    assert_eq!(floats(small.ours.weight.scales().val()), scales);
    assert!(matches!(small.theirs.weight.base().dtype(), DType::QFloat(_)));
}

#[test]
fn matrices_of_unknown_layers_are_listed() {
    #[derive(Module, Debug)]
    struct Own {
        weight: Param<Tensor<2>>,
        linear: Linear,
    }
    let device = Device::flex();
    let own = Own { weight: Param::from_tensor(Tensor::ones([64, 64], &device)), linear: linear(64, 64, &device) };
    let (_, report) = replace_linear_layers(own, &config("uniform:4")).unwrap();
    assert_eq!(reason(&report, "weight"), &SkipReason::OtherLayer { container: "Own".into() });
    assert_eq!(names(&report), ["linear.weight"]);
}

#[test]
fn clones_of_a_layer_share_their_patterns_while_their_values_are_equal() {
    let device = Device::flex();
    let first = linear(64, 64, &device);
    let mut third = first.clone();
    third.weight = third.weight.map(|weight| weight * 3.0);
    let (small, report) = replace_linear_layers(vec![first.clone(), first, third], &config("uniform:4")).unwrap();
    assert_eq!(report.layers[1].shared_with.as_deref(), Some("0.weight"));
    assert_eq!(report.layers[2].shared_with, None);
    let ids: Vec<ParamId> = small.iter().map(|linear| pattern(linear).weight.scales().id).collect();
    assert!(ids[0] == ids[1] && ids[0] != ids[2]);
    assert_eq!(report.stored_bytes(), 2 * report.layers[0].stored_bytes);
    assert_eq!(report.original_bytes(), 2 * 4 * 64 * 64);
    assert!(distance(small[2].weight.val(), small[0].weight.val() * 3.0) < 0.05);
}

#[test]
fn a_weight_that_is_not_finite_is_refused_by_its_path() {
    let mut net = Net::new(&Device::flex());
    let (name, bad) = net.linears().remove(4);
    let name = name.to_owned();
    bad.weight = bad.weight.clone().map(|weight| weight * f32::NAN);
    let error = replace_linear_layers(net, &config("uniform:4")).unwrap_err();
    assert!(matches!(&error, LayerError::Parameter { name: found, .. } if *found == name));
    assert_eq!(error.to_string(), "parameter \"pair.1.weight\": the weight at row 0, column 0 is NaN");
}

/// What was done, and the weight after which it asks to stop.
#[derive(Default)]
struct Listener {
    done: Mutex<Vec<(String, u64)>>,
    last: Option<usize>,
}

impl Progress for Listener {
    fn tensor_done(&self, name: &str, weights: u64) {
        self.done.lock().unwrap().push((name.into(), weights));
    }

    fn is_cancelled(&self) -> bool {
        self.last.is_some_and(|last| self.done.lock().unwrap().len() >= last)
    }
}

#[test]
fn progress_tells_each_weight_and_can_stop() {
    let listener = Listener::default();
    let device = Device::flex();
    let (_, report) = replace_linear_layers_with(Net::new(&device), &config("uniform:4"), &listener).unwrap();
    let mut done = listener.done.into_inner().unwrap();
    let mut expected: Vec<_> =
        report.layers.iter().map(|layer| (layer.name.clone(), layer.shape.num_weights() as u64)).collect();
    done.sort();
    expected.sort();
    assert_eq!(done, expected);

    let stopped = Listener { last: Some(2), ..Listener::default() };
    let pool = rayon::ThreadPoolBuilder::new().num_threads(1).build().unwrap();
    let run = || replace_linear_layers_with(Net::new(&device), &config("uniform:4"), &stopped).unwrap_err();
    assert_eq!(pool.install(run).to_string(), "cancelled after 2 of 7 weights");
}

#[test]
fn every_number_of_threads_gives_the_same() {
    let run = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        // The pools may send work to a thread of theirs that waits in another walk.
        let models = || {
            rayon::join(
                || replace_linear_layers(Net::new(&Device::flex()), &config("lapped:2:beam=1")).unwrap(),
                || replace_linear_layers(Net::new(&Device::flex()), &config("lapped:2:beam=1")).unwrap(),
            )
        };
        let ((first, report), (second, _)) = pool.install(models);
        let values =
            |net: &Net| net.blocks.iter().flat_map(|block| floats(block.inner.weight.val())).collect::<Vec<_>>();
        assert_eq!(values(&first), values(&second));
        (values(&first), report)
    };
    let one = run(1);
    assert_eq!(run(2), one);
    assert_eq!(run(5), one);
}

#[test]
fn an_empty_weight_is_small_or_refused() {
    let empty = |device: &Device| Linear { weight: Param::from_tensor(Tensor::zeros([0, 4], device)), bias: None };
    let device = Device::flex();
    let asked = config("uniform:4").with_allow_nothing(true);
    let (_, report) = replace_linear_layers(empty(&device), &asked).unwrap();
    assert_eq!(reason(&report, "weight"), &SkipReason::Small);
    let error = replace_linear_layers(empty(&device), &config("uniform:4").with_min_weights(0)).unwrap_err();
    assert!(matches!(error, LayerError::Parameter { name, .. } if name == "weight"));
}
