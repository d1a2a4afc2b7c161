//! Damaged archives: every truncation and every single-bit flip gives an error or a valid weight, never a panic.

mod common;

use common::{FixedFactors, chain, forged_with as forged};
use pixel_core::archive::{Archive, Checkpoint};
use pixel_core::compressor::{RunOptions, compress_checkpoint};
use pixel_core::plan::{Plan, Recipe};
use safetensors::tensor::{Dtype, TensorView};
use std::path::Path;
use std::sync::Arc;

/// An archive of one small weight for each codec, one of them with protected columns, two with low-rank parts, and one
/// kept tensor.
fn small_archive(dir: &Path) -> Vec<u8> {
    let weights: Vec<u8> = (0..16 * 24u32).flat_map(|i| ((i * 97 % 61) as f32 / 30.0 - 1.0).to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![16, 24], &weights).unwrap();
    let bias = TensorView::new(Dtype::F32, vec![24], &weights[..96]).unwrap();
    let tensors = [
        ("trellis", &view),
        ("additive", &view),
        ("lapped", &view),
        ("matching", &view),
        ("uniform", &view),
        ("bias", &bias),
    ];
    let source = dir.join("source.safetensors");
    safetensors::serialize_to_file(tensors, None, &source).unwrap();
    let rule = |codec: &str| {
        let parts = match codec {
            "additive" => "protect = 2\n",
            "trellis" => "rank = 1\n",
            "uniform" => "rank = 2\nfactors = 'f16'\n",
            _ => "",
        };
        format!("[[rule]]\nmatch = '{codec}'\ncodec = '{codec}'\nbits = 2\n{parts}")
    };
    let recipe: String = ["trellis", "additive", "lapped", "matching", "uniform"].map(rule).concat();
    let recipe = Recipe::from_toml(&recipe).unwrap().compile().unwrap();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let plan = Plan::new(&checkpoint, &recipe).unwrap().with_low_rank_fitter(Arc::new(FixedFactors));
    let output = dir.join("archive.safetensors");
    compress_checkpoint(&checkpoint, &plan, &output, RunOptions::default(), &()).unwrap();
    std::fs::read(output).unwrap()
}

/// Reads everything that can be read, without looking at hashes and then with. Returns whether all of it could.
fn read_all(path: &Path) -> bool {
    let open = || Archive::open(path);
    open().is_ok_and(|archive| {
        read_entries(&archive.without_hash_checks());
        read_entries(&open().unwrap())
    })
}

fn read_entries(archive: &Archive) -> bool {
    let mut complete = true;
    for name in archive.entries().keys() {
        match archive.packed(name) {
            Ok(packed) => assert!(packed.synthesize().as_slice().iter().all(|w| w.is_finite()), "{name}"),
            Err(_) => complete = false,
        }
    }
    for name in archive.kept().keys() {
        complete &= archive.kept_bytes(name).is_ok();
    }
    complete
}

#[test]
fn every_truncation_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = small_archive(dir.path());
    let path = dir.path().join("damaged.safetensors");
    for len in 0..bytes.len() {
        std::fs::write(&path, &bytes[..len]).unwrap();
        assert!(Archive::open(&path).is_err(), "{len} of {} bytes were accepted", bytes.len());
    }
    std::fs::write(&path, [&bytes[..], &[0]].concat()).unwrap();
    assert!(Archive::open(&path).is_err(), "a trailing byte was accepted");
}

#[test]
fn every_bit_flip_is_an_error_or_leaves_valid_weights() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = small_archive(dir.path());
    let path = dir.path().join("damaged.safetensors");
    std::fs::write(&path, &bytes).unwrap();
    assert!(read_all(&path));
    let mut accepted = Vec::new();
    for bit in 0..bytes.len() * 8 {
        bytes[bit / 8] ^= 1 << (bit % 8);
        std::fs::write(&path, &bytes).unwrap();
        if read_all(&path) {
            accepted.push(bit / 8);
        }
        bytes[bit / 8] ^= 1 << (bit % 8);
    }
    // Manifest, codes and kept tensors are all hashed. What is left is the header's own JSON, where a flip can turn a
    // space of the padding into another, or change what nothing reads.
    let header_end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    assert!(accepted.iter().all(|&byte| byte < header_end), "a flip of the data went unnoticed: {accepted:?}");
    assert!(accepted.len() < 64, "{} flips of the header went unnoticed: {accepted:?}", accepted.len());
}

