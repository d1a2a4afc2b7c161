//! What is done to an input before products: norm and rotation of each row, in a launch of its own or behind other
//! products.

use super::empty_like;
use super::row::{self, Turn};
use crate::backend::{NormTensors, RotationTables};
use burn::backend::cubecl::dtype_to_storage_type;
use burn::tensor::{DType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::tensor::CubeTensor;
use cubecl::prelude::*;

/// A norm, as constants of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct NormKind {
    /// Whether the mean is taken away.
    centred: bool,
    has_beta: bool,
    /// ε, by its bits.
    epsilon: u32,
}

/// Norms the row in `values`, in place.
#[cube]
pub(super) fn norm_row<P: Float, Q: Float>(
    values: &mut Shared<[f32]>,
    sums: &mut Shared<[f32]>,
    gamma: &Tensor<P>,
    beta: &Tensor<Q>,
    #[comptime] width: usize,
    #[comptime] units: usize,
    #[comptime] norm: NormKind,
) {
    let unit = UNIT_POS as usize;
    let steps = comptime!(width.div_ceil(units));
    let mut mean = 0.0f32;
    if comptime!(norm.centred) {
        let mut sum = 0.0f32;
        for i in 0..steps {
            let at = i * units + unit;
            if at < width {
                sum += values[row::slot(at)];
            }
        }
        mean = row::sum_of_units(sum, sums, units) / comptime!(width as f32);
    }
    let mut power = 0.0f32;
    for i in 0..steps {
        let at = i * units + unit;
        if at < width {
            let value = values[row::slot(at)] - mean;
            power += value * value;
        }
    }
    let power = row::sum_of_units(power, sums, units) / comptime!(width as f32);
    let root = f32::sqrt(power + comptime!(f32::from_bits(norm.epsilon)));
    for i in 0..steps {
        let at = i * units + unit;
        if at < width {
            let mut value = (values[row::slot(at)] - mean) / root * f32::cast_from(gamma[at]);
            if comptime!(norm.has_beta) {
                value += f32::cast_from(beta[at]);
            }
            values[row::slot(at)] = value;
        }
    }
    sync_cube();
}

/// What an input goes through, as constants of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub(super) struct Steps {
    norm: Option<NormKind>,
    turn: Option<Turn>,
}

/// What an input goes through, and the tensors for it.
pub(super) struct Preparation {
    pub(super) steps: Steps,
    pub(super) gamma: CubeTensor,
    pub(super) beta: CubeTensor,
    pub(super) signs: CubeTensor,
    pub(super) hartley: CubeTensor,
}

impl Preparation {
    /// `other`, of floats, stands in for what is not there.
    pub(super) fn new(
        norm: NormTensors<CubeBackend>,
        rotation: RotationTables<CubeBackend>,
        other: &CubeTensor,
    ) -> Self {
        let (norm, gamma, beta) = parameters(norm, other);
        let (turn, signs, hartley) = match rotation {
            RotationTables::Absent => {
                let small = |dtype| empty_like(other, Shape::from([1]), dtype);
                (None, small(DType::U32), small(DType::F32))
            }
            RotationTables::Present { signs, hartley, rotation } => {
                (Some(Turn::new(&rotation)), into_contiguous(signs), into_contiguous(hartley))
            }
        };
        Self { steps: Steps { norm, turn }, gamma, beta, signs, hartley }
    }

    /// None.
    pub(super) fn none(other: &CubeTensor) -> Self {
        Self::new(NormTensors::Absent, RotationTables::Absent, other)
    }

    /// Whether the input stays as it is.
    pub(super) fn is_empty(&self) -> bool {
        self.steps == Steps::default()
    }
}

/// Takes the row in `values` through `steps`; [`prepared`] reads the result.
#[cube]
pub(super) fn prepare_row<P: Float, Q: Float>(
    values: &mut Shared<[f32]>,
    sums: &mut Shared<[f32]>,
    gamma: &Tensor<P>,
    beta: &Tensor<Q>,
    signs: &Tensor<u32>,
    #[comptime] width: usize,
    #[comptime] units: usize,
    #[comptime] steps: Steps,
) {
    if let Some(norm) = comptime!(steps.norm) {
        norm_row::<P, Q>(values, sums, gamma, beta, width, units, norm);
    }
    if let Some(turn) = comptime!(steps.turn) {
        for i in 0..comptime!(width.div_ceil(units)) {
            let at = i * units + UNIT_POS as usize;
            if at < width {
                values[row::slot(at)] *= row::sign(signs, at);
            }
        }
        sync_cube();
        row::hadamard(values, turn, units);
        row::mix(values, turn, units);
    }
}

