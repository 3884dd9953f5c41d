//! Every instruction set against the portable kernel and against plain loops in float64.

use half::f16;

use super::*;
use crate::kernels::available;
use crate::kernels::noise::noise;

/// `XᵀX` of `columns + 9` rows with something in common.
fn gram(seed: u64, columns: usize) -> Vec<f32> {
    let common = noise(seed + 1, columns);
    let mut gram = vec![0.0; columns * columns];
    for (row, size) in noise(seed, columns * (columns + 9))
        .chunks_mut(columns)
        .zip(noise(seed + 2, columns + 9))
    {
        for (x, common) in row.iter_mut().zip(&common) {
            *x += size * common;
        }
        for (gram, a) in gram.chunks_mut(columns).zip(&*row) {
            for (gram, b) in gram.iter_mut().zip(&*row) {
                *gram += a * b;
            }
        }
    }
    gram
}

/// Scale and zero point that cover `[min, max]`.
fn grid(min: f32, max: f32, levels: Levels) -> (f32, f32) {
    let stored =
        |scale: f32| f16::from_f32(scale.clamp(levels.min_scale, f16::MAX.to_f32())).to_f32();
    let (below, max) = ((-min).max(0.0), max.max(0.0));
    match levels.zero_point {
        ZeroPoint::Fixed(zero_point) => {
            (stored(2.0 * max.max(below) / levels.max_code), zero_point)
        }
        ZeroPoint::Fitted { least } => {
            let scale = stored((below + max) / levels.max_code);
            let zero_point = (below / scale).min(levels.max_code).round_ties_even();
            if zero_point < least {
                let moved = (max / (levels.max_code - least)).max(below / least);
                (stored(moved), least)
            } else {
                (scale, zero_point)
            }
        }
    }
}

/// Δ of one group, its weights already scaled.
fn delta(weights: &[f32], scale: &[f32], min: f32, max: f32, levels: Levels) -> Vec<f64> {
    let (step, zero_point) = grid(min, max, levels);
    let rounded = weights.iter().map(|weight| {
        let lowest = -zero_point;
        (weight / step)
            .clamp(lowest, levels.max_code + lowest)
            .round_ties_even()
            * step
    });
    (rounded.zip(weights).zip(scale))
        .map(|((rounded, weight), scale)| f64::from(rounded - weight) / f64::from(*scale))
        .collect()
}

/// `Δ G Δᵀ`.
fn loss(delta: &[f64], gram: &[f32]) -> f64 {
    let products = gram.chunks(delta.len()).map(|gram| {
        let terms = delta.iter().zip(gram).map(|(d, g)| d * f64::from(*g));
        terms.sum::<f64>()
    });
    products.zip(delta).map(|(product, d)| product * d).sum()
}

/// The search, row by row, with each loss computed from all of Δ.
fn reference(problem: &Problem<'_>, scale: &[f32]) -> Ranges {
    let mut found = Ranges::default();
    for row in problem.weight.chunks(problem.columns) {
        let row: Vec<f32> = row.iter().zip(scale).map(|(w, s)| w * s).collect();
        let fixed = matches!(problem.levels.zero_point, ZeroPoint::Fixed(_));
        let mut ends: Vec<[f32; 2]> = row
            .chunks(problem.group)
            .map(|weights| {
                let min = weights.iter().copied().fold(0.0, f32::min);
                let max = weights.iter().copied().fold(0.0, f32::max);
                if fixed {
                    [0.0, max.max(-min)]
                } else {
                    [min, max]
                }
            })
            .collect();
        let round = |ends: &[[f32; 2]]| -> Vec<f64> {
            let groups = row.chunks(problem.group).zip(scale.chunks(problem.group));
            (groups.zip(ends))
                .flat_map(|((row, scale), [min, max])| {
                    delta(row, scale, *min, *max, problem.levels)
                })
                .collect()
        };
        let mut lowest = loss(&round(&ends), problem.gram);
        found.loss_covering.push(lowest);
        for factors in problem.sweeps {
            for group in 0..ends.len() {
                for factor in *factors {
                    for end in usize::from(fixed)..2 {
                        let kept = ends[group][end];
                        ends[group][end] *= factor;
                        let trial = loss(&round(&ends), problem.gram);
                        if trial < lowest {
                            lowest = trial;
                        } else {
                            ends[group][end] = kept;
                        }
                    }
                }
            }
        }
        found.loss.push(lowest);
        found.min.extend(ends.iter().map(|ends| ends[0]));
        found.max.extend(ends.iter().map(|ends| ends[1]));
    }
    found
}

fn levels(bits: u32, zero_point: ZeroPoint) -> Levels {
    Levels {
        max_code: ((1 << bits) - 1) as f32,
        zero_point,
        min_scale: 1.0 / (1 << 22) as f32,
    }
}

const SWEEPS: &[&[f32]] = &[&[0.85], &[0.92, 1.08]];

