//! What follows the last layer: the final norm and the projection to the vocabulary.

use super::norm::rms_norm;
use super::{Compute, Error, Model, NormKind, Weights};
use tch::{Kind, Tensor};

/// Final norm and output projection on the device.
#[derive(Debug)]
pub struct Head {
    norm_kind: NormKind,
    norm_eps: f64,
    /// `[hidden]` float32
    norm: Tensor,
    /// `[vocab, hidden]`
    weight: Tensor,
}

impl Head {
    pub(super) fn load(
        model: &Model,
        weights: &dyn Weights,
        compute: Compute,
    ) -> Result<Self, Error> {
        let config = &model.config;
        let name = if config.tie_word_embeddings {
            model.arch.embedding
        } else {
            model.arch.head
        };
        let norm = weights.tensor(model.arch.final_norm, &[config.hidden_size])?;
        Ok(Self {
            norm_kind: model.arch.norm,
            norm_eps: config.norm_eps,
            norm: norm.f_to_device(compute.device)?.f_to_kind(Kind::Float)?,
            weight: compute
                .place(&weights.tensor(name, &[config.vocab_size, config.hidden_size])?)?,
        })
    }

    /// `hidden` is `[.., hidden]` as the last layer left it, the result `[.., vocab]` in the same kind.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, Error> {
        let normalized = rms_norm(self.norm_kind, hidden, &self.norm, self.norm_eps)?;
        Ok(normalized.f_linear(&self.weight, None::<&Tensor>)?)
    }
}
