//! The instructions of PTX that compilers write for kernels of numbers.
//!
//! Source: *PTX ISA*, <https://docs.nvidia.com/cuda/parallel-thread-execution/>.

/// The type of an instruction's numbers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Type {
    Pred,
    /// Bits, or unsigned integers, of so many.
    Unsigned(u32),
    Signed(u32),
    Float(u32),
    /// F32 of which tensor cores read the first 19 bits.
    Tensor,
    Brain,
    /// Two F16 in a register.
    HalfPair,
    /// Two BF16 in a register.
    BrainPair,
}

impl Type {
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let bits = |digits: &str| digits.parse().ok().filter(|bits| [8, 16, 32, 64].contains(bits));
        Some(match text {
            "pred" => Self::Pred,
            "tf32" => Self::Tensor,
            "bf16" => Self::Brain,
            "f16x2" => Self::HalfPair,
            "bf16x2" => Self::BrainPair,
            _ => match text.split_at_checked(1)? {
                ("b" | "u", digits) => Self::Unsigned(bits(digits)?),
                ("s", digits) => Self::Signed(bits(digits)?),
                ("f", digits) => Self::Float(bits(digits)?),
                _ => return None,
            },
        })
    }

    pub(crate) fn bits(self) -> u32 {
        match self {
            Self::Pred => 1,
            Self::Unsigned(bits) | Self::Signed(bits) | Self::Float(bits) => bits,
            Self::Brain => 16,
            Self::HalfPair | Self::BrainPair | Self::Tensor => 32,
        }
    }

    pub(crate) fn bytes(self) -> usize {
        self.bits().div_ceil(8) as usize
    }
}

/// Where an address leads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Space {
    /// Told by the address.
    Generic,
    Global,
    Shared,
    Local,
    Param,
    Const,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Special {
    Thread(usize),
    Threads(usize),
    Block(usize),
    Blocks(usize),
    Lane,
    Warp,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operand {
    Register(u32),
    Immediate(u64),
    Special(Special),
    /// A register and what is added to it, as the address of a load.
    Offset(u32, i64),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Binary {
    Add,
    Sub,
    Mul,
    MulHigh,
    /// To twice the width.
    MulWide,
    Div,
    Rem,
    Min,
    Max,
    And,
    Or,
    Xor,
    ShiftLeft,
    ShiftRight,
    CopySign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Unary {
    Not,
    Neg,
    Abs,
    Sqrt,
    Rsqrt,
    Reciprocal,
    Exp2,
    Log2,
    Sine,
    Cosine,
    Tanh,
    CountOnes,
    LeadingZeros,
    Reverse,
    /// The place of the highest bit that differs from the sign.
    FindBit,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ternary {
    /// The low half of a product and a sum; of floats, rounded once.
    MulAdd,
    MulHighAdd,
    MulWideAdd,
    ExtractBits,
    /// Four sums of products of bytes: of `i8` where the flag says so, for either factor.
    DotBytes([bool; 2]),
    Permute,
    /// A function of three bits, by its table.
    Lookup(u8),
    FunnelLeft,
    FunnelRight,
}

/// Which half of a product.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Half {
    Low,
    High,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessEqual,
    Greater,
    GreaterEqual,
    IsNumber,
    IsNan,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Rounding {
    Nearest,
    Zero,
    Down,
    Up,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shuffle {
    Butterfly,
    Down,
    Up,
    Index,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Atomic {
    Add,
    Min,
    Max,
    And,
    Or,
    Xor,
    Exchange,
    CompareAndSwap,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Operation {
    /// Into as many registers as there are outputs.
    Load(Space, Type),
    /// The address, then the values.
    Store(Space, Type),
    Move(Type),
    /// Registers side by side into one, the first lowest.
    Pack(Type),
    Unpack(Type),
    Binary(Binary, Type),
    Unary(Unary, Type),
    /// A sum, or a sum with half of a product, of 32 bits with the carry of the one before.
    Carry {
        half: Option<Half>,
        takes: bool,
        gives: bool,
    },
    Ternary(Ternary, Type),
    /// `insert`: the low bits of the first into the second.
    InsertBits(Type),
    /// The flag: true where a number that is none compares as true.
    SetPredicate(Compare, Type, bool, Option<Binary>),
    Select(Type),
    Convert {
        to: Type,
        from: Type,
        rounding: Rounding,
        is_integral: bool,
        saturates: bool,
    },
    /// To or from the generic addresses of a space.
    Address {
        space: Space,
        is_to_space: bool,
    },
    Branch(usize),
    Barrier,
    Fence,
    Shuffle(Shuffle),
    Vote(Vote),
    ActiveMask,
    WarpBarrier,
    /// A matrix from memory into the registers of a warp: which of a product, and where an element lies.
    MatrixLoad(Matrix, Space),
    MatrixStore(Matrix, Space),
    /// `D = A·B + C`.
    MatrixMultiply([Matrix; 3]),
    Atomic(Atomic, Space, Type),
    Exit,
}

/// A matrix that a warp holds. Which lane holds which element is not specified: here they follow one another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Matrix {
    pub(crate) rows: usize,
    pub(crate) columns: usize,
    /// Whether the elements of a row lie side by side in memory.
    pub(crate) is_row_major: bool,
    pub(crate) ty: Type,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Vote {
    All,
    Any,
    Ballot,
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Instruction {
    /// The predicate under which it is carried out, and whether it has to be false.
    pub(crate) guard: Option<(u32, bool)>,
    pub(crate) operation: Operation,
    pub(crate) outputs: Vec<u32>,
    pub(crate) inputs: Vec<Operand>,
    /// The line of the text.
    pub(crate) line: usize,
}

/// A kernel.
#[derive(Debug, Clone, Default)]
pub(crate) struct Kernel {
    pub(crate) name: String,
    /// Offset and size of each parameter.
    pub(crate) parameters: Vec<(usize, usize)>,
    pub(crate) registers: usize,
    pub(crate) code: Vec<Instruction>,
    /// Bytes of shared memory that the code itself asks for.
    pub(crate) shared: usize,
    /// Bytes of a thread's own memory.
    pub(crate) local: usize,
    /// Constants, whose addresses begin at 0.
    pub(crate) constants: Vec<u8>,
}
