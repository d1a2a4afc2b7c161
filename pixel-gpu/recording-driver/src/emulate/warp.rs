//! What the lanes of a warp do together.

use super::arithmetic::{element, element_bits};
use super::block::{Block, State, WARP};
use super::instruction::{Instruction, Matrix, Operand, Operation, Shuffle, Type, Vote};

impl Block<'_> {
    /// Reads, writes or multiplies matrices of the warp whose first thread is `first`.
    fn matrices(&mut self, first: usize, instruction: &Instruction) -> Result<(), String> {
        if first + WARP > self.threads.len() {
            return Err("a matrix of a warp that is not full".to_owned());
        }
        let Instruction { operation, outputs, inputs, .. } = instruction;
        match *operation {
            Operation::MatrixLoad(matrix, space) => {
                let (base, stride) = self.matrix_place(first, inputs)?;
                for at in 0..matrix.rows * matrix.columns {
                    let (lane, register, half) = holder(&matrix, outputs.len(), at);
                    let address = base + matrix_offset(&matrix, at, stride);
                    let value = self.load(first + lane, space, address, storage(matrix.ty))?;
                    let output = outputs[register];
                    let kept = if half == 0 { 0 } else { self.register(first + lane, output) & 0xFFFF };
                    self.set(first + lane, output, kept | value << (16 * half));
                }
                // Elements that a second lane holds as well.
                let held = matrix.rows * matrix.columns;
                let room = WARP * outputs.len() * if matrix.ty.bits() == 16 { 2 } else { 1 };
                if room > held {
                    for lane in WARP / (room / held)..WARP {
                        for output in outputs {
                            let from = first + lane % (WARP / (room / held));
                            let value = self.register(from, *output);
                            self.set(first + lane, *output, value);
                        }
                    }
                }
                Ok(())
            }
            Operation::MatrixStore(matrix, space) => {
                // The address, the registers, the stride.
                let values = &inputs[1..inputs.len() - 1];
                let (base, stride) = self.matrix_place(first, &[inputs[0], inputs[inputs.len() - 1]])?;
                for at in 0..matrix.rows * matrix.columns {
                    let (lane, register, half) = holder(&matrix, values.len(), at);
                    let value = self.read(first + lane, values[register]) >> (16 * half);
                    let address = base + matrix_offset(&matrix, at, stride);
                    self.store(first + lane, space, address, storage(matrix.ty), value)?;
                }
                Ok(())
            }
            Operation::MatrixMultiply([a, b, c]) => {
                let halves = |matrix: &Matrix| if matrix.ty.bits() == 16 { 2 } else { 1 };
                // C and D are held alike; what is left of the operands belongs to A and B, which may be held twice.
                let of_c = outputs.len();
                let rest = inputs.len() - of_c;
                let of_a = rest * a.rows * a.columns
                    / halves(&a)
                    / (a.rows * a.columns / halves(&a) + b.rows * b.columns / halves(&b));
                let elements = |block: &Self, matrix: &Matrix, registers: &[Operand]| -> Vec<f32> {
                    let element = |at| {
                        let (lane, register, half) = holder(matrix, registers.len(), at);
                        let value = block.read(first + lane, registers[register]) >> (16 * half);
                        element(value, matrix.ty)
                    };
                    (0..matrix.rows * matrix.columns).map(element).collect()
                };
                let x = elements(self, &a, &inputs[..of_a]);
                let y = elements(self, &b, &inputs[of_a..rest]);
                let mut sums = elements(self, &c, &inputs[rest..]);
                for (at, sum) in sums.iter_mut().enumerate() {
                    let (row, column) = (at / c.columns, at % c.columns);
                    *sum += (0..a.columns).map(|k| x[row * a.columns + k] * y[k * b.columns + column]).sum::<f32>();
                }
                for (at, sum) in sums.into_iter().enumerate() {
                    let (lane, register, half) = holder(&c, outputs.len(), at);
                    let value = element_bits(sum, c.ty);
                    let output = outputs[register];
                    let kept = if half == 0 { 0 } else { self.register(first + lane, output) & 0xFFFF };
                    self.set(first + lane, output, kept | value << (16 * half));
                }
                Ok(())
            }
            _ => Err(format!("{operation:?} is not carried out by a warp")),
        }
    }

    /// The address of a matrix and the elements between its rows or columns, the same for all lanes.
    fn matrix_place(&self, first: usize, operands: &[Operand]) -> Result<(u64, u64), String> {
        let [address, stride] = operands else { return Err("a matrix without a stride".to_owned()) };
        let of = |lane: usize| (self.read(lane, *address), self.read(lane, *stride) & 0xFFFF_FFFF);
        let place = of(first);
        if (first..first + WARP).any(|lane| of(lane) != place) {
            return Err("lanes have other places of a matrix".to_owned());
        }
        Ok(place)
    }

    /// Carries out the instruction at which all living lanes of a warp stand, if they do.
    pub(super) fn meet(&mut self, warp: usize) -> Result<bool, String> {
        let first = warp * WARP;
        let lanes = first..(first + WARP).min(self.threads.len());
        let living: Vec<usize> = lanes.clone().filter(|lane| self.threads[*lane].state != State::Ended).collect();
        let Some(&one) = living.first() else { return Ok(false) };
        let next = self.threads[one].next;
        if living.iter().any(|lane| (self.threads[*lane].state, self.threads[*lane].next) != (State::Meeting, next)) {
            return Ok(false);
        }
        let instruction = &self.launch.kernel.code[next];
        let Instruction { operation, outputs, inputs, .. } = instruction;
        let read = |block: &Self, lane: usize, i: usize| inputs.get(i).map_or(0, |input| block.read(lane, *input));
        let mask: u64 = living.iter().map(|lane| 1 << (lane - first)).sum();
        let members = match operation {
            Operation::Shuffle(_) => Some(3),
            Operation::Vote(_) => Some(1),
            _ => None,
        };
        if let Some(lane) = living.iter().find(|lane| members.is_some_and(|i| read(self, **lane, i) & mask != mask)) {
            return Err(self.at(*lane, "a lane is here that is no member"));
        }
        if members.is_none() {
            match *operation {
                Operation::WarpBarrier => self.shared.begin_warp_epoch(warp),
                _ => self.matrices(first, instruction).map_err(|what| self.at(one, &what))?,
            }
            for lane in living {
                self.threads[lane].state = State::Running;
                self.threads[lane].next += 1;
            }
            return Ok(true);
        }
        let results: Vec<(usize, u64, bool)> = match *operation {
            Operation::Shuffle(how) => {
                let of = |&lane: &usize| {
                    let (b, c) = (read(self, lane, 1) as i64, read(self, lane, 2) as i64);
                    let (at, segment, clamp) = ((lane - first) as i64, c >> 8 & 31, c & 31);
                    let last = at & segment | clamp & !segment;
                    let (from, is_inside) = match how {
                        Shuffle::Up => (at - b, at - b >= last),
                        Shuffle::Down => (at + b, at + b <= last),
                        Shuffle::Butterfly => (at ^ b, at ^ b <= last),
                        Shuffle::Index => {
                            let from = at & segment | b & 31 & !segment;
                            (from, from <= last)
                        }
                    };
                    let from = first + if is_inside { from as usize } else { at as usize };
                    if !living.contains(&from) {
                        return Err(self.at(lane, "a lane is asked that has ended"));
                    }
                    Ok((lane, read(self, from, 0), is_inside))
                };
                living.iter().map(of).collect::<Result<_, _>>()?
            }
            Operation::Vote(how) => {
                let votes: u64 =
                    living.iter().filter(|lane| read(self, **lane, 0) != 0).map(|lane| 1 << (lane - first)).sum();
                let value = match how {
                    Vote::All => u64::from(votes == mask),
                    Vote::Any => u64::from(votes != 0),
                    Vote::Ballot => votes,
                };
                living.iter().map(|lane| (*lane, value, true)).collect()
            }
            _ => return Err(self.at(one, "lanes do not meet here")),
        };
        for (lane, value, is_inside) in results {
            if let Some(output) = outputs.first() {
                self.set(lane, *output, value);
            }
            if let Some(output) = outputs.get(1) {
                self.set(lane, *output, u64::from(is_inside));
            }
            self.threads[lane].state = State::Running;
            self.threads[lane].next += 1;
        }
        Ok(true)
    }
}

/// Bytes of element `at` from the beginning of a matrix.
fn matrix_offset(matrix: &Matrix, at: usize, stride: u64) -> u64 {
    let (row, column) = ((at / matrix.columns) as u64, (at % matrix.columns) as u64);
    let element = if matrix.is_row_major { row * stride + column } else { column * stride + row };
    element * u64::from(matrix.ty.bits() / 8)
}

/// The type of an element in memory, as bits.
fn storage(ty: Type) -> Type {
    Type::Unsigned(ty.bits())
}

/// Lane, register and half of the register that hold element `at` of a matrix, with `registers` registers a lane.
fn holder(matrix: &Matrix, registers: usize, at: usize) -> (usize, usize, u32) {
    let halves = if matrix.ty.bits() == 16 { 2 } else { 1 };
    (at / (registers * halves), at / halves % registers, (at % halves) as u32)
}
