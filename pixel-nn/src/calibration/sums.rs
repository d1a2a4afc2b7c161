//! What is known about the inputs of a model's layers: in memory, or in a file.

use super::recorder::add_moments;
use crate::error::LayerError;
use burn::tensor::{DType, Tensor};
use pixel_core::Moments;
use pixel_core::archive::calibration::{Accumulator, Calibration};
use std::collections::BTreeMap;
use std::fmt::Debug;
use std::sync::Arc;

/// The second moments of layers' inputs, by the names of their weights.
pub trait InputMoments: Debug + Send + Sync {
    /// Whether the moments of what the layer of `weight` reads are known.
    fn knows(&self, weight: &str) -> bool;

    /// The moments of what the layer of `weight` reads; `None` if they are not known.
    ///
    /// # Errors
    /// [`LayerError::Archive`] for a file that holds no numbers there.
    fn moments(&self, weight: &str) -> Result<Option<Moments>, LayerError>;
}

impl InputMoments for Calibration {
    fn knows(&self, weight: &str) -> bool {
        self.group(weight).is_some()
    }

    fn moments(&self, weight: &str) -> Result<Option<Moments>, LayerError> {
        Ok(Self::moments(self, weight)?)
    }
}

impl<T: InputMoments + ?Sized> InputMoments for Arc<T> {
    fn knows(&self, weight: &str) -> bool {
        (**self).knows(weight)
    }

    fn moments(&self, weight: &str) -> Result<Option<Moments>, LayerError> {
        (**self).moments(weight)
    }
}

/// Sums over what layers read, in memory. [`calibrate_in_memory`](super::calibrate_in_memory) collects them from layers
/// that can be listened to; for others, [`observe`](Self::observe) is called with what they read.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::module::Module;
/// use burn::nn::{Linear, LinearConfig};
/// use burn::tensor::{Device, Distribution, Tensor, activation::relu};
/// use pixel_nn::calibration::InputSums;
/// use pixel_nn::{ReplaceConfig, replace_linear_layers};
///
/// #[derive(Module, Debug)]
/// struct Mlp {
///     up: Linear,
///     down: Linear,
/// }
///
/// let device = Device::flex();
/// let linear = |m, n| LinearConfig::new(m, n).init(&device);
/// let model = Mlp { up: linear(32, 64), down: linear(64, 32) };
/// let mut sums = InputSums::default();
/// for _ in 0..4 {
///     let x = Tensor::<2>::random([64, 32], Distribution::Default, &device);
///     sums.observe("up.weight", &x)?;
///     sums.observe("down.weight", &relu(model.up.forward(x)))?;
/// }
/// let config = ReplaceConfig::new("lapped:2".parse()?).with_calibration(sums);
/// let (_, report) = replace_linear_layers(model, &config)?;
/// assert!(report.layers[1].output_error.unwrap() < report.layers[1].relative_error);
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone, Default)]
pub struct InputSums {
    /// The group of each weight.
    weights: BTreeMap<String, usize>,
    groups: Vec<Accumulator>,
}

impl InputSums {
    /// Adds what the layer of `weight` reads, `[…, d_input]`; every vector of the last axis is a token.
    ///
    /// # Errors
    /// [`LayerError::InputWidth`] if it read another width before; [`LayerError::Read`].
    pub fn observe<const D: usize>(&mut self, weight: &str, input: &Tensor<D>) -> Result<(), LayerError> {
        let (d_input, count) = (input.dims()[D - 1], input.dims().iter().product::<usize>());
        let group = match self.weights.get(weight) {
            Some(&group) => group,
            None => {
                self.add([weight.into()], Accumulator::new(d_input));
                self.groups.len() - 1
            }
        };
        let sums = &mut self.groups[group];
        if sums.d_input() != d_input {
            let (weight, before, now) = (weight.into(), sums.d_input(), d_input);
            return Err(LayerError::InputWidth { weight, before, now });
        }
        let rows = [count / d_input.max(1), d_input];
        add_moments(sums, super::recorder::without_graph(input.clone()).reshape(rows).cast(DType::F32), None)
    }

    /// The weights whose inputs were seen, and how many tokens each read.
    pub fn tokens(&self) -> BTreeMap<&str, u64> {
        self.weights.iter().map(|(weight, &group)| (weight.as_str(), self.groups[group].tokens())).collect()
    }

    pub(super) fn add(&mut self, weights: impl IntoIterator<Item = String>, sums: Accumulator) {
        self.weights.extend(weights.into_iter().map(|weight| (weight, self.groups.len())));
        self.groups.push(sums);
    }
}

impl InputMoments for InputSums {
    fn knows(&self, weight: &str) -> bool {
        self.weights.contains_key(weight)
    }

    fn moments(&self, weight: &str) -> Result<Option<Moments>, LayerError> {
        Ok(self.weights.get(weight).map(|&group| self.groups[group].moments()))
    }
}
