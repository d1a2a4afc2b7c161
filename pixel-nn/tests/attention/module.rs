//! The attention as a Burn module: types, records, display.

use super::*;

/// Turns every parameter into `f16`.
struct Halve;

impl ModuleMapper for Halve {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        param.map(|tensor| tensor.cast(DType::F16))
    }
}

#[test]
fn half_precision_stays_near_single() {
    let device = Device::flex();
    let attention = drawn(&grouped(), &device);
    let text = Numbers(41).tensor([2, 6, 12], &device);
    let expected = floats(attention.forward(text.clone()));
    let half = attention.map(&mut Halve);
    let found = half.forward(text.clone().cast(DType::F16));
    assert_eq!(found.dtype(), DType::F16);
    let mut cache = KeyValueCache::new();
    let pieces = text.cast(DType::F16).split(2, 1).into_iter().map(|piece| half.forward_cached(piece, &mut cache));
    let pieces = floats(Tensor::cat(pieces.collect(), 1));

    let largest = expected.iter().fold(1.0f64, |largest, x| largest.max(x.abs()));
    let tolerance = ROUNDINGS * 2f64.powi(-10) * (sums(&grouped(), 6) as f64).sqrt() * largest;
    let found = floats(found);
    for found in [&found, &pieces] {
        assert!(
            found.iter().zip(&expected).all(|(f, e)| abs_diff_eq!(f, e, epsilon = tolerance)),
            "{found:?} {expected:?}"
        );
    }
}

#[test]
fn a_record_restores_every_parameter() {
    let device = Device::flex();
    let attention = drawn(&grouped(), &device);
    let text = Numbers(43).tensor([1, 4, 12], &device);
    let expected = floats(attention.forward(text.clone()));
    let bytes = attention.into_record().into_bytes().unwrap();
    let other = grouped().init(&device);
    assert_ne!(floats(other.forward(text.clone())), expected);
    let read = other.load_record(ModuleRecord::from_bytes(bytes).unwrap());
    assert_eq!(floats(read.forward(text)), expected);
}

#[test]
fn parameters_are_counted() {
    let device = Device::flex();
    // q 12·48 + 48, k 12·16, v 12·16 + 16, o 48·12, two gains of 8.
    assert_eq!(grouped().init(&device).num_params(), 624 + 192 + 208 + 576 + 16);
    assert_eq!(PIXELAttentionConfig::new(8, 2).init(&device).num_params(), 4 * (64 + 8));
}

#[test]
fn display() {
    let device = Device::flex();
    assert_eq!(
        PIXELAttentionConfig::new(8, 2).init(&device).to_string(),
        "PIXELAttention {d_model: 8, n_heads: 2, n_kv_heads: 2, d_head: 4, causal: false, dropout: 0.1, \
         quiet_softmax: false, params: 288}"
    );
    assert_eq!(
        grouped().init(&device).to_string(),
        "PIXELAttention {d_model: 12, n_heads: 6, n_kv_heads: 2, d_head: 8, causal: true, rotary_theta: 40, \
         qk_norm: 0.000001, dropout: 0.1, quiet_softmax: false, params: 1616}"
    );
}
