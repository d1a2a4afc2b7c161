//! Products `y = x·Wᵀ` of one shape and batch, dense and compressed, ours and others'.

use burn::module::Module;
use burn::nn::{Linear, LinearConfig};
use burn::tensor::quantization::{QuantScheme, QuantValue};
use burn::tensor::{Device, Distribution, Tensor};
use pixel_core::math::Exponent;
use pixel_core::math::simd::{Simd, SimdLevel};
use pixel_core::synthesis::{Arithmetic, KernelForm};
use pixel_core::{CodecSpec, CodingSpec, Shape};
use pixel_nn::{PIXELLinear, PIXELLinearConfig};

/// A product that can be timed.
pub struct Contender {
    /// What it is.
    pub name: String,
    /// Bytes of the weight that a call reads.
    pub weight_bytes: usize,
    /// Who made it, and so what it is compared with.
    pub kind: Kind,
    run: Box<dyn FnMut() + Send>,
}

/// The kinds of contenders.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// F32 weights.
    Dense,
    /// Quantized weights of another library.
    Other,
    /// A kernel of `pixel-core` on slices.
    Kernel,
    /// A layer of `pixel-nn`, rotation included.
    Layer,
}

impl Contender {
    fn new(name: impl Into<String>, kind: Kind, weight_bytes: usize, run: impl FnMut() + Send + 'static) -> Self {
        Self { name: name.into(), weight_bytes, kind, run: Box::new(run) }
    }

    /// One product.
    pub fn run(&mut self) {
        (self.run)();
    }
}

/// The size of a product: `[batch, d_input]` by `[d_output, d_input]`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Size {
    /// Rows of the weight.
    pub d_output: usize,
    /// Columns of the weight.
    pub d_input: usize,
    /// Rows of activations.
    pub batch: usize,
}

impl Size {
    /// Weights.
    pub const fn num_weights(self) -> usize {
        self.d_output * self.d_input
    }

    /// Multiplications and additions.
    pub const fn flops(self) -> f64 {
        2.0 * (self.num_weights() * self.batch) as f64
    }

    fn activations(self) -> Vec<f32> {
        // Neither zero nor regular.
        (0..self.batch * self.d_input).map(|i| ((i * 7919 % 104_729) as f32 / 52_364.5) - 1.0).collect()
    }
}

/// The codecs of the report.
pub const CODECS: [&str; 16] = [
    "additive:1.5",
    "additive:2",
    "additive:2.5",
    "additive:3",
    "additive:4",
    "lapped:1.5",
    "lapped:2",
    "lapped:2.5",
    "lapped:3",
    "lapped:4",
    "trellis:2",
    "trellis:2.5",
    "trellis:3",
    "trellis:4",
    "uniform:4",
    "uniform:8",
];

/// All contenders for a size that this build has.
///
/// # Panics
/// If a tensor library refuses its own product.
pub fn all(size: Size) -> Vec<Contender> {
    let mut all = dense(size);
    all.extend(burn_quantized(size));
    #[cfg(feature = "candle")]
    all.extend(candle(size));
    for codec in CODECS {
        all.push(kernel(size, codec, SimdLevel::Avx512Vbmi, Arithmetic::Integer));
    }
    for codec in ["additive:2", "lapped:2"] {
        all.push(kernel(size, codec, SimdLevel::Avx2, Arithmetic::Integer));
    }
    all.push(kernel(size, "trellis:2", SimdLevel::Avx2, Arithmetic::Integer));
    all.push(kernel(size, "trellis:4", SimdLevel::Avx2, Arithmetic::Integer));
    all.push(kernel(size, "trellis:2", SimdLevel::Avx512Vbmi, Arithmetic::F32));
    for codec in ["additive:2", "lapped:2", "trellis:2", "trellis:4"] {
        all.push(layer(size, codec, "flex", &Device::flex()));
        #[cfg(feature = "ndarray")]
        #[allow(deprecated, reason = "Burn advises Flex, but still ships and tests this backend")]
        all.push(layer(size, codec, "ndarray", &Device::ndarray()));
    }
    all
}

/// Dense products in f32: our plainest code, and Burn's layers.
pub fn dense(size: Size) -> Vec<Contender> {
    let bytes = 4 * size.num_weights();
    let mut all = Vec::new();
    if size.batch == 1 {
        let (weight, x) = (vec![0.5f32; size.num_weights()], size.activations());
        let mut y = vec![0.0; size.d_output];
        let run = move || dense_product(&weight, &x, &mut y);
        all.push(Contender::new("f32, plain loop", Kind::Dense, bytes, run));
    }
    all.push(burn_linear(size, "flex", &Device::flex()));
    #[cfg(feature = "ndarray")]
    #[allow(deprecated, reason = "Burn advises Flex, but still ships and tests this backend")]
    all.push(burn_linear(size, "ndarray", &Device::ndarray()));
    all
}

fn burn_linear(size: Size, backend: &str, device: &Device) -> Contender {
    let layer = LinearConfig::new(size.d_input, size.d_output).with_bias(false).init(device);
    let x = input(size, device);
    let name = format!("f32, Burn Linear, {backend}");
    Contender::new(name, Kind::Dense, 4 * size.num_weights(), move || forward(&layer, &x))
}

