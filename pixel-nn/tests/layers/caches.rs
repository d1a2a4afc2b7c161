//! Caches of dense weights.

use super::*;

#[test]
fn a_cache_obeys_its_budget_and_gives_the_same_results() {
    let device = Device::flex();
    let bytes = 64 * 64 * 4;
    let cache = WeightCache::new(2 * bytes + 100);
    let x = normal([2, 64]);
    let layers: Vec<PIXELLinear> = (0..3)
        .map(|_| PIXELLinearConfig::new(64, 64).init(&device).with_synthesis(SynthesisMode::Cached(cache.clone())))
        .collect();
    for round in 0..2 {
        for layer in &layers {
            let on_demand = layer.clone().with_synthesis(SynthesisMode::OnDemand);
            agrees(&on_demand, &x, &layer.forward(x.clone()), &format!("round {round}"));
            assert!(cache.used_bytes() <= cache.budget_bytes());
        }
    }
    assert_eq!(cache.used_bytes(), 2 * bytes);
    drop(layers);
    assert_eq!(cache.used_bytes(), 0);
}

#[test]
fn a_cache_never_serves_a_weight_that_has_changed() {
    struct Double;
    impl burn::module::ModuleMapper for Double {
        fn map_float<const D: usize>(&mut self, param: Param<Tensor<D>>) -> Param<Tensor<D>> {
            param.map(|values| values * 2.0)
        }
    }
    let cache = WeightCache::new(1 << 20);
    let config = PIXELLinearConfig::new(32, 16).with_bias(false).with_codec(codec("uniform:4"));
    let layer = config.init(&Device::flex()).with_synthesis(SynthesisMode::Cached(cache));
    let x = normal([1, 32]);
    let before = layer.forward(x.clone());
    // Scales and levels doubled: four times the weight.
    let layer = layer.map(&mut Double);
    assert!(distance(layer.forward(x.clone()), before.clone() * 4.0) < 1e-5);
    // One that is changed by hand, and does not change its clone.
    let same = layer.clone();
    let (halved, before) = (layer.weight.clone().map_scales(|scales| scales * 0.5), layer.forward(x.clone()));
    let mut layer = layer;
    layer.weight = halved;
    assert!(distance(layer.forward(x.clone()), before.clone() * 0.5) < 1e-5);
    assert_eq!(host(same.forward(x.clone())), host(before));
    // A loaded record too.
    let other = config.init(&Device::flex()).with_synthesis(SynthesisMode::OnDemandF32);
    let expected = other.forward(x.clone());
    let layer = layer.load_record(other.into_record());
    assert!(distance(layer.forward(x), expected) < 1e-5);
}
