//! Models of ordinary Burn layers before and after their weights give way to patterns.

use burn::config::Config;
use burn::module::{Lora, Module, ModuleMapper, ModuleVisitor, Param, ParamId, Quantizer};
use burn::nn::attention::{MhaInput, MultiHeadAttention, MultiHeadAttentionConfig};
use burn::nn::conv::{Conv2d, Conv2dConfig, ConvTranspose2d, ConvTranspose2dConfig};
use burn::nn::{
    Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig, LinearLayout, PaddingConfig2d,
};
use burn::store::ModuleRecord;
use burn::tensor::quantization::{Calibration, QuantScheme};
use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use pixel_core::CodecSpec;
use pixel_nn::replace::{CompressionReport, KeepReason};
use pixel_nn::{
    LayerError, PIXELLinear, PIXELLinearConfig, PatternParam, ReplaceConfig, SynthesisMode, WeightCache,
    replace_linear_layers, replace_skeleton, replaced_parameters, restore_dense,
};

/// Channels of an image, and the length of a text.
const LENGTH: usize = 16;
/// Length of a token's vector, an image of 8×8.
const WIDTH: usize = 64;

#[derive(Module, Debug)]
struct Block {
    norm: LayerNorm,
    inner: Linear,
    outer: Option<Linear>,
}

#[derive(Module, Debug)]
#[allow(clippy::large_enum_variant, reason = "a model of a test")]
enum Head {
    Plain(Linear),
    Deep(Block),
}

#[derive(Module, Debug)]
struct Net {
    embedding: Embedding,
    conv: Conv2d,
    blocks: Vec<Block>,
    pair: [Linear; 2],
    heads: (Head, Head),
}

impl Block {
    fn new(outer: bool, device: &Device) -> Self {
        Self {
            norm: LayerNormConfig::new(WIDTH).init(device),
            inner: LinearConfig::new(WIDTH, 2 * WIDTH).init(device),
            outer: outer.then(|| LinearConfig::new(2 * WIDTH, WIDTH).with_bias(false).init(device)),
        }
    }

    fn forward(&self, x: Tensor<3>) -> Tensor<3> {
        let y = self.inner.forward(self.norm.forward(x.clone()));
        match &self.outer {
            None => x + y.slice([0..1, 0..LENGTH, 0..WIDTH]),
            Some(outer) => x + outer.forward(burn::tensor::activation::relu(y)),
        }
    }
}

impl Net {
    fn lazy(device: &Device) -> Self {
        let square = || LinearConfig::new(WIDTH, WIDTH).init(device);
        Self {
            embedding: EmbeddingConfig::new(32, WIDTH).init(device),
            conv: Conv2dConfig::new([LENGTH, LENGTH], [3, 3]).with_padding(PaddingConfig2d::Same).init(device),
            blocks: vec![Block::new(true, device), Block::new(false, device)],
            pair: [square(), square()],
            heads: (Head::Deep(Block::new(true, device)), Head::Plain(LinearConfig::new(WIDTH, 4).init(device))),
        }
    }

    fn new(device: &Device) -> Self {
        Self::lazy(device).map(&mut Numbers(1))
    }

    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let x = self.embedding.forward(tokens);
        let image = self.conv.forward(x.clone().reshape([1, LENGTH, 8, 8])).reshape([1, LENGTH, WIDTH]);
        let mut x = x + image;
        for block in &self.blocks {
            x = block.forward(x);
        }
        for linear in &self.pair {
            x = x.clone() + linear.forward(x);
        }
        for head in [&self.heads.0, &self.heads.1] {
            x = match head {
                Head::Plain(linear) => linear.forward(x),
                Head::Deep(block) => block.forward(x),
            };
        }
        x
    }

    /// All its linear layers, in the order of its fields, and their paths.
    fn linears(&mut self) -> Vec<(&'static str, &mut Linear)> {
        let Self { blocks, pair: [first, second], heads, .. } = self;
        let [Block { inner: a, outer: Some(b), .. }, Block { inner: c, outer: None, .. }] = &mut blocks[..] else {
            panic!("two blocks")
        };
        let (Head::Deep(Block { inner: d, outer: Some(e), .. }), Head::Plain(head)) = heads else {
            panic!("two heads")
        };
        vec![
            ("blocks.0.inner.weight", a),
            ("blocks.0.outer.weight", b),
            ("blocks.1.inner.weight", c),
            ("pair.0.weight", first),
            ("pair.1.weight", second),
            ("heads.0.Deep.inner.weight", d),
            ("heads.0.Deep.outer.weight", e),
            ("heads.1.Plain.weight", head),
        ]
    }
}

