//! What follows the last layer: the final norm and the projection to the vocabulary.

use super::norm::Norm;
use super::{Compute, Error, Model, Weights};
use tch::Tensor;

/// Final norm and output projection on the device.
#[derive(Debug)]
pub struct Head {
    norm: Norm,
    /// `[vocab, hidden]`
    weight: Tensor,
    /// `[vocab]`
    bias: Option<Tensor>,
    scale: Option<f64>,
    softcap: Option<f64>,
}

impl Head {
    pub(super) fn load(
        model: &Model,
        weights: &dyn Weights,
        compute: Compute,
    ) -> Result<Self, Error> {
        let (config, arch) = (&model.config, model.arch);
        let head = model.stored_name(arch.head);
        let head_weight = format!("{head}.weight");
        let name = if config.tie_word_embeddings {
            model.stored_name(arch.embedding)
        } else {
            head_weight
        };
        let bias = (config.biases.head).then(|| format!("{head}.bias"));
        let (eps, hidden_size) = (config.norm_eps, config.hidden_size);
        let norm = Norm::load(
            weights,
            compute,
            arch.norm,
            eps,
            &model.stored_name(arch.final_norm),
            hidden_size,
        )?;
        let load = |name: &str, shape: &[usize]| compute.place(&weights.tensor(name, shape)?);
        Ok(Self {
            norm,
            weight: load(&name, &[config.vocab_size, hidden_size])?,
            bias: (bias.map(|name| load(&name, &[config.vocab_size]))).transpose()?,
            scale: config.logit_scale,
            softcap: config.logit_softcap,
        })
    }

    /// `hidden` is `[.., hidden]` as the last layer left it, the result `[.., vocab]` in the same kind.
    pub fn logits(&self, hidden: &Tensor) -> Result<Tensor, Error> {
        let normalized = self.norm.forward(hidden)?;
        let mut logits = normalized.f_linear(&self.weight, self.bias.as_ref())?;
        if let Some(scale) = self.scale {
            logits = logits.f_mul_scalar_(scale)?;
        }
        if let Some(cap) = self.softcap {
            logits = logits.f_div_scalar_(cap)?.f_tanh_()?.f_mul_scalar_(cap)?;
        }
        Ok(logits)
    }
}
