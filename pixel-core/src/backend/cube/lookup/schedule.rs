//! How products with nibbles are shared out among cubes.

use super::super::machine::{Machine, Reduction};
use crate::codec::nibble::{NibbleLayout, PATTERNS, STRIP};
use crate::forward::MAX_WEIGHTS;

/// Rows of `x` for which a cube has tables at a time.
const BATCH: usize = 4;

/// The rows of the weights of a launch, as constants of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Stack {
    /// Rows of each weight.
    pub(super) rows: [usize; MAX_WEIGHTS],
    /// Weights; rows beyond are 0.
    pub(super) len: usize,
}

impl Stack {
    pub(super) fn new(rows: impl IntoIterator<Item = usize>) -> Self {
        let mut stack = Self { rows: [0; MAX_WEIGHTS], len: 0 };
        for rows in rows {
            stack.rows[stack.len] = rows;
            stack.len += 1;
        }
        stack
    }

    const fn strips(&self, weight: usize) -> usize {
        self.rows[weight].div_ceil(STRIP)
    }
}

/// How a product is shared out, as constants of a kernel.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Schedule {
    /// Units of a line.
    pub(super) width: usize,
    pub(super) reduction: Reduction,
    /// Lines of a cube; each has a strip of its own.
    pub(super) lines: usize,
    /// Strips that a line takes one after the other.
    pub(super) rounds: usize,
    /// Fields of a cube, a multiple of `width`.
    pub(super) fields: usize,
    /// Rows of `x` of a cube.
    pub(super) batch: usize,
}

impl Schedule {
    /// The schedule that costs `machine` least, for `batch` rows and the weights of `stack`, which are read as `layout`
    /// says.
    pub(super) fn new(machine: &Machine, layout: &NibbleLayout, stack: &Stack, batch: usize) -> Self {
        let Machine { width, reduction, .. } = *machine;
        let smallest = Self { width, reduction, lines: 1, rounds: 1, fields: width, batch: 1 };
        let mut best = (usize::MAX, smallest);
        let doubling = |from: usize, to: usize| {
            std::iter::successors(Some(from), |value| Some(value * 2)).take_while(move |value| *value <= to)
        };
        let most_fields = (8 * width).max(512).min(layout.fields().next_multiple_of(width).next_power_of_two());
        let most_units = machine.units.min(256);
        for fields in doubling(width, most_fields.max(width)) {
            for lines in doubling(1, (most_units / width).max(1)) {
                for rounds in 1..=12 {
                    for batch in doubling(1, batch.next_power_of_two().min(BATCH)) {
                        let schedule = Self { lines, rounds, fields, batch, ..smallest };
                        if schedule.shared() <= machine.shared {
                            let cost = schedule.cost(machine, layout, stack, batch);
                            best = if cost < best.0 { (cost, schedule) } else { best };
                        }
                    }
                }
            }
        }
        best.1
    }

    /// Bytes of shared memory.
    pub(super) const fn shared(&self) -> usize {
        (self.fields * PATTERNS * self.batch + self.scratch()) * size_of::<f32>()
    }

    /// Values of shared memory through which sums are added up.
    pub(super) const fn scratch(&self) -> usize {
        match self.reduction {
            Reduction::Plane => 1,
            Reduction::Shared => self.lines * CHUNK * (self.width + 1),
        }
    }

    /// Cycles that a multiprocessor works, about: one that looks up 32 values a cycle, and has four multiply-adds for
    /// each.
    fn cost(&self, machine: &Machine, layout: &NibbleLayout, stack: &Stack, batch: usize) -> usize {
        // Four values of a pattern are loaded at a time; its sum is stored, and the input loaded once for all.
        let pattern = layout.span() * 5 / 4 + 8;
        let tables = self.fields * self.batch * (PATTERNS * pattern + 2 * layout.span()) / (4 * 32);
        let sums = 64 * self.batch;
        let lookups = self.lines * self.rounds * (self.fields * self.batch + sums);
        let cubes = self.slices(layout) * self.blocks(stack) * batch.div_ceil(self.batch);
        let busy = cubes.div_ceil(machine.processors) * (tables + lookups);
        // Too few planes wait for memory, each at its turn.
        let planes = cubes * self.lines * self.width / 32 / machine.processors;
        let waiting = busy * 8 / planes.clamp(1, 8);
        // Partial sums are written and read again.
        let rows: usize = stack.rows.iter().sum();
        let partial = self.slices(layout) * batch * rows * 8 / (32 * machine.processors);
        waiting + partial
    }

