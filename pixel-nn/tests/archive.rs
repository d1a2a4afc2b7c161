//! Modules as archives: from any form into any other that can hold it, by name.
#![cfg(feature = "flex")]

mod draws;

use burn::module::{Lora, Module, Param};
use burn::nn::conv::{Conv2d, Conv2dConfig};
use burn::nn::{
    BatchNorm, BatchNormConfig, Embedding, EmbeddingConfig, LayerNorm, LayerNormConfig, Linear, LinearConfig,
};
use burn::tensor::{Bool, DType, Device, Int, Tensor, TensorData};
use draws::{dense, normal};
use pixel_core::archive::Archive;
use pixel_core::{CodecSpec, CodingSpec, Encoder, FactorStorage, LowRank, LowRankSpec, Matrix, Shape};
use pixel_nn::{
    ArchiveStore, LayerError, LowRankParams, PIXELLinear, PIXELLinearConfig, Projection, ReplaceConfig,
    replace_linear_layers, replace_skeleton,
};
use tempfile::TempDir;

#[derive(Module, Debug)]
struct Net {
    embedding: Embedding,
    norm: LayerNorm,
    first: Linear,
    blocks: Vec<Projection>,
    last: PIXELLinear,
}

impl Net {
    fn new(codec: &str) -> Self {
        let device = Device::flex();
        Self {
            embedding: EmbeddingConfig::new(20, 32).init(&device),
            norm: LayerNormConfig::new(32).init(&device),
            first: dense(32, 48),
            blocks: vec![
                dense(48, 48).into(),
                PIXELLinear::from_linear(&dense(48, 40), &spec(codec), 3).unwrap().0.into(),
            ],
            last: PIXELLinear::from_linear(&dense(40, 24), &spec(codec), 5).unwrap().0,
        }
    }

    fn forward(&self, tokens: Tensor<2, Int>) -> Tensor<3> {
        let x = self.first.forward(self.norm.forward(self.embedding.forward(tokens)));
        self.last.forward(self.blocks.iter().fold(x, |x, block| block.forward(x)))
    }
}

const CODECS: [&str; 5] =
    ["trellis:3:window=8", "additive:3:beam=1", "lapped:2.5:beam=1", "matching:2:beam=1:learned=3", "uniform:4"];

fn spec(text: &str) -> CodecSpec {
    text.parse().unwrap()
}

fn tokens() -> Tensor<2, Int> {
    Tensor::from_data([[1, 5, 19, 0, 7]], &Device::flex())
}

fn host<const D: usize>(tensor: Tensor<D>) -> Vec<f32> {
    tensor.into_data().try_to_vec().unwrap()
}

fn store(dir: &TempDir) -> ArchiveStore {
    ArchiveStore::new(dir.path().join("model.safetensors"))
}

fn message<T: std::fmt::Debug>(result: Result<T, LayerError>) -> String {
    result.unwrap_err().to_string()
}

/// Products of matrices that lie otherwise, or of patterns, round otherwise.
#[track_caller]
fn close(found: Vec<f32>, expected: Vec<f32>) {
    let error = pixel_core::math::metrics::relative_error(&expected, &found);
    assert!(error < 1e-4, "{error}");
}

#[test]
fn a_model_comes_back_from_an_archive_as_it_was() {
    for text in CODECS {
        let dir = tempfile::tempdir().unwrap();
        let config = ReplaceConfig::new(spec(text)).with_embeddings(Some(spec("uniform:8"))).with_min_weights(1);
        let (model, _) = replace_linear_layers(Net::new(text), &config).unwrap();
        let expected = host(model.forward(tokens()));
        store(&dir).save(&model).unwrap();

        // Into the dense model, whose own patterns are of the same form.
        let (loaded, report) = store(&dir).load(Net::new(text)).unwrap();
        assert_eq!(host(loaded.forward(tokens())), expected, "{text}");
        assert_eq!(
            report.loaded,
            [
                "blocks.0.bias",
                "blocks.0.weight",
                "blocks.1.bias",
                "blocks.1.weight",
                "embedding.weight",
                "first.bias",
                "first.weight",
                "last.bias",
                "last.weight",
                "norm.beta",
                "norm.gamma"
            ]
        );
        assert!(report.missing.is_empty() && report.unused.is_empty());
        // Into what a configuration has made, and into a model that has been filled before.
        let skeleton = replace_skeleton(Net::new(text), &config).unwrap();
        let (loaded, _) = store(&dir).load(skeleton).unwrap();
        assert_eq!(host(loaded.forward(tokens())), expected, "{text}");
        let (loaded, _) = store(&dir).load(loaded).unwrap();
        assert_eq!(host(loaded.forward(tokens())), expected, "{text}");

        // And by layers.
        let archive = Archive::open(dir.path().join("model.safetensors")).unwrap();
        let x = normal([2, 48]);
        let block = Projection::from_archive(&archive, "blocks.0", &Device::flex()).unwrap();
        assert!(matches!(&block, Projection::Pixel(_)));
        close(host(block.forward(x.clone())), host(loaded.blocks[0].forward(x)));
    }
}

