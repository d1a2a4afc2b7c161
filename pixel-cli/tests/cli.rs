//! The binary as a user runs it.

use assert_cmd::Command;
use predicates::prelude::PredicateBooleanExt;
use predicates::str::contains;
use safetensors::tensor::{Dtype, TensorView};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

/// A small checkpoint directory: two layers, an embedding, a bias, an integer tensor, a config.
fn checkpoint(dir: &Path) -> PathBuf {
    let root = dir.join("model");
    std::fs::create_dir_all(root.join("sub")).unwrap();
    std::fs::write(root.join("config.json"), "{}").unwrap();
    std::fs::write(root.join("sub/notes.txt"), "kept").unwrap();
    std::fs::write(root.join("pytorch_model.bin"), "the same weights again").unwrap();
    save(&root.join("model.safetensors"), &tensors());
    root
}

type Tensors = BTreeMap<String, (Dtype, Vec<usize>, Vec<u8>)>;

fn floats(len: usize, seed: u32) -> Vec<f32> {
    let hash = |i: u32| (i.wrapping_mul(0x9E37_79B9) ^ seed).wrapping_mul(0x85EB_CA6B) >> 8;
    (0..len as u32).map(|i| hash(i) as f32 / 8_388_608.0 - 1.0).collect()
}

fn f32_tensor(shape: &[usize], seed: u32) -> (Dtype, Vec<usize>, Vec<u8>) {
    let bytes = floats(shape.iter().product(), seed).iter().flat_map(|w| w.to_le_bytes()).collect();
    (Dtype::F32, shape.to_vec(), bytes)
}

fn tensors() -> Tensors {
    Tensors::from([
        ("layers.0.q_proj.weight".into(), f32_tensor(&[64, 96], 1)),
        ("layers.1.q_proj.weight".into(), f32_tensor(&[64, 96], 2)),
        ("layers.1.q_proj.bias".into(), f32_tensor(&[64], 3)),
        ("embed_tokens.weight".into(), f32_tensor(&[80, 64], 4)),
        ("position_ids".into(), (Dtype::I64, vec![1, 4], vec![7; 32])),
    ])
}

