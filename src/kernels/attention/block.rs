//! A block of queries of one head, a block of keys at a time.

use std::array::from_fn;

use half::bf16;

use super::pack::{Arithmetic, Head};
use crate::kernels::lanes::{LANES, Lanes, Row};

/// Vectors of scores that a strip keeps: one for each sixteen keys of a block.
const VECTORS: usize = 8;

/// Keys in a block, so few that they and their values stay in the caches while all strips use them.
const KEYS: usize = VECTORS * LANES;

/// Places of a head whose numbers lie together for each query of a strip: the distance between two queries' numbers is
/// then known when the kernel is compiled.
const PLACES: usize = 2 * LANES;

/// Below every score, yet finite: the difference to a hidden key's score is not NaN.
const LOWEST: f32 = -1e38;

/// Neighbouring queries of one head.
pub struct Task<'a> {
    pub query: Head<'a>,
    /// Of the head that the queries look at, as packed.
    pub keys: &'a [Row],
    pub values: &'a [Row],
    /// The first query's token.
    pub first: usize,
    pub window: usize,
    /// A score, before it is multiplied by the scale, whose value is zeros.
    pub sink: Option<f32>,
    /// What scores are multiplied by before two is raised to them.
    pub scale: f32,
    /// `value_dim` numbers for each query.
    pub output: Vec<&'a mut [bf16]>,
}

/// So many queries as a tile has rows, and what is known of their results.
struct Strip<const ROWS: usize> {
    first: usize,
    /// The queries' lanes, so many places after the other.
    queries: Vec<[[f32; PLACES]; ROWS]>,
    /// The largest score so far.
    max: [f32; ROWS],
    /// The probabilities' sums, relative to the largest score; lanes still apart.
    sums: [Row; ROWS],
    /// The sums of values times probabilities, sixteen columns after the other.
    mixed: Vec<Row>,
}

/// Computes the task's output, `ROWS` queries and `N` vectors of scores or columns at a time.
#[inline(always)]
pub fn attend<V: Lanes, F: Arithmetic<V>, const ROWS: usize, const N: usize>(task: &mut Task<'_>) {
    const { assert!(super::QUERIES.is_multiple_of(ROWS)) };
    let end = task.first + task.output.len();
    let steps = task.query.width / F::PER_LANE;
    let oldest = |query: usize| query.saturating_sub(task.window - 1);
    // Not collected: the closure's body would not be inlined here.
    let mut strips = Vec::with_capacity(super::QUERIES / ROWS);
    for first in (task.first..end).step_by(ROWS) {
        strips.push(strip::<V, F, ROWS>(task, first));
    }
    let mut scores = [[Row::ZERO; VECTORS]; ROWS];
    for block in (oldest(task.first) / KEYS * KEYS..end).step_by(KEYS) {
        for strip in &mut strips {
            let seen = Seen {
                block,
                first: oldest(strip.first).max(block),
                end: (strip.first + ROWS).min(end).min(block + KEYS),
            };
            if seen.first >= seen.end {
                continue;
            }
            score::<V, F, ROWS, N>(strip, task.keys, steps, seen, &mut scores);
            for (row, scores) in scores.iter_mut().enumerate() {
                let query = strip.first + row;
                seen.hide(scores, oldest(query), query + 1);
            }
            let factors = exponentiate::<V, F, ROWS>(strip, seen, task.scale, &mut scores);
            mix::<V, F, ROWS, N>(strip, task.values, seen, &scores, &factors);
        }
    }
    for (strip, output) in strips.iter().zip(task.output.chunks_mut(ROWS)) {
        for (row, output) in output.iter_mut().enumerate() {
            let factor = 1.0 / total(strip.sums[row]);
            let mixed = strip.mixed.as_chunks::<ROWS>().0;
            for (mixed, output) in mixed.iter().zip(output.chunks_mut(LANES)) {
                let rounded = mixed[row].0.map(|value| rounded(factor * value));
                match output.first_chunk_mut() {
                    Some(output) => *output = rounded,
                    None => output.copy_from_slice(&rounded[..output.len()]),
                }
            }
        }
    }
}

#[inline(always)]
fn strip<V: Lanes, F: Arithmetic<V>, const ROWS: usize>(
    task: &Task<'_>,
    first: usize,
) -> Strip<ROWS> {
    let query = task.query;
    let value_dim = task.output.first().map_or(0, |output| output.len());
    let mut queries = vec![[[0.0; PLACES]; ROWS]; query.width.div_ceil(PLACES * F::PER_LANE)];
    for row in 0..ROWS {
        let numbers = query.token(first + row).chunks(PLACES * F::PER_LANE);
        for (queries, numbers) in queries.iter_mut().zip(numbers) {
            let numbers = numbers.chunks_exact(F::PER_LANE);
            for (lane, numbers) in queries[row].iter_mut().zip(numbers) {
                *lane = F::lane([numbers[0], numbers[F::PER_LANE - 1]]);
            }
        }
    }
    let mut sums = Row::ZERO;
    if task.sink.is_some() {
        sums.0[0] = 1.0;
    }
    Strip {
        first,
        queries,
        max: [task.sink.unwrap_or(LOWEST); ROWS],
        sums: [sums; ROWS],
        mixed: vec![Row::ZERO; value_dim.div_ceil(LANES) * ROWS],
    }
}

