//! MXFP4 (OCP Microscaling Formats 1.0): blocks of 32 numbers of four bits each that share a power of two.

use super::Error;
use tch::{Kind, Tensor};

/// What the codes of E2M1 stand for; the upper half is negative.
const VALUES: [f32; 16] = [
    0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0,
];

/// The bias of the exponents that blocks share.
const EXPONENT_BIAS: f64 = 127.0;

/// The numbers of `blocks` `[n * 16]`, two codes to a byte with the first in its lower half, times two to the power of
/// `scales` `[n]` less 127; both are uint8. `[n * 32]` bfloat16, which holds them exactly.
pub fn decode(blocks: &Tensor, scales: &Tensor) -> Result<Tensor, Error> {
    let low = blocks.f_bitwise_and(15)?;
    let high = blocks.f_bitwise_right_shift_tensor_scalar(4)?;
    let codes = Tensor::f_stack(&[low, high], -1)?.f_flatten(0, -1)?;
    let values = Tensor::f_from_slice(&VALUES)?.f_index_select(0, &codes.f_to_kind(Kind::Int)?)?;
    let exponents = scales
        .f_to_kind(Kind::Float)?
        .f_sub_scalar(EXPONENT_BIAS)?
        .f_view([-1, 1])?;
    let numbers = values.f_view([-1, 32])?.f_mul(&exponents.f_exp2()?)?;
    Ok(numbers.f_flatten(0, 1)?.f_to_kind(Kind::BFloat16)?)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn codes_are_read_low_half_first_and_scaled_by_their_block() {
        let mut blocks = vec![0x10u8, 0x32, 0x54, 0x76, 0x98, 0xBA, 0xDC, 0xFE];
        blocks.resize(16, 0);
        blocks.extend([0x72u8; 16]);
        let decoded = decode(
            &Tensor::from_slice(&blocks),
            &Tensor::from_slice(&[128u8, 125]),
        )
        .unwrap();
        let numbers = Vec::<f32>::try_from(decoded.to_kind(Kind::Float)).unwrap();
        let doubled: Vec<f32> = VALUES.iter().map(|value| value * 2.0).collect();
        assert_eq!(numbers[..16], doubled);
        assert_eq!(numbers[16..32], [0.0; 16]);
        assert_eq!(numbers[32..36], [0.25, 1.5, 0.25, 1.5]);
    }
}
