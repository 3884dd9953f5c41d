//! Plain loops, compiled once for each instruction set: the compiler makes the vectors.

#![expect(
    unsafe_code,
    reason = "functions with target features are called where a CPU was asked for them"
)]

use super::InstructionSet;

/// Work whose loops the compiler can vectorise by itself.
///
/// [`Self::run`] and everything in it that shall be vectorised must be `#[inline(always)]`: what is not inlined is compiled for
/// the base instruction set. Results do not depend on the set, because nothing is reordered or fused.
pub trait Vectorized {
    type Output;

    fn run(self) -> Self::Output;
}

/// Runs `work` with the vectors of `set`.
///
/// # Panics
/// If this CPU lacks `set`.
#[inline]
pub fn vectorized<W: Vectorized>(set: InstructionSet, work: W) -> W::Output {
    assert!(set.is_available(), "this CPU has no {}", set.name());
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2,fma")]
        fn avx2<W: Vectorized>(work: W) -> W::Output {
            work.run()
        }
        #[target_feature(enable = "avx2,fma,avx512f,avx512bw,avx512dq,avx512vl")]
        fn avx512<W: Vectorized>(work: W) -> W::Output {
            work.run()
        }
        match set {
            InstructionSet::Portable => work.run(),
            // SAFETY: the CPU has the features, as was asserted above.
            InstructionSet::Avx2 => unsafe { avx2(work) },
            // SAFETY: likewise.
            InstructionSet::Avx512 | InstructionSet::Avx512Bf16 => unsafe { avx512(work) },
        }
    }
    #[cfg(not(target_arch = "x86_64"))]
    work.run()
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Squares<'a>(&'a mut [f32]);

    impl Vectorized for Squares<'_> {
        type Output = usize;

        #[inline(always)]
        fn run(self) -> usize {
            for value in self.0.iter_mut() {
                *value = *value * *value + 1.0;
            }
            self.0.len()
        }
    }

    #[test]
    fn every_set_computes_the_same() {
        let numbers: Vec<f32> = (0..99).map(|i| 1.0 / (i as f32 - 50.5)).collect();
        let expected: Vec<f32> = numbers.iter().map(|x| x * x + 1.0).collect();
        for set in crate::kernels::available() {
            let mut found = numbers.clone();
            assert_eq!(vectorized(set, Squares(&mut found)), 99);
            assert_eq!(found, expected, "{}", set.name());
        }
    }
}
