//! How weight files are called.
//!
//! A dense checkpoint has `*.safetensors`, an archive in a directory `*.pixel`. Both are safetensors files; the other
//! name is for the tools that take every file of the first kind for dense weights. Among them are those that find no
//! tensor of theirs in an archive and go on with random weights.

/// The file name of a checkpoint of one shard.
pub const SINGLE_FILE: &str = "model.safetensors";
/// The file name of the index of a checkpoint of several shards.
pub const INDEX_FILE: &str = "model.safetensors.index.json";
/// The file name of an archive of one shard in a directory.
pub const ARCHIVE_FILE: &str = "model.pixel";
/// The file name of the index of an archive of several shards.
pub const ARCHIVE_INDEX_FILE: &str = "model.pixel.index.json";

/// The ends of weight files, and what is in the names of indices, dense and packed.
const DENSE: &str = ".safetensors";
const PACKED: &str = ".pixel";
const DENSE_INDEX: &str = ".safetensors.index.";
const PACKED_INDEX: &str = ".pixel.index.";

/// Whether a file of this name holds weights that can be read.
pub(crate) fn is_weights(name: &str) -> bool {
    name.ends_with(DENSE) || name.ends_with(PACKED)
}

/// Whether a file of this name is an index of shards, such as `diffusion_pytorch_model.safetensors.index.fp16.json`.
pub(crate) fn is_index(name: &str) -> bool {
    name.ends_with(".json") && (name.contains(DENSE_INDEX) || name.contains(PACKED_INDEX))
}

/// The name, in an archive, of the weight file or index that a checkpoint calls `name`.
pub(crate) fn archive_name(name: &str) -> String {
    match name.strip_suffix(DENSE) {
        Some(stem) => format!("{stem}{PACKED}"),
        None if is_index(name) => name.replace(DENSE_INDEX, PACKED_INDEX),
        None if name.ends_with(PACKED) => name.to_owned(),
        None => format!("{name}{PACKED}"),
    }
}

/// The name, once it is dense, of the weight file or index that an archive calls `name`.
pub(crate) fn dense_name(name: &str) -> String {
    match name.strip_suffix(PACKED) {
        Some(stem) => format!("{stem}{DENSE}"),
        None => name.replace(PACKED_INDEX, DENSE_INDEX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_go_there_and_back() {
        let names = [
            (SINGLE_FILE, ARCHIVE_FILE),
            (INDEX_FILE, ARCHIVE_INDEX_FILE),
            ("model-00001-of-00002.safetensors", "model-00001-of-00002.pixel"),
            ("unet.safetensors.index.fp16.json", "unet.pixel.index.fp16.json"),
        ];
        for (dense, packed) in names {
            assert_eq!((archive_name(dense).as_str(), dense_name(packed).as_str()), (packed, dense));
            assert_eq!((archive_name(packed).as_str(), dense_name(dense).as_str()), (packed, dense), "already so");
            assert_eq!((is_index(dense), is_weights(dense)), (is_index(packed), is_weights(packed)));
            assert!(is_index(packed) != is_weights(packed));
        }
        assert_eq!(archive_name("weights"), "weights.pixel");
        assert!(!is_index("config.json") && !is_weights("tokenizer.json"));
    }

    /// What transformers 5.24 looks for in a folder (`_get_resolved_checkpoint_files`), with and without the variant
    /// "pixel", and the patterns of the others that read folders of weights.
    #[test]
    fn no_tool_takes_an_archive_for_a_dense_checkpoint() {
        let of_transformers = ["model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"];
        let of_variants = ["model.pixel.safetensors", "model.safetensors.index.pixel.json", "pytorch_model.pixel.bin"];
        for name in [ARCHIVE_FILE, ARCHIVE_INDEX_FILE, &archive_name("model-00001-of-00002.safetensors")] {
            assert!(!of_transformers.contains(&name) && !of_variants.contains(&name), "{name}");
            // vLLM: *.safetensors, *.bin, *.pt; mlx-lm: model*.safetensors; llama.cpp: model*.safetensors; and *.gguf.
            assert!([".safetensors", ".bin", ".pt", ".gguf"].iter().all(|end| !name.ends_with(end)), "{name}");
        }
    }
}
