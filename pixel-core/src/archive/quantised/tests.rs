//! Weights of every kind, packed as the tools that write them document it, and read again.

use super::*;
use crate::math::rotation::split_mix;
use half::f16;
use safetensors::tensor::{Dtype, TensorView, serialize};
use serde_json::{Value, json};

/// Outputs and inputs of the weights, and the inputs of a group.
const M: usize = 16;
const N: usize = 96;
const GROUP: usize = 32;

/// `count` numbers below `limit`.
fn draws(seed: u64, count: usize, limit: u32) -> Vec<u32> {
    (0..count as u64).map(|i| (split_mix(seed, i) >> 33) as u32 % limit).collect()
}

/// `count` scales that F16 holds.
fn scales(seed: u64, count: usize) -> Vec<f32> {
    draws(seed, count, 1000).into_iter().map(|i| f16::from_f32(0.001 + i as f32 / 3e4).to_f32()).collect()
}

/// Numbers of `bits` bits as a string of bits, in words.
fn packed(numbers: impl IntoIterator<Item = u32>, bits: usize) -> Vec<u32> {
    let mut words = Vec::new();
    for (i, number) in numbers.into_iter().enumerate() {
        words.resize(((i + 1) * bits).div_ceil(32), 0);
        for bit in (0..bits).filter(|bit| number >> bit & 1 == 1) {
            words[(i * bits + bit) / 32] |= 1 << ((i * bits + bit) % 32);
        }
    }
    words
}

/// `[rows, cols]` as `[cols, rows]`.
fn transposed<T: Copy>(values: &[T], cols: usize) -> Vec<T> {
    (0..cols).flat_map(|col| values.chunks_exact(cols).map(move |row| row[col])).collect()
}

