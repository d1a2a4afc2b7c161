//! Whether a device can run the operations, and whether it is present.

use crate::synthesis::KernelFormError;
use burn::tensor::{Device, Tensor};
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// A weight that cannot be put on a device.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// The backend of the device has no implementation of the operations in this build.
    #[error("device {device} has no compressed layers in this build; {hint}")]
    Unsupported {
        /// The device.
        device: String,
        /// The feature to turn on.
        hint: &'static str,
    },
    /// The first operation on the device fails: there is no such device, or no driver for it.
    #[error("device {device} does not work: {message}")]
    Unavailable {
        /// The device.
        device: String,
        /// The first panic or error.
        message: String,
    },
    /// The width of a rotated weight has too large an odd part.
    #[error("d_input = {d_input} has the odd part {odd}, kernels rotate odd parts up to {limit}")]
    Width {
        /// The width.
        d_input: usize,
        /// Its odd part.
        odd: usize,
        /// The largest that is rotated.
        limit: usize,
    },
    /// The weight has no form that kernels read.
    #[error(transparent)]
    Form(#[from] KernelFormError),
    /// A tensor could not be read back.
    #[error("a tensor cannot be read: {message}")]
    Read {
        /// The backend's message.
        message: String,
    },
}

/// Refuses devices on which the operations would panic: backends without an implementation, and autodiff without the
/// feature `autodiff` of this crate.
///
/// # Errors
/// [`BackendError::Unsupported`].
pub fn check_device(device: &Device) -> Result<(), BackendError> {
    let unsupported = |hint| Err(BackendError::Unsupported { device: format!("{device:?}"), hint });
    if device.is_autodiff() && !cfg!(feature = "autodiff") {
        return unsupported("turn on the feature \"autodiff\"");
    }
    match device.clone().without_autodiff().as_dispatch() {
        #[cfg(feature = "flex")]
        burn::backend::DispatchDevice::Flex(_) => Ok(()),
        #[cfg(feature = "ndarray")]
        burn::backend::DispatchDevice::NdArray(_) => Ok(()),
        #[cfg(feature = "cube")]
        burn::backend::DispatchDevice::Cube(_) => Ok(()),
        #[allow(unreachable_patterns, reason = "the features of the whole build decide which backends exist")]
        _ => unsupported("turn on the feature of its backend, one of flex, ndarray, wgpu, vulkan, metal, cuda, cpu"),
    }
}

/// Whether the device is the processor that this program runs on, whose threads may all put tensors there.
pub fn is_host(device: &Device) -> bool {
    match device.as_dispatch() {
        #[cfg(feature = "flex")]
        burn::backend::DispatchDevice::Flex(_) => true,
        #[cfg(feature = "ndarray")]
        burn::backend::DispatchDevice::NdArray(_) => true,
        #[allow(unreachable_patterns, reason = "the features of the whole build decide which backends exist")]
        _ => false,
    }
}

/// Runs a first operation on the device, which is where Burn panics if a GPU or its driver is missing.
///
/// For programs that let their users choose a device. While it runs, panics of the whole process are held back.
///
/// # Errors
/// [`BackendError::Unavailable`] with the first panic; [`BackendError::Unsupported`] as [`check_device`].
pub fn probe_device(device: &Device) -> Result<(), BackendError> {
    check_device(device)?;
    let unavailable = |message: String| BackendError::Unavailable { device: format!("{device:?}"), message };
    match first_panic(|| Tensor::<1>::ones([2], device).sum().try_into_scalar::<f32>()) {
        Ok(Ok(2.0)) => Ok(()),
        Ok(Ok(sum)) => Err(unavailable(format!("1 + 1 is {sum} there"))),
        Ok(Err(error)) => Err(unavailable(format!("{error:?}"))),
        Err(cause) => Err(unavailable(cause)),
    }
}

/// The result of an operation, or the message of the first panic that it causes on any thread.
///
/// A runtime fails on a thread of its own and then, with a message that explains nothing, on the caller's.
fn first_panic<T>(operation: impl FnOnce() -> T) -> Result<T, String> {
    // The hook belongs to the whole process: one at a time.
    static HOOK: Mutex<()> = Mutex::new(());
    let _alone = HOOK.lock().unwrap_or_else(PoisonError::into_inner);
    let cause = Arc::new(OnceLock::new());
    let seen = Arc::clone(&cause);
    let hook = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        seen.get_or_init(|| info.payload_as_str().unwrap_or("a panic without a message").to_owned());
    }));
    // Nothing of the operation is used after a panic.
    let result = panic::catch_unwind(AssertUnwindSafe(operation));
    panic::set_hook(hook);
    result.map_err(|_| cause.get().cloned().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_two_panics_the_first_is_told() {
        let result = first_panic(|| {
            std::thread::spawn(|| panic!("no adapter")).join().map_err(|_| ()).expect("the thread sent nothing");
        });
        assert_eq!(result, Err("no adapter".to_owned()));
    }

    #[test]
    #[cfg(feature = "flex")]
    fn a_device_that_is_there_passes() {
        assert_eq!(probe_device(&Device::flex()), Ok(()));
    }
}
