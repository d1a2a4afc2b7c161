//! What instructions compute, on bits.
//!
//! Approximate instructions (`ex2.approx`, `div.full` and their like) are computed as exactly as the type allows, and
//! subnormal numbers are kept: a device may be off by some last places.

use super::instruction::{Binary, Compare, Rounding, Ternary, Type, Unary};
use half::{bf16, f16};

/// The low `bits` bits.
fn low(value: u64, bits: u32) -> u64 {
    if bits >= 64 { value } else { value & ((1 << bits) - 1) }
}

/// The number that the low `bits` bits are.
fn signed(value: u64, bits: u32) -> i64 {
    let apart = 64 - bits;
    ((value << apart) as i64) >> apart
}

fn f32_of(value: u64) -> f32 {
    f32::from_bits(value as u32)
}

fn float(value: u64, ty: Type) -> f64 {
    match ty {
        Type::Float(64) => f64::from_bits(value),
        Type::Float(16) => f16::from_bits(value as u16).to_f64(),
        Type::Brain => bf16::from_bits(value as u16).to_f64(),
        _ => f64::from(f32_of(value)),
    }
}

/// The nearest number of `ty`, as bits. Sums, products, quotients and roots of numbers of at most 24 significant bits
/// may go through F64: rounded twice, they are what they would be rounded once (Figueroa, *When is double rounding
/// innocuous?*, 1995).
fn bits(value: f64, ty: Type) -> u64 {
    match ty {
        Type::Float(64) => value.to_bits(),
        Type::Float(16) => u64::from(f16::from_f64(value).to_bits()),
        Type::Brain => u64::from(bf16::from_f64(value).to_bits()),
        _ => u64::from((value as f32).to_bits()),
    }
}

fn is_float(ty: Type) -> bool {
    matches!(ty, Type::Float(_) | Type::Brain | Type::Tensor)
}

/// The bits of an F32 that tensor cores read.
const TENSOR_BITS: u64 = !0x1FFF;

/// An element of a matrix as tensor cores take it.
pub(crate) fn element(value: u64, ty: Type) -> f32 {
    match ty {
        Type::Tensor => f32_of(value & TENSOR_BITS),
        _ => float(value, ty) as f32,
    }
}

/// An element of a sum.
pub(crate) fn element_bits(value: f32, ty: Type) -> u64 {
    bits(f64::from(value), ty)
}

/// Two halves of a register, each by `f`.
fn halves(ty: Type, of: [u64; 3], f: impl Fn([u64; 3], Type) -> Option<u64>) -> Option<u64> {
    let half = if ty == Type::HalfPair { Type::Float(16) } else { Type::Brain };
    let lower = f(of.map(|value| value & 0xFFFF), half)?;
    let upper = f(of.map(|value| value >> 16 & 0xFFFF), half)?;
    Some(lower & 0xFFFF | upper << 16)
}

pub(crate) fn binary(operation: Binary, ty: Type, a: u64, b: u64) -> Option<u64> {
    if matches!(ty, Type::HalfPair | Type::BrainPair) {
        return halves(ty, [a, b, 0], |[a, b, _], half| binary(operation, half, a, b));
    }
    if is_float(ty) {
        let (a, b) = (float(a, ty), float(b, ty));
        let value = match operation {
            Binary::Add => a + b,
            Binary::Sub => a - b,
            Binary::Mul => a * b,
            Binary::Div => a / b,
            Binary::Min => a.min(b),
            Binary::Max => a.max(b),
            Binary::CopySign => b.copysign(a),
            _ => return None,
        };
        return Some(bits(value, ty));
    }
    let width = ty.bits();
    let is_signed = matches!(ty, Type::Signed(_));
    let (x, y) = (low(a, width), low(b, width));
    let (p, q) = (signed(a, width), signed(b, width));
    let wide = || if is_signed { i128::from(p) * i128::from(q) } else { (u128::from(x) * u128::from(y)) as i128 };
    let value = match operation {
        Binary::Add => x.wrapping_add(y),
        Binary::Sub => x.wrapping_sub(y),
        Binary::Mul => x.wrapping_mul(y),
        Binary::MulHigh => (wide() >> width) as u64,
        Binary::MulWide => return Some(low(wide() as u64, 2 * width)),
        Binary::Div if y == 0 => u64::MAX,
        Binary::Rem if y == 0 => x,
        Binary::Div if is_signed => p.wrapping_div(q) as u64,
        Binary::Div => x / y,
        Binary::Rem if is_signed => p.wrapping_rem(q) as u64,
        Binary::Rem => x % y,
        Binary::Min if is_signed => p.min(q) as u64,
        Binary::Min => x.min(y),
        Binary::Max if is_signed => p.max(q) as u64,
        Binary::Max => x.max(y),
        Binary::And => x & y,
        Binary::Or => x | y,
        Binary::Xor => x ^ y,
        // Beyond the width nothing is left, or the sign.
        Binary::ShiftRight if is_signed => (p >> low(b, 32).min(u64::from(width - 1))) as u64,
        Binary::ShiftLeft | Binary::ShiftRight if low(b, 32) >= u64::from(width) => 0,
        Binary::ShiftLeft => x << low(b, 32),
        Binary::ShiftRight => x >> low(b, 32),
        Binary::CopySign => return None,
    };
    Some(low(value, width))
}

