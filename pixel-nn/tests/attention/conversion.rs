//! Burn's own attention, converted.

use super::*;

/// Burn's module and ours with the same parameters, in the same call.
fn matches_burn(burn: &MultiHeadAttention, input: [Tensor<3>; 3], pad: Tensor<2, Bool>, hidden: Tensor<3, Bool>) {
    let [query, key, value] = input;
    let [_, seq_k, d_model] = key.dims();
    let theirs = MhaInput::new(query.clone(), key.clone(), value.clone());
    let theirs = burn.forward(theirs.mask_pad(pad.clone()).mask_attn(hidden.clone()));
    let ours = AttentionInput::new(query, key, value).mask_pad(pad).mask_attn(hidden);
    let ours = PIXELAttention::from_multi_head(burn).attend(ours);
    assert_close(&floats(ours.weights), &floats(theirs.weights), 3 * d_model + seq_k, "weight");
    assert_close(&floats(ours.context), &floats(theirs.context), 3 * d_model + seq_k, "context");
}

#[test]
fn burns_attention_converts_to_an_equal_one() {
    for device in devices() {
        for quiet in [false, true] {
            let config = MultiHeadAttentionConfig::new(12, 3).with_quiet_softmax(quiet).with_key_bias(false);
            let burn = config.init(&device).map(&mut Numbers(7));
            let mut numbers = Numbers(17);
            let text = numbers.tensor([2, 4, 12], &device);
            let pad = [[false, false, false, true], [false; 4]];
            let causal = generate_autoregressive_mask(2, 4, &device);
            matches_burn(&burn, [0; 3].map(|_| text.clone()), Tensor::from_data(pad, &device), causal);

            // Cross attention; key 0 stays visible, since a row without keys is where the two differ.
            let [key, value] = [0; 2].map(|_| numbers.tensor([2, 5, 12], &device));
            let pad = [[false, true, false, false, true], [false, false, true, false, false]];
            let hidden = numbers.mask([2, 4, 5], &device).slice_fill(burn::tensor::s![.., .., 0], false);
            matches_burn(&burn, [text, key, value], Tensor::from_data(pad, &device), hidden);
        }
    }
}

#[test]
fn a_converted_attention_can_be_made_causal() {
    let device = Device::flex();
    let burn = MultiHeadAttentionConfig::new(8, 2).init(&device);
    let text = Numbers(19).tensor([1, 4, 8], &device);
    let masked = MhaInput::self_attn(text.clone()).mask_attn(generate_autoregressive_mask(1, 4, &device));
    let expected = burn.forward(masked).context;
    let ours = PIXELAttention { causal: true, ..PIXELAttention::from_multi_head(&burn) };
    assert_close(&floats(ours.forward(text)), &floats(expected), 28, "causal");
}
