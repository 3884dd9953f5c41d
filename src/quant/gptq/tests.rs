//! The solver as a whole: against the reference's codes, against its own definition of loss, and in corner cases.

use safetensors::SafeTensors;
use tch::{Device, Kind, Tensor};

use super::*;
use crate::quant::{GroupSize, InputStats, InputSums, output_error, rtn};

const ORDERS: [ActOrder; 4] = [
    ActOrder::None,
    ActOrder::Static,
    ActOrder::GroupAware,
    ActOrder::DescAct,
];
const FITS: [GridFit; 3] = [GridFit::Cover, GridFit::Search, GridFit::SearchFullRange];
const FLOAT: (Kind, Device) = (Kind::Float, Device::Cpu);

fn settings(act_order: ActOrder, grid_fit: GridFit) -> Settings {
    Settings {
        act_order,
        damp: 0.01,
        grid_fit,
    }
}

fn scheme(bits: u8, columns: usize, symmetric: bool) -> Scheme {
    Scheme {
        bits,
        group_size: match columns {
            0 => GroupSize::WholeRow,
            columns => GroupSize::Columns(columns),
        },
        symmetric,
        min_zero_point: 0,
    }
}

fn stats(x: &Tensor) -> InputStats {
    let mut stats = InputSums::new(x.size()[1] as usize, Device::Cpu).unwrap();
    stats.observe(x).unwrap();
    stats.finish().unwrap()
}

/// Correlated columns, some of them much larger than the rest.
fn problem(out_features: i64, in_features: i64, n_tokens: i64) -> (Tensor, InputStats) {
    tch::manual_seed(7);
    let mix = Tensor::randn([in_features, in_features], FLOAT) / (in_features as f64).sqrt();
    let spread = (Tensor::randn([in_features], FLOAT) * 0.8).exp();
    let x =
        Tensor::randn([n_tokens, in_features], FLOAT).mm(&(mix + Tensor::eye(in_features, FLOAT)));
    let weight = Tensor::randn([out_features, in_features], FLOAT) * 0.05;
    (weight, stats(&(x * spread)))
}

fn run(weight: &Tensor, stats: &InputStats, scheme: Scheme, settings: Settings) -> Solved {
    let factor = Factor::new(stats.copy().unwrap(), scheme, &settings).unwrap();
    let mut solved = solve(vec![weight.shallow_clone()], &factor, scheme, &settings).unwrap();
    solved.pop().unwrap()
}

fn measured(quantized: &QuantizedLinear, weight: &Tensor, stats: &InputStats) -> f64 {
    output_error(&(quantized.dequantize_tensor().unwrap() - weight), stats).unwrap()
}

fn rounded(weight: &Tensor, scheme: Scheme) -> QuantizedLinear {
    let (rows, columns) = weight.size2().unwrap();
    rtn(
        &tensor::to_f32(weight).unwrap(),
        rows as usize,
        columns as usize,
        scheme,
    )
}

