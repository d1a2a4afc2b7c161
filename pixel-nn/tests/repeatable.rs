//! Layers that start at random. One test, and nothing beside it: it seeds what the whole process draws from.

use approx::abs_diff_eq;
use burn::tensor::Device;
use pixel_core::{CodecSpec, Shape};
use pixel_nn::PIXELLinearConfig;

#[test]
fn a_new_layer_has_the_deviation_of_burns() {
    let device = Device::flex();
    for text in
        ["trellis:3:window=8", "additive:3:beam=1", "lapped:2:beam=1", "matching:2:beam=1:learned=3", "uniform:4"]
    {
        let codec: CodecSpec = text.parse().unwrap();
        let layer = || {
            device.seed(1);
            PIXELLinearConfig::new(300, 100).with_codec(codec.clone()).init(&device)
        };
        let values = |layer: &pixel_nn::PIXELLinear| layer.weight.synthesize().into_data().try_to_vec::<f32>().unwrap();
        let first = layer();
        let weights = values(&first);
        let deviation = (weights.iter().map(|w| w * w).sum::<f32>() / weights.len() as f32).sqrt();
        assert!(abs_diff_eq!(deviation * 900f32.sqrt(), 1.0, epsilon = 0.01), "{text}: {deviation}");
        let mean = weights.iter().sum::<f32>() / weights.len() as f32;
        assert!(mean.abs() < 0.1 * deviation, "{text}: mean {mean}");
        // Repeatable, and a valid packed weight.
        assert_eq!(values(&layer()), weights, "{text}");
        assert_eq!(first.weight.to_packed().unwrap().shape(), Shape::new(100, 300).unwrap());
    }
}
