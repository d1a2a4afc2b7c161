//! A block of threads, one after the other between the places where they meet.

use super::arithmetic::{binary, compare, convert, insert_bits, ternary, unary};
use super::instruction::{
    Atomic, Binary, Compare, Half, Instruction, Kernel, Operand, Operation, Space, Special, Type,
};
use super::memory::{Global, SharedMemory};

/// Threads of a warp.
pub(super) const WARP: usize = 32;

/// Instructions of a thread, after which it is taken not to end.
const MOST: u64 = 1 << 32;

/// What tells the generic addresses of spaces from those of global memory.
const SHARED: u64 = 1 << 56;
const LOCAL: u64 = 2 << 56;
const TAG: u64 = 0xFF << 56;

/// A launch.
pub(crate) struct Launch<'a> {
    pub(crate) kernel: &'a Kernel,
    pub(crate) parameters: Vec<u8>,
    pub(crate) grid: [u32; 3],
    pub(crate) block: [u32; 3],
    /// Bytes of shared memory beside the kernel's own.
    pub(crate) shared: usize,
    pub(crate) global: &'a Global,
}

/// Where a thread stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum State {
    Running,
    /// At a barrier of the block.
    Waiting,
    /// At an instruction of its whole warp.
    Meeting,
    Ended,
}

pub(super) struct Thread {
    pub(super) state: State,
    carry: bool,
    pub(super) next: usize,
    steps: u64,
}

/// A block at work.
pub(crate) struct Block<'a> {
    pub(super) launch: &'a Launch<'a>,
    place: [u32; 3],
    pub(super) threads: Vec<Thread>,
    registers: Vec<u64>,
    locals: Vec<u8>,
    pub(super) shared: SharedMemory,
}

impl<'a> Block<'a> {
    pub(crate) fn new(launch: &'a Launch<'a>, place: [u32; 3]) -> Self {
        let count = launch.block.iter().product::<u32>() as usize;
        let threads = (0..count).map(|_| Thread { state: State::Running, carry: false, next: 0, steps: 0 }).collect();
        Self {
            launch,
            place,
            threads,
            registers: vec![0; count * launch.kernel.registers],
            locals: vec![0; count * launch.kernel.local],
            shared: SharedMemory::new(launch.kernel.shared + launch.shared, count),
        }
    }

    /// Runs all threads to their ends.
    ///
    /// # Errors
    /// What a device would not have done well: an access outside of memory, threads that do not meet, one that reads
    /// what another writes.
    pub(crate) fn run(&mut self) -> Result<(), String> {
        loop {
            for thread in 0..self.threads.len() {
                if self.threads[thread].state == State::Running {
                    self.advance(thread)?;
                }
            }
            let mut has_met = false;
            for warp in 0..self.threads.len().div_ceil(WARP) {
                has_met |= self.meet(warp)?;
            }
            if has_met {
                continue;
            }
            let waiting = self.threads.iter().filter(|thread| thread.state == State::Waiting).count();
            let living = self.threads.iter().filter(|thread| thread.state != State::Ended).count();
            if living == 0 {
                return Ok(());
            }
            if waiting < living {
                let apart = self.threads.iter().position(|thread| thread.state == State::Meeting).unwrap_or_default();
                return Err(self.at(apart, "lanes of a warp do not meet"));
            }
            if living < self.threads.len() {
                let at = self.threads.iter().position(|thread| thread.state == State::Waiting).unwrap_or_default();
                return Err(self.at(at, "some threads have ended before a barrier"));
            }
            self.shared.begin_epoch();
            for thread in &mut self.threads {
                thread.state = State::Running;
                thread.next += 1;
            }
        }
    }

    /// `what`, with the place of a thread and its instruction.
    pub(super) fn at(&self, thread: usize, what: &str) -> String {
        let Launch { kernel, .. } = self.launch;
        let line = kernel.code.get(self.threads[thread].next).map_or(0, |instruction| instruction.line);
        format!("{}, line {line}, block {:?}, thread {thread}: {what}", kernel.name, self.place)
    }

    pub(super) fn register(&self, thread: usize, register: u32) -> u64 {
        self.registers[thread * self.launch.kernel.registers + register as usize]
    }

    pub(super) fn set(&mut self, thread: usize, register: u32, value: u64) {
        // What is thrown away has no register.
        if register != u32::MAX {
            self.registers[thread * self.launch.kernel.registers + register as usize] = value;
        }
    }

