//! Random inputs that are the same in every run. Burn's CPU backends draw from one state for the whole process, so that
//! tests which run beside each other change each other's draws, seeded or not; here each test's thread has its own.

#![allow(dead_code, reason = "each program uses a part of it")]

use std::cell::RefCell;

use burn::module::Param;
use burn::nn::Linear;
use burn::tensor::{Device, Distribution, Tensor, TensorData};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

thread_local! {
    static DRAWS: RefCell<ChaCha8Rng> = RefCell::new(ChaCha8Rng::seed_from_u64(3));
}

/// A tensor on Flex's device.
pub(crate) fn random<const D: usize>(shape: [usize; D], distribution: Distribution) -> Tensor<D> {
    let data = DRAWS.with_borrow_mut(|draws| TensorData::random::<f32, _, _>(shape, distribution, draws));
    Tensor::from_data(data, &Device::flex())
}

/// Standard normal numbers.
pub(crate) fn normal<const D: usize>(shape: [usize; D]) -> Tensor<D> {
    random(shape, Distribution::Normal(0.0, 1.0))
}

/// A dense layer with a bias, distributed as Burn's are.
pub(crate) fn dense(d_input: usize, d_output: usize) -> Linear {
    let bound = 1.0 / (d_input as f64).sqrt();
    let uniform = Distribution::Uniform(-bound, bound);
    Linear {
        weight: Param::from_tensor(random([d_input, d_output], uniform)),
        bias: Some(Param::from_tensor(random([d_output], uniform))),
    }
}
