//! Every instruction set against plain loops over one row at a time.

use half::f16;

use super::*;
use crate::kernels::noise::noise;
use crate::kernels::{Levels, ZeroPoint, available};

/// What plain loops know of a grid.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Grid {
    scale: f32,
    zero_point: f32,
}

impl Grid {
    fn covering(min: f32, max: f32, levels: Levels) -> Self {
        let (below, max) = ((-min).max(0.0), max.max(0.0));
        match levels.zero_point {
            ZeroPoint::Fixed(zero_point) => Self {
                scale: stored(2.0 * max.max(below) / levels.max_code),
                zero_point,
            },
            ZeroPoint::Fitted { least } => {
                let scale = stored((below + max) / levels.max_code);
                let zero_point = (below / scale).min(levels.max_code).round_ties_even();
                if zero_point < least {
                    let moved = (max / (levels.max_code - least)).max(below / least);
                    return Self {
                        scale: stored(moved),
                        zero_point: least,
                    };
                }
                Self { scale, zero_point }
            }
        }
    }

    fn full_range(min: f32, max: f32, zero_point: f32) -> Self {
        let extreme = if max > -min { max } else { min };
        Self {
            scale: stored(extreme.abs() / zero_point).copysign(-extreme),
            zero_point,
        }
    }

    fn steps(self, weight: f32, levels: Levels) -> f32 {
        let ends = [-self.zero_point, levels.max_code - self.zero_point];
        (weight / self.scale)
            .clamp(ends[0], ends[1])
            .round_ties_even()
    }

    fn cost(self, weights: &[f32], importance: &[f32], levels: Levels) -> f64 {
        let errors =
            (weights.iter()).map(|&weight| self.steps(weight, levels) * self.scale - weight);
        let terms = errors.zip(importance);
        terms.map(|(e, i)| f64::from(e * e) * f64::from(*i)).sum()
    }

    fn fitted(weights: &[f32], importance: &[f32], fit: &Fit<'_>) -> Self {
        let min = weights.iter().copied().fold(0.0, f32::min);
        let max = weights.iter().copied().fold(0.0, f32::max);
        let mut best = (f64::INFINITY, Self::covering(min, max, fit.levels));
        for part in fit.parts {
            let (min, max) = (min * part, max * part);
            let mut grids = vec![Self::covering(min, max, fit.levels)];
            if let (true, ZeroPoint::Fixed(zero_point)) = (fit.full_range, fit.levels.zero_point) {
                grids.push(Self::full_range(min, max, zero_point));
            }
            for grid in grids {
                let cost = grid.cost(weights, importance, fit.levels);
                if cost < best.0 {
                    best = (cost, grid);
                }
            }
        }
        best.1
    }
}

/// `scale` as it is stored.
fn stored(scale: f32) -> f32 {
    f16::from_f32(scale.clamp(MIN_SCALE, f16::MAX.to_f32())).to_f32()
}

const MIN_SCALE: f32 = 1.0 / (1 << 22) as f32;
/// Parts of the range as the search has them.
const PARTS: &[f32] = &[1.0, 0.95, 0.9, 0.8, 0.7];

fn levels(bits: u32, zero_point: ZeroPoint) -> Levels {
    Levels {
        max_code: ((1 << bits) - 1) as f32,
        zero_point,
        min_scale: MIN_SCALE,
    }
}

fn fits() -> Vec<Fit<'static>> {
    let symmetric = levels(4, ZeroPoint::Fixed(8.0));
    let fit = |levels, parts, full_range| Fit {
        levels,
        parts,
        full_range,
    };
    vec![
        fit(symmetric, &[], false),
        fit(symmetric, PARTS, false),
        fit(symmetric, PARTS, true),
        fit(levels(2, ZeroPoint::Fitted { least: 0.0 }), PARTS, true),
        fit(levels(3, ZeroPoint::Fitted { least: 1.0 }), PARTS, false),
        fit(levels(8, ZeroPoint::Fitted { least: 1.0 }), &[], false),
    ]
}