/// Value `at` of a row behind [`prepare_row`].
#[cube]
pub(super) fn prepared(values: &Shared<[f32]>, hartley: &Tensor<f32>, at: usize, #[comptime] steps: Steps) -> f32 {
    if let Some(turn) = comptime!(steps.turn) { row::turned(values, hartley, at, turn) } else { values[row::slot(at)] }
}

/// A cube prepares a row.
#[cube(launch)]
fn prepare_kernel<F: Float, P: Float, Q: Float>(
    x: &Tensor<F>,
    gamma: &Tensor<P>,
    beta: &Tensor<Q>,
    signs: &Tensor<u32>,
    hartley: &Tensor<f32>,
    out: &mut Tensor<f32>,
    rows: usize,
    #[comptime] width: usize,
    #[comptime] units: usize,
    #[comptime] steps: Steps,
    #[define(F)] _x_type: ElemType,
    #[define(P)] _gamma_type: ElemType,
    #[define(Q)] _beta_type: ElemType,
) {
    let mut values = Shared::<[f32]>::new_slice(comptime!(row::slots(width)));
    let mut sums = Shared::<[f32]>::new_slice(units);
    let unit = UNIT_POS as usize;
    // Cubes beyond the last row work on it again: all of them reach every barrier.
    let start = min(CUBE_POS, rows - 1) * width;
    let turns = comptime!(width.div_ceil(units));
    for i in 0..turns {
        let at = i * units + unit;
        if at < width {
            values[row::slot(at)] = f32::cast_from(x[start + at]);
        }
    }
    sync_cube();
    prepare_row::<P, Q>(&mut values, &mut sums, gamma, beta, signs, width, units, steps);
    for i in 0..turns {
        let at = i * units + unit;
        if at < width && CUBE_POS < rows {
            out[start + at] = prepared(&values, hartley, at, steps);
        }
    }
}

/// A norm's constants and parameters; `other` stands in for what is not there.
pub(super) fn parameters(
    norm: NormTensors<CubeBackend>,
    other: &CubeTensor,
) -> (Option<NormKind>, CubeTensor, CubeTensor) {
    let bits = |epsilon: f64| (epsilon as f32).to_bits();
    match norm {
        NormTensors::Absent => (None, other.clone(), other.clone()),
        NormTensors::Rms { gamma, epsilon } => {
            let kind = NormKind { centred: false, has_beta: false, epsilon: bits(epsilon) };
            (Some(kind), into_contiguous(gamma), other.clone())
        }
        NormTensors::Layer { gamma, beta, epsilon } => {
            let beta = beta.into_option();
            let kind = NormKind { centred: true, has_beta: beta.is_some(), epsilon: bits(epsilon) };
            (Some(kind), into_contiguous(gamma), beta.map_or_else(|| other.clone(), into_contiguous))
        }
    }
}

/// The input as the weights take it, `[rows, width]`, F32.
pub(super) fn prepare(x: CubeTensor, with: Preparation, [rows, width]: [usize; 2]) -> CubeTensor {
    let out = empty_like(&x, Shape::from([rows, width]), DType::F32);
    let client = out.client.clone();
    let units = row::units(&out, width);
    let cube_dim = CubeDim::new_1d(units);
    let types = [x.dtype, with.gamma.dtype, with.beta.dtype].map(dtype_to_storage_type);
    prepare_kernel::launch(
        &client,
        cubecl::calculate_cube_count_elemwise(&client, rows * units as usize, cube_dim),
        cube_dim,
        x.into_tensor_arg(),
        with.gamma.into_tensor_arg(),
        with.beta.into_tensor_arg(),
        with.signs.into_tensor_arg(),
        with.hartley.into_tensor_arg(),
        out.clone().into_tensor_arg(),
        rows,
        width,
        units as usize,
        with.steps,
        types[0],
        types[1],
        types[2],
    );
    out
}