    pub(super) fn read(&self, thread: usize, operand: Operand) -> u64 {
        match operand {
            Operand::Register(register) => self.register(thread, register),
            Operand::Immediate(value) => value,
            Operand::Offset(register, offset) => self.register(thread, register).wrapping_add_signed(offset),
            Operand::Special(special) => {
                let [x, y, _] = self.launch.block.map(|side| side as usize);
                let place = [thread % x, thread / x % y, thread / (x * y)];
                let value = match special {
                    Special::Thread(axis) => place[axis] as u32,
                    Special::Threads(axis) => self.launch.block[axis],
                    Special::Block(axis) => self.place[axis],
                    Special::Blocks(axis) => self.launch.grid[axis],
                    Special::Lane => (thread % WARP) as u32,
                    Special::Warp => (thread / WARP) as u32,
                };
                u64::from(value)
            }
        }
    }

    /// Runs a thread until it ends or has to meet others.
    fn advance(&mut self, thread: usize) -> Result<(), String> {
        let kernel = self.launch.kernel;
        loop {
            let Some(instruction) = kernel.code.get(self.threads[thread].next) else {
                self.threads[thread].state = State::Ended;
                return Ok(());
            };
            self.threads[thread].steps += 1;
            if self.threads[thread].steps > MOST {
                return Err(self.at(thread, "it does not end"));
            }
            if let Some((predicate, negated)) = instruction.guard
                && (self.register(thread, predicate) != 0) == negated
            {
                self.threads[thread].next += 1;
                continue;
            }
            match instruction.operation {
                Operation::Barrier => self.threads[thread].state = State::Waiting,
                operation if is_of_warp(operation) => self.threads[thread].state = State::Meeting,
                Operation::Exit => self.threads[thread].state = State::Ended,
                Operation::Branch(target) => {
                    self.threads[thread].next = target;
                    continue;
                }
                _ => {
                    self.carry_out(thread, instruction).map_err(|what| self.at(thread, &what))?;
                    self.threads[thread].next += 1;
                    continue;
                }
            }
            return Ok(());
        }
    }

