//! Back to dense layers.

/// A compressed layer that can become dense again.
pub trait PixelModule {
    /// The layer of Burn's that it stands for.
    type Dense;

    /// The dense layer with the synthesised weight, on the same device.
    fn to_dense(&self) -> Self::Dense;

    /// Bits per weight, everything counted that an archive stores.
    fn bits_per_weight(&self) -> f64;

    /// Bytes that the weight takes when it is stored.
    fn stored_bytes(&self) -> usize;
}
