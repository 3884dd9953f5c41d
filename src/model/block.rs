//! One decoder layer: everything but its linears as a [`Block`], and the whole of it in float as a [`Layer`].

mod attend;
mod parts;

use parts::Parts;

use super::activation::{activate, gated, xielu};
use super::attention::Scores;
use super::config::{Activation, LatentConfig, MultipliersConfig, TemperatureConfig};
use super::mixers::Mixer;
use super::norm::Norm;
use super::router::Router;
use super::{
    Compute, Error, Kept, KvCache, LayerConfig, LayerPlan, Linear, Mix, Model, NormSite, Places,
    QkNorm, Role, Slot, Stage, StageInput, State, Weights,
};
use tch::{Kind, Tensor};

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
    /// Of values.
    value_norm: Option<Norm>,
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
    /// What the residual stream is multiplied by after the layer, `[1]` in the kind of the forward pass.
    layer_scale: Option<Tensor>,
    /// What attention to images and the MLP behind it add is multiplied by, likewise; where it attends to images.
    gates: Option<[Tensor; 2]>,
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
            head_dim,
            value_head_dim,
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
            head_dim: head_dim as i64,
            value_head_dim: value_head_dim as i64,
            latent: config.latent,
            qk_norm,
            plain_norm: has_plain_norm.then(|| Norm::plain(config.norm_eps)),
            value_norm: (model.arch.attention.value_norm).then(|| Norm::plain(config.norm_eps)),
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
                    let [correction, scale] = [Kept::Correction, Kept::ExpertScale].map(kept);
                    Some(Router::new(row.router, config, correction?, scale?))
                }
                _ => None,
            },
            layer_scale: match kept(Kept::LayerScale)? {
                None => None,
                Some(scale) => Some(scale.f_to_kind(compute.kind)?),
            },
            gates: match [Kept::AttentionGate, Kept::MlpGate].map(kept) {
                [Ok(Some(attention)), Ok(Some(mlp))] => {
                    let gate = |gate: Tensor| gate.f_tanh()?.f_to_kind(compute.kind);
                    Some([gate(attention)?, gate(mlp)?])
                }
                [attention, mlp] => {
                    let _ = (attention?, mlp?);
                    None
                }
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

    /// Whether the layer attends to images.
    pub fn looks(&self) -> bool {
        self.gates.is_some()
    }

    /// Whether the layer changes nothing in a state before it or between its stages: it attends to images, and there are none.
    pub fn is_idle(&self, state: &State) -> bool {
        self.looks() && state.find(Slot::Sees).is_none()
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
        places: &Places,
        cache: Option<&mut KvCache>,
    ) -> Result<State, Error> {
        if !stage.experts.is_empty() {
            return self.run_experts(stage, linears, state);
        }
        let input = self.stage_input(stage, &state, places)?;
        let outputs = self.outputs(stage, linears, &input)?;
        self.mix(stage, outputs, state, places, cache)
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
            let wide = x.f_to_kind(Kind::Float)?;
            for linear in &stage.dense {
                let dense = self.dense(&linear.name);
                outputs.push(if linear.is_projection() {
                    dense.in_kind(x.kind())?.forward(x)?
                } else {
                    dense.forward(&wide)?
                });
            }
        }
        Ok(outputs)
    }

    /// What the linears of `stage` read: `[B, T, in]`, or of images `[1, rows, in]`.
    pub fn stage_input(
        &self,
        stage: &Stage,
        state: &State,
        places: &Places,
    ) -> Result<Tensor, Error> {
        match stage.input {
            StageInput::Images => Ok(places.gallery().rows().shallow_clone()),
            StageInput::Slot(slot) => Ok(state.slot(slot).shallow_clone()),
            StageInput::NormOf(site, slot) => self.norm(site).forward(state.slot(slot)),
            input => self.normed(input, &state.hidden),
        }
    }

    /// What linears that read the residual stream read of these of its rows, `[.., hidden]`.
    pub(super) fn normed(&self, input: StageInput, hidden: &Tensor) -> Result<Tensor, Error> {
        match input {
            StageInput::Norm(site) => self.norm(site).forward(hidden),
            StageInput::Hidden
            | StageInput::NormOf(..)
            | StageInput::Slot(_)
            | StageInput::Images => Ok(hidden.shallow_clone()),
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
        places: &Places,
        mut cache: Option<&mut KvCache>,
    ) -> Result<State, Error> {
        let mut parts = Parts::cut(stage, outputs)?;
        if let Some(slot) = stage.input.slot() {
            state.set_slot(slot, None);
        }
        for mix in &stage.mixes {
            match mix {
                Mix::Attention | Mix::LendingAttention(_) | Mix::BorrowingAttention { .. } => {
                    let cache = cache.as_deref_mut();
                    let mut attended = self.attend(*mix, &mut parts, &mut state, places, cache)?;
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
                    let attended = self.attend_latent([query, turning], parts, places, cache)?;
                    state.set_slot(Slot::Attended, Some(attended));
                }
                Mix::CrossAttention { .. } => {
                    let query = state.take_slot(Slot::Query);
                    let query = query.expect("the stage before it keeps it");
                    let parts = [parts.take(Role::K), parts.take(Role::V)];
                    let attended = self.attend_to_images(&query, parts, places)?;
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
                Mix::BesideExperts(site) => {
                    let (_, output) = parts.only();
                    let output = self.norm(*site).forward(&output)?;
                    state.set_slot(Slot::BesideExperts, Some(output));
                }
                Mix::LayerInput => {
                    let gate = parts.take(Role::Gate).f_to_kind(state.hidden.kind())?;
                    let input = state.take_slot(Slot::LayerInput);
                    let input = input.expect("filled before the layer");
                    let activated = self.activated(gate)?.f_mul_(&input)?;
                    state.set_slot(Slot::Activated, Some(activated));
                }
                Mix::LayerScale => self.scale_layer(&mut state)?,
                Mix::Residual(norm) => {
                    let (role, output) = parts.only();
                    let mut output = output.f_to_kind(state.hidden.kind())?;
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
                Mix::GatedResidual => {
                    let (_, output) = parts.only();
                    let output = output.f_mul(&self.gates()[0])?;
                    self.add_to_residual(output, None, &mut state)?;
                }
                Mix::GatedResidualWhereSeen => {
                    let (_, output) = parts.only();
                    let sees = state.take_slot(Slot::Sees);
                    let sees = sees.expect("filled before the layer");
                    let output = output.f_mul(&self.gates()[1])?.f_mul_(&sees)?;
                    self.add_to_residual(output, None, &mut state)?;
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

    fn gates(&self) -> &[Tensor; 2] {
        self.gates.as_ref().expect("a layer that attends to images")
    }

    /// Multiplies the residual stream by what the layer stores for it.
    pub(super) fn scale_layer(&self, state: &mut State) -> Result<(), Error> {
        if let Some(scale) = &self.layer_scale {
            state.hidden = state.hidden.f_mul(scale)?;
        }
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

    pub(super) fn find_norm(&self, site: NormSite) -> Option<&Norm> {
        self.norms
            .iter()
            .find(|norm| norm.0 == site)
            .map(|norm| &norm.1)
    }
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
        places: &Places,
        mut cache: Option<&mut KvCache>,
    ) -> Result<State, Error> {
        if self.block.is_idle(&state) {
            return Ok(state);
        }
        for (stage, linears) in &self.stages {
            state = self
                .block
                .run(stage, linears, state, places, cache.as_deref_mut())?;
        }
        Ok(state)
    }
}
