//! Gradients, against autodiff through the definition and against finite differences.

use super::*;

/// Gradients of `Σ g·y` over activations, scales and dictionary: first as the backend has them, then those of
/// autodiff through the definition, in the unrotated basis.
fn gradients(device: &Device, case: &Case, defined: bool) -> [Vec<f32>; 3] {
    let device = device.clone().autodiff();
    let mut weight = PatternTensors::new(&case.packed(), &device).unwrap();
    weight.scales = weight.scales.require_grad();
    weight.dictionary = weight.dictionary.require_grad();
    let x = case.activations(&device).1.require_grad();
    let y: Tensor<2> = if defined {
        let x = match &weight.rotation {
            None => x.clone(),
            Some(tables) => Tensor::from_dispatch(tables.defined(x.clone(), Direction::Forward)),
        };
        Tensor::from_dispatch(definition::pattern_linear::<Dispatch>(
            x.into_dispatch(),
            weight.codes.clone().into_dispatch(),
            weight.scales.clone().into_dispatch(),
            weight.dictionary.clone().into_dispatch(),
            &weight.layout,
        ))
    } else {
        weight.linear(x.clone())
    };
    let dims = y.dims();
    let g = tensor2(gaussian(dims[0] * dims[1], case.seed ^ 2), dims, &device);
    let gradients = (y * g).sum().backward();
    let of = |gradient: Option<TensorData>| gradient.unwrap().try_to_vec::<f32>().unwrap();
    [
        of(x.grad(&gradients).map(Tensor::into_data)),
        of(weight.scales.grad(&gradients).map(Tensor::into_data)),
        of(weight.dictionary.grad(&gradients).map(Tensor::into_data)),
    ]
}

pub(super) fn agree_with_the_definition(device: &Device, case: &Case) {
    let (found, expected) = (gradients(device, case, false), gradients(device, case, true));
    let terms = (case.batch * case.shape.num_weights()) as f64;
    for (what, (found, expected)) in ["x", "scales", "dictionary"].iter().zip(found.iter().zip(&expected)) {
        assert_eq!(found.len(), expected.len(), "{what}");
        let bound = 16.0 * product_epsilon(device) * terms.sqrt() * norm(expected) + 1e-30;
        for (i, (a, b)) in found.iter().zip(expected).enumerate() {
            let error = f64::from((a - b).abs());
            assert!(error <= bound, "{what} {i}: {a} for {b}, {error:e} > {bound:e}");
        }
    }
}

/// The loss is linear in activations and in scales and of degree three at most in the dictionary, so central
/// differences over long steps are exact but for rounding.
pub(super) fn agree_with_finite_differences(device: &Device, case: &Case) {
    let found = gradients(device, case, false);
    let packed = case.packed();
    let form = KernelForm::new(&packed).unwrap();
    let (x, _) = case.activations(device);
    let g = gaussian(case.batch * case.shape.d_output(), case.seed ^ 2);
    let loss = |x: &[f32], form: &KernelForm| {
        let mut weight = PatternTensors::new(&packed, device).unwrap();
        weight.scales = tensor2(form.scales.clone(), weight.scales.dims(), device);
        let len = form.dictionary.len();
        weight.dictionary = Tensor::from_data(TensorData::new(form.dictionary.clone(), [len]), (device, DType::F32));
        let y = weight.linear(tensor2(x.to_vec(), [case.batch, case.shape.d_input()], device));
        dot(&host(y), &g)
    };
    let moved = |values: &[f32], direction: &[f32], step: f32| -> Vec<f32> {
        values.iter().zip(direction).map(|(value, d)| value + step * d).collect()
    };
    let base = [x.as_slice(), &form.scales, &form.dictionary];
    for (which, gradient) in found.iter().enumerate() {
        let direction = gaussian(base[which].len(), case.seed ^ 3);
        let step = 0.02 * (norm(base[which]) / norm(&direction)) as f32;
        let at = |step: f32| {
            let values = moved(base[which], &direction, step);
            match which {
                0 => loss(&values, &form),
                1 => loss(x.as_slice(), &KernelForm { scales: values, ..form.clone() }),
                _ => loss(x.as_slice(), &KernelForm { dictionary: values, ..form.clone() }),
            }
        };
        let difference = (at(step) - at(-step)) / (2.0 * f64::from(step));
        let slope = dot(gradient, &direction);
        // Rounding of the loss over the step, and the curvature of a product of three.
        let scale = norm(gradient) * norm(&direction);
        let is_close = approx::abs_diff_eq!(difference, slope, epsilon = 5e-3 * scale);
        assert!(is_close, "{which}: {difference} for {slope}, scale {scale}");
    }
}