fn save(path: &Path, tensors: &Tensors) {
    let views = tensors
        .iter()
        .map(|(name, (dtype, shape, bytes))| (name.clone(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
    safetensors::serialize_to_file(views, Some([("format".into(), "pt".into())].into()), path).unwrap();
}

fn pixel(args: &[&str], dir: &Path) -> assert_cmd::assert::Assert {
    Command::cargo_bin("pixel").unwrap().current_dir(dir).args(args).assert()
}

/// `compress` by the trellis with a small window, which is quick.
fn compress(dir: &Path, input: &str, output: &str, more: &[&str]) -> assert_cmd::assert::Assert {
    pixel(&[&["compress", input, output, "--codec", "trellis", "--option", "window=10"], more].concat(), dir)
}

fn size(path: &Path) -> u64 {
    if path.is_file() {
        return path.metadata().unwrap().len();
    }
    std::fs::read_dir(path).unwrap().map(|entry| size(&entry.unwrap().path())).sum()
}

fn json(assert: assert_cmd::assert::Assert) -> serde_json::Value {
    serde_json::from_slice(&assert.get_output().stdout).unwrap()
}

/// Everything in the directory but `names`: no run may leave anything else behind.
fn leftovers(dir: &Path, names: &[&str]) -> Vec<String> {
    let entries = std::fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    entries.filter(|name| !names.contains(&name.as_str())).collect()
}

#[test]
fn a_checkpoint_is_compressed_verified_and_restored() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    compress(dir.path(), "model", "small", &["--bits", "4"]).success().stdout(contains("trellis:4:window=10"));
    let small = dir.path().join("small");
    assert!(small.join("config.json").exists() && small.join("sub/notes.txt").exists());
    assert!(!small.join("pytorch_model.bin").exists());
    pixel(&["verify", "small"], dir.path()).success().stdout(contains("ok: 3 packed and 2 kept"));
    pixel(&["verify", "small", "--against", "model"], dir.path()).success();
    pixel(&["verify", "small", "--against", "model", "--max-relative-mse", "1e-4"], dir.path())
        .code(1)
        .stdout(contains("layers.0.q_proj.weight").and(contains("exceeds")));
    pixel(&["decompress", "small", "dense", "--dtype", "bf16"], dir.path()).success();
    let bytes = std::fs::read(dir.path().join("dense/model.safetensors")).unwrap();
    let (_, metadata) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
    assert_eq!(metadata.info("layers.0.q_proj.weight").unwrap().dtype, Dtype::BF16);
    assert_eq!(metadata.info("position_ids").unwrap().dtype, Dtype::I64);
    let keys: Vec<_> = metadata.metadata().as_ref().unwrap().keys().map(String::as_str).collect();
    let expected = ["format", "pixel_producer"];
    assert!(keys.len() == 2 && expected.iter().all(|key| keys.contains(key)), "the source's and our name: {keys:?}");
    pixel(&["diff", "model", "dense"], dir.path()).code(1).stdout(contains("1 tensors are equal"));
    pixel(&["diff", "small", "small"], dir.path()).success().stdout(contains("5 tensors are equal"));
}

#[test]
fn the_parts_that_inspect_lists_add_up_to_the_files() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    for (output, more) in
        [("a", &["--codec", "uniform", "--bits", "3"][..]), ("b.safetensors", &["--codec", "additive"])]
    {
        pixel(&[&["compress", "model", output], more].concat(), dir.path()).success();
        let listing = json(pixel(&["inspect", output, "--json"], dir.path()).success());
        let tensors = listing["tensors"].as_object().unwrap();
        let sum: u64 = tensors.values().map(|line| line["bytes"].as_u64().unwrap()).sum();
        let rest = listing["header_bytes"].as_u64().unwrap() + listing["other_file_bytes"].as_u64().unwrap();
        assert_eq!(sum + rest, size(&dir.path().join(output)));
        assert_eq!(tensors.len(), 5);
    }
}

#[test]
fn protected_columns_are_counted_listed_and_restored() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    compress(dir.path(), "model", "plain", &[]).success();
    let done = json(compress(dir.path(), "model", "small", &["--protect", "5", "--json"]).success());
    let [plain, small] = ["plain", "small"].map(|name| json(pixel(&["inspect", name, "--json"], dir.path()).success()));
    let line = |listing: &serde_json::Value, name: &str, what| listing["tensors"][name][what].as_u64().unwrap();
    let layer = "layers.0.q_proj.weight";
    // Five numbers, and five columns of 64 rows in F16.
    assert_eq!(line(&small, layer, "bytes") - line(&plain, layer, "bytes"), 5 * 4 + 5 * 64 * 2);
    assert_eq!((line(&small, layer, "protected"), line(&small, "embed_tokens.weight", "protected")), (5, 0));
    pixel(&["inspect", "small"], dir.path()).success().stdout(contains("rotated, 5 columns protected"));
    assert_eq!(done["report"]["weight_file_bytes"], size(&dir.path().join("small/model.pixel")));
    pixel(&["verify", "small", "--against", "model"], dir.path()).success();
    pixel(&["decompress", "small", "dense"], dir.path()).success();
    pixel(&["diff", "small", "dense"], dir.path()).success().stdout(contains("5 tensors are equal"));
    let without = compress(dir.path(), "model", "more", &["--protect", "96"]).success();
    without.stderr(contains("too small for 96 protected columns, done without: layers.0.q_proj.weight, layers.1"));
}

