//! The numbers of multi-head latent attention.

use crate::model::Error;
use crate::model::keys::Keys;

/// Widths of what queries, keys and values are made of.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct LatentConfig {
    /// Of what the query is made of, unless it is made of the residual stream itself.
    pub query_rank: Option<usize>,
    /// Of what keys and values are made of.
    pub rank: usize,
    /// Of a head's query and key.
    pub head_dim: usize,
    /// How many of these turn: the last ones.
    pub turning_dim: usize,
    pub value_head_dim: usize,
}

impl LatentConfig {
    pub(super) fn new(keys: &Keys<'_>, n_heads: usize, n_kv_heads: usize) -> Result<Self, Error> {
        if n_kv_heads != n_heads {
            let expected = format!("num_attention_heads, {n_heads}: every head has its own keys");
            return Err(keys.invalid("num_key_value_heads", expected));
        }
        let turning_dim = keys.size("qk_rope_head_dim")?;
        let head_dim = keys.size("qk_nope_head_dim")? + turning_dim;
        if turning_dim % 2 != 0 || head_dim % 2 != 0 {
            let expected = "an even number, as qk_nope_head_dim";
            return Err(keys.invalid("qk_rope_head_dim", expected));
        }
        Ok(Self {
            query_rank: keys.length("q_lora_rank")?,
            rank: keys.size("kv_lora_rank")?,
            head_dim,
            turning_dim,
            value_head_dim: match keys.length("v_head_dim")? {
                Some(dim) => dim,
                None => keys.size("hidden_size")? / n_heads,
            },
        })
    }
}
