//! Models as archives: what `pixel inspect`, `verify`, `decompress` and the loaders of this crate read.
//!
//! ```text
//!  any module ──▶ save ──▶ fc1.weight   packed, [d_output, d_input]      fc1: PIXELLinear, or a replaced Linear
//!                          norm.gamma   kept                             norm: LayerNorm
//!                          fc2.weight   kept, [d_output, d_input]        fc2: Linear, as it is
//!  any module ◀── load ◀── by the same names, or renamed
//! ```

mod load;
mod save;

pub use load::LoadReport;

use crate::error::LayerError;
use burn::module::Module;
use pixel_core::archive::{Archive, write_archive};
use regex::Regex;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// An archive of a module's tensors, as a file.
///
/// Names are the paths of fields, without the variant of a [`Projection`](crate::Projection). Weights of `Linear`, and
/// those that are patterns, lie as PyTorch and the `pixel` binary have them, `[d_output, d_input]`, whichever layer
/// they come from; an embedding or a convolution that was replaced is the matrix that its patterns make. So a model may
/// be saved from one form and loaded into another: a weight of an archive that is packed makes patterns of a dense
/// `Linear`, and weights of [`PIXELLinear`](crate::PIXELLinear) are filled where codec and shape agree.
///
/// # Example
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::module::Module;
/// use burn::nn::{LayerNorm, LayerNormConfig, Linear, LinearConfig};
/// use burn::tensor::{Device, Tensor};
/// use pixel_nn::{ArchiveStore, ReplaceConfig, replace_linear_layers};
///
/// #[derive(Module, Debug)]
/// struct Net {
///     norm: LayerNorm,
///     fc: Linear,
/// }
///
/// let device = Device::flex();
/// let net = || Net { norm: LayerNormConfig::new(64).init(&device), fc: LinearConfig::new(64, 32).init(&device) };
/// let forward = |net: &Net| net.fc.forward(net.norm.forward(Tensor::<2>::ones([1, 64], &device)));
/// let (small, _) = replace_linear_layers(net(), &ReplaceConfig::new("uniform:4".parse()?))?;
///
/// let dir = tempfile::tempdir()?;
/// let store = ArchiveStore::new(dir.path().join("net.safetensors"));
/// store.save(&small)?;
/// let (loaded, report) = store.load(net())?;
/// assert_eq!(report.loaded, ["fc.bias", "fc.weight", "norm.beta", "norm.gamma"]);
/// assert_eq!(forward(&loaded).into_data(), forward(&small).into_data());
/// # }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug, Clone)]
pub struct ArchiveStore {
    path: PathBuf,
    overwrite: bool,
    allow_partial: bool,
    renames: Vec<(Regex, String)>,
}

impl ArchiveStore {
    /// A store in the file `path`.
    pub fn new(path: impl AsRef<Path>) -> Self {
        let path = path.as_ref().to_owned();
        Self { path, overwrite: false, allow_partial: false, renames: Vec::new() }
    }

    /// Whether [`save`](Self::save) replaces a file that is there, provided that PIXEL wrote it. Default: no.
    pub fn with_overwrite(mut self, overwrite: bool) -> Self {
        self.overwrite = overwrite;
        self
    }

    /// Whether [`load`](Self::load) leaves parameters as they are that the archive does not have. Default: no, it is an
    /// error.
    pub fn with_allow_partial(mut self, allow_partial: bool) -> Self {
        self.allow_partial = allow_partial;
        self
    }

    /// Renames what matches the expression `from` to `to`, in which `$1` is its first group: names of the module as
    /// they are saved, names of the archive as they are loaded. Renames follow one another in the order in which they
    /// were given.
    ///
    /// # Errors
    /// [`LayerError::Pattern`] for an expression that does not parse.
    pub fn with_key_remapping(mut self, from: &str, to: impl Into<String>) -> Result<Self, LayerError> {
        let from = Regex::new(from)
            .map_err(|error| LayerError::Pattern { pattern: from.into(), message: error.to_string() })?;
        self.renames.push((from, to.into()));
        Ok(self)
    }

    /// Writes `model`. Nothing is left under the final name if it fails.
    ///
    /// # Errors
    /// [`LayerError::Parameter`] for a tensor that archives cannot hold: quantized by Burn, with a trained dictionary,
    /// with something of another crate attached; [`LayerError::SameName`] if a rename joins two;
    /// [`LayerError::Archive`].
    pub fn save<M: Module>(&self, model: &M) -> Result<(), LayerError> {
        let mut tensors = BTreeMap::new();
        for (name, tensor) in save::tensors_of(model)? {
            let renamed = self.rename(&name);
            if tensors.insert(renamed.clone(), tensor).is_some() {
                return Err(LayerError::SameName { name: renamed });
            }
        }
        let metadata = [("format".to_owned(), "pt".to_owned())].into();
        Ok(write_archive(&self.path, &tensors, metadata, self.overwrite)?)
    }

    /// Fills `model` from the archive, whose hashes are checked. Dense parameters take the type that they have in the
    /// model.
    ///
    /// # Errors
    /// [`LayerError::Archive`] for a file that cannot be read; [`LayerError::NotInArchive`] for parameters that it does
    /// not have, unless [allowed](Self::with_allow_partial); [`LayerError::Parameter`] for one that does not fit:
    /// another shape, codes that the weight would read otherwise, a dense tensor where the model has patterns. The
    /// model is gone then.
    pub fn load<M: Module>(&self, model: M) -> Result<(M, LoadReport), LayerError> {
        let archive = Archive::open(&self.path)?;
        let stored = archive.entries().keys().chain(archive.kept().keys());
        let mut names = BTreeMap::new();
        for stored in stored {
            let renamed = self.rename(stored);
            if names.insert(renamed.clone(), stored.clone()).is_some() {
                return Err(LayerError::SameName { name: renamed });
            }
        }
        let (model, report) = load::load(model, &archive, names)?;
        match report.missing.is_empty() || self.allow_partial {
            true => Ok((model, report)),
            false => Err(LayerError::NotInArchive { names: report.missing }),
        }
    }

    fn rename(&self, name: &str) -> String {
        let rename = |name: String, (from, to): &(Regex, String)| from.replace_all(&name, to).into_owned();
        self.renames.iter().fold(name.to_owned(), rename)
    }
}