#[test]
fn dense_weights_lie_as_the_binary_has_them() {
    let dir = tempfile::tempdir().unwrap();
    let model = Net::new("uniform:4");
    store(&dir).save(&model).unwrap();
    let archive = Archive::open(dir.path().join("model.safetensors")).unwrap();
    assert_eq!(archive.kept_bytes("first.weight").unwrap().0.shape, [48, 32]);
    assert_eq!(archive.kept_bytes("embedding.weight").unwrap().0.shape, [20, 32]);
    let turned = host(model.first.weight.val().transpose());
    assert_eq!(archive.checkpoint().to_f32("first.weight").unwrap(), turned);
    let first = Projection::from_archive(&archive, "first", &Device::flex()).unwrap();
    let x = normal([3, 32]);
    close(host(first.forward(x.clone())), host(model.first.forward(x)));
    assert!(message(Projection::from_archive(&archive, "norm", &Device::flex())).contains("norm.weight"));
    let error = message(PIXELLinear::from_archive(&archive, "first", &Device::flex()));
    assert!(error.contains("\"first.weight\" is stored dense"), "{error}");
    let (loaded, _) = store(&dir).load(Net::new("uniform:4")).unwrap();
    close(host(loaded.forward(tokens())), host(model.forward(tokens())));
}

#[test]
fn other_kinds_of_tensors_come_back() {
    #[derive(Module, Debug)]
    struct Others {
        norm: BatchNorm,
        conv: Conv2d,
        half: Param<Tensor<2>>,
        wide: Param<Tensor<1>>,
        whole: Param<Tensor<1, Int>>,
        mask: Param<Tensor<2, Bool>>,
    }
    let device = Device::flex();
    let others = |value: f32| Others {
        norm: BatchNormConfig::new(4).init(&device),
        conv: Conv2dConfig::new([4, 8], [3, 3]).init(&device),
        half: Param::from_tensor((normal([3, 5]) * value).cast(DType::F16)),
        wide: Param::from_tensor((normal([3]) * value).cast(DType::F64)),
        whole: Param::initialized(Default::default(), Tensor::from_data([7 * value as i64, -3], &device)),
        mask: Param::initialized(Default::default(), Tensor::from_data([[value > 1.0, false]], &device)),
    };
    let dir = tempfile::tempdir().unwrap();
    let config = ReplaceConfig::new(spec("uniform:4")).with_convolutions(Some(spec("uniform:8"))).with_min_weights(1);
    let (model, report) = replace_linear_layers(others(2.0), &config).unwrap();
    assert_eq!(report.layers[0].name, "conv.weight");
    store(&dir).save(&model).unwrap();
    let (loaded, _) = store(&dir).load(others(1.0)).unwrap();
    assert_eq!(loaded.conv.weight.val().into_data(), model.conv.weight.val().into_data());
    assert_eq!(loaded.half.val().into_data(), model.half.val().into_data());
    assert_eq!(loaded.wide.val().into_data().convert::<f32>(), model.wide.val().into_data().convert::<f32>());
    assert_eq!(loaded.wide.dtype(), DType::F64);
    assert_eq!(loaded.whole.val().into_data(), TensorData::from([14i64, -3]).convert_dtype(loaded.whole.dtype()));
    assert_eq!(loaded.mask.val().into_data(), model.mask.val().into_data());
}

#[test]
fn parts_beside_the_codes_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let matrix = |m: usize, n: usize| Matrix::new(Shape::new(m, n).unwrap(), host(normal([m, n]))).unwrap();
    let layer = |storage| {
        let low_rank = LowRankSpec { rank: 3, storage };
        let request = CodingSpec::new(spec("trellis:2:window=8"))
            .with_rotation(Some(4))
            .with_low_rank(Some(low_rank))
            .with_protect(2);
        let part = LowRank { up: matrix(24, 3), down: matrix(3, 32) };
        let packed = Encoder::new(&request).with_low_rank(&part).encode(matrix(24, 32)).unwrap().0;
        PIXELLinear::from_packed(&packed, Some(vec![0.5; 24]), &Device::flex()).unwrap()
    };
    let x = normal([3, 32]);
    for storage in [FactorStorage::Int8, FactorStorage::F16] {
        let saved = layer(storage);
        store(&dir).with_overwrite(true).save(&saved).unwrap();
        let (loaded, _) = store(&dir).load(layer(storage)).unwrap();
        assert_eq!(host(loaded.forward(x.clone())), host(saved.forward(x.clone())), "{storage}");
        let archive = Archive::open(dir.path().join("model.safetensors")).unwrap();
        assert_eq!(archive.packed("weight").unwrap().header(), saved.weight.header());
    }
    // One whose part the user has put there.
    let part = LowRankParams { down: Param::from_tensor(normal([32, 2])), up: Param::from_tensor(normal([2, 24])) };
    let own = layer(FactorStorage::Int8).with_low_rank(part);
    store(&dir).with_overwrite(true).save(&own).unwrap();
    let error = message(store(&dir).load(layer(FactorStorage::Int8)));
    assert_eq!(
        error,
        "parameter \"weight\": the archive has low_rank.down of shape [32, 2], the model takes low_rank.down of shape \
         [32, 3]"
    );
    let plain = PIXELLinearConfig::new(32, 24).with_codec(spec("trellis:2:window=8")).with_seed(4);
    let error = message(store(&dir).load(plain.init(&Device::flex())));
    assert_eq!(error, "parameter \"weight\": the archive has protected columns, the model takes no protected.values");
}

