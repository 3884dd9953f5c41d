//! One decoder layer: everything but its linears as a [`Block`], and the whole of it in float as a [`Layer`].

use super::attention::{Scores, attention};
use super::config::{Activation, LatentConfig, MultipliersConfig, TemperatureConfig};
use super::mixers::Mixer;
use super::norm::Norm;
use super::router::Router;
use super::{
    Compute, Error, Kept, KvCache, LayerConfig, LayerPlan, Linear, Mix, Model, NormSite, QkNorm,
    Role, Ropes, Slot, Stage, StageInput, Weights,
};
use crate::kernels::{self, gated::silu_mul};
use crate::tensor::{bf16_slice, bf16_slice_mut, on_cpu_in_bf16};
use tch::{Kind, Tensor};

/// What flows from stage to stage.
#[derive(Debug)]
pub struct State {
    /// The residual stream, `[B, T, hidden]`.
    pub hidden: Tensor,
    /// What mixing steps left for later stages, `[B, T, ..]` each, by [`Slot`].
    slots: [Option<Tensor>; Slot::ALL.len()],
}

impl State {
    /// The state before the first stage of a layer.
    pub fn new(hidden: Tensor) -> Self {
        Self {
            hidden,
            slots: Slot::ALL.map(|_| None),
        }
    }

    /// What a mixing step left there.
    ///
    /// # Panics
    /// Where none did: the plan of the layer is wrong.
    pub fn slot(&self, slot: Slot) -> &Tensor {
        let found = self.slots[slot as usize].as_ref();
        found.unwrap_or_else(|| panic!("no step left {slot:?}"))
    }

    /// What a mixing step left there, if one did; the slot is empty then.
    pub fn take_slot(&mut self, slot: Slot) -> Option<Tensor> {
        self.slots[slot as usize].take()
    }

    /// Puts `tensor` there, or nothing.
    pub fn set_slot(&mut self, slot: Slot, tensor: Option<Tensor>) {
        self.slots[slot as usize] = tensor;
    }

    /// The slots that hold something.
    pub fn filled(&self) -> impl Iterator<Item = Slot> + '_ {
        let filled = |slot: &Slot| self.slots[*slot as usize].is_some();
        Slot::ALL.into_iter().filter(filled)
    }

    /// The state with each of its tensors changed.
    pub fn try_map<E>(&self, change: impl Fn(&Tensor) -> Result<Tensor, E>) -> Result<Self, E> {
        let mut changed = Self::new(change(&self.hidden)?);
        for slot in self.filled() {
            changed.set_slot(slot, Some(change(self.slot(slot))?));
        }
        Ok(changed)
    }

    /// The same tensors, not copied.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        let slots = self.slots.each_ref();
        Self {
            hidden: self.hidden.shallow_clone(),
            slots: slots.map(|slot| slot.as_ref().map(Tensor::shallow_clone)),
        }
    }
}

/// A decoder layer without its linears: its norms and the steps between its stages.
#[derive(Debug)]
pub struct Block {
    norms: Vec<(NormSite, Norm)>,
    /// The linears that stay in float, by their names; float32.
    dense: Vec<(String, Linear)>,
    head_dim: i64,
    value_head_dim: i64,
    latent: Option<LatentConfig>,
    qk_norm: QkNorm,
    /// Of queries and keys, where nothing is stored for them.
    plain_norm: Option<Norm>,
    qkv_clip: Option<f64>,
    temperature: Option<TemperatureConfig>,
    /// `[n_heads]` float32.
    sinks: Option<Tensor>,
    /// Which of the model's rotary embeddings.
    rope: Option<usize>,
    scores: Scores,
    activation: Activation,
    /// `alpha_p`, `alpha_n`, `beta` and `eps` as they are stored, each `[1]` float32.
    xielu: Option<[Tensor; 4]>,
    residual_scale: Option<f64>,
    multipliers: MultipliersConfig,
    mixer: Option<Mixer>,
    router: Option<Router>,
}

