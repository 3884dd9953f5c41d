use rayon::ThreadPoolBuilder;

use super::*;
use crate::kernels::available;

/// The largest relative error of rounding to bfloat16.
const HALF_UNIT: f64 = 1.0 / 256.0;

/// Numbers from -`size` to `size`; a generator of 31 bits.
fn numbers(seed: u32, size: f32, len: usize) -> Vec<bf16> {
    let mut state = seed;
    let mut next = || {
        state = state.wrapping_mul(1_103_515_245).wrapping_add(12345) & 0x7fff_ffff;
        state as f32 / 2f32.powi(30) - 1.0
    };
    (0..len).map(|_| bf16::from_f32(size * next())).collect()
}

/// A problem's sizes, and how large its keys are.
#[derive(Debug, Clone, Copy)]
struct Case {
    n_rows: usize,
    n_tokens: usize,
    n_kv_heads: usize,
    group: usize,
    head_dim: usize,
    value_dim: usize,
    has_sinks: bool,
    window: Option<usize>,
    key_size: f32,
}

const CASE: Case = Case {
    n_rows: 2,
    n_tokens: 1,
    n_kv_heads: 2,
    group: 1,
    head_dim: 8,
    value_dim: 8,
    has_sinks: false,
    window: None,
    key_size: 4.0,
};

/// Memory for a problem.
struct Numbers {
    query: Vec<bf16>,
    key: Vec<bf16>,
    value: Vec<bf16>,
    sinks: Vec<f32>,
}

impl Case {
    fn numbers(self) -> Numbers {
        let n_keys = self.n_rows * self.n_tokens * self.n_kv_heads;
        let sinks = numbers(4, 4.0, self.n_kv_heads * self.group);
        Numbers {
            query: numbers(1, 1.0, n_keys * self.group * self.head_dim),
            key: numbers(2, self.key_size, n_keys * self.head_dim),
            value: numbers(3, 2.0, n_keys * self.value_dim),
            sinks: sinks.iter().map(|sink| sink.to_f32()).collect(),
        }
    }

    fn problem(self, numbers: &Numbers) -> Problem<'_> {
        Problem {
            query: &numbers.query,
            key: &numbers.key,
            value: &numbers.value,
            n_tokens: self.n_tokens,
            n_heads: self.n_kv_heads * self.group,
            n_kv_heads: self.n_kv_heads,
            head_dim: self.head_dim,
            value_dim: self.value_dim,
            sinks: self.has_sinks.then_some(&numbers.sinks[..]),
            window: self.window,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
        }
    }
}

fn attended(set: InstructionSet, problem: &Problem<'_>) -> Vec<bf16> {
    let n_queries = problem.query.len() / problem.head_dim;
    let mut output = vec![bf16::NAN; n_queries * problem.value_dim];
    attend(set, problem, &mut output);
    output
}

/// A plain softmax over the keys that a query sees, in float64; and the mixed absolute values.
fn expected(problem: &Problem<'_>) -> Vec<[f64; 2]> {
    let n_queries = problem.query.len() / problem.head_dim;
    let mut expected = vec![[0.0; 2]; n_queries * problem.value_dim];
    for (at, mixed) in (expected.chunks_exact_mut(problem.value_dim)).enumerate() {
        let (token, head) = (at / problem.n_heads, at % problem.n_heads);
        let query = &problem.query[at * problem.head_dim..][..problem.head_dim];
        let kv_head = head / (problem.n_heads / problem.n_kv_heads);
        let n_earlier = token % problem.n_tokens;
        let n_seen = (n_earlier + 1).min(problem.window.unwrap_or(usize::MAX));
        let seen = token + 1 - n_seen..token + 1;
        let of = |numbers: &'_ [bf16], width: usize, token: usize| -> Vec<f64> {
            let start = (token * problem.n_kv_heads + kv_head) * width;
            let numbers = numbers[start..][..width].iter();
            numbers.map(|number| number.to_f64()).collect()
        };
        let scores: Vec<f64> = (seen.clone())
            .map(|token| {
                let key = of(problem.key, problem.head_dim, token);
                let products = query.iter().zip(key).map(|(q, k)| q.to_f64() * k);
                products.sum::<f64>() * f64::from(problem.scale)
            })
            .collect();
        let sink = problem.sinks.map(|sinks| f64::from(sinks[head]));
        let all = || scores.iter().copied().chain(sink);
        let largest = all().fold(f64::NEG_INFINITY, f64::max);
        let total: f64 = all().map(|score| (score - largest).exp()).sum();
        for (token, score) in seen.zip(&scores) {
            let probability = (score - largest).exp() / total;
            for (mixed, value) in mixed
                .iter_mut()
                .zip(of(problem.value, problem.value_dim, token))
            {
                mixed[0] += probability * value;
                mixed[1] += probability * value.abs();
            }
        }
    }
    expected
}

