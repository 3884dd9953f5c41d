//! AWQ: scales of the input channels and ranges of the grids, both chosen from the statistics of the input alone.
//!
//! Lin et al. 2023, "AWQ: Activation-aware Weight Quantization", arXiv:2306.00978: multiply the weight's column `i` by
//! `s_i` before rounding, divide input channel `i` by it, and choose `s` such that the output changes least; then
//! shrink the ranges of the grids where that lowers the error further. The published code measures the change by
//! running the model. Here it is `tr(ΔW G ΔWᵀ)` with the Gram matrix `G = XᵀX`: the same number for a linear's output,
//! without a forward pass.
//!
//! [`search_scale`] chooses `s` for linears that share an input, [`scale_stats`] gives the statistics of the scaled
//! input, [`quantize`] makes the codes. Folding `s` into the operation before the linears is the caller's.

mod grids;
mod ranges;
mod rounding;
mod scale;

use tch::{Kind, Tensor};

use super::{Error, InputStats, QuantizedLinear, Scheme};

pub use scale::{ScaleSearch, scale_stats, search_scale};

/// A linear's codes, and how well they do.
#[derive(Debug)]
pub struct Solved {
    pub quantized: QuantizedLinear,
    /// [`output_error`](super::output_error) of the codes.
    pub loss: f64,
    /// The same with grids that cover all weights.
    pub loss_unclipped: f64,
}

/// Rounds `weight_scaled` (`[out, in]` float32, its columns already multiplied by the channel scale) to codes.
///
/// `stats_scaled` are those of the input that it will see: see [`scale_stats`]. With `clip` the ranges of the grids are
/// searched; `loss` is then at most `loss_unclipped`. The group size must divide `in`. Works on the device of the statistics.
///
/// # Errors
/// [`Error::NotFinite`] if the weights are not finite; libtorch's errors, out of memory among them.
pub fn quantize(
    weight_scaled: &Tensor,
    stats_scaled: &InputStats,
    scheme: Scheme,
    clip: bool,
) -> Result<Solved, Error> {
    let weight = place(weight_scaled, stats_scaled)?;
    let identity = [vec![1.0; weight.size2()?.1 as usize]];
    let sweeps = if clip { ranges::SWEEPS } else { &[] };
    let found = ranges::search(&weight, &identity, &stats_scaled.gram, scheme, sweeps)?;
    let found = &found[0];
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / stats_scaled.n_tokens.max(1) as f64;
    let loss_unclipped = mean(&found.loss_covering);
    if !loss_unclipped.is_finite() {
        return Err(not_finite(&[weight])?);
    }
    Ok(Solved {
        quantized: ranges::codes(&weight, found, scheme)?,
        loss: mean(&found.loss),
        loss_unclipped,
    })
}

/// Operations of [`search_scale`] and [`quantize`], both with clipping, for linears of `rows` rows together that share an
/// input.
pub fn operations(rows: usize, in_features: usize, scheme: Scheme) -> f64 {
    scale::operations(rows, in_features, scheme)
        + rows as f64 * ranges::operations(in_features, scheme, ranges::SWEEPS)
}

/// `weight` as float32 on the device of `stats`, whose width it must have.
fn place(weight: &Tensor, stats: &InputStats) -> Result<Tensor, Error> {
    assert_eq!(
        weight.size()[1..],
        stats.abs_sum.size(),
        "the weight's columns are the input's channels"
    );
    let weight = weight.f_to_device(stats.gram.device())?;
    Ok(weight.f_to_kind(Kind::Float)?.f_contiguous()?)
}

/// Columns of a group, which must divide the row.
fn group_columns(scheme: Scheme, in_features: i64) -> i64 {
    let columns = scheme.group_columns(in_features as usize) as i64;
    assert_eq!(
        in_features % columns,
        0,
        "groups of {columns} in {in_features} columns"
    );
    columns
}

/// How many numbers in `weights` are not finite, as an error.
fn not_finite(weights: &[Tensor]) -> Result<Error, Error> {
    let mut count = 0;
    for weight in weights {
        let bad = weight.f_isfinite()?.f_logical_not()?.f_sum(Kind::Int64)?;
        count += bad.f_int64_value(&[])? as usize;
    }
    Ok(Error::NotFinite {
        what: "the weights",
        count,
    })
}

#[cfg(test)]
#[expect(clippy::unwrap_used, clippy::float_cmp, reason = "tests")]
mod tests {
    use tch::Device;

    use super::*;
    use crate::kernels::noise::noise;
    use crate::quant::{GroupSize, InputSums, output_error, rtn};
    use crate::tensor::{from_bytes, from_f32, to_f32};

