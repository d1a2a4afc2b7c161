//! From the name of a backend to a device that works.
//!
//! A backend is compiled in by the cargo feature of the same name.

use anyhow::{Context, Result, anyhow, bail};
use burn::tensor::Device;
use pixel_core::backend::probe_device;

/// The backends, by their names and features.
pub(crate) const NAMES: [&str; 5] = ["flex", "ndarray", "wgpu", "cuda", "cpu"];

/// A backend's device, proven to work by a first operation.
///
/// # Errors
/// If there is no such backend, it is not compiled in, or its device or driver is missing.
pub(crate) fn device(name: &str) -> Result<Device> {
    if !NAMES.contains(&name) {
        bail!("unknown backend {name:?}, not one of {}", NAMES.join(", "));
    }
    let device = compiled_in(name).ok_or_else(|| not_compiled_in(name))?();
    probe_device(&device).with_context(|| format!("the backend {name} does not work here"))?;
    Ok(device)
}

/// The constructor of a backend's device, if its feature is on.
fn compiled_in(name: &str) -> Option<fn() -> Device> {
    match name {
        #[cfg(feature = "flex")]
        "flex" => Some(Device::flex),
        #[cfg(feature = "ndarray")]
        "ndarray" => Some(ndarray),
        #[cfg(feature = "wgpu")]
        "wgpu" => Some(|| Device::wgpu(burn::tensor::DeviceKind::DefaultDevice)),
        #[cfg(feature = "cuda")]
        "cuda" => Some(|| Device::cuda(0)),
        #[cfg(feature = "cpu")]
        "cpu" => Some(Device::cpu),
        _ => None,
    }
}

#[cfg(feature = "ndarray")]
#[allow(deprecated, reason = "Burn advises Flex, but still ships and tests this backend")]
fn ndarray() -> Device {
    Device::ndarray()
}

fn not_compiled_in(name: &str) -> anyhow::Error {
    let here: Vec<&str> = NAMES.into_iter().filter(|name| compiled_in(name).is_some()).collect();
    anyhow!(
        "the backend {name} is not compiled in (compiled in: {}); turn on its feature: \
         cargo run --release --example EXAMPLE --features {name} -- --backend {name}",
        here.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_backend_is_refused_with_the_known_ones() {
        let error = device("tpu").unwrap_err().to_string();
        assert!(NAMES.iter().all(|name| error.contains(name)), "{error}");
    }

    #[test]
    fn a_backend_that_is_missing_is_named_with_its_feature() {
        let error = not_compiled_in("cuda").to_string();
        assert!(error.contains("--features cuda -- --backend cuda"), "{error}");
    }

    #[test]
    #[cfg(feature = "flex")]
    fn a_backend_on_the_cpu_passes_its_probe() {
        assert_eq!(device("flex").unwrap(), Device::flex());
    }
}
