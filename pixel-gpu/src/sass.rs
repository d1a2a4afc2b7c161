//! Machine code as text: which instructions there are, and how often the loops around them run.

use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::ops::{AddAssign, RangeInclusive};

/// Where an instruction is carried out.
///
/// Source: *CUDA C++ Programming Guide*, "Throughput of Native Arithmetic Instructions".
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Unit {
    /// Multiply-adds of floats.
    Fma,
    /// Integers: sums, shifts, logic, comparisons; moves and selections.
    Alu,
    /// Products of integers.
    Multiply,
    /// Conversions, and functions such as the exponential.
    Special,
    /// Matrix instructions.
    Tensor,
    /// Shared memory and exchange between the threads of a warp, in units of 32 words.
    Shared,
    /// Other memory.
    Memory,
    /// The rest: branches, barriers, what a warp does once for all its threads.
    Other,
}

/// Instructions of a warp, by where they are carried out.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Counts {
    /// All of them.
    pub all: f64,
    /// Multiply-adds of floats.
    pub fma: f64,
    /// Integers, moves and selections.
    pub alu: f64,
    /// Products of integers.
    pub multiply: f64,
    /// Conversions and special functions.
    pub special: f64,
    /// Matrix instructions.
    pub tensor: f64,
    /// Accesses to shared memory and exchanges in a warp, a wide one as many as it has words.
    pub shared: f64,
    /// Accesses to other memory.
    pub memory: f64,
    /// Bytes that a thread reads from global memory.
    pub bytes: f64,
}

impl Counts {
    fn add(&mut self, instruction: &Instruction, times: f64) {
        self.all += times;
        match instruction.unit {
            Unit::Fma => self.fma += times,
            Unit::Alu => self.alu += times,
            Unit::Multiply => self.multiply += times,
            Unit::Special => self.special += times,
            Unit::Tensor => self.tensor += times,
            Unit::Shared => self.shared += times * instruction.words(),
            Unit::Memory => {
                self.memory += times;
                if instruction.opcode.starts_with("LDG") {
                    self.bytes += times * 4.0 * instruction.words();
                }
            }
            Unit::Other => {}
        }
    }

    /// Cycles that a multiprocessor needs for these instructions of one warp, and what they wait for.
    ///
    /// Four schedulers issue one instruction a cycle each; for 32 threads there are 128 lanes of multiply-adds of
    /// floats, 64 of integers and of their products, 16 of special functions, 32 words of shared memory.
    ///
    /// Source: as for the units, compute capabilities 8.0 and 9.0.
    pub fn cycles(&self) -> (f64, &'static str) {
        let limits = [
            (self.all / 4.0, "issue"),
            (self.alu / 2.0, "integer units"),
            (self.multiply / 2.0, "integer products"),
            (self.fma / 4.0, "float units"),
            (self.special * 2.0, "special functions"),
            (self.shared, "shared memory"),
        ];
        limits.into_iter().fold((0.0, ""), |most, limit| if limit.0 > most.0 { limit } else { most })
    }
}

impl AddAssign for Counts {
    fn add_assign(&mut self, other: Self) {
        self.all += other.all;
        self.fma += other.fma;
        self.alu += other.alu;
        self.multiply += other.multiply;
        self.special += other.special;
        self.tensor += other.tensor;
        self.shared += other.shared;
        self.memory += other.memory;
        self.bytes += other.bytes;
    }
}

/// An instruction.
#[derive(Debug, Clone, PartialEq)]
struct Instruction {
    address: usize,
    guard: Option<String>,
    opcode: String,
    operands: Vec<String>,
    unit: Unit,
}

impl Instruction {
    /// From a line as `/*0080*/ @!P0 IADD3 R1, R1, 0x1, RZ ;`.
    fn parse(line: &str) -> Option<Self> {
        let rest = line.trim_start().strip_prefix("/*")?;
        let (address, rest) = rest.split_once("*/")?;
        let address = usize::from_str_radix(address, 16).ok()?;
        let text = rest.trim().strip_suffix(';')?.trim();
        let (guard, text) = match text.strip_prefix('@') {
            Some(guarded) => guarded.split_once(' ').map(|(guard, text)| (Some(guard.to_owned()), text.trim()))?,
            None => (None, text),
        };
        let (opcode, operands) = text.split_once(' ').unwrap_or((text, ""));
        let operands = operands.split(',').map(|operand| operand.trim().to_owned()).filter(|text| !text.is_empty());
        Some(Self { address, guard, unit: unit_of(opcode), opcode: opcode.to_owned(), operands: operands.collect() })
    }