/// Asserts that `found` is what `expected` is: decisions between losses that differ in their last bits may differ, a few
/// of all; the losses are sums of float32 products.
fn assert_same(found: &Ranges, expected: &Ranges, what: &str) {
    let sum = |losses: &[f64]| losses.iter().sum::<f64>();
    for (found, expected) in found.loss_covering.iter().zip(&expected.loss_covering) {
        assert!(
            (found - expected).abs() <= 1e-5 * expected,
            "{what}: {found} {expected}"
        );
    }
    let (losses, expected_losses) = (sum(&found.loss), sum(&expected.loss));
    assert!(
        (losses - expected_losses).abs() <= 1e-3 * expected_losses,
        "{what}: {losses} {expected_losses}"
    );
    let ends = |ranges: &Ranges| [ranges.min.clone(), ranges.max.clone()].concat();
    let (found, expected) = (ends(found), ends(expected));
    assert_eq!(found.len(), expected.len(), "{what}");
    let differ = found.iter().zip(&expected).filter(|(a, b)| a != b).count();
    assert!(
        differ * 50 <= found.len(),
        "{what}: {differ} of {} ends differ",
        found.len()
    );
}

#[test]
fn every_instruction_set_finds_what_plain_loops_find() {
    for (rows, columns, group) in [
        (1, 4, 4),
        (15, 6, 3),
        (16, 48, 16),
        (17, 40, 20),
        (40, 96, 32),
        (33, 34, 34),
    ] {
        let weight = noise(columns as u64, rows * columns);
        let scales = [
            vec![1.0; columns],
            noise(7, columns).iter().map(|x| x.exp()).collect(),
        ];
        let gram = gram(11, columns);
        for (bits, zero_point) in [
            (2, ZeroPoint::Fitted { least: 0.0 }),
            (4, ZeroPoint::Fitted { least: 0.0 }),
            (4, ZeroPoint::Fitted { least: 1.0 }),
            (4, ZeroPoint::Fixed(8.0)),
            (8, ZeroPoint::Fixed(128.0)),
        ] {
            let problem = Problem {
                weight: &weight,
                scales: &scales,
                gram: &gram,
                columns,
                group,
                levels: levels(bits, zero_point),
                sweeps: SWEEPS,
            };
            let expected = scales.iter().map(|scale| reference(&problem, scale));
            for (set, (index, expected)) in available()
                .into_iter()
                .flat_map(|set| expected.clone().enumerate().map(move |pair| (set, pair)))
            {
                let what = format!(
                    "{} {rows}x{columns}/{group} {:?}",
                    set.name(),
                    problem.levels
                );
                let found = &search(set, &problem)[index];
                assert_same(found, &expected, &what);
                for (loss, covering) in found.loss.iter().zip(&found.loss_covering) {
                    assert!(loss <= covering, "{what}");
                }
                let alone = Problem {
                    scales: &scales[index..=index],
                    ..problem
                };
                assert_eq!(search(set, &alone)[0], *found, "{what}");
                let sweeps: &[&[f32]] = &[];
                let plain = search(set, &Problem { sweeps, ..alone });
                assert_eq!(plain[0].loss_covering, found.loss_covering, "{what}");
                assert_eq!(plain[0].loss, found.loss_covering, "{what}");
            }
        }
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let (rows, columns) = (200, 64);
    let weight = noise(1, rows * columns);
    let problem = Problem {
        weight: &weight,
        columns,
        scales: &[vec![1.0; 64]],
        gram: &gram(2, columns),
        group: 16,
        levels: levels(4, ZeroPoint::Fitted { least: 0.0 }),
        sweeps: SWEEPS,
    };
    for set in available() {
        let found = [1, 2, 7].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            pool.expect("threads").install(|| search(set, &problem))
        });
        assert_eq!(found[0], found[1]);
        assert_eq!(found[0], found[2]);
    }
}

#[test]
fn panels_may_be_shorter_than_a_row() {
    let (rows, columns) = (3, 2 * PANEL / 32);
    let weight = noise(1, rows * columns);
    let gram = gram(2, columns);
    let problem = Problem {
        weight: &weight,
        columns,
        scales: &[vec![1.0; columns]],
        gram: &gram,
        group: 32,
        levels: levels(4, ZeroPoint::Fixed(8.0)),
        sweeps: &[],
    };
    let expected = reference(&problem, &problem.scales[0]);
    for set in available() {
        assert_same(&search(set, &problem)[0], &expected, set.name());
    }
}

#[test]
fn a_weight_that_is_not_finite_makes_its_row_so() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut weight = noise(1, 20 * 16);
        weight[5 * 16 + 3] = bad;
        let problem = Problem {
            weight: &weight,
            columns: 16,
            scales: &[vec![1.0; 16]],
            gram: &gram(2, 16),
            group: 8,
            levels: levels(4, ZeroPoint::Fitted { least: 0.0 }),
            sweeps: SWEEPS,
        };
        for set in available() {
            let found = &search(set, &problem)[0];
            for (row, (covering, loss)) in found.loss_covering.iter().zip(&found.loss).enumerate() {
                assert_eq!(covering.is_finite(), row != 5, "{}", set.name());
                assert_eq!(loss.is_finite(), row != 5, "{}", set.name());
            }
        }
    }
}
