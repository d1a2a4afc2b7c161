//! One input for several layers.

use burn::tensor::Tensor;
use pixel_core::backend::PatternTensors;
use std::cell::RefCell;

/// The input of several layers, which is rotated once for all that share a rotation: query, key and value of an
/// attention, gate and up of an MLP. Weights compressed with one seed share it where they have the same width.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::tensor::{Device, Tensor};
/// use pixel_nn::{PIXELLinearConfig, Projection, SharedInput};
/// let device = Device::flex();
/// let map = || Projection::from(PIXELLinearConfig::new(64, 32).init(&device));
/// let (gate, up) = (map(), map());
/// let input = SharedInput::new(Tensor::<2>::ones([1, 64], &device));
/// assert_eq!((gate.forward_shared(&input).dims(), up.forward_shared(&input).dims()), ([1, 32], [1, 32]));
/// # }
/// ```
#[derive(Debug)]
pub struct SharedInput<const D: usize> {
    input: Tensor<D>,
    /// The last rotation's seed, and what it made of the input.
    rotated: RefCell<Option<(u64, Tensor<D>)>>,
}

impl<const D: usize> SharedInput<D> {
    /// An input that nobody has rotated yet.
    pub fn new(input: Tensor<D>) -> Self {
        Self { input, rotated: RefCell::new(None) }
    }

    /// The input as it is.
    pub fn get(&self) -> Tensor<D> {
        self.input.clone()
    }

    /// The input as [`PatternTensors::linear_rotated`] of `weight` takes it.
    pub(crate) fn rotated(&self, weight: &PatternTensors) -> Tensor<D> {
        let Some(seed) = weight.rotation.as_ref().map(|tables| tables.rotation().seed()) else { return self.get() };
        let mut rotated = self.rotated.borrow_mut();
        match &*rotated {
            Some((last, input)) if *last == seed => input.clone(),
            _ => {
                let input = weight.rotate(self.get());
                *rotated = Some((seed, input.clone()));
                input
            }
        }
    }
}

impl<const D: usize> From<Tensor<D>> for SharedInput<D> {
    fn from(input: Tensor<D>) -> Self {
        Self::new(input)
    }
}
