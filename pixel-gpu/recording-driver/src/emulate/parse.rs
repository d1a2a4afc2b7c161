//! From the text of PTX to instructions.

use super::instruction::{
    Atomic, Binary, Compare, Half, Instruction, Kernel, Matrix, Operand, Operation, Rounding, Shuffle, Space, Special,
    Ternary, Type, Unary, Vote,
};
use std::collections::HashMap;

/// What a name stands for.
#[derive(Debug, Clone, Copy)]
enum Symbol {
    Register(u32),
    /// An address in its space.
    Address(u64),
}

/// The kernels of a module.
///
/// # Errors
/// The line of the first statement that is not understood, and what it is.
pub(crate) fn parse(text: &str) -> Result<Vec<Kernel>, String> {
    let mut kernels = Vec::new();
    let (mut globals, mut constants, mut shared) = (HashMap::new(), Vec::new(), 0);
    let mut lines = Statements::new(text);
    while let Some((line, statement)) = lines.next() {
        let fail = |what: &str| format!("line {line}: {what}: {statement}");
        if statement.contains(".entry") {
            kernels.push(kernel(&statement, &mut lines, &globals, &constants, shared).map_err(|what| fail(&what))?);
        } else if statement.contains(".func") {
            // What compilers take from libraries and have put where it is called; a call is not run.
            skip_body(&mut lines);
        } else if statement.contains(".shared ") {
            let (name, bytes, alignment) = array(&statement).ok_or_else(|| fail("not understood"))?;
            shared = usize::next_multiple_of(shared, alignment);
            // What a launch asks for begins where the module's own ends, and has no size here.
            globals.insert(name, Symbol::Address(shared as u64));
            shared += bytes;
        } else if statement.contains(".global ") || statement.contains(".const ") {
            let (name, bytes, alignment) = array(&statement).ok_or_else(|| fail("not understood"))?;
            constants.resize(usize::next_multiple_of(constants.len(), alignment), 0);
            globals.insert(name, Symbol::Address(constants.len() as u64));
            constants.extend(initial(&statement, bytes).ok_or_else(|| fail("values not understood"))?);
        } else if ![".version", ".target", ".address_size"].iter().any(|start| statement.starts_with(start)) {
            return Err(fail("not understood"));
        }
    }
    Ok(kernels)
}

/// Passes over a body in braces.
fn skip_body(statements: &mut Statements<'_>) {
    let mut depth = 0;
    while let Some((_, statement)) = statements.next() {
        match statement.as_str() {
            "{" => depth += 1,
            "}" => depth -= 1,
            _ => {}
        }
        if depth == 0 && statement == "}" {
            return;
        }
    }
}

/// Statements with the lines that they begin in; braces are statements of their own, but for those of operands.
struct Statements<'a> {
    rest: std::iter::Peekable<std::iter::Enumerate<std::str::Lines<'a>>>,
    /// What is left of a line.
    left: String,
    line: usize,
}

impl<'a> Statements<'a> {
    fn new(text: &'a str) -> Self {
        Self { rest: text.lines().enumerate().peekable(), left: String::new(), line: 0 }
    }

    fn next(&mut self) -> Option<(usize, String)> {
        let mut statement = String::new();
        let mut first = 0;
        loop {
            let text = self.left.trim().to_owned();
            if statement.is_empty() {
                first = self.line;
                if let Some(rest) = text.strip_prefix('{').or_else(|| text.strip_prefix('}')) {
                    self.left = rest.to_owned();
                    return Some((first, text[..1].to_owned()));
                }
                // A label, which has no semicolon.
                if text.starts_with('$') && text.ends_with(':') {
                    self.left.clear();
                    return Some((first, text));
                }
            }
            if let Some((head, rest)) = text.split_once(';') {
                self.left = rest.to_owned();
                return Some((first, format!("{statement} {head}").trim().to_owned()));
            }
            // Directives before a body, and those that fill a line.
            let whole = format!("{statement} {text}").trim().to_owned();
            let ends = [".version", ".target", ".address_size", ".reqntid", ".maxntid", ".minnctapersm", ".maxnreg"];
            let is_directive = ends.iter().any(|start| whole.starts_with(start));
            let is_head = (whole.contains(".entry") || whole.contains(".func")) && whole.ends_with(')');
            self.left.clear();
            if is_directive || is_head {
                return Some((first, whole));
            }
            statement = whole;
            let (number, line) = self.rest.next()?;
            self.line = number + 1;
            self.left = line.split("//").next().unwrap_or_default().to_owned();
        }
    }
}