/// tests/golden/generate/gptq.py: auto-gptq 0.7.1 (IST-DASLab's script), torch 2.13.0 on a CPU, seed 0.
///
/// Where the arithmetic is the same, so are the codes, but for ties that float32 sums in another order decide
/// differently, and what follows from them in the same row: 99 of 100 must agree, and the loss to 1 in 1000. A search
/// must not lose to the published loss; at 8 bits there is nothing to cut off, and two losses are two draws of some
/// thousand rounding errors, whose squares vary by sqrt(0.8 / 1000): 3 %.
#[test]
fn codes_are_those_of_the_reference() {
    for file in ["gptq_in64.safetensors", "gptq_in192.safetensors"] {
        let path = format!("{}/tests/golden/{file}", env!("CARGO_MANIFEST_DIR"));
        let bytes = std::fs::read(path).unwrap();
        let golden = SafeTensors::deserialize(&bytes).unwrap();
        let tensor = |name: &str| {
            let view = golden.tensor(name).unwrap();
            tensor::from_bytes(view.data(), view.dtype(), view.shape()).unwrap()
        };
        let stats = stats(&tensor("x"));
        let weight = tensor("weight").to_kind(Kind::Float);
        let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
        let mut cases: Vec<_> = header.metadata().as_ref().unwrap().iter().collect();
        cases.sort();
        assert_eq!(cases.len(), 13);
        for (name, case) in cases {
            let case: serde_json::Value = serde_json::from_str(case).unwrap();
            let group_size = usize::try_from(case["group_size"].as_i64().unwrap()).unwrap_or(0);
            let bits = case["bits"].as_u64().unwrap() as u8;
            let scheme = scheme(bits, group_size, case["symmetric"].as_bool().unwrap());
            let settings = Settings {
                act_order: match case["act_order"].as_str().unwrap() {
                    "none" => ActOrder::None,
                    "static" => ActOrder::Static,
                    "group_aware" => ActOrder::GroupAware,
                    "desc_act" => ActOrder::DescAct,
                    other => panic!("{other}"),
                },
                damp: case["damp"].as_f64().unwrap(),
                grid_fit: GridFit::Cover,
            };
            let data = |field: &str| {
                golden
                    .tensor(&format!("{name}.{field}"))
                    .map(|view| view.data())
            };
            let losses: Vec<f64> = (data("losses").unwrap().chunks_exact(8))
                .map(|bytes| f64::from_le_bytes(bytes.try_into().unwrap()))
                .collect();
            let (published, expected) = (losses[0], losses[1]);

            let solved = run(&weight, &stats, scheme, settings);
            let quantized = &solved.quantized;
            let codes = data("codes").unwrap();
            let equal = codes
                .iter()
                .zip(&quantized.codes)
                .filter(|(a, b)| a == b)
                .count();
            let what = format!("{file} {name}");
            let agreement = equal as f64 / codes.len() as f64;
            assert!(agreement >= 0.99, "{what}: {agreement}");
            assert!(
                (solved.loss / expected - 1.0).abs() < 1e-3,
                "{what}: {} {expected}",
                solved.loss
            );
            // A group's extreme that differs in its last float32 bit may round to the next float16.
            let scales = data("scales").unwrap().chunks_exact(2);
            for (bytes, found) in scales.zip(&quantized.scales) {
                let expected = u16::from_le_bytes(bytes.try_into().unwrap());
                assert!(found.to_bits().abs_diff(expected) <= 1, "{what}: {found}");
            }
            assert_eq!(quantized.zero_points, data("zeros").unwrap(), "{what}");
            let groups = data("g_idx").map(|bytes| {
                let words = bytes.chunks_exact(4);
                words.map(|word| u32::from_le_bytes(word.try_into().unwrap()) as usize)
            });
            for (column, group) in groups.into_iter().flatten().enumerate() {
                assert_eq!(quantized.group_of(column), group, "{what}");
            }

            let grid_fit = GridFit::Search;
            let searching = Settings {
                grid_fit,
                ..settings
            };
            let searched = run(&weight, &stats, scheme, searching).loss;
            let bound = if bits == 8 { 1.03 } else { 1.0 };
            assert!(
                searched <= published * bound,
                "{what}: {searched} {published}"
            );
        }
    }
}

#[test]
fn the_loss_is_the_output_error_whatever_the_order_and_grouping() {
    let (weight, stats) = problem(19, 200, 300);
    // Two columns that no token ever used.
    for column in [3, 150] {
        let _ = stats.gram.get(column).zero_();
        let _ = stats.gram.select(1, column).zero_();
    }
    for columns in [1, 24, 32, 64, 96, 128, 192, 200, 512, 0] {
        for act_order in ORDERS {
            for grid_fit in FITS {
                let scheme = scheme(4, columns, true);
                let solved = run(&weight, &stats, scheme, settings(act_order, grid_fit));
                let expected = measured(&solved.quantized, &weight, &stats);
                assert!(
                    (solved.loss / expected - 1.0).abs() < 1e-3,
                    "{columns} {act_order:?} {grid_fit:?}: {} {expected}",
                    solved.loss
                );
                let values = solved.quantized.dequantize();
                for row in values.chunks_exact(200) {
                    assert_eq!((row[3], row[150]), (0.0, 0.0));
                }
                let needs_g_idx = act_order == ActOrder::DescAct && (1..200).contains(&columns);
                assert_eq!(solved.quantized.g_idx.is_some(), needs_g_idx);
            }
        }
    }
}

#[test]
fn every_order_beats_rounding_to_nearest_and_search_beats_none() {
    let (weight, stats) = problem(64, 256, 1024);
    for bits in [2, 3, 4, 8] {
        for columns in [32, 96, 0] {
            for symmetric in [true, false] {
                let scheme = scheme(bits, columns, symmetric);
                let baseline = measured(&rounded(&weight, scheme), &weight, &stats);
                for act_order in ORDERS {
                    let losses =
                        FITS.map(|fit| run(&weight, &stats, scheme, settings(act_order, fit)).loss);
                    let what = format!("{scheme:?} {act_order:?}: {losses:?}, nearest {baseline}");
                    // Covering with 2 bits is no better than rounding: compensation widens the ranges.
                    let better = &losses[usize::from(bits == 2)..];
                    assert!(better.iter().all(|&loss| loss < 0.9 * baseline), "{what}");
                    assert!(bits == 8 || losses[1] < losses[0], "{what}");
                    assert!(!symmetric || losses[2] < losses[1], "{what}");
                }
            }
        }
    }
}

