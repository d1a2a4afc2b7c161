//! Products with `uniform`: a unit takes 32 columns at a time, whose indices fill whole words, of several rows; the
//! activations lie in shared memory and serve all of them. The levels lie there as well, once for each unit of a line
//! if there is room, so that no two units ever want the same bank of the memory.
//!
//! Within a group `Σ scale · (D[q] − D[zero]) · x` is `scale · (Σ D[q] · x − D[zero] · Σ x)`.

use super::machine::{Machine, Reduction};
use super::{Weight, decode};
use crate::codec::uniform::UniformLayout;
use burn::backend::TensorMetadata;
use burn::backend::cubecl::dtype_to_storage_type;
use burn_cubecl::tensor::CubeTensor;
use cubecl::calculate_cube_count_elemwise;
use cubecl::prelude::*;

/// Columns that a unit takes at a time.
const RUN: usize = 32;

/// Vectors of four in shared memory for a run. One more than it has: eight units that each read four values of a run of
/// their own then read from all banks.
const RUN_VECTORS: usize = RUN / 4 + 1;

/// Rows of `x` that a weight is decoded for.
const BATCH: usize = 4;

/// Rows of the weight that a line takes at a time.
const ROWS: usize = 2;

/// How a product is shared out, as constants of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Schedule {
    /// Units of a line.
    width: usize,
    reduction: Reduction,
    /// Lines of a cube.
    lines: usize,
    /// Rows of the weight of a line.
    rows: usize,
    /// Runs of columns of a cube.
    runs: usize,
    /// Rows of `x` of a cube.
    batch: usize,
    /// Copies of the levels.
    copies: usize,
}

impl Schedule {
    /// For `batch` rows on `machine`.
    fn new(machine: &Machine, layout: &UniformLayout, batch: usize) -> Self {
        let Machine { width, reduction, .. } = *machine;
        let lines = (machine.units.min(256) / width).max(1);
        let all_runs = layout.shape.d_input().div_ceil(RUN);
        let most_rows = batch.next_power_of_two().min(BATCH);
        let mut schedule =
            Self { width, reduction, lines, rows: ROWS, runs: all_runs, batch: most_rows, copies: width };
        while schedule.copies > 1 && schedule.levels(layout) * size_of::<f32>() > machine.shared / 4 {
            schedule.copies /= 2;
        }
        while schedule.batch > 1 && schedule.shared(layout) > machine.shared / 2 {
            schedule.batch /= 2;
        }
        while schedule.lines > 1 && schedule.shared(layout) > machine.shared {
            schedule.lines /= 2;
        }
        while schedule.runs > width && schedule.shared(layout) > machine.shared {
            schedule.runs = (schedule.runs / 2).next_multiple_of(width);
        }
        let cubes =
            |schedule: &Self| schedule.blocks(layout) * schedule.slices(layout) * batch.div_ceil(schedule.batch);
        while schedule.rows > 1 && 4 * cubes(&schedule) < 3 * machine.processors {
            schedule.rows /= 2;
        }
        while schedule.runs > width && cubes(&schedule) < machine.processors {
            schedule.runs = (schedule.runs / 2).next_multiple_of(width);
        }
        schedule
    }

    /// Bytes of shared memory.
    const fn shared(&self, layout: &UniformLayout) -> usize {
        (self.levels(layout) + self.scratch() + 4 * self.batch * self.runs * RUN_VECTORS) * size_of::<f32>()
    }

    /// Values of the levels.
    const fn levels(&self, layout: &UniformLayout) -> usize {
        self.copies << layout.bits
    }

    /// Values through which sums are added up.
    const fn scratch(&self) -> usize {
        match self.reduction {
            Reduction::Plane => 1,
            Reduction::Shared => self.lines * self.width,
        }
    }

    /// Cubes that share the columns of a row.
    const fn slices(&self, layout: &UniformLayout) -> usize {
        layout.shape.d_input().div_ceil(RUN).div_ceil(self.runs)
    }

    /// Cubes that share the rows.
    const fn blocks(&self, layout: &UniformLayout) -> usize {
        layout.shape.d_output().div_ceil(self.lines * self.rows)
    }
}

