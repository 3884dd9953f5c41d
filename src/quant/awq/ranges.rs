//! The range that each group's grid covers, searched to lower the error of the output.
//!
//! The published search cuts each group at a fraction of its largest absolute weight, on both sides alike, and looks at
//! one group alone: only the diagonal block of the Gram matrix counts. Here the two ends move apart from each other,
//! outwards too, and the whole matrix counts: groups are taken in turn, and each minimises the error of its row given the
//! present rounding of the other groups, so that no step raises it.
//!
//! On the host [`crate::kernels::ranges`] does it, on other devices [`Rounding`]: the same search as tensor operations.

use rayon::prelude::*;
use tch::{Device, Tensor};

use crate::kernels;
use crate::kernels::ranges::{Problem, Ranges};
use crate::quant::{Error, Grid, QuantizedLinear, Scheme};
use crate::tensor::{f32_slice, from_f32, to_f32};

use super::group_columns;
use super::rounding::Rounding;

/// What each sweep over the groups tries to multiply every end of a range by: coarse steps first.
pub(super) const SWEEPS: &[&[f32]] = &[&[0.85], &[0.92, 1.08], &[0.95, 1.05], &[0.97, 1.03]];

/// Searches the ranges for `weight` (`[rows, in]` float32, contiguous), once for each of `channel_scales`, by which its
/// columns are multiplied.
///
/// `gram` is that of the input before it is divided by a scale, `[in, in]` float32 on the weight's device.
pub(super) fn search(
    weight: &Tensor,
    channel_scales: &[Vec<f32>],
    gram: &Tensor,
    scheme: Scheme,
    sweeps: &[&[f32]],
) -> Result<Vec<Ranges>, Error> {
    let columns = gram.size2()?.0;
    if gram.device() != Device::Cpu {
        let search = |scale: &Vec<f32>| {
            let scale = from_f32(scale, &[scale.len()])?.f_to_device(gram.device())?;
            let gram = gram.f_div(&scale)?.f_div_(&scale.f_unsqueeze(1)?)?;
            Rounding::search_all(&weight.f_mul(&scale)?, &gram, scheme, sweeps)
        };
        return channel_scales.iter().map(search).collect();
    }
    let problem = Problem {
        weight: f32_slice(weight),
        scales: channel_scales,
        gram: f32_slice(gram),
        columns: columns as usize,
        group: group_columns(scheme, columns) as usize,
        levels: scheme.levels(),
        sweeps,
    };
    Ok(kernels::ranges::search(kernels::chosen(), &problem))
}

/// Multiplications and additions that [`search`] cannot do without, for one row.
pub(super) fn operations(in_features: usize, scheme: Scheme, sweeps: &[&[f32]]) -> f64 {
    let ends = if scheme.symmetric { 1 } else { 2 };
    let group = scheme.group_columns(in_features);
    if sweeps.is_empty() {
        // Half of all pairs of columns, because G is symmetric.
        return (in_features * (in_features + 1)) as f64;
    }
    // Each group against all others, then its present and each moved range against itself: half of the pairs.
    let sweep = |factors: &&[f32]| {
        let trials = 1 + factors.len() * ends;
        in_features * (2 * (in_features - group) + trials * (group + 1))
    };
    sweeps.iter().map(sweep).sum::<usize>() as f64
}

/// The codes of `weight` (`[out, in]` float32) with the grids of `ranges`, on the host.
pub(super) fn codes(
    weight: &Tensor,
    ranges: &Ranges,
    scheme: Scheme,
) -> Result<QuantizedLinear, Error> {
    let (out_features, in_features) = weight.size2()?;
    let columns = group_columns(scheme, in_features) as usize;
    let grids: Vec<Grid> = (ranges.min.iter().zip(&ranges.max))
        .map(|(&min, &max)| Grid::from_range(min, max, scheme))
        .collect();
    let weight = to_f32(weight)?;
    let mut codes = vec![0; weight.len()];
    (
        codes.par_chunks_mut(columns),
        weight.par_chunks(columns),
        &grids,
    )
        .into_par_iter()
        .for_each(|(codes, weights, grid)| {
            for (code, &weight) in codes.iter_mut().zip(weights) {
                *code = grid.code(weight);
            }
        });
    Ok(QuantizedLinear::new(
        out_features as usize,
        in_features as usize,
        scheme,
        codes,
        &grids,
        None,
    ))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use tch::Kind;

    use super::*;
    use crate::quant::GroupSize;

    /// The tensor operations sum in another order, so a few of all ends fall to the other side of nearly equal losses.
    #[test]
    fn host_and_device_find_the_same_ranges() {
        tch::manual_seed(5);
        let options = (Kind::Float, Device::Cpu);
        let (rows, columns) = (70, 96);
        let weight = Tensor::randn([rows, columns], options);
        let x = Tensor::randn([200, columns], options);
        let x = &x + x.narrow(1, 0, 1);
        let gram = x.tr().mm(&x);
        let scale = Tensor::rand([columns], options) + 0.5;
        let scaled_gram = &gram / &scale / scale.unsqueeze(1);
        for (bits, symmetric, min_zero_point) in [
            (2, false, 0),
            (3, false, 1),
            (4, false, 0),
            (4, true, 0),
            (8, false, 0),
        ] {
            for group_size in [GroupSize::Columns(32), GroupSize::WholeRow] {
                let scheme = Scheme {
                    bits,
                    group_size,
                    symmetric,
                    min_zero_point,
                };
                let scales = [to_f32(&scale).unwrap()];
                let host = &search(&weight, &scales, &gram, scheme, SWEEPS).unwrap()[0];
                let scaled = &weight * &scale;
                let device = Rounding::search_all(&scaled, &scaled_gram, scheme, SWEEPS).unwrap();
                let close = |a: &[f64], b: &[f64], bound: f64| {
                    let (a, b): (f64, f64) = (a.iter().sum(), b.iter().sum());
                    assert!((a - b).abs() <= bound * b, "{scheme:?}: {a} {b}");
                };
                close(&host.loss_covering, &device.loss_covering, 1e-5);
                close(&host.loss, &device.loss, 1e-3);
                let ends = |ranges: &Ranges| [ranges.min.clone(), ranges.max.clone()].concat();
                let (host, device) = (ends(host), ends(&device));
                assert_eq!(host.len(), device.len());
                let differ = host.iter().zip(&device).filter(|(a, b)| a != b).count();
                assert!(
                    differ * 50 <= host.len(),
                    "{scheme:?}: {differ} of {}",
                    host.len()
                );
            }
        }
    }
}
