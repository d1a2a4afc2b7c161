//! Products with nibbles by tables: for each nibble of a row the sixteen values that it can add to a sum, made once for
//! all rows and looked up by each.
//!
//! A cube has the tables of a run of fields in shared memory. The units of a line, a plane where its size is known, lie
//! side by side over fields: each loads 16 bytes, a field of the 32 rows of a strip, so that a line reads without a
//! gap; it looks up 32 values in its own table and adds them to 32 sums. Entry `i` of the tables of a line lies in
//! `[i][unit]`: no two units of a line ever want the same bank of the memory. The sums of a strip are added up across
//! the line when all fields of the cube are done.
//!
//! Fields of a row are shared out among cubes (*slices*) where there are too few rows to give work to the device; what
//! follows the product adds the slices up. Weights of one input that are read alike share a launch: their strips follow
//! one another, and a cube has strips of one of them.

mod schedule;

use super::Weight;
use super::machine::{Machine, Reduction};
use crate::codec::CodecLayout;
use crate::codec::nibble::{NibbleLayout, PATTERNS, STRIP};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;
use schedule::{CHUNK, Schedule, Stack};

/// A field of the 32 rows of a strip, of a weight out of three.
#[cube]
fn field_of(
    first: &Tensor<Vector<u32, Const<4>>>,
    second: &Tensor<Vector<u32, Const<4>>>,
    third: &Tensor<Vector<u32, Const<4>>>,
    weight: usize,
    at: usize,
    #[comptime] len: usize,
) -> Vector<u32, Const<4>> {
    if comptime!(len == 1) {
        first[at]
    } else if comptime!(len == 2) {
        if weight == 0 { first[at] } else { second[at] }
    } else {
        if weight == 0 { first[at] } else { if weight == 1 { second[at] } else { third[at] } }
    }
}

/// The scale of a row of a weight out of three.
#[cube]
fn scale_of(
    first: &Tensor<f32>,
    second: &Tensor<f32>,
    third: &Tensor<f32>,
    weight: usize,
    row: usize,
    #[comptime] len: usize,
) -> f32 {
    if comptime!(len == 1) {
        first[row]
    } else if comptime!(len == 2) {
        if weight == 0 { first[row] } else { second[row] }
    } else {
        if weight == 0 { first[row] } else { if weight == 1 { second[row] } else { third[row] } }
    }
}