pub(crate) fn unary(operation: Unary, ty: Type, a: u64) -> Option<u64> {
    if matches!(ty, Type::HalfPair | Type::BrainPair) {
        return halves(ty, [a, 0, 0], |[a, ..], half| unary(operation, half, a));
    }
    if is_float(ty) {
        let x = float(a, ty);
        let value = match operation {
            Unary::Neg => return Some(low(a, ty.bits()) ^ 1 << (ty.bits() - 1)),
            Unary::Abs => return Some(low(a, ty.bits() - 1)),
            Unary::Sqrt => x.sqrt(),
            Unary::Rsqrt => 1.0 / x.sqrt(),
            Unary::Reciprocal => 1.0 / x,
            Unary::Exp2 => x.exp2(),
            Unary::Log2 => x.log2(),
            Unary::Sine => x.sin(),
            Unary::Cosine => x.cos(),
            Unary::Tanh => x.tanh(),
            _ => return None,
        };
        return Some(bits(value, ty));
    }
    let width = ty.bits();
    let x = low(a, width);
    let value = match operation {
        Unary::Not => !x,
        Unary::Neg => x.wrapping_neg(),
        Unary::Abs => signed(a, width).unsigned_abs(),
        Unary::CountOnes => u64::from(x.count_ones()),
        Unary::LeadingZeros => u64::from(x.leading_zeros() - (64 - width)),
        Unary::Reverse => x.reverse_bits() >> (64 - width),
        Unary::FindBit => {
            let differing = if matches!(ty, Type::Signed(_)) && signed(a, width) < 0 { low(!x, width) } else { x };
            u64::from(differing.checked_ilog2().unwrap_or(u32::MAX))
        }
        _ => return None,
    };
    // Counts are numbers of 32 bits.
    let width = if matches!(operation, Unary::CountOnes | Unary::LeadingZeros | Unary::FindBit) { 32 } else { width };
    Some(low(value, width))
}

pub(crate) fn ternary(operation: Ternary, ty: Type, [a, b, c]: [u64; 3]) -> Option<u64> {
    if matches!(ty, Type::HalfPair | Type::BrainPair) {
        return halves(ty, [a, b, c], |of, half| ternary(operation, half, of));
    }
    if is_float(ty) {
        return match (operation, ty) {
            (Ternary::MulAdd, Type::Float(32)) => Some(u64::from(f32_of(a).mul_add(f32_of(b), f32_of(c)).to_bits())),
            (Ternary::MulAdd, _) => Some(bits(float(a, ty).mul_add(float(b, ty), float(c, ty)), ty)),
            _ => None,
        };
    }
    let width = ty.bits();
    let is_signed = matches!(ty, Type::Signed(_));
    Some(match operation {
        Ternary::MulAdd => low(a.wrapping_mul(b).wrapping_add(c), width),
        Ternary::MulHighAdd => low(binary(Binary::MulHigh, ty, a, b)?.wrapping_add(c), width),
        Ternary::MulWideAdd => low(binary(Binary::MulWide, ty, a, b)?.wrapping_add(c), 2 * width),
        Ternary::ExtractBits => {
            let (start, len) = ((b & 255) as u32, (c & 255) as u32);
            let taken = len.min(width.saturating_sub(start));
            let value = if taken == 0 { 0 } else { low(low(a, width) >> start, taken) };
            if is_signed && taken > 0 { low(signed(value, taken) as u64, width) } else { value }
        }
        Ternary::DotBytes([first, second]) => {
            let byte = |value: u64, i: u32, is_signed: bool| {
                let byte = (value >> (8 * i)) as u8;
                if is_signed { i64::from(byte as i8) } else { i64::from(byte) }
            };
            let sum: i64 = (0..4).map(|i| byte(a, i, first) * byte(b, i, second)).sum();
            low((sum as u64).wrapping_add(c), 32)
        }
        Ternary::Permute => {
            let bytes = low(a, 32) | low(b, 32) << 32;
            let pick = |i: u32| {
                let selector = c >> (4 * i) & 15;
                let byte = bytes >> (8 * (selector & 7)) & 255;
                if selector & 8 == 0 {
                    byte
                } else if byte & 128 != 0 {
                    255
                } else {
                    0
                }
            };
            (0..4).map(|i| pick(i) << (8 * i)).sum()
        }
        Ternary::Lookup(table) => (0..width).fold(0, |value, i| {
            let index = (a >> i & 1) << 2 | (b >> i & 1) << 1 | c >> i & 1;
            value | u64::from(table >> index & 1) << i
        }),
        Ternary::FunnelLeft | Ternary::FunnelRight => {
            let (both, by) = (low(a, 32) | low(b, 32) << 32, c & 31);
            if operation == Ternary::FunnelLeft { low(both << by >> 32, 32) } else { low(both >> by, 32) }
        }
    })
}