/// Name, bytes and alignment of `.space .align A .TYPE name[N]`.
fn array(statement: &str) -> Option<(String, usize, usize)> {
    let words: Vec<&str> = statement.split_whitespace().collect();
    let alignment = words.iter().position(|word| *word == ".align").and_then(|at| words.get(at + 1)?.parse().ok());
    let declared = statement.split('=').next()?.trim();
    let (before, len) = match declared.split_once('[') {
        Some((before, len)) => (before.trim(), len.trim_end_matches(']').trim()),
        None => (declared, "1"),
    };
    let mut last = before.split_whitespace().rev();
    let (name, ty) = (last.next()?, Type::parse(last.next()?.trim_start_matches('.'))?);
    let len = if len.is_empty() { 0 } else { len.parse::<usize>().ok()? };
    Some((name.to_owned(), len * ty.bytes(), alignment.unwrap_or(ty.bytes())))
}

/// The values of an array, zeros where none are given.
fn initial(statement: &str, bytes: usize) -> Option<Vec<u8>> {
    let Some((declared, values)) = statement.split_once('=') else { return Some(vec![0; bytes]) };
    let ty = declared.split_whitespace().filter_map(|word| Type::parse(word.trim_start_matches('.'))).next_back()?;
    let mut all = Vec::with_capacity(bytes);
    for value in values.trim().trim_matches(['{', '}']).split(',') {
        let value = immediate(value.trim())?;
        all.extend_from_slice(&value.to_le_bytes()[..ty.bytes()]);
    }
    all.resize(bytes, 0);
    Some(all)
}

fn kernel(
    head: &str,
    statements: &mut Statements<'_>,
    globals: &HashMap<String, Symbol>,
    constants: &[u8],
    shared: usize,
) -> Result<Kernel, String> {
    let (name, parameters) = head.split_once('(').ok_or("no parameters")?;
    let name = name.rsplit(char::is_whitespace).next().unwrap_or_default().to_owned();
    let mut kernel = Kernel { name, constants: constants.to_vec(), shared, ..Kernel::default() };
    let mut symbols = globals.clone();
    let mut end = 0;
    for parameter in parameters.trim_end_matches(')').split(',').filter(|parameter| !parameter.trim().is_empty()) {
        // A pointer has the alignment of what it points to beside its type.
        let plain = parameter.split(".ptr").next().unwrap_or(parameter);
        let declared = if plain.len() < parameter.len() {
            let name = parameter.rsplit(char::is_whitespace).next().unwrap_or_default();
            format!("{} {name}", plain.trim())
        } else {
            parameter.trim().to_owned()
        };
        let (name, bytes, alignment) = array(&declared).ok_or("a parameter is not understood")?;
        end = usize::next_multiple_of(end, alignment);
        symbols.insert(name, Symbol::Address(end as u64));
        kernel.parameters.push((end, bytes));
        end += bytes;
    }
    let (mut labels, mut waiting) = (HashMap::new(), Vec::new());
    let mut depth = 0;
    while let Some((line, statement)) = statements.next() {
        let fail = |what: &str| format!("line {line}: {what}: {statement}");
        match statement.as_str() {
            "{" => depth += 1,
            "}" => {
                depth -= 1;
                if depth == 0 {
                    break;
                }
            }
            _ if statement.ends_with(':') => {
                labels.insert(statement.trim_end_matches(':').to_owned(), kernel.code.len());
            }
            _ if statement.starts_with(".reg") => {
                declare(&statement, &mut kernel, &mut symbols).ok_or_else(|| fail("registers not understood"))?;
            }
            _ if statement.starts_with(".local") || statement.starts_with(".shared") => {
                let (name, bytes, alignment) = array(&statement).ok_or_else(|| fail("not understood"))?;
                let place = if statement.starts_with(".local") { &mut kernel.local } else { &mut kernel.shared };
                *place = usize::next_multiple_of(*place, alignment);
                symbols.insert(name, Symbol::Address(*place as u64));
                *place += bytes;
            }
            _ if statement.starts_with('.') => {}
            _ => {
                let (instruction, label) =
                    instruction(&statement, line, &symbols).ok_or_else(|| fail("an instruction that is not run"))?;
                if let Some(label) = label {
                    waiting.push((kernel.code.len(), label, line));
                }
                kernel.code.push(instruction);
            }
        }
    }
    for (at, label, line) in waiting {
        let target = labels.get(&label).ok_or_else(|| format!("line {line}: there is no {label}"))?;
        kernel.code[at].operation = Operation::Branch(*target);
    }
    Ok(kernel)
}

