//! A model, tensor by tensor: checkpoint to archive and back.

mod allocate;
mod compress;
mod decompress;
mod files;
mod pixel;
mod plan;
mod progress;
mod report;
mod sample;
mod workers;

pub use allocate::{AllocatedTensor, Allocation, RateTarget, Scope, allocate_rates};
pub use compress::{RunOptions, compress_checkpoint};
pub use decompress::decompress_archive;
pub use pixel::{CompressedModel, CompressedTensor, CompressorStats, PIXELCompressor};
pub use plan::{FitJob, LowRankFitter, Plan, PlanItem};
pub use progress::Progress;
pub use report::{CompressionReport, GroupReport, TensorReport};
pub use sample::{Sample, sample_errors};
pub use workers::for_each_item;