impl Block {
    /// Loads the norms of a layer and the linears that stay in float.
    pub fn load(
        model: &Model,
        weights: &dyn Weights,
        compute: Compute,
        layer: usize,
    ) -> Result<Self, Error> {
        let (config, plan) = (&model.config, &model.layers[layer]);
        let norms = plan.norms.iter().map(|norm| {
            let eps = config.norm_eps_at(norm.site);
            let loaded = Norm::load(weights, compute, norm.kind, eps, &norm.name, norm.len)?;
            Ok((norm.site, loaded.in_groups(norm.groups)))
        });
        let dense = plan.dense().map(|linear| {
            let loaded = Linear::load_wide(linear, weights, compute)?;
            Ok((linear.name.clone(), loaded))
        });
        let LayerConfig {
            window,
            chunk,
            rope,
            ..
        } = plan.config;
        let kept = |used: Kept| -> Result<Option<Tensor>, Error> {
            let Some((_, name, shape)) = plan.kept.iter().find(|kept| kept.0 == used) else {
                return Ok(None);
            };
            let tensor = weights.tensor(name, shape)?.f_flatten(0, -1)?;
            Ok(Some(
                tensor.f_to_device(compute.device)?.f_to_kind(Kind::Float)?,
            ))
        };
        let qk_norm = model.arch.attention.qk_norm;
        let has_plain_norm =
            qk_norm == QkNorm::PlainTurnedHeads && config.qk_norm && rope.is_some();
        Ok(Self {
            norms: norms.collect::<Result<_, Error>>()?,
            dense: dense.collect::<Result<_, Error>>()?,
            head_dim: config.head_dim as i64,
            value_head_dim: config.value_head_dim as i64,
            latent: config.latent,
            qk_norm,
            plain_norm: has_plain_norm.then(|| Norm::plain(config.norm_eps)),
            qkv_clip: config.qkv_clip,
            temperature: (config.temperature)
                .filter(|temperature| !temperature.without_rope || rope.is_none()),
            sinks: kept(Kept::Sinks)?,
            rope,
            scores: Scores {
                window,
                chunk,
                scale: config.attention_scale,
                softcap: config.attention_softcap,
                alibi: config.alibi,
            },
            activation: config.activation,
            xielu: match config.activation {
                Activation::Xielu => {
                    let numbers = ["alpha_p", "alpha_n", "beta", "eps"]
                        .map(|name| kept(Kept::Xielu(name)).map(|found| found.expect("planned")));
                    let [p, n, beta, eps] = numbers;
                    Some([p?, n?, beta?, eps?])
                }
                _ => None,
            },
            residual_scale: config.residual_scale,
            multipliers: config.multipliers,
            mixer: match config.mixer {
                Some(mixer) if plan.config.mixer => {
                    Some(Mixer::load(mixer, config.multipliers.mixer_parts, kept)?)
                }
                _ => None,
            },
            router: match (&model.arch.experts, &config.experts) {
                (Some(row), Some(config)) if config.layers[layer] => {
                    Some(Router::new(row.router, config, kept(Kept::Correction)?))
                }
                _ => None,
            },
        })
    }

    /// A norm with what it stores.
    ///
    /// # Panics
    /// Where the layer has none there: its plan is wrong.
    pub fn norm(&self, site: NormSite) -> &Norm {
        self.find_norm(site)
            .unwrap_or_else(|| panic!("the layer has no norm at {site:?}"))
    }

    /// [`Self::norm`], to change.
    pub fn norm_mut(&mut self, site: NormSite) -> &mut Norm {
        let norm = self.norms.iter_mut().find(|norm| norm.0 == site);
        &mut norm
            .unwrap_or_else(|| panic!("the layer has no norm at {site:?}"))
            .1
    }

    /// # Panics
    /// Where the layer has no experts.
    pub(super) fn router(&self) -> &Router {
        self.router.as_ref().expect("a layer with experts")
    }

    /// A linear that stays in float.
    ///
    /// # Panics
    /// Where the layer has none of this name: its plan is wrong.
    pub fn dense(&self, name: &str) -> &Linear {
        let found = self.dense.iter().find(|dense| dense.0 == name);
        &found
            .unwrap_or_else(|| panic!("the layer has no dense {name}"))
            .1
    }

    /// [`Self::dense`], to change.
    pub fn dense_mut(&mut self, name: &str) -> &mut Linear {
        let found = self.dense.iter_mut().find(|dense| dense.0 == name);
        &mut found
            .unwrap_or_else(|| panic!("the layer has no dense {name}"))
            .1
    }

    /// Runs `stage` with `linears` in the place of its own, one expert's after the other: its input, their outputs, its
    /// mixing steps.
    pub fn run(
        &self,
        stage: &Stage,
        linears: &[Linear],
        state: State,
        ropes: &Ropes,
        cache: Option<&mut KvCache>,
    ) -> Result<State, Error> {
        if !stage.experts.is_empty() {
            return self.run_experts(stage, linears, state);
        }
        let outputs = self.outputs(stage, linears, &self.stage_input(stage, &state)?)?;
        self.mix(stage, outputs, state, ropes, cache)
    }