    fn carry_out(&mut self, thread: usize, instruction: &Instruction) -> Result<(), String> {
        let Instruction { operation, outputs, inputs, .. } = instruction;
        let input = |block: &Self, i: usize| -> Result<u64, String> {
            inputs.get(i).map(|operand| block.read(thread, *operand)).ok_or_else(|| "an operand is missing".to_owned())
        };
        let cannot = || format!("{operation:?} is not computed");
        let value = match *operation {
            Operation::Load(space, ty) => {
                let address = input(self, 0)?;
                for (i, output) in outputs.iter().enumerate() {
                    let value = self.load(thread, space, address + (i * ty.bytes()) as u64, ty)?;
                    self.set(thread, *output, value);
                }
                return Ok(());
            }
            Operation::Store(space, ty) => {
                let address = input(self, 0)?;
                for i in 1..inputs.len() {
                    let value = input(self, i)?;
                    self.store(thread, space, address + ((i - 1) * ty.bytes()) as u64, ty, value)?;
                }
                return Ok(());
            }
            Operation::Unpack(ty) => {
                let (value, bits) = (input(self, 0)?, ty.bits() / outputs.len().max(1) as u32);
                for (i, output) in outputs.iter().enumerate() {
                    self.set(thread, *output, value >> (bits * i as u32) & ((1u64 << bits) - 1));
                }
                return Ok(());
            }
            Operation::Pack(ty) => {
                let bits = ty.bits() / inputs.len().max(1) as u32;
                let mut packed = 0;
                for i in 0..inputs.len() {
                    packed |= (input(self, i)? & ((1u64 << bits) - 1)) << (bits * i as u32);
                }
                packed
            }
            Operation::Move(_) => input(self, 0)?,
            Operation::Binary(how, Type::Pred) => {
                let (a, b) = (input(self, 0)? != 0, input(self, 1)? != 0);
                u64::from(logical(how, a, b).ok_or_else(cannot)?)
            }
            Operation::Binary(how, ty) => binary(how, ty, input(self, 0)?, input(self, 1)?).ok_or_else(cannot)?,
            Operation::Unary(_, Type::Pred) => u64::from(input(self, 0)? == 0),
            Operation::Unary(how, ty) => unary(how, ty, input(self, 0)?).ok_or_else(cannot)?,
            Operation::Ternary(how, ty) => {
                ternary(how, ty, [input(self, 0)?, input(self, 1)?, input(self, 2)?]).ok_or_else(cannot)?
            }
            Operation::Carry { half, takes, gives } => {
                let word = |value: u64| value & 0xFFFF_FFFF;
                let (first, second) = (word(input(self, 0)?), word(input(self, 1)?));
                let (a, b) = match half {
                    None => (first, second),
                    Some(Half::Low) => (word(first * second), word(input(self, 2)?)),
                    Some(Half::High) => ((first * second) >> 32, word(input(self, 2)?)),
                };
                let sum = a + b + u64::from(takes && self.threads[thread].carry);
                if gives {
                    self.threads[thread].carry = sum >> 32 != 0;
                }
                word(sum)
            }
            Operation::InsertBits(ty) => {
                insert_bits(ty, input(self, 0)?, input(self, 1)?, input(self, 2)?, input(self, 3)?)
            }
            Operation::SetPredicate(how, ty, for_nan, with) => {
                return self.set_predicate(thread, instruction, (how, ty, for_nan), with);
            }
            Operation::Select(_) => {
                if input(self, 2)? != 0 {
                    input(self, 0)?
                } else {
                    input(self, 1)?
                }
            }
            // Two numbers into one register, the first into its upper half.
            Operation::Convert {
                to: to @ (Type::HalfPair | Type::BrainPair),
                from,
                rounding,
                is_integral,
                saturates,
            } => {
                let half = if to == Type::HalfPair { Type::Float(16) } else { Type::Brain };
                let of = |value| convert(half, from, rounding, is_integral, saturates, value).ok_or_else(cannot);
                of(input(self, 0)?)? << 16 | of(input(self, 1)?)?
            }
            Operation::Convert { to, from, rounding, is_integral, saturates } => {
                convert(to, from, rounding, is_integral, saturates, input(self, 0)?).ok_or_else(cannot)?
            }
            Operation::Address { space, is_to_space } => {
                let tag = match space {
                    Space::Shared => SHARED,
                    Space::Local => LOCAL,
                    _ => 0,
                };
                let address = input(self, 0)?;
                if is_to_space { address & !tag } else { address | tag }
            }
            Operation::ActiveMask => {
                let warp = thread / WARP * WARP;
                let lanes = self.threads[warp..].iter().take(WARP).enumerate();
                lanes.filter(|(_, lane)| lane.state != State::Ended).map(|(lane, _)| 1 << lane).sum()
            }
            Operation::Atomic(how, space, ty) => {
                let operands = [input(self, 1)?, if inputs.len() > 2 { input(self, 2)? } else { 0 }];
                self.atomic(how, space, ty, input(self, 0)?, operands)?
            }
            Operation::Fence => return Ok(()),
            // What ends a thread's run is not carried out here.
            _ => return Err(cannot()),
        };
        if let Some(output) = outputs.first() {
            self.set(thread, *output, value);
        }
        Ok(())
    }

    fn set_predicate(
        &mut self,
        thread: usize,
        instruction: &Instruction,
        (how, ty, for_nan): (Compare, Type, bool),
        with: Option<Binary>,
    ) -> Result<(), String> {
        let read = |block: &Self, i: usize| instruction.inputs.get(i).map(|operand| block.read(thread, *operand));
        let (Some(a), Some(b)) = (read(self, 0), read(self, 1)) else { return Err("an operand is missing".to_owned()) };
        let found = compare(how, ty, for_nan, a, b);
        let other = read(self, 2).is_some_and(|value| value != 0);
        for (i, output) in instruction.outputs.iter().enumerate() {
            // The second output is of the opposite.
            let found = found != (i == 1);
            let value = match with {
                None => found,
                Some(with) => logical(with, found, other).ok_or("not computed")?,
            };
            self.set(thread, *output, u64::from(value));
        }
        Ok(())
    }

    /// The space of an address, and the address in it.
    fn resolve(space: Space, address: u64) -> (Space, u64) {
        match (space, address & TAG) {
            (Space::Generic, SHARED) => (Space::Shared, address & !TAG),
            (Space::Generic, LOCAL) => (Space::Local, address & !TAG),
            (Space::Generic, _) => (Space::Global, address),
            _ => (space, address & !TAG),
        }
    }