    fn base(&self) -> &str {
        self.opcode.split('.').next().unwrap_or_default()
    }

    /// Words of 32 bits that a thread reads or writes.
    fn words(&self) -> f64 {
        let has = |part| self.opcode.split('.').any(|found| found == part);
        match () {
            () if has("128") => 4.0,
            () if has("64") => 2.0,
            () if has("U8") || has("S8") => 0.25,
            () if has("U16") || has("S16") => 0.5,
            () => 1.0,
        }
    }

    /// The predicate that it depends on.
    fn predicate(&self) -> Option<String> {
        let is_predicate = |text: &&String| text.trim_start_matches('!').starts_with("UP");
        let own = self.operands.first().filter(is_predicate);
        self.guard.as_ref().or(own).map(|text| text.trim_start_matches('!').to_owned())
    }

    /// The label that a branch goes to.
    fn target(&self) -> Option<&str> {
        let is_branch = matches!(self.base(), "BRA" | "BRX" | "JMP");
        let label = self.operands.iter().find_map(|operand| operand.strip_prefix("`(")?.strip_suffix(')'));
        label.filter(|_| is_branch)
    }
}

fn unit_of(opcode: &str) -> Unit {
    let base = opcode.split('.').next().unwrap_or_default();
    match base {
        "FADD" | "FMUL" | "FFMA" | "HADD2" | "HMUL2" | "HFMA2" | "FFMA2" | "FADD2" | "FMUL2" => Unit::Fma,
        "IMAD" | "IMUL" | "IDP" | "IDP4A" => Unit::Multiply,
        "MUFU" | "I2F" | "F2I" | "F2F" | "FRND" | "POPC" | "FLO" | "BREV" => Unit::Special,
        "HMMA" | "IMMA" | "HGMMA" | "BMMA" | "QMMA" => Unit::Tensor,
        "LDS" | "STS" | "SHFL" | "LDSM" | "STSM" | "ATOMS" => Unit::Shared,
        "LDG" | "STG" | "LDL" | "STL" | "LD" | "ST" | "ATOM" | "ATOMG" | "RED" | "LDGSTS" | "REDG" => Unit::Memory,
        "LOP3" | "SHF" | "SHL" | "SHR" | "IADD3" | "IADD" | "VIADD" | "ISETP" | "ICMP" | "SEL" | "PRMT" | "LEA"
        | "IMNMX" | "VIMNMX" | "VIADDMNMX" | "FSEL" | "FSETP" | "FMNMX" | "MOV" | "IABS" | "BMSK" | "SGXT"
        | "PLOP3" | "FCHK" | "LOP" | "P2R" | "R2P" | "CS2R" | "VOTE" | "FMNMX3" | "VIMNMX3" | "I2FP" | "F2FP" => {
            Unit::Alu
        }
        _ => Unit::Other,
    }
}

/// A loop: instructions from its label to the branch back.
#[derive(Debug, Clone, PartialEq)]
pub struct Loop {
    /// The places of its instructions.
    range: RangeInclusive<usize>,
    /// How often it runs, where its counter tells.
    pub trips: Option<f64>,
    /// Its instructions, those of loops inside included, each once.
    pub body: Counts,
}

/// The code of a kernel.
#[derive(Debug, Clone, Default)]
pub struct Code {
    instructions: Vec<Instruction>,
    /// Its loops, outer ones before those inside.
    pub loops: Vec<Loop>,
}

impl Code {
    /// From what `nvdisasm` prints of one kernel.
    pub fn parse(text: &str) -> Self {
        let (mut instructions, mut labels) = (Vec::<Instruction>::new(), HashMap::new());
        let code = text.lines().skip_while(|line| !line.contains(".section\t.text."));
        for line in code {
            if let Some(label) = line.strip_suffix(':').filter(|label| label.starts_with('.')) {
                labels.insert(label.to_owned(), instructions.len());
            } else if let Some(instruction) = Instruction::parse(line) {
                instructions.push(instruction);
            }
        }
        let ends = instructions.iter().enumerate().filter_map(|(end, instruction)| {
            let start = *labels.get(instruction.target()?)?;
            // A branch to itself is where code ends.
            (start < end).then_some((start, end))
        });
        let mut ranges: Vec<(usize, usize)> = ends.collect();
        // Of several ways back to one label the last ends the loop.
        ranges.sort_by_key(|&(start, end)| (start, std::cmp::Reverse(end)));
        ranges.dedup_by_key(|&mut (start, _)| start);
        let loops = ranges.into_iter().map(|(start, end)| {
            let body = &instructions[start..=end];
            let mut counts = Counts::default();
            body.iter().for_each(|instruction| counts.add(instruction, 1.0));
            Loop { range: start..=end, trips: trips(&instructions[..start], body), body: counts }
        });
        let loops = loops.collect();
        Self { instructions, loops }
    }

