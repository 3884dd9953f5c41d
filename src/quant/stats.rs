//! Statistics of a linear's input, accumulated over the calibration tokens, and the error measured with them.

use tch::{Device, Kind, Tensor};

use super::Error;
use crate::kernels::{self, gram};
use crate::tensor::{Exclusive, bf16_slice, f32_slice};

/// Width of the blocks in which libtorch works on a triangle of the Gram matrix.
const GRAM_BLOCK: i64 = 256;

/// Width of the blocks of columns in which an error is summed, so that only one half of the Gram matrix is multiplied.
const ERROR_BLOCK: usize = 128;

/// What the quantizers know of a stage's input X: enough for the error of any change of the weights, without X.
#[derive(Debug)]
pub struct InputStats {
    /// `XᵀX`, `[in, in]` float32. The GPTQ papers' Hessian is 2/n of it.
    pub gram: Tensor,
    /// Sum over tokens of `|x|`, `[in]` float32.
    pub abs_sum: Tensor,
    /// Rows of X seen.
    pub n_tokens: usize,
}

impl InputStats {
    /// The same numbers in memory of their own.
    pub fn copy(&self) -> Result<Self, Error> {
        Ok(Self {
            gram: self.gram.f_alias_copy()?,
            abs_sum: self.abs_sum.f_alias_copy()?,
            n_tokens: self.n_tokens,
        })
    }
}

/// [`InputStats`] in the making.
#[derive(Debug)]
pub struct InputSums {
    in_features: usize,
    n_tokens: usize,
    sums: Sums,
}

/// Of `gram`, only the lower triangle counts.
#[derive(Debug)]
enum Sums {
    Cpu {
        gram: Exclusive,
        abs_sum: Exclusive,
        scratch: gram::Scratch,
    },
    Gpu {
        gram: Tensor,
        abs_sum: Tensor,
    },
}

impl InputSums {
    /// Sums over no tokens, for inputs of `in_features` columns.
    pub fn new(in_features: usize, device: Device) -> Result<Self, Error> {
        let size = in_features as i64;
        let sums = if device == Device::Cpu {
            Sums::Cpu {
                gram: Exclusive::zeros(&[in_features, in_features])?,
                abs_sum: Exclusive::zeros(&[in_features])?,
                scratch: gram::Scratch::default(),
            }
        } else {
            Sums::Gpu {
                gram: Tensor::f_zeros([size, size], (Kind::Float, device))?,
                abs_sum: Tensor::f_zeros([size], (Kind::Float, device))?,
            }
        };
        Ok(Self {
            in_features,
            n_tokens: 0,
            sums,
        })
    }

    /// Adds the rows of `x`, `[.., in]` of any float kind.
    pub fn observe(&mut self, x: &Tensor) -> Result<(), Error> {
        let x = x.f_reshape([-1, self.in_features as i64])?;
        self.n_tokens += x.size()[0] as usize;
        match &mut self.sums {
            Sums::Cpu {
                gram,
                abs_sum,
                scratch,
            } => {
                let x = match x.kind() {
                    Kind::BFloat16 | Kind::Float => x.f_contiguous()?,
                    _ => x.f_to_kind(Kind::Float)?.f_contiguous()?,
                };
                let rows = match x.kind() {
                    Kind::BFloat16 => gram::Rows::Bf16(bf16_slice(&x)),
                    _ => gram::Rows::F32(f32_slice(&x)),
                };
                let sums = gram::Sums {
                    gram: gram.values(),
                    abs_sum: abs_sum.values(),
                };
                gram::accumulate(kernels::chosen(), rows, sums, scratch);
                Ok(())
            }
            Sums::Gpu { gram, abs_sum } => observe_in_blocks(&x, gram, abs_sum),
        }
    }

    /// Mirrors the lower triangle onto the upper one and checks that all is finite.
    pub fn finish(self) -> Result<InputStats, Error> {
        let (mut gram, abs_sum) = match self.sums {
            Sums::Cpu { gram, abs_sum, .. } => (gram.into_tensor(), abs_sum.into_tensor()),
            Sums::Gpu { gram, abs_sum } => (gram, abs_sum),
        };
        mirror(&mut gram)?;
        let diagonal = gram.f_diagonal(0, 0, 1)?;
        let bad = diagonal.f_isfinite()?.f_logical_not()?.f_sum(Kind::Int64)?;
        match usize::try_from(bad.f_int64_value(&[])?) {
            Ok(0) => Ok(InputStats {
                gram,
                abs_sum,
                n_tokens: self.n_tokens,
            }),
            count => Err(Error::NotFinite {
                what: "the calibration activations",
                count: count.unwrap_or(usize::MAX),
            }),
        }
    }
}

/// Copies the lower triangle onto the upper one, in blocks: a transposed copy would be as large as the matrix.
fn mirror(gram: &mut Tensor) -> Result<(), Error> {
    let size = gram.size()[0];
    for start in (0..size).step_by(GRAM_BLOCK as usize) {
        let len = GRAM_BLOCK.min(size - start);
        let rows = gram.f_narrow(0, start, len)?;
        let mut above = gram.f_narrow(0, 0, start)?.f_narrow(1, start, len)?;
        above.f_copy_(&rows.f_narrow(1, 0, start)?.f_tr()?)?;
        let mut own = rows.f_narrow(1, start, len)?;
        let lower = own.f_tril(-1)?;
        let _ = own.f_tril_(0)?.f_add_(&lower.f_tr()?)?;
    }
    Ok(())
}

