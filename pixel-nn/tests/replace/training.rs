//! Scales and dictionaries train; codes do not.

use super::*;
use burn::optim::{AdamWConfig, GradientsParams};

fn loss(net: &Net, device: &Device) -> Tensor<1> {
    (net.forward(tokens(device)) - 1.0).powf_scalar(2.0).mean()
}

/// Freezes all but what is attached to parameters: whatever is learned, patterns have learned it.
struct PatternsOnly(usize);

impl ModuleMapper for PatternsOnly {
    fn enter_module(&mut self, _: &str, container: &str) {
        self.0 += usize::from(self.0 > 0 || container == "Reparameterization");
    }

    fn exit_module(&mut self, _: &str, _: &str) {
        self.0 = self.0.saturating_sub(1);
    }

    fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
        if self.0 > 0 { param } else { param.set_require_grad(false) }
    }
}

fn scalar(loss: Tensor<1>) -> f32 {
    floats(loss)[0]
}

#[test]
fn training_moves_scales_and_dictionary_and_no_code() {
    let device = Device::flex().autodiff();
    for codec in ["uniform:4", "trellis:2:window=8", "additive:2:beam=1"] {
        let config = config(codec).with_train_dictionaries(true);
        let (mut net, _) = replace_linear_layers(Net::new(&device), &config).unwrap();
        let state = |net: &mut Net| {
            let linears = net.linears().into_iter().take(7);
            let weights = linears.map(|(_, linear)| {
                let weight = &pattern(linear).weight;
                let codes = weight.codes().val().into_data().try_to_vec::<u32>().unwrap();
                (codes, floats(weight.scales().val()), floats(weight.dictionary().val()))
            });
            weights.collect::<Vec<_>>()
        };
        let before = state(&mut net);
        let grads = loss(&net, &device).backward();
        for (name, linear) in net.linears().into_iter().take(7) {
            let weight = &pattern(linear).weight;
            for (what, grad) in [
                ("scales", weight.scales().val().grad(&grads).map(floats)),
                ("dictionary", weight.dictionary().val().grad(&grads).map(floats)),
            ] {
                let grad = grad.unwrap_or_else(|| panic!("{codec} {name}: no gradient of {what}"));
                assert!(grad.iter().any(|g| *g != 0.0), "{codec} {name}: {what}");
            }
            assert!(linear.weight.base().grad(&grads).is_none());
        }
        let mut net = net.map(&mut PatternsOnly(0));
        let mut optimizer = AdamWConfig::new().init();
        let start = scalar(loss(&net, &device));
        for _ in 0..5 {
            let grads = GradientsParams::from_grads(loss(&net, &device).backward(), &net);
            net = optimizer.step(1e-2, net, grads);
        }
        let end = scalar(loss(&net, &device));
        assert!(end < 0.9 * start, "{codec}: {start} -> {end}");
        for (before, after) in before.into_iter().zip(state(&mut net)) {
            assert!(before.0 == after.0 && before.1 != after.1 && before.2 != after.2, "{codec}");
        }
        let valid = net.valid();
        let plain = Device::flex();
        let (found, expected) = (valid.forward(tokens(&plain)), net.forward(tokens(&device)));
        assert!(distance(found, expected) < 1e-5, "{codec}");
        let again = valid.train();
        let grads = loss(&again, &device).backward();
        let Head::Deep(block) = &again.heads.0 else { panic!("deep") };
        assert!(pattern(&block.inner).weight.scales().val().grad(&grads).is_some());
    }
}

#[test]
fn a_restored_model_trains_where_the_dense_one_did() {
    let device = Device::flex().autodiff();
    for device in [device.clone(), Device::flex()] {
        let plain = linear(64, 64, &device);
        let frozen = linear(64, 64, &device).no_grad();
        let (small, _) = replace_linear_layers(vec![plain, frozen], &config("uniform:4")).unwrap();
        let trained = |linear: &Linear| {
            let weight = &pattern(linear).weight;
            [weight.scales().val().is_require_grad(), weight.dictionary().val().is_require_grad()]
        };
        let train = small.clone().train();
        assert_eq!((trained(&train[0]), trained(&train[1])), ([true, false], [false; 2]), "{device:?}");
        let dense = restore_dense(small).train();
        let trained = |linear: &Linear| linear.weight.val().is_require_grad();
        assert_eq!((trained(&dense[0]), trained(&dense[1])), (true, false), "{device:?}");
    }
}