/// `.reg .TYPE %name<N>` or `%name`.
fn declare(statement: &str, kernel: &mut Kernel, symbols: &mut HashMap<String, Symbol>) -> Option<()> {
    let names = statement.strip_prefix(".reg")?.trim().split_once(char::is_whitespace)?.1;
    let mut add = |name: String| {
        symbols.insert(name, Symbol::Register(kernel.registers as u32));
        kernel.registers += 1;
    };
    for name in names.split(',').map(str::trim) {
        match name.split_once('<') {
            Some((stem, count)) => {
                let count: usize = count.trim_end_matches('>').parse().ok()?;
                (0..count).for_each(|i| add(format!("{stem}{i}")));
            }
            None => add(name.to_owned()),
        }
    }
    Some(())
}

fn immediate(text: &str) -> Option<u64> {
    if let Some(bits) = text.strip_prefix("0f").or_else(|| text.strip_prefix("0F")) {
        return u32::from_str_radix(bits, 16).ok().map(u64::from);
    }
    if let Some(bits) = text.strip_prefix("0d").or_else(|| text.strip_prefix("0D")) {
        return u64::from_str_radix(bits, 16).ok();
    }
    if let Some(bits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        return u64::from_str_radix(bits.trim_end_matches(['U', 'u']), 16).ok();
    }
    let text = text.trim_end_matches(['U', 'u']);
    text.parse::<u64>().ok().or_else(|| text.parse::<i64>().ok().map(|value| value as u64))
}

fn special(text: &str) -> Option<Special> {
    let axis = |letter: &str| ["x", "y", "z"].iter().position(|axis| *axis == letter);
    let (name, letter) = text.split_once('.').unwrap_or((text, "x"));
    Some(match name {
        "%tid" => Special::Thread(axis(letter)?),
        "%ntid" => Special::Threads(axis(letter)?),
        "%ctaid" => Special::Block(axis(letter)?),
        "%nctaid" => Special::Blocks(axis(letter)?),
        "%laneid" => Special::Lane,
        "%warpid" => Special::Warp,
        _ => return None,
    })
}

fn operand(text: &str, symbols: &HashMap<String, Symbol>) -> Option<Operand> {
    let text = text.trim();
    if let Some(inside) = text.strip_prefix('[').and_then(|text| text.strip_suffix(']')) {
        let (base, offset) = match inside.find(['+', '-']).filter(|at| *at > 0) {
            Some(at) => (&inside[..at], inside[at..].trim_start_matches('+').parse::<i64>().ok()?),
            None => (inside, 0),
        };
        return Some(match symbols.get(base.trim()) {
            Some(Symbol::Register(register)) => Operand::Offset(*register, offset),
            Some(Symbol::Address(address)) => Operand::Immediate(address.wrapping_add_signed(offset)),
            None => Operand::Immediate(immediate(base.trim())?.wrapping_add_signed(offset)),
        });
    }
    match symbols.get(text) {
        Some(Symbol::Register(register)) => Some(Operand::Register(*register)),
        Some(Symbol::Address(address)) => Some(Operand::Immediate(*address)),
        None => special(text).map(Operand::Special).or_else(|| immediate(text).map(Operand::Immediate)),
    }
}

/// Operands, apart at commas that are not within braces or brackets.
fn split(text: &str) -> Vec<String> {
    let (mut parts, mut depth) = (vec![String::new()], 0);
    for letter in text.chars() {
        match letter {
            '{' | '[' => depth += 1,
            '}' | ']' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(String::new());
                continue;
            }
            _ => {}
        }
        if let Some(part) = parts.last_mut() {
            part.push(letter);
        }
    }
    parts.into_iter().map(|part| part.trim().to_owned()).filter(|part| !part.is_empty()).collect()
}

