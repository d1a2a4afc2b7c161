//! The leading part of a decomposition by random projections, its large products on a Burn device.

use super::{FaerSvd, Svd, SvdError, SvdSolver, prepare};
use crate::dense::{matrix, orthonormal, product};
use burn::tensor::{DType, Device, Tensor, TensorData};
use pixel_core::{Matrix, MatrixRef};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::StandardNormal;

/// A randomized range finder with power iterations.
///
/// `Y = (A·Aᵀ)^q·A·Ω` for a Gaussian `Ω` of `rank + oversampling` columns; `Q` an orthonormal basis of `Y`, made anew
/// after each product; then the decomposition of the small `Qᵀ·A` on the host. Products with `A` run on the device, on
/// which it is held once; bases are found on the host, by QR.
///
/// `Ω` is drawn on the host, so that results on two devices differ by rounding alone.
///
/// Sources: Halko, Martinsson and Tropp, *Finding structure with randomness* (2011), algorithms 4.4 and 5.1.
#[derive(Debug, Clone)]
pub struct RandomizedSvd {
    /// Where the products run.
    pub device: Device,
    /// Columns of `Ω` beyond the rank.
    pub oversampling: usize,
    /// `q`: each iteration divides what smaller singular values contribute by the square of their ratio.
    pub power_iterations: usize,
    /// The seed of `Ω`.
    pub seed: u64,
}

impl RandomizedSvd {
    /// With 16 columns beyond the rank and 4 power iterations: within 2 % of the best residual of rank 64 also where
    /// the spectrum has no gap at all.
    pub fn new(device: &Device) -> Self {
        Self { device: device.clone(), oversampling: 16, power_iterations: 4, seed: 0 }
    }

    fn tensor(&self, values: &Matrix) -> Tensor<2> {
        let dims = <[usize; 2]>::from(values.shape());
        Tensor::from_data(TensorData::new(values.as_slice().to_vec(), dims), (&self.device, DType::F32))
    }
}

impl SvdSolver for RandomizedSvd {
    fn name(&self) -> &'static str {
        "randomized"
    }

    fn svd(&self, source: MatrixRef<'_>, rank: usize) -> Result<Svd, SvdError> {
        let (values, unit) = prepare(source, rank)?;
        let shape = source.shape();
        let (m, n) = (shape.d_output(), shape.d_input());
        let width = rank + self.oversampling;
        if width >= m.min(n) {
            // The range is everything.
            return FaerSvd.svd(source, rank);
        }
        let a = self.tensor(&matrix(m, n, values.into_owned()));
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let omega = matrix(n, width, (0..n * width).map(|_| rng.sample::<f32, _>(StandardNormal)).collect());
        let mut range = orthonormal(&host(a.clone().matmul(self.tensor(&omega)))?);
        for _ in 0..self.power_iterations {
            let rows = orthonormal(&host(a.clone().transpose().matmul(self.tensor(&range)))?);
            range = orthonormal(&host(a.clone().matmul(self.tensor(&rows)))?);
        }
        let small = host(self.tensor(&range).transpose().matmul(a))?;
        let Svd { u, mut singular_values, vt } = FaerSvd.svd(small.as_ref(), rank)?;
        singular_values.iter_mut().for_each(|s| *s *= unit);
        Ok(Svd { u: product(&range, &u), singular_values, vt })
    }
}

/// A tensor read back.
fn host(tensor: Tensor<2>) -> Result<Matrix, SvdError> {
    let [rows, columns] = tensor.dims();
    let values = tensor.try_into_data().map_err(|error| format!("{error:?}"));
    let values = values.and_then(|data| data.try_to_vec::<f32>().map_err(|error| format!("{error:?}")));
    let values = values.map_err(|message| SvdError::Failed { solver: "randomized", message })?;
    Ok(matrix(rows, columns, values))
}