    /// What `linears`, in the place of the stage's, and its dense ones make of `x`: what [`Self::mix`] takes.
    pub fn outputs(
        &self,
        stage: &Stage,
        linears: &[Linear],
        x: &Tensor,
    ) -> Result<Vec<Tensor>, Error> {
        let mut outputs: Vec<Tensor> = (linears.iter())
            .map(|linear| linear.forward(x))
            .collect::<Result<_, _>>()?;
        if !stage.dense.is_empty() {
            let x = x.f_to_kind(Kind::Float)?;
            for linear in &stage.dense {
                outputs.push(self.dense(&linear.name).forward(&x)?);
            }
        }
        Ok(outputs)
    }

    /// What the linears of `stage` read: `[B, T, in]`.
    pub fn stage_input(&self, stage: &Stage, state: &State) -> Result<Tensor, Error> {
        match stage.input {
            StageInput::Slot(slot) => Ok(state.slot(slot).shallow_clone()),
            StageInput::NormOf(site, slot) => self.norm(site).forward(state.slot(slot)),
            input => self.normed(input, &state.hidden),
        }
    }

    /// What linears that read the residual stream read of these of its rows, `[.., hidden]`.
    pub(super) fn normed(&self, input: StageInput, hidden: &Tensor) -> Result<Tensor, Error> {
        match input {
            StageInput::Norm(site) => self.norm(site).forward(hidden),
            StageInput::Hidden | StageInput::NormOf(..) | StageInput::Slot(_) => {
                Ok(hidden.shallow_clone())
            }
        }
    }

    /// Turns the outputs of the stage's linears, in their order and the dense ones last, into the next state. `outputs` may be overwritten.
    ///
    /// Without a cache the first token of each row stands at position 0, with one where the cache ends.
    pub fn mix(
        &self,
        stage: &Stage,
        outputs: Vec<Tensor>,
        mut state: State,
        ropes: &Ropes,
        mut cache: Option<&mut KvCache>,
    ) -> Result<State, Error> {
        let mut parts = Parts::cut(stage, outputs)?;
        if let Some(slot) = stage.input.slot() {
            state.set_slot(slot, None);
        }
        for mix in &stage.mixes {
            match mix {
                Mix::Attention => {
                    let qkv = [Role::Q, Role::K, Role::V].map(|role| parts.take(role));
                    let cache = cache.as_deref_mut();
                    let mut attended = self.attend(qkv, ropes, cache)?;
                    if let Some(gate) = parts.find(Role::AttentionGate) {
                        attended = attended.f_mul_(&gate.f_sigmoid()?)?;
                    }
                    state.set_slot(Slot::Attended, Some(attended));
                }
                Mix::LatentAttention => {
                    let [query, turning] = [Slot::Query, Slot::TurningKey].map(|slot| {
                        let kept = state.slot(slot).shallow_clone();
                        state.set_slot(slot, None);
                        kept
                    });
                    let parts = [parts.take(Role::K), parts.take(Role::V)];
                    let cache = cache.as_deref_mut();
                    let attended = self.attend_latent([query, turning], parts, ropes, cache)?;
                    state.set_slot(Slot::Attended, Some(attended));
                }
                Mix::Mixer => {
                    let mixer = self.mixer.as_ref().expect("a layer with a mixer");
                    let norm = self.find_norm(NormSite::Mixer);
                    let cache = cache.as_deref_mut();
                    let mixed = mixer.mix(|role| parts.take(role), norm, cache)?;
                    let mixed = mixed.f_to_kind(state.hidden.kind())?;
                    state.set_slot(Slot::Mixed, Some(mixed));
                }
                Mix::Keep(role, slot) => state.set_slot(*slot, Some(parts.take(*role))),
                Mix::GatedMlp => {
                    let mut gate = parts.take(Role::Gate);
                    if let Some(scale) = self.multipliers.gate {
                        gate = gate.f_mul_scalar(scale)?;
                    }
                    let activated = self.gated(gate, &parts.take(Role::Up))?;
                    state.set_slot(Slot::Activated, Some(activated));
                }
                Mix::PlainMlp => {
                    let up = parts.take(Role::Up).f_contiguous()?;
                    let activated = match &self.xielu {
                        Some(numbers) => xielu(numbers, &up)?,
                        None => activate(self.activation, up)?,
                    };
                    state.set_slot(Slot::Activated, Some(activated));
                }
                Mix::Route => {
                    let routes = self.router().weights(&parts.take(Role::Router))?;
                    let routes = routes.f_to_kind(state.hidden.kind())?;
                    state.set_slot(Slot::Routes, Some(routes));
                }
                Mix::SharedGate => {
                    let gate = parts.take(Role::SharedGate).f_sigmoid()?;
                    let gate = gate.f_to_kind(state.hidden.kind())?;
                    state.set_slot(Slot::SharedGate, Some(gate));
                }
                Mix::SharedExpert => {
                    let (_, mut output) = parts.only();
                    if let Some(gate) = state.take_slot(Slot::SharedGate) {
                        output = output.f_mul_(&gate)?;
                    }
                    state.set_slot(Slot::Added, Some(output));
                }
                Mix::Residual(norm) => {
                    let (role, mut output) = parts.only();
                    let scale = match role {
                        Role::O => self.multipliers.attention_output,
                        Role::MixerOutput => self.multipliers.mixer_output,
                        _ => self.multipliers.mlp_output,
                    };
                    if let Some(scale) = scale {
                        output = output.f_mul_scalar_(scale)?;
                    }
                    self.add_to_residual(output, *norm, &mut state)?;
                }
                Mix::Experts(_) => unreachable!("experts run one by one"),
            }
        }
        Ok(state)
    }

