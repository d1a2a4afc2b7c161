//! What is worth saying of a checkpoint that can be read all the same.

use std::fmt;
use std::path::PathBuf;

/// Names that a remark lists; of more it says how many.
const NAMES_SHOWN: usize = 4;

/// Something about the files of a checkpoint that its owner may not expect.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum Remark {
    /// A weight file of the directory that is no part of the model.
    FileNotRead {
        /// The file.
        file: PathBuf,
        /// The name of the index or weight file that was taken.
        taken: String,
    },
    /// Tensors that were not taken: the index places them elsewhere, or does not know them.
    TensorsNotTaken {
        /// The file that holds them.
        file: PathBuf,
        /// The name of the index.
        index: String,
        /// The tensors, in order.
        tensors: Vec<String>,
    },
    /// A tensor that the index places in a file, which does not hold it because the model has it under another name.
    TiedTensor {
        /// The file.
        file: PathBuf,
        /// The tensor.
        tensor: String,
        /// The tensor that it is the same as.
        same_as: String,
    },
}

impl fmt::Display for Remark {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::FileNotRead { file, taken } => {
                write!(f, "{}: not read, for the model is that of {taken}", file.display())
            }
            Self::TensorsNotTaken { file, index, tensors } => {
                let (file, tensors) = (file.display(), some_of(tensors));
                write!(f, "{file}: not taken, for {index} does not place them here: {tensors}")
            }
            Self::TiedTensor { file, tensor, same_as } => {
                write!(f, "{}: holds no \"{tensor}\", which counts as tied to \"{same_as}\"", file.display())
            }
        }
    }
}

/// The first of some names, and how many there are.
pub(crate) fn some_of(names: &[String]) -> String {
    let mut text = names.iter().take(NAMES_SHOWN).map(String::as_str).collect::<Vec<_>>().join(", ");
    if names.len() > NAMES_SHOWN {
        text += &format!(" and {} more", names.len() - NAMES_SHOWN);
    }
    text
}