#[test]
fn low_rank_parts_are_counted_listed_and_restored() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    compress(dir.path(), "model", "plain", &[]).success();
    let planned = json(compress(dir.path(), "model", "none", &["--hybrid", "3", "--dry-run", "--json"]).success());
    let done = json(compress(dir.path(), "model", "small", &["--hybrid", "3", "--json"]).success());
    assert_eq!(planned["weight_file_bytes"], done["report"]["weight_file_bytes"]);
    assert_eq!(done["report"]["weight_file_bytes"], size(&dir.path().join("small/model.pixel")));
    let [plain, small] = ["plain", "small"].map(|name| json(pixel(&["inspect", name, "--json"], dir.path()).success()));
    let line = |listing: &serde_json::Value, name: &str, what| listing["tensors"][name][what].as_u64().unwrap();
    let layer = "layers.0.q_proj.weight";
    // Three vectors of 64 and of 96 numbers in 8 bits, and a scale for each.
    let factors = 3 * (64 + 96) + 3 * 2 * 2;
    assert_eq!(line(&small, layer, "low_rank_bytes"), factors);
    assert_eq!(line(&small, layer, "bytes") - line(&plain, layer, "bytes"), factors);
    assert_eq!(small["tensors"][layer]["low_rank"], serde_json::json!({ "rank": 3, "storage": "int8" }));
    assert!(small["tensors"]["embed_tokens.weight"]["low_rank"].is_null());
    let listed = pixel(&["inspect", "small"], dir.path()).success();
    listed.stdout(contains("rotated, rank 3 in int8").and(contains("2 tensors: 984 (984 B) of factors,")));
    pixel(&["verify", "small", "--against", "model"], dir.path()).success();
    pixel(&["decompress", "small", "dense"], dir.path()).success();
    pixel(&["diff", "small", "dense"], dir.path()).success().stdout(contains("5 tensors are equal"));
    for threads in ["1", "2"] {
        compress(dir.path(), "model", threads, &["--hybrid", "3", "--factors", "f16", "--threads", threads]).success();
    }
    let read = |name| std::fs::read(dir.path().join(name).join("model.pixel")).unwrap();
    assert_eq!(read("1"), read("2"));
    let without = compress(dir.path(), "model", "without", &["--hybrid", "65"]).success();
    without
        .stderr(contains("too small for a low-rank part of rank 65, done without: layers.0.q_proj.weight, layers.1"));
    compress(dir.path(), "model", "more", &["--hybrid", "some"]).code(2).stderr(contains("neither auto nor never"));
}

#[test]
fn low_rank_parts_are_put_where_they_pay() {
    let dir = tempfile::tempdir().unwrap();
    let root = checkpoint(dir.path());
    let mut tensors = tensors();
    // Noise, and noise plus a direction with most of the energy. (`floats` are no noise: their spectrum has spikes.)
    let noise = |len: usize, seed: u64| -> Vec<f32> {
        let mix = |mut z: u64| {
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            ((z ^ (z >> 31)) >> 40) as f32 / 8_388_608.0 - 1.0
        };
        (0..len as u64).map(|i| mix((seed << 32 | i).wrapping_mul(0x9E37_79B9_7F4A_7C15))).collect()
    };
    let mut insert = |name: &str, shape: [usize; 2], values: &[f32]| {
        let bytes = values.iter().flat_map(|w| w.to_le_bytes()).collect();
        tensors.insert(name.into(), (Dtype::F32, shape.to_vec(), bytes));
    };
    insert("layers.0.q_proj.weight", [64, 96], &noise(64 * 96, 1));
    insert("layers.1.q_proj.weight", [64, 96], &noise(64 * 96, 2));
    let mut spiked = noise(128 * 256, 9);
    let [a, b] = [noise(128, 10), noise(256, 11)];
    spiked.iter_mut().enumerate().for_each(|(i, w)| *w += 3.0 * a[i / 256] * b[i % 256]);
    insert("layers.2.spiked.weight", [128, 256], &spiked);
    save(&root.join("model.safetensors"), &tensors);
    let saved = ["--hybrid", "auto", "--save-recipe", "found.toml", "--json"];
    let done = json(compress(dir.path(), "model", "auto", &saved).success());
    let found = done["hybrid"].as_array().unwrap();
    let ranks: Vec<_> = found.iter().map(|t| (t["name"].as_str().unwrap(), t["rank"].as_u64().unwrap())).collect();
    let chosen: Vec<_> = ranks.iter().filter(|(_, rank)| *rank > 0).collect();
    assert!(matches!(chosen[..], [("layers.2.spiked.weight", 1)]), "{done:#}");
    let halves = compress(dir.path(), "model", "halves", &["--hybrid", "auto", "--factors", "f16"]).success();
    halves.stdout(contains("low rank      1 weights, of rank 1: 768 (768 B) of factors"));
    pixel(&["inspect", "halves"], dir.path()).success().stdout(contains("rank 1 in f16"));
    // The recipe that was saved does the same again, and `never` undoes it.
    let recipe = std::fs::read_to_string(dir.path().join("found.toml")).unwrap();
    assert!(recipe.contains("rank = 1") && recipe.contains("layers\\.2\\.spiked"), "{recipe}");
    pixel(&["compress", "model", "again", "--recipe", "found.toml"], dir.path()).success();
    let read = |name| std::fs::read(dir.path().join(name).join("model.pixel")).unwrap();
    assert_eq!(read("auto"), read("again"));
    pixel(&["compress", "model", "never", "--recipe", "found.toml", "--hybrid", "never"], dir.path()).success();
    let listed = json(pixel(&["inspect", "never", "--json"], dir.path()).success());
    assert!(listed["tensors"].as_object().unwrap().values().all(|line| line["low_rank"].is_null()));
    let printed = compress(dir.path(), "model", "printed", &["--hybrid", "auto"]).success();
    printed.stdout(contains("low-rank parts pay in 1 of 4 weights").and(contains("kept")));
    let refused = compress(dir.path(), "model", "x", &["--save-recipe", "y.toml"]).code(2);
    refused.stderr(contains("--save-recipe writes what --target-bits or --hybrid auto found"));
}

