//! What every quantizer produces and every format packs.

use half::f16;
use tch::Tensor;

use super::{Grid, Scheme};

/// A quantized weight: integer codes, and one scale and zero point a group.
#[derive(Debug, Clone, PartialEq)]
pub struct QuantizedLinear {
    pub out_features: usize,
    pub in_features: usize,
    pub scheme: Scheme,
    /// `[out, in]`, each at most `scheme.max_code()`.
    pub codes: Vec<u8>,
    /// `[out, n_groups]`.
    pub scales: Vec<f16>,
    /// `[out, n_groups]`, the true zero points.
    pub zero_points: Vec<u8>,
    /// `[in]`: the group of each column, where that is not `column / group_columns` (GPTQ's desc_act).
    pub g_idx: Option<Vec<u32>>,
}

impl QuantizedLinear {
    /// Grids in `[out, n_groups]` order with their codes; asserts that lengths and codes are in range.
    pub fn new(
        out_features: usize,
        in_features: usize,
        scheme: Scheme,
        codes: Vec<u8>,
        grids: &[Grid],
        g_idx: Option<Vec<u32>>,
    ) -> Self {
        let n_groups = scheme.n_groups(in_features);
        assert_eq!(codes.len(), out_features * in_features);
        assert_eq!(grids.len(), out_features * n_groups);
        assert!(codes.iter().all(|&code| code <= scheme.max_code()));
        if let Some(g_idx) = &g_idx {
            assert_eq!(g_idx.len(), in_features);
            assert!(g_idx.iter().all(|&group| (group as usize) < n_groups));
        }
        Self {
            out_features,
            in_features,
            scheme,
            codes,
            scales: grids.iter().map(|grid| f16::from_f32(grid.scale)).collect(),
            zero_points: grids.iter().map(|grid| grid.zero_point).collect(),
            g_idx,
        }
    }

    /// Groups in a row.
    pub fn n_groups(&self) -> usize {
        self.scheme.n_groups(self.in_features)
    }

    /// The group of column `column`.
    pub fn group_of(&self, column: usize) -> usize {
        match &self.g_idx {
            Some(g_idx) => g_idx[column] as usize,
            None => column / self.scheme.group_columns(self.in_features),
        }
    }

    /// Divides output row `r` by `divisors[r]` by way of its scales: the codes do not change.
    ///
    /// Exact in real numbers; the new scales are rounded to float16 again.
    pub fn divide_rows(&mut self, divisors: &[f32]) {
        assert_eq!(divisors.len(), self.out_features);
        let n_groups = self.n_groups();
        for (scales, divisor) in self.scales.chunks_exact_mut(n_groups).zip(divisors) {
            for scale in scales {
                *scale = f16::from_f32(scale.to_f32() / divisor);
            }
        }
    }

    /// The weight that the codes stand for, `[out, in]` float32, row-major.
    pub fn dequantize(&self) -> Vec<f32> {
        let n_groups = self.n_groups();
        let groups: Vec<usize> = (0..self.in_features)
            .map(|column| self.group_of(column))
            .collect();
        let mut weight = Vec::with_capacity(self.codes.len());
        for (row, codes) in self.codes.chunks_exact(self.in_features).enumerate() {
            let scales = &self.scales[row * n_groups..][..n_groups];
            let zeros = &self.zero_points[row * n_groups..][..n_groups];
            weight.extend(codes.iter().zip(&groups).map(|(&code, &group)| {
                (f32::from(code) - f32::from(zeros[group])) * scales[group].to_f32()
            }));
        }
        weight
    }

    /// [`Self::dequantize`] as a CPU float32 tensor `[out, in]`.
    pub fn dequantize_tensor(&self) -> Result<Tensor, crate::tensor::Error> {
        crate::tensor::from_f32(&self.dequantize(), &[self.out_features, self.in_features])
    }
}
