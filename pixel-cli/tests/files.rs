//! Which files the binary takes for a model's, and what it says of others.

use assert_cmd::Command;
use assert_cmd::assert::Assert;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Writes a safetensors file of 64×64 matrices in F32, whose values differ by name.
fn save(path: &Path, names: &[&str]) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    let value = |name: &str, i: u32| (i.wrapping_mul(0x9E37_79B9) ^ name.len() as u32) as f32 / 4e9 - 0.5;
    let bytes = |name: &&str| (0..64 * 64).flat_map(|i| value(name, i).to_le_bytes()).collect::<Vec<u8>>();
    let tensors: Vec<_> = names.iter().map(|name| (*name, bytes(name))).collect();
    let views = tensors.iter().map(|(name, bytes)| (*name, TensorView::new(Dtype::F32, vec![64, 64], bytes).unwrap()));
    safetensors::serialize_to_file(views, None, path).unwrap();
}

/// Writes an index that places each tensor in a file.
fn save_index(path: &Path, places: &[(&str, &str)]) {
    let weight_map: BTreeMap<_, _> = places.iter().copied().collect();
    fs::write(path, serde_json::json!({ "metadata": {}, "weight_map": weight_map }).to_string()).unwrap();
}

fn pixel(dir: &Path, args: &[&str]) -> Assert {
    Command::cargo_bin("pixel").unwrap().current_dir(dir).args(args).assert()
}

fn compress(dir: &Path, input: &str, output: &str) -> Assert {
    pixel(dir, &["compress", input, output, "--codec", "uniform", "--bits", "4"])
}

/// The names of the files below a directory, hidden ones apart.
fn files(dir: &Path) -> Vec<String> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).unwrap().map(Result::unwrap) {
        let name = entry.file_name().into_string().unwrap();
        match entry.path().is_dir() {
            true => names.extend(files(&entry.path()).into_iter().map(|file| format!("{name}/{file}"))),
            false => names.push(name),
        }
    }
    names.retain(|name| !name.starts_with('.'));
    names.sort();
    names
}

#[test]
fn the_weights_of_an_archive_have_names_of_their_own() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    save(&path("one/model.safetensors"), &["a.proj.weight"]);
    fs::write(path("one/config.json"), "{}").unwrap();
    save(&path("two/a.safetensors"), &["a.proj.weight"]);
    save(&path("two/b.safetensors"), &["b.proj.weight"]);
    let places = [("a.proj.weight", "a.safetensors"), ("b.proj.weight", "b.safetensors")];
    save_index(&path("two/model.safetensors.index.json"), &places);
    for (model, expected) in
        [("one", &["config.json", "model.pixel"][..]), ("two", &["a.pixel", "b.pixel", "model.pixel.index.json"][..])]
    {
        compress(dir.path(), model, "small").success();
        assert_eq!(files(&path("small")), expected);
        pixel(dir.path(), &["verify", "small", "--against", model]).success().stderr("");
        pixel(dir.path(), &["decompress", "small", "dense"]).success();
        assert_eq!(files(&path("dense")), files(&path(model)));
        pixel(dir.path(), &["diff", "small", "dense"]).success();
        // As it was before: dense names.
        for (new, old) in expected.iter().map(|new| (new, new.replace("pixel", "safetensors"))) {
            let text = fs::read(path("small").join(new)).unwrap();
            let text = match new.ends_with("index.json") {
                true => String::from_utf8(text).unwrap().replace(".pixel", ".safetensors").into_bytes(),
                false => text,
            };
            fs::remove_file(path("small").join(new)).unwrap();
            fs::write(path("small").join(old), text).unwrap();
        }
        pixel(dir.path(), &["verify", "small", "--against", model]).success();
        pixel(dir.path(), &["decompress", "small", "again"]).success();
        assert_eq!(files(&path("again")), files(&path(model)));
        ["small", "dense", "again"].iter().for_each(|name| fs::remove_dir_all(path(name)).unwrap());
    }
    // A file has the name that was asked for.
    for name in ["mine.safetensors", "mine.pixel"] {
        compress(dir.path(), "one", name).success();
        assert!(path(name).is_file());
        pixel(dir.path(), &["verify", name, "--against", "one"]).success();
    }
    // Dense weights and packed ones in one folder are two models.
    fs::copy(path("mine.pixel"), path("one/model.pixel")).unwrap();
    let refused = pixel(dir.path(), &["inspect", "one"]).code(2);
    refused.stderr(contains("one holds several models").and(contains("model.safetensors, model.pixel")));
    pixel(dir.path(), &["inspect", "one/model.pixel"]).success();
}

