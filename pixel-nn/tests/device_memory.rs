//! What a compressed layer holds on its device, measured: 4096 × 4096 at 2 bits within 4.4 MB.

use burn::module::Module;
use burn::tensor::{Device, Tensor};
use peak_alloc::PeakAlloc;
use pixel_nn::PIXELLinearConfig;

#[global_allocator]
static HEAP: PeakAlloc = PeakAlloc;

const LIMIT: usize = 4_400_000;
const SIDE: usize = 4096;

#[test]
fn a_linear_of_4096_at_2_bits_holds_its_codes_and_scales() {
    for codec in ["trellis:2", "additive:2", "lapped:2"] {
        let device = Device::flex();
        let before = HEAP.current_usage();
        let config = PIXELLinearConfig::new(SIDE, SIDE).with_bias(false).with_codec(codec.parse().unwrap());
        let layer = config.init(&device);
        let held = HEAP.current_usage() - before;
        println!("flex, {codec}: {held} bytes on the heap, {} by its own account", layer.weight.device_bytes());
        // The rotation keeps its signs as f32 on the host as well.
        assert!(layer.weight.device_bytes() <= LIMIT && held <= LIMIT, "{held}");

        // A forward pass needs bands of the weight, never all of it.
        let x = Tensor::<2>::ones([1, SIDE], &device);
        HEAP.reset_peak_usage();
        let idle = HEAP.current_usage();
        let _ = layer.forward(x);
        let extra = HEAP.peak_usage() - idle;
        println!("flex, {codec}: {extra} bytes more during a forward pass, a dense weight takes {}", 4 * SIDE * SIDE);
        assert!(extra < SIDE * SIDE / 4, "{extra}");
        assert_eq!(
            layer.num_params(),
            layer.weight.scales().shape().num_elements() + layer.weight.dictionary().dims()[0]
        );
    }

    #[cfg(feature = "wgpu")]
    {
        let device = Device::wgpu(burn::tensor::DeviceKind::DefaultDevice);
        let in_use = |device: &Device| {
            device.sync().unwrap();
            device.memory_cleanup();
            device.memory_pool_usage().expect("a device that counts its memory").bytes_in_use as usize
        };
        let config = PIXELLinearConfig::new(SIDE, SIDE).with_bias(false);
        // On the host first: what the making of it needs is not what it holds.
        let layer = config.init(&Device::flex());
        let before = in_use(&device);
        let layer = layer.to_device(&device);
        let held = in_use(&device) - before;
        println!("wgpu, trellis:2: {held} bytes of device memory in use");
        assert!(held <= LIMIT, "{held}");
        let y = layer.forward(Tensor::<2>::ones([1, SIDE], &device));
        drop(y);
        let after = in_use(&device) - before;
        println!("wgpu, trellis:2: {after} bytes after a forward pass");
        assert!(after <= LIMIT, "{after}");
    }
}