/// A tensor to be stored.
type Stored = (&'static str, Dtype, Vec<usize>, Vec<u8>);

/// What is done to tensors before they are stored.
type Change<'a> = &'a dyn Fn(&mut Vec<Stored>);

fn words(name: &'static str, shape: [usize; 2], words: &[u32]) -> Stored {
    (name, Dtype::I32, shape.to_vec(), words.iter().flat_map(|word| word.to_le_bytes()).collect())
}

fn halves(name: &'static str, shape: &[usize], values: &[f32]) -> Stored {
    let bytes = values.iter().flat_map(|&value| f16::from_f32(value).to_le_bytes()).collect();
    (name, Dtype::F16, shape.to_vec(), bytes)
}

fn singles(name: &'static str, shape: &[usize], values: &[f32]) -> Stored {
    (name, Dtype::F32, shape.to_vec(), values.iter().flat_map(|value| value.to_le_bytes()).collect())
}

/// Reads the weight of the layer `a` from a checkpoint of `tensors`.
fn read(tensors: &[Stored], quantisation: Value) -> Result<Vec<f32>, String> {
    let dir = tempfile::tempdir().unwrap();
    let views = tensors.iter().map(|(name, dtype, shape, bytes)| {
        (format!("a.{name}"), TensorView::new(*dtype, shape.clone(), bytes).unwrap())
    });
    std::fs::write(dir.path().join("model.safetensors"), serialize(views, None).unwrap()).unwrap();
    std::fs::write(dir.path().join("config.json"), json!({"quantization_config": quantisation}).to_string()).unwrap();
    let checkpoint = Checkpoint::open(dir.path()).unwrap();
    let text = |error: ArchiveError| match std::error::Error::source(&error) {
        None => error.to_string(),
        Some(source) => format!("{error}: {source}"),
    };
    let quantised = QuantisedCheckpoint::of(&checkpoint).map_err(text)?;
    assert_eq!(quantised.others().count(), 0);
    let weight = quantised.weight("a.weight").unwrap();
    let [m, n] = weight.shape();
    let mut values = vec![0.0; m * n];
    // In two parts, of which the second begins inside.
    let cut = m.min(3);
    let (first, second) = values.split_at_mut(cut * n);
    weight.read_rows(0..cut, first);
    weight.read_rows(cut..m, second);
    Ok(values)
}

/// What `codes`, `[M, N]`, stand for, with the zero and the scale that `group` says.
fn expected(codes: &[u32], group: impl Fn(usize, usize) -> (f32, f32)) -> Vec<f32> {
    let value = |(at, &code): (usize, &u32)| {
        let (zero, scale) = group(at / N, at % N);
        (code as f32 - zero) * scale
    };
    codes.iter().enumerate().map(value).collect()
}

/// The tensors of GPTQ for `codes`, zeros and scales of `[N / GROUP, M]`.
fn gptq(codes: &[u32], zeros: &[u32], scales: &[f32], of_input: &[u32], bits: usize) -> Vec<Stored> {
    let columns: Vec<u32> = codes.chunks_exact(N).flat_map(|row| packed(row.iter().copied(), bits)).collect();
    let zeros: Vec<u32> = zeros.chunks_exact(M).flat_map(|row| packed(row.iter().copied(), bits)).collect();
    let height = N * bits / 32;
    vec![
        words("qweight", [height, M], &transposed(&columns, height)),
        words("qzeros", [N / GROUP, (M * bits).div_ceil(32)], &zeros),
        halves("scales", &[N / GROUP, M], scales),
        ("g_idx", Dtype::I32, vec![N], of_input.iter().flat_map(|group| group.to_le_bytes()).collect()),
    ]
}

#[test]
fn gptq_at_every_rate_with_groups_in_any_order() {
    for bits in [2, 4, 8] {
        let limit = 1 << bits;
        let (codes, zeros) = (draws(1, M * N, limit), draws(2, N / GROUP * M, limit));
        let scales = scales(3, N / GROUP * M);
        let of_input: Vec<u32> = (0..N as u32).map(|j| j * 7 % 3).collect();
        for (format, offset) in [("gptq", 1), ("gptq_v2", 0)] {
            let settings = json!({"quant_method": "gptq", "bits": bits, "checkpoint_format": format});
            let found = read(&gptq(&codes, &zeros, &scales, &of_input, bits), settings).unwrap();
            let group = |i: usize, j: usize| {
                let at = of_input[j] as usize * M + i;
                (((zeros[at] + offset) % limit) as f32, scales[at])
            };
            assert_eq!(found, expected(&codes, group), "{bits} bits, {format}");
        }
    }
}

/// Three bits: codes in two words, and outputs that fill whole words of zeros.
#[test]
fn gptq_at_three_bits() {
    const OUTPUTS: usize = 2 * M;
    let (codes, zeros) = (draws(4, OUTPUTS * N, 8), draws(5, OUTPUTS, 7));
    let scales = scales(6, OUTPUTS);
    let columns: Vec<u32> = codes.chunks_exact(N).flat_map(|row| packed(row.iter().copied(), 3)).collect();
    let height = N * 3 / 32;
    let tensors = [
        words("qweight", [height, OUTPUTS], &transposed(&columns, height)),
        words("qzeros", [1, 3], &packed(zeros.iter().copied(), 3)),
        halves("scales", &[1, OUTPUTS], &scales),
    ];
    let found = read(&tensors, json!({"quant_method": "gptq", "bits": 3, "group_size": -1})).unwrap();
    assert_eq!(found, expected(&codes, |i, _| (zeros[i] as f32 + 1.0, scales[i])));
}

#[test]
fn awq_interleaves_the_outputs_of_a_word() {
    let (codes, zeros) = (draws(7, M * N, 16), draws(8, N / GROUP * M, 16));
    let scales = scales(9, N / GROUP * M);
    let interleaved = |row: &[u32]| {
        let of_word = |eight: &[u32]| [0, 2, 4, 6, 1, 3, 5, 7].map(|place| eight[place]);
        packed(row.chunks_exact(8).flat_map(of_word).collect::<Vec<_>>(), 4)
    };
    let by_input = transposed(&codes, N);
    let tensors = [
        words("qweight", [N, M / 8], &by_input.chunks_exact(M).flat_map(interleaved).collect::<Vec<_>>()),
        words("qzeros", [N / GROUP, M / 8], &zeros.chunks_exact(M).flat_map(interleaved).collect::<Vec<_>>()),
        halves("scales", &[N / GROUP, M], &scales),
    ];
    let settings = |version| json!({"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": version});
    let group = |i: usize, j: usize| (zeros[j / GROUP * M + i] as f32, scales[j / GROUP * M + i]);
    assert_eq!(read(&tensors, settings("gemm")).unwrap(), expected(&codes, group));
    let error = read(&tensors, settings("gemv")).unwrap_err();
    assert!(error.contains("a.qweight") && error.contains("the layout \"gemv\" is not read"), "{error}");
}

#[test]
fn compressed_tensors_packs_rows_with_and_without_zeros() {
    for (bits, has_zeros) in [(4, false), (4, true), (8, true), (3, true), (2, false)] {
        let groups = N / GROUP;
        let (codes, zeros) = (draws(10, M * N, 1 << bits), draws(11, M * groups, 1 << bits));
        let scales = scales(12, M * groups);
        let rows: Vec<u32> = codes.chunks_exact(N).flat_map(|row| packed(row.iter().copied(), bits)).collect();
        let shape: Vec<u8> = [M as i64, N as i64].into_iter().flat_map(i64::to_le_bytes).collect();
        let mut tensors = vec![
            words("weight_packed", [M, N * bits / 32], &rows),
            ("weight_shape", Dtype::I64, vec![2], shape),
            halves("weight_scale", &[M, groups], &scales),
        ];
        if has_zeros {
            let height = (M * bits).div_ceil(32);
            let columns = transposed(&zeros, groups);
            let down: Vec<u32> = columns.chunks_exact(M).flat_map(|column| packed(column.to_vec(), bits)).collect();
            tensors.push(words("weight_zero_point", [height, groups], &transposed(&down, height)));
        }
        let weights = json!({"num_bits": bits, "group_size": GROUP, "type": "int"});
        let settings = json!({"format": "pack-quantized", "config_groups": {"group_0": {"weights": weights}}});
        let group = |i: usize, j: usize| {
            let at = i * groups + j / GROUP;
            (if has_zeros { zeros[at] as f32 } else { (1 << (bits - 1)) as f32 }, scales[at])
        };
        assert_eq!(read(&tensors, settings).unwrap(), expected(&codes, group), "{bits} bits, zeros: {has_zeros}");
    }
}

#[test]
fn bytes_have_scales_for_all_for_rows_and_for_groups() {
    let codes = draws(13, M * N, 256);
    let signed = |code: u32| f32::from((code as u8).cast_signed());
    let bytes: Vec<u8> = codes.iter().map(|&code| code as u8).collect();
    let zeros: Vec<u8> = draws(14, M, 256).into_iter().map(|zero| zero as u8).collect();
    for shape in [vec![], vec![1], vec![M], vec![M, 1], vec![M, N / GROUP]] {
        let count = shape.iter().product();
        let scales = scales(15, count);
        let mut tensors =
            vec![("weight", Dtype::I8, vec![M, N], bytes.clone()), singles("weight_scale", &shape, &scales)];
        let at = |i: usize, j: usize| if count == 1 { 0 } else { i * (count / M) + j * (count / M) / N };
        let value = |place: usize, zero: f32| (signed(codes[place]) - zero) * scales[at(place / N, place % N)];
        let settings = json!({"quant_method": "compressed-tensors", "format": "int-quantized"});
        let found = read(&tensors, settings.clone()).unwrap();
        assert_eq!(found, (0..M * N).map(|place| value(place, 0.0)).collect::<Vec<_>>(), "{shape:?}");
        if shape == [M, 1] {
            tensors.push(("weight_zero_point", Dtype::I8, shape.clone(), zeros.clone()));
            let found = read(&tensors, settings).unwrap();
            let zero = |place: usize| f32::from(zeros[place / N].cast_signed());
            assert_eq!(found, (0..M * N).map(|place| value(place, zero(place))).collect::<Vec<_>>());
        }
    }
}

#[test]
fn floats_of_eight_bits_have_scales_for_blocks() {
    let bytes: Vec<u8> = draws(16, M * N, 0x7f).into_iter().map(|code| code as u8).collect();
    let table = float8::Float8::E4M3.table();
    // Blocks that do not divide the weight.
    let (block, grid) = ([10, 40], [2, 3]);
    let scales = scales(17, grid[0] * grid[1]);
    let tensors = [("weight", Dtype::F8_E4M3, vec![M, N], bytes.clone()), singles("weight_scale_inv", &grid, &scales)];
    let found = read(&tensors, json!({"quant_method": "fp8", "weight_block_size": block})).unwrap();
    let value = |at: usize| table[usize::from(bytes[at])] * scales[at / N / block[0] * grid[1] + at % N / block[1]];
    assert_eq!(found, (0..M * N).map(value).collect::<Vec<_>>());
    // One row, whose last block is short.
    let row =
        [("weight", Dtype::F8_E4M3, vec![1, N], bytes[..N].to_vec()), singles("weight_scale", &[1, 2], &scales[..2])];
    let found = read(&row, json!({"quant_method": "fp8", "weight_block_size": [64, 64]})).unwrap();
    assert_eq!(found, (0..N).map(|j| table[usize::from(bytes[j])] * scales[j / 64]).collect::<Vec<_>>());
    // Powers of two as scales.
    let powers = ("weight_scale", Dtype::F8_E8M0, vec![M, 1], vec![127 + 3; M]);
    let found = read(&[("weight", Dtype::F8_E4M3, vec![M, N], bytes.clone()), powers], json!({})).unwrap();
    assert_eq!(found, bytes.iter().map(|&byte| 8.0 * table[usize::from(byte)]).collect::<Vec<_>>());
}

#[test]
fn parts_that_do_not_fit_are_named() {
    let (codes, zeros) = (draws(18, M * N, 16), draws(19, N / GROUP * M, 15));
    let scales = scales(20, N / GROUP * M);
    let of_input: Vec<u32> = (0..N).map(|j| (j / GROUP) as u32).collect();
    let whole = gptq(&codes, &zeros, &scales, &of_input, 4);
    let settings = json!({"quant_method": "gptq", "bits": 4});
    let error = |change: Change<'_>| {
        let mut tensors = whole.clone();
        change(&mut tensors);
        read(&tensors, settings.clone()).unwrap_err()
    };
    let cases: [(Change<'_>, &str); 6] = [
        (&|t| drop(t.remove(1)), "there is no tensor \"a.qzeros\""),
        (&|t| t[2].1 = Dtype::I16, "tensor \"a.scales\" is I16, not a float type"),
        (&|t| t[3].3[4 * 5] = 9, "tensor \"a.g_idx\" puts input 5 into group 9, and there are 3"),
        (&|t| t[0] = words("qweight", [8, M], &[0; 8 * M]), "tensor \"a.g_idx\" has shape [96], which is not [64]"),
        (&|t| t[1] = words("qzeros", [3, 3], &[0; 9]), "zeros of 4 bits for 16 outputs"),
        (&|t| t[2] = halves("scales", &[2, M], &scales[..2 * M]), "tensor \"a.qzeros\" has shape [3, 2], which is not"),
    ];
    for (change, said) in cases {
        let error = error(change);
        assert!(error.contains("the quantised weight \"a.qweight\" cannot be read") && error.contains(said), "{error}");
    }
    let blocks =
        [("weight", Dtype::F8_E4M3, vec![M, N], vec![0; M * N]), singles("weight_scale_inv", &[3, 3], &scales[..9])];
    let error = read(&blocks, json!({"quant_method": "fp8"})).unwrap_err();
    assert!(error.contains("a scale for all, each of 16 rows, or each block of 128 × 128"), "{error}");
}

#[test]
fn what_is_not_read_is_refused_as_a_whole() {
    let twice = [("weight", Dtype::I8, vec![1, 1], vec![0]), words("weight_packed", [1, 1], &[0])];
    let error = read(&twice, json!({})).unwrap_err();
    assert!(error.contains("holds a weight twice, as \"a.weight\" and as \"a.weight_packed\""), "{error}");
    let absmax = ("weight.absmax", Dtype::U8, vec![4], vec![0; 4]);
    let error = read(&[absmax], json!({"quant_method": "bitsandbytes"})).unwrap_err();
    assert!(error.contains("of \"bitsandbytes\"") && error.contains("start from the model in F16"), "{error}");
    let stacked = ("experts", Dtype::F8_E4M3, vec![2, 2, 2], vec![0; 8]);
    let bytes = ("weight", Dtype::I8, vec![1, 1], vec![0]);
    let error = read(&[stacked, bytes, singles("weight_scale", &[], &[1.0])], json!({})).unwrap_err();
    assert!(error.contains("tensor \"a.experts\""), "{error}");
}