/// Asserts that every set finds what the plain softmax does.
fn check(case: Case) {
    let numbers = case.numbers();
    let problem = case.problem(&numbers);
    let expected = expected(&problem);
    for set in available() {
        let found = attended(set, &problem);
        for (at, (found, [mixed, size])) in found.iter().zip(&expected).enumerate() {
            // A probability is rounded to bfloat16, in the numerator as in the denominator, and the result once more.
            // Scores in float32 are off by some of float32's units of their products' sizes, which are at most some 1200.
            let allowed = 2.0 * HALF_UNIT * size + HALF_UNIT * mixed.abs() + 1e-3 * size;
            let error = (found.to_f64() - mixed).abs();
            let what = format!("{} {case:?}: {at}", set.name());
            assert!(error <= allowed, "{what}: {found} {mixed}, {error:e}");
        }
    }
}

#[test]
fn every_instruction_set_agrees_with_a_plain_softmax() {
    for n_tokens in [1, 2, 15, 17, 64, 129, 300, 513] {
        for window in [None, Some(1), Some(100), Some(5000)] {
            check(Case {
                n_tokens,
                window,
                ..CASE
            });
        }
    }
    for head_dim in [2, 64, 80, 128] {
        for (n_kv_heads, group) in [(1, 1), (2, 3)] {
            check(Case {
                n_tokens: 150,
                head_dim,
                value_dim: head_dim,
                n_kv_heads,
                group,
                window: Some(70),
                ..CASE
            });
        }
    }
    for (value_dim, has_sinks) in [(5, false), (16, true), (40, true), (70, false)] {
        check(Case {
            n_tokens: 150,
            head_dim: 24,
            value_dim,
            has_sinks,
            group: 3,
            ..CASE
        });
    }
}

/// e^300 does not fit into float32, and the largest score comes late.
#[test]
fn large_scores_do_not_overflow() {
    for window in [None, Some(33)] {
        check(Case {
            n_tokens: 300,
            head_dim: 64,
            value_dim: 64,
            window,
            key_size: 150.0,
            ..CASE
        });
    }
}

#[test]
fn no_number_of_threads_changes_a_bit() {
    let case = Case {
        n_tokens: 200,
        group: 3,
        head_dim: 64,
        value_dim: 64,
        ..CASE
    };
    let numbers = case.numbers();
    let problem = case.problem(&numbers);
    for set in available() {
        let found = [1, 2, 7].map(|n_threads| {
            let pool = ThreadPoolBuilder::new().num_threads(n_threads).build();
            (pool.unwrap()).install(|| attended(set, &problem))
        });
        assert!(
            found.iter().all(|output| *output == found[0]),
            "{}",
            set.name()
        );
    }
}

#[test]
fn what_is_not_finite_reaches_the_tokens_that_see_it() {
    let case = Case {
        n_rows: 1,
        n_tokens: 70,
        n_kv_heads: 1,
        window: Some(20),
        ..CASE
    };
    let mut numbers = case.numbers();
    numbers.key[30 * case.head_dim] = bf16::NAN;
    for set in available() {
        let found = attended(set, &case.problem(&numbers));
        for (token, numbers) in found.chunks_exact(case.value_dim).enumerate() {
            let sees = (30..50).contains(&token);
            assert!(
                numbers.iter().all(|number| number.is_nan() == sees),
                "{} {token}",
                set.name()
            );
        }
    }
}
