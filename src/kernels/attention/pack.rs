//! Keys and values in the order in which the products read them.

use half::bf16;
use rayon::prelude::*;

use super::Problem;
use crate::kernels::lanes::{LANES, Lanes, Row};
use crate::kernels::{InstructionSet, Vectorized, vectorized};

/// Keys that are packed together: two vectors of scores.
pub const UNIT: usize = 2 * LANES;

/// What a lane holds of the factors of a product.
pub trait Format {
    /// Numbers in a lane.
    const PER_LANE: usize;

    /// A lane of the first [`Self::PER_LANE`] of `numbers`.
    fn lane(numbers: [bf16; 2]) -> f32;
}

/// [`Format`] on lanes `V`.
pub trait Arithmetic<V: Lanes>: Format {
    /// The products of two lanes, added to `sum`.
    fn multiply_add(left: V, right: V, sum: V) -> V;

    /// Writes the two vectors of probabilities at `unit` of `rows` as factors, from row `unit * 2 / PER_LANE` on, and
    /// adds them, as they were written, to the lanes of `sum`.
    fn store_probabilities(probabilities: [V; 2], rows: &mut [Row], unit: usize, sum: V) -> V;
}

/// One float32 in a lane.
pub struct Single;

impl Format for Single {
    const PER_LANE: usize = 1;

    #[inline(always)]
    fn lane([number, _]: [bf16; 2]) -> f32 {
        f32::from_bits(u32::from(number.to_bits()) << 16)
    }
}

impl<V: Lanes> Arithmetic<V> for Single {
    #[inline(always)]
    fn multiply_add(left: V, right: V, sum: V) -> V {
        left.mul_add(right, sum)
    }

    #[inline(always)]
    fn store_probabilities([low, high]: [V; 2], rows: &mut [Row], unit: usize, sum: V) -> V {
        low.store(&mut rows[2 * unit]);
        high.store(&mut rows[2 * unit + 1]);
        sum.add(low.add(high))
    }
}

/// One head of one row of tokens.
#[derive(Clone, Copy)]
pub struct Head<'a> {
    /// From the head's first number on.
    numbers: &'a [bf16],
    stride: usize,
    n_tokens: usize,
    pub width: usize,
}

impl<'a> Head<'a> {
    /// Of `numbers`, `[B, n_tokens, n_heads, width]`.
    pub fn new(
        numbers: &'a [bf16],
        n_tokens: usize,
        width: usize,
        row: usize,
        head: usize,
        n_heads: usize,
    ) -> Self {
        Self {
            numbers: &numbers[(row * n_tokens * n_heads + head) * width..],
            stride: n_heads * width,
            n_tokens,
            width,
        }
    }

    /// The numbers of a token, none behind the last token.
    #[inline(always)]
    pub fn token(self, token: usize) -> &'a [bf16] {
        if token < self.n_tokens {
            &self.numbers[token * self.stride..][..self.width]
        } else {
            &[]
        }
    }
}

/// Packed keys and values of all rows and heads.
pub struct Packed {
    /// For each row, head and sixteen keys: rows of those keys' numbers (or pairs) at one place of the head.
    keys: Vec<Row>,
    /// For each row, head and token (or pair of tokens): its numbers, filled up with zeros to whole rows.
    values: Vec<Row>,
    /// Of each, per row and head.
    keys_len: usize,
    values_len: usize,
}

impl Packed {
    /// Keys and values of a head, counted over all rows.
    pub fn head(&self, head: usize) -> (&[Row], &[Row]) {
        (
            &self.keys[head * self.keys_len..][..self.keys_len],
            &self.values[head * self.values_len..][..self.values_len],
        )
    }
}

/// Packs keys and values, filled up with zeros to whole units.
pub fn pack<F: Format>(set: InstructionSet, problem: &Problem<'_>) -> Packed {
    let &Problem {
        n_tokens,
        n_kv_heads,
        head_dim,
        value_dim,
        ..
    } = problem;
    let n_units = n_tokens.div_ceil(UNIT);
    let n_heads = problem.key.len() / (n_tokens * head_dim);
    let keys_len = UNIT / LANES * head_dim / F::PER_LANE;
    let values_len = UNIT / F::PER_LANE * value_dim.div_ceil(LANES);
    let mut keys = vec![Row::ZERO; n_heads * n_units * keys_len];
    let mut values = vec![Row::ZERO; n_heads * n_units * values_len];
    (keys.par_chunks_mut(keys_len))
        .zip(values.par_chunks_mut(values_len))
        .enumerate()
        .for_each(|(unit, (keys, values))| {
            let (head, first) = (unit / n_units, unit % n_units * UNIT);
            let (row, head) = (head / n_kv_heads, head % n_kv_heads);
            let head = |numbers, width| Head::new(numbers, n_tokens, width, row, head, n_kv_heads);
            let unit = Unit::<F> {
                key: head(problem.key, head_dim),
                value: head(problem.value, value_dim),
                first,
                keys,
                values,
                format: std::marker::PhantomData,
            };
            vectorized(set, unit);
        });
    Packed {
        keys,
        values,
        keys_len: n_units * keys_len,
        values_len: n_units * values_len,
    }
}

/// The tokens from `first` on, as many as are packed together.
struct Unit<'a, F> {
    key: Head<'a>,
    value: Head<'a>,
    first: usize,
    keys: &'a mut [Row],
    values: &'a mut [Row],
    format: std::marker::PhantomData<F>,
}

impl<F: Format> Vectorized for Unit<'_, F> {
    type Output = ();

    #[inline(always)]
    fn run(self) {
        let steps = self.key.width / F::PER_LANE;
        for (panel, rows) in self.keys.chunks_exact_mut(steps).enumerate() {
            let lanes = Row::numbers_mut(rows);
            for lane in 0..LANES {
                let key = self.key.token(self.first + panel * LANES + lane);
                spread::<F>(key, &mut lanes[lane..], LANES);
            }
        }
        let columns = self.value.width.div_ceil(LANES);
        for (line, rows) in self.values.chunks_exact_mut(columns).enumerate() {
            let token = self.first + line * F::PER_LANE;
            let numbers = self.value.token(token);
            let next = if F::PER_LANE == 2 {
                self.value.token(token + 1)
            } else {
                &[]
            };
            let lanes = Row::numbers_mut(rows);
            if next.len() == numbers.len() {
                for ((lane, first), second) in lanes.iter_mut().zip(numbers).zip(next) {
                    *lane = F::lane([*first, *second]);
                }
            } else {
                for (lane, number) in lanes.iter_mut().zip(numbers) {
                    *lane = F::lane([*number, bf16::ZERO]);
                }
            }
        }
    }
}

/// Writes the lanes of `numbers` to `target`, `stride` apart.
///
/// Never inlined, hence compiled for the base instruction set: AVX-512's scatter, which the compiler would choose, takes
/// longer than the stores.
#[inline(never)]
fn spread<F: Format>(numbers: &[bf16], target: &mut [f32], stride: usize) {
    let numbers = numbers.chunks_exact(F::PER_LANE);
    for (target, numbers) in target.iter_mut().step_by(stride).zip(numbers) {
        *target = F::lane([numbers[0], numbers[F::PER_LANE - 1]]);
    }
}