    fn matrix(seed: u64, rows: usize, columns: usize) -> Tensor {
        from_f32(&noise(seed, rows * columns), &[rows, columns]).unwrap()
    }

    /// An input whose channels have sizes spread over two orders of magnitude, or all the same size.
    fn input(seed: u64, columns: usize, spread: bool) -> Tensor {
        let sizes = noise(seed + 1, columns);
        let sizes: Vec<f32> = sizes
            .iter()
            .map(|z| if spread { (2.0 * z).exp() } else { 1.0 })
            .collect();
        let mixing = Tensor::eye(columns as i64, (Kind::Float, Device::Cpu))
            + matrix(seed + 2, columns, columns) * 0.1;
        matrix(seed, 200, columns).mm(&mixing) * Tensor::from_slice(&sizes)
    }

    fn observed(x: &Tensor) -> InputStats {
        let mut stats = InputSums::new(x.size()[1] as usize, Device::Cpu).unwrap();
        stats.observe(x).unwrap();
        stats.finish().unwrap()
    }

    fn scheme(bits: u8, symmetric: bool, group_size: GroupSize) -> Scheme {
        Scheme {
            bits,
            group_size,
            symmetric,
            min_zero_point: 0,
        }
    }

    fn schemes() -> impl Iterator<Item = Scheme> {
        [2, 3, 4, 8].into_iter().flat_map(|bits| {
            [false, true].into_iter().flat_map(move |symmetric| {
                [GroupSize::Columns(16), GroupSize::WholeRow]
                    .map(|size| scheme(bits, symmetric, size))
            })
        })
    }

    /// Error of `solved`, made for `weight * channel_scale`, in the unscaled input's terms.
    fn error(solved: &Solved, channel_scale: &[f32], weight: &Tensor, stats: &InputStats) -> f64 {
        let value =
            solved.quantized.dequantize_tensor().unwrap() / Tensor::from_slice(channel_scale);
        output_error(&(value - weight), stats).unwrap()
    }

    /// tests/golden/generate/awq.py, AutoAWQ 0.2.9. Its scales stay float32, ours are rounded to float16, and the grids of points are not the same
    /// after the first search, so nothing can be equal; the loss must not be higher. 1e-6 is what float32 sums may differ by.
    #[test]
    fn the_published_search_is_not_better() {
        for name in ["single", "pair"] {
            let path = format!(
                "{}/tests/golden/awq_{name}.safetensors",
                env!("CARGO_MANIFEST_DIR")
            );
            let bytes = std::fs::read(path).unwrap();
            let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
            let get = |name: &str| {
                let view = file.tensor(name).unwrap();
                from_bytes(view.data(), view.dtype(), view.shape())
                    .unwrap()
                    .to_kind(Kind::Float)
            };
            let n_linears = if name == "pair" { 2 } else { 1 };
            let weights: Vec<Tensor> = (0..n_linears)
                .map(|i| get(&format!("weight.{i}")))
                .collect();
            let stats = observed(&get("x"));
            let scheme = scheme(4, false, GroupSize::Columns(32));
            for (clip, kind) in [(false, "scaled"), (true, "clipped")] {
                let found = search_scale(&weights, &stats, scheme, None, clip).unwrap();
                let scale = &found.channel_scale;
                let scaled_stats = scale_stats(stats.copy().unwrap(), scale).unwrap();
                let (mut ours, mut published) = (0.0, 0.0);
                for (i, weight) in weights.iter().enumerate() {
                    let scaled = weight * Tensor::from_slice(scale);
                    let solved = quantize(&scaled, &scaled_stats, scheme, clip).unwrap();
                    ours += error(&solved, scale, weight, &stats);
                    published +=
                        output_error(&(get(&format!("{kind}.{i}")) - weight), &stats).unwrap();
                }
                assert!(
                    ours <= published * (1.0 + 1e-6),
                    "{name} {kind}: {ours} {published}"
                );
                if !clip {
                    assert!(
                        (ours - found.loss).abs() < 1e-4 * ours,
                        "{ours} {}",
                        found.loss
                    );
                }
            }
        }
    }

