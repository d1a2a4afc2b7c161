//! An archive of tensors that are in memory.

use super::dtype::FloatType;
use super::error::ArchiveError;
use super::staging::OutputKind;
use super::writer::{ArchivePlan, ArchiveTensor, ArchiveWriter, Record};
use super::{ARCHIVE_FILE, blake3_hex};
use crate::packed::PackedWeight;
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::path::Path;

/// A tensor of an archive to be written.
#[derive(Debug, Clone)]
pub enum ArchivedTensor {
    /// Codes and scales.
    Packed {
        /// The weight.
        weight: Box<PackedWeight>,
        /// The type that it has where it is dense.
        dtype: FloatType,
    },
    /// Values as they are.
    Kept {
        /// Their type.
        dtype: Dtype,
        /// The shape.
        shape: Vec<usize>,
        /// The values, row-major, little-endian.
        bytes: Vec<u8>,
    },
}

/// Writes `tensors` as an archive of one file, with `metadata` of the caller's. The packed weights count as their own
/// source: the error that the archive states is that of its codes against them, which is 0.
///
/// # Errors
/// [`ArchiveError::OutputExists`] unless `overwrite`; [`ArchiveError::ForeignFile`] for a file that PIXEL did not
/// write; [`ArchiveError::OutputKind`] for a directory; [`ArchiveError::TensorLength`] for values that do not fill
/// their shape; [`ArchiveError::Manifest`] for a name that is taken by a stream of a packed weight;
/// [`ArchiveError::Io`]. Nothing is then left under the final name.
///
/// # Example
/// ```
/// use pixel_core::archive::{Archive, ArchivedTensor, FloatType, write_archive};
/// use pixel_core::{MatrixRef, Shape, compress_weight};
/// let data: Vec<f32> = (0..64 * 32).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
/// let (weight, _) = compress_weight(MatrixRef::new(Shape::new(64, 32)?, &data)?, &"lapped:2".parse()?, Some(1))?;
/// let bias = ArchivedTensor::Kept { dtype: FloatType::F32.dtype(), shape: vec![64], bytes: vec![0; 256] };
/// let packed = ArchivedTensor::Packed { weight: Box::new(weight.clone()), dtype: FloatType::F32 };
/// let tensors = [("fc.weight".to_owned(), packed), ("fc.bias".to_owned(), bias)].into();
/// let dir = tempfile::tempdir()?;
/// let path = dir.path().join("model.safetensors");
/// write_archive(&path, &tensors, Default::default(), false)?;
/// assert_eq!(Archive::open(&path)?.packed("fc.weight")?.synthesize(), weight.synthesize());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub fn write_archive(
    path: impl AsRef<Path>,
    tensors: &BTreeMap<String, ArchivedTensor>,
    metadata: BTreeMap<String, String>,
    overwrite: bool,
) -> Result<(), ArchiveError> {
    let path = path.as_ref();
    for (name, tensor) in tensors {
        let ArchivedTensor::Kept { dtype, shape, bytes } = tensor else { continue };
        let expected = shape.iter().product::<usize>() * dtype.bitsize() / 8;
        if bytes.len() != expected {
            let (tensor, shape, found) = (name.clone(), shape.clone(), bytes.len());
            return Err(ArchiveError::TensorLength { tensor, dtype: *dtype, shape, found, expected });
        }
    }
    let planned = tensors.iter().map(|(name, tensor)| match tensor {
        ArchivedTensor::Packed { weight, dtype } => {
            ArchiveTensor::Packed { name: name.clone(), header: weight.header().clone(), dtype: *dtype }
        }
        ArchivedTensor::Kept { dtype, shape, .. } => {
            ArchiveTensor::Kept { name: name.clone(), dtype: *dtype, shape: shape.clone() }
        }
    });
    let plan = ArchivePlan::new(ARCHIVE_FILE, metadata, planned)?;
    plan.check_names(path)?;
    let writer = ArchiveWriter::create(path, OutputKind::File, &[plan], overwrite)?;
    for (name, tensor) in tensors {
        match tensor {
            ArchivedTensor::Packed { weight, dtype } => {
                let mut bytes = Vec::new();
                dtype.write(weight.synthesize().as_slice(), &mut bytes);
                let source_blake3 = blake3_hex(&bytes);
                let record = Record { dtype: *dtype, relative_mse: 0.0, output_loss: None, source_blake3 };
                writer.write_packed(0, name, weight, record)?;
            }
            ArchivedTensor::Kept { bytes, .. } => writer.write_kept(0, name, bytes, blake3_hex(bytes))?,
        }
    }
    writer.finish(|_| Ok(()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::archive::Archive;
    use crate::{MatrixRef, Shape, compress_weight};

    fn packed() -> ArchivedTensor {
        let data: Vec<f32> = (0..16 * 32).map(|i| ((i * 37 % 101) as f32 - 50.0) / 50.0).collect();
        let weight = MatrixRef::new(Shape::new(16, 32).unwrap(), &data).unwrap();
        let (weight, _) = compress_weight(weight, &"uniform:4".parse().unwrap(), None).unwrap();
        ArchivedTensor::Packed { weight: Box::new(weight), dtype: FloatType::BF16 }
    }

    fn kept(len: usize) -> ArchivedTensor {
        ArchivedTensor::Kept { dtype: Dtype::F32, shape: vec![4, 2], bytes: (0..len).map(|i| i as u8).collect() }
    }

    #[test]
    fn what_is_written_is_read_and_what_does_not_fit_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.safetensors");
        let metadata = || BTreeMap::from([("format".to_owned(), "pt".to_owned())]);
        let tensors = BTreeMap::from([("w".to_owned(), packed()), ("v".to_owned(), kept(32))]);
        write_archive(&path, &tensors, metadata(), false).unwrap();
        let archive = Archive::open(&path).unwrap();
        assert_eq!(archive.kept_bytes("v").unwrap().1, (0..32).collect::<Vec<u8>>());
        assert_eq!(archive.entries()["w"].manifest().dtype, FloatType::BF16);
        assert_eq!(archive.checkpoint().shards()[0].metadata["format"], "pt");
        let message = |tensors: &BTreeMap<String, ArchivedTensor>, path: &Path| {
            write_archive(path, tensors, metadata(), false).unwrap_err().to_string()
        };
        assert!(message(&tensors, &path).contains("exists"));
        let other = dir.path().join("b.safetensors");
        let short = BTreeMap::from([("v".to_owned(), kept(31))]);
        assert_eq!(message(&short, &other), "tensor \"v\" of F32 and shape [4, 2] takes 32 bytes, 31 are given");
        let taken = BTreeMap::from([("w".to_owned(), packed()), ("w.codes".to_owned(), kept(32))]);
        let error = write_archive(&other, &taken, metadata(), false).unwrap_err();
        assert!(std::error::Error::source(&error).unwrap().to_string().starts_with("tensor \"w.codes\" has the name"));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