/// Adds the rows of `x` with libtorch, the Gram matrix's blocks above the diagonal left out.
fn observe_in_blocks(x: &Tensor, gram: &Tensor, abs_sum: &mut Tensor) -> Result<(), Error> {
    let x = x.f_to_kind(Kind::Float)?;
    let size = x.size()[1];
    let _ = abs_sum.f_add_(&x.f_abs()?.f_sum_dim_intlist(0, false, Kind::Float)?)?;
    let mut start = 0;
    while start < size {
        let len = GRAM_BLOCK.min(size - start);
        // Rows of this block times all columns up to its right edge.
        let rows = x.f_narrow(1, start, len)?.f_tr()?;
        let mut target = gram.f_narrow(0, start, len)?.f_narrow(1, 0, start + len)?;
        let _ = target.f_addmm_(&rows, &x.f_narrow(1, 0, start + len)?)?;
        start += len;
    }
    Ok(())
}

/// `tr(ΔW G ΔWᵀ) / n_tokens` for `delta` = ΔW `[out, in]`: the mean squared change of the output, summed over its features.
/// Works on the device of `stats`.
pub fn output_error(delta: &Tensor, stats: &InputStats) -> Result<f64, Error> {
    let delta = delta.f_to_device(stats.gram.device())?;
    let size = delta.size2()?.1;
    let mut half = 0.0;
    for start in (0..size).step_by(ERROR_BLOCK) {
        let len = (size - start).min(ERROR_BLOCK as i64);
        let own = delta.f_narrow(1, start, len)?;
        let gram = stats.gram.f_narrow(1, start, len)?;
        // G is symmetric: half of a diagonal block, and what is above it once.
        let mut product = own
            .f_mm(&gram.f_narrow(0, start, len)?)?
            .f_mul_scalar_(0.5)?;
        let before = delta.f_narrow(1, 0, start)?;
        let _ = product.f_addmm_(&before, &gram.f_narrow(0, 0, start)?)?;
        let products = product.f_mul_(&own)?;
        half += products.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    Ok(2.0 * half / stats.n_tokens.max(1) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gram_and_error_match_their_definitions() {
        tch::manual_seed(1);
        let options = (Kind::Double, Device::Cpu);
        for size in [1, 255, 256, 300, 513] {
            let x = Tensor::randn([2, 17, size], options);
            let mut stats = InputSums::new(size as usize, Device::Cpu).unwrap();
            for batch in x.unbind(0) {
                stats.observe(&batch).unwrap();
            }
            let stats = stats.finish().unwrap();
            assert_eq!(stats.n_tokens, 34);
            let rows = x.reshape([34, size]);
            let expected = rows.tr().mm(&rows);
            let worst = (stats.gram.to_kind(Kind::Double) - &expected)
                .abs()
                .max()
                .double_value(&[]);
            assert!(worst < 1e-3, "{size}: {worst}");
            let sums = rows.abs().sum_dim_intlist(0, false, Kind::Double);
            assert!(
                (stats.abs_sum.to_kind(Kind::Double) - sums)
                    .abs()
                    .max()
                    .double_value(&[])
                    < 1e-3
            );
            let delta = Tensor::randn([3, size], options);
            let direct = rows
                .mm(&delta.tr())
                .square()
                .sum(Kind::Double)
                .double_value(&[])
                / 34.0;
            let found = output_error(&delta.to_kind(Kind::Float), &stats).unwrap();
            assert!((found - direct).abs() < 1e-4 * direct, "{found} {direct}");
        }
    }

    #[test]
    fn bfloat16_and_float16_are_taken_as_they_are() {
        tch::manual_seed(2);
        let x = Tensor::randn([300, 65], (Kind::Float, Device::Cpu));
        for kind in [Kind::BFloat16, Kind::Half] {
            let rounded = x.to_kind(kind);
            let [found, expected] = [&rounded, &rounded.to_kind(Kind::Float)].map(|x| {
                let mut sums = InputSums::new(65, Device::Cpu).unwrap();
                // Not contiguous: every other row.
                sums.observe(&x.slice(0, 0, 300, 2)).unwrap();
                sums.finish().unwrap()
            });
            assert_eq!(found.n_tokens, 150);
            // 150 products a sum, each sum in its own order.
            assert!(found.gram.allclose(&expected.gram, 1e-5, 1e-4, false));
            assert!(found.abs_sum.allclose(&expected.abs_sum, 1e-5, 1e-4, false));
        }
    }

    #[test]
    fn infinite_activations_are_an_error() {
        let mut stats = InputSums::new(2, Device::Cpu).unwrap();
        stats
            .observe(&Tensor::from_slice(&[f32::INFINITY, 0.0]).view([1, 2]))
            .unwrap();
        assert!(matches!(stats.finish(), Err(Error::NotFinite { .. })));
    }
}