    #[test]
    fn a_scale_is_never_worse_than_none() {
        for (seed, scheme) in (100u64..).step_by(10).zip(schemes().step_by(3)) {
            for (spread, clip) in [(false, false), (true, false), (false, true), (true, true)] {
                let stats = observed(&input(seed, 48, spread));
                let weights = [matrix(seed + 5, 20, 48), matrix(seed + 6, 400, 48)];
                let found = search_scale(&weights, &stats, scheme, None, clip).unwrap();
                assert!(found.loss <= found.loss_identity, "{scheme:?} {found:?}");
                assert!(
                    found
                        .channel_scale
                        .iter()
                        .all(|s| s.is_finite() && *s > 0.0)
                );
                assert_eq!(
                    found,
                    search_scale(&weights, &stats, scheme, None, clip).unwrap()
                );
                if spread && !clip && scheme.bits <= 4 {
                    assert!(
                        found.loss < 0.8 * found.loss_identity,
                        "{scheme:?} {found:?}"
                    );
                }
                if !clip {
                    let rounded: f64 = weights
                        .iter()
                        .map(|w| quantize(w, &stats, scheme, false).unwrap().loss)
                        .sum();
                    assert!((rounded - found.loss_identity).abs() < 1e-4 * rounded);
                }
            }
        }
    }

    #[test]
    fn tied_channels_share_a_scale_and_unused_ones_have_none() {
        let x = input(7, 32, true);
        let _ = x.narrow(1, 4, 1).zero_();
        let _ = x.narrow(1, 9, 1).zero_();
        let _ = x.narrow(1, 25, 1).zero_();
        let stats = observed(&x);
        // Channels 9 and 25 are a class, and nothing uses it; 4 has a class with 20.
        let classes: Vec<usize> = (0..32).map(|channel| channel % 16).collect();
        let scheme = scheme(4, false, GroupSize::Columns(16));
        for clip in [false, true] {
            let weights = [matrix(8, 40, 32)];
            let tied = search_scale(&weights, &stats, scheme, Some(&classes), clip)
                .unwrap()
                .channel_scale;
            assert_eq!(tied[..16], tied[16..]);
            assert!(tied.iter().any(|&s| s != 1.0));
            assert_eq!(tied[9], 1.0);
            assert_ne!(tied[4], 1.0);
            let free = search_scale(&weights, &stats, scheme, None, clip)
                .unwrap()
                .channel_scale;
            assert_eq!([free[4], free[9], free[25]], [1.0; 3]);
        }
    }

    #[test]
    fn clipping_never_raises_the_error_and_the_codes_have_the_error_that_is_said() {
        for (seed, scheme) in (300u64..).step_by(10).zip(schemes()) {
            let stats = observed(&input(seed, 48, true));
            let weight = matrix(seed + 5, 30, 48);
            let plain = quantize(&weight, &stats, scheme, false).unwrap();
            assert_eq!(
                plain.quantized,
                rtn(&to_f32(&weight).unwrap(), 30, 48, scheme)
            );
            let clipped = quantize(&weight, &stats, scheme, true).unwrap();
            assert_eq!(plain.loss, clipped.loss_unclipped);
            assert!(clipped.loss <= clipped.loss_unclipped, "{scheme:?}");
            assert!(
                scheme.bits > 4 || clipped.loss < 0.95 * plain.loss,
                "{scheme:?} {clipped:?}"
            );
            for solved in [&plain, &clipped] {
                let found = error(solved, &[1.0; 48], &weight, &stats);
                assert!(
                    (found - solved.loss).abs() <= 1e-5 * found,
                    "{scheme:?} {found} {}",
                    solved.loss
                );
            }
            assert_eq!(
                clipped.quantized,
                quantize(&weight, &stats, scheme, true).unwrap().quantized
            );
        }
    }

    #[test]
    fn scaled_statistics_are_those_of_the_scaled_input() {
        let x = input(9, 24, true);
        let scale: Vec<f32> = (1..=24).map(|i| i as f32 * 0.2).collect();
        let found = scale_stats(observed(&x), &scale).unwrap();
        let expected = observed(&(&x / Tensor::from_slice(&scale)));
        assert_eq!(found.n_tokens, expected.n_tokens);
        assert!(found.gram.allclose(&expected.gram, 1e-4, 1e-4, false));
        assert!(found.abs_sum.allclose(&expected.abs_sum, 1e-5, 1e-5, false));
    }

    #[test]
    fn weights_that_are_not_finite_are_an_error() {
        let stats = observed(&input(10, 16, false));
        let weight = matrix(11, 8, 16);
        let _ = weight.get(3).narrow(0, 2, 2).fill_(f64::NAN);
        let scheme = scheme(4, false, GroupSize::Columns(16));
        for error in [
            quantize(&weight, &stats, scheme, true).unwrap_err(),
            search_scale(&[weight.shallow_clone()], &stats, scheme, None, false).unwrap_err(),
            search_scale(&[weight.shallow_clone()], &stats, scheme, None, true).unwrap_err(),
        ] {
            assert!(
                matches!(
                    error,
                    Error::NotFinite {
                        what: "the weights",
                        count: 2
                    }
                ),
                "{error}"
            );
        }
    }
}
