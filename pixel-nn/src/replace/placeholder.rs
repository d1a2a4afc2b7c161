//! What stays of a dense parameter when patterns take its place.

use burn::module::Param;
use burn::tensor::Tensor;

/// Zeros of shape `[n, 1, …]` in place of `[n, …]`: the parameter keeps its id, device, type, mappers and whether it is
/// trained.
///
/// Some layers read the first axis of the stored value, the width of their input, without [`Param::val`]
/// (`PositionWiseFeedForward`, the displays of recurrent layers). A view of the whole shape without its memory would
/// serve those who read the second one too, but a record writes all the values of a view, and what is written in less
/// is refused by its shape when it is loaded. Where the parameter's mappers change the shape, as those of Burn's column
/// layout do, it is `[1, 1, …]`, which survives them.
pub(super) fn placeholder<const D: usize>(param: Param<Tensor<D>>) -> Param<Tensor<D>> {
    let options = (&param.device(), param.dtype());
    let mut dims = [1; D];
    dims[0] = param.dims()[0];
    let (id, _, mappers) = param.clone().consume();
    let mut zeros = Tensor::zeros(dims, options);
    if mappers.on_save(zeros.clone()).dims() != dims || mappers.on_load(zeros.clone()).dims() != dims {
        zeros = Tensor::zeros([1; D], options);
    }
    param.transform_for_load(zeros, id)
}

/// Whether training leaves the parameter alone. On a device without gradients its tensor does not show it, and only
/// [`Module::train`](burn::module::Module::train) brings it to light.
pub(super) fn is_frozen<const D: usize>(base: &Param<Tensor<D>>) -> bool {
    if base.device().is_autodiff() {
        return !base.is_require_grad();
    }
    #[cfg(feature = "autodiff")]
    return !burn::module::Module::train(base.clone()).is_require_grad();
    #[cfg(not(feature = "autodiff"))]
    false
}
