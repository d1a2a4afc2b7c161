//! What a replaced model takes, in memory and in records.

use super::*;

fn bytes_of<M: Module>(model: &M) -> usize {
    model.clone().into_record().into_bytes().unwrap().len()
}

#[test]
fn a_report_counts_the_bytes_that_are_held() {
    /// Whether the walk is inside something attached, and the bytes of the parameters there.
    #[derive(Default)]
    struct Held(bool, usize);
    impl ModuleVisitor for Held {
        fn enter_module(&mut self, _: &str, container: &str) {
            self.0 |= container == "Reparameterization";
        }
        fn visit_float<const D: usize>(&mut self, param: &Param<Tensor<D>>) {
            self.1 += if self.0 { 4 * param.shape().num_elements() } else { 0 };
        }
        fn visit_int<const D: usize>(&mut self, param: &Param<Tensor<D, Int>>) {
            self.1 += 4 * param.shape().num_elements();
        }
    }
    let device = Device::flex();
    for codec in ["uniform:4", "trellis:2:window=8", "additive:2:beam=1"] {
        let dense = Linear { bias: None, ..linear(96, 256, &device) };
        let (small, report) = replace_linear_layers(dense.clone(), &config(codec)).unwrap();
        let layer = &report.layers[0];
        let mut held = Held::default();
        small.visit(&mut held);
        // The tables of the rotation are no parameters: signs, a bit each, and the odd part of 96 = 3·32.
        let tables = if codec.starts_with("uniform") { 0 } else { 4 * (96 / 32 + 3) };
        assert_eq!(held.1 + tables, layer.device_bytes, "{codec}");
        let packed = pattern(&small).weight.to_packed().unwrap();
        assert_eq!(layer.stored_bytes, packed.num_bytes());
        assert_eq!(layer.bits_per_weight, 8.0 * packed.num_bytes() as f64 / (96.0 * 256.0));
        assert_eq!((layer.original_bytes, report.original_bytes()), (4 * 96 * 256, 4 * 96 * 256));
        assert_eq!(report.compression_ratio(), layer.original_bytes as f64 / layer.stored_bytes as f64);
        let error = distance(small.weight.val(), dense.weight.val());
        assert!(abs_diff_eq!(error / layer.relative_error, 1.0, epsilon = 1e-3), "{error} {}", layer.relative_error);
        assert_eq!(layer.relative_error, report.relative_error());
    }
}

#[test]
fn a_record_shrinks_by_what_the_weights_lost() {
    let device = Device::flex();
    let dense = linear(256, 512, &device);
    let (small, report) = replace_linear_layers(dense.clone(), &config("trellis:2:window=8")).unwrap();
    let (before, after) = (bytes_of(&dense), bytes_of(&small));
    let saved = report.original_bytes() - report.device_bytes();
    println!("record {before} -> {after} bytes; {report}");
    // Names and headers of four tensors more, and the alignment of their contents.
    assert!(after < before - saved + 2048, "{before} {after} {saved}");
    assert!(after > before - saved - 2048, "{before} {after} {saved}");
}

#[test]
fn a_record_reloads_without_a_change() {
    let device = Device::flex();
    for codec in ["uniform:4", "trellis:2:window=8", "additive:2:beam=1"] {
        let config = config(codec).with_embeddings(Some(spec("uniform:8"))).with_seed(5);
        let (small, _) = replace_linear_layers(Net::new(&device), &config).unwrap();
        let expected = floats(small.forward(tokens(&device)));
        let fresh = || replace_skeleton(Net::lazy(&device), &config).unwrap();
        assert_ne!(floats(fresh().forward(tokens(&device))), expected);
        let loaded = reload(small.clone(), fresh());
        assert_eq!(floats(loaded.forward(tokens(&device))), expected, "{codec}, from bytes");
        let folder = tempfile::tempdir().unwrap();
        small.save_file(folder.path().join("net.bpk")).unwrap();
        let loaded = fresh().load_file(folder.path().join("net.bpk"));
        assert_eq!(floats(loaded.forward(tokens(&device))), expected, "{codec}, from a file");
        assert_eq!(replaced_parameters(&loaded).len(), 8);
    }
}

#[test]
fn a_record_of_another_configuration_is_refused() {
    let device = Device::flex();
    let (small, _) = replace_linear_layers(linear(64, 64, &device), &config("uniform:4")).unwrap();
    let record = small.into_record();
    for other in [linear(64, 64, &device), replace_skeleton(linear(64, 64, &device), &config("uniform:2")).unwrap()] {
        assert!(other.try_load_record(record.clone()).is_err());
    }
}

#[test]
fn a_configuration_survives_its_file() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("replace.json");
    let config = config("trellis:2:window=8").with_rule("a", spec("uniform:4")).with_seed(9).with_min_weights(7);
    config.save(&file).unwrap();
    let loaded = ReplaceConfig::load(&file).unwrap();
    assert_eq!(format!("{loaded:?}"), format!("{config:?}"));
    std::fs::write(&file, r#"{ "codec": { "codec": "trellis", "bits": 2 }, "sead": 3 }"#).unwrap();
    assert!(ReplaceConfig::load(&file).is_err());
    std::fs::write(&file, r#"{ "codec": { "codec": "trellis", "bits": 2 } }"#).unwrap();
    assert_eq!(ReplaceConfig::load(&file).unwrap().min_weights, 1024);
}
