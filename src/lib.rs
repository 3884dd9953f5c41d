//! Nibble quantizes Hugging Face models with AWQ and GPTQ, one stage of one layer at a time.
//!
//! `main.rs` is the program; this library exists so that integration tests and benchmarks can reach its parts.
//! `project_context.md` has the map of the modules and what each must not know.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::float_cmp,
        reason = "tests panic, and compare exact values"
    )
)]

pub mod calibration;
pub mod checkpoint;
pub mod cli;
pub mod commands;
pub mod device;
pub mod eval;
pub mod fault;
pub mod images;
pub mod kernels;
pub mod model;
pub mod pack;
pub mod pipeline;
pub mod quant;
pub mod report;
pub mod sight;
pub mod tensor;
pub mod weights;

#[cfg(test)]
mod readme;
