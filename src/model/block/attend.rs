//! A layer's attention, from its linears' outputs to what the heads mix.

use super::{Block, Parts};
use crate::model::attention::{attention, attention_within_images, remember};
use crate::model::{Error, KvCache, Mix, NormSite, Places, QkNorm, Role, State};
use tch::{Kind, Tensor};

impl Block {
    /// What the heads mix, `[B, T, n_heads * value_head_dim]`. Keys and values are lent and borrowed in slots of `state`, as
    /// `mix` says.
    pub(super) fn attend(
        &self,
        mix: Mix,
        parts: &mut Parts,
        state: &mut State,
        places: &Places,
        mut cache: Option<&mut KvCache>,
    ) -> Result<Tensor, Error> {
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let query = self.placed(parts.take(Role::Q), NormSite::Query, places, start)?;
        let query = self.tempered(query, start)?;
        let (key, value) = if let Mix::BorrowingAttention { lent, last } = mix {
            let [key, value] = lent.map(|slot| self.heads(state.slot(slot)));
            if let Some(cache) = cache.take() {
                cache.pass(query.size()[1]);
            }
            if last {
                for slot in lent {
                    state.set_slot(slot, None);
                }
            }
            (key?, value?)
        } else {
            let key = parts.take(Role::K);
            // Norms and positions may overwrite what they are given.
            let value = match parts.find(Role::V) {
                Some(value) => value,
                None => key.f_alias_copy()?,
            };
            let key = self.placed(key, NormSite::Key, places, start)?;
            let value = self.heads(&self.clip(value)?)?;
            let value = match &self.value_norm {
                None => value,
                Some(norm) => norm.forward(&value)?,
            };
            (key, value)
        };
        let (key, value) = match mix {
            Mix::LendingAttention(slots) => {
                let seen = remember(cache.take(), key, value, self.scores.window)?;
                for (slot, tensor) in slots.into_iter().zip([&seen.0, &seen.1]) {
                    state.set_slot(slot, Some(tensor.f_flatten(2, 3)?));
                }
                seen
            }
            _ => (key, value),
        };
        let sinks = self.sinks.as_ref();
        if let Some(images) = places.images(self.scores.window.is_some()) {
            return attention_within_images(&query, &key, &value, self.scores, images);
        }
        attention(&query, &key, &value, self.scores, sinks, cache)
    }

    /// `[B, T, n, head_dim]`
    fn heads(&self, x: &Tensor) -> Result<Tensor, Error> {
        let size = x.size();
        Ok(x.f_view([size[0], size[1], -1, self.head_dim])?)
    }

    /// Queries or keys with their norm and their positions, the first of which is `start`: `[B, T, n, head_dim]`.
    fn placed(
        &self,
        x: Tensor,
        site: NormSite,
        places: &Places,
        start: usize,
    ) -> Result<Tensor, Error> {
        let norm = |x: Tensor, at: QkNorm| match self.find_norm(site) {
            Some(norm) if self.qk_norm == at => norm.forward(&x),
            _ => Ok(x),
        };
        let x = self.clip(norm(x, QkNorm::Whole)?)?;
        let mut x = norm(self.heads(&x)?, QkNorm::Heads)?;
        if let Some(rope) = self.rope {
            x = places.rope(rope).rotate(x, start)?;
        }
        match &self.plain_norm {
            Some(norm) => norm.forward(&x),
            None => norm(x, QkNorm::TurnedHeads),
        }
    }

    /// Attention whose keys end in numbers that all heads share, which alone turn, as the query's last ones do.
    pub(super) fn attend_latent(
        &self,
        [query, turning_key]: [Tensor; 2],
        [key, value]: [Tensor; 2],
        places: &Places,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor, Error> {
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let turning_dim = self.latent.map_or(0, |latent| latent.turning_dim as i64);
        let fixed_dim = self.head_dim - turning_dim;
        let heads = |x: &Tensor, dim: i64| -> Result<Tensor, Error> {
            let size = x.size();
            Ok(x.f_reshape([size[0], size[1], -1, dim])?)
        };
        let turned = |x: Tensor| match self.rope {
            Some(rope) => places.rope(rope).rotate(x, start),
            None => Ok(x),
        };
        let query = heads(&query, self.head_dim)?;
        let fixed = query.f_narrow(3, 0, fixed_dim)?;
        let turning = turned(query.f_narrow(3, fixed_dim, turning_dim)?)?;
        let query = self.tempered(Tensor::f_cat(&[fixed, turning], 3)?, start)?;
        let turning = turned(heads(&turning_key, turning_dim)?)?;
        let turning = turning.f_expand([-1, -1, query.size()[2], -1], false)?;
        let key = Tensor::f_cat(&[heads(&key, fixed_dim)?, turning], 3)?;
        let value = heads(&value, self.value_head_dim)?;
        attention(
            &query,
            &key,
            &value,
            self.scores,
            self.sinks.as_ref(),
            cache,
        )
    }

    /// What the heads mix of the images that each token sees, `[B, T, n_heads * head_dim]`. Nothing turns.
    pub(super) fn attend_to_images(
        &self,
        query: &Tensor,
        [key, value]: [Tensor; 2],
        places: &Places,
    ) -> Result<Tensor, Error> {
        let normed = |x: &Tensor, site| -> Result<Tensor, Error> {
            self.norm(site).forward(&self.heads(x)?)
        };
        let query = normed(query, NormSite::Query)?;
        let key = normed(&key, NormSite::Key)?;
        let (gallery, scale) = (places.gallery(), self.scores.scale);
        gallery.attend(&query, &key, &self.heads(&value)?, scale)
    }

    fn clip(&self, x: Tensor) -> Result<Tensor, Error> {
        Ok(match self.qkv_clip {
            None => x,
            Some(bound) => x.f_clamp(-bound, bound)?,
        })
    }

    /// The query `[B, T, n_heads, head_dim]`, whose first token stands at position `start`, times its temperature.
    fn tempered(&self, query: Tensor, start: usize) -> Result<Tensor, Error> {
        let Some(temperature) = self.temperature else {
            return Ok(query);
        };
        let (start, len) = (start as i64, query.size()[1]);
        let options = (Kind::Float, query.device());
        let factors = Tensor::f_arange_start(start, start + len, options)?
            .f_add_scalar(temperature.start)?
            .f_div_scalar(temperature.interval)?
            .f_floor()?
            .f_log1p()?
            .f_mul_scalar(temperature.strength)?
            .f_add_scalar(1.0)?;
        let tempered = query.f_mul(&factors.f_view([-1, 1, 1])?)?;
        Ok(tempered.f_to_kind(query.kind())?)
    }
}