#[test]
fn presets_choose_rates_by_the_kind_of_layer() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    for (preset, rates) in [("high_quality", ["4", "8"]), ("balanced", ["2.5", "8"]), ("max_compression", ["2", "4"])] {
        let printed = pixel(&["compress", "model", "--preset", preset, "--dry-run"], dir.path()).success();
        let [layers, embeddings] = rates;
        printed.stdout(contains(format!("lapped:{layers}")).and(contains(format!("uniform:{embeddings}"))));
    }
}

#[test]
fn a_dry_run_writes_nothing_and_prints_the_exact_size() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    let planned = json(
        pixel(&["compress", "model", "--dry-run", "--json", "--codec", "trellis", "--option", "window=10"], dir.path())
            .success(),
    );
    assert!(leftovers(dir.path(), &["model"]).is_empty());
    assert!(!planned["samples"].as_array().unwrap().is_empty());
    let done = json(compress(dir.path(), "model", "small", &["--json"]).success());
    assert_eq!(planned["weight_file_bytes"], done["report"]["weight_file_bytes"]);
    assert_eq!(planned["weight_file_bytes"], size(&dir.path().join("small/model.pixel")));
}

#[test]
fn threads_do_not_change_a_byte() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    for codec in ["trellis", "additive", "lapped", "matching", "uniform"] {
        let read = |threads: &str| {
            let output = format!("{codec}-{threads}.safetensors");
            let args = ["compress", "model", &output, "--codec", codec, "--bits", "2", "--threads", threads];
            pixel(&args, dir.path()).success();
            std::fs::read(dir.path().join(output)).unwrap()
        };
        assert_eq!(read("1"), read("2"), "{codec}");
    }
}

#[test]
fn shards_stay_shards() {
    let dir = tempfile::tempdir().unwrap();
    let root = sharded(dir.path());
    compress(dir.path(), "sharded", "small", &[]).success();
    pixel(&["verify", "small", "--against", "sharded"], dir.path()).success();
    pixel(&["decompress", "small", "dense"], dir.path()).success();
    for file in ["a.safetensors", "b.safetensors", "model.safetensors.index.json"] {
        assert!(dir.path().join("dense").join(file).exists(), "{file}");
    }
    let index: serde_json::Value =
        serde_json::from_slice(&std::fs::read(dir.path().join("dense/model.safetensors.index.json")).unwrap()).unwrap();
    assert_eq!(index["weight_map"]["layers.0.q_proj.weight"], "a.safetensors");

    std::fs::write(root.join("model.safetensors.index.json"), index_text(&["layers.9.weight"])).unwrap();
    compress(dir.path(), "sharded", "bad", &[]).code(2).stderr(contains("\"layers.9.weight\" is missing"));
    std::fs::remove_file(root.join("b.safetensors")).unwrap();
    compress(dir.path(), "sharded", "bad", &[]).code(2).stderr(contains("b.safetensors"));
    assert!(leftovers(dir.path(), &["sharded", "small", "dense"]).is_empty());
}

fn index_text(extra: &[&str]) -> String {
    let mut map: BTreeMap<&str, &str> =
        [("layers.0.q_proj.weight", "a.safetensors"), ("layers.1.q_proj.weight", "b.safetensors")].into();
    map.extend(extra.iter().map(|name| (*name, "a.safetensors")));
    serde_json::json!({ "metadata": { "total_size": 0 }, "weight_map": map }).to_string()
}