#[test]
fn a_pipeline_is_compressed_part_by_part() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name);
    let index = "pipe/transformer/diffusion_pytorch_model.safetensors.index.json";
    save(&path("pipe/transformer/diffusion-1.safetensors"), &["a.proj.weight"]);
    save(&path("pipe/transformer/diffusion-2.safetensors"), &["b.proj.weight"]);
    save_index(
        &path(index),
        &[("a.proj.weight", "diffusion-1.safetensors"), ("b.proj.weight", "diffusion-2.safetensors")],
    );
    save(&path("pipe/vae/diffusion_pytorch_model.safetensors"), &["c.proj.weight"]);
    fs::create_dir(path("pipe/scheduler")).unwrap();
    fs::write(path("pipe/model_index.json"), "{}").unwrap();
    let refused = compress(dir.path(), "pipe", "small").code(2);
    refused.stderr("error: pipe holds no weights itself: name one of its folders, transformer, vae\n");
    for input in ["pipe/transformer", index] {
        compress(dir.path(), input, "small").success().stderr("");
        let expected = ["diffusion-1.pixel", "diffusion-2.pixel", "diffusion_pytorch_model.pixel.index.json"];
        assert_eq!(files(&path("small")), expected);
        pixel(dir.path(), &["decompress", "small", "dense"]).success();
        assert_eq!(files(&path("dense")), files(&path("pipe/transformer")));
        ["small", "dense"].iter().for_each(|name| fs::remove_dir_all(path(name)).unwrap());
    }
    compress(dir.path(), "pipe/vae", "small").success();
    assert_eq!(files(&path("small")), ["diffusion_pytorch_model.pixel"]);
    // Two of them: one has to be named.
    let half = "diffusion_pytorch_model.safetensors.index.fp16.json";
    save_index(&path("pipe/transformer").join(half), &[("a.proj.weight", "diffusion-1.safetensors")]);
    let refused = compress(dir.path(), "pipe/transformer", "more").code(2);
    refused.stderr(contains(half).and(contains("diffusion_pytorch_model.safetensors.index.json")));
    let note = contains("note: pipe/transformer/diffusion-2.safetensors: not read, for the model is that of");
    compress(dir.path(), &format!("pipe/transformer/{half}"), "more").success().stderr(note);
}

#[test]
fn the_index_decides_and_what_it_leaves_out_is_said() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join("model").join(name);
    save(&path("a.safetensors"), &["embed_tokens.weight", "old.proj.weight", "b.proj.weight"]);
    save(&path("b.safetensors"), &["b.proj.weight"]);
    save(&path("model.safetensors"), &["stale.proj.weight"]);
    let index = path("model.safetensors.index.json");
    let places = [
        ("embed_tokens.weight", "a.safetensors"),
        ("b.proj.weight", "b.safetensors"),
        ("lm_head.weight", "b.safetensors"),
    ];
    save_index(&index, &places);
    let notes = "\
        note: model/model.safetensors: not read, for the model is that of model.safetensors.index.json\n\
        note: model/a.safetensors: not taken, for model.safetensors.index.json does not place them here: \
        b.proj.weight, old.proj.weight\n\
        note: model/b.safetensors: holds no \"lm_head.weight\", which counts as tied to \"embed_tokens.weight\"\n";
    compress(dir.path(), "model", "small").success().stderr(notes);
    pixel(dir.path(), &["inspect", "model"]).success().stderr(notes).stdout(contains("stale").not());
    pixel(dir.path(), &["verify", "small", "--against", "model"]).success().stderr(notes);
    let quiet = ["compress", "model", "again", "--codec", "uniform", "--quiet"];
    pixel(dir.path(), &quiet).success().stderr("");
    // What is neither there nor known to be tied.
    save_index(&index, &[("b.proj.weight", "b.safetensors"), ("lm_head.weight", "b.safetensors")]);
    compress(dir.path(), "model", "more").code(2).stderr(contains("model/b.safetensors: tensor \"lm_head.weight\" is"));
    save_index(
        &index,
        &[("b.proj.weight", "b.safetensors"), ("c.proj.weight", "c.safetensors"), ("d.weight", "d.safetensors")],
    );
    let message =
        "model.safetensors.index.json: 2 of the 3 files that it names are missing, c.safetensors, d.safetensors";
    compress(dir.path(), "model", "more").code(2).stderr(contains(message));
    fs::remove_file(index).unwrap();
    fs::remove_file(path("model.safetensors")).unwrap();
    let refused = compress(dir.path(), "model", "more").code(2);
    refused.stderr(contains("without an index: name one of a.safetensors, b.safetensors"));
    let shards = compress(dir.path(), "model/b.safetensors", "more").success();
    shards.stderr("");
}

#[test]
fn an_archive_with_a_tensor_that_its_index_forgets_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    save(&dir.path().join("model/a.safetensors"), &["a.proj.weight", "b.proj.weight"]);
    let places = [("a.proj.weight", "a.safetensors"), ("b.proj.weight", "a.safetensors")];
    save_index(&dir.path().join("model/model.safetensors.index.json"), &places);
    compress(dir.path(), "model", "small").success();
    let index = dir.path().join("small/model.pixel.index.json");
    let text = fs::read_to_string(&index).unwrap();
    fs::write(&index, text.replace("b.proj.weight.codes", "b.proj.weight.other")).unwrap();
    pixel(dir.path(), &["verify", "small"]).code(2).stderr(contains("\"b.proj.weight.other\" is missing"));
    let mut index_json: serde_json::Value = serde_json::from_str(&text).unwrap();
    index_json["weight_map"].as_object_mut().unwrap().remove("b.proj.weight.codes");
    fs::write(&index, index_json.to_string()).unwrap();
    pixel(dir.path(), &["verify", "small"])
        .code(2)
        .stderr(contains("\"b.proj.weight.codes\" is listed but not stored"));
}

