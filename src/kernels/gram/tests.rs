use half::bf16;
use rayon::ThreadPoolBuilder;

use super::*;
use crate::kernels::available;

/// Numbers like activations: of both signs, of sizes that differ by column and row; a generator of 31 bits.
fn numbers(len: usize) -> Vec<bf16> {
    let mut state = 12345u32;
    let mut next = || {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12345) & 0x7fff_ffff;
        state as f32 / 2f32.powi(30) - 1.0
    };
    (0..len)
        .map(|_| bf16::from_f32(next() * (3.0 * next()).exp2()))
        .collect()
}

/// The sums of the rows in float64, and those of the products' absolute values; then those of the values.
struct Expected {
    gram: Vec<f64>,
    sizes: Vec<f64>,
    abs_sum: Vec<f64>,
}

fn expected(rows: &[f32], width: usize) -> Expected {
    let mut expected = Expected {
        gram: vec![0.0; width * width],
        sizes: vec![0.0; width * width],
        abs_sum: vec![0.0; width],
    };
    for row in rows.chunks_exact(width) {
        for i in 0..width {
            expected.abs_sum[i] += f64::from(row[i].abs());
            for j in 0..=i {
                let product = f64::from(row[i]) * f64::from(row[j]);
                expected.gram[i * width + j] += product;
                expected.sizes[i * width + j] += product.abs();
            }
        }
    }
    expected
}

/// The sums after `repeats` times `rows`, from sums of `start`.
fn sums(
    set: InstructionSet,
    rows: Rows<'_>,
    width: usize,
    start: f32,
    repeats: usize,
) -> [Vec<f32>; 2] {
    let mut gram = vec![start; width * width];
    let mut abs_sum = vec![start; width];
    let mut scratch = Scratch::default();
    for _ in 0..repeats {
        let sums = Sums {
            gram: &mut gram,
            abs_sum: &mut abs_sum,
        };
        accumulate(set, rows, sums, &mut scratch);
    }
    [gram, abs_sum]
}

/// Adds `rows` twice, from sums that are not zero.
fn check(set: InstructionSet, rows: Rows<'_>, width: usize, expected: &Expected) {
    const START: f32 = 0.5;
    let [gram, abs_sum] = sums(set, rows, width, START, 2);
    let (kind, n_rows) = match rows {
        Rows::Bf16(rows) => ("bfloat16", rows.len() / width),
        Rows::F32(rows) => ("float32", rows.len() / width),
    };
    // Higham, "Accuracy and Stability of Numerical Algorithms", section 3.1: a sum in any order is off by at most the sum
    // of sizes times the roundings on one term's way, times half an epsilon (to first order). A term is rounded once as a
    // product, and then at most once for each term of its block, each block, each call, and once as `START` goes in.
    let roundings = 1 + n_rows + n_rows.div_ceil(pack::DEPTH) + 2;
    let unit = f64::from(f32::EPSILON) / 2.0 * roundings as f64;
    let what = format!("{}, {kind}, {n_rows} rows of {width}", set.name());
    let close = |found: f32, expected: f64, size: f64| {
        let error = f64::from(found) - f64::from(START) - 2.0 * expected;
        error.abs() <= unit * (2.0 * size + f64::from(START))
    };
    for (i, (found, sum)) in abs_sum.into_iter().zip(&expected.abs_sum).enumerate() {
        assert!(close(found, *sum, *sum), "{what}: column {i}");
        for j in 0..width {
            let at = i * width + j;
            if j > i {
                assert_eq!(gram[at], START, "{what}: above the diagonal");
            } else {
                let is_close = close(gram[at], expected.gram[at], expected.sizes[at]);
                assert!(is_close, "{what}: {i}, {j}");
            }
        }
    }
}

#[test]
fn every_instruction_set_gives_the_sums_in_float64() {
    for n_rows in [0, 1, 2, 15, 16, 17, 255, 1000] {
        for width in [1, 2, 15, 16, 17, 31, 33, 64, 100, 257, 576] {
            let rows = numbers(n_rows * width);
            let floats: Vec<f32> = rows.iter().map(|number| number.to_f32()).collect();
            let bf16_sums = expected(&floats, width);
            // More bits than bfloat16 has.
            let floats: Vec<f32> = floats.iter().map(|number| number * 1.000_1).collect();
            let f32_sums = expected(&floats, width);
            for set in available() {
                check(set, Rows::Bf16(&rows), width, &bf16_sums);
                check(set, Rows::F32(&floats), width, &f32_sums);
            }
        }
    }
}

#[test]
fn no_number_of_threads_changes_a_bit() {
    const WIDTH: usize = 500;
    let rows = numbers(700 * WIDTH);
    for set in available() {
        let found = [1, 2, 3, 7].map(|n_threads| {
            let pool = ThreadPoolBuilder::new().num_threads(n_threads).build();
            let found = (pool.unwrap()).install(|| sums(set, Rows::Bf16(&rows), WIDTH, 0.0, 1));
            found.map(|sums| sums.into_iter().map(f32::to_bits).collect::<Vec<_>>())
        });
        assert!(found.iter().all(|sums| *sums == found[0]), "{}", set.name());
    }
}

#[test]
fn what_is_not_finite_reaches_the_diagonal_of_its_column_alone() {
    const WIDTH: usize = 50;
    for bad in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
        for (row, column) in [(0, 0), (17, 48), (18, 49)] {
            let mut rows = numbers(19 * WIDTH);
            rows[row * WIDTH + column] = bf16::from_f32(bad);
            let floats: Vec<f32> = rows.iter().map(|number| number.to_f32()).collect();
            for set in available() {
                for rows in [Rows::Bf16(&rows), Rows::F32(&floats)] {
                    let [gram, abs_sum] = sums(set, rows, WIDTH, 0.0, 1);
                    for i in 0..WIDTH {
                        assert_eq!(gram[i * WIDTH + i].is_finite(), i != column);
                        assert_eq!(abs_sum[i].is_finite(), i != column);
                    }
                }
            }
        }
    }
}
