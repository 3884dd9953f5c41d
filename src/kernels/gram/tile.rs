//! Products of packed panels, one tile of the Gram matrix at a time.

use super::PANEL;
use super::lanes::Lanes;
use super::pack::{Line, Panels};

/// Panels that a task multiplies its own with: few enough for many tasks of about the same cost.
const TASK_PANELS: usize = 8;

/// A part of the triangle that one thread updates: as many rows as a panel has columns, and some panels' columns.
pub struct Task<'a> {
    /// The panel whose columns are the rows.
    band: usize,
    /// The first panel of the columns.
    first: usize,
    /// From the first panel's first column to the task's last one, or to the diagonal.
    rows: Vec<&'a mut [f32]>,
}

/// The lower triangle of `gram`, `[width, width]`.
pub fn tasks(gram: &mut [f32], width: usize) -> Vec<Task<'_>> {
    let mut tasks = Vec::new();
    for (band, rows) in gram.chunks_mut(PANEL * width).enumerate() {
        let start = tasks.len();
        for (row, line) in rows.chunks_mut(width).enumerate() {
            let left_of_diagonal = &mut line[..=band * PANEL + row];
            let parts = left_of_diagonal.chunks_mut(TASK_PANELS * PANEL);
            for (part, columns) in parts.enumerate() {
                if row == 0 {
                    tasks.push(Task {
                        band,
                        first: part * TASK_PANELS,
                        rows: Vec::with_capacity(PANEL),
                    });
                }
                tasks[start + part].rows.push(columns);
            }
        }
    }
    tasks
}

/// Adds the products of the task's panels to its part of the Gram matrix, `ROWS` rows and `VECTORS` vectors at a time.
#[inline(always)]
pub fn multiply<L: Lanes, const ROWS: usize, const VECTORS: usize>(
    lanes: L,
    panels: Panels<'_>,
    task: &mut Task<'_>,
) {
    const { assert!(PANEL.is_multiple_of(ROWS) && PANEL.is_multiple_of(VECTORS * L::LANES)) };
    let left = panels.panel(task.band);
    let n_columns = task.rows.last().map_or(0, |row| row.len());
    for index in task.first..task.first + n_columns.div_ceil(PANEL) {
        let right = panels.panel(index);
        for start in (0..PANEL).step_by(VECTORS * L::LANES) {
            for (strip, rows) in task.rows.chunks_mut(ROWS).enumerate() {
                let first = strip * ROWS;
                // Vectors wholly above the diagonal are not computed.
                let vectors = if index == task.band {
                    (first + ROWS).saturating_sub(start).div_ceil(L::LANES)
                } else {
                    VECTORS
                };
                let at = (index - task.first) * PANEL + start;
                let left = Side { lines: left, first };
                let right = Side {
                    lines: right,
                    first: start,
                };
                match vectors {
                    0 => {}
                    1 => tile::<L, ROWS, 1>(lanes, left, right, rows, at),
                    2 => tile::<L, ROWS, 2>(lanes, left, right, rows, at),
                    _ => tile::<L, ROWS, VECTORS>(lanes, left, right, rows, at),
                }
            }
        }
    }
}

/// One factor of a tile: columns of a panel, from `first`.
#[derive(Clone, Copy)]
struct Side<'a> {
    lines: &'a [Line],
    first: usize,
}

/// Adds the products of `ROWS` columns of `left` and `N` vectors of columns of `right` to `rows`, from column `at`, as far
/// as those go.
#[inline(always)]
fn tile<L: Lanes, const ROWS: usize, const N: usize>(
    lanes: L,
    left: Side<'_>,
    right: Side<'_>,
    rows: &mut [&mut [f32]],
    at: usize,
) {
    assert!(left.first + ROWS <= PANEL && right.first + N * L::LANES <= PANEL);
    let mut sums = [[lanes.zero(); N]; ROWS];
    for (left_line, right_line) in left.lines.iter().zip(right.lines) {
        let mut vectors = [lanes.zero(); N];
        let right_line = &right_line[right.first..][..N * L::LANES];
        for (vector, part) in vectors.iter_mut().zip(right_line.chunks_exact(L::LANES)) {
            *vector = lanes.load(part);
        }
        for (sums, lane) in sums.iter_mut().zip(&left_line[left.first..][..ROWS]) {
            let lane = lanes.splat(*lane);
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = lanes.multiply_add(lane, vector, *sum);
            }
        }
    }
    for (row, sums) in rows.iter_mut().zip(sums) {
        let mut row = row.get_mut(at..).unwrap_or_default();
        for sum in sums {
            if row.len() < L::LANES {
                let mut spilled = [0f32; PANEL];
                lanes.add_to(sum, &mut spilled);
                for (target, sum) in row.iter_mut().zip(spilled) {
                    *target += sum;
                }
                break;
            }
            let (part, rest) = row.split_at_mut(L::LANES);
            lanes.add_to(sum, part);
            row = rest;
        }
    }
}
