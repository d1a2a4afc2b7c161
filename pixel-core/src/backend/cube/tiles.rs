//! Products with the trellis: each unit of a line decodes eight weights of its own row of a tile, and a line goes from
//! tile to tile along the columns. The activations lie in shared memory, where all rows read the same ones; sums stay
//! with their units until the end, when the lines of a cube, and the units that share a row, are added up.

use super::machine::Machine;
use super::{Weight, decode};
use crate::codec::trellis::{TILE_LEN, TrellisLayout};
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

/// Units of a line: runs of eight weights in a tile.
const LINE: usize = TILE_LEN / 8;

/// Rows of `x` that a weight is decoded for.
const BATCH: usize = 8;

/// Bytes of shared memory for activations, at most: what leaves room for other cubes.
const SHARED: usize = 32 << 10;

/// How a product is shared out, as constants of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Schedule {
    /// Lines of a cube, which take tiles in turn.
    lines: usize,
    /// Tiles side by side of a cube.
    tiles: usize,
    /// Rows of `x` of a cube.
    batch: usize,
}

impl Schedule {
    /// For `batch` rows on `machine`.
    fn new(machine: &Machine, layout: &TrellisLayout, batch: usize) -> Self {
        let batch = batch.next_power_of_two().min(BATCH);
        let lines = (machine.units / LINE).clamp(1, 8);
        let row_bytes = layout.grid.tile.cols * batch * size_of::<f32>();
        let room = machine.shared.min(SHARED).saturating_sub(lines * LINE * size_of::<f32>());
        let most = (room / row_bytes).max(1);
        // Slices, so that there are four cubes for each multiprocessor, but eight tiles at least for each line.
        let (across, down) = (layout.grid.tile_cols(), layout.grid.tile_rows());
        let wanted = (4 * machine.processors).div_ceil(down).min(across.div_ceil(8 * lines)).max(1);
        let tiles = across.div_ceil(wanted).min(most);
        Self { lines, tiles, batch }
    }

    /// Cubes that share the columns.
    const fn slices(&self, layout: &TrellisLayout) -> usize {
        layout.grid.tile_cols().div_ceil(self.tiles)
    }
}

#[cube(launch_unchecked)]
fn tiles_kernel<X: Float>(
    x: &Tensor<X>,
    codes: &Tensor<u32>,
    scales: &Tensor<f32>,
    dictionary: &Tensor<f32>,
    out: &mut Tensor<f32>,
    batch: usize,
    stride: usize,
    first_column: usize,
    #[comptime] layout: TrellisLayout,
    #[comptime] plan: Schedule,
    #[define(X)] _x_type: ElemType,
) {
    let (rows, cols) = comptime!((layout.grid.tile.rows, layout.grid.tile.cols));
    let (across, down, words) = comptime!((layout.grid.tile_cols(), layout.grid.tile_rows(), layout.tile_words()));
    let (d_output, n) = comptime!((layout.grid.shape.d_output(), layout.grid.shape.d_input()));
    let (lines, width) = comptime!((plan.lines, plan.tiles * cols));
    let (unit, line) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);
    let mut inputs = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(plan.batch * width / 4));
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(lines * LINE));

    // Cubes beyond the last work on it again and write nothing, so that all reach every barrier.
    let slices = comptime!(plan.slices(&layout));
    let count = slices * down * ((batch + comptime!(plan.batch - 1)) / plan.batch);
    let is_inside = CUBE_POS < count;
    let cube = min(CUBE_POS, count - 1);
    let slice = cube % slices;
    let tile_row = cube / slices % down;
    let first_row = cube / (slices * down) * plan.batch;

    let start = slice * width;
    let steps = comptime!((plan.batch * width / 4).div_ceil(lines * LINE));
    for i in 0..steps {
        let at = i * comptime!(lines * LINE) + UNIT_POS as usize;
        if at < comptime!(plan.batch * width / 4) {
            let row = min(first_row + at / comptime!(width / 4), batch - 1) * n;
            let col = start + at % comptime!(width / 4) * 4;
            let mut four = Vector::<f32, Const<4>>::empty();
            #[unroll]
            for j in 0..4usize {
                let value = f32::cast_from(x[row + min(col + j, comptime!(n - 1))]);
                four.insert(j, select(col + j < n, value, 0.0f32));
            }
            inputs[at] = four;
        }
    }
    sync_cube();

    // The unit's eight are the same in every tile, and so are the place of their bits and of their inputs.
    let bit = (comptime!(LINE - 1) - unit) * comptime!(8 / layout.step.weights * layout.step.bits as usize);
    let (word, shift) = (bit / 32, (bit % 32) as u32);
    let (next, last) = ((word + 1) % words, (word + 2) % words);
    let column = unit * 8 % cols / 4;
    let mut sums = Array::<f32>::new(plan.batch);
    #[unroll]
    for b in 0..plan.batch {
        sums[b] = 0.0f32;
    }
    let mut weights = Array::<f32>::new(8usize);
    let turns = comptime!(plan.tiles.div_ceil(lines));
    for turn in 0..turns {
        let tile = turn * lines + line;
        if tile < plan.tiles && slice * plan.tiles + tile < across {
            let base = (tile_row * across + slice * plan.tiles + tile) * words;
            let first = codes[base + word];
            let second = codes[base + next];
            let third = if comptime!(decode::needs_three(&layout)) { codes[base + last] } else { second };
            decode::windows(first, second, third, shift, &mut weights, layout);
            #[unroll]
            for b in 0..plan.batch {
                let at = comptime!(b * width / 4) + tile * comptime!(cols / 4) + column;
                #[unroll]
                for i in 0..2usize {
                    let four = inputs[at + i];
                    #[unroll]
                    for j in 0..4usize {
                        sums[b] += weights[comptime!(4 * i + j)] * four.extract(j);
                    }
                }
            }
        }
    }

    let share = comptime!(cols / 8);
    #[unroll]
    for b in 0..plan.batch {
        scratch[line * LINE + unit] = sums[b];
        sync_cube();
        let row = tile_row * rows + unit;
        let is_written = is_inside && line == 0 && unit < rows && row < d_output && first_row + b < batch;
        if is_written {
            let mut sum = 0.0f32;
            for i in 0..lines {
                for j in 0..share {
                    sum += scratch[i * LINE + unit * share + j];
                }
            }
            let at = (slice * batch + first_row + b) * stride + first_column + row;
            out[at] = sum * (scales[row] * dictionary[0]);
        }
        sync_cube();
    }
}

