//! What every codec makes of matrices with a structure: error and size.
//!
//! `cargo run --release -p pixel-bench --bin accuracy` prints one table for each rate. A codec that rotates its input
//! sees something close to a Gaussian whatever the matrix was; one that does not may find the structure.

use anyhow::Result;
use clap::Parser;
use comfy_table::{CellAlignment, Table, presets::ASCII_MARKDOWN};
use pixel_bench::matrices::Structure;
use pixel_core::math::metrics::bits_per_weight;
use pixel_core::{CodecSpec, compress_weight};
use pixel_experimental::SVDHybridCompressor;

/// Compresses structured matrices with every codec
#[derive(Debug, Parser)]
struct Args {
    /// Side of the matrices
    #[arg(long, default_value_t = 256)]
    side: usize,
    /// Bits per weight
    #[arg(long, value_delimiter = ',', default_values_t = [2.0, 4.0])]
    bits: Vec<f64>,
    /// The seed of what is random
    #[arg(long, default_value_t = 1)]
    seed: u64,
}

fn main() -> Result<()> {
    let args = Args::parse();
    anyhow::ensure!(args.side > 0, "--side must be at least 1");
    for bits in &args.bits {
        println!("### {bits} bits, {0} × {0}: relative MSE\n", args.side);
        let specs = specs(*bits)?;
        let mut table = Table::new();
        let names = specs.iter().map(|(spec, rotation)| match rotation {
            Some(_) => format!("{spec}, rotated"),
            None => spec.to_string(),
        });
        let hybrid = SVDHybridCompressor { codec: hybrid_codec(&specs), ..Default::default() };
        let last = format!("{}, rotated, SVD hybrid (rank; bits)", hybrid.codec);
        table.load_style(ASCII_MARKDOWN).set_header(["matrix".to_owned()].into_iter().chain(names).chain([last]));
        let mut sizes = vec!["stored bits per weight".to_owned()];
        for (i, structure) in Structure::ALL.into_iter().enumerate() {
            let matrix = structure.matrix(args.side, args.seed);
            let mut row = vec![structure.name().to_owned()];
            for (spec, rotation) in &specs {
                let (packed, error) = compress_weight(matrix.as_ref(), spec, *rotation)?;
                row.push(format!("{:.1e}", error.relative_mse()));
                if i == 0 {
                    let bits = bits_per_weight(packed.num_bytes() as u64, matrix.shape().num_weights() as u64);
                    sizes.push(format!("{bits:.3}"));
                }
            }
            let found = hybrid.compress(&matrix, None)?;
            let (error, bits) = (found.reconstruction_error.powi(2), found.packed.bits_per_weight());
            row.push(format!("{error:.1e} ({}; {bits:.3})", found.svd_rank));
            table.add_row(row);
        }
        sizes.push("in each row".to_owned());
        table.add_row(sizes);
        table.column_iter_mut().skip(1).for_each(|column| column.set_cell_alignment(CellAlignment::Right));
        println!("{table}\n");
    }
    Ok(())
}

/// The codec to which low-rank parts are added: the first, which is the trellis where it has the rate.
fn hybrid_codec(specs: &[(CodecSpec, Option<u64>)]) -> CodecSpec {
    specs[0].0.clone()
}

/// Every codec that has the rate, rotated and not.
fn specs(bits: f64) -> Result<Vec<(CodecSpec, Option<u64>)>> {
    let families = pixel_core::codec::FAMILIES.iter().filter(|family| family.rates().contains(&bits));
    let specs: Vec<_> = families
        .flat_map(|family| [None, Some(1)].map(|rotation| (CodecSpec::new(family.name(), bits), rotation)))
        .collect();
    anyhow::ensure!(!specs.is_empty(), "no codec has a rate of {bits} bits; `pixel codecs` lists them");
    Ok(specs)
}