    /// Cubes that share the fields of a row.
    pub(super) const fn slices(&self, layout: &NibbleLayout) -> usize {
        layout.fields().div_ceil(self.fields)
    }

    /// Cubes that share the strips of the weights before `weight`.
    pub(super) const fn blocks_before(&self, stack: &Stack, weight: usize) -> usize {
        let (mut sum, mut i) = (0, 0);
        while i < weight {
            sum += stack.strips(i).div_ceil(self.lines * self.rounds);
            i += 1;
        }
        sum
    }

    /// Cubes that share the strips of all weights.
    pub(super) const fn blocks(&self, stack: &Stack) -> usize {
        self.blocks_before(stack, MAX_WEIGHTS)
    }

    /// Groups of fields, one for each unit of a line.
    pub(super) const fn groups(&self) -> usize {
        self.fields / self.width
    }
}

/// Rows of a strip whose sums go through shared memory at a time.
pub(super) const CHUNK: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::codec::nibble::Windows;
    use crate::matrix::Shape;

    const LARGE: Machine =
        Machine { processors: 132, shared: 227 << 10, units: 1024, width: 32, reduction: Reduction::Plane };
    const SMALL: Machine =
        Machine { processors: 16, shared: 16 << 10, units: 256, width: 32, reduction: Reduction::Shared };

    fn alone(layout: &NibbleLayout) -> Stack {
        Stack::new([layout.shape.d_output()])
    }

    fn layout(per_eight: usize, [d_output, d_input]: [usize; 2]) -> NibbleLayout {
        NibbleLayout { shape: Shape::new(d_output, d_input).unwrap(), per_eight, windows: Windows::Lapped { span: 16 } }
    }

    #[test]
    fn a_schedule_fits_the_machine_and_leaves_nothing_out() {
        for machine in [LARGE, SMALL, Machine { width: 8, ..LARGE }, Machine { width: 64, ..SMALL }] {
            for shape in [[1, 1], [37, 43], [576, 1536], [4096, 4096], [11008, 4096], [4096, 11008]] {
                for (per_eight, batch) in [(2, 1), (3, 2), (4, 8), (5, 3), (8, 128)] {
                    let layout = layout(per_eight, shape);
                    let schedule = Schedule::new(&machine, &layout, &alone(&layout), batch);
                    let context = format!("{machine:?} {shape:?} {per_eight} {batch}: {schedule:?}");
                    assert!(schedule.shared() <= machine.shared, "{context}");
                    assert!(schedule.lines * schedule.width <= machine.units, "{context}");
                    assert_eq!(schedule.fields % schedule.width, 0, "{context}");
                    let (slices, blocks) = (schedule.slices(&layout), schedule.blocks(&alone(&layout)));
                    assert!(slices * schedule.fields >= layout.fields(), "{context}");
                    assert!((slices - 1) * schedule.fields < layout.fields(), "{context}");
                    assert!(blocks * schedule.lines * schedule.rounds >= layout.strips(), "{context}");
                    assert!(schedule.batch <= batch.next_power_of_two().min(BATCH), "{context}");
                }
            }
        }
    }

    #[test]
    fn every_multiprocessor_gets_work() {
        for shape in [[4096, 4096], [11008, 4096], [4096, 11008]] {
            let layout = layout(4, shape);
            let schedule = Schedule::new(&LARGE, &layout, &alone(&layout), 1);
            let cubes = schedule.slices(&layout) * schedule.blocks(&alone(&layout));
            let rounds = cubes.div_ceil(LARGE.processors);
            let busy = cubes as f64 / (rounds * LARGE.processors) as f64;
            assert!(busy > 0.8, "{shape:?}: {cubes} cubes, {schedule:?}");
        }
    }

    #[test]
    fn every_weight_of_a_stack_has_cubes_of_its_own() {
        let stack = Stack::new([100, 32, 1]);
        let schedule = Schedule::new(&LARGE, &layout(4, [100, 256]), &stack, 1);
        let schedule = Schedule { lines: 2, rounds: 1, ..schedule };
        assert_eq!([0, 1, 2, 3].map(|weight| schedule.blocks_before(&stack, weight)), [0, 2, 3, 4]);
    }
}
