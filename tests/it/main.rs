//! The program as a user meets it: the real binary on tiny models made here, and on a real one where it was made.

#![allow(
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "tests panic on failure and say what they skip"
)]

/// What `nibble devices` says, and memory as it is watched, on machines made of stubs.
mod devices;
/// Bad input: one line, the remedy, the exit code, and nothing left behind.
mod errors;
/// Mixtures of experts: layouts, starved experts, what stays in float.
mod experts;
/// Whole runs of every configuration that has golden logits.
mod families;
/// Whole runs: every family and method, what is written, and what reads it back.
mod quantize;
/// Runs that are ended on the way, and go on.
mod resume;
/// Linears that stay in float because the user wants it.
mod selection;
/// SmolLM2, where `make` has made it: forward pass and quality.
mod smollm2;
/// Tiny models, and running the program.
mod support;
/// Models that see, calibrated with images.
mod vision;