/// Burn's own quantized weights on Flex.
fn burn_quantized(size: Size) -> Vec<Contender> {
    let device = Device::flex();
    let quantized = |(value, bits): (QuantValue, usize)| {
        let layer = LinearConfig::new(size.d_input, size.d_output).with_bias(false).init(&device);
        let scheme = QuantScheme::default().with_value(value);
        let mut quantizer = burn::module::Quantizer::new(burn::tensor::quantization::Calibration::MinMax, scheme);
        let layer = layer.quantize_weights(&mut quantizer);
        let x = input(size, &device);
        let name = format!("{bits} bits, Burn Linear, flex");
        Contender::new(name, Kind::Other, size.num_weights() * bits / 8, move || forward(&layer, &x))
    };
    [(QuantValue::Q8S, 8), (QuantValue::Q4S, 4)].map(quantized).into()
}

fn forward(layer: &Linear, x: &Tensor<2>) {
    std::hint::black_box(layer.forward(x.clone()).into_data());
}

fn input(size: Size, device: &Device) -> Tensor<2> {
    Tensor::random([size.batch, size.d_input], Distribution::Uniform(-1.0, 1.0), device)
}

/// candle's products with llama.cpp's types, which come in blocks of 256 columns: none for other widths.
#[cfg(feature = "candle")]
fn candle(size: Size) -> Vec<Contender> {
    use candle_core::quantized::{GgmlDType, QMatMul, QTensor};
    use candle_core::{Device, Module, Tensor};
    if !size.d_input.is_multiple_of(256) {
        return Vec::new();
    }
    let product = |(name, dtype): (&str, GgmlDType)| {
        let weight = Tensor::randn(0f32, 1.0, (size.d_output, size.d_input), &Device::Cpu).expect("a random tensor");
        let quantized = QTensor::quantize(&weight, dtype).expect("a width of whole blocks");
        let bytes = quantized.storage_size_in_bytes();
        let product = QMatMul::from_qtensor(quantized).expect("a product");
        let x = Tensor::from_vec(size.activations(), (size.batch, size.d_input), &Device::Cpu).expect("activations");
        let run = move || {
            std::hint::black_box(product.forward(&x).expect("a product"));
        };
        Contender::new(format!("candle {name}"), Kind::Other, bytes, run)
    };
    [("Q4_K", GgmlDType::Q4K), ("Q3_K", GgmlDType::Q3K), ("Q2_K", GgmlDType::Q2K)].map(product).into()
}

/// Our product on slices, with instructions up to `level`.
///
/// # Panics
/// If there is no such codec.
pub fn kernel(size: Size, codec: &str, level: SimdLevel, arithmetic: Arithmetic) -> Contender {
    let (form, x) = (form(size, codec), size.activations());
    let mut y = vec![0.0; size.batch * size.d_output];
    let simd = Simd::at_most(level);
    let mut name = codec.to_owned();
    if level < SimdLevel::Avx512Vbmi {
        name += &format!(", at most {level:?}");
    }
    if arithmetic == Arithmetic::F32 {
        name += ", in f32";
    }
    let bytes = 4 * (form.codes.len() + form.scales.len());
    Contender::new(name, Kind::Kernel, bytes, move || {
        form.as_slices().with_simd(simd).with_arithmetic(arithmetic).linear(&x, &mut y);
        std::hint::black_box(&y);
    })
}

/// Our layer, with its rotation.
fn layer(size: Size, codec: &str, backend: &str, device: &Device) -> Contender {
    let layer: PIXELLinear = PIXELLinearConfig::new(size.d_input, size.d_output)
        .with_bias(false)
        .with_codec(codec.parse().expect("a codec"))
        .init(device);
    let x = input(size, device);
    let bytes = layer.weight.device_bytes();
    Contender::new(format!("{codec}, PIXELLinear, {backend}"), Kind::Layer, bytes, move || {
        std::hint::black_box(layer.forward(x.clone()).into_data());
    })
}

/// A weight with random codes.
///
/// # Panics
/// If there is no such codec.
pub fn form(size: Size, codec: &str) -> KernelForm {
    let codec: CodecSpec = codec.parse().expect("a codec");
    let shape = Shape::new(size.d_output, size.d_input).expect("a shape that is not empty");
    let header = CodingSpec::new(codec).header(shape, Exponent::ZERO);
    let mut state = 1u32;
    let words = || {
        // A linear congruence, its better half in both halves.
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        state ^ state >> 16
    };
    KernelForm::random(&header, 1.0, words).expect("a codec with kernels")
}

/// `y = W·x`, row by row, as wide as the machine allows.
fn dense_product(weight: &[f32], x: &[f32], y: &mut [f32]) {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has AVX-512 F.
            return unsafe { dense_avx512(weight, x, y) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: the machine has AVX2 and FMA.
            return unsafe { dense_avx2(weight, x, y) };
        }
    }
    dense_lanes(weight, x, y, |a, b, c| a * b + c);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn dense_avx512(weight: &[f32], x: &[f32], y: &mut [f32]) {
    dense_lanes(weight, x, y, f32::mul_add);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn dense_avx2(weight: &[f32], x: &[f32], y: &mut [f32]) {
    dense_lanes(weight, x, y, f32::mul_add);
}

#[inline(always)]
fn dense_lanes(weight: &[f32], x: &[f32], y: &mut [f32], add_product: impl Fn(f32, f32, f32) -> f32) {
    const LANES: usize = 32;
    for (row, y) in weight.chunks_exact(x.len()).zip(y) {
        let mut lanes = [0f32; LANES];
        let ((row, row_rest), (x, x_rest)) = (row.as_chunks::<LANES>(), x.as_chunks::<LANES>());
        for (row, x) in row.iter().zip(x) {
            for ((lane, w), x) in lanes.iter_mut().zip(row).zip(x) {
                *lane = add_product(*w, *x, *lane);
            }
        }
        let rest: f32 = row_rest.iter().zip(x_rest).map(|(w, x)| w * x).sum();
        *y = lanes.iter().sum::<f32>() + rest;
    }
}
