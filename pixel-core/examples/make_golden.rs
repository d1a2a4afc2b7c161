//! Writes the golden files of a format version: `cargo run -p pixel-core --example make_golden -- DIR`.
//!
//! For a *new* version only. The files of a version that was released are never written again: they prove that old
//! archives still decode, so an existing file is an error.

use pixel_core::archive::{Archive, Checkpoint};
use pixel_core::codec::FAMILIES;
use pixel_core::compressor::{Plan, RunOptions, compress_checkpoint};
use pixel_core::recipe::Recipe;
use safetensors::tensor::{Dtype, TensorView};
use std::error::Error;
use std::path::PathBuf;

fn main() -> Result<(), Box<dyn Error>> {
    let dir = PathBuf::from(std::env::args().nth(1).ok_or("which directory?")?);
    std::fs::create_dir_all(&dir)?;
    let source = dir.join("source.tmp");
    for family in FAMILIES {
        let rates = family.rates();
        let weights: Vec<Vec<u8>> =
            (0..rates.len() as u32).map(|i| weight(i).into_iter().flat_map(f32::to_le_bytes).collect()).collect();
        let views = rates.iter().zip(&weights).map(|(bits, bytes)| {
            TensorView::new(Dtype::F32, vec![37, 44], bytes).map(|view| (format!("weight-{bits}-bits"), view))
        });
        let views = views.collect::<Result<Vec<_>, _>>()?;
        safetensors::serialize_to_file(views, None, &source)?;
        let rule = |bits: &f64| format!("[[rule]]\nmatch = '-{bits}-'\ncodec = '{}'\nbits = {bits:?}\n", family.name());
        let recipe = Recipe::from_toml(&format!("seed = 1234567\n{}", rates.iter().map(rule).collect::<String>()))?;
        let checkpoint = Checkpoint::open(&source)?;
        let output = dir.join(format!("{}.safetensors", family.name()));
        compress_checkpoint(
            &checkpoint,
            &Plan::new(&checkpoint, &recipe.compile()?)?,
            &output,
            RunOptions::default(),
            &(),
        )?;
        let archive = Archive::open(&output)?;
        let decoded: Vec<(String, Vec<u8>)> = archive
            .entries()
            .keys()
            .map(|name| {
                Ok((
                    name.clone(),
                    archive.packed(name)?.synthesize().into_vec().into_iter().flat_map(f32::to_le_bytes).collect(),
                ))
            })
            .collect::<Result<_, Box<dyn Error>>>()?;
        let views = decoded
            .iter()
            .map(|(name, bytes)| TensorView::new(Dtype::F32, vec![37, 44], bytes).map(|view| (name, view)));
        let views = views.collect::<Result<Vec<_>, _>>()?;
        safetensors::serialize_to_file(views, None, &dir.join(format!("{}.decoded.safetensors", family.name())))?;
    }
    std::fs::remove_file(source)?;
    Ok(())
}

/// Weights in −1 … 1, cubed for a heavier tail.
fn weight(seed: u32) -> Vec<f32> {
    let hash = |i: u32| (i.wrapping_mul(0x9E37_79B9) ^ seed.wrapping_mul(0x2545_F491)).wrapping_mul(0x85EB_CA6B) >> 8;
    (0..37 * 44).map(|i| (hash(i) as f32 / 8_388_608.0 - 1.0).powi(3)).collect()
}
