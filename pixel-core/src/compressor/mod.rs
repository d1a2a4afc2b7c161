//! A model, tensor by tensor: checkpoint to archive and back.

mod compress;
mod decompress;
mod dense;
mod dequantize;
mod files;
mod pixel;
mod progress;
mod rates;
mod report;
mod sample;
mod workers;

pub use compress::{RunOptions, compress_checkpoint};
pub use decompress::decompress_archive;
pub use dequantize::{DequantizeReport, dequantize_checkpoint};
pub use files::check_model_output;
pub use pixel::{CompressError, CompressedModel, CompressedTensor, CompressorStats, PIXELCompressor};
pub use progress::Progress;
pub use rates::{AllocatedTensor, Allocation, RateRequest, RateTarget, Scope, allocate_rates};
pub use report::{CompressionReport, GroupReport, TensorReport};
pub use sample::{Sample, sample_errors};
pub use workers::for_each_item;