/// The low `len` bits of `a` into `b`, from bit `start` on.
pub(crate) fn insert_bits(ty: Type, a: u64, b: u64, start: u64, len: u64) -> u64 {
    let (width, start) = (ty.bits(), (start & 255) as u32);
    let taken = ((len & 255) as u32).min(width.saturating_sub(start));
    let mask = if taken == 0 { 0 } else { low(u64::MAX, taken) << start };
    low(b & !mask | a << (start & 63) & mask, width)
}

pub(crate) fn compare(how: Compare, ty: Type, for_nan: bool, a: u64, b: u64) -> bool {
    use std::cmp::Ordering;
    let order = match ty {
        ty if is_float(ty) => float(a, ty).partial_cmp(&float(b, ty)),
        Type::Signed(bits) => Some(signed(a, bits).cmp(&signed(b, bits))),
        _ => Some(low(a, ty.bits()).cmp(&low(b, ty.bits()))),
    };
    let Some(order) = order else { return for_nan };
    match how {
        Compare::Equal => order == Ordering::Equal,
        Compare::NotEqual => order != Ordering::Equal,
        Compare::Less => order == Ordering::Less,
        Compare::LessEqual => order != Ordering::Greater,
        Compare::Greater => order == Ordering::Greater,
        Compare::GreaterEqual => order != Ordering::Less,
        Compare::IsNumber => true,
        Compare::IsNan => false,
    }
}

fn whole(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

pub(crate) fn convert(
    to: Type,
    from: Type,
    rounding: Rounding,
    is_integral: bool,
    saturates: bool,
    a: u64,
) -> Option<u64> {
    match (is_float(from), is_float(to)) {
        (false, false) => {
            let width = from.bits();
            let value = match from {
                Type::Signed(_) => i128::from(signed(a, width)),
                _ => i128::from(low(a, width)),
            };
            let value = if saturates { value.clamp(smallest(to), largest(to)) } else { value };
            Some(low(value as u64, to.bits().max(1)))
        }
        (false, true) => {
            let width = from.bits();
            // F64 holds integers of 32 bits; those of 64 are rounded by the conversion itself.
            let value = match (from, to) {
                (Type::Signed(_), Type::Float(32)) => return Some(u64::from((signed(a, width) as f32).to_bits())),
                (_, Type::Float(32)) => return Some(u64::from((low(a, width) as f32).to_bits())),
                (Type::Signed(_), _) => signed(a, width) as f64,
                _ => low(a, width) as f64,
            };
            Some(bits(value, to))
        }
        (true, false) => {
            let value = whole(float(a, from), rounding);
            let value = if value.is_nan() { 0 } else { (value as i128).clamp(smallest(to), largest(to)) };
            Some(low(value as u64, to.bits()))
        }
        // To the nearest, of two the one that is farther from zero.
        (true, true) if to == Type::Tensor => Some((low(a, 32) + 0x1000) & TENSOR_BITS & 0xFFFF_FFFF),
        (true, true) => {
            let value = float(a, from);
            let value = if is_integral { whole(value, rounding) } else { value };
            let value = if saturates { if value.is_nan() { 0.0 } else { value.clamp(0.0, 1.0) } } else { value };
            // Other roundings of narrower numbers are not asked for by kernels.
            (is_integral || rounding == Rounding::Nearest || to.bits() >= from.bits()).then(|| bits(value, to))
        }
    }
}

fn smallest(ty: Type) -> i128 {
    match ty {
        Type::Signed(bits) => -(1 << (bits - 1)),
        _ => 0,
    }
}

fn largest(ty: Type) -> i128 {
    match ty {
        Type::Signed(bits) => (1 << (bits - 1)) - 1,
        _ => (1 << ty.bits()) - 1,
    }
}
