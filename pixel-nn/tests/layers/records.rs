//! Records and archives.

use super::*;

#[test]
fn a_record_restores_codes_scales_and_dictionary() {
    let device = Device::flex();
    for text in CODECS {
        let (layer, _) = PIXELLinear::from_linear(&dense(48, 40), &codec(text), 0).unwrap();
        let bytes = layer.clone().into_record().into_bytes().unwrap();
        let fresh = || PIXELLinearConfig::new(48, 40).with_codec(codec(text)).init(&device);
        let loaded = fresh().load_record(ModuleRecord::from_bytes(bytes).unwrap());
        let x = normal([3, 48]);
        assert_eq!(host(loaded.forward(x.clone())), host(layer.forward(x.clone())), "{text}");

        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("layer");
        layer.clone().save_file(&path).unwrap();
        assert_eq!(host(fresh().load_file(&path).forward(x.clone())), host(layer.forward(x)), "{text}");
    }
}

#[test]
fn a_record_of_a_layer_that_reads_codes_otherwise_is_refused_by_name() {
    let device = Device::flex();
    let layer = |text: &str, seed| PIXELLinearConfig::new(48, 40).with_codec(codec(text)).with_seed(seed).init(&device);
    let bytes = layer("trellis:2:window=12", 7).into_record().into_bytes().unwrap();
    let load = |into: PIXELLinear| into.try_load_record(ModuleRecord::from_bytes(bytes.clone()).unwrap());
    for (into, fingerprint) in [
        (layer("trellis:2:window=12", 8), "weight.codes.40x48 trellis:2:window=12 rotation 8"),
        (layer("trellis:2:window=10", 7), "weight.codes.40x48 trellis:2:window=10 rotation 7"),
        (layer("trellis:2", 7), "weight.codes.40x48 trellis:2:window=16 rotation 7"),
        (layer("trellis:1.5:window=12", 7), "weight.codes.40x48 trellis:1,5:window=12 rotation 7"),
    ] {
        let message = load(into).expect_err(fingerprint).to_string();
        assert!(message.contains(fingerprint), "{message} instead of {fingerprint}");
    }
    // How the search went does not matter.
    load(layer("trellis:2:window=12:beam=4", 7)).unwrap();
}

#[test]
fn a_record_restores_a_low_rank_part() {
    let device = Device::flex();
    for text in CODECS {
        let layer = || PIXELLinear::from_packed(&with_low_rank(text, [40, 48]), None, &device).unwrap();
        let (layer, other) = (layer(), layer());
        let bytes = layer.clone().into_record().into_bytes().unwrap();
        let loaded = other.load_record(ModuleRecord::from_bytes(bytes).unwrap());
        let x = normal([3, 48]);
        assert_eq!(host(loaded.forward(x.clone())), host(layer.forward(x)), "{text}");
    }
}

#[test]
fn a_record_restores_protected_columns() {
    let device = Device::flex();
    for text in CODECS {
        let layer = || PIXELLinear::from_packed(&protected(text, [40, 48]), None, &device).unwrap();
        let (layer, other) = (layer(), layer());
        let columns = |layer: &PIXELLinear| layer.weight.to_packed().unwrap().protected().columns().to_vec();
        assert_ne!(columns(&layer), columns(&other), "{text}");
        let bytes = layer.clone().into_record().into_bytes().unwrap();
        let loaded = other.load_record(ModuleRecord::from_bytes(bytes).unwrap());
        let x = normal([3, 48]);
        assert_eq!(host(loaded.forward(x.clone())), host(layer.forward(x)), "{text}");
        assert_eq!(columns(&layer), columns(&loaded), "{text}");
    }
}

#[test]
fn safetensors_hold_a_layer() {
    use burn::store::{ModuleSnapshot, SafetensorsStore};
    let device = Device::flex();
    let (layer, _) = PIXELLinear::from_linear(&dense(48, 40), &codec(CODECS[0]), 0).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("layer.safetensors");
    layer.save_into(&mut SafetensorsStore::from_file(&path)).unwrap();
    let mut loaded = PIXELLinearConfig::new(48, 40).with_codec(codec(CODECS[0])).init(&device);
    loaded.load_from(&mut SafetensorsStore::from_file(&path)).unwrap();
    let x = normal([3, 48]);
    assert_eq!(host(loaded.forward(x.clone())), host(layer.forward(x)));
}

