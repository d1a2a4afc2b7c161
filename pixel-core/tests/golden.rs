//! Archives of every format version and codec, committed once, still decode to the same weights.

use pixel_core::archive::{Archive, Checkpoint};
use pixel_core::math::metrics::relative_error;
use std::path::Path;

/// The archive `file` of a version, every weight of which decodes to what the file of that name with `decoded` holds.
fn decoded(version: &str, file: &str) -> Archive {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(version);
    let archive = Archive::open(dir.join(format!("{file}.safetensors"))).unwrap();
    let decoded = Checkpoint::open(dir.join(format!("{file}.decoded.safetensors"))).unwrap();
    for name in archive.entries().keys() {
        let weight = archive.packed(name).unwrap().synthesize();
        let error = relative_error(&decoded.to_f32(name).unwrap(), weight.as_slice());
        // Codes decode to the same bits; sums of 44 in f32 may be taken in another order.
        assert!(error <= 4.0 * f64::from(f32::EPSILON) * 44f64.sqrt(), "{file} {name}: {error:e}");
    }
    archive
}

#[test]
fn archives_of_version_1_0_decode_to_what_they_did() {
    for codec in ["trellis", "additive", "matching", "uniform"] {
        let archive = decoded("v1.0", codec);
        assert_eq!(archive.entries().len(), pixel_core::codec::family(codec).unwrap().rates().len());
    }
}

#[test]
fn lapped_codes_of_version_1_3_decode_to_what_they_did() {
    let archive = decoded("v1.3", "lapped");
    let found: Vec<_> = archive.entries().values().map(|entry| entry.header().codec.bits).collect();
    assert_eq!(found, pixel_core::codec::family("lapped").unwrap().rates());
    assert!(archive.entries().values().all(|entry| entry.header().codec.codec == "lapped"));
}

#[test]
fn low_rank_parts_of_version_1_2_decode_to_what_they_did() {
    let archive = decoded("v1.2", "low_rank");
    let entries = archive.entries().values().map(|entry| entry.header());
    let found: Vec<_> =
        entries.map(|e| (e.codec.codec.as_str(), e.low_rank.unwrap().to_string(), e.protected)).collect();
    let expected = ["additive", "matching", "trellis", "uniform"]
        .map(|codec| [(codec, "rank 3 in f16".to_owned(), 2), (codec, "rank 2 in int8".to_owned(), 0)]);
    assert_eq!(found, expected.as_flattened());
}

#[test]
fn protected_columns_of_version_1_1_decode_to_what_they_did() {
    let archive = decoded("v1.1", "protected");
    let found: Vec<_> =
        archive.entries().values().map(|e| (e.header().codec.codec.as_str(), e.header().rotation)).collect();
    let expected = ["additive", "matching", "trellis", "uniform"].map(|codec| [(codec, Some(9)), (codec, None)]);
    assert_eq!(found, expected.as_flattened());
    assert!(archive.entries().values().all(|entry| entry.header().protected == 3));
}