    /// Loops whose counter does not tell how often they run.
    pub fn unknown(&self) -> usize {
        self.loops.iter().filter(|one| one.trips.is_none()).count()
    }

    /// Instructions in the code.
    pub fn len(&self) -> usize {
        // What fills the code up to its border is not carried out.
        self.instructions.iter().filter(|instruction| instruction.base() != "NOP").count()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The instructions of a warp that goes through the whole code; a loop whose counter does not tell runs `unknown`
    /// times. Branches that leave something out are not taken.
    pub fn total(&self, unknown: f64) -> Counts {
        let mut counts = Counts::default();
        for (place, instruction) in self.instructions.iter().enumerate().filter(|(_, i)| i.base() != "NOP") {
            let around = self.loops.iter().filter(|one| one.range.contains(&place));
            counts.add(instruction, around.map(|one| one.trips.unwrap_or(unknown)).product());
        }
        counts
    }
}

/// A number as `0x10` or `-0x10`.
fn immediate(text: &str) -> Option<i64> {
    let (sign, digits) = text.strip_prefix('-').map_or((1, text), |digits| (-1, digits));
    Some(sign * i64::from_str_radix(digits.strip_prefix("0x")?, 16).ok()?)
}

/// How often a loop runs, if a counter that starts at a constant, moves by one and is compared with one tells, or a
/// predicate that is true in the first of two rounds.
fn trips(before: &[Instruction], body: &[Instruction]) -> Option<f64> {
    let decides = decisive(body)?;
    let sets = |i: &&Instruction| i.operands.first() == Some(&decides) && i.guard.is_none();
    let deciding = body.iter().rev().find(sets)?;
    if deciding.base().ends_with("PLOP3") {
        let is_constant = |operand: &String| operand.ends_with("PT") || operand.starts_with("0x");
        return deciding.operands[1..].iter().all(is_constant).then_some(2.0);
    }
    let compared = Some(deciding).filter(|i| i.base().ends_with("SETP"))?;
    let register = named(compared.operands.get(2)?).to_owned();
    let limit = compared.operands.get(3).and_then(|text| number(text))?;
    let adds = |i: &&Instruction| {
        matches!(i.base(), "IADD3" | "VIADD" | "UIADD3" | "IADD" | "UVIADD" | "IMAD")
            && i.operands.first() == Some(&register)
            && i.operands[1..].iter().any(|operand| named(operand) == register)
    };
    let added = body.iter().rev().find(adds)?;
    let step = added.operands[1..].iter().filter(|text| named(text) != register).find_map(|text| immediate(text))?;
    let starts = |i: &&Instruction| i.operands.first() == Some(&register) && i.guard.is_none();
    let set = before.iter().rev().find(starts)?;
    let is_constant = matches!(set.base(), "MOV" | "UMOV" | "CS2R" | "IMAD" | "HFMA2");
    let sources = set.operands[1..].iter();
    let start = match sources.clone().rev().find_map(|text| immediate(text)) {
        Some(start) => start,
        None => sources.clone().all(|text| number(text) == Some(0) || text == "SRZ").then_some(0)?,
    };
    let distance = limit - start;
    (is_constant && step != 0 && distance.signum() == step.signum()).then(|| (distance as f64 / step as f64).ceil())
}

/// The predicate on which it depends whether a loop goes on: that of the branch back, or of a way out if that has none.
fn decisive(body: &[Instruction]) -> Option<String> {
    let (last, inside) = body.split_last()?;
    let is_exit = |i: &&Instruction| i.base() == "EXIT" && i.guard.is_some();
    let guard = last.predicate().or_else(|| inside.iter().rev().find(is_exit)?.predicate())?;
    // A copy of a predicate that a warp has once for all its threads.
    let copies = |i: &&Instruction| i.base() == "PLOP3" && i.operands.first() == Some(&guard);
    let copied = body.iter().rev().find(copies);
    let source = copied.and_then(|i| i.operands.iter().find(|text| text.starts_with("UP") && *text != "UPT"));
    Some(source.cloned().unwrap_or(guard))
}

/// A register without what is said of its use.
fn named(operand: &str) -> &str {
    operand.split('.').next().unwrap_or(operand)
}

/// A constant.
fn number(text: &str) -> Option<i64> {
    if matches!(text, "RZ" | "URZ") { Some(0) } else { immediate(text) }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LISTING: &str = "\
\t.section\t.text.k,\"ax\",@progbits
.text.k:
        /*0000*/                   LDC R1, c[0x0][0x28] ;
        /*0010*/                   IMAD.MOV.U32 R4, RZ, RZ, RZ ;
.L_x_0:
        /*0020*/                   LDG.E.128 R8, desc[UR6][R14.64+0x200] ;
        /*0030*/                   LDS R27, [R29+UR4] ;
        /*0040*/                   FFMA R26, R27, R8, R26 ;
        /*0050*/                   IADD3 R4, R4, 0x2, RZ ;
        /*0060*/                   ISETP.GE.U32.AND P0, PT, R4, 0x18, PT ;
        /*0070*/              @!P0 BRA `(.L_x_0) ;
        /*0080*/                   STG.E desc[UR6][R2.64], R26 ;
        /*0090*/                   EXIT ;
.L_x_1:
        /*00a0*/                   BRA `(.L_x_1);
        /*00b0*/                   NOP;
";

    #[test]
    fn loops_are_found_with_what_they_do() {
        let code = Code::parse(LISTING);
        assert_eq!(code.len(), 11);
        let [one] = &code.loops[..] else { panic!("{:?}", code.loops) };
        assert_eq!(one.trips, Some(12.0));
        let expected =
            Counts { all: 6.0, fma: 1.0, alu: 2.0, shared: 1.0, memory: 1.0, bytes: 16.0, ..Counts::default() };
        assert_eq!(one.body, expected);
        let total = code.total(1.0);
        assert_eq!((total.all, total.shared, total.bytes), (12.0 * 6.0 + 5.0, 12.0, 192.0));
    }

    #[test]
    fn a_counter_that_does_not_tell_is_not_guessed() {
        let code = Code::parse(&LISTING.replace("0x18", "R7"));
        assert_eq!(code.loops[0].trips, None);
        assert_eq!(code.total(3.0).shared, 3.0);
    }

    #[test]
    fn a_counter_of_the_warp_and_a_way_out_in_the_middle_tell_as_well() {
        let uniform = "        /*0050*/                   UIADD3 UR4, UR4, 0x80, URZ ;
        /*0060*/                   UISETP.NE.U32.AND UP0, UPT, UR4, 0x800, UPT ;
        /*0068*/                   PLOP3.LUT P0, PT, PT, PT, UP0, 0x80, 0x0 ;
";
        let start = LISTING.find("        /*0050*/").unwrap();
        let end = LISTING.find("        /*0070*/").unwrap();
        let listing = format!("{}{uniform}{}", &LISTING[..start], &LISTING[end..]);
        let listing = listing.replace("IMAD.MOV.U32 R4, RZ, RZ, RZ", "UMOV UR4, URZ");
        assert_eq!(Code::parse(&listing).loops[0].trips, Some(16.0));
        let listing = listing.replace("@!P0 BRA", "@!P0 EXIT ;\n        /*0074*/                   BRA");
        assert_eq!(Code::parse(&listing).loops[0].trips, Some(16.0));
        let twice = "UPLOP3.LUT UP0, UPT, UPT, UPT, UPT, 0x40, 0x0";
        let listing = listing.replace("UISETP.NE.U32.AND UP0, UPT, UR4, 0x800, UPT", twice);
        assert_eq!(Code::parse(&listing).loops[0].trips, Some(2.0));
    }

    #[test]
    fn the_unit_that_takes_longest_decides() {
        let counts = Counts { all: 8.0, shared: 3.0, alu: 2.0, ..Counts::default() };
        assert_eq!(counts.cycles(), (3.0, "shared memory"));
        let counts = Counts { all: 16.0, ..counts };
        assert_eq!(counts.cycles(), (4.0, "issue"));
    }
}
