//! A weight matrix as patterns and scales, and back: the compressor, the dictionary, the synthesizer.
//!
//! ```sh
//! cargo run --release --example basic_usage
//! ```

use anyhow::Result;
use pixel_core::dictionary::WeightSynthesizerConfig;
use pixel_core::{Matrix, PIXELCompressor, PIXELConfig, PatternDictionary, Shape};
use std::collections::HashMap;

fn main() -> Result<()> {
    // A small model: two weights by name. Any map will do, and any shape.
    let weights = HashMap::from([
        ("layer1", Matrix::random(Shape::new(64, 64)?, 1)),
        ("layer2", Matrix::random(Shape::new(128, 64)?, 2)),
    ]);

    // Compressed by one configuration.
    let compressor = PIXELCompressor::new(PIXELConfig::for_small_model())?;
    let compressed = compressor.compress(weights.iter().map(|(name, weight)| (*name, weight)))?;
    println!("{}", compressed.summary());
    println!("compression ratio: {:.2}x", compressed.compression_ratio());

    // And back.
    let restored = compressor.decompress(&compressed);
    println!("layer1 is {} again", restored["layer1"].shape());

    // By hand: patterns with identities, and a weight as a sum of them.
    let tile = Shape::new(64, 64)?;
    let mut dictionary = PatternDictionary::default();
    dictionary.generate_base_patterns(tile)?;
    let mut weight = Matrix::random(tile, 3);
    weight.as_mut_slice().iter_mut().for_each(|w| *w *= 0.1);
    weight.as_mut_slice().iter_mut().step_by(65).for_each(|w| *w += 2.0);
    for found in dictionary.find_best_matches(weight.as_ref(), 5, 0.1)? {
        println!("{:?}: cosine {:.3}", dictionary.metadata(found.id)?.kind, found.cosine);
    }
    let synthesizer = WeightSynthesizerConfig::new().init()?;
    let fit = synthesizer.compress_weights(weight.as_ref(), &mut dictionary)?;
    println!("{} patterns explain the weight to a relative error of {:.3}", fit.refs.len(), fit.relative_error);
    Ok(())
}
