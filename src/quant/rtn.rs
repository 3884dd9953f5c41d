//! Round to nearest: the baseline that looks at no data.

use rayon::prelude::*;

use super::{Grid, QuantizedLinear, Scheme};

/// Quantizes `weight` (`[out, in]`, row-major) with min-max grids.
pub fn quantize(
    weight: &[f32],
    out_features: usize,
    in_features: usize,
    scheme: Scheme,
) -> QuantizedLinear {
    assert_eq!(weight.len(), out_features * in_features);
    let columns = scheme.group_columns(in_features);
    let n_groups = scheme.n_groups(in_features);
    let mut codes = vec![0; weight.len()];
    let grids: Vec<Grid> = codes
        .par_chunks_mut(in_features)
        .zip(weight.par_chunks(in_features))
        .flat_map_iter(|(codes, row)| {
            let mut grids = Vec::with_capacity(n_groups);
            for (codes, group) in codes.chunks_mut(columns).zip(row.chunks(columns)) {
                let grid = Grid::covering(group.iter().copied(), scheme);
                for (code, &weight) in codes.iter_mut().zip(group) {
                    *code = grid.code(weight);
                }
                grids.push(grid);
            }
            grids
        })
        .collect();
    QuantizedLinear::new(out_features, in_features, scheme, codes, &grids, None)
}
