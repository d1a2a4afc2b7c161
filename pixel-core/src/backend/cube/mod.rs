//! CubeCL kernels, one source for wgpu, Vulkan, Metal, CUDA and cubecl-cpu.
//!
//! Codes, scales and dictionary are read as they are stored; weights exist in registers alone. [`decode`] reads one
//! weight, which [`synthesize`] and [`linear`] are built on; [`lookup`], [`levels`] and [`tiles`] are products in the
//! form that a codec allows, and [`panel`] those of many rows; [`prepare`] and [`finish`] are what stands before and
//! behind products, and [`project`] puts them together.

mod attend;
mod decode;
mod exponential;
mod finish;
mod levels;
mod linear;
mod lookup;
mod machine;
mod panel;
mod prepare;
mod project;
mod rotate;
mod row;
mod synthesize;
mod tiles;

use super::{Attended, AttentionTensors, Direction, FeedForwardTensors, PixelBackend, ProjectionTensors};
use crate::attention::AttentionSpec;
use crate::codec::CodecLayout;
use crate::math::rotation::Rotation;
use crate::synthesis::Arithmetic;
use burn::backend::TensorMetadata;
use burn::backend::ops::IntTensorOps;
use burn::backend::tensor::{FloatTensor, IntTensor};
use burn::tensor::{DType, IntDType, Shape};
use burn_cubecl::CubeBackend;
use burn_cubecl::kernel::into_contiguous;
use burn_cubecl::ops::numeric::empty_device_contiguous_dtype;
use burn_cubecl::tensor::CubeTensor;
use std::sync::Arc;

impl PixelBackend for CubeBackend {
    fn rotate(
        x: FloatTensor<Self>,
        signs: IntTensor<Self>,
        hartley: FloatTensor<Self>,
        rotation: Arc<Rotation>,
        direction: Direction,
    ) -> FloatTensor<Self> {
        rotate::rotate(into_contiguous(x), Bound::new(signs, hartley), &rotation, direction)
    }

    fn synthesize(
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        layout: CodecLayout,
    ) -> FloatTensor<Self> {
        synthesize::all_rows(Weight::new(codes, scales, dictionary, layout, Arithmetic::F32))
    }

    fn synthesize_rows(
        rows: IntTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        layout: CodecLayout,
    ) -> FloatTensor<Self> {
        let rows = into_contiguous(Self::int_cast(rows, IntDType::I32));
        synthesize::some_rows(rows, Weight::new(codes, scales, dictionary, layout, Arithmetic::F32))
    }

    fn pattern_linear(
        x: FloatTensor<Self>,
        codes: IntTensor<Self>,
        scales: FloatTensor<Self>,
        dictionary: FloatTensor<Self>,
        layout: CodecLayout,
        arithmetic: Arithmetic,
    ) -> FloatTensor<Self> {
        project::linear(into_contiguous(x), Weight::new(codes, scales, dictionary, layout, arithmetic))
    }

    fn project(x: FloatTensor<Self>, with: ProjectionTensors<Self>) -> FloatTensor<Self> {
        project::project(x, with)
    }

    fn feed_forward(x: FloatTensor<Self>, with: FeedForwardTensors<Self>) -> FloatTensor<Self> {
        project::feed_forward(x, with)
    }

    fn attend(
        qkv: FloatTensor<Self>,
        with: AttentionTensors<Self>,
        start: usize,
        spec: AttentionSpec,
    ) -> Attended<Self> {
        attend::attend(qkv, with, start, spec)
    }
}

/// The tables of a rotation, of the right types.
struct Bound {
    signs: CubeTensor,
    hartley: CubeTensor,
}

impl Bound {
    fn new(signs: CubeTensor, hartley: CubeTensor) -> Self {
        assert_eq!((signs.dtype, hartley.dtype), (DType::U32, DType::F32), "types of signs and Hartley values");
        Self { signs: into_contiguous(signs), hartley: into_contiguous(hartley) }
    }
}

/// A weight whose tensors are what its layout says. A kernel that read others would silently give wrong weights.
struct Weight {
    codes: CubeTensor,
    scales: CubeTensor,
    dictionary: CubeTensor,
    layout: CodecLayout,
    arithmetic: Arithmetic,
}

impl Weight {
    fn new(
        codes: CubeTensor,
        scales: CubeTensor,
        dictionary: CubeTensor,
        layout: CodecLayout,
        arithmetic: Arithmetic,
    ) -> Self {
        let dtypes = (codes.dtype, scales.dtype, dictionary.dtype);
        assert_eq!(dtypes, (DType::U32, DType::F32, DType::F32), "types of codes, scales, dictionary");
        let len = |tensor: &CubeTensor| tensor.shape().num_elements();
        let found = (len(&codes), len(&scales), len(&dictionary));
        let scale_len = layout.shape().d_output() * layout.scales_per_row();
        assert_eq!(
            found,
            (layout.num_words(), scale_len, layout.dictionary_len()),
            "lengths of codes, scales, dictionary"
        );
        // Kernels count in 32 bits.
        let largest = layout.num_words().max(layout.shape().num_weights());
        assert!(u32::try_from(largest).is_ok(), "{} weights in a kernel that counts in 32 bits", layout.shape());
        Self {
            codes: into_contiguous(codes),
            scales: into_contiguous(scales),
            dictionary: into_contiguous(dictionary),
            layout,
            arithmetic,
        }
    }

    /// An F32 tensor in addition to the weight's.
    fn empty(&self, shape: Shape) -> CubeTensor {
        empty_like(&self.scales, shape, DType::F32)
    }
}

fn empty_like(tensor: &CubeTensor, shape: Shape, dtype: DType) -> CubeTensor {
    empty_device_contiguous_dtype(tensor.client.clone(), tensor.device.clone(), shape, dtype)
}
