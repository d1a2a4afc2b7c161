//! The exponential function and what follows from it, by additions and products: CubeCL's own is a function of NVIDIA's
//! libdevice on CUDA, which a machine with nothing but a driver does not have.

use cubecl::prelude::*;

/// `e^x` as in `math/exp.rs`, with a relative error of about 2⁻²²; `x` beyond ±87.3 counts as that, NaN stays.
#[cube]
pub(super) fn exp(x: f32) -> f32 {
    // Not by the smaller and the larger of two, which devices may take for the one that is a number.
    let x = select(x > 87.3f32, 87.3f32, x);
    let x = select(x < -87.3f32, -87.3f32, x);
    let n = f32::floor(x * comptime!(std::f32::consts::LOG2_E) + 0.5f32);
    // The upper bits of ln 2, whose product with n is exact, and the rest.
    let r = (x - n * 0.693_359_4f32) + n * 2.121_944_4e-4f32;
    let tail = r * comptime!(1.0f32 / 720.0) + comptime!(1.0f32 / 120.0);
    let tail = tail * r + comptime!(1.0f32 / 24.0);
    let tail = tail * r + comptime!(1.0f32 / 6.0);
    let tail = tail * r + 0.5f32;
    let value = tail * r * r + r + 1.0f32;
    let exponent = u32::cast_from(i32::cast_from(n) + 127i32) << 23u32;
    value * f32::reinterpret(exponent)
}

/// The error function as in `math/exp.rs`.
#[cube]
pub(super) fn erf(x: f32) -> f32 {
    let t = 1.0f32 / (1.0f32 + 0.327_591_1f32 * f32::abs(x));
    let polynomial =
        0.254_829_6f32 + t * (-0.284_496_74f32 + t * (1.421_413_8f32 + t * (-1.453_152f32 + t * 1.061_405_4f32)));
    let magnitude = 1.0f32 - t * polynomial * exp(-x * x);
    select(x < 0.0f32, -magnitude, magnitude)
}