/// `Σ g·(x·Wᵀ)` through the split product, and through the dense weight with its columns replaced: the same gradients
/// of activations, scales and values.
pub(super) fn of_protected_columns(device: &Device, spec: &str) {
    let case = Case { protect: 3, ..Case::new(spec, 19, 22) };
    let (epsilon, device) = (product_epsilon(device), device.clone().autodiff());
    let of = |dense: bool| {
        let mut weight = PatternTensors::new(&case.packed(), &device).unwrap();
        weight.scales = weight.scales.require_grad();
        let protected = weight.protected.as_mut().unwrap();
        protected.values = protected.values.clone().require_grad();
        let values = protected.values.clone();
        let x = case.activations(&device).1.require_grad();
        let y = if dense { x.clone().matmul(weight.synthesize().transpose()) } else { weight.linear(x.clone()) };
        let g = tensor2(gaussian(case.batch * 19, case.seed ^ 2), y.dims(), &device);
        let gradients = (y * g).sum().backward();
        [x, weight.scales, values].map(|tensor| host(tensor.grad(&gradients).unwrap()))
    };
    for (what, (found, expected)) in ["x", "scales", "values"].iter().zip(of(false).iter().zip(&of(true))) {
        assert!(norm(expected) > 0.0, "{spec} {what}");
        let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
        let error = norm(&difference) / norm(expected);
        assert!(error <= 64.0 * epsilon * 22f64.sqrt(), "{spec} {what}: {error:e}");
    }
}

/// The same for a low-rank part: gradients of activations, scales and both factors.
pub(super) fn of_low_rank_parts(device: &Device, spec: &str) {
    let case = Case { rank: 3, ..Case::new(spec, 19, 22) };
    let (epsilon, device) = (product_epsilon(device), device.clone().autodiff());
    let of = |dense: bool| {
        let mut weight = PatternTensors::new(&case.packed(), &device).unwrap();
        weight.scales = weight.scales.require_grad();
        let part = weight.low_rank.as_mut().unwrap();
        part.down = part.down.clone().require_grad();
        part.up = part.up.clone().require_grad();
        let (down, up) = (part.down.clone(), part.up.clone());
        let x = case.activations(&device).1.require_grad();
        let y = if dense { x.clone().matmul(weight.synthesize().transpose()) } else { weight.linear(x.clone()) };
        let g = tensor2(gaussian(case.batch * 19, case.seed ^ 2), y.dims(), &device);
        let gradients = (y * g).sum().backward();
        [x, weight.scales, down, up].map(|tensor| host(tensor.grad(&gradients).unwrap()))
    };
    for (what, (found, expected)) in ["x", "scales", "down", "up"].iter().zip(of(false).iter().zip(&of(true))) {
        assert!(norm(expected) > 0.0, "{spec} {what}");
        let difference: Vec<f32> = found.iter().zip(expected).map(|(a, b)| a - b).collect();
        let error = norm(&difference) / norm(expected);
        assert!(error <= 64.0 * epsilon * 22f64.sqrt(), "{spec} {what}: {error:e}");
    }
}

/// A row that is looked up twice has twice the gradient.
pub(super) fn of_rows_add_up(device: &Device) {
    let device = device.clone().autodiff();
    let mut weight = PatternTensors::new(&Case::new(FEW[1], 9, 22).packed(), &device).unwrap();
    weight.scales = weight.scales.require_grad();
    let gradient = |rows: &[i32]| {
        let rows = Tensor::<1, Int>::from_data(TensorData::new(rows.to_vec(), [rows.len()]), &device);
        let gradients = weight.rows(rows).sum().backward();
        host(weight.scales.grad(&gradients).unwrap())
    };
    let (once, twice) = (gradient(&[4]), gradient(&[4, 2, 4]));
    assert!(once[4] != 0.0 && once[2] == 0.0 && twice[2] != 0.0);
    approx::assert_abs_diff_eq!(twice[4], 2.0 * once[4], epsilon = 1e-5 * once[4].abs());
}

/// Products in training are those in f32, whatever arithmetic is asked for.
pub(super) fn are_of_products_in_f32(device: &Device, spec: &str) {
    let case = Case::new(spec, 64, 256);
    let packed = case.packed();
    let product = |device: &Device, arithmetic| {
        let weight = PatternTensors::new(&packed, device).unwrap().with_arithmetic(arithmetic);
        host(weight.linear(case.activations(device).1))
    };
    let trained = product(&device.clone().autodiff(), Arithmetic::Integer);
    assert_same(spec, &trained, &product(device, Arithmetic::F32));
}
