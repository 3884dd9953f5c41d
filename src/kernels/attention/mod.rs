//! Causal attention, `softmax(scale QKᵀ) V` for each head, in bfloat16.
//!
//! Keys and values are packed once for all query heads that share them (`pack.rs`). A block of queries then meets one
//! block of keys after the other (`block.rs`), as in FlashAttention (Dao et al. 2022, arXiv:2205.14135): the scores of
//! a block stay in the first cache, and the softmax is computed online (Milakov and Gimelshein 2018,
//! arXiv:1805.02867), so that what was summed before is scaled down when a larger score comes. Keys that no query of a
//! block sees are skipped.
//!
//! Scores, the softmax and all sums are float32. [`InstructionSet::Avx512Bf16`] multiplies pairs of bfloat16 numbers:
//! there the probabilities are rounded to bfloat16, and subnormal numbers count as zero.
//!
//! Every element is summed in the same order whatever the number of threads, so that runs repeat bit for bit.

#![expect(
    clippy::inline_always,
    reason = "a body is compiled for the instruction set of the function that it is inlined into"
)]

mod block;
mod pack;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod x86_64;

use std::f32::consts::LOG2_E;

use half::bf16;
use rayon::prelude::*;

use super::InstructionSet;
use super::lanes::Portable;
use block::Task;
use pack::{Format, Head, Packed, Single, pack};

/// Queries that a task takes, so many that loading a block of keys costs little beside using it. A multiple of every
/// set's rows in a strip.
const QUERIES: usize = 48;

/// Attention over `B` rows of `T` tokens each, all row-major.
#[derive(Debug, Clone, Copy)]
pub struct Problem<'a> {
    /// `[B, T, n_heads, head_dim]`
    pub query: &'a [bf16],
    /// `[B, T, n_kv_heads, head_dim]`
    pub key: &'a [bf16],
    /// `[B, T, n_kv_heads, value_dim]`
    pub value: &'a [bf16],
    /// For each query head a score that takes part in the softmax, with a value of zeros; where there are any.
    pub sinks: Option<&'a [f32]>,
    pub n_tokens: usize,
    pub n_heads: usize,
    /// Divides `n_heads`: so many neighbouring query heads share a key head.
    pub n_kv_heads: usize,
    /// An even number.
    pub head_dim: usize,
    pub value_dim: usize,
    /// A token sees itself and `window - 1` earlier ones; all earlier ones where there is none.
    pub window: Option<usize>,
    /// What scores are multiplied by, positive.
    pub scale: f32,
}

/// Writes the values, mixed by the softmax of the scores, to `output`, `[B, T, n_heads * value_dim]`; on rayon's threads.
///
/// # Panics
/// Where the lengths do not fit together, the window or a dimension is 0, `head_dim` is odd, the scale is not positive,
/// or if this CPU lacks `set`.
pub fn attend(set: InstructionSet, problem: &Problem<'_>, output: &mut [bf16]) {
    #[cfg(target_arch = "x86_64")]
    if set == InstructionSet::Avx512Bf16 {
        return run::<x86_64::Pair>(set, problem, output, x86_64::attend_pairs);
    }
    run::<Single>(set, problem, output, |task| attend_single(set, task));
}

/// `attend` computes a task on what `F` packed.
fn run<F: Format>(
    set: InstructionSet,
    problem: &Problem<'_>,
    output: &mut [bf16],
    attend: impl Fn(&mut Task<'_>) + Send + Sync,
) {
    let Problem {
        n_tokens,
        n_heads,
        n_kv_heads,
        head_dim,
        value_dim,
        ..
    } = *problem;
    let window = problem.window.unwrap_or(usize::MAX);
    assert!(n_tokens > 0 && window > 0 && problem.scale > 0.0);
    assert!(head_dim > 0 && head_dim.is_multiple_of(2) && value_dim > 0);
    assert!(n_kv_heads > 0 && n_heads.is_multiple_of(n_kv_heads));
    let width = n_heads * value_dim;
    assert_eq!(output.len() % (n_tokens * width), 0);
    let n_rows = output.len() / width;
    assert_eq!(problem.query.len(), n_rows * n_heads * head_dim);
    assert_eq!(problem.key.len(), n_rows * n_kv_heads * head_dim);
    assert_eq!(problem.value.len(), n_rows * n_kv_heads * value_dim);
    assert!(problem.sinks.is_none_or(|sinks| sinks.len() == n_heads));
    let packed: Packed = pack::<F>(set, problem);
    let blocks = (output.par_chunks_mut(n_tokens * width).enumerate()).flat_map(|(row, output)| {
        let blocks = output.par_chunks_mut(QUERIES * width).enumerate();
        blocks.map(move |(block, output)| (row, block * QUERIES, output))
    });
    blocks.for_each(|(row, first, output)| {
        // Each head's part of every token, so that heads can be written at the same time.
        let n_queries = output.len() / width;
        let mut heads: Vec<_> = (0..n_heads)
            .map(|_| Vec::with_capacity(n_queries))
            .collect();
        for token in output.chunks_mut(width) {
            for (head, part) in heads.iter_mut().zip(token.chunks_mut(value_dim)) {
                head.push(part);
            }
        }
        heads
            .into_par_iter()
            .enumerate()
            .for_each(|(head, output)| {
                let kv_head = head * n_kv_heads / n_heads;
                let (keys, values) = packed.head(row * n_kv_heads + kv_head);
                attend(&mut Task {
                    query: Head::new(problem.query, n_tokens, head_dim, row, head, n_heads),
                    keys,
                    values,
                    first,
                    window,
                    sink: problem.sinks.map(|sinks| sinks[head] / problem.scale),
                    // Powers of two are taken instead of e's.
                    scale: problem.scale * LOG2_E,
                    output,
                });
            });
    });
}

/// [`block::attend`] of lanes with one number.
fn attend_single(set: InstructionSet, task: &mut Task<'_>) {
    #[cfg(target_arch = "x86_64")]
    if set != InstructionSet::Portable {
        return x86_64::attend_single(set, task);
    }
    assert_eq!(set, InstructionSet::Portable);
    block::attend::<Portable, Single, 2, 1>(task);
}