#[test]
fn uncorrelated_inputs_give_the_nearest_codes() {
    let (weight, _) = problem(16, 160, 1);
    let gram = Tensor::eye(160, FLOAT) * 12.0;
    let abs_sum = Tensor::ones([160], FLOAT);
    let stats = InputStats {
        gram,
        abs_sum,
        n_tokens: 12,
    };
    for bits in [2, 3, 4, 8] {
        for columns in [32, 48, 0] {
            for symmetric in [true, false] {
                let scheme = scheme(bits, columns, symmetric);
                let expected = rounded(&weight, scheme);
                for act_order in ORDERS {
                    let solved = run(&weight, &stats, scheme, settings(act_order, GridFit::Cover));
                    assert_eq!(solved.quantized.codes, expected.codes);
                    assert_eq!(solved.quantized.scales, expected.scales);
                    assert_eq!(solved.quantized.zero_points, expected.zero_points);
                }
            }
        }
    }
}

#[test]
fn an_input_never_seen_is_rounded_to_nearest() {
    let (weight, _) = problem(8, 64, 1);
    let stats = InputSums::new(64, Device::Cpu).unwrap().finish().unwrap();
    let scheme = scheme(4, 32, true);
    let settings = settings(ActOrder::GroupAware, GridFit::Cover);
    let factor = Factor::new(stats.copy().unwrap(), scheme, &settings).unwrap();
    let solved = run(&weight, &stats, scheme, settings);
    assert_eq!(factor.n_dead, 64);
    assert!(solved.loss < 1e-6, "{}", solved.loss);
    assert_eq!(solved.quantized, rounded(&weight, scheme));
}

#[test]
fn linears_solved_together_are_as_those_solved_alone() {
    let (weight, stats) = problem(70, 192, 256);
    let scheme = scheme(4, 64, false);
    let settings = settings(ActOrder::GroupAware, GridFit::Search);
    let factor = Factor::new(stats.copy().unwrap(), scheme, &settings).unwrap();
    let parts = [0..21, 21..22, 22..70].map(|rows| weight.slice(0, rows.start, rows.end, 1));
    let together = solve(
        parts.each_ref().map(Tensor::shallow_clone).into(),
        &factor,
        scheme,
        &settings,
    )
    .unwrap();
    assert_eq!(together.len(), 3);
    for (part, together) in parts.iter().zip(&together) {
        let alone = run(part, &stats, scheme, settings);
        // The products of other sizes may be summed in another order: a few codes lie next to a tie.
        let pairs = alone.quantized.codes.iter().zip(&together.quantized.codes);
        let differ = pairs.filter(|(a, b)| a != b).count();
        assert!(differ * 100 <= part.numel(), "{differ} of {}", part.numel());
        assert!((together.loss / alone.loss - 1.0).abs() < 1e-2);
        let expected = measured(&together.quantized, part, &stats);
        assert!((together.loss / expected - 1.0).abs() < 1e-3);
    }
}

#[test]
fn results_do_not_depend_on_the_run() {
    let (weight, stats) = problem(70, 192, 256);
    let scheme = scheme(4, 64, true);
    let once = || {
        run(
            &weight,
            &stats,
            scheme,
            settings(ActOrder::Static, GridFit::SearchFullRange),
        )
    };
    let (first, second) = (once(), once());
    assert_eq!(first.quantized, second.quantized);
    assert_eq!(first.loss.to_bits(), second.loss.to_bits());
}

#[test]
fn damping_rises_until_the_matrix_can_be_factored() {
    let scheme = scheme(4, 0, true);
    let mut settings = settings(ActOrder::None, GridFit::Cover);
    settings.damp = 0.0;
    // 5 tokens for 40 columns: 35 directions of which nothing is known.
    let factor = Factor::new(problem(1, 40, 5).1, scheme, &settings).unwrap();
    assert!(
        factor.damp_used > 0.0 && factor.damp_used < 0.01,
        "{}",
        factor.damp_used
    );

    let gram = Tensor::from_slice(&[1f32, 5.0, 5.0, 1.0]).view([2, 2]);
    let abs_sum = Tensor::ones([2], FLOAT);
    let stats = InputStats {
        gram,
        abs_sum,
        n_tokens: 9,
    };
    let error = Factor::new(stats.copy().unwrap(), scheme, &settings).unwrap_err();
    assert!(
        matches!(
            error,
            Error::NotPositiveDefinite {
                size: 2,
                n_tokens: 9,
                ..
            }
        ),
        "{error}"
    );
}

#[test]
fn weights_that_are_not_finite_are_an_error() {
    let (weight, stats) = problem(4, 32, 64);
    let scheme = scheme(4, 0, true);
    let settings = settings(ActOrder::None, GridFit::Search);
    let factor = Factor::new(stats.copy().unwrap(), scheme, &settings).unwrap();
    let _ = weight.get(1).narrow(0, 3, 2).fill_(f64::NAN);
    let error = solve(vec![weight], &factor, scheme, &settings).unwrap_err();
    assert!(
        matches!(error, Error::NotFinite { count: 2, .. }),
        "{error}"
    );
}
