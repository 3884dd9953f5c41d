//! [`Grid`] for many groups at once, as tensor operations on any device.

use tch::{Kind, TchError, Tensor};

use crate::quant::{Grid, Scheme};

/// The same bounds of the stored scale as in `Grid`: the test below compares all of it.
const SCALE_BOUNDS: (f64, f64) = (Grid::MIN_SCALE as f64, 65504.0);

/// One scale and zero point a group. `code` stands for `(code - zero_point) * scale`.
pub(super) struct Grids {
    scale: Tensor,
    lowest: Tensor,
    highest: Tensor,
}

impl Grids {
    /// `Grid::from_range` for each element of `min` and `max`, which are shaped so that they broadcast over the weights.
    pub(super) fn from_range(min: &Tensor, max: &Tensor, scheme: Scheme) -> Result<Self, TchError> {
        let max_code = f64::from(scheme.max_code());
        let min = min.f_clamp_max(0.0)?;
        let max = max.f_clamp_min(0.0)?;
        let (scale, zero_point) = if scheme.symmetric {
            let reach = max.f_maximum(&min.f_neg()?)?;
            let scale = stored(&reach.f_mul_scalar(2.0)?.f_div_scalar(max_code)?)?;
            let zero_point = scale.f_full_like(f64::from(scheme.mid_code()))?;
            (scale, zero_point)
        } else {
            let floor = f64::from(scheme.min_zero_point);
            let scale = stored(&max.f_sub(&min)?.f_div_scalar(max_code)?)?;
            let zero_point = min
                .f_neg()?
                .f_div(&scale)?
                .f_round()?
                .f_clamp_max(max_code)?;
            if floor == 0.0 {
                (scale, zero_point)
            } else {
                let below = zero_point.f_lt(floor)?;
                let upper_end = max.f_div_scalar(max_code - floor)?;
                let moved = stored(&upper_end.f_maximum(&min.f_neg()?.f_div_scalar(floor)?)?)?;
                (
                    moved.f_where_self(&below, &scale)?,
                    zero_point.f_clamp_min(floor)?,
                )
            }
        };
        Ok(Self {
            lowest: zero_point.f_neg()?,
            highest: zero_point.f_neg()?.f_add_scalar(max_code)?,
            scale,
        })
    }

    /// Writes the grids' nearest values to `weights` into `rounded`.
    pub(super) fn round_into(
        &self,
        weights: &Tensor,
        rounded: &mut Tensor,
    ) -> Result<(), TchError> {
        let _ = weights.f_div_out(rounded, &self.scale)?;
        let _ = rounded.f_round_()?;
        let _ = rounded.f_clamp_tensor_(Some(&self.lowest), Some(&self.highest))?;
        let _ = rounded.f_mul_(&self.scale)?;
        Ok(())
    }
}

/// `scale` as it is stored: float16, neither zero nor infinite.
fn stored(scale: &Tensor) -> Result<Tensor, TchError> {
    scale
        .f_clamp(SCALE_BOUNDS.0, SCALE_BOUNDS.1)?
        .f_to_kind(Kind::Half)?
        .f_to_kind(Kind::Float)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use tch::Device;

    use super::*;
    use crate::quant::GroupSize;

    #[test]
    fn every_value_equals_the_scalar_grid() {
        tch::manual_seed(3);
        let ranges = [
            (-1.0, 1.0),
            (-0.3, 2.0),
            (0.1, 0.9),
            (-0.9, -0.1),
            (0.0, 0.0),
            (-1e-9, 1e-9),
            (-1e6, 2e6),
            (-0.01, 3.0),
        ];
        for (bits, symmetric, min_zero_point) in [
            (2, false, 0),
            (3, false, 1),
            (4, false, 0),
            (4, false, 1),
            (4, true, 0),
            (8, false, 0),
            (8, true, 0),
        ] {
            let scheme = Scheme {
                bits,
                group_size: GroupSize::WholeRow,
                symmetric,
                min_zero_point,
            };
            for (min, max) in ranges {
                let weights =
                    Tensor::rand([1, 500], (Kind::Float, Device::Cpu)) * (max - min) * 1.2
                        + min * 1.1;
                let _ = weights.narrow(1, 0, 1).fill_(0.0);
                let tensor = |value: f64| Tensor::from_slice(&[value as f32]).view([1, 1]);
                let mut rounded = weights.empty_like();
                Grids::from_range(&tensor(min), &tensor(max), scheme)
                    .unwrap()
                    .round_into(&weights, &mut rounded)
                    .unwrap();
                let grid = Grid::from_range(min as f32, max as f32, scheme);
                let expected: Vec<f32> = crate::tensor::to_f32(&weights)
                    .unwrap()
                    .iter()
                    .map(|&weight| grid.value(grid.code(weight)))
                    .collect();
                assert_eq!(
                    crate::tensor::to_f32(&rounded).unwrap(),
                    expected,
                    "{scheme:?} {min}..{max}"
                );
            }
        }
    }
}