fn sharded(dir: &Path) -> PathBuf {
    let root = dir.join("sharded");
    std::fs::create_dir_all(&root).unwrap();
    for (file, tensor) in [("a.safetensors", "layers.0.q_proj.weight"), ("b.safetensors", "layers.1.q_proj.weight")] {
        save(&root.join(file), &tensors().into_iter().filter(|(name, _)| name == tensor).collect());
    }
    std::fs::write(root.join("model.safetensors.index.json"), index_text(&[])).unwrap();
    root
}

#[test]
fn weights_that_are_not_finite_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let mut tensors = tensors();
    for (value, text) in [(f32::NAN, "NaN"), (f32::NEG_INFINITY, "-inf")] {
        let weight = tensors.get_mut("layers.1.q_proj.weight").unwrap();
        weight.2[4 * (96 + 5)..][..4].copy_from_slice(&value.to_le_bytes());
        save(&dir.path().join("bad.safetensors"), &tensors);
        compress(dir.path(), "bad.safetensors", "out", &[]).code(2).stderr(
            contains("bad.safetensors: tensor \"layers.1.q_proj.weight\": the weight at row 1, column 5 is")
                .and(contains(text))
                .and(contains(r"; --exclude '^layers\.1\.q_proj\.weight$' stores the tensor as it is")),
        );
    }
    assert!(leftovers(dir.path(), &["bad.safetensors"]).is_empty());
}

