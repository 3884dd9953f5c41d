//! `nibble generate DIR --prompt TEXT`.

use anyhow::{Context, Result};
use tch::{Kind, Tensor};

use crate::calibration::Tokenizer;
use crate::cli::GenerateArgs;
use crate::cli::settings::ComputeChoice;
use crate::model::{KvCache, Layer, State, Tokens};
use crate::pipeline;
use crate::weights::ModelDir;

/// Prints the prompt and its continuation.
pub fn generate(args: &GenerateArgs) -> Result<()> {
    let compute = pipeline::compute(&ComputeChoice::resolve(&args.compute)?)?;
    let dir = ModelDir::open(&args.model)?;
    let tokenizer = Tokenizer::open(&args.model)?;
    let mut ids: Vec<u32> = tokenizer
        .bos()
        .into_iter()
        .chain(tokenizer.encode(&args.prompt)?)
        .collect();
    anyhow::ensure!(
        !ids.is_empty(),
        "the prompt holds no token; give --prompt some text"
    );
    let n_prompt = ids.len();
    let end = tokenizer.eos();
    let layers = (0..dir.model.config.n_layers)
        .map(|layer| Layer::load(&dir.model, &dir, compute, layer))
        .collect::<Result<Vec<_>, _>>()?;
    let head = dir.model.head(&dir, compute)?;
    let places = dir.model.places(compute, n_prompt + args.max_tokens)?;
    let mut caches: Vec<KvCache> = layers.iter().map(|_| KvCache::default()).collect();
    tch::manual_seed(args.seed as i64);
    let mut fed = 0;
    while ids.len() < n_prompt + args.max_tokens {
        let new = &ids[fed..];
        let embedded = (dir.model).embed(&dir, compute, new, new.len(), fed)?;
        let mut state = State::new(embedded.f_unsqueeze(0)?);
        for (index, (layer, cache)) in layers.iter().zip(&mut caches).enumerate() {
            (dir.model).enter_layer(&dir, compute, index, Tokens::words(new, fed), &mut state)?;
            state = layer.forward(state, &places, Some(cache))?;
        }
        fed = ids.len();
        let last = state.hidden.f_select(1, -1)?;
        let logits = head.logits(&last)?.f_view([-1])?.f_to_kind(Kind::Float)?;
        let next = choose(&logits, args.temperature, args.top_p)?;
        if end.contains(&next) {
            break;
        }
        ids.push(next);
    }
    let text = tokenizer.decode(&ids[usize::from(tokenizer.bos().is_some())..])?;
    Ok(super::print(&format!("{text}\n"))?)
}

/// The likeliest token, or one drawn from the smallest set of tokens that has `top_p` of the probability.
fn choose(logits: &Tensor, temperature: f64, top_p: f64) -> Result<u32> {
    let index = if temperature <= 0.0 {
        logits.f_argmax(-1, false)?
    } else {
        let (sorted, order) = logits
            .f_div_scalar(temperature)?
            .f_softmax(-1, Kind::Float)?
            .f_sort(-1, true)?;
        // The token that crosses the threshold stays in.
        let before = sorted.f_cumsum(-1, Kind::Float)?.f_sub(&sorted)?;
        let kept = sorted.f_masked_fill(&before.f_ge(top_p)?, 0.0)?;
        order.f_index_select(0, &kept.f_multinomial(1, false)?)?
    };
    u32::try_from(index.f_view([-1])?.f_int64_value(&[0])?).context("token id")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn greedy_takes_the_largest_and_sampling_stays_within_top_p() {
        let logits = Tensor::from_slice(&[0.0f32, 5.0, 4.9, -3.0]);
        assert_eq!(choose(&logits, 0.0, 1.0).unwrap(), 1);
        tch::manual_seed(3);
        let drawn: std::collections::HashSet<u32> = (0..64)
            .map(|_| choose(&logits, 1.0, 0.9).unwrap())
            .collect();
        assert_eq!(drawn, [1, 2].into());
        let narrow: std::collections::HashSet<u32> = (0..64)
            .map(|_| choose(&logits, 1.0, 0.1).unwrap())
            .collect();
        assert_eq!(narrow, [1].into());
    }
}