#[cube(launch_unchecked)]
fn lookup_kernel<X: Float>(
    x: &Tensor<X>,
    codes: &Tensor<Vector<u32, Const<4>>>,
    second_codes: &Tensor<Vector<u32, Const<4>>>,
    third_codes: &Tensor<Vector<u32, Const<4>>>,
    scales: &Tensor<f32>,
    second_scales: &Tensor<f32>,
    third_scales: &Tensor<f32>,
    dictionary: &Tensor<Vector<f32, Const<4>>>,
    second_dictionary: &Tensor<Vector<f32, Const<4>>>,
    third_dictionary: &Tensor<Vector<f32, Const<4>>>,
    out: &mut Tensor<f32>,
    batch: usize,
    stride: usize,
    first_column: usize,
    #[comptime] layout: NibbleLayout,
    #[comptime] stack: Stack,
    #[comptime] plan: Schedule,
    #[define(X)] _x_type: ElemType,
) {
    let (width, lines) = comptime!((plan.width, plan.lines));
    let (slices, blocks) = comptime!((plan.slices(&layout), plan.blocks(&stack)));
    let (len, groups) = comptime!((stack.len, plan.groups()));
    let strip_vectors = comptime!(layout.strip_words() / 4);
    let table_len = comptime!(plan.fields * PATTERNS);
    let mut tables = Shared::<[f32]>::new_slice(comptime!(table_len * plan.batch));
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(plan.scratch()));
    let (unit, line) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);

    // Cubes beyond the last work on it again and write nothing, so that all reach every barrier.
    let count = slices * blocks * ((batch + comptime!(plan.batch - 1)) / plan.batch);
    let is_inside = CUBE_POS < count;
    let cube = min(CUBE_POS, count - 1);
    let slice = cube % slices;
    let mut block = cube / slices % blocks;
    let mut weight = comptime!(0usize).runtime();
    let mut d_output = comptime!(stack.rows[0]).runtime();
    let mut first_column = first_column;
    #[unroll]
    for i in 1..len {
        if block >= comptime!(plan.blocks_before(&stack, i) - plan.blocks_before(&stack, i - 1)) && weight == i - 1 {
            block -= comptime!(plan.blocks_before(&stack, i) - plan.blocks_before(&stack, i - 1));
            weight = comptime!(i).runtime();
            d_output = comptime!(stack.rows[i]).runtime();
            first_column += comptime!(stack.rows[i - 1]);
        }
    }
    let strips = (d_output + comptime!(STRIP - 1)) / STRIP;
    let first_row = cube / (slices * blocks) * plan.batch;
    let first_field = slice * plan.fields;

    if weight == 0 {
        make_tables::<X>(x, dictionary, &mut tables, first_row, first_field, batch, layout, plan);
    }
    if comptime!(len > 1) {
        let is_second = weight == 1;
        if is_second {
            make_tables::<X>(x, second_dictionary, &mut tables, first_row, first_field, batch, layout, plan);
        }
    }
    if comptime!(len > 2) {
        let is_third = weight == 2;
        if is_third {
            make_tables::<X>(x, third_dictionary, &mut tables, first_row, first_field, batch, layout, plan);
        }
    }
    sync_cube();

    for round in 0..plan.rounds {
        let strip = (block * plan.rounds + round) * lines + line;
        let start = min(strip, strips - 1) * strip_vectors;
        let mut sums = Array::<f32>::new(comptime!(plan.batch * STRIP));
        #[unroll]
        for i in 0..comptime!(plan.batch * STRIP) {
            sums[i] = 0.0f32;
        }
        // A field beyond the last has a table of zeros: any code will do.
        let at = start + min(first_field + unit, comptime!(strip_vectors - 1));
        let mut words = field_of(codes, second_codes, third_codes, weight, at, len);
        #[unroll(groups <= 4)]
        for group in 0..groups {
            // What comes next is on its way while this is looked up.
            let field = first_field + (group + 1) * width + unit;
            let at = start + min(field, comptime!(strip_vectors - 1));
            let next = field_of(codes, second_codes, third_codes, weight, at, len);
            let table = (group * comptime!(PATTERNS * width) + unit) * 4;
            #[unroll]
            for w in 0..4usize {
                let word = words.extract(w);
                #[unroll]
                for n in 0..8usize {
                    // Nibbles of a byte are rows 16 apart.
                    let row = comptime!(w * 4 + n / 2 + n % 2 * 16);
                    // Counted in bytes, and divided: what is left of both is that no address is multiplied.
                    let entry = (table | (place(word, n, comptime!(4 * width)) as usize)) / 4;
                    #[unroll]
                    for b in 0..plan.batch {
                        sums[comptime!(b * STRIP + row)] += tables[comptime!(b * table_len) + entry];
                    }
                }
            }
            words = next;
        }
        #[unroll]
        for b in 0..plan.batch {
            let at = (slice * batch + first_row + b) * stride + first_column;
            let is_written = is_inside && strip < strips && first_row + b < batch;
            if comptime!(plan.reduction == Reduction::Plane) {
                add_up_plane(&mut sums, comptime!(b * STRIP), width);
                let kept = comptime!(if width < STRIP { STRIP / width } else { 1 });
                #[unroll]
                for i in 0..kept {
                    let row = strip * STRIP + unit * STRIP / width + i;
                    // In a plane of 64 units two have the sum of a row.
                    let is_first = unit * STRIP % width < STRIP;
                    if is_written && is_first && row < d_output {
                        let scale = scale_of(scales, second_scales, third_scales, weight, row, len);
                        out[at + row] = sums[comptime!(b * STRIP + i)] * scale;
                    }
                }
            } else {
                #[unroll]
                for chunk in 0..comptime!(STRIP / CHUNK) {
                    #[unroll]
                    for i in 0..CHUNK {
                        scratch[(line * CHUNK + i) * comptime!(width + 1) + unit] =
                            sums[comptime!(b * STRIP + chunk * CHUNK + i)];
                    }
                    sync_cube();
                    let row = strip * STRIP + comptime!(chunk * CHUNK) + unit;
                    if unit < CHUNK {
                        let mut sum = 0.0f32;
                        for i in 0..width {
                            sum += scratch[(line * CHUNK + unit) * comptime!(width + 1) + i];
                        }
                        if is_written && row < d_output {
                            out[at + row] = sum * scale_of(scales, second_scales, third_scales, weight, row, len);
                        }
                    }
                    sync_cube();
                }
            }
        }
    }
}