/// A safetensors file with `header` and `data` zero bytes.
fn raw(path: &Path, header: &str, data: usize) {
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header.as_bytes());
    bytes.resize(bytes.len() + data, 0);
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn files_that_are_no_safetensors_are_refused_with_the_reason() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("bad.safetensors");
    let refused = |message: &str| {
        compress(dir.path(), "bad.safetensors", "out", &[])
            .code(2)
            .stderr(contains("bad.safetensors").and(contains(message)));
        assert!(leftovers(dir.path(), &["bad.safetensors"]).is_empty());
    };
    std::fs::write(&file, "").unwrap();
    refused("not a valid safetensors file");
    std::fs::write(&file, "hello, this is some text").unwrap();
    refused("not a valid safetensors file");
    raw(&file, r#"{"w":{"dtype":"F9","shape":[2],"data_offsets":[0,8]}}"#, 8);
    refused("tensor \"w\" has unknown dtype \"F9\"");
    let entry = |from: usize, to: usize| format!(r#"{{"dtype":"F32","shape":[2],"data_offsets":[{from},{to}]}}"#);
    raw(&file, &format!(r#"{{"a":{},"b":{}}}"#, entry(0, 8), entry(4, 12)), 12);
    refused("tensor \"b\" at bytes 4..12 overlaps");
    raw(&file, r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}"#, 4);
    refused("the file does not");
    raw(&file, r#"{"a":{"dtype":"F32","shape":[0,4],"data_offsets":[0,0]}}"#, 0);
    refused("no tensor would be compressed");
}

#[test]
fn outputs_that_would_do_harm_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    compress(dir.path(), "model", "model/out", &[]).code(2).stderr(contains("overlap"));
    compress(dir.path(), "model", "model", &["--overwrite"]).code(2).stderr(contains("overlap"));
    compress(dir.path(), "model/model.safetensors", "model", &["--overwrite"]).code(2).stderr(contains("overlap"));
    compress(dir.path(), "nowhere", "out", &[]).code(2).stderr(contains("cannot open nowhere"));
    std::fs::create_dir(dir.path().join("empty")).unwrap();
    compress(dir.path(), "empty", "out", &[])
        .code(2)
        .stderr(contains("holds neither weights (*.safetensors, *.pixel) nor an index"));
    compress(dir.path(), "model", "empty", &[])
        .code(2)
        .stderr(contains("empty exists already").and(contains("; --overwrite replaces it if PIXEL wrote it\n")));
    compress(dir.path(), "model", "empty", &["--overwrite"]).success();
    compress(dir.path(), "empty", "again", &[]).code(2).stderr(contains("already a PIXEL archive"));
    pixel(&["inspect", "model"], dir.path()).success();
    pixel(&["verify", "model"], dir.path()).code(2).stderr(contains("not a PIXEL archive"));
    assert!(leftovers(dir.path(), &["model", "empty"]).is_empty());
}

#[test]
fn an_output_is_replaced_only_if_all_of_it_was_written_by_pixel() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    let path = |name: &str| dir.path().join(name);
    std::fs::create_dir_all(path("mine/sub")).unwrap();
    std::fs::write(path("mine/sub/thesis.tex"), "mine").unwrap();
    let refused = compress(dir.path(), "model", "mine", &["--overwrite"]).code(2);
    refused.stderr(contains("mine holds sub/thesis.tex, which PIXEL did not write there"));
    // A file that is no weights, weights of somebody else, another directory of weights.
    std::fs::write(path("notes.safetensors"), "mine").unwrap();
    for name in ["notes.safetensors", "model/model.safetensors"] {
        let refused = compress(dir.path(), "model", name, &["--overwrite"]).code(2);
        refused.stderr(contains("is no file that PIXEL wrote").or(contains("overlap")));
    }
    sharded(dir.path());
    let refused = compress(dir.path(), "model", "sharded", &["--overwrite"]).code(2);
    refused.stderr(contains("sharded holds a.safetensors, which PIXEL did not write there"));
    std::fs::write(path("notes.txt"), "not a recipe").unwrap();
    let args = ["compress", "model", "new", "--hybrid", "auto", "--save-recipe", "notes.txt", "--overwrite"];
    pixel(&args, dir.path()).code(2).stderr(contains("--save-recipe notes.txt: the file is no recipe"));
    // What compress and decompress write is replaced, again and again, also by each other.
    std::fs::create_dir(path("small")).unwrap();
    for _ in 0..2 {
        compress(dir.path(), "model", "small", &["--overwrite"]).success();
        pixel(&["decompress", "small", "dense", "--overwrite"], dir.path()).success();
        compress(dir.path(), "dense", "small.safetensors", &["--overwrite"]).success();
        pixel(&["decompress", "small.safetensors", "dense.safetensors", "--overwrite"], dir.path()).success();
    }
    compress(dir.path(), "sharded", "dense", &["--overwrite"]).success();
    compress(dir.path(), "sharded", "dense", &["--overwrite"]).success();
    // But not with something of the user's inside, also where it is hidden, empty, or an archive of its own.
    for (file, change) in [("notes.txt", "mine"), (".hidden", ""), ("sub/notes.txt", "added"), ("config.json", "{ }")] {
        let file_path = path("small").join(file);
        let before = std::fs::read(&file_path).ok();
        std::fs::write(&file_path, change).unwrap();
        let refused = compress(dir.path(), "model", "small", &["--overwrite"]).code(2);
        let reason = if before.is_some() { "has changed since PIXEL wrote it" } else { "PIXEL did not write there" };
        refused.stderr(contains(format!("small holds {file}, which {reason}")));
        assert_eq!(std::fs::read_to_string(&file_path).unwrap(), change);
        match before {
            Some(bytes) => std::fs::write(&file_path, bytes).unwrap(),
            None => std::fs::remove_file(&file_path).unwrap(),
        }
    }
    std::fs::rename(path("small.safetensors"), path("small/other.safetensors")).unwrap();
    let refused = pixel(&["decompress", "dense", "small", "--overwrite"], dir.path()).code(2);
    refused.stderr(contains("small holds other.safetensors, which PIXEL did not write there"));
    std::fs::remove_file(path("small/other.safetensors")).unwrap();
    compress(dir.path(), "model", "small", &["--overwrite"]).success();
    assert_eq!(std::fs::read_to_string(path("mine/sub/thesis.tex")).unwrap(), "mine");
}

#[test]
fn a_damaged_archive_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    compress(dir.path(), "model", "small.safetensors", &[]).success();
    let path = dir.path().join("small.safetensors");
    let mut bytes = std::fs::read(&path).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&path, bytes).unwrap();
    pixel(&["verify", "small.safetensors"], dir.path())
        .code(1)
        .stdout(contains("is damaged: BLAKE3").and(contains("FAILED: 1 failure among")));
    pixel(&["decompress", "small.safetensors", "dense"], dir.path()).code(2).stderr(contains("is damaged"));
    assert!(leftovers(dir.path(), &["model", "small.safetensors"]).is_empty());
}