/// Numbers in [−1/8, 1/8) that depend on the seed alone (SplitMix64, Steele et al. 2014).
struct Numbers(u64);

impl ModuleMapper for Numbers {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| {
            let draw = |_| {
                self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
                let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
                let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
                ((z ^ (z >> 31)) >> 40) as f32 / (1u64 << 26) as f32 - 0.125
            };
            let values: Vec<f32> = (0..tensor.dims().iter().product()).map(draw).collect();
            let drawn = Tensor::from_data(TensorData::new(values, tensor.dims()), &tensor.device());
            if tensor.is_require_grad() { drawn.require_grad() } else { drawn }
        })
    }
}

fn tokens(device: &Device) -> Tensor<2, Int> {
    let tokens: Vec<i32> = (0..LENGTH as i32).map(|i| i * 7 % 32).collect();
    Tensor::from_data(TensorData::new(tokens, [1, LENGTH]), device)
}

fn devices() -> Vec<Device> {
    vec![
        Device::flex(),
        #[cfg(feature = "ndarray")]
        ndarray(),
        #[cfg(feature = "wgpu")]
        Device::wgpu(burn::tensor::DeviceKind::DefaultDevice),
    ]
}

#[cfg(feature = "ndarray")]
#[expect(deprecated, reason = "a backend that PIXEL supports as long as Burn has it")]
fn ndarray() -> Device {
    Device::ndarray()
}

fn spec(text: &str) -> CodecSpec {
    text.parse().unwrap()
}

fn config(text: &str) -> ReplaceConfig {
    ReplaceConfig::new(spec(text))
}

fn floats<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().convert::<f32>().try_into_vec().unwrap()
}

/// `‖a − b‖ / ‖b‖`.
fn distance<const D: usize>(a: Tensor<D>, b: Tensor<D>) -> f64 {
    pixel_core::metrics::relative_error(&floats(b), &floats(a))
}

fn pattern(linear: &Linear) -> &PatternParam {
    linear.weight.reparameterization().expect("a replaced weight")
}

fn linear(d_input: usize, d_output: usize, device: &Device) -> Linear {
    LinearConfig::new(d_input, d_output).init(device).map(&mut Numbers(3))
}

fn names(report: &CompressionReport) -> Vec<&str> {
    report.layers.iter().map(|layer| layer.name.as_str()).collect()
}

fn reason<'a>(report: &'a CompressionReport, name: &str) -> &'a KeepReason {
    &report.kept.iter().find(|kept| kept.name == name).unwrap_or_else(|| panic!("{name} is not kept")).reason
}

fn bytes_of<M: Module>(model: &M) -> usize {
    model.clone().into_record().into_bytes().unwrap().len()
}

fn reload<M: Module>(source: M, target: M) -> M {
    let bytes = source.into_record().into_bytes().unwrap();
    target.load_record(ModuleRecord::from_bytes(bytes).unwrap())
}

// What is computed.

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
    let x = Tensor::<2>::random([5, 48], burn::tensor::Distribution::Default, &device);
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
        assert_eq!(reason(&report, name), &KeepReason::NotAsked);
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
    let x = Tensor::<4>::random([1, LENGTH, 4, 4], burn::tensor::Distribution::Default, &device);
    assert!(distance(small.up.forward(x.clone()), dense.up.forward(x)) < 0.01);
    assert!(distance(small.net.forward(tokens(&device)), dense.net.forward(tokens(&device))) < 0.01);
}

