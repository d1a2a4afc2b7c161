//! Archives of every format version and codec, committed once, still decode to the same weights.

use pixel_core::archive::{Archive, Checkpoint};
use pixel_core::metrics::relative_error;
use std::path::Path;

#[test]
fn archives_of_version_1_0_decode_to_what_they_did() {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/v1.0");
    for codec in ["trellis", "additive", "matching", "uniform"] {
        let archive = Archive::open(&dir.join(format!("{codec}.safetensors"))).unwrap();
        let decoded = Checkpoint::open(&dir.join(format!("{codec}.decoded.safetensors"))).unwrap();
        assert_eq!(archive.entries().len(), pixel_core::codec::family(codec).unwrap().rates().len());
        for name in archive.entries().keys() {
            let weight = archive.packed(name).unwrap().synthesize();
            let error = relative_error(&decoded.to_f32(name).unwrap(), weight.as_slice());
            // Codes decode to the same bits; sums of 44 in f32 may be taken in another order.
            assert!(error <= 4.0 * f64::from(f32::EPSILON) * 44f64.sqrt(), "{codec} {name}: {error:e}");
        }
    }
}