/// The operands of a list in braces, or the one that there is.
fn several(text: &str, symbols: &HashMap<String, Symbol>) -> Option<Vec<Operand>> {
    let list = text.strip_prefix('{').and_then(|text| text.strip_suffix('}'));
    list.unwrap_or(text).split(',').map(|part| operand(part, symbols)).collect()
}

fn registers(text: &str, symbols: &HashMap<String, Symbol>) -> Option<Vec<u32>> {
    let list = text.strip_prefix('{').and_then(|text| text.strip_suffix('}')).unwrap_or(text);
    // `p|q`, and `_` for what is thrown away.
    let parts = list.split([',', '|']).map(|part| match symbols.get(part.trim()) {
        Some(Symbol::Register(register)) => Some(*register),
        _ if part.trim() == "_" => Some(u32::MAX),
        _ => None,
    });
    parts.collect()
}

/// An instruction, and the label that it jumps to.
fn instruction(
    statement: &str,
    line: usize,
    symbols: &HashMap<String, Symbol>,
) -> Option<(Instruction, Option<String>)> {
    let (guard, rest) = match statement.strip_prefix('@') {
        None => (None, statement),
        Some(rest) => {
            let (name, rest) = rest.split_once(char::is_whitespace)?;
            let (name, negated) = name.strip_prefix('!').map_or((name, false), |name| (name, true));
            let Some(Symbol::Register(register)) = symbols.get(name) else { return None };
            (Some((*register, negated)), rest.trim())
        }
    };
    let (name, operands) = rest.split_once(char::is_whitespace).unwrap_or((rest, ""));
    let words: Vec<&str> = name.split('.').collect();
    let parts = split(operands.trim());
    let has = |word: &str| words.contains(&word);
    let types: Vec<Type> = words.iter().skip(1).filter_map(|word| Type::parse(word)).collect();
    let ty = types.first().copied();
    let space = || {
        [
            ("global", Space::Global),
            ("shared", Space::Shared),
            ("local", Space::Local),
            ("param", Space::Param),
            ("const", Space::Const),
        ]
        .into_iter()
        .find(|(name, _)| words.iter().any(|word| word.split("::").next() == Some(name)))
        .map_or(Space::Generic, |(_, space)| space)
    };
    let float = || matches!(ty, Some(Type::Float(_) | Type::Brain | Type::HalfPair | Type::BrainPair));
    let mut label = None;
    let operation = match words[0] {
        "ld" | "ldu" => Operation::Load(space(), ty?),
        "st" => Operation::Store(space(), ty?),
        "mov" if parts.get(1)?.starts_with('{') => Operation::Pack(ty?),
        "mov" if parts.first()?.starts_with('{') => Operation::Unpack(ty?),
        "mov" => Operation::Move(ty?),
        "add" | "addc" | "mad" | "madc" if has("cc") || words[0].ends_with('c') => {
            let half = match (words[0].starts_with("mad"), has("hi")) {
                (false, _) => None,
                (true, false) => Some(Half::Low),
                (true, true) => Some(Half::High),
            };
            if ty? != Type::Unsigned(32) {
                return None;
            }
            Operation::Carry { half, takes: words[0].ends_with('c'), gives: has("cc") }
        }
        "add" => Operation::Binary(Binary::Add, ty?),
        "sub" => Operation::Binary(Binary::Sub, ty?),
        "mul" if has("hi") => Operation::Binary(Binary::MulHigh, ty?),
        "mul" if has("wide") => Operation::Binary(Binary::MulWide, ty?),
        "mul" => Operation::Binary(Binary::Mul, ty?),
        "div" => Operation::Binary(Binary::Div, ty?),
        "rem" => Operation::Binary(Binary::Rem, ty?),
        "min" => Operation::Binary(Binary::Min, ty?),
        "max" => Operation::Binary(Binary::Max, ty?),
        "and" => Operation::Binary(Binary::And, ty?),
        "or" => Operation::Binary(Binary::Or, ty?),
        "xor" => Operation::Binary(Binary::Xor, ty?),
        "shl" => Operation::Binary(Binary::ShiftLeft, ty?),
        "shr" => Operation::Binary(Binary::ShiftRight, ty?),
        "copysign" => Operation::Binary(Binary::CopySign, ty?),
        "mad" | "fma" if has("hi") => Operation::Ternary(Ternary::MulHighAdd, ty?),
        "mad" if has("wide") => Operation::Ternary(Ternary::MulWideAdd, ty?),
        "mad" | "fma" => Operation::Ternary(Ternary::MulAdd, ty?),
        "bfe" => Operation::Ternary(Ternary::ExtractBits, ty?),
        "bfi" => Operation::InsertBits(ty?),
        "dp4a" => {
            let signed = |i: usize| types.get(i).map(|ty| matches!(ty, Type::Signed(_)));
            Operation::Ternary(Ternary::DotBytes([signed(0)?, signed(1)?]), Type::Unsigned(32))
        }
        "prmt" if words.len() == 2 => Operation::Ternary(Ternary::Permute, ty?),
        "lop3" => {
            let table = immediate(parts.get(4)?)? as u8;
            Operation::Ternary(Ternary::Lookup(table), ty?)
        }
        "shf" if has("wrap") && has("l") => Operation::Ternary(Ternary::FunnelLeft, ty?),
        "shf" if has("wrap") && has("r") => Operation::Ternary(Ternary::FunnelRight, ty?),
        "not" => Operation::Unary(Unary::Not, ty?),
        "neg" => Operation::Unary(Unary::Neg, ty?),
        "abs" => Operation::Unary(Unary::Abs, ty?),
        "sqrt" => Operation::Unary(Unary::Sqrt, ty?),
        "rsqrt" => Operation::Unary(Unary::Rsqrt, ty?),
        "rcp" => Operation::Unary(Unary::Reciprocal, ty?),
        "ex2" => Operation::Unary(Unary::Exp2, ty?),
        "lg2" => Operation::Unary(Unary::Log2, ty?),
        "sin" => Operation::Unary(Unary::Sine, ty?),
        "cos" => Operation::Unary(Unary::Cosine, ty?),
        "tanh" => Operation::Unary(Unary::Tanh, ty?),
        "popc" => Operation::Unary(Unary::CountOnes, ty?),
        "clz" => Operation::Unary(Unary::LeadingZeros, ty?),
        "brev" => Operation::Unary(Unary::Reverse, ty?),
        "bfind" if words.len() == 2 => Operation::Unary(Unary::FindBit, ty?),
        "setp" => {
            let (compare, for_nan) = compare(words.get(1)?, float())?;
            let and = match words.get(2).copied() {
                Some("and") => Some(Binary::And),
                Some("or") => Some(Binary::Or),
                Some("xor") => Some(Binary::Xor),
                _ => None,
            };
            Operation::SetPredicate(compare, ty?, for_nan, and)
        }
        "selp" => Operation::Select(ty?),
        "cvt" => {
            let [to, from] = types[..] else { return None };
            let integral =
                [("rni", Rounding::Nearest), ("rzi", Rounding::Zero), ("rmi", Rounding::Down), ("rpi", Rounding::Up)];
            let plain =
                [("rn", Rounding::Nearest), ("rz", Rounding::Zero), ("rm", Rounding::Down), ("rp", Rounding::Up)];
            let of = |names: [(&str, Rounding); 4]| names.into_iter().find(|(name, _)| has(name)).map(|found| found.1);
            let (whole, rounding) = (of(integral), of(plain));
            Operation::Convert {
                to,
                from,
                rounding: whole.or(rounding).unwrap_or(Rounding::Nearest),
                is_integral: whole.is_some(),
                saturates: has("sat"),
            }
        }
        "cvta" => Operation::Address { space: space(), is_to_space: has("to") },
        "bra" => {
            label = Some(parts.first()?.clone());
            Operation::Branch(usize::MAX)
        }
        "wmma" => matrix(&words, &types, space())?,
        "bar" if has("warp") => Operation::WarpBarrier,
        "bar" | "barrier" => Operation::Barrier,
        "membar" | "fence" => Operation::Fence,
        "shfl" => Operation::Shuffle(match *words.get(2)? {
            "bfly" => Shuffle::Butterfly,
            "down" => Shuffle::Down,
            "up" => Shuffle::Up,
            "idx" => Shuffle::Index,
            _ => return None,
        }),
        "vote" => Operation::Vote(match *words.get(2)? {
            "all" => Vote::All,
            "any" => Vote::Any,
            "ballot" => Vote::Ballot,
            _ => return None,
        }),
        "activemask" => Operation::ActiveMask,
        "atom" | "red" => {
            let kind = [
                ("add", Atomic::Add),
                ("min", Atomic::Min),
                ("max", Atomic::Max),
                ("and", Atomic::And),
                ("or", Atomic::Or),
                ("xor", Atomic::Xor),
                ("exch", Atomic::Exchange),
                ("cas", Atomic::CompareAndSwap),
            ];
            Operation::Atomic(kind.into_iter().find(|(name, _)| has(name))?.1, space(), ty?)
        }
        "ret" | "exit" => Operation::Exit,
        _ => return None,
    };
    let has_no_output = matches!(
        operation,
        Operation::Store(..)
            | Operation::MatrixStore(..)
            | Operation::Branch(_)
            | Operation::Barrier
            | Operation::WarpBarrier
            | Operation::Fence
            | Operation::Exit
    ) || words[0] == "red";
    let (outputs, rest) = match has_no_output {
        true => (Vec::new(), &parts[..]),
        false => (registers(parts.first()?, symbols)?, &parts[1..]),
    };
    let mut inputs = Vec::new();
    match operation {
        Operation::Branch(_) | Operation::Barrier | Operation::Fence => {}
        _ => {
            for part in rest {
                inputs.extend(several(part, symbols)?);
            }
        }
    }
    Some((Instruction { guard, operation, outputs, inputs, line }, label))
}