    /// Adds `output`, through a norm where there is one, to the residual stream.
    pub(super) fn add_to_residual(
        &self,
        mut output: Tensor,
        norm: Option<NormSite>,
        state: &mut State,
    ) -> Result<(), Error> {
        if let Some(site) = norm {
            output = self.norm(site).forward(&output)?;
        }
        if let Some(scale) = self.residual_scale {
            output = output.f_mul_scalar_(scale)?;
        }
        state.hidden = output.f_add_(&state.hidden)?;
        Ok(())
    }

    /// `activation(gate) * up`, in the memory of `gate`.
    pub(super) fn gated(&self, gate: Tensor, up: &Tensor) -> Result<Tensor, Error> {
        gated(self.activation, gate, up)
    }

    /// `activation(x)`, in the memory of `x`.
    pub(super) fn activated(&self, x: Tensor) -> Result<Tensor, Error> {
        activate(self.activation, x)
    }

    fn attend(
        &self,
        [query, key, value]: [Tensor; 3],
        ropes: &Ropes,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor, Error> {
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let heads = |x: &Tensor| -> Result<Tensor, Error> {
            let size = x.size();
            Ok(x.f_view([size[0], size[1], -1, self.head_dim])?)
        };
        let placed = |x: Tensor, site: NormSite| -> Result<Tensor, Error> {
            let norm = |x: Tensor, at: QkNorm| match self.find_norm(site) {
                Some(norm) if self.qk_norm == at => norm.forward(&x),
                _ => Ok(x),
            };
            let x = self.clip(norm(x, QkNorm::Whole)?)?;
            let mut x = norm(heads(&x)?, QkNorm::Heads)?;
            if let Some(rope) = self.rope {
                x = ropes.get(rope).rotate(x, start)?;
            }
            match &self.plain_norm {
                Some(norm) => norm.forward(&x),
                None => norm(x, QkNorm::TurnedHeads),
            }
        };
        let query = self.tempered(placed(query, NormSite::Query)?, start)?;
        let key = placed(key, NormSite::Key)?;
        let value = heads(&self.clip(value)?)?;
        attention(
            &query,
            &key,
            &value,
            self.scores,
            self.sinks.as_ref(),
            cache,
        )
    }

    /// Attention whose keys end in numbers that all heads share, which alone turn, as the query's last ones do.
    fn attend_latent(
        &self,
        [query, turning_key]: [Tensor; 2],
        [key, value]: [Tensor; 2],
        ropes: &Ropes,
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
            Some(rope) => ropes.get(rope).rotate(x, start),
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

    fn find_norm(&self, site: NormSite) -> Option<&Norm> {
        self.norms
            .iter()
            .find(|norm| norm.0 == site)
            .map(|norm| &norm.1)
    }
}

/// The outputs of a stage's linears, cut into what they are.
struct Parts(Vec<(Role, Tensor)>);

impl Parts {
    fn cut(stage: &Stage, outputs: Vec<Tensor>) -> Result<Self, Error> {
        assert_eq!(
            outputs.len(),
            stage.linears.len() + stage.dense.len(),
            "stage {}: one output for each linear",
            stage.name
        );
        let mut parts = Vec::new();
        for (linear, output) in stage.linears.iter().chain(&stage.dense).zip(outputs) {
            if let [(role, _)] = linear.parts[..] {
                parts.push((role, output));
                continue;
            }
            for &(role, rows) in &linear.parts {
                // The last dimension as groups of rows.
                let groups = output.f_unflatten(-1, [rows.groups as i64, rows.stride as i64])?;
                let part = groups.f_narrow(-1, rows.start as i64, rows.run as i64)?;
                parts.push((role, part.f_flatten(-2, -1)?));
            }
        }
        Ok(Self(parts))
    }

    fn find(&mut self, role: Role) -> Option<Tensor> {
        let position = self.0.iter().position(|part| part.0 == role)?;
        Some(self.0.swap_remove(position).1)
    }

    fn take(&mut self, role: Role) -> Tensor {
        let found = self.find(role);
        found.unwrap_or_else(|| panic!("no linear of the stage computes {role:?}"))
    }

    fn only(&mut self) -> (Role, Tensor) {
        assert_eq!(self.0.len(), 1, "one output");
        self.0.remove(0)
    }
}

/// `activation(gate) * up`, in the memory of `gate`.
fn gated(activation: Activation, mut gate: Tensor, up: &Tensor) -> Result<Tensor, Error> {
    gate = gate.f_contiguous()?;
    if let Activation::ClampedSwiglu { alpha, limit } = activation {
        let gate = gate.f_clamp_max_(limit)?;
        let factor = up.f_clamp(-limit, limit)?.f_add_scalar_(1.0)?;
        let turned_on = gate.f_mul_scalar(alpha)?.f_sigmoid_()?;
        return Ok(gate.f_mul(&turned_on)?.f_mul_(&factor)?);
    }
    if activation == Activation::Silu && on_cpu_in_bf16(&gate) {
        let up = up.f_contiguous()?;
        silu_mul(
            kernels::chosen(),
            bf16_slice_mut(&mut gate),
            bf16_slice(&up),
        );
        return Ok(gate);
    }
    Ok(activate(activation, gate)?.f_mul_(up)?)
}

/// xIELU with a layer's `alpha_p`, `alpha_n`, `beta` and `eps`.
fn xielu([alpha_p, alpha_n, beta, eps]: &[Tensor; 4], x: &Tensor) -> Result<Tensor, Error> {
    let wide = x.f_to_kind(Kind::Float)?;
    let linear = wide.f_mul(beta)?;
    let above = (wide.f_square()?.f_mul(&alpha_p.f_softplus()?)?).f_add(&linear)?;
    let slope = alpha_n.f_softplus()?.f_add(beta)?;
    let below = wide.f_minimum(eps)?.f_expm1()?.f_sub(&wide)?;
    let below = below.f_mul(&slope)?.f_add(&linear)?;
    let activated = above.f_where_self(&wide.f_gt(0)?, &below)?;
    Ok(activated.f_to_kind(x.kind())?)
}

/// `activation(x)`, in the memory of `x`.
fn activate(activation: Activation, mut x: Tensor) -> Result<Tensor, Error> {
    Ok(match activation {
        Activation::Silu => x.f_silu_()?,
        Activation::Gelu => x.f_gelu_("none")?,
        Activation::GeluTanh => x.f_gelu_("tanh")?,
        Activation::Relu => x.f_relu_()?,
        Activation::Relu2 => x.f_relu_()?.f_square_()?,
        Activation::ClampedSwiglu { .. } => unreachable!("it takes a gate"),
        Activation::Xielu => unreachable!("it takes a layer's numbers"),
    })
}

/// A whole decoder layer in float.
#[derive(Debug)]
pub struct Layer {
    pub block: Block,
    /// The stages, each with its linears: one expert's after the other's.
    pub stages: Vec<(Stage, Vec<Linear>)>,
}

impl Layer {
    /// Loads the norms and the linears of a layer.
    pub fn load(
        model: &Model,
        weights: &dyn Weights,
        compute: Compute,
        layer: usize,
    ) -> Result<Self, Error> {
        let LayerPlan { stages, .. } = &model.layers[layer];
        let stages = stages.iter().map(|stage| {
            let linears = stage.linears();
            let linears = linears.map(|linear| Linear::load(linear, weights, compute));
            Ok((stage.clone(), linears.collect::<Result<_, Error>>()?))
        });
        Ok(Self {
            block: Block::load(model, weights, compute, layer)?,
            stages: stages.collect::<Result<_, Error>>()?,
        })
    }

    /// Runs all stages.
    pub fn forward(
        &self,
        mut state: State,
        ropes: &Ropes,
        mut cache: Option<&mut KvCache>,
    ) -> Result<State, Error> {
        for (stage, linears) in &self.stages {
            state = self
                .block
                .run(stage, linears, state, ropes, cache.as_deref_mut())?;
        }
        Ok(state)
    }
}