/// A block of `len` columns out of the middle of a matrix, with the groups that start in it.
struct Problem {
    rows: usize,
    len: usize,
    /// `[rows, span]`.
    weights: Vec<f32>,
    /// `[span, span]`, U.
    upper: Vec<f32>,
    importance: Vec<f32>,
    columns: Vec<usize>,
    groups: Vec<usize>,
    starting: Vec<Range<usize>>,
    damping: f64,
}

/// Columns beside the block in the matrix of codes.
const OTHER_COLUMNS: usize = 3;

impl Problem {
    /// Columns in groups of `group`; if that is all of them, the group reaches `beyond` columns out of the block.
    fn new(rows: usize, len: usize, group: usize, beyond: usize) -> Self {
        let span = len + beyond;
        // Updates so small that a row does not run away from its grids, which would blow up every difference.
        let size = 0.3 / (span as f32).sqrt();
        let mut upper: Vec<f32> = noise(3, span * span).iter().map(|u| u * size).collect();
        for (row, values) in upper.chunks_mut(span).enumerate() {
            values[..row].fill(0.0);
            values[row] = 1.0 + values[row].abs();
        }
        let starting = (0..len).step_by(group).map(|start| {
            let end = start + group;
            start..if end >= len { span } else { end }
        });
        Self {
            rows,
            len,
            weights: noise(len as u64, rows * span),
            upper,
            importance: noise(5, span).iter().map(|x| x * x).collect(),
            columns: (0..len).rev().map(|c| c + OTHER_COLUMNS).collect(),
            groups: (0..len).map(|column| column / group).collect(),
            starting: starting.collect(),
            damping: 0.01,
        }
    }

    fn n_groups(&self) -> usize {
        self.groups.last().map_or(1, |group| group + 1)
    }

    fn width(&self) -> usize {
        self.len + OTHER_COLUMNS
    }

    fn rounded(&self) -> Rounded {
        Rounded::new(self.rows, self.width(), self.n_groups())
    }

    /// What other blocks carry into this one, `[rows, span]`.
    fn carried(&self) -> Vec<f32> {
        noise(9, self.weights.len())
            .iter()
            .map(|c| 0.2 * c)
            .collect()
    }

    /// Rounds the block into `rounded`; `late` blocks have others before them.
    fn round(
        &self,
        set: InstructionSet,
        fit: &Fit<'_>,
        late: bool,
        rounded: &mut Rounded,
    ) -> Vec<f32> {
        let span = self.importance.len();
        let side = if late { span } else { self.len };
        let upper: Vec<f32> = (self.upper.chunks(span).take(side))
            .flat_map(|row| row[..side].to_vec())
            .collect();
        let carried = transposed(&self.carried(), self.rows);
        let block = Block {
            originals: &transposed(&self.weights, self.rows),
            carried: late.then_some(&carried),
            factors: &transposed_square(&upper, side),
            importance: &self.importance,
            columns: &self.columns,
            groups: &self.groups,
            starting: &self.starting,
            damping: self.damping,
        };
        rounded.round(set, &block, fit)
    }

    /// One row: its changes, codes in the order of solving, grids and loss.
    fn reference(&self, row: usize, fit: &Fit<'_>, late: bool) -> Expected {
        let span = self.importance.len();
        let original = &self.weights[row * span..][..span];
        let mut weights = original.to_vec();
        if late {
            let carried = &self.carried()[row * span..][..span];
            for (sum, upper) in carried.iter().zip(self.upper.chunks(span)) {
                for (weight, upper) in weights.iter_mut().zip(upper) {
                    *weight -= sum * upper;
                }
            }
        }
        let mut found = Expected {
            grids: vec![Grid::default(); self.n_groups()],
            ..Expected::default()
        };
        for column in 0..self.len {
            let group = self.groups[column];
            if let Some(members) = self.starting.iter().find(|group| group.start == column) {
                let importance = &self.importance[members.clone()];
                found.grids[group] = Grid::fitted(&weights[members.clone()], importance, fit);
            }
            let grid = found.grids[group];
            let steps = grid.steps(weights[column], fit.levels);
            let value = steps * grid.scale;
            let upper = &self.upper[column * span..][..span];
            let error = (value - weights[column]) * (1.0 / upper[column]);
            found.codes.push((steps + grid.zero_point) as u8);
            found.changes.push(value - original[column]);
            let change = f64::from(value - original[column]);
            found.loss += f64::from(error).powi(2) - self.damping * change * change;
            for later in column + 1..span {
                weights[later] += error * upper[later];
            }
        }
        found
    }
}

