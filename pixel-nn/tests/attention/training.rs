//! Gradients, dropout, and the change between training and use.

use super::*;

/// The derivative of the loss by the number that `number` points at, by a central difference in `f64`: of order h²
/// exact, and with h = 10⁻⁴ so are the roundings, 10⁻¹⁶/h.
fn difference(
    reference: &Reference,
    tokens: &[f64],
    batch: usize,
    factors: &[f64],
    number: &dyn for<'a> Fn(&'a mut Reference, &'a mut [f64]) -> &'a mut f64,
) -> f64 {
    let loss = |step: f64| -> f64 {
        let (mut reference, mut tokens) = (reference.clone(), tokens.to_vec());
        *number(&mut reference, &mut tokens) += step;
        reference.forward(&Text { tokens: &tokens, batch }).iter().zip(factors).map(|(x, f)| x * f).sum()
    };
    (loss(1e-4) - loss(-1e-4)) / 2e-4
}

#[test]
fn gradients_are_the_slopes_of_the_loops() {
    let config = PIXELAttentionConfig::new(3, 4)
        .with_n_kv_heads(2)
        .with_d_head(Some(4))
        .with_rotary(Some(RotaryConfig::new().with_theta(40.0)))
        .with_qk_norm(Some(1e-5))
        .with_dropout(0.0)
        .with_causal(true);
    let attention = drawn(&config, &Device::flex()).train();
    let device = Device::flex().autodiff();
    let text = Numbers(23).tensor([2, 3, 3], &device).require_grad();
    let factors = Numbers(29).tensor([2, 3, 3], &device);
    let grads = (attention.forward(text.clone()) * factors.clone()).sum().backward();

    let reference = Reference::of(&attention, &config);
    let (tokens, factors) = (floats(text.clone().inner()), floats(factors.inner()));
    let check = |what: &str, found: Vec<f64>, number: &dyn Fn(usize) -> f64| {
        let expected: Vec<f64> = (0..found.len()).map(number).collect();
        assert!(expected.iter().any(|slope| slope.abs() > 0.01), "{what}: nothing to compare, {expected:?}");
        assert_close(&found, &expected, 8 * sums(&config, 3), what);
    };
    macro_rules! check {
        ($what:literal, $grad:expr, |$reference:ident, $tokens:ident, $i:ident| $number:expr) => {
            check($what, floats($grad.expect($what)), &|$i| {
                difference(&reference, &tokens, 2, &factors, &|$reference, $tokens| {
                    let _ = (&$reference, &$tokens);
                    &mut $number[$i]
                })
            });
        };
    }
    check!("tokens", text.grad(&grads), |r, t, i| t);
    check!("query", dense(&attention.query).weight.grad(&grads), |r, t, i| r.query.weight);
    check!("key", dense(&attention.key).weight.grad(&grads), |r, t, i| r.key.weight);
    check!("value", dense(&attention.value).weight.grad(&grads), |r, t, i| r.value.weight);
    check!("output", dense(&attention.output).weight.grad(&grads), |r, t, i| r.output.weight);
    let gain = |norm: &Option<RmsNorm>| norm.as_ref().and_then(|norm| norm.gamma.grad(&grads));
    check!("query gain", gain(&attention.query_norm), |r, t, i| r.query_gain.as_mut().unwrap());
    check!("key gain", gain(&attention.key_norm), |r, t, i| r.key_gain.as_mut().unwrap());
}

#[test]
fn a_query_without_keys_sends_back_zeros_and_no_nan() {
    let device = Device::flex().autodiff();
    for quiet in [false, true] {
        let attention = drawn(&PIXELAttentionConfig::new(4, 2).with_quiet_softmax(quiet).with_dropout(0.0), &device);
        let text = Numbers(31).tensor([1, 2, 4], &device).require_grad();
        let padding = Tensor::<2, Bool>::from_data([[true, true]], &device);
        let grads =
            attention.attend(AttentionInput::self_attn(text.clone()).mask_pad(padding)).context.sum().backward();
        assert_eq!(floats(text.grad(&grads).unwrap()), [0.0; 8]);
    }
}

#[test]
fn dropout_acts_on_the_weights_and_in_training_only() {
    let device = Device::flex().autodiff();
    let attention = PIXELAttentionConfig::new(4, 2).with_dropout(0.5).init(&device);
    // Tokens alike have scores alike: weights of 1/4, doubled or dropped.
    let text = Tensor::<3>::ones([4, 4, 4], &device);
    let near = |found: &[f64], allowed: &[f64]| {
        found.iter().all(|found| allowed.iter().any(|allowed| abs_diff_eq!(found, allowed, epsilon = 1e-6)))
    };
    let weights = floats(attention.attend(AttentionInput::self_attn(text.clone())).weights);
    assert!(near(&weights, &[0.0, 0.5]) && !near(&weights, &[0.5]) && !near(&weights, &[0.0]), "{weights:?}");
    let weights = floats(attention.valid().attend(AttentionInput::self_attn(text.inner())).weights);
    assert!(near(&weights, &[0.25]), "{weights:?}");
}

#[test]
fn positions_follow_the_module_through_training_and_back() {
    let device = Device::flex();
    let attention = drawn(&grouped().with_dropout(0.0), &device);
    let text = Numbers(37).tensor([1, 3, 12], &device);
    let expected = floats(attention.forward(text.clone()));
    let training = attention.train();
    let found = floats(training.forward(Tensor::from_inner(text.clone())));
    assert_close(&found, &expected, sums(&grouped(), 3), "training");
    let valid = training.valid();
    assert_eq!(floats(valid.forward(text.clone())), expected);
    for other in devices() {
        let moved = valid.clone().to_device(&other);
        let found = floats(moved.forward(text.clone().to_device(&other)));
        assert_close(&found, &expected, 2 * sums(&grouped(), 3), "moved");
    }
}