/// An instruction on matrices: `wmma.load.a.sync.aligned.row.m16n16k8.shared.tf32` and its like.
fn matrix(words: &[&str], types: &[Type], space: Space) -> Option<Operation> {
    let shape = words.iter().find_map(|word| {
        let (m, rest) = word.strip_prefix('m')?.split_once('n')?;
        let (n, k) = rest.split_once('k')?;
        Some([m, n, k].map(|side| side.parse::<usize>().ok()))
    });
    let [Some(m), Some(n), Some(k)] = shape? else { return None };
    let is_row: Vec<bool> =
        words.iter().filter(|word| ["row", "col"].contains(word)).map(|word| *word == "row").collect();
    let of = |part: &str, is_row_major: bool, ty: Type| {
        let (rows, columns) = match part {
            "a" => (m, k),
            "b" => (k, n),
            _ => (m, n),
        };
        Matrix { rows, columns, is_row_major, ty }
    };
    Some(match *words.get(1)? {
        "load" => Operation::MatrixLoad(of(words.get(2)?, *is_row.first()?, *types.first()?), space),
        "store" => Operation::MatrixStore(of(words.get(2)?, *is_row.first()?, *types.first()?), space),
        "mma" => {
            // The types are of D, A, B, C; of F16 matrices D and C alone are told.
            let half = Type::Float(16);
            let (a, b, c) = match *types {
                [_, a, b, c] => (a, b, c),
                [_, c] => (half, half, c),
                _ => return None,
            };
            Operation::MatrixMultiply([of("a", *is_row.first()?, a), of("b", *is_row.get(1)?, b), of("c", true, c)])
        }
        _ => return None,
    })
}

/// A comparison, and what it is where a number is none.
fn compare(name: &str, is_float: bool) -> Option<(Compare, bool)> {
    let (plain, for_nan) = match name.strip_suffix('u') {
        Some(plain) if is_float && plain.len() == 2 => (plain, true),
        _ => (name, false),
    };
    Some(match plain {
        "eq" => (Compare::Equal, for_nan),
        "ne" => (Compare::NotEqual, for_nan),
        "lt" | "lo" => (Compare::Less, for_nan),
        "le" | "ls" => (Compare::LessEqual, for_nan),
        "gt" | "hi" => (Compare::Greater, for_nan),
        "ge" | "hs" => (Compare::GreaterEqual, for_nan),
        "num" => (Compare::IsNumber, false),
        "nan" => (Compare::IsNan, true),
        _ => return None,
    })
}
