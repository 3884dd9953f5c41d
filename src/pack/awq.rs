//! AutoAWQ's "gemm" layout: 4 bit codes along the output axis, in the order that its CUDA kernel unpacks them.
//!
//! `qweight` is int32 `[in, out / 8]`, `qzeros` int32 `[n_groups, out / 8]` with true zero points, `scales` float16
//! `[n_groups, out]`. As `awq/modules/linear/gemm.py` of AutoAWQ 0.2.9 writes it.

use rayon::prelude::*;

use super::{bits, bytes_to_words, pack_scales, words_to_bytes};
use crate::quant::QuantizedLinear;

/// Codes in a word.
const LANES: usize = 8;

/// Bits `4 i .. 4 i + 4` of a word hold output feature `8 c + ORDER[i]`.
const ORDER: [usize; LANES] = [0, 2, 4, 6, 1, 3, 5, 7];

/// The layer's tensors; panics unless it has 4 bits, whole words and its columns in group order.
pub(super) fn pack(linear: &QuantizedLinear) -> Vec<(&'static str, Vec<u8>)> {
    assert_eq!(linear.scheme.bits, 4, "AWQ gemm holds 4 bit codes");
    assert_eq!(
        linear.out_features % LANES,
        0,
        "AWQ gemm holds whole words of 8 output features"
    );
    assert!(linear.g_idx.is_none(), "AWQ gemm has no g_idx");
    vec![
        ("qweight", interleave(&linear.codes, linear.in_features)),
        ("qzeros", interleave(&linear.zero_points, linear.n_groups())),
        ("scales", pack_scales(linear)),
    ]
}

/// `codes` `[out, columns]` to words `[columns, out / 8]`.
fn interleave(codes: &[u8], columns: usize) -> Vec<u8> {
    let mut words = vec![0u32; codes.len() / LANES];
    words
        .par_chunks_exact_mut(columns)
        .zip(codes.par_chunks_exact(LANES * columns))
        .for_each(|(words, rows)| {
            for (i, row) in ORDER.into_iter().enumerate() {
                for (word, &code) in words.iter_mut().zip(&rows[row * columns..]) {
                    *word |= u32::from(code) << (4 * i);
                }
            }
        });
    words_to_bytes(&bits::transpose(
        &words,
        codes.len() / LANES / columns,
        columns,
    ))
}

/// Words `[columns, out / 8]` to codes `[out, columns]`.
pub(super) fn unpack(bytes: &[u8], out_features: usize, columns: usize) -> Vec<u8> {
    let words = bits::transpose(&bytes_to_words(bytes), columns, out_features / LANES);
    let mut codes = vec![0; out_features * columns];
    codes
        .par_chunks_exact_mut(LANES * columns)
        .zip(words.par_chunks_exact(columns))
        .for_each(|(rows, words)| {
            for (i, row) in ORDER.into_iter().enumerate() {
                for (&word, code) in words.iter().zip(&mut rows[row * columns..]) {
                    *code = (word >> (4 * i)) as u8 & 0xf;
                }
            }
        });
    codes
}

#[cfg(test)]
mod tests {
    use super::super::tests::check_golden;
    use super::super::{Format, words_to_bytes};
    use super::*;

    #[test]
    fn output_features_interleave_as_the_kernel_expects() {
        let codes: Vec<u8> = (0..8).collect();
        assert_eq!(interleave(&codes, 1), words_to_bytes(&[0x7531_6420]));
    }

    /// tests/golden/generate/pack.py, AutoAWQ 0.2.9 `WQLinear_GEMM.from_linear`. Bytes must be equal.
    #[test]
    fn packs_what_autoawq_packs() {
        let golden = include_bytes!(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/golden/pack_awq.safetensors"
        ));
        check_golden(golden, &["g32", "g16", "g-1"], Format::AwqGemm, "qzeros");
    }
}