#[test]
fn recipes_choose_by_name() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    std::fs::write(
        dir.path().join("recipe.toml"),
        "[default]\ncodec = 'uniform'\nbits = 3\n[embeddings]\nkeep = true\n[[rule]]\nmatch = 'layers\\.0'\nbits = 4\n",
    )
    .unwrap();
    pixel(&["compress", "model", "a", "--recipe", "recipe.toml"], dir.path()).success();
    let codec = |listing: &serde_json::Value, name: &str| listing["tensors"][name]["codec"].as_str().map(str::to_owned);
    let a = json(pixel(&["inspect", "a", "--json"], dir.path()).success());
    assert_eq!(codec(&a, "layers.0.q_proj.weight").unwrap(), "uniform:4");
    assert_eq!(codec(&a, "layers.1.q_proj.weight").unwrap(), "uniform:3");
    assert_eq!(codec(&a, "embed_tokens.weight"), None);
    let args = ["--codec", "uniform", "--include", "layers", "--exclude", r"layers\.1", "--bits", "2"];
    pixel(&[&["compress", "model", "b"], &args[..]].concat(), dir.path()).success();
    let b = json(pixel(&["inspect", "b", "--json"], dir.path()).success());
    assert_eq!(codec(&b, "layers.0.q_proj.weight").unwrap(), "uniform:2");
    assert_eq!(codec(&b, "layers.1.q_proj.weight"), None);
    assert_eq!(codec(&b, "embed_tokens.weight"), None);
    pixel(&["compress", "model", "c", "--recipe", "missing.toml"], dir.path()).code(2).stderr(contains("missing.toml"));
    pixel(&["compress", "model", "c", "--bits", "7"], dir.path()).code(2).stderr(contains("no rate of 7 bits"));
    pixel(&["compress", "model", "c", "--include", "("], dir.path()).code(2).stderr(contains("expression '('"));
}

#[test]
fn rules_of_a_preset_hold_for_what_is_included_alone() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    let packed = |output: &str, args: &[&str]| -> BTreeMap<String, String> {
        compress(dir.path(), "model", output, args).success();
        let listing = json(pixel(&["inspect", output, "--json"], dir.path()).success());
        let tensors = listing["tensors"].as_object().unwrap().iter();
        tensors.filter_map(|(name, line)| Some((name.clone(), line["codec"].as_str()?.to_owned()))).collect()
    };
    let balanced = |name: &str| (name.to_owned(), "trellis:2.5:window=10".to_owned());
    let include = ["--preset", "balanced", "--include", r"layers\.0\."];
    assert_eq!(packed("a", &include), BTreeMap::from([balanced("layers.0.q_proj.weight")]));
    let exclude = ["--preset", "balanced", "--include", "layers", "--exclude", r"layers\.0\."];
    assert_eq!(packed("b", &exclude), BTreeMap::from([balanced("layers.1.q_proj.weight")]));
    // The recipe's own list gives way to that of the command line; what either excludes stays as it is.
    let recipe = "include = ['embed']\nexclude = ['layers\\.1']\n[[rule]]\nmatch = 'q_proj'\nbits = 4\n";
    std::fs::write(dir.path().join("recipe.toml"), recipe).unwrap();
    let of_recipe = packed("c", &["--recipe", "recipe.toml"]);
    assert_eq!(of_recipe, BTreeMap::from([("embed_tokens.weight".to_owned(), "uniform:8".to_owned())]));
    let both = packed("d", &["--recipe", "recipe.toml", "--include", "layers", "--exclude", "bias"]);
    let expected = ("layers.0.q_proj.weight".to_owned(), "trellis:4:window=10".to_owned());
    assert_eq!(both, BTreeMap::from([expected]));
}