/// Nibble `n` of `word` times `width`, a power of two.
#[cube]
fn place(word: u32, #[comptime] n: usize, #[comptime] width: usize) -> u32 {
    let (from, to) = comptime!((4 * n as u32, width.trailing_zeros()));
    let moved = if comptime!(from >= to) { word >> comptime!(from - to) } else { word << comptime!(to - from) };
    moved & comptime!(15 * width as u32)
}

/// The tables of the cube's fields: entry `i` of field `f` is `Σ_j x[start(f) + j] · D[f mod P][i][j]`.
#[cube]
fn make_tables<X: Float>(
    x: &Tensor<X>,
    dictionary: &Tensor<Vector<f32, Const<4>>>,
    tables: &mut Shared<[f32]>,
    first_row: usize,
    first_field: usize,
    batch: usize,
    #[comptime] layout: NibbleLayout,
    #[comptime] plan: Schedule,
) {
    let (width, units) = comptime!((plan.width, plan.width * plan.lines));
    let (span, period) = comptime!((layout.span(), layout.period()));
    let n = comptime!(layout.shape.d_input());
    let table_len = comptime!(plan.fields * PATTERNS);
    let mut window = Array::<f32>::new(span);
    // Units side by side take fields of one sub-dictionary, so that all read the same pattern.
    let share = comptime!(plan.fields.div_ceil(period));
    let turns = comptime!((share * period).div_ceil(units));
    #[unroll]
    for b in 0..plan.batch {
        let start = min(first_row + b, batch - 1) * n;
        for turn in 0..turns {
            let at = turn * units + UNIT_POS as usize;
            let part = at / share;
            let local = (part + period - first_field % period) % period + at % share * period;
            if part < period && local < plan.fields {
                let column = first_column_of(first_field + local, layout);
                if column + span <= n {
                    #[unroll]
                    for j in 0..span {
                        window[j] = f32::cast_from(x[start + column + j]);
                    }
                } else {
                    // The last windows reach over the edge.
                    #[unroll]
                    for j in 0..span {
                        let value = f32::cast_from(x[start + min(column + j, comptime!(n - 1))]);
                        window[j] = select(column + j < n, value, 0.0f32);
                    }
                }
                let place = comptime!(b * table_len) + local / width * comptime!(PATTERNS * width) + local % width;
                for pattern in 0..PATTERNS {
                    let values = (part * PATTERNS + pattern) * comptime!(span / 4);
                    let mut sum = 0.0f32;
                    #[unroll]
                    for j in 0..comptime!(span / 4) {
                        let four = dictionary[values + j];
                        #[unroll]
                        for k in 0..4usize {
                            sum += window[comptime!(4 * j + k)] * four.extract(k);
                        }
                    }
                    tables[place + pattern * width] = sum;
                }
            }
        }
    }
}

/// The first column that nibble `t` reaches: see `NibbleLayout::start`.
#[cube]
fn first_column_of(t: usize, #[comptime] layout: NibbleLayout) -> usize {
    let per_eight = comptime!(layout.per_eight);
    if comptime!(layout.windows == crate::codec::nibble::Windows::Grouped) {
        t / per_eight * 8
    } else {
        t * 8 / per_eight
    }
}