#[cfg(feature = "autodiff")]
#[test]
fn a_trained_dictionary_does_not_go_into_an_archive_in_silence() {
    let (mut layer, _) = PIXELLinear::from_linear(&dense(32, 16), &codec("additive:2:beam=1"), 0).unwrap();
    layer.weight = layer.weight.map_dictionary(|values| values * 1.5);
    let error = layer.weight.to_packed().unwrap_err().to_string();
    assert!(error.contains("dictionary value") && error.contains("additive"), "{error}");
    // Not even a little, with learned patterns, which are stored with the weight and may change.
    let (mut layer, _) = PIXELLinear::from_linear(&dense(32, 16), &codec("matching:2:beam=1:learned=3"), 0).unwrap();
    layer.weight = layer.weight.map_dictionary(|values| values * 1.0005);
    let error = layer.weight.to_packed().unwrap_err().to_string();
    assert!(error.contains("dictionary value 0 of codec matching"), "{error}");
    // The one value of the trellis goes into the scales.
    let (mut layer, _) = PIXELLinear::from_linear(&dense(32, 16), &codec("trellis:2:window=8"), 0).unwrap();
    let before = host(layer.weight.synthesize());
    layer.weight = layer.weight.map_dictionary(|values| values * 1.25);
    let packed = layer.weight.to_packed().unwrap();
    let expected: Vec<f32> = before.iter().map(|weight| 1.25 * weight).collect();
    let error = pixel_core::math::metrics::relative_error(&expected, packed.synthesize().as_slice());
    assert!(error < 1e-3, "{error}");
    // Scales may.
    let (mut layer, _) = PIXELLinear::from_linear(&dense(32, 16), &codec("uniform:4"), 0).unwrap();
    layer.weight = layer.weight.map_scales(|values| values * 1.5);
    assert!(layer.weight.to_packed().is_ok());
}

#[test]
fn layers_come_out_of_an_archive() {
    let folder = tempfile::tempdir().unwrap();
    let (source, target) = (folder.path().join("dense.safetensors"), folder.path().join("packed"));
    let linear = dense(64, 48);
    let bytes = |values: Vec<f32>| values.iter().flat_map(|v| v.to_le_bytes()).collect::<Vec<u8>>();
    let (weight, bias) = (host(linear.weight.val().transpose()), host(linear.bias.clone().unwrap().val()));
    let (weight_bytes, bias_bytes) = (bytes(weight.clone()), bytes(bias));
    let view =
        |shape: Vec<usize>, data| safetensors::tensor::TensorView::new(safetensors::Dtype::F32, shape, data).unwrap();
    let tensors = [
        ("fc.weight", view(vec![48, 64], &weight_bytes)),
        ("fc.bias", view(vec![48], &bias_bytes)),
        ("odd.weight", view(vec![48, 64], &weight_bytes)),
        ("odd.bias", view(vec![6, 8], &bias_bytes)),
    ];
    safetensors::serialize_to_file(tensors, None, &source).unwrap();
    let recipe = Recipe::from_toml("[default]\ncodec = 'uniform'\nbits = 8").unwrap().compile().unwrap();
    let checkpoint = Checkpoint::open(&source).unwrap();
    let plan = Plan::new(&checkpoint, &recipe).unwrap();
    compress_checkpoint(&checkpoint, &plan, &target, RunOptions::default(), &()).unwrap();

    let archive = Archive::open(&target).unwrap();
    let device = Device::flex();
    let layer = PIXELLinear::from_archive(&archive, "fc", &device).unwrap();
    let x = normal([3, 64]);
    assert!(distance(layer.forward(x.clone()), linear.forward(x.clone())) < 0.02);
    let table = PIXELEmbedding::from_archive(&archive, "fc", &device).unwrap();
    assert_eq!(table.weight.shape(), Shape::new(48, 64).unwrap());

    let missing = PIXELLinear::from_archive(&archive, "fd", &device).unwrap_err();
    assert!(matches!(missing, LayerError::Archive(_)) && missing.to_string().contains("fd.weight"), "{missing}");
    let odd = PIXELLinear::from_archive(&archive, "odd", &device).unwrap_err().to_string();
    assert!(odd.contains("odd.bias") && odd.contains("[6, 8]"), "{odd}");

    // One flipped bit anywhere in the codes is an error, not other weights.
    let file = std::fs::read_dir(&target)
        .unwrap()
        .map(|e| e.unwrap().path())
        .find(|p| p.extension().is_some_and(|e| e == "pixel"));
    let file = file.unwrap();
    let mut damaged = std::fs::read(&file).unwrap();
    let last = damaged.len() - 1;
    damaged[last] ^= 4;
    drop(archive);
    std::fs::write(&file, damaged).unwrap();
    let archive = Archive::open(&target).unwrap();
    let results = ["fc", "odd"].map(|name| PIXELLinear::from_archive(&archive, name, &device).is_err());
    assert!(results.contains(&true));
}
