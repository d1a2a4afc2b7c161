//! Checkpoints that Burn saved: how their linear weights lie.

use super::checkpoint::{Checkpoint, Shard};
use super::error::ArchiveError;

/// The metadata key under which a file that Burn saved says how its linear weights lie, where that cannot be seen.
pub const LAYOUT_KEY: &str = "linear_layout";
/// Its value for `[d_output, d_input]`, as PyTorch has them and as archives need them.
pub const OUTPUT_INPUT: &str = "output_input";

/// How a tensor shows that its layer lies as Burn has it, or as PyTorch has it.
enum Evidence {
    Burn,
    PyTorch,
}

impl Checkpoint {
    /// Refuses files that Burn saved with its own layout of linear weights, `[d_input, d_output]`, or of which it
    /// cannot be told: square weights would be coded transposed without a sign of it. `BurnToPyTorchAdapter` saves them
    /// as they are needed. Files that do not name Burn as their producer pass.
    ///
    /// # Errors
    /// [`ArchiveError::BurnLayout`] with the tensor that shows it.
    pub fn check_layout(&self) -> Result<(), ArchiveError> {
        let is_burns = |shard: &&Shard| shard.metadata.get("producer").is_some_and(|producer| producer == "burn");
        let Some(shard) = self.shards().iter().find(is_burns) else { return Ok(()) };
        let refuse = |found: String| Err(ArchiveError::BurnLayout { path: shard.path.clone(), found });
        match shard.metadata.get(LAYOUT_KEY).map(String::as_str) {
            Some(OUTPUT_INPUT) => return Ok(()),
            Some(other) => return refuse(format!("its metadata say {LAYOUT_KEY} = \"{other}\"")),
            None => {}
        }
        let (mut unknown, mut known) = (None, false);
        for (name, info) in self.tensors() {
            if name.ends_with(".gamma") || name == "gamma" {
                return refuse(format!("\"{name}\" has Burn's name for the gain of a norm"));
            }
            let Some(path) = name.strip_suffix("weight") else { continue };
            let &[rows, columns] = &info.shape[..] else { continue };
            let bias = self.tensors().get(&format!("{path}bias")).map(|bias| &bias.shape[..]);
            match (bias, evidence(rows, columns, bias)) {
                (_, Some(Evidence::PyTorch)) => known = true,
                (Some(bias), Some(Evidence::Burn)) => {
                    return refuse(format!("\"{name}\" is {:?} and its bias {bias:?}", info.shape));
                }
                _ => drop(unknown.get_or_insert(name)),
            }
        }
        match unknown {
            Some(name) if !known => {
                refuse(format!("\"{name}\" has no bias that tells its sides apart, nor has any other"))
            }
            _ => Ok(()),
        }
    }
}

/// What a bias says of a weight `[rows, columns]`.
fn evidence(rows: usize, columns: usize, bias: Option<&[usize]>) -> Option<Evidence> {
    match bias {
        Some(&[length]) if rows != columns && length == columns => Some(Evidence::Burn),
        Some(&[length]) if rows != columns && length == rows => Some(Evidence::PyTorch),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use safetensors::tensor::{Dtype, TensorView, serialize};
    use std::collections::HashMap;

    fn check(tensors: &[(&str, &[usize])], metadata: &[(&str, &str)]) -> Result<(), String> {
        let zeros = vec![0u8; 4096];
        let views = tensors.iter().map(|&(name, shape)| {
            let bytes = 4 * shape.iter().product::<usize>();
            (name, TensorView::new(Dtype::F32, shape.to_vec(), &zeros[..bytes]).unwrap())
        });
        let metadata: HashMap<String, String> =
            metadata.iter().map(|&(key, value)| (key.to_owned(), value.to_owned())).collect();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        std::fs::write(&path, serialize(views, Some(metadata)).unwrap()).unwrap();
        Checkpoint::open(&path).unwrap().check_layout().map_err(|error| error.to_string())
    }

    const BURN: (&str, &str) = ("producer", "burn");

    #[test]
    fn a_bias_tells_how_weights_lie() {
        let burn: [(&str, &[usize]); 3] = [("a.weight", &[4, 4]), ("b.weight", &[4, 6]), ("b.bias", &[6])];
        let message = check(&burn, &[BURN]).unwrap_err();
        assert!(message.contains("\"b.weight\" is [4, 6] and its bias [6]"), "{message}");
        assert!(message.contains("BurnToPyTorchAdapter"), "{message}");
        let adapted: [(&str, &[usize]); 3] = [("a.weight", &[4, 4]), ("b.weight", &[6, 4]), ("b.bias", &[6])];
        assert_eq!(check(&adapted, &[BURN]), Ok(()));
        assert_eq!(check(&burn, &[("format", "pt")]), Ok(()), "of another producer");
    }

    #[test]
    fn what_cannot_be_told_has_to_be_said() {
        let square: [(&str, &[usize]); 3] = [("a.weight", &[4, 4]), ("a.bias", &[4]), ("b.weight", &[6, 4])];
        let message = check(&square, &[BURN]).unwrap_err();
        assert!(message.contains("\"a.weight\" has no bias that tells its sides apart"), "{message}");
        assert_eq!(check(&square, &[BURN, (LAYOUT_KEY, OUTPUT_INPUT)]), Ok(()));
        let message = check(&square, &[BURN, (LAYOUT_KEY, "row")]).unwrap_err();
        assert!(message.contains("linear_layout = \"row\""), "{message}");
        let norm: [(&str, &[usize]); 1] = [("norm.gamma", &[4])];
        assert!(check(&norm, &[BURN]).unwrap_err().contains("\"norm.gamma\" has Burn's name"));
        let plain: [(&str, &[usize]); 1] = [("norm.weight", &[4])];
        assert_eq!(check(&plain, &[BURN]), Ok(()), "nothing to code");
    }
}