#[derive(Debug, Default)]
struct Expected {
    changes: Vec<f32>,
    codes: Vec<u8>,
    grids: Vec<Grid>,
    loss: f64,
}

/// `[columns, padded rows]` of `[rows, columns]`.
fn transposed(weights: &[f32], rows: usize) -> Vec<f32> {
    let (columns, padded) = (weights.len() / rows, rows.next_multiple_of(ROWS));
    let mut lines = vec![0.0; columns * padded];
    for (row, weights) in weights.chunks(columns).enumerate() {
        for (column, weight) in weights.iter().enumerate() {
            lines[column * padded + row] = *weight;
        }
    }
    lines
}

fn transposed_square(matrix: &[f32], size: usize) -> Vec<f32> {
    (0..size * size)
        .map(|at| matrix[at % size * size + at / size])
        .collect()
}

/// Sums of products that are fused differ in their last bits from those that are not. Where that decides between two
/// codes, the rest of the row may differ: this many of a hundred rows.
const ROWS_APART: usize = 10;

/// The instruction sets that fuse no products must find what the plain loops find, but for equal costs of two grids.
#[test]
fn every_instruction_set_finds_what_plain_loops_find() {
    for (rows, len, group, beyond) in [
        (1, 1, 1, 0),
        (15, 7, 3, 0),
        (16, 128, 32, 0),
        (17, 128, 128, 70),
        (40, 31, 5, 0),
        (40, 31, 31, 4),
        (33, 65, 64, 0),
        (33, 65, 65, 63),
    ] {
        let problem = Problem::new(rows, len, group, beyond);
        let padded = rows.next_multiple_of(ROWS);
        for (case, fit) in fits().iter().enumerate() {
            let cases = available()
                .into_iter()
                .flat_map(|set| [(set, false), (set, true)]);
            for (set, late) in cases {
                let name = set.name();
                let what = format!("{rows} {len} {group} {beyond} {case} {name} {late}");
                let mut rounded = problem.rounded();
                let changes = problem.round(set, fit, late, &mut rounded);
                let mut apart = 0;
                for row in 0..rows {
                    let expected = problem.reference(row, fit, late);
                    let codes = &rounded.codes()[row * problem.width()..][..problem.width()];
                    assert_eq!(codes[..OTHER_COLUMNS], [0; OTHER_COLUMNS], "{what}");
                    let same_codes = (expected.codes.iter().zip(&problem.columns))
                        .all(|(code, &column)| codes[column] == *code);
                    let same_grids = (0..problem.n_groups()).all(|group| {
                        let (scale, zero_point) = rounded.grid(row, group);
                        let grid = expected.grids[group];
                        (scale, f32::from(zero_point)) == (grid.scale, grid.zero_point)
                    });
                    if !(same_codes && same_grids) {
                        apart += 1;
                        continue;
                    }
                    let size = expected
                        .changes
                        .iter()
                        .fold(1.0, |a: f32, b| a.max(b.abs()));
                    for (column, expected) in expected.changes.iter().enumerate() {
                        let found = changes[column * padded + row];
                        assert!(
                            (found - expected).abs() <= 1e-4 * size,
                            "{what}: {found} {expected}"
                        );
                    }
                    let (loss, expected) = (rounded.losses()[row], expected.loss);
                    assert!(
                        (loss / expected - 1.0).abs() < 1e-4,
                        "{what}: {loss} {expected}"
                    );
                }
                assert!(apart * 100 <= ROWS_APART * rows, "{what}: {apart} rows");
            }
        }
    }
}

