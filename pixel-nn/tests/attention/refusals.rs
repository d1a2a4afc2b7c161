//! Shapes and configurations that are refused.

use super::*;

/// An attention, not causal, and a text that does not fit it.
fn refused(shapes: [[usize; 3]; 3], pad: Option<[usize; 2]>, hidden: Option<[usize; 3]>) {
    let device = Device::flex();
    let [query, key, value] = shapes.map(|shape| Tensor::zeros(shape, &device));
    let mut input = AttentionInput::new(query, key, value);
    if let Some(shape) = pad {
        input = input.mask_pad(Tensor::zeros(shape, &device));
    }
    if let Some(shape) = hidden {
        input = input.mask_attn(Tensor::zeros(shape, &device));
    }
    PIXELAttentionConfig::new(8, 2).init(&device).attend(input);
}

#[test]
#[should_panic(expected = "axis 2 expected 8, got 6")]
fn a_query_of_another_width_is_refused() {
    refused([[1, 3, 6], [1, 3, 8], [1, 3, 8]], None, None);
}

#[test]
#[should_panic(expected = "axis 0 expected 2, got 1")]
fn keys_of_another_batch_are_refused() {
    refused([[2, 3, 8], [1, 3, 8], [1, 3, 8]], None, None);
}

#[test]
#[should_panic(expected = "axis 1 expected 4, got 3")]
fn fewer_values_than_keys_are_refused() {
    refused([[1, 3, 8], [1, 4, 8], [1, 3, 8]], None, None);
}

#[test]
#[should_panic(expected = "axis 1 expected 4, got 3")]
fn a_padding_mask_of_the_queries_is_refused() {
    refused([[1, 3, 8], [1, 4, 8], [1, 4, 8]], Some([1, 3]), None);
}

#[test]
#[should_panic(expected = "axis 1 expected 3, got 4")]
fn a_transposed_attention_mask_is_refused() {
    refused([[1, 3, 8], [1, 4, 8], [1, 4, 8]], None, Some([1, 4, 3]));
}

#[test]
#[should_panic(expected = "causal attention needs as many queries")]
fn causal_cross_attention_of_unequal_lengths_is_refused() {
    let device = Device::flex();
    let [query, key] = [3, 4].map(|seq| Tensor::zeros([1, seq, 12], &device));
    grouped().init(&device).attend(AttentionInput::new(query, key.clone(), key));
}

#[test]
#[should_panic(expected = "forward_cached needs causal attention")]
fn a_cache_without_causality_is_refused() {
    let device = Device::flex();
    let attention = PIXELAttentionConfig::new(8, 2).init(&device);
    attention.forward_cached(Tensor::zeros([1, 1, 8], &device), &mut KeyValueCache::new());
}

#[test]
#[should_panic(expected = "texts of the new tokens (left) and of the cache (right)")]
fn a_cache_of_another_batch_is_refused() {
    let device = Device::flex();
    let attention = grouped().init(&device);
    let mut cache = KeyValueCache::new();
    attention.forward_cached(Tensor::zeros([2, 1, 12], &device), &mut cache);
    attention.forward_cached(Tensor::zeros([1, 1, 12], &device), &mut cache);
}

#[test]
#[should_panic(expected = "6 query heads cannot share 4 key heads evenly")]
fn an_invalid_configuration_panics_with_its_error() {
    PIXELAttentionConfig::new(12, 6).with_n_kv_heads(4).init(&Device::flex());
}
