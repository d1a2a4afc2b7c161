//! Several weights, one input, and what goes before and after.

use super::{Activation, MAX_WEIGHTS, Norm};
use crate::math::rotation::Rotation;
use crate::pool::for_each_chunk;
use crate::scratch::Scratch;
use crate::synthesis::{PatternSlices, Rows, linear};

/// Values below which rows are worked on by the calling thread.
const PARALLEL_FROM: usize = 1 << 14;

/// `y = post(activation(rotate(norm(x))·[W₀; W₁; …]ᵀ + b) + residual)`; all parts but the weights are optional.
///
/// # Shapes
/// `x` is `[rows, d_input]`; the products are `[rows, Σ d_output]`, and `y` as wide divided by what the activation
/// takes.
#[derive(Debug, Clone, Copy)]
pub struct Projection<'a> {
    /// The norm of the input.
    pub norm: Option<Norm<'a>>,
    /// The rotation of the input, which all weights share.
    pub rotation: Option<&'a Rotation>,
    /// The weights, `[d_output, d_input]` each, one to [`MAX_WEIGHTS`].
    pub weights: &'a [PatternSlices<'a>],
    /// What is added to the products of each weight, `[d_output]` each; as many as weights.
    pub biases: &'a [Option<&'a [f32]>],
    /// The function of the sums.
    pub activation: Activation,
    /// What is added to the outputs, of their shape.
    pub residual: Option<&'a [f32]>,
    /// The norm of the outputs.
    pub post_norm: Option<Norm<'a>>,
}

