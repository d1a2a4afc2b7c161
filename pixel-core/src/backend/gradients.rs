//! The gradients of scales and dictionary, from the formula of [`super::definition`].

use super::definition::{Term, scale_of_weights, unscaled};
use super::terms::terms;
use crate::codec::CodecLayout;
use burn::backend::tensor::{FloatTensor, IndexingUpdateOp, IntTensor};
use burn::backend::{Backend, TensorMetadata};
use burn::tensor::{FloatDType, Shape};

/// The gradient of the scales, given that of the weight in the rotated basis, `[d_output, d_input]`.
pub(super) fn scale_gradient<B: Backend>(
    gradient: FloatTensor<B>,
    codes: &IntTensor<B>,
    scales: &FloatTensor<B>,
    dictionary: &FloatTensor<B>,
    layout: &CodecLayout,
) -> FloatTensor<B> {
    let gradient = B::float_reshape(gradient, Shape::from([layout.shape().num_weights()]));
    let (_, places) = scale_of_weights::<B>(scales, layout);
    let values = B::float_mul(gradient, unscaled::<B>(codes, dictionary, layout));
    B::float_reshape(sum_at::<B>(scales.shape().num_elements(), places, values), scales.shape())
}

/// The gradient of the dictionary, given that of the weight in the rotated basis, `[d_output, d_input]`.
pub(super) fn dictionary_gradient<B: Backend>(
    gradient: FloatTensor<B>,
    codes: &IntTensor<B>,
    scales: &FloatTensor<B>,
    dictionary: &FloatTensor<B>,
    layout: &CodecLayout,
) -> FloatTensor<B> {
    let gradient = B::float_reshape(gradient, Shape::from([layout.shape().num_weights()]));
    let of_values = B::float_mul(gradient, scale_of_weights::<B>(scales, layout).0);
    let of_term = |term: Term<B>| {
        let of_index = |(j, index): (usize, &IntTensor<B>)| {
            let rest = term.product(dictionary, Some(j));
            let values = rest.map_or_else(|| of_values.clone(), |rest| B::float_mul(of_values.clone(), rest));
            sum_at::<B>(layout.dictionary_len(), index.clone(), values)
        };
        term.indices.iter().enumerate().map(of_index).reduce(B::float_add).expect("a term has an index")
    };
    terms::<B>(codes, layout).map(of_term).reduce(B::float_add).expect("a codec has at least one term")
}

/// `out[places[i]] += values[i]`, `[len]`.
fn sum_at<B: Backend>(len: usize, places: IntTensor<B>, values: FloatTensor<B>) -> FloatTensor<B> {
    let zeros = B::float_zeros(Shape::from([len]), &values.device(), FloatDType::F32);
    B::float_select_assign(zeros, 0, places, values, IndexingUpdateOp::Add)
}
