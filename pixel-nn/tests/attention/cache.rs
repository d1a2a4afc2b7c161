//! What a cache holds.

use super::*;

#[test]
fn left_padding_changes_no_text_of_a_batch() {
    let device = Device::flex();
    let attention = drawn(&grouped(), &device);
    let mut numbers = Numbers(11);
    let [short, long] = [2, 5].map(|seq| numbers.tensor([1, seq, 12], &device));
    let next = numbers.tensor([2, 1, 12], &device);
    let alone = |text: &Tensor<3>, row: usize| {
        let text = Tensor::cat(vec![text.clone(), next.clone().narrow(0, row, 1)], 1);
        let [_, seq, _] = text.dims();
        floats(attention.forward(text).narrow(1, seq - 3, 3))
    };
    // Three tokens of padding before the short text; what stands there must not matter.
    let padding = numbers.tensor([1, 3, 12], &device) * 100.0;
    let padded = Tensor::cat(vec![padding, short.clone()], 1);
    let mask = [[true, true, true, false, false], [false; 5]];
    let mut cache = KeyValueCache::new();
    let batch = Tensor::cat(vec![padded, long.clone()], 0);
    let prompt = attention.forward_cached_padded(batch, Tensor::from_data(mask, &device), &mut cache);
    let step = attention.forward_cached(next.clone(), &mut cache);
    let together = Tensor::cat(vec![prompt, step], 1);

    assert!(floats(together.clone()).iter().all(|x| x.is_finite()));
    for (row, text) in [&short, &long].into_iter().enumerate() {
        let found = floats(together.clone().narrow(0, row, 1).narrow(1, 3, 3));
        assert_close(&found, &alone(text, row), sums(&grouped(), 6), "padded");
    }
}

#[test]
fn a_truncated_cache_takes_another_continuation() {
    let device = Device::flex();
    let attention = drawn(&grouped(), &device);
    let mut numbers = Numbers(13);
    let [prompt, draft, chosen] = [3, 2, 2].map(|seq| numbers.tensor([2, seq, 12], &device));
    let mut cache = KeyValueCache::with_capacity(16);
    attention.forward_cached(prompt.clone(), &mut cache);
    attention.forward_cached(draft, &mut cache);
    cache.truncate(3);
    let found = attention.forward_cached(chosen.clone(), &mut cache);
    let whole = attention.forward(Tensor::cat(vec![prompt, chosen], 1));
    assert_close(&floats(found), &floats(whole.narrow(1, 3, 2)), sums(&grouped(), 5), "continued");

    cache.clear();
    let other = numbers.tensor([1, 2, 12], &device);
    let found = attention.forward_cached(other.clone(), &mut cache);
    assert_close(&floats(found), &floats(attention.forward(other)), sums(&grouped(), 2), "cleared");
}
