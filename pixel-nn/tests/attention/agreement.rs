//! Every attention is that of the plain loops.

use super::*;

/// Every choice that the attention has, over small shapes.
fn configs() -> impl Strategy<Value = PIXELAttentionConfig> {
    let shape = (1..=12usize, 1..=3usize, 1..=3usize, 1..=4usize);
    let scaling = prop_oneof![Just(RotaryScaling::None), Just(RotaryScaling::Linear { factor: 4.0 }), Just(LLAMA3)];
    let rotary = proptest::option::of((prop_oneof![Just(10_000.0), Just(40.0)], scaling));
    let choices = (any::<[bool; 6]>(), proptest::option::of(Just(1e-5)));
    (shape, rotary, choices).prop_map(|((d_model, n_kv_heads, group, half), rotary, (choices, qk_norm))| {
        let [query, key, value, output, causal, quiet] = choices;
        PIXELAttentionConfig::new(d_model, n_kv_heads * group)
            .with_n_kv_heads(n_kv_heads)
            .with_d_head(Some(2 * half))
            .with_rotary(rotary.map(|(theta, scaling)| RotaryConfig { theta, scaling }))
            .with_query_bias(query)
            .with_key_bias(key)
            .with_value_bias(value)
            .with_output_bias(output)
            .with_causal(causal)
            .with_quiet_softmax(quiet)
            .with_qk_norm(qk_norm)
    })
}

proptest! {
    // The same cases every time: bounds on rounding hold for most inputs, not all.
    #![proptest_config(ProptestConfig {
        rng_seed: proptest::test_runner::RngSeed::Fixed(1),
        ..ProptestConfig::with_cases(96)
    })]

    #[test]
    fn any_attention_matches_plain_loops(
        config in configs(), batch in 1..=3usize, seq_q in 1..=9usize, seq_k in 1..=9usize, seed: u64,
    ) {
        let seq_k = if config.causal { seq_q } else { seq_k };
        for device in host_devices() {
            matches_reference(&config, [batch, seq_q, seq_k], seed, &device);
        }
    }

    #[test]
    fn any_pieces_give_the_whole(
        config in configs(), batch in 1..=3usize, pieces in proptest::collection::vec(1..=4usize, 1..=6usize),
    ) {
        for device in host_devices() {
            pieces_match_the_whole(&config.clone().with_causal(true), batch, pieces.as_slice(), &device);
        }
    }
}

#[test]
fn every_backend_matches_plain_loops() {
    let multi_head = PIXELAttentionConfig::new(8, 2).with_quiet_softmax(true);
    for device in devices() {
        matches_reference(&grouped(), [2, 5, 5], 1, &device);
        matches_reference(&multi_head, [2, 3, 5], 2, &device);
        pieces_match_the_whole(&grouped(), 2, &[3, 1, 2], &device);
    }
}

#[test]
fn a_long_prompt_and_its_decoding_cross_the_windows_of_the_tables() {
    // Tables cover 256 positions: the last piece begins in one window and ends in the next.
    let config = grouped().with_d_head(Some(2)).with_rotary(Some(RotaryConfig::new()));
    pieces_match_the_whole(&config, 1, &[250, 1, 9, 1], &Device::flex());
}

#[test]
fn a_query_without_keys_gives_the_output_bias_on_every_backend() {
    let config = PIXELAttentionConfig::new(4, 2);
    for device in devices() {
        for quiet in [false, true] {
            let attention = drawn(&config.clone().with_quiet_softmax(quiet), &device);
            let text = Numbers(5).tensor([2, 3, 4], &device);
            let padding = Tensor::<2, Bool>::from_data([[true, true, true], [false, false, false]], &device);
            let found = attention.attend(AttentionInput::self_attn(text).mask_pad(padding));
            assert!(floats(found.weights)[..2 * 3 * 3].iter().all(|&weight| weight == 0.0));
            let bias = floats(dense(&attention.output).bias.as_ref().unwrap().val());
            let context = floats(found.context);
            assert!(context[..12].chunks(4).all(|token| token == bias), "{context:?}");
            assert!(context[12..].chunks(4).all(|token| token != bias && token.iter().all(|x| x.is_finite())));
        }
    }
}