#[test]
fn names_may_change_on_both_ways() {
    let dir = tempfile::tempdir().unwrap();
    let model = Net::new("uniform:4");
    let saving = store(&dir).with_key_remapping("^blocks\\.(\\d+)", "layers.$1.fc").unwrap();
    let saving = saving.with_key_remapping("gamma$", "weight").unwrap();
    saving.save(&model).unwrap();
    let archive = Archive::open(dir.path().join("model.safetensors")).unwrap();
    assert!(archive.entries().contains_key("layers.1.fc.weight") && archive.kept().contains_key("norm.weight"));
    let error = message(store(&dir).load(Net::new("uniform:4")));
    assert_eq!(
        error,
        "the archive does not have blocks.0.bias, blocks.0.weight, blocks.1.bias, blocks.1.weight, norm.gamma; \
         `with_allow_partial` leaves them as they are"
    );
    let (_, report) = store(&dir).with_allow_partial(true).load(Net::new("uniform:4")).unwrap();
    assert_eq!((report.missing.len(), report.unused.len()), (5, 5));
    let loading = store(&dir).with_key_remapping(r"^layers\.(\d+)\.fc", "blocks.$1").unwrap();
    let loading = loading.with_key_remapping(r"norm\.weight", "norm.gamma").unwrap();
    let (loaded, _) = loading.load(Net::new("uniform:4")).unwrap();
    close(host(loaded.forward(tokens())), host(model.forward(tokens())));
    assert!(message(store(&dir).with_key_remapping("(", "")).starts_with("expression \"(\""));
    let joined = store(&dir).with_overwrite(true).with_key_remapping("weight|bias", "tensor").unwrap();
    assert!(message(joined.save(&model)).contains("two tensors have the name "));
    assert!(message(store(&dir).save(&model)).contains("exists"));
}

#[test]
fn what_does_not_fit_is_named() {
    let dir = tempfile::tempdir().unwrap();
    store(&dir).save(&Net::new("uniform:4")).unwrap();
    let error = message(store(&dir).load(Net::new("uniform:8")));
    assert!(error.starts_with("parameter \"blocks.1.weight\": the archive has codes of 40x48 uniform:4"), "{error}");
    assert!(error.contains("the model takes codes of 40x48 uniform:8"), "{error}");
    let wider = Net { first: dense(32, 47), ..Net::new("uniform:4") };
    let error = message(store(&dir).load(wider));
    assert!(
        error.contains("\"first.bias\": the archive has values of shape [48]") || error.contains("\"first.weight\"")
    );
    // Dense in the archive, patterns in the model.
    let config = ReplaceConfig::new(spec("uniform:4")).with_include(vec!["first".into()]);
    let (packed, _) = replace_linear_layers(Net::new("uniform:4"), &config).unwrap();
    let error = message(store(&dir).load(packed.clone()));
    assert_eq!(
        error,
        "parameter \"first.weight\": the archive has a dense tensor, the model takes codes; load it into the dense \
         model"
    );
    // Patterns in the archive, a dense matrix of another shape in the model.
    store(&dir).with_overwrite(true).save(&packed).unwrap();
    let wider = Net { first: dense(31, 48), ..Net::new("uniform:4") };
    let error = message(store(&dir).load(wider));
    assert_eq!(
        error,
        "parameter \"first.weight\": the archive has codes of a matrix 48×32, the model takes values of shape [31, 48]"
    );
    let adapted = LinearConfig::new(64, 64).init(&Device::flex()).apply_lora(Lora::new(2, 4.0));
    let error = message(store(&dir).with_overwrite(true).save(&adapted));
    assert!(error.starts_with("parameter \"weight\": \"lora\" is attached to it"), "{error}");
}
