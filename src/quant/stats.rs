//! Statistics of a linear's input, accumulated over the calibration tokens, and the error measured with them.

use tch::{Device, Kind, Tensor};

use super::Error;

/// Width of the blocks of the Gram matrix: only those on and below the diagonal are multiplied.
const GRAM_BLOCK: i64 = 256;

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
    /// Statistics of nothing, for inputs of `in_features` columns.
    pub fn new(in_features: usize, device: Device) -> Result<Self, Error> {
        let size = in_features as i64;
        Ok(Self {
            gram: Tensor::f_zeros([size, size], (Kind::Float, device))?,
            abs_sum: Tensor::f_zeros([size], (Kind::Float, device))?,
            n_tokens: 0,
        })
    }

    /// Adds the rows of `x`, `[.., in]` of any float kind. Only the lower triangle's blocks are updated: see [`Self::finish`].
    pub fn observe(&mut self, x: &Tensor) -> Result<(), Error> {
        let size = self.abs_sum.size()[0];
        let x = x.f_reshape([-1, size])?;
        self.n_tokens += x.size()[0] as usize;
        let x = x.f_to_kind(Kind::Float)?;
        let _ = self
            .abs_sum
            .f_add_(&x.f_abs()?.f_sum_dim_intlist(0, false, Kind::Float)?)?;
        let mut start = 0;
        while start < size {
            let len = GRAM_BLOCK.min(size - start);
            // Rows of this block times all columns up to its right edge.
            let rows = x.f_narrow(1, start, len)?.f_tr()?;
            let mut target = self
                .gram
                .f_narrow(0, start, len)?
                .f_narrow(1, 0, start + len)?;
            let _ = target.f_addmm_(&rows, &x.f_narrow(1, 0, start + len)?)?;
            start += len;
        }
        Ok(())
    }

    /// Mirrors the lower triangle onto the upper one and checks that all is finite.
    pub fn finish(mut self) -> Result<Self, Error> {
        let lower = self.gram.f_tril(0)?;
        self.gram = lower.f_add(&lower.f_tril(-1)?.f_tr()?)?;
        let diagonal = self.gram.f_diagonal(0, 0, 1)?;
        let bad = diagonal.f_isfinite()?.f_logical_not()?.f_sum(Kind::Int64)?;
        match usize::try_from(bad.f_int64_value(&[])?) {
            Ok(0) => Ok(self),
            count => Err(Error::NotFinite {
                what: "the calibration activations",
                count: count.unwrap_or(usize::MAX),
            }),
        }
    }
}

/// `tr(ΔW G ΔWᵀ) / n_tokens` for `delta` = ΔW `[out, in]`: the mean squared change of the output, summed over its features.
pub fn output_error(delta: &Tensor, stats: &InputStats) -> Result<f64, Error> {
    let product = delta.f_mm(&stats.gram)?.f_mul(delta)?;
    Ok(product.f_sum(Kind::Double)?.f_double_value(&[])? / stats.n_tokens.max(1) as f64)
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
            let mut stats = InputStats::new(size as usize, Device::Cpu).unwrap();
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
    fn infinite_activations_are_an_error() {
        let mut stats = InputStats::new(2, Device::Cpu).unwrap();
        stats
            .observe(&Tensor::from_slice(&[f32::INFINITY, 0.0]).view([1, 2]))
            .unwrap();
        assert!(matches!(stats.finish(), Err(Error::NotFinite { .. })));
    }
}
