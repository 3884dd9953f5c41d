//! The dense little-endian bit stream of codes in 32-bit words, and the transposition that every format needs.
//!
//! Code `i` of width `b` occupies bits `i*b .. (i+1)*b` of the stream, bit `n` being bit `n % 32` of word `n / 32`, so a
//! code may straddle two words where `b` does not divide 32. AWQ and GPTQ files differ only in the axis along which the
//! stream runs, in the order of the codes, and in what the zero points mean.

use rayon::prelude::*;

/// Codes in a block that fills whole words at every width.
const BLOCK: usize = 32;

/// Words that `count` codes of `bits` bits take.
pub fn n_words(count: usize, bits: u8) -> usize {
    (count * usize::from(bits)).div_ceil(32)
}

/// Packs `codes` (each below `2^bits`) into `words`, which must hold exactly [`n_words`]; unused high bits are zero.
pub fn pack(codes: &[u8], bits: u8, words: &mut [u32]) {
    assert_eq!(words.len(), n_words(codes.len(), bits));
    match bits {
        2 => pack_blocks::<2>(codes, words),
        3 => pack_blocks::<3>(codes, words),
        4 => pack_blocks::<4>(codes, words),
        5 => pack_blocks::<5>(codes, words),
        6 => pack_blocks::<6>(codes, words),
        7 => pack_blocks::<7>(codes, words),
        8 => pack_blocks::<8>(codes, words),
        _ => panic!("codes are 2 to 8 bits wide, not {bits}"),
    }
}

/// The inverse of [`pack`]: fills `codes` from `words`, which must hold exactly [`n_words`].
pub fn unpack(words: &[u32], bits: u8, codes: &mut [u8]) {
    assert_eq!(words.len(), n_words(codes.len(), bits));
    match bits {
        2 => unpack_blocks::<2>(words, codes),
        3 => unpack_blocks::<3>(words, codes),
        4 => unpack_blocks::<4>(words, codes),
        5 => unpack_blocks::<5>(words, codes),
        6 => unpack_blocks::<6>(words, codes),
        7 => unpack_blocks::<7>(words, codes),
        8 => unpack_blocks::<8>(words, codes),
        _ => panic!("codes are 2 to 8 bits wide, not {bits}"),
    }
}

/// 32 codes fill `BITS` words, and with the width known the compiler sees constant shifts only.
fn pack_blocks<const BITS: usize>(codes: &[u8], words: &mut [u32]) {
    let (code_blocks, code_tail) = codes.as_chunks::<BLOCK>();
    let (word_blocks, word_tail) = words.split_at_mut(code_blocks.len() * BITS);
    for (codes, words) in code_blocks
        .iter()
        .zip(word_blocks.as_chunks_mut::<BITS>().0)
    {
        *words = pack_block(codes);
    }
    if !code_tail.is_empty() {
        let mut padded = [0; BLOCK];
        padded[..code_tail.len()].copy_from_slice(code_tail);
        word_tail.copy_from_slice(&pack_block::<BITS>(&padded)[..word_tail.len()]);
    }
}

fn unpack_blocks<const BITS: usize>(words: &[u32], codes: &mut [u8]) {
    let (code_blocks, code_tail) = codes.as_chunks_mut::<BLOCK>();
    let (word_blocks, word_tail) = words.split_at(code_blocks.len() * BITS);
    for (words, codes) in word_blocks.as_chunks::<BITS>().0.iter().zip(code_blocks) {
        *codes = unpack_block(words);
    }
    if !code_tail.is_empty() {
        let mut padded = [0; BITS];
        padded[..word_tail.len()].copy_from_slice(word_tail);
        code_tail.copy_from_slice(&unpack_block(&padded)[..code_tail.len()]);
    }
}

#[inline]
fn pack_block<const BITS: usize>(codes: &[u8; BLOCK]) -> [u32; BITS] {
    let mut words = [0; BITS];
    for (i, &code) in codes.iter().enumerate() {
        let (word, shift) = (i * BITS / 32, i * BITS % 32);
        words[word] |= u32::from(code) << shift;
        if shift + BITS > 32 {
            words[word + 1] |= u32::from(code) >> (32 - shift);
        }
    }
    words
}