impl<'a> Projection<'a> {
    /// The products of `weights` and nothing else.
    pub fn new(weights: &'a [PatternSlices<'a>]) -> Self {
        const NONE: [Option<&[f32]>; MAX_WEIGHTS] = [None; MAX_WEIGHTS];
        Self {
            norm: None,
            rotation: None,
            weights,
            biases: &NONE[..weights.len().min(MAX_WEIGHTS)],
            activation: Activation::Identity,
            residual: None,
            post_norm: None,
        }
    }

    /// The width of the products.
    fn width(&self) -> usize {
        self.weights.iter().map(|weight| weight.shape().d_output()).sum()
    }

    /// The width of `y`.
    pub fn outputs(&self) -> usize {
        self.width() / self.activation.inputs()
    }

    /// The width of `x`.
    fn d_input(&self) -> usize {
        self.weights[0].shape().d_input()
    }

    /// Computes `y` from `x`.
    ///
    /// # Panics
    /// If there is no weight or more than [`MAX_WEIGHTS`], or if a length does not fit.
    pub fn run(&self, x: &[f32], y: &mut [f32]) {
        assert!((1..=MAX_WEIGHTS).contains(&self.weights.len()), "{} weights", self.weights.len());
        assert_eq!(self.biases.len(), self.weights.len(), "biases and weights");
        let (n, width) = (self.d_input(), self.width());
        let (rows, outputs) = (x.len() / n, self.outputs());
        assert_eq!((x.len(), y.len()), (rows * n, rows * outputs), "values for {rows} rows of {n} and {outputs}");
        assert!(self.residual.is_none_or(|residual| residual.len() == y.len()), "values of the residual");
        if rows == 0 {
            return;
        }
        let prepare = |row: &mut [f32]| self.prepare(row);
        let changes = self.norm.is_some() || self.rotation.is_some();
        let input = Rows { x, prepare: changes.then_some(&prepare) };
        if self.activation.inputs() == 1 {
            linear(self.weights, input, y);
            self.finish(None, y);
        } else {
            let mut products = Scratch::new(rows * width);
            linear(self.weights, input, &mut products);
            self.finish(Some(&mut products), y);
        }
    }

    /// A row of the input as the weights take it.
    fn prepare(&self, row: &mut [f32]) {
        if let Some(norm) = &self.norm {
            norm.apply(row);
        }
        if let Some(rotation) = self.rotation {
            rotation.forward_row(row);
        }
    }

    /// All that follows the products, row by row; these are in `y` where they have its width.
    fn finish(&self, products: Option<&mut [f32]>, y: &mut [f32]) {
        if self.biases.iter().all(Option::is_none)
            && (self.activation, self.residual.is_none(), self.post_norm.is_none())
                == (Activation::Identity, true, true)
        {
            return;
        }
        let (width, outputs, len) = (self.width(), self.outputs(), y.len());
        let parallel = len >= PARALLEL_FROM;
        if let Some(products) = products {
            for_each_chunk(products, width, parallel, |_, row| self.add_biases(row));
            let products = &*products;
            for_each_chunk(y, outputs, parallel, |i, y| {
                self.activation.apply(&products[i * width..][..width], y);
                self.end(i, y);
            });
        } else {
            for_each_chunk(y, outputs, parallel, |i, y| {
                self.add_biases(y);
                self.activation.apply(&[], y);
                self.end(i, y);
            });
        }
    }

    fn add_biases(&self, row: &mut [f32]) {
        let mut rest = row;
        for (weight, bias) in self.weights.iter().zip(self.biases) {
            let (own, others) = rest.split_at_mut(weight.shape().d_output());
            if let Some(bias) = bias {
                own.iter_mut().zip(*bias).for_each(|(y, bias)| *y += bias);
            }
            rest = others;
        }
    }

    /// Residual and norm of row `i`.
    fn end(&self, i: usize, y: &mut [f32]) {
        if let Some(residual) = self.residual {
            let residual = &residual[i * y.len()..][..y.len()];
            y.iter_mut().zip(residual).for_each(|(y, residual)| *y += residual);
        }
        if let Some(norm) = &self.post_norm {
            norm.apply(y);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::math::Exponent;
    use crate::math::rotation::split_mix;
    use crate::matrix::Shape;
    use crate::synthesis::{Arithmetic, KernelForm};
    use crate::{CodecSpec, CodingSpec};

    fn form(codec: &str, [d_output, d_input]: [usize; 2], seed: u64) -> KernelForm {
        let codec: CodecSpec = codec.parse().unwrap();
        let header = CodingSpec::new(codec).header(Shape::new(d_output, d_input).unwrap(), Exponent::ZERO);
        let mut count = 0;
        let words = || {
            count += 1;
            split_mix(seed, count) as u32
        };
        KernelForm::random(&header, 0.1, words).unwrap()
    }

    fn values(len: usize, seed: u64) -> Vec<f32> {
        (0..len).map(|i| (split_mix(seed, i as u64) >> 40) as f32 / (1u64 << 23) as f32 - 1.0).collect()
    }

    /// The definition: one part after the other, each by the simplest means.
    fn expected(projection: &Projection<'_>, x: &[f32]) -> Vec<f32> {
        let n = projection.d_input();
        let mut outputs = Vec::new();
        for (i, row) in x.chunks_exact(n).enumerate() {
            let mut row = row.to_vec();
            projection.norm.iter().for_each(|norm| norm.apply(&mut row));
            projection.rotation.iter().for_each(|rotation| rotation.forward(&mut row, &mut rotation.scratch()));
            let mut products = Vec::new();
            for (weight, bias) in projection.weights.iter().zip(projection.biases) {
                let mut dense = vec![0.0; weight.shape().num_weights()];
                weight.synthesize(&mut dense);
                for (r, weights) in dense.chunks_exact(n).enumerate() {
                    let sum: f64 = weights.iter().zip(&row).map(|(w, x)| f64::from(*w) * f64::from(*x)).sum();
                    products.push(sum as f32 + bias.map_or(0.0, |bias| bias[r]));
                }
            }
            let mut y = products[products.len() - products.len() / projection.activation.inputs()..].to_vec();
            projection.activation.apply(&products, &mut y);
            projection.residual.iter().for_each(|residual| {
                let residual = &residual[i * y.len()..][..y.len()];
                y.iter_mut().zip(residual).for_each(|(y, residual)| *y += residual);
            });
            projection.post_norm.iter().for_each(|norm| norm.apply(&mut y));
            outputs.extend(y);
        }
        outputs
    }

    fn check(projection: &Projection<'_>, rows: usize, what: &str) {
        let x = values(rows * projection.d_input(), 9);
        let expected = expected(projection, &x);
        let mut found = vec![f32::NAN; expected.len()];
        projection.run(&x, &mut found);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((found - expected).abs() < 2e-3, "{what}, {rows} rows, output {i}: {found} for {expected}");
        }
    }

    #[test]
    fn every_part_does_what_it_does_alone() {
        // Equal codecs, which share their tables; equal names with other dictionaries; kernels of two kinds; none.
        let codecs = [
            ["lapped:2"; 3],
            ["additive:2", "additive:3", "additive:2"],
            ["trellis:2:window=12"; 3],
            ["trellis:2:window=12", "trellis:4", "lapped:2"],
            ["uniform:4", "lapped:2", "matching:2:patterns=6"],
        ];
        let (n, sizes) = (96, [64, 40, 40]);
        let (gamma, beta) = (values(n, 1), values(sizes.iter().sum(), 2));
        let rotation = Rotation::new(n, 3);
        for codecs in codecs {
            let forms: Vec<_> = (0..3).map(|i| form(codecs[i], [sizes[i], n], 20 + i as u64)).collect();
            for arithmetic in [Arithmetic::F32, Arithmetic::Integer] {
                let weights: Vec<_> = forms.iter().map(|form| form.as_slices().with_arithmetic(arithmetic)).collect();
                for rows in [1, 3, 8, 11, 40] {
                    let residual = values(rows * 144, 5);
                    for count in 1..=3 {
                        check(&Projection::new(&weights[..count]), rows, &format!("{codecs:?} {count}"));
                    }
                    let biases = [None, Some(&beta[..40]), Some(&beta[40..80])];
                    let full = Projection {
                        norm: Some(Norm::Rms { gamma: &gamma, epsilon: 1e-5 }),
                        rotation: Some(&rotation),
                        biases: &biases,
                        activation: Activation::Gelu,
                        residual: Some(&residual),
                        post_norm: Some(Norm::Layer { gamma: &beta, beta: Some(&beta), epsilon: 1e-5 }),
                        ..Projection::new(&weights)
                    };
                    check(&full, rows, &format!("{codecs:?} all parts"));
                    let gated = Projection {
                        rotation: Some(&rotation),
                        biases: &biases[..2],
                        activation: Activation::GatedSilu,
                        residual: Some(&residual[..rows * 40]),
                        ..Projection::new(&weights[1..])
                    };
                    check(&gated, rows, &format!("{codecs:?} gated"));
                }
            }
        }
    }

    #[test]
    #[should_panic(expected = "values for 2 rows of 96 and 64")]
    fn outputs_of_another_length_are_refused() {
        let form = form("lapped:2", [64, 96], 1);
        Projection::new(&[form.as_slices()]).run(&[0.0; 192], &mut [0.0; 64]);
    }
}