    pub(super) fn load(&mut self, thread: usize, space: Space, address: u64, ty: Type) -> Result<u64, String> {
        let (space, address) = Self::resolve(space, address);
        let bytes = ty.bytes();
        if !address.is_multiple_of(bytes as u64) {
            return Err(format!("{bytes} bytes are read at {address:#x}"));
        }
        let outside = || format!("{bytes} bytes are read at {address:#x} of {space:?}, outside of it");
        let value = match space {
            Space::Shared => self.shared.load(thread, address as usize, bytes)?,
            Space::Param => slice(&self.launch.parameters, address, bytes).ok_or_else(outside)?,
            Space::Local => {
                let size = self.launch.kernel.local;
                slice(&self.locals[thread * size..][..size], address, bytes).ok_or_else(outside)?
            }
            Space::Const => slice(&self.launch.kernel.constants, address, bytes).ok_or_else(outside)?,
            // A module's own variables have the lowest addresses.
            _ => match slice(&self.launch.kernel.constants, address, bytes) {
                Some(value) => value,
                None => self.launch.global.load(address, bytes).ok_or_else(outside)?,
            },
        };
        Ok(match ty {
            // Narrow numbers fill their registers.
            Type::Signed(bits) if bits < 64 => (((value << (64 - bits)) as i64) >> (64 - bits)) as u64,
            _ => value,
        })
    }

    pub(super) fn store(
        &mut self,
        thread: usize,
        space: Space,
        address: u64,
        ty: Type,
        value: u64,
    ) -> Result<(), String> {
        let (space, address) = Self::resolve(space, address);
        let bytes = ty.bytes();
        if !address.is_multiple_of(bytes as u64) {
            return Err(format!("{bytes} bytes are written at {address:#x}"));
        }
        let outside = || format!("{bytes} bytes are written at {address:#x} of {space:?}, outside of it");
        match space {
            Space::Shared => self.shared.store(thread, address as usize, bytes, value),
            Space::Local => {
                let size = self.launch.kernel.local;
                let place = self.locals[thread * size..][..size].get_mut(address as usize..address as usize + bytes);
                place.ok_or_else(outside)?.copy_from_slice(&value.to_le_bytes()[..bytes]);
                Ok(())
            }
            Space::Global => self.launch.global.store(address, bytes, value).ok_or_else(outside),
            _ => Err(outside()),
        }
    }

    fn atomic(&mut self, how: Atomic, space: Space, ty: Type, address: u64, [a, b]: [u64; 2]) -> Result<u64, String> {
        let new = |old: u64| match how {
            Atomic::Add => binary(Binary::Add, ty, old, a),
            Atomic::Min => binary(Binary::Min, ty, old, a),
            Atomic::Max => binary(Binary::Max, ty, old, a),
            Atomic::And => binary(Binary::And, ty, old, a),
            Atomic::Or => binary(Binary::Or, ty, old, a),
            Atomic::Xor => binary(Binary::Xor, ty, old, a),
            Atomic::Exchange => Some(a),
            Atomic::CompareAndSwap => Some(if old == a { b } else { old }),
        };
        let (space, address) = Self::resolve(space, address);
        let outside = || format!("an atomic operation on {address:#x} of {space:?}");
        match space {
            Space::Global => self.launch.global.update(address, ty.bytes(), new).ok_or_else(outside),
            Space::Shared => self.shared.update(address as usize, ty.bytes(), new).ok_or_else(outside),
            _ => Err(outside()),
        }
    }
}

/// Whether all lanes of a warp carry out an operation together.
fn is_of_warp(operation: Operation) -> bool {
    matches!(
        operation,
        Operation::Shuffle(_)
            | Operation::Vote(_)
            | Operation::WarpBarrier
            | Operation::MatrixLoad(..)
            | Operation::MatrixStore(..)
            | Operation::MatrixMultiply(_)
    )
}

fn logical(how: Binary, a: bool, b: bool) -> Option<bool> {
    match how {
        Binary::And => Some(a && b),
        Binary::Or => Some(a || b),
        Binary::Xor => Some(a != b),
        _ => None,
    }
}

fn slice(memory: &[u8], address: u64, bytes: usize) -> Option<u64> {
    let start = usize::try_from(address).ok()?;
    let mut value = [0; 8];
    value[..bytes].copy_from_slice(memory.get(start..start.checked_add(bytes)?)?);
    Some(u64::from_le_bytes(value))
}