#[test]
fn a_table_of_a_recipe_that_names_no_codec_has_the_default_of_its_class() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    let codecs = |recipe: &str, args: &[&str]| {
        std::fs::write(dir.path().join("recipe.toml"), recipe).unwrap();
        let first = ["compress", "model", "small", "--recipe", "recipe.toml", "--overwrite"];
        pixel(&[&first, args].concat(), dir.path()).success();
        let listing = json(pixel(&["inspect", "small", "--json"], dir.path()).success());
        ["layers.0.q_proj.weight", "embed_tokens.weight"]
            .map(|name| listing["tensors"][name]["codec"].as_str().unwrap().to_owned())
    };
    let layers = "lapped:2";
    assert_eq!(codecs("[embeddings]\nprotect = 2\n", &[]), [layers, "uniform:8"]);
    assert_eq!(codecs("[embeddings]\nbits = 6\n", &[]), [layers, "uniform:6"]);
    // Layers too, also where embeddings are to be the same, and options stay those of that codec.
    let partial = "[default]\nprotect = 1\noptions = { beam = 20 }\n";
    assert_eq!(codecs(partial, &["--embeddings", "same"]), ["lapped:2:beam=20"; 2]);
    assert_eq!(codecs(partial, &["--codec", "lapped"])[0], "lapped:2:beam=20");
}

#[test]
fn causes_are_named_once() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    std::fs::write(dir.path().join("recipe.toml"), "[[rule]]\nmatch = 'q_proj'\nbits = 7\n").unwrap();
    let refused = pixel(&["compress", "model", "out", "--recipe", "recipe.toml"], dir.path()).code(2);
    let message = String::from_utf8(refused.get_output().stderr.clone()).unwrap();
    assert!(message.starts_with("error: rule 1, match 'q_proj': codec lapped has no rate of 7 bits"), "{message}");
    assert_eq!((message.matches("no rate of").count(), message.lines().count()), (1, 1), "{message}");
}

#[test]
fn another_source_is_found_out() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    compress(dir.path(), "model", "small", &[]).success();
    let mut other = tensors();
    other.get_mut("layers.0.q_proj.weight").unwrap().2[..4].copy_from_slice(&f32::NAN.to_le_bytes());
    save(&dir.path().join("other.safetensors"), &other);
    pixel(&["verify", "small", "--against", "other.safetensors"], dir.path())
        .code(1)
        .stdout(contains("\"layers.0.q_proj.weight\": the source is not the one that was compressed"));
}

#[test]
fn shards_do_not_become_one_file_and_paths_do_not_hide() {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    sharded(dir.path());
    compress(dir.path(), "sharded", "one.safetensors", &[]).code(2).stderr(contains("has 2 shards: name a directory"));
    compress(dir.path(), "model", "nowhere/../model/out", &[]).code(2).stderr(contains("\"..\" after a directory"));
    compress(dir.path(), "model", "dots/.", &[]).success();
    compress(dir.path(), "model", "many", &["--threads", "1000000"]).success();
    assert!(leftovers(dir.path(), &["model", "sharded", "dots", "many"]).is_empty());
}

#[test]
fn weights_at_the_end_of_the_range_stay_finite() {
    let dir = tempfile::tempdir().unwrap();
    let extreme: Vec<u8> = floats(64 * 96, 1).iter().flat_map(|w| (w.signum() * f32::MAX).to_le_bytes()).collect();
    let wide: Vec<u8> = [1e300f64, 1.0].iter().flat_map(|w| w.to_le_bytes()).collect();
    let tensors = Tensors::from([("a.weight".into(), (Dtype::F32, vec![64, 96], extreme))]);
    save(&dir.path().join("extreme.safetensors"), &tensors);
    compress(dir.path(), "extreme.safetensors", "small.safetensors", &[]).success();
    for dtype in ["f32", "bf16", "f16"] {
        let output = format!("{dtype}.safetensors");
        pixel(&["decompress", "small.safetensors", &output, "--dtype", dtype], dir.path()).success();
        let model = pixel_core::archive::Model::open(dir.path().join(output)).unwrap();
        assert!(model.to_f32("a.weight").unwrap().iter().all(|w| w.is_finite()), "{dtype}");
    }
    let kept = [("b".to_owned(), (Dtype::F64, vec![2], wide)), ("a.weight".into(), f32_tensor(&[64, 96], 1))];
    save(&dir.path().join("wide.safetensors"), &kept.into());
    compress(dir.path(), "wide.safetensors", "wide-small.safetensors", &[]).success();
    pixel(&["decompress", "wide-small.safetensors", "dense", "--dtype", "f32"], dir.path())
        .code(2)
        .stderr(contains("tensor \"b\" holds inf, which F32 cannot"));
}