#[test]
fn linear_layers_inside_burns_own_attention_are_replaced() {
    let device = Device::flex();
    let dense: MultiHeadAttention = MultiHeadAttentionConfig::new(64, 4).with_dropout(0.0).init(&device);
    let (small, report) = replace_linear_layers(dense.clone(), &config("uniform:8")).unwrap();
    assert_eq!(names(&report), ["query.weight", "key.weight", "value.weight", "output.weight"]);
    let x = Tensor::<3>::random([2, 5, 64], burn::tensor::Distribution::Default, &device);
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

// What is chosen.

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
            if param.dims() != [1; D] && !self.0.contains(&"pixel".into()) {
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
    assert_eq!(reason(&report, head), &KeepReason::Small);
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
    assert_eq!(reason(&report, "blocks.0.outer.weight"), &KeepReason::Excluded);
    assert_eq!(reason(&report, "heads.0.Deep.inner.weight"), &KeepReason::NotIncluded);
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
    let (adapted, report) = replace_linear_layers(adapted, &config("uniform:4")).unwrap();
    assert_eq!(reason(&report, "weight"), &KeepReason::Reparameterized { by: "lora".into() });
    assert!(report.layers.is_empty() && adapted.weight.adapter().is_some());
    assert_eq!(adapted.weight.dims(), [64, 64]);

    let (once, first) = replace_linear_layers(linear(64, 64, &device), &config("uniform:4")).unwrap();
    let values = floats(once.weight.val());
    let (twice, second) = replace_linear_layers(once, &config("uniform:2")).unwrap();
    assert_eq!(reason(&second, "weight"), &KeepReason::Reparameterized { by: "pixel".into() });
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
    assert_eq!(reason(&report, "theirs.weight"), &KeepReason::Quantized);
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
    assert_eq!(reason(&report, "weight"), &KeepReason::OtherLayer { container: "Own".into() });
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

// What goes wrong.

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

#[test]
fn an_empty_weight_is_small_or_refused() {
    let empty = |device: &Device| Linear { weight: Param::from_tensor(Tensor::zeros([0, 4], device)), bias: None };
    let device = Device::flex();
    let (_, report) = replace_linear_layers(empty(&device), &config("uniform:4")).unwrap();
    assert_eq!(reason(&report, "weight"), &KeepReason::Small);
    let error = replace_linear_layers(empty(&device), &config("uniform:4").with_min_weights(0)).unwrap_err();
    assert!(matches!(error, LayerError::Parameter { name, .. } if name == "weight"));
}

// What it costs.

#[test]
fn a_report_counts_the_bytes_that_are_held() {
    /// Whether the walk is inside something attached, and the bytes of the parameters there.
    #[derive(Default)]
    struct Held(bool, usize);
    impl ModuleVisitor for Held {
        fn enter_module(&mut self, _: &str, container: &str) {
            self.0 |= container == "Reparameterization";
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1 += if self.0 { 4 * param.shape().num_elements() } else { 0 };
        }
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
            self.1 += 4 * param.shape().num_elements();
        }
    }
    let device = Device::flex();
    for codec in ["uniform:4", "trellis:2:window=8", "additive:2:beam=1"] {
        let dense = Linear { bias: None, ..linear(96, 256, &device) };
        let (small, report) = replace_linear_layers(dense.clone(), &config(codec)).unwrap();
        let layer = &report.layers[0];
        let mut held = Held::default();
        small.visit(&mut held);
        // The tables of the rotation are no parameters: signs, a bit each, and the odd part of 96 = 3·32.
        let tables = if codec.starts_with("uniform") { 0 } else { 4 * (96 / 32 + 3) };
        assert_eq!(held.1 + tables, layer.device_bytes, "{codec}");
        let packed = pattern(&small).weight.to_packed().unwrap();
        assert_eq!(layer.stored_bytes, packed.num_bytes());
        assert_eq!(layer.bits_per_weight, 8.0 * packed.num_bytes() as f64 / (96.0 * 256.0));
        assert_eq!((layer.original_bytes, report.original_bytes()), (4 * 96 * 256, 4 * 96 * 256));
        assert_eq!(report.compression_ratio(), layer.original_bytes as f64 / layer.stored_bytes as f64);
        let error = distance(small.weight.val(), dense.weight.val());
        assert!((error / layer.relative_error - 1.0).abs() < 1e-3, "{error} {}", layer.relative_error);
        assert_eq!(layer.relative_error, report.relative_error());
    }
}

#[test]
fn a_record_shrinks_by_what_the_weights_lost() {
    let device = Device::flex();
    let dense = linear(256, 512, &device);
    let (small, report) = replace_linear_layers(dense.clone(), &config("trellis:2:window=8")).unwrap();
    let (before, after) = (bytes_of(&dense), bytes_of(&small));
    let saved = report.original_bytes() - report.device_bytes();
    println!("record {before} -> {after} bytes; {report}");
    // Names and headers of four tensors more, and the alignment of their contents.
    assert!(after < before - saved + 2048, "{before} {after} {saved}");
    assert!(after > before - saved - 2048, "{before} {after} {saved}");
}

// Records.

#[test]
fn a_record_reloads_without_a_change() {
    let device = Device::flex();
    for codec in ["uniform:4", "trellis:2:window=8", "additive:2:beam=1"] {
        let config = config(codec).with_embeddings(Some(spec("uniform:8"))).with_seed(5);
        let (small, _) = replace_linear_layers(Net::new(&device), &config).unwrap();
        let expected = floats(small.forward(tokens(&device)));
        let fresh = || replace_skeleton(Net::lazy(&device), &config).unwrap();
        assert_ne!(floats(fresh().forward(tokens(&device))), expected);
        let loaded = reload(small.clone(), fresh());
        assert_eq!(floats(loaded.forward(tokens(&device))), expected, "{codec}, from bytes");
        let folder = tempfile::tempdir().unwrap();
        small.save_file(folder.path().join("net.bpk")).unwrap();
        let loaded = fresh().load_file(folder.path().join("net.bpk"));
        assert_eq!(floats(loaded.forward(tokens(&device))), expected, "{codec}, from a file");
        assert_eq!(replaced_parameters(&loaded).len(), 8);
    }
}

#[test]
fn a_record_of_another_configuration_is_refused() {
    let device = Device::flex();
    let (small, _) = replace_linear_layers(linear(64, 64, &device), &config("uniform:4")).unwrap();
    let record = small.into_record();
    for other in [linear(64, 64, &device), replace_skeleton(linear(64, 64, &device), &config("uniform:2")).unwrap()] {
        assert!(other.try_load_record(record.clone()).is_err());
    }
}

#[test]
fn a_configuration_survives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("replace.json");
    let config = config("trellis:2:window=8").with_rule("a", spec("uniform:4")).with_seed(9).with_min_weights(7);
    config.save(&file).unwrap();
    let loaded = ReplaceConfig::load(&file).unwrap();
    assert_eq!(format!("{loaded:?}"), format!("{config:?}"));
    std::fs::write(&file, r#"{ "codec": { "codec": "trellis", "bits": 2 }, "sead": 3 }"#).unwrap();
    assert!(ReplaceConfig::load(&file).is_err());
    std::fs::write(&file, r#"{ "codec": { "codec": "trellis", "bits": 2 } }"#).unwrap();
    assert_eq!(ReplaceConfig::load(&file).unwrap().min_weights, 1024);
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

// Training.

#[cfg(feature = "autodiff")]
mod training {
    use super::*;
    use burn::optim::{AdamWConfig, GradientsParams};

    fn loss(net: &Net, device: &Device) -> Tensor<1> {
        (net.forward(tokens(device)) - 1.0).powf_scalar(2.0).mean()
    }

    /// Freezes all but what is attached to parameters: whatever is learned, patterns have learned it.
    struct PatternsOnly(usize);

    impl ModuleMapper for PatternsOnly {
        fn enter_module(&mut self, _: &str, container: &str) {
            self.0 += usize::from(self.0 > 0 || container == "Reparameterization");
        }

        fn exit_module(&mut self, _: &str, _: &str) {
            self.0 = self.0.saturating_sub(1);
        }

        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            if self.0 > 0 { param } else { param.set_require_grad(false) }
        }
    }

    fn scalar(loss: Tensor<1>) -> f32 {
        floats(loss)[0]
    }

    #[test]
    fn training_moves_scales_and_dictionary_and_no_code() {
        let device = Device::flex().autodiff();
        for codec in ["uniform:4", "trellis:2:window=8", "additive:2:beam=1"] {
            let (mut net, _) = replace_linear_layers(Net::new(&device), &config(codec)).unwrap();
            let state = |net: &mut Net| {
                let linears = net.linears().into_iter().take(7);
                let weights = linears.map(|(_, linear)| {
                    let weight = &pattern(linear).weight;
                    let codes = weight.codes().val().into_data().try_to_vec::<u32>().unwrap();
                    (codes, floats(weight.scales().val()), floats(weight.dictionary().val()))
                });
                weights.collect::<Vec<_>>()
            };
            let before = state(&mut net);
            let grads = loss(&net, &device).backward();
            for (name, linear) in net.linears().into_iter().take(7) {
                let weight = &pattern(linear).weight;
                for (what, grad) in [
                    ("scales", weight.scales().val().grad(&grads).map(floats)),
                    ("dictionary", weight.dictionary().val().grad(&grads).map(floats)),
                ] {
                    let grad = grad.unwrap_or_else(|| panic!("{codec} {name}: no gradient of {what}"));
                    assert!(grad.iter().any(|g| *g != 0.0), "{codec} {name}: {what}");
                }
                assert!(linear.weight.base().grad(&grads).is_none());
            }
            let mut net = net.map(&mut PatternsOnly(0));
            let mut optimizer = AdamWConfig::new().init();
            let start = scalar(loss(&net, &device));
            for _ in 0..5 {
                let grads = GradientsParams::from_grads(loss(&net, &device).backward(), &net);
                net = optimizer.step(1e-2, net, grads);
            }
            let end = scalar(loss(&net, &device));
            assert!(end < 0.9 * start, "{codec}: {start} -> {end}");
            for (before, after) in before.into_iter().zip(state(&mut net)) {
                assert!(before.0 == after.0 && before.1 != after.1 && before.2 != after.2, "{codec}");
            }
            let valid = net.valid();
            let plain = Device::flex();
            let (found, expected) = (valid.forward(tokens(&plain)), net.forward(tokens(&device)));
            assert!(distance(found, expected) < 1e-5, "{codec}");
            let again = valid.train();
            let grads = loss(&again, &device).backward();
            let Head::Deep(block) = &again.heads.0 else { panic!("deep") };
            assert!(pattern(&block.inner).weight.scales().val().grad(&grads).is_some());
        }
    }

    #[test]
    fn a_restored_model_trains_where_the_dense_one_did() {
        let device = Device::flex().autodiff();
        for device in [device.clone(), Device::flex()] {
            let plain = linear(64, 64, &device);
            let frozen = linear(64, 64, &device).no_grad();
            let (small, _) = replace_linear_layers(vec![plain, frozen], &config("uniform:4")).unwrap();
            let trained = |linear: &Linear| {
                let weight = &pattern(linear).weight;
                [weight.scales().val().is_require_grad(), weight.dictionary().val().is_require_grad()]
            };
            let train = small.clone().train();
            assert_eq!((trained(&train[0]), trained(&train[1])), ([true; 2], [false; 2]), "{device:?}");
            let dense = restore_dense(small).train();
            let trained = |linear: &Linear| linear.weight.val().is_require_grad();
            assert_eq!((trained(&dense[0]), trained(&dense[1])), (true, false), "{device:?}");
        }
    }
}