#[test]
fn grids_that_are_fitted_beforehand_are_used_and_losses_add_up() {
    let mut problem = Problem::new(21, 24, 8, 0);
    problem.starting.clear();
    // Columns of a group need not be neighbours.
    problem.groups = (0..24).map(|column| column % 3).collect();
    let members: Vec<Vec<usize>> = (0..3).map(|g| (g..24).step_by(3).collect()).collect();
    for fit in &fits() {
        for set in available() {
            let mut rounded = Rounded::new(21, 24, 3);
            let weights = transposed(&problem.weights, 21);
            rounded.fit(set, &weights, &problem.importance, &members, fit);
            for row in 0..21 {
                for (group, members) in members.iter().enumerate() {
                    let pick = |of: &[f32]| members.iter().map(|&c| of[c]).collect::<Vec<_>>();
                    let weights = pick(&problem.weights[row * 24..][..24]);
                    let importance = pick(&problem.importance);
                    let best = Grid::fitted(&weights, &importance, fit);
                    let (scale, zero_point) = rounded.grid(row, group);
                    let found = Grid {
                        scale,
                        zero_point: f32::from(zero_point),
                    };
                    // Of two grids that cost the same, float32 sums may prefer either.
                    let costs =
                        [best, found].map(|grid| grid.cost(&weights, &importance, fit.levels));
                    assert!(
                        costs[1] <= costs[0] * (1.0 + 1e-5),
                        "{} {row}: {costs:?}",
                        set.name()
                    );
                }
            }
            problem.columns = (0..24).collect();
            let before: Vec<_> = (0..21).map(|row| rounded.grid(row, 1)).collect();
            problem.round(set, fit, false, &mut rounded);
            let once = rounded.losses().to_vec();
            problem.round(set, fit, false, &mut rounded);
            assert_eq!(
                before,
                (0..21).map(|row| rounded.grid(row, 1)).collect::<Vec<_>>()
            );
            assert!(
                rounded
                    .losses()
                    .iter()
                    .zip(once)
                    .all(|(twice, once)| *twice == once + once)
            );
        }
    }
}

#[test]
fn a_full_range_grid_keeps_the_extreme() {
    for (weights, scale) in [([-1.0f32, 0.75], 0.125), ([-0.75, 1.0], -0.125)] {
        let fit = Fit {
            levels: levels(4, ZeroPoint::Fixed(8.0)),
            parts: &[1.0],
            full_range: true,
        };
        for set in available() {
            let mut rounded = Rounded::new(1, 2, 1);
            let weights = transposed(&weights, 1);
            rounded.fit(set, &weights, &[1.0, 1.0], &[vec![0, 1]], &fit);
            assert_eq!(rounded.grid(0, 0), (scale, 8), "{}", set.name());
        }
    }
}

#[test]
fn unimportant_extremes_are_cut_off() {
    let weights: Vec<f32> = (0..77)
        .map(|i| ((i * 37 % 77) as f32 - 31.0) / 40.0)
        .collect();
    let importance: Vec<f32> = weights
        .iter()
        .map(|w| f32::from(u8::from(w.abs() <= 0.7)))
        .collect();
    for set in available() {
        let scales = [&[][..], PARTS].map(|parts| {
            let fit = Fit {
                levels: levels(4, ZeroPoint::Fixed(8.0)),
                parts,
                full_range: false,
            };
            let mut rounded = Rounded::new(1, 77, 1);
            let members = [(0..77).collect()];
            rounded.fit(set, &transposed(&weights, 1), &importance, &members, &fit);
            rounded.grid(0, 0).0
        });
        assert!(scales[1] < scales[0], "{scales:?}");
    }
}

#[test]
fn results_do_not_depend_on_the_number_of_threads() {
    let problem = Problem::new(200, 64, 16, 0);
    let fit = &fits()[2];
    for set in available() {
        let [one, two, seven] = [1, 2, 7].map(|threads| {
            let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build();
            let mut rounded = problem.rounded();
            let round = || problem.round(set, fit, true, &mut rounded);
            let changes = pool.expect("threads").install(round);
            (changes, rounded.codes().to_vec(), rounded.losses().to_vec())
        });
        assert!(one == two && one == seven, "{}", set.name());
    }
}

#[test]
fn a_weight_that_is_not_finite_makes_its_row_so() {
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let mut problem = Problem::new(20, 16, 8, 0);
        problem.weights[5 * 16 + 3] = bad;
        for fit in &fits() {
            for set in available() {
                let mut rounded = problem.rounded();
                problem.round(set, fit, false, &mut rounded);
                for (row, loss) in rounded.losses().iter().enumerate() {
                    assert_eq!(loss.is_finite(), row != 5, "{}", set.name());
                }
            }
        }
    }
}
