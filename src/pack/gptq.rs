//! The GPTQ layouts: codes along the input axis, zero points along the output axis, both in natural order.
//!
//! `qweight` is int32 `[words(in), out]`, `qzeros` int32 `[n_groups, words(out)]`, `scales` float16 `[n_groups, out]`,
//! `g_idx` int32 `[in]`. As `pack_original` and the v1 conversion of GPTQModel 7.7.0 write them.

use rayon::prelude::*;

use super::{Error, Format, bits, bytes_to_words, pack_scales, words_to_bytes};
use crate::quant::{QuantizedLinear, Scheme};

/// The layer's tensors; panics on a zero point of 0 under v1, where it would borrow from its neighbour.
pub(super) fn pack(linear: &QuantizedLinear, format: Format) -> Vec<(&'static str, Vec<u8>)> {
    vec![
        ("qweight", pack_weight(linear)),
        ("qzeros", pack_zeros(linear, format)),
        ("scales", pack_scales(linear)),
        ("g_idx", pack_g_idx(linear)),
    ]
}

fn pack_weight(linear: &QuantizedLinear) -> Vec<u8> {
    let width = bits::n_words(linear.in_features, linear.scheme.bits);
    let mut words = vec![0; linear.out_features * width];
    words
        .par_chunks_exact_mut(width)
        .zip(linear.codes.par_chunks_exact(linear.in_features))
        .for_each(|(words, codes)| bits::pack(codes, linear.scheme.bits, words));
    words_to_bytes(&bits::transpose(&words, linear.out_features, width))
}

fn pack_zeros(linear: &QuantizedLinear, format: Format) -> Vec<u8> {
    let mut fields = bits::transpose(&linear.zero_points, linear.out_features, linear.n_groups());
    if format == Format::GptqV1 {
        for field in &mut fields {
            assert!(*field >= 1, "GPTQ v1 cannot store a zero point of 0");
            *field -= 1;
        }
    }
    let width = bits::n_words(linear.out_features, linear.scheme.bits);
    let mut words = vec![0; linear.n_groups() * width];
    for (words, fields) in words
        .chunks_exact_mut(width)
        .zip(fields.chunks_exact(linear.out_features))
    {
        bits::pack(fields, linear.scheme.bits, words);
    }
    words_to_bytes(&words)
}

fn pack_g_idx(linear: &QuantizedLinear) -> Vec<u8> {
    let groups: Vec<u32> = (0..linear.in_features)
        .map(|column| linear.group_of(column) as u32)
        .collect();
    words_to_bytes(&groups)
}

/// `qweight` to codes `[out, in]`.
pub(super) fn unpack_weight(bytes: &[u8], out: usize, inp: usize, width: u8) -> Vec<u8> {
    let row_words = bits::n_words(inp, width);
    let words = bits::transpose(&bytes_to_words(bytes), row_words, out);
    let mut codes = vec![0; out * inp];
    codes
        .par_chunks_exact_mut(inp)
        .zip(words.par_chunks_exact(row_words))
        .for_each(|(codes, words)| bits::unpack(words, width, codes));
    codes
}

/// `qzeros` to zero points `[out, n_groups]`.
pub(super) fn unpack_zeros(
    bytes: &[u8],
    out: usize,
    n_groups: usize,
    width: u8,
    format: Format,
) -> Vec<u8> {
    let mut words = bytes_to_words(bytes);
    let v1 = format == Format::GptqV1;
    // GPTQModel subtracts 1 from the fields of a whole word at once where fields do not straddle words. A zero point of
    // 0 then borrows from the next field, which only the same addition undoes.
    let whole_words = 32 % width == 0;
    if v1 && whole_words {
        let ones = (0..32)
            .step_by(width.into())
            .fold(0, |ones, bit| ones | 1 << bit);
        for word in &mut words {
            *word = word.wrapping_add(ones);
        }
    }
    let mut fields = vec![0; n_groups * out];
    for (fields, words) in fields
        .chunks_exact_mut(out)
        .zip(words.chunks_exact(bits::n_words(out, width)))
    {
        bits::unpack(words, width, fields);
    }
    if v1 && !whole_words {
        for field in &mut fields {
            *field = (*field + 1) & (u8::MAX >> (8 - width));
        }
    }
    bits::transpose(&fields, n_groups, out)
}

/// `g_idx`, or nothing where columns are in group order.
pub(super) fn unpack_g_idx(
    bytes: Option<&[u8]>,
    in_features: usize,
    scheme: Scheme,
) -> Result<Option<Vec<u32>>, Error> {
    let Some(bytes) = bytes else { return Ok(None) };
    let groups = bytes_to_words(bytes);
    let n_groups = scheme.n_groups(in_features);
    if let Some(column) = groups.iter().position(|&group| group as usize >= n_groups) {
        return Err(Error::GroupIndex {
            column,
            group: groups[column].cast_signed(),
            n_groups,
        });
    }
    let columns = scheme.group_columns(in_features);
    let in_order = groups
        .iter()
        .enumerate()
        .all(|(column, &group)| group as usize == column / columns);
    Ok((!in_order).then_some(groups))
}

#[cfg(test)]
mod tests {
    use super::super::tests::check_golden;
    use super::*;

    const GOLDEN: &[u8] = include_bytes!(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/golden/pack_gptq.safetensors"
    ));
    const STORABLE: [&str; 10] = [
        "w2_sym",
        "w3_sym",
        "w4_sym",
        "w8_sym",
        "w2_asym",
        "w3_asym",
        "w4_asym",
        "w8_asym",
        "w4_row",
        "w4_desc_act",
    ];
    const ZERO_POINT_0: [&str; 4] = ["w2_zero0", "w3_zero0", "w4_zero0", "w8_zero0"];

    /// tests/golden/generate/pack.py, GPTQModel 7.7.0 `pack_original` and its v1 conversion. Bytes must be equal.
    #[test]
    fn packs_v1_as_gptqmodel_does() {
        check_golden(GOLDEN, &STORABLE, Format::GptqV1, "qzeros_v1");
    }

    /// The same before the conversion. Bytes must be equal.
    #[test]
    fn packs_v2_as_gptqmodel_does() {
        check_golden(GOLDEN, &STORABLE, Format::GptqV2, "qzeros_v2");
        check_golden(GOLDEN, &ZERO_POINT_0, Format::GptqV2, "qzeros_v2");
    }

    /// GPTQModel's v1 files with zero points of 0, which are not written here, are still read as it reads them.
    #[test]
    fn reads_zero_points_that_gptqmodel_wrapped() {
        for name in ZERO_POINT_0 {
            super::super::tests::check_unpack(GOLDEN, name, Format::GptqV1, "qzeros_v1");
        }
    }
}
