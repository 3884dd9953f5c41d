//! Products of packed panels, one tile of the Gram matrix at a time.

use super::pack::{self, Line, PANEL, Panels};
use super::prefetch;
use crate::kernels::lanes::{LANES, Lanes, Row};

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

/// Adds the products of the task's panels to its part of the Gram matrix, `ROWS` rows and `VECTORS` vectors at a time: so
/// many that their sums, a line's part and one number fit into the registers.
///
/// `multiply_add` gives the products of its first two arguments, added to the third.
#[inline(always)]
pub fn multiply<V: Lanes, const ROWS: usize, const VECTORS: usize>(
    panels: Panels<'_>,
    task: &mut Task<'_>,
    multiply_add: impl Fn(V, V, V) -> V + Copy,
) {
    const { assert!(PANEL.is_multiple_of(ROWS) && pack::VECTORS.is_multiple_of(VECTORS)) };
    let left = panels.panel(task.band);
    let n_columns = task.rows.last().map_or(0, |row| row.len());
    for panel in 0..n_columns.div_ceil(PANEL) {
        let right = panels.panel(task.first + panel);
        for first in (0..pack::VECTORS).step_by(VECTORS) {
            for (strip, rows) in task.rows.chunks_mut(ROWS).enumerate() {
                // Vectors wholly above the diagonal are not computed.
                let vectors = if task.first + panel == task.band {
                    ((strip + 1) * ROWS)
                        .div_ceil(LANES)
                        .saturating_sub(first)
                        .min(VECTORS)
                } else {
                    VECTORS
                };
                let left = Side {
                    panel: left,
                    first: strip * ROWS,
                };
                let right = Side {
                    panel: right,
                    first,
                };
                let at = panel * PANEL + first * LANES;
                match vectors {
                    0 => {}
                    1 => tile::<V, ROWS, 1>(left, right, rows, at, multiply_add),
                    2 => tile::<V, ROWS, 2>(left, right, rows, at, multiply_add),
                    _ => tile::<V, ROWS, VECTORS>(left, right, rows, at, multiply_add),
                }
            }
        }
    }
}

/// One factor of a tile: a panel, and the first of its columns or vectors.
#[derive(Clone, Copy)]
struct Side<'a> {
    panel: &'a [Line],
    first: usize,
}

/// Adds the products of `ROWS` columns of `left` and `N` vectors of `right` to `rows`, from column `at`, as far as those go.
#[inline(always)]
fn tile<V: Lanes, const ROWS: usize, const N: usize>(
    left: Side<'_>,
    right: Side<'_>,
    rows: &mut [&mut [f32]],
    at: usize,
    multiply_add: impl Fn(V, V, V) -> V,
) {
    for row in rows.iter() {
        let end = row.len().min(at + N * LANES);
        prefetch(row.get(at..end).unwrap_or_default());
    }
    let mut sums = [[V::splat(0.0); N]; ROWS];
    for (left_line, right_line) in left.panel.iter().zip(right.panel) {
        let left_line = Row::numbers(left_line);
        let mut vectors = [V::splat(0.0); N];
        for (vector, row) in vectors.iter_mut().zip(&right_line[right.first..][..N]) {
            *vector = V::load(row);
        }
        for (sums, number) in sums.iter_mut().zip(&left_line[left.first..][..ROWS]) {
            let number = V::splat(*number);
            for (sum, vector) in sums.iter_mut().zip(vectors) {
                *sum = multiply_add(number, vector, *sum);
            }
        }
    }
    for (row, sums) in rows.iter_mut().zip(&sums) {
        let parts = row.get_mut(at..).unwrap_or_default().chunks_mut(LANES);
        for (part, sum) in parts.zip(sums) {
            let mut found = Row::ZERO;
            sum.store(&mut found);
            let found = &found.0[..part.len()];
            match part.first_chunk_mut::<LANES>() {
                Some(part) => add_to(part, found),
                None => add_to(part, found),
            }
        }
    }
}

#[inline(always)]
fn add_to(totals: &mut [f32], sums: &[f32]) {
    for (total, sum) in totals.iter_mut().zip(sums) {
        *total += sum;
    }
}