#[test]
fn modules_beside_the_model_are_copied_with_their_weights() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join("model").join(name);
    save(&path("model.safetensors"), &["a.proj.weight"]);
    save(&path("2_Dense/model.safetensors"), &["linear.weight"]);
    save(&path("onnx/model.safetensors"), &["a.proj.weight"]);
    fs::create_dir(path("1_Pooling")).unwrap();
    fs::write(path("1_Pooling/config.json"), "{}").unwrap();
    fs::write(path("2_Dense/pytorch_model.bin"), "weights").unwrap();
    let modules = r#"[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "../../etc"}]"#;
    fs::write(path("modules.json"), modules).unwrap();
    let expected = contains("copied        2_Dense/model.safetensors (weights of a module")
        .and(contains("copied        2_Dense/pytorch_model.bin"))
        .and(contains("not copied    onnx/model.safetensors"));
    compress(dir.path(), "model", "small").success().stdout(expected);
    let copied = ["1_Pooling/config.json", "2_Dense/model.safetensors", "2_Dense/pytorch_model.bin"];
    assert_eq!(files(&dir.path().join("small")), [&copied[..], &["model.pixel", "modules.json"]].concat());
    pixel(dir.path(), &["decompress", "small", "dense"]).success();
    assert_eq!(files(&dir.path().join("dense")), [&copied[..], &["model.safetensors", "modules.json"]].concat());
    let read = |folder: &str| fs::read(dir.path().join(folder).join("2_Dense/model.safetensors")).unwrap();
    assert_eq!(read("model"), read("dense"));
}

#[cfg(unix)]
#[test]
fn the_hubs_cache_is_read_through_its_links() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let hub = dir.path().join("models--a--b");
    save(&hub.join("blobs/1111"), &["a.proj.weight"]);
    fs::write(hub.join("blobs/2222"), "{}").unwrap();
    let add = |snapshot: &str| {
        let folder = hub.join("snapshots").join(snapshot);
        fs::create_dir_all(&folder).unwrap();
        symlink("../../blobs/1111", folder.join("model.safetensors")).unwrap();
        symlink("../../blobs/2222", folder.join("config.json")).unwrap();
    };
    add("aaaa");
    for (input, output) in [("models--a--b", "only"), ("models--a--b/snapshots/aaaa", "snapshot")] {
        compress(dir.path(), input, output).success().stderr("");
        assert_eq!(files(&dir.path().join(output)), ["config.json", "model.pixel"]);
        let copied = dir.path().join(output).join("config.json");
        assert!(copied.symlink_metadata().unwrap().is_file());
    }
    add("bbbb");
    let refused = compress(dir.path(), "models--a--b", "more").code(2);
    refused.stderr(contains("name one of snapshots/aaaa, snapshots/bbbb"));
    fs::create_dir(hub.join("refs")).unwrap();
    fs::write(hub.join("refs/main"), "../../..").unwrap();
    compress(dir.path(), "models--a--b", "more").code(2).stderr(contains("snapshots/aaaa"));
    fs::write(hub.join("refs/main"), "bbbb").unwrap();
    compress(dir.path(), "models--a--b", "more").success();
    pixel(dir.path(), &["inspect", "models--a--b"]).success();
}

#[test]
fn what_is_no_safetensors_is_called_by_its_name() {
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join("model").join(name);
    fs::create_dir(dir.path().join("model")).unwrap();
    let pickle = b"\x80\x02}q\0X\x05\0\0\0".as_slice();
    for (contents, name) in [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n".as_slice(), "git lfs pull"),
        (b"<!DOCTYPE html><title>Log in</title>", "an HTML page in place of the file"),
        (b"PK\x03\x04\x14\0\0\0", "in PyTorch's format"),
        (pickle, "in PyTorch's format"),
        (b"GGUF\x03\0\0\0", "a GGUF file"),
        (b"", "empty"),
    ] {
        fs::write(path("model.safetensors"), contents).unwrap();
        let message = contains("model/model.safetensors: not a valid safetensors file: it is").and(contains(name));
        compress(dir.path(), "model", "small").code(2).stderr(message);
    }
    fs::remove_file(path("model.safetensors")).unwrap();
    for (file, name) in [("pytorch_model.bin", "PyTorch's format"), ("model-q4.gguf", "a GGUF file")] {
        fs::write(path(file), pickle).unwrap();
        let message = contains(format!("model holds no safetensors: {file} is")).and(contains(name));
        compress(dir.path(), "model", "small").code(2).stderr(message);
        fs::remove_file(path(file)).unwrap();
    }
    fs::write(path("weights.bin"), pickle).unwrap();
    compress(dir.path(), "model/weights.bin", "small").code(2).stderr(contains("in PyTorch's format"));
}