#[cube(launch_unchecked)]
fn levels_kernel<X: Float>(
    x: &Tensor<X>,
    codes: &Tensor<u32>,
    scales: &Tensor<f32>,
    dictionary: &Tensor<f32>,
    out: &mut Tensor<f32>,
    batch: usize,
    stride: usize,
    first_column: usize,
    #[comptime] layout: UniformLayout,
    #[comptime] plan: Schedule,
    #[define(X)] _x_type: ElemType,
) {
    let (n, d_output) = comptime!((layout.shape.d_input(), layout.shape.d_output()));
    let (width, lines) = comptime!((plan.width, plan.lines));
    let (bits, row_words) = comptime!((layout.bits as usize, layout.row_words()));
    let last_word = comptime!(layout.code_words() + layout.zero_words() - 1);
    // What shares a scale of a run: all of it, or eights.
    let part = comptime!(if layout.group.is_multiple_of(RUN) { RUN } else { 8 });
    let parts = comptime!(RUN / part);
    let mut inputs = Shared::<[Vector<f32, Const<4>>]>::new_slice(comptime!(plan.batch * plan.runs * RUN_VECTORS));
    let mut levels = Shared::<[f32]>::new_slice(comptime!(plan.levels(&layout)));
    let mut scratch = Shared::<[f32]>::new_slice(comptime!(plan.scratch()));
    let (unit, line) = (UNIT_POS_X as usize, UNIT_POS_Y as usize);

    // Cubes beyond the last work on it again and write nothing, so that all reach every barrier.
    let (slices, blocks) = comptime!((plan.slices(&layout), plan.blocks(&layout)));
    let count = slices * blocks * ((batch + comptime!(plan.batch - 1)) / plan.batch);
    let is_inside = CUBE_POS < count;
    let cube = min(CUBE_POS, count - 1);
    let slice = cube % slices;
    let block = cube / slices % blocks;
    let first_row = cube / (slices * blocks) * plan.batch;

    let vectors = comptime!(plan.runs * RUN / 4);
    let steps = comptime!((plan.batch * vectors).div_ceil(lines * width));
    for i in 0..steps {
        let at = i * comptime!(lines * width) + UNIT_POS as usize;
        if at < comptime!(plan.batch * vectors) {
            let row = min(first_row + at / vectors, batch - 1) * n;
            let vector = at % vectors;
            let col = slice * comptime!(plan.runs * RUN) + vector * 4;
            let mut four = Vector::<f32, Const<4>>::empty();
            #[unroll]
            for j in 0..4usize {
                let value = f32::cast_from(x[row + min(col + j, comptime!(n - 1))]);
                four.insert(j, select(col + j < n, value, 0.0f32));
            }
            let run = at / vectors * plan.runs + vector / comptime!(RUN / 4);
            inputs[run * RUN_VECTORS + vector % comptime!(RUN / 4)] = four;
        }
    }
    let steps = comptime!(plan.levels(&layout).div_ceil(lines * width));
    for i in 0..steps {
        let at = i * comptime!(lines * width) + UNIT_POS as usize;
        if at < comptime!(plan.levels(&layout)) {
            levels[at] = dictionary[at / plan.copies];
        }
    }
    sync_cube();

    let copy = unit % plan.copies * 4;
    let row = (block * lines + line) * plan.rows;
    let mut sums = Array::<f32>::new(comptime!(plan.rows * plan.batch));
    #[unroll]
    for i in 0..comptime!(plan.rows * plan.batch) {
        sums[i] = 0.0f32;
    }
    let mut values = Array::<f32>::new(comptime!(plan.batch * RUN));
    let mut totals = Array::<f32>::new(comptime!(plan.batch * parts));
    let turns = comptime!(plan.runs.div_ceil(width));
    for turn in 0..turns {
        let run = turn * width + unit;
        let col = (slice * plan.runs + run) * RUN;
        if run < plan.runs && col < n {
            #[unroll]
            for b in 0..plan.batch {
                #[unroll]
                for v in 0..comptime!(RUN / 4) {
                    let four = inputs[(comptime!(b * plan.runs) + run) * RUN_VECTORS + v];
                    #[unroll]
                    for j in 0..4usize {
                        values[comptime!(b * RUN + v * 4 + j)] = four.extract(j);
                    }
                }
                #[unroll]
                for p in 0..parts {
                    let mut total = 0.0f32;
                    #[unroll]
                    for j in 0..part {
                        total += values[comptime!(b * RUN + p * part + j)];
                    }
                    totals[comptime!(b * parts + p)] = total;
                }
            }
            #[unroll]
            for r in 0..plan.rows {
                let source = min(row + r, comptime!(d_output - 1));
                let start = source * row_words + col / RUN * bits;
                let mut words = Array::<u32>::new(bits);
                #[unroll]
                for w in 0..bits {
                    words[w] = codes[min(start + w, last_word)];
                }
                #[unroll]
                for p in 0..parts {
                    let group = min(col + comptime!(p * part), comptime!(n - 1)) / comptime!(layout.group);
                    let zero = levels
                        [((decode::zero_index(codes, source, group, layout) * comptime!(4 * plan.copies)) | copy) / 4];
                    let scale = scales[source * comptime!(layout.num_groups()) + group];
                    let mut products = Array::<f32>::new(plan.batch);
                    #[unroll]
                    for b in 0..plan.batch {
                        products[b] = -zero * totals[comptime!(b * parts + p)];
                    }
                    #[unroll]
                    for j in 0..part {
                        let at = comptime!(p * part + j);
                        let (word, shift) = comptime!((at * bits / 32, (at * bits % 32) as u32));
                        let next = comptime!(if word + 1 < bits { word + 1 } else { word });
                        let index = decode::field(words[word], words[next], shift.runtime(), layout.bits);
                        // Counted in bytes, and divided: what is left of both is that no address is multiplied.
                        let level = levels[((index as usize * comptime!(4 * plan.copies)) | copy) / 4];
                        #[unroll]
                        for b in 0..plan.batch {
                            products[b] += level * values[comptime!(b * RUN + at)];
                        }
                    }
                    #[unroll]
                    for b in 0..plan.batch {
                        sums[comptime!(r * plan.batch + b)] += scale * products[b];
                    }
                }
            }
        }
    }

    #[unroll]
    for r in 0..plan.rows {
        #[unroll]
        for b in 0..plan.batch {
            let mut sum = sums[comptime!(r * plan.batch + b)];
            if comptime!(plan.reduction == Reduction::Plane) {
                sum = plane_sum(sum);
            } else {
                scratch[line * width + unit] = sum;
                sync_cube();
                sum = 0.0f32;
                if unit == 0 {
                    for i in 0..width {
                        sum += scratch[line * width + i];
                    }
                }
                sync_cube();
            }
            if is_inside && unit == 0 && row + r < d_output && first_row + b < batch {
                out[(slice * batch + first_row + b) * stride + first_column + row + r] = sum;
            }
        }
    }
}

