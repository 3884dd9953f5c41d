//! In which order GPTQ takes the columns, and which group each column belongs to.

use std::ops::Range;

use tch::{Device, Tensor};

use crate::quant::Scheme;

/// Columns whose updates are gathered before the rest of the matrix sees them (the paper's B).
const COLUMN_BLOCK: usize = 128;

/// The order in which columns are rounded, and with which grid.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ActOrder {
    /// As they come.
    None,
    /// By falling `diag(G)`; the grids are fitted to the original weights beforehand.
    Static,
    /// Groups by their largest `diag(G)`, and inside each group its columns by falling `diag(G)` (arXiv:2505.14638).
    GroupAware,
    /// By falling `diag(G)`, and groups are formed in that order: the only choice that needs a `g_idx`.
    DescAct,
}

/// A permutation of the columns. A *position* counts in the order of solving, a *column* in the order of the weight.
#[derive(Debug)]
pub(super) struct Order {
    /// The column at each position.
    pub columns: Vec<usize>,
    /// The group of the column at each position.
    pub groups: Vec<usize>,
    /// The group of each column, where that is not `column / group_columns`.
    pub g_idx: Option<Vec<u32>>,
    /// Whether the positions of each group are neighbours, so that its grid can be fitted when the group starts.
    pub contiguous: bool,
    group_columns: usize,
}

impl Order {
    /// `diagonal` is `diag(G)`, one value a column.
    pub fn new(act_order: ActOrder, diagonal: &[f32], scheme: Scheme) -> Self {
        let size = diagonal.len();
        let group_columns = scheme.group_columns(size);
        let falling = |a: &usize, b: &usize| diagonal[*b].total_cmp(&diagonal[*a]);
        let mut columns: Vec<usize> = (0..size).collect();
        match act_order {
            ActOrder::None => {}
            // Stable sorts, so that equal columns stay in their order and results do not depend on the platform.
            ActOrder::Static | ActOrder::DescAct => columns.sort_by(falling),
            ActOrder::GroupAware => {
                for group in columns.chunks_mut(group_columns) {
                    group.sort_by(falling);
                }
                // A narrower last group stays last, so that every other group starts at a multiple of the group size.
                let full = size / group_columns * group_columns;
                let mut groups: Vec<&[usize]> = columns[..full].chunks(group_columns).collect();
                groups.sort_by(|a, b| falling(&a[0], &b[0]));
                columns = [&groups.concat(), &columns[full..]].concat();
            }
        }
        let by_position = act_order == ActOrder::DescAct;
        let groups: Vec<usize> = (columns.iter().enumerate())
            .map(|(position, column)| if by_position { position } else { *column } / group_columns)
            .collect();
        let g_idx = (by_position && group_columns < size).then(|| {
            let mut g_idx = vec![0; size];
            for (column, group) in columns.iter().zip(&groups) {
                g_idx[*column] = *group as u32;
            }
            g_idx
        });
        Self {
            columns,
            groups,
            g_idx,
            contiguous: act_order != ActOrder::Static || group_columns >= size,
            group_columns,
        }
    }

    /// [`Self::columns`] as an index tensor.
    pub fn index(&self, device: Device) -> Result<Tensor, tch::TchError> {
        let columns: Vec<i64> = self.columns.iter().map(|&column| column as i64).collect();
        Tensor::f_from_slice(&columns)?.f_to_device(device)
    }

    /// The positions of each group's columns, in the order of the weight.
    pub fn positions_of_groups(&self, n_groups: usize) -> Vec<Vec<usize>> {
        let mut groups = vec![Vec::new(); n_groups];
        for (position, group) in self.groups.iter().enumerate() {
            groups[*group].push(position);
        }
        for group in &mut groups {
            group.sort_by_key(|&position| self.columns[position]);
        }
        groups
    }

    /// Positions in blocks of at most [`COLUMN_BLOCK`]. A group that spans blocks starts at the start of one, so that
    /// its grid can be fitted to weights that have seen every update.
    pub fn blocks(&self) -> Vec<Range<usize>> {
        let size = self.columns.len();
        let whole_groups = COLUMN_BLOCK / self.group_columns * self.group_columns;
        let stride = whole_groups.max(self.group_columns);
        let mut blocks = Vec::new();
        for start in (0..size).step_by(stride) {
            let end = (start + stride).min(size);
            for start in (start..end).step_by(COLUMN_BLOCK) {
                blocks.push(start..(start + COLUMN_BLOCK).min(end));
            }
        }
        blocks
    }

    /// The positions of the group that starts at `position`, if one does and groups are contiguous.
    pub fn group_starting_at(&self, position: usize) -> Option<Range<usize>> {
        (self.contiguous && position.is_multiple_of(self.group_columns))
            .then(|| position..(position + self.group_columns).min(self.columns.len()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::quant::GroupSize;

    fn order(act_order: ActOrder, diagonal: &[f32], columns: usize) -> Order {
        let scheme = Scheme {
            bits: 4,
            group_size: GroupSize::Columns(columns),
            symmetric: true,
            min_zero_point: 0,
        };
        Order::new(act_order, diagonal, scheme)
    }

    #[test]
    fn each_order_sorts_what_it_says() {
        let diagonal = [1.0, 5.0, 2.0, 9.0, 9.0, 3.0, 7.0];
        let check = |act_order, columns: &[usize], groups: &[usize], g_idx: Option<Vec<u32>>| {
            let order = order(act_order, &diagonal, 2);
            assert_eq!(order.columns, columns);
            assert_eq!(order.groups, groups);
            assert_eq!(order.g_idx, g_idx);
        };
        check(
            ActOrder::None,
            &[0, 1, 2, 3, 4, 5, 6],
            &[0, 0, 1, 1, 2, 2, 3],
            None,
        );
        check(
            ActOrder::Static,
            &[3, 4, 6, 1, 5, 2, 0],
            &[1, 2, 3, 0, 2, 1, 0],
            None,
        );
        check(
            ActOrder::GroupAware,
            &[3, 2, 4, 5, 1, 0, 6],
            &[1, 1, 2, 2, 0, 0, 3],
            None,
        );
        check(
            ActOrder::DescAct,
            &[3, 4, 6, 1, 5, 2, 0],
            &[0, 0, 1, 1, 2, 2, 3],
            Some(vec![3, 1, 2, 0, 0, 2, 1]),
        );
    }

    #[test]
    fn blocks_cover_all_positions_and_no_group_starts_late() {
        for size in [1, 31, 128, 576, 1000] {
            for group in [1, 32, 96, 127, 128, 192, 576, 5000] {
                let order = order(ActOrder::None, &vec![1.0; size], group);
                let blocks = order.blocks();
                assert_eq!(blocks.first().map(|block| block.start), Some(0));
                assert_eq!(blocks.last().map(|block| block.end), Some(size));
                assert!(blocks.windows(2).all(|pair| pair[0].end == pair[1].start));
                for block in blocks {
                    assert!(!block.is_empty() && block.len() <= COLUMN_BLOCK);
                    for position in block.clone() {
                        if let Some(group) = order.group_starting_at(position) {
                            assert!(group.end <= block.end || position == block.start);
                        }
                    }
                }
            }
        }
    }
}
