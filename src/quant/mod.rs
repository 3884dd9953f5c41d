//! Quantizers: pure functions of a weight, the statistics of its input, and settings.
//!
//! Nothing here knows a file, a model or an output format. Weights are `[out, in]` float32; what comes out is
//! integer codes with their grids ([`QuantizedLinear`]), never dequantized floats.

pub mod awq;
pub mod gptq;
mod grid;
mod linear;
mod rtn;
mod scheme;
mod stats;

pub use grid::Grid;
pub use linear::QuantizedLinear;
pub use rtn::quantize as rtn;
pub use scheme::{GroupSize, Scheme};
pub use stats::{InputStats, InputSums, output_error};

/// A quantizer's failure. The caller adds which layer and linear it was.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The damped Gram matrix could not be factored, with however much damping.
    #[error(
        "the Gram matrix [{size}, {size}] of the input is not positive definite, even with damp {damp} \
         ({n_tokens} tokens seen); raise --damp-percent or give more calibration samples"
    )]
    NotPositiveDefinite {
        size: usize,
        damp: f64,
        n_tokens: usize,
    },
    /// A NaN or an infinity where a number was expected.
    #[error("{what} holds {count} values that are not finite")]
    NotFinite { what: &'static str, count: usize },
    /// A tensor operation failed.
    #[error(transparent)]
    Tensor(#[from] crate::tensor::Error),
    /// A libtorch operation failed.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}
