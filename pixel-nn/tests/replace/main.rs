//! Models of ordinary Burn layers before and after their weights give way to patterns.

mod burn_modules;
#[path = "../draws/mod.rs"]
mod draws;
mod records;
mod selection;
#[cfg(feature = "autodiff")]
mod training;
mod values;

use approx::abs_diff_eq;
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
use pixel_core::compressor::Progress;
use pixel_nn::replace::{ReplacementReport, SkipReason};
use pixel_nn::{
    LayerError, PIXELLinear, PIXELLinearConfig, PatternParam, ReplaceConfig, SynthesisMode, WeightCache,
    num_dense_params, replace_linear_layers, replace_linear_layers_with, replace_skeleton, replaced_parameters,
    restore_dense,
};
use std::sync::Mutex;

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
    pixel_core::math::metrics::relative_error(&floats(b), &floats(a))
}

fn pattern(linear: &Linear) -> &PatternParam {
    linear.weight.reparameterization().expect("a replaced weight")
}

fn linear(d_input: usize, d_output: usize, device: &Device) -> Linear {
    LinearConfig::new(d_input, d_output).init(device).map(&mut Numbers(3))
}

fn names(report: &ReplacementReport) -> Vec<&str> {
    report.layers.iter().map(|layer| layer.name.as_str()).collect()
}

fn reason<'a>(report: &'a ReplacementReport, name: &str) -> &'a SkipReason {
    &report.kept.iter().find(|kept| kept.name == name).unwrap_or_else(|| panic!("{name} is not kept")).reason
}

fn reload<M: Module>(source: M, target: M) -> M {
    let bytes = source.into_record().into_bytes().unwrap();
    target.load_record(ModuleRecord::from_bytes(bytes).unwrap())
}