/// The keys of a block that some query of a strip sees.
#[derive(Clone, Copy)]
struct Seen {
    /// The block's first key.
    block: usize,
    first: usize,
    end: usize,
}

impl Seen {
    /// The pairs of score vectors, counted within the block.
    #[inline(always)]
    fn units(self) -> std::ops::Range<usize> {
        (self.first - self.block) / (2 * LANES)..(self.end - self.block).div_ceil(2 * LANES)
    }

    /// Hides all keys but those from `first` to `end` from a query.
    #[inline(always)]
    fn hide(self, scores: &mut [Row; VECTORS], first: usize, end: usize) {
        let (first, end) = (
            first.clamp(self.first, self.end) - self.block,
            end.clamp(self.first, self.end) - self.block,
        );
        let units = self.units();
        let scores = Row::numbers_mut(scores);
        scores[units.start * 2 * LANES..first].fill(f32::NEG_INFINITY);
        scores[end..units.end * 2 * LANES].fill(f32::NEG_INFINITY);
    }
}

/// Writes the products of the strip's queries with the keys that are seen.
#[inline(always)]
fn score<V: Lanes, F: Arithmetic<V>, const ROWS: usize, const N: usize>(
    strip: &Strip<ROWS>,
    keys: &[Row],
    steps: usize,
    seen: Seen,
    scores: &mut [[Row; VECTORS]; ROWS],
) {
    let mut panel = seen.first / LANES;
    let end = seen.end.div_ceil(LANES);
    while panel < end {
        let at = panel - seen.block / LANES;
        let keys = &keys[panel * steps..];
        let n = N.min(end - panel);
        match n {
            1 => score_tile::<V, F, ROWS, 1>(&strip.queries, keys, steps, at, scores),
            2 => score_tile::<V, F, ROWS, 2>(&strip.queries, keys, steps, at, scores),
            3 => score_tile::<V, F, ROWS, 3>(&strip.queries, keys, steps, at, scores),
            _ => score_tile::<V, F, ROWS, N>(&strip.queries, keys, steps, at, scores),
        }
        panel += n;
    }
}

#[inline(always)]
fn score_tile<V: Lanes, F: Arithmetic<V>, const ROWS: usize, const N: usize>(
    queries: &[[[f32; PLACES]; ROWS]],
    keys: &[Row],
    steps: usize,
    at: usize,
    scores: &mut [[Row; VECTORS]; ROWS],
) {
    let mut sums = [[V::splat(0.0); N]; ROWS];
    for (part, queries) in queries.iter().enumerate() {
        let n_places = PLACES.min(steps - part * PLACES);
        let mut panels = [keys; N];
        for (index, panel) in panels.iter_mut().enumerate() {
            *panel = &keys[index * steps + part * PLACES..][..n_places];
        }
        for place in 0..n_places {
            let mut vectors = [V::splat(0.0); N];
            for (vector, panel) in vectors.iter_mut().zip(&panels) {
                *vector = V::load(&panel[place]);
            }
            for (sums, query) in sums.iter_mut().zip(queries) {
                let query = V::splat(query[place]);
                for (sum, vector) in sums.iter_mut().zip(&vectors) {
                    *sum = F::multiply_add(query, *vector, *sum);
                }
            }
        }
    }
    for (scores, sums) in scores.iter_mut().zip(&sums) {
        for (score, sum) in scores[at..][..N].iter_mut().zip(sums) {
            sum.store(score);
        }
    }
}

/// Turns scores into probabilities relative to the largest score so far, as factors of the product with the values, and
/// returns what must be multiplied with sums that are relative to the largest one before.
#[inline(always)]
fn exponentiate<V: Lanes, F: Arithmetic<V>, const ROWS: usize>(
    strip: &mut Strip<ROWS>,
    seen: Seen,
    scale: f32,
    scores: &mut [[Row; VECTORS]; ROWS],
) -> [V; ROWS] {
    let units = seen.units();
    let scale = V::splat(scale);
    let mut factors = [V::splat(0.0); ROWS];
    for (row, scores) in scores.iter_mut().enumerate() {
        let old = V::splat(strip.max[row]);
        let mut max = old;
        for score in &scores[2 * units.start..2 * units.end] {
            max = V::load(score).max(max);
        }
        strip.max[row] = largest(max);
        let max = V::splat(strip.max[row]);
        let mut sum = V::splat(0.0);
        for unit in units.clone() {
            let low = V::load(&scores[2 * unit]).sub(max).mul(scale).exp2();
            let high = V::load(&scores[2 * unit + 1]).sub(max).mul(scale).exp2();
            sum = F::store_probabilities([low, high], scores, unit, sum);
        }
        factors[row] = old.sub(max).mul(scale).exp2();
        let sums = &mut strip.sums[row];
        V::load(sums).mul_add(factors[row], sum).store(sums);
    }
    factors
}