#[test]
fn without_hashes_a_flip_is_another_weight() {
    let dir = tempfile::tempdir().unwrap();
    let mut bytes = small_archive(dir.path());
    let path = dir.path().join("damaged.safetensors");
    let intact = Archive::open(dir.path().join("archive.safetensors")).unwrap();
    let header_end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let mut read = 0;
    for byte in (header_end..bytes.len()).step_by(5) {
        bytes[byte] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        bytes[byte] ^= 1;
        let archive = Archive::open(&path).unwrap();
        let damaged = archive.entries().keys().find(|name| archive.packed(name).is_err()).cloned();
        let Some(name) = damaged else { continue };
        let error = chain(&archive.packed(&name).unwrap_err());
        assert!(error.contains("damaged.safetensors") && error.contains(&name), "{error}");
        if let Ok(weight) = archive.without_hash_checks().packed(&name) {
            assert_ne!(format!("{weight:?}"), format!("{:?}", intact.packed(&name).unwrap()), "byte {byte}");
            read += 1;
        }
    }
    assert!(read > 100, "{read} weights");
}

#[test]
fn manifests_that_contradict_themselves_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = small_archive(dir.path());
    let path = dir.path().join("forged.safetensors");
    let open = |extra: &[&str], change: &dyn Fn(&mut serde_json::Value)| {
        std::fs::write(&path, forged(&bytes, extra, change)).unwrap();
        Archive::open(&path).map_err(Box::new)
    };
    let error = |extra: &[&str], change: &dyn Fn(&mut serde_json::Value)| {
        let text = chain(&*open(extra, change).unwrap_err());
        assert!(text.contains("forged.safetensors"), "{text}");
        text
    };
    assert!(open(&[], &|_| {}).is_ok());
    assert!(open(&[], &|m| m["version"] = "1.7".into()).is_ok());
    assert!(open(&[], &|m| m["tensors"]["trellis"]["a_later_field"] = 1.into()).is_ok());
    assert!(error(&[], &|m| m["version"] = "2.0".into()).contains("format version 2.0 cannot be read"));
    assert!(error(&["stray"], &|_| {}).contains("stored tensor \"stray\" is not listed"));
    assert!(error(&[], &|m| m["kept"]["trellis.codes"] = "0".into()).contains("\"trellis.codes\" is listed twice"));
    assert!(error(&["trellis"], &|m| m["kept"]["trellis"] = "0".into()).contains("both as packed and as kept"));
    assert!(error(&[], &|m| m["kept"]["absent"] = "0".into()).contains("\"absent\" is listed but not stored"));
    assert!(error(&[], &|m| m["tensors"]["trellis"]["shape"] = [160, 24].into()).contains("stream \"codes\" holds"));
    assert!(error(&[], &|m| m["tensors"]["trellis"]["shape"] = [0, 24].into()).contains("0×24 holds no weights"));
    assert!(error(&[], &|m| m["tensors"]["trellis"]["codec"]["bits"] = 9.into()).contains("no rate of 9 bits"));
    assert!(error(&[], &|m| m["tensors"]["trellis"]["rotation"] = "12".into()).contains("not 16 hexadecimal digits"));
}

#[test]
fn numbers_that_decode_to_nothing_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let bytes = small_archive(dir.path());
    let path = dir.path().join("forged.safetensors");
    std::fs::write(&path, forged(&bytes, &[], |m| m["tensors"]["trellis"]["exponent"] = 127.into())).unwrap();
    let text = chain(&Archive::open(&path).unwrap_err());
    assert!(text.contains("forged.safetensors: tensor \"trellis\""), "{text}");
    assert!(text.contains("\"exponent\" = 127 is outside -126..=126"), "{text}");
    // A scale and an exponent at the end of their ranges overflow f32: the weights saturate.
    std::fs::write(&path, forged(&bytes, &[], |m| m["tensors"]["trellis"]["exponent"] = 126.into())).unwrap();
    let weight = Archive::open(&path).unwrap().packed("trellis").unwrap().synthesize();
    assert!(weight.as_slice().iter().all(|w| w.is_finite()));
}