/// Adds up 32 sums across the `width` units of a plane. Each halving leaves a unit half of its sums: unit `u` ends with
/// those of rows `u · 32 / width` and the following, at the places from `first` on.
#[cube]
fn add_up_plane(sums: &mut Array<f32>, #[comptime] first: usize, #[comptime] width: usize) {
    let unit = UNIT_POS_X;
    #[unroll]
    for level in 0..comptime!(width.trailing_zeros() as usize) {
        let mask = comptime!(width as u32 >> (level + 1));
        let half = comptime!(STRIP >> (level + 1));
        let is_upper = unit & mask != 0u32;
        if comptime!(half > 0) {
            #[unroll]
            for i in 0..half {
                let (low, high) = (sums[comptime!(first + i)], sums[comptime!(first + half + i)]);
                let (kept, given) = (select(is_upper, high, low), select(is_upper, low, high));
                sums[comptime!(first + i)] = kept + plane_shuffle_xor(given, mask);
            }
        } else {
            sums[first] += plane_shuffle_xor(sums[first], mask);
        }
    }
}

/// Whether two weights of one input can share a launch.
pub(super) fn is_read_alike(a: &CodecLayout, b: &CodecLayout) -> bool {
    match (a, b) {
        (CodecLayout::Nibble(a), CodecLayout::Nibble(b)) => {
            let of = |layout: &NibbleLayout| (layout.per_eight, layout.windows, layout.shape.d_input());
            of(a) == of(b)
        }
        _ => false,
    }
}

/// How weights that are read alike are read, and their rows.
fn stack(weights: &[Weight]) -> (NibbleLayout, Stack) {
    let stack = Stack::new(weights.iter().map(|weight| weight.layout.shape().d_output()));
    let CodecLayout::Nibble(layout) = weights[0].layout else { unreachable!("a product of nibbles") };
    (layout, stack)
}

/// The slices of products of `batch` rows with `weights`: how many parts of `out` [`into_columns`] writes.
pub(super) fn slices(like: &CubeTensor, weights: &[Weight], batch: usize) -> usize {
    let (layout, stack) = stack(weights);
    Schedule::new(&Machine::new(&like.client), &layout, &stack, batch).slices(&layout)
}

/// `x · Wᵀ` for each of one to three `weights` that are [read alike](is_read_alike), in parts: `x` is `[batch,
/// d_input]`, contiguous, of any float type; `out` is F32, `[slices, batch, …]`, and the sums over its slices in the
/// columns from `first` on are the products, one after the other.
pub(super) fn into_columns(x: CubeTensor, weights: Vec<Weight>, out: &CubeTensor, first: usize) {
    let batch = x.shape()[0];
    let client = out.client.clone();
    let (layout, stack) = stack(&weights);
    let schedule = Schedule::new(&Machine::new(&client), &layout, &stack, batch);
    let cube_dim = CubeDim::new_2d(schedule.width as u32, schedule.lines as u32);
    let cubes = schedule.slices(&layout) * schedule.blocks(&stack) * batch.div_ceil(schedule.batch);
    let count = calculate_cube_count_elemwise(&client, cubes * cube_dim.num_elems() as usize, cube_dim);
    let (x_type, stride) = (dtype_to_storage_type(x.dtype), out.shape()[2]);
    // Those that are not there are not read.
    let of = |i: usize| weights.get(i).unwrap_or(&weights[0]);
    let codes = |i: usize| of(i).codes.clone().into_tensor_arg();
    let scales = |i: usize| of(i).scales.clone().into_tensor_arg();
    let dictionary = |i: usize| of(i).dictionary.clone().into_tensor_arg();
    // SAFETY: the kernel reads and writes within these tensors: `Weight` has checked the lengths of its own against the
    // layout, which weights that are read alike share but for their rows, `x` has `batch` rows of `d_input` values, and
    // `out` a column for each row of the weights from `first` on, in every slice.
    unsafe {
        lookup_kernel::launch_unchecked(
            &client,
            count,
            cube_dim,
            x.into_tensor_arg(),
            codes(0),
            codes(1),
            codes(2),
            scales(0),
            scales(1),
            scales(2),
            dictionary(0),
            dictionary(1),
            dictionary(2),
            out.clone().into_tensor_arg(),
            batch,
            stride,
            first,
            layout,
            stack,
            schedule,
            x_type,
        );
    }
}