#[inline]
fn unpack_block<const BITS: usize>(words: &[u32; BITS]) -> [u8; BLOCK] {
    std::array::from_fn(|i| {
        let (word, shift) = (i * BITS / 32, i * BITS % 32);
        let mut code = words[word] >> shift;
        if shift + BITS > 32 {
            code |= words[word + 1] << (32 - shift);
        }
        code as u8 & (u8::MAX >> (8 - BITS))
    })
}

/// `[rows, columns]` row-major to `[columns, rows]` row-major.
pub fn transpose<T: Copy + Default + Send + Sync>(
    values: &[T],
    rows: usize,
    columns: usize,
) -> Vec<T> {
    /// Rows of the result written together: one cache line of 32-bit words is read at a time.
    const STRIPE: usize = 16;
    assert_eq!(values.len(), rows * columns);
    let mut transposed = vec![T::default(); values.len()];
    if values.is_empty() {
        return transposed;
    }
    transposed
        .par_chunks_mut(rows * STRIPE)
        .enumerate()
        .for_each(|(stripe, part)| {
            let first = stripe * STRIPE;
            for (row, line) in values.chunks_exact(columns).enumerate() {
                let width = part.len() / rows;
                for (column, &value) in line[first..first + width].iter().enumerate() {
                    part[column * rows + row] = value;
                }
            }
        });
    transposed
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn packed(codes: &[u8], bits: u8) -> Vec<u32> {
        let mut words = vec![u32::MAX; n_words(codes.len(), bits)];
        pack(codes, bits, &mut words);
        words
    }

    /// Words that AutoAWQ 0.2.9, GPTQModel 7.7.0 and compressed-tensors 0.20 make of the codes 0, 1, 2, ... mod 2^bits.
    #[test]
    fn counting_codes_give_the_words_of_the_peers() {
        for (bits, expected) in [
            (2, &[0xe4e4_e4e4][..]),
            (3, &[0x88fa_c688, 0xc688_fac6, 0xfac6_88fa]),
            (4, &[0x7654_3210, 0xfedc_ba98]),
            (
                5,
                &[
                    0x8a41_8820,
                    0xc5a9_2839,
                    0xca30_7b9a,
                    0x38bd_ab49,
                    0xffbb_cdeb,
                ],
            ),
            (8, &[0x0302_0100]),
        ] {
            let count = expected.len() * 32 / usize::from(bits);
            let codes: Vec<u8> = (0..count).map(|i| (i % (1 << bits)) as u8).collect();
            assert_eq!(packed(&codes, bits), expected, "{bits} bits");
        }
    }

    #[test]
    fn transposition_is_its_own_inverse() {
        for (rows, columns) in [(0, 3), (1, 1), (3, 16), (5, 17), (40, 70)] {
            let values: Vec<u32> = (0..rows * columns).map(|i| i as u32).collect();
            let transposed = transpose(&values, rows, columns);
            if let (Some(&last), true) = (transposed.last(), rows > 1) {
                assert_eq!(last, values[rows * columns - 1]);
                assert_eq!(transposed[1], values[columns]);
            }
            assert_eq!(transpose(&transposed, columns, rows), values);
        }
    }

    proptest! {
        #[test]
        fn unpacking_gives_back_what_was_packed(bits in 2u8..=8, codes in prop::collection::vec(any::<u8>(), 0..200)) {
            let codes: Vec<u8> = codes.iter().map(|code| code >> (8 - bits)).collect();
            let words = packed(&codes, bits);
            let mut unpacked = vec![u8::MAX; codes.len()];
            unpack(&words, bits, &mut unpacked);
            prop_assert_eq!(&unpacked, &codes);
            // The definition in the module's documentation, one bit at a time.
            for bit in 0..words.len() * 32 {
                let expected = codes.get(bit / usize::from(bits)).map_or(0, |code| code >> (bit % usize::from(bits)) & 1);
                prop_assert_eq!((words[bit / 32] >> (bit % 32) & 1) as u8, expected);
            }
        }
    }
}
