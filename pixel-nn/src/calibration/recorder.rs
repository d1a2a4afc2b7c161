//! What layers report to the collector that runs on their thread.

use crate::error::LayerError;
use burn::module::ParamId;
use burn::tensor::{DType, Tensor};
use pixel_core::archive::calibration::Accumulator;
use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet};
use std::hash::{DefaultHasher, Hash, Hasher};

thread_local! {
    static ACTIVE: RefCell<Option<Recorder>> = const { RefCell::new(None) };
}

/// What a recorder does with an input.
pub(super) enum Task {
    /// Looks at which weights read the same.
    Survey,
    /// Adds it to the sums of its weight.
    Moments(BTreeMap<ParamId, Accumulator>),
    /// Keeps it until the gradients are there.
    Inputs,
}

/// Width and contents of what a weight read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Fingerprint {
    pub(super) d_input: usize,
    contents: u64,
}

/// One call of a layer.
#[cfg_attr(not(feature = "autodiff"), allow(dead_code, reason = "read when gradients are"))]
pub(super) struct Seen {
    pub(super) weight: ParamId,
    /// `[tokens, d_input]`, outside of any graph.
    pub(super) input: Tensor<2>,
    /// Zeros `[tokens, d_output]` that were added to the output: their gradient is the output's.
    pub(super) tap: Option<Tensor<2>>,
}

/// Listens to the layers of one forward pass.
pub(super) struct Recorder {
    task: Task,
    wanted: BTreeSet<ParamId>,
    fingerprints: BTreeMap<ParamId, Fingerprint>,
    /// In the order in which weights were first read.
    order: Vec<ParamId>,
    inputs: Vec<Seen>,
    error: Option<LayerError>,
}

impl Recorder {
    /// Runs `forward` while listening to the layers whose weights are `wanted`.
    pub(super) fn run(task: Task, wanted: impl Iterator<Item = ParamId>, forward: impl FnOnce()) -> Self {
        /// Whatever happens, nobody listens afterwards.
        struct Guard;
        impl Drop for Guard {
            fn drop(&mut self) {
                ACTIVE.with_borrow_mut(Option::take);
            }
        }
        let recorder = Self {
            task,
            wanted: wanted.collect(),
            fingerprints: BTreeMap::new(),
            order: Vec::new(),
            inputs: Vec::new(),
            error: None,
        };
        let _guard = Guard;
        ACTIVE.with_borrow_mut(|active| {
            assert!(active.is_none(), "a calibration inside the forward pass of another");
            *active = Some(recorder);
        });
        forward();
        ACTIVE.with_borrow_mut(Option::take).expect("nobody else takes it")
    }

    /// What the weights read, in the order of the first reading.
    pub(super) fn finish_survey(mut self) -> Result<Vec<(ParamId, Fingerprint)>, LayerError> {
        let found = std::mem::take(&mut self.fingerprints);
        self.error.map_or(Ok(()), Err)?;
        Ok(self.order.into_iter().map(|id| (id, found[&id])).collect())
    }

    /// The sums, with those of this pass.
    pub(super) fn finish_moments(self) -> Result<BTreeMap<ParamId, Accumulator>, LayerError> {
        self.error.map_or(Ok(()), Err)?;
        let Task::Moments(sums) = self.task else { unreachable!("asked for what was collected") };
        Ok(sums)
    }

    /// The inputs of this pass.
    #[cfg(feature = "autodiff")]
    pub(super) fn finish_inputs(self) -> Result<Vec<Seen>, LayerError> {
        self.error.map_or(Ok(self.inputs), Err)
    }

    fn record(&mut self, weight: ParamId, input: Tensor<2>) -> Result<(), LayerError> {
        match &mut self.task {
            Task::Survey => {
                let [_, d_input] = input.dims();
                let values = read(input)?;
                let mut hasher = DefaultHasher::new();
                values.iter().for_each(|value| value.to_bits().hash(&mut hasher));
                if let Some(before) = self.fingerprints.get(&weight) {
                    before.hash(&mut hasher);
                } else {
                    self.order.push(weight);
                }
                self.fingerprints.insert(weight, Fingerprint { d_input, contents: hasher.finish() });
            }
            Task::Moments(sums) => {
                add_moments(sums.get_mut(&weight).expect("sums of what is wanted"), input, None)?;
            }
            Task::Inputs => self.inputs.push(Seen { weight, input, tap: None }),
        }
        Ok(())
    }
}

/// Whether a collector runs on this thread.
pub(crate) fn is_listening() -> bool {
    ACTIVE.with_borrow(Option::is_some)
}

/// Reports to the collector, if there is one, that the layer of `weight` reads `input`, `[…, d_input]`.
pub(crate) fn observe<const D: usize>(weight: ParamId, input: &Tensor<D>) {
    ACTIVE.with_borrow_mut(|active| {
        if let Some(recorder) = active.as_mut().filter(|recorder| recorder.wanted.contains(&weight)) {
            let d_input = input.dims()[D - 1];
            let tokens = input.dims().iter().product::<usize>() / d_input.max(1);
            let input = without_graph(input.clone()).reshape([tokens, d_input]).cast(DType::F32);
            if let Err(error) = recorder.record(weight, input) {
                recorder.error.get_or_insert(error);
            }
        }
    });
}

/// Gives the output, `[…, d_output]`, of the layer that was observed last a place at which its gradient can be read.
pub(crate) fn tap<const D: usize>(weight: ParamId, output: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "autodiff")]
    {
        let dims = output.dims();
        let d_output = dims[D - 1];
        let tokens = dims.iter().product::<usize>() / d_output.max(1);
        let tapped = ACTIVE.with_borrow_mut(|active| {
            let seen = active.as_mut()?.inputs.last_mut()?;
            if seen.weight != weight || seen.tap.is_some() || !output.is_autodiff() {
                return None;
            }
            let device = output.device();
            let zeros = Tensor::<2>::zeros([tokens, d_output], (&device, output.dtype())).autodiff().require_grad();
            seen.tap = Some(zeros.clone());
            Some(zeros)
        });
        match tapped {
            None => output,
            Some(zeros) => output + zeros.reshape(dims),
        }
    }
    #[cfg(not(feature = "autodiff"))]
    {
        let _ = weight;
        output
    }
}

pub(super) fn without_graph<const D: usize>(tensor: Tensor<D>) -> Tensor<D> {
    #[cfg(feature = "autodiff")]
    let tensor = tensor.without_autodiff();
    tensor
}

/// Adds the products of `inputs`, `[tokens, d_input]`, each token times its weight, `[tokens, 1]`.
pub(super) fn add_moments(
    sums: &mut Accumulator,
    inputs: Tensor<2>,
    weights: Option<Tensor<2>>,
) -> Result<(), LayerError> {
    let means = read(inputs.clone().sum_dim(0))?;
    let powers = inputs.clone().square().sum_dim(1);
    let powers = read(match &weights {
        None => powers,
        Some(weights) => powers * weights.clone(),
    })?;
    let left = match weights {
        None => inputs.clone(),
        Some(weights) => inputs.clone() * weights,
    };
    let products = read(left.transpose().matmul(inputs))?;
    sums.add_products(&products, &means, &powers);
    Ok(())
}

fn read(tensor: Tensor<2>) -> Result<Vec<f32>, LayerError> {
    crate::weight::read_floats("input of a layer", tensor)
}