/// Whether the kernel is for tiles of this layout: those that have a run of eight weights in a row.
pub(super) const fn takes(layout: &TrellisLayout) -> bool {
    layout.grid.tile.cols >= 8
}

/// The slices of a product with a weight of `layout` and `batch` rows: how many parts of `out` [`into_columns`] writes.
pub(super) fn slices(like: &CubeTensor, layout: &TrellisLayout, batch: usize) -> usize {
    Schedule::new(&Machine::new(&like.client), layout, batch).slices(layout)
}

/// `x · Wᵀ` in parts: `x` is `[batch, d_input]`, contiguous, of any float type; `out` is F32, `[slices, batch, …]`, and
/// the sum over its slices in the columns from `first` on is the product.
pub(super) fn into_columns(x: CubeTensor, weight: Weight, layout: TrellisLayout, out: &CubeTensor, first: usize) {
    let batch = x.shape()[0];
    let client = out.client.clone();
    let schedule = Schedule::new(&Machine::new(&client), &layout, batch);
    let cube_dim = CubeDim::new_2d(LINE as u32, schedule.lines as u32);
    let cubes = schedule.slices(&layout) * layout.grid.tile_rows() * batch.div_ceil(schedule.batch);
    let count = calculate_cube_count_elemwise(&client, cubes * cube_dim.num_elems() as usize, cube_dim);
    let (x_type, stride) = (dtype_to_storage_type(x.dtype), out.shape()[2]);
    // SAFETY: the kernel reads and writes within these tensors: `Weight` has checked the lengths of its own against the
    // layout, `x` has `batch` rows of `d_input` values, and `out` a column for each row of the weight from `first` on,
    // in every slice.
    unsafe {
        tiles_kernel::launch_unchecked(
            &client,
            count,
            cube_dim,
            x.into_tensor_arg(),
            weight.codes.into_tensor_arg(),
            weight.scales.into_tensor_arg(),
            weight.dictionary.into_tensor_arg(),
            out.clone().into_tensor_arg(),
            batch,
            stride,
            first,
            layout,
            schedule,
            x_type,
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::cube::machine::Reduction;
    use crate::codec::CodecLayout;
    use crate::matrix::Shape;

    #[test]
    fn a_schedule_fits_the_machine_and_leaves_nothing_out() {
        let large = Machine { processors: 132, shared: 227 << 10, units: 1024, width: 32, reduction: Reduction::Plane };
        let small = Machine { processors: 16, shared: 16 << 10, units: 256, width: 32, reduction: Reduction::Shared };
        for machine in [large, small] {
            for (d_output, d_input) in [(1, 4096), (37, 43), (576, 1536), (4096, 4096), (4096, 11008)] {
                let codec = crate::CodecSpec::new("trellis", 2.0).build().unwrap();
                let layout = codec.layout(Shape::new(d_output, d_input).unwrap());
                let Some(CodecLayout::Trellis(layout)) = layout else { panic!("{layout:?}") };
                for batch in [1, 3, 128] {
                    let schedule = Schedule::new(&machine, &layout, batch);
                    let context = format!("{machine:?} {d_output}x{d_input} {batch}: {schedule:?}");
                    let width = schedule.tiles * layout.grid.tile.cols;
                    let values = schedule.batch * width + schedule.lines * LINE;
                    assert!(values * size_of::<f32>() <= machine.shared, "{context}");
                    assert!(schedule.lines * LINE <= machine.units, "{context}");
                    assert!(schedule.slices(&layout) * width >= d_input, "{context}");
                    assert!(schedule.batch <= batch.next_power_of_two(), "{context}");
                }
            }
        }
    }
}
