//! Which vector instructions may run: found once, passed around as a value.

use std::sync::OnceLock;

/// Sets of vector instructions that kernels are written for, each containing those before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SimdLevel {
    /// What every machine of the target has; the compiler vectorises loops.
    Portable,
    /// AVX2 and FMA: x86-64 since 2013.
    Avx2,
    /// AVX-512 F, BW, DQ and VL: servers since 2017.
    Avx512,
    /// And VBMI, VNNI, VBMI2 and GFNI: Intel since 2019, AMD since Zen 4.
    Avx512Vbmi,
}

/// A level that this machine has: the proof that its instructions may run.
///
/// # Example
/// ```
/// use pixel_core::math::simd::{Simd, SimdLevel};
/// assert_eq!(Simd::at_most(SimdLevel::Portable).level(), SimdLevel::Portable);
/// assert!(Simd::available().contains(&Simd::detect()));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Simd(SimdLevel);

impl Simd {
    /// The highest level of this machine.
    pub fn detect() -> Self {
        static DETECTED: OnceLock<Simd> = OnceLock::new();
        *DETECTED.get_or_init(|| Self(detect()))
    }

    /// The highest level of this machine that is not above `level`.
    pub fn at_most(level: SimdLevel) -> Self {
        Self::detect().min(Self(level))
    }

    /// All levels of this machine, the highest last.
    pub fn available() -> Vec<Self> {
        use SimdLevel::{Avx2, Avx512, Avx512Vbmi, Portable};
        [Portable, Avx2, Avx512, Avx512Vbmi].map(Self).into_iter().filter(|simd| *simd <= Self::detect()).collect()
    }

    /// The level.
    pub const fn level(self) -> SimdLevel {
        self.0
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> SimdLevel {
    macro_rules! has {
        ($($feature:tt)+) => { true $(&& is_x86_feature_detected!($feature))+ };
    }
    if !has!("avx2" "fma") {
        SimdLevel::Portable
    } else if !has!("avx512f" "avx512bw" "avx512dq" "avx512vl") {
        SimdLevel::Avx2
    } else if !has!("avx512vbmi" "avx512vnni" "avx512vbmi2" "gfni") {
        SimdLevel::Avx512
    } else {
        SimdLevel::Avx512Vbmi
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> SimdLevel {
    SimdLevel::Portable
}

/// Defines a function once and compiles it for every level; which version runs is decided by a [`Simd`] in front of its
/// arguments. The body uses no intrinsics: the compiler vectorises its loops, and no operation is fused or reordered,
/// so that all versions give the same bits.
macro_rules! for_every_level {
    ($(#[$meta:meta])* $vis:vis fn $name:ident($($arg:ident: $type:ty),* $(,)?) $(-> $out:ty)? $body:block) => {
        $(#[$meta])*
        $vis fn $name(simd: $crate::math::simd::Simd, $($arg: $type),*) $(-> $out)? {
            #[inline(always)]
            fn body($($arg: $type),*) $(-> $out)? $body
            #[cfg(target_arch = "x86_64")]
            {
                use $crate::math::simd::SimdLevel;
                #[target_feature(enable = "avx2")]
                fn avx2($($arg: $type),*) $(-> $out)? { body($($arg),*) }
                #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
                fn avx512($($arg: $type),*) $(-> $out)? { body($($arg),*) }
                match simd.level() {
                    SimdLevel::Portable => {}
                    // SAFETY: a `Simd` exists only for levels that the machine has.
                    SimdLevel::Avx2 => return unsafe { avx2($($arg),*) },
                    // SAFETY: as above.
                    SimdLevel::Avx512 | SimdLevel::Avx512Vbmi => return unsafe { avx512($($arg),*) },
                }
            }
            #[cfg(not(target_arch = "x86_64"))]
            let _ = simd;
            body($($arg),*)
        }
    };
}

pub(crate) use for_every_level;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_follow_one_another_and_those_missing_here_are_said() {
        use SimdLevel::{Avx2, Avx512, Avx512Vbmi, Portable};
        let every = [Portable, Avx2, Avx512, Avx512Vbmi];
        let available: Vec<_> = Simd::available().into_iter().map(Simd::level).collect();
        assert_eq!(available, every[..available.len()]);
        assert_eq!(available.last(), Some(&Simd::detect().level()));
        println!("SIMD levels tested: {available:?}; not tested on this machine: {:?}", &every[available.len()..]);
    }
}