/// Scales what was mixed by `factors` and adds the products of the probabilities with the values that are seen.
#[inline(always)]
fn mix<V: Lanes, F: Arithmetic<V>, const ROWS: usize, const N: usize>(
    strip: &mut Strip<ROWS>,
    values: &[Row],
    seen: Seen,
    probabilities: &[[Row; VECTORS]; ROWS],
    factors: &[V; ROWS],
) {
    let mixed = strip.mixed.as_chunks_mut().0;
    let columns = mixed.len();
    let lines = seen.first / F::PER_LANE..seen.end.div_ceil(F::PER_LANE);
    let mut factor = Factor {
        lines: &values[lines.start * columns..lines.end * columns],
        columns,
        column: 0,
        probabilities,
        first: lines.start - seen.block / F::PER_LANE,
    };
    while factor.column < columns {
        let mixed = &mut mixed[factor.column..];
        let n = N.min(mixed.len());
        match n {
            1 => mix_tile::<V, F, ROWS, 1>(mixed, factor, factors),
            2 => mix_tile::<V, F, ROWS, 2>(mixed, factor, factors),
            3 => mix_tile::<V, F, ROWS, 3>(mixed, factor, factors),
            _ => mix_tile::<V, F, ROWS, N>(mixed, factor, factors),
        }
        factor.column += n;
    }
}

/// What a tile of the mixed values multiplies.
#[derive(Clone, Copy)]
struct Factor<'a, const ROWS: usize> {
    /// The values that are seen, a token (or pair of tokens) after the other.
    lines: &'a [Row],
    /// Rows in a line, and the tile's first.
    columns: usize,
    column: usize,
    /// For each query those of the block's keys, of which `first` belongs to the first line.
    probabilities: &'a [[Row; VECTORS]; ROWS],
    first: usize,
}

#[inline(always)]
fn mix_tile<V: Lanes, F: Arithmetic<V>, const ROWS: usize, const N: usize>(
    mixed: &mut [[Row; ROWS]],
    factor: Factor<'_, ROWS>,
    factors: &[V; ROWS],
) {
    let mixed: &mut [_; N] = mixed.first_chunk_mut().expect("so many columns are left");
    let mut sums = [[V::splat(0.0); N]; ROWS];
    for row in 0..ROWS {
        for column in 0..N {
            sums[row][column] = V::load(&mixed[column][row]).mul(factors[row]);
        }
    }
    let lines = factor.lines.chunks_exact(factor.columns);
    for (lane, line) in (factor.first..).zip(lines) {
        let mut vectors = [V::splat(0.0); N];
        for (vector, value) in vectors.iter_mut().zip(&line[factor.column..][..N]) {
            *vector = V::load(value);
        }
        for (sums, probabilities) in sums.iter_mut().zip(factor.probabilities) {
            let probability = V::splat(Row::numbers(probabilities)[lane]);
            for (sum, vector) in sums.iter_mut().zip(&vectors) {
                *sum = F::multiply_add(probability, *vector, *sum);
            }
        }
    }
    for row in 0..ROWS {
        for column in 0..N {
            sums[row][column].store(&mut mixed[column][row]);
        }
    }
}

#[inline(always)]
fn largest<V: Lanes>(lanes: V) -> f32 {
    let mut row = Row::ZERO;
    lanes.store(&mut row);
    fold(row, |a, b| if a > b { a } else { b })
}

#[inline(always)]
fn total(row: Row) -> f32 {
    fold(row, |a, b| a + b)
}

/// All lanes in one, by halves.
#[inline(always)]
fn fold(Row(lanes): Row, op: impl Fn(f32, f32) -> f32) -> f32 {
    let eight: [f32; 8] = from_fn(|lane| op(lanes[lane], lanes[lane + 8]));
    let four: [f32; 4] = from_fn(|lane| op(eight[lane], eight[lane + 4]));
    op(op(four[0], four[2]), op(four[1], four[3]))
}

/// To the nearest bfloat16, ties to even; without a branch, which `half`'s conversion has.
#[inline(always)]
fn rounded(value: f32) -> bf16 {
    let bits = value.to_bits();
    let nearest = (bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16) as u16;
    bf16::from_bits(if value.is_nan() {
        bf16::NAN.to_bits()
    } else {
        nearest
    })
}