/// Whether the kernel is for groups of this layout: those that are whole eights.
pub(super) const fn takes(layout: &UniformLayout) -> bool {
    layout.group.is_multiple_of(8)
}

/// The slices of a product with a weight of `layout` and `batch` rows: how many parts of `out` [`into_columns`] writes.
pub(super) fn slices(like: &CubeTensor, layout: &UniformLayout, batch: usize) -> usize {
    Schedule::new(&Machine::new(&like.client), layout, batch).slices(layout)
}

/// `x · Wᵀ` in parts: `x` is `[batch, d_input]`, contiguous, of any float type; `out` is F32, `[slices, batch, …]`, and
/// the sum over its slices in the columns from `first` on is the product.
pub(super) fn into_columns(x: CubeTensor, weight: Weight, layout: UniformLayout, out: &CubeTensor, first: usize) {
    let batch = x.shape()[0];
    let client = out.client.clone();
    let schedule = Schedule::new(&Machine::new(&client), &layout, batch);
    let cube_dim = CubeDim::new_2d(schedule.width as u32, schedule.lines as u32);
    let cubes = schedule.slices(&layout) * schedule.blocks(&layout) * batch.div_ceil(schedule.batch);
    let count = calculate_cube_count_elemwise(&client, cubes * cube_dim.num_elems() as usize, cube_dim);
    let (x_type, stride) = (dtype_to_storage_type(x.dtype), out.shape()[2]);
    // SAFETY: the kernel reads and writes within these tensors: `Weight` has checked the lengths of its own against the
    // layout, `x` has `batch` rows of `d_input` values, and `out` a column for each row of the weight from `first` on,
    // in every slice.
    unsafe {
        levels_kernel::launch_unchecked(
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
    use crate::matrix::Shape;

    #[test]
    fn a_schedule_fits_the_machine_and_leaves_nothing_out() {
        let large = Machine { processors: 132, shared: 227 << 10, units: 1024, width: 32, reduction: Reduction::Plane };
        let small = Machine { processors: 16, shared: 16 << 10, units: 256, width: 32, reduction: Reduction::Shared };
        for machine in [large, small, Machine { width: 8, ..large }, Machine { width: 64, ..small }] {
            for (d_output, d_input) in [(1, 1), (37, 43), (576, 1536), (4096, 4096), (4096, 11008), (7, 100_000)] {
                for (bits, batch) in [(2, 1), (3, 2), (4, 8), (5, 3), (8, 128)] {
                    let layout = UniformLayout { shape: Shape::new(d_output, d_input).unwrap(), bits, group: 32 };
                    let schedule = Schedule::new(&machine, &layout, batch);
                    let context = format!("{machine:?} {d_output}x{d_input} {bits} {batch}: {schedule:?}");
                    assert!(schedule.shared(&layout) <= machine.shared, "{context}");
                    assert!(schedule.lines * schedule.width <= machine.units, "{context}");
                    assert!(schedule.slices(&layout) * schedule.runs * RUN >= d_input, "{context}");
                    assert!(schedule.blocks(&layout) * schedule.lines * schedule.rows >= d_output, "{context}");
                    assert!(schedule.batch <= batch.next_power_of_two(), "{context}");
                }
            }
        }
    }
}
