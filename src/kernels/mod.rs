//! The loops that decide how long a run takes on a CPU: slices in, slices out; no tensor, no file, no model.
//!
//! Each kernel takes the [`InstructionSet`] to use as its first argument and has a portable twin, which its tests
//! compare every other version with. Programs pass [`chosen`]; tests go through [`available`].

pub mod attention;
mod bf16;
pub mod columns;
pub mod gated;
pub mod gram;
mod grids;
mod lanes;
#[cfg(test)]
pub(crate) mod noise;
pub mod norm;
pub mod ranges;
pub mod rotary;
mod vectorized;

use std::sync::OnceLock;

pub use grids::{Fit, Levels, ZeroPoint};
pub use vectorized::{Vectorized, vectorized};

/// The environment variable that overrides the choice, by [`InstructionSet::name`].
pub const VARIABLE: &str = "NIBBLE_KERNELS";

/// What the CPU's vector units can do, least first. Each includes all before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum InstructionSet {
    /// What the compiler makes of plain loops for the target's base instruction set.
    Portable,
    /// AVX2 with fused multiply-add.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 with products of bfloat16 pairs.
    Avx512Bf16,
}

impl InstructionSet {
    const ALL: [Self; 4] = [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16];

    /// What the variable, the log and the report call it.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
        }
    }

    /// Whether this CPU, and the system on it, can run it.
    #[cfg(target_arch = "x86_64")]
    pub fn is_available(self) -> bool {
        let avx2 = || is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
        let avx512 = || {
            is_x86_feature_detected!("avx512f")
                && is_x86_feature_detected!("avx512bw")
                && is_x86_feature_detected!("avx512dq")
                && is_x86_feature_detected!("avx512vl")
        };
        match self {
            Self::Portable => true,
            Self::Avx2 => avx2(),
            Self::Avx512 => avx2() && avx512(),
            Self::Avx512Bf16 => avx2() && avx512() && is_x86_feature_detected!("avx512bf16"),
        }
    }

    /// Whether this CPU, and the system on it, can run it.
    #[cfg(not(target_arch = "x86_64"))]
    pub fn is_available(self) -> bool {
        self == Self::Portable
    }
}

/// All that this CPU can run, least first.
pub fn available() -> Vec<InstructionSet> {
    InstructionSet::ALL
        .into_iter()
        .filter(|set| set.is_available())
        .collect()
}

/// A name in [`VARIABLE`] that this CPU has no kernels for.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{VARIABLE} is {name:?}; this CPU has {}", available().iter().map(|set| set.name()).collect::<Vec<_>>().join(", "))]
pub struct Unavailable {
    name: String,
}

/// The most that this CPU can run, or what [`VARIABLE`] names; found once.
///
/// # Errors
/// [`Unavailable`]: results from other kernels than those asked for would be worse than none.
pub fn choose() -> Result<InstructionSet, Unavailable> {
    static CHOICE: OnceLock<Result<InstructionSet, Unavailable>> = OnceLock::new();
    let choice = CHOICE.get_or_init(|| {
        let name = std::env::var(VARIABLE).unwrap_or_default();
        let sets = available();
        let set = if name.is_empty() {
            sets.last()
        } else {
            sets.iter().find(|set| set.name() == name)
        };
        let set = *set.ok_or(Unavailable { name })?;
        tracing::debug!("kernels for {}", set.name());
        Ok(set)
    });
    choice.clone()
}

/// What [`choose`] found, for code that runs after the program has asked it.
///
/// # Panics
/// Where it found none.
pub fn chosen() -> InstructionSet {
    choose().unwrap_or_else(|error| panic!("{error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_portable_kernels_are_always_there_and_the_choice_is_available() {
        let sets = available();
        assert_eq!(sets.first(), Some(&InstructionSet::Portable));
        assert!(sets.is_sorted());
        assert!(sets.contains(&chosen()));
    }
}
