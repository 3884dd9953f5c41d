//! One decoder layer: everything but its linears as a [`Block`], and the whole of it in float as a [`Layer`].

use super::attention::attention;
use super::config::Activation;
use super::norm::rms_norm;
use super::{
    Compute, Error, KvCache, Linear, Mix, Model, NormKind, NormSite, Role, Rope, Stage, StageInput,
    Weights,
};
use crate::kernels::{self, gated::silu_mul};
use crate::tensor::{bf16_slice, bf16_slice_mut, on_cpu_in_bf16};
use tch::{Device, Kind, Tensor};

/// What flows from stage to stage.
#[derive(Debug)]
pub struct State {
    /// The residual stream, `[B, T, hidden]`.
    pub hidden: Tensor,
    /// What the last mix left for a stage that reads [`StageInput::Carried`], `[B, T, in]`.
    pub carried: Option<Tensor>,
}

impl State {
    /// The state before the first stage of a layer.
    pub fn new(hidden: Tensor) -> Self {
        Self {
            hidden,
            carried: None,
        }
    }

    /// The same tensors, not copied.
    #[must_use]
    pub fn shallow_clone(&self) -> Self {
        Self {
            hidden: self.hidden.shallow_clone(),
            carried: self.carried.as_ref().map(Tensor::shallow_clone),
        }
    }
}

/// A decoder layer without its linears: its norms and the steps between its stages.
#[derive(Debug)]
pub struct Block {
    /// Float32, which holds every stored kind exactly.
    norms: Vec<(NormSite, Tensor)>,
    norm_kind: NormKind,
    norm_eps: f64,
    head_dim: i64,
    window: Option<usize>,
    activation: Activation,
    device: Device,
}

impl Block {
    /// Loads the norms of a layer.
    pub fn load(
        model: &Model,
        weights: &dyn Weights,
        compute: Compute,
        layer: usize,
    ) -> Result<Self, Error> {
        let norms = model.arch.norms.iter().map(|&(site, _)| {
            let norm = weights.tensor(&model.norm_name(layer, site), &[model.norm_len(site)])?;
            Ok((
                site,
                norm.f_to_device(compute.device)?.f_to_kind(Kind::Float)?,
            ))
        });
        Ok(Self {
            norms: norms.collect::<Result<_, Error>>()?,
            norm_kind: model.arch.norm,
            norm_eps: model.config.norm_eps,
            head_dim: model.config.head_dim as i64,
            window: model.config.windows[layer],
            activation: model.config.activation,
            device: compute.device,
        })
    }

    /// The weight of a norm as it is stored, in float32.
    pub fn norm_weight(&self, site: NormSite) -> &Tensor {
        self.find_norm(site)
            .unwrap_or_else(|| panic!("the layer has no norm at {site:?}"))
    }

    /// Replaces the weight of a norm, of any float kind.
    pub fn set_norm_weight(&mut self, site: NormSite, weight: &Tensor) -> Result<(), Error> {
        let weight = weight.f_to_device(self.device)?.f_to_kind(Kind::Float)?;
        let norm = self.norms.iter_mut().find(|norm| norm.0 == site);
        norm.unwrap_or_else(|| panic!("the layer has no norm at {site:?}"))
            .1 = weight;
        Ok(())
    }

    /// What the linears of `stage` read: `[B, T, in]`.
    pub fn stage_input(&self, stage: &Stage, state: &State) -> Result<Tensor, Error> {
        match stage.input {
            StageInput::Norm(site) => rms_norm(
                self.norm_kind,
                &state.hidden,
                self.norm_weight(site),
                self.norm_eps,
            ),
            StageInput::Carried => Ok(carried(stage, state).shallow_clone()),
        }
    }

    /// Turns the outputs of the stage's linears, in their order, into the next state. `outputs` may be overwritten.
    ///
    /// Without a cache the first token of each row stands at position 0, with one where the cache ends.
    pub fn mix(
        &self,
        stage: &Stage,
        outputs: Vec<Tensor>,
        state: State,
        rope: &Rope,
        cache: Option<&mut KvCache>,
    ) -> Result<State, Error> {
        assert_eq!(
            outputs.len(),
            stage.linears.len(),
            "stage {}: one output for each linear",
            stage.name
        );
        let State { hidden, carried } = state;
        drop(carried);
        let mut outputs = outputs.into_iter();
        let mut next = || outputs.next().expect("counted above");
        Ok(match stage.mix {
            Mix::Attention => {
                let (query, key, value) = (next(), next(), next());
                let mixed = self.attend([query, key, value], rope, cache)?;
                State {
                    hidden,
                    carried: Some(mixed),
                }
            }
            Mix::GatedMlp => {
                let (gate, up) = (next(), next());
                State {
                    hidden,
                    carried: Some(gated(self.activation, gate, &up)?),
                }
            }
            Mix::Residual => State::new(next().f_add_(&hidden)?),
        })
    }

    fn attend(
        &self,
        [query, key, value]: [Tensor; 3],
        rope: &Rope,
        cache: Option<&mut KvCache>,
    ) -> Result<Tensor, Error> {
        let start = cache.as_ref().map_or(0, |cache| cache.len());
        let heads = |x: &Tensor| -> Result<Tensor, Error> {
            let size = x.size();
            Ok(x.f_view([size[0], size[1], -1, self.head_dim])?)
        };
        let rotated = |x: Tensor, site: NormSite| -> Result<Tensor, Error> {
            let mut x = heads(&x)?;
            if let Some(weight) = self.find_norm(site) {
                x = rms_norm(self.norm_kind, &x, weight, self.norm_eps)?;
            }
            rope.rotate(x, start)
        };
        let query = rotated(query, NormSite::Query)?;
        let key = rotated(key, NormSite::Key)?;
        attention(&query, &key, &heads(&value)?, self.window, cache)
    }

    fn find_norm(&self, site: NormSite) -> Option<&Tensor> {
        self.norms
            .iter()
            .find(|norm| norm.0 == site)
            .map(|norm| &norm.1)
    }
}

/// `activation(gate) * up`, in the memory of `gate`.
fn gated(activation: Activation, mut gate: Tensor, up: &Tensor) -> Result<Tensor, Error> {
    if activation == Activation::Silu && on_cpu_in_bf16(&gate) {
        let up = up.f_contiguous()?;
        gate = gate.f_contiguous()?;
        silu_mul(
            kernels::chosen(),
            bf16_slice_mut(&mut gate),
            bf16_slice(&up),
        );
        return Ok(gate);
    }
    let mut gate = match activation {
        Activation::Silu => gate.f_silu_()?,
        Activation::Gelu => gate.f_gelu_("none")?,
        Activation::GeluTanh => gate.f_gelu_("tanh")?,
        Activation::Relu => gate.f_relu_()?,
    };
    Ok(gate.f_mul_(up)?)
}

fn carried<'a>(stage: &Stage, state: &'a State) -> &'a Tensor {
    state
        .carried
        .as_ref()
        .unwrap_or_else(|| panic!("stage {} follows no mix that carries", stage.name))
}

/// A whole decoder layer in float.
#[derive(Debug)]
pub struct Layer {
    pub block: Block,
    pub linears: Vec<(Role, Linear)>,
    stages: &'static [Stage],
}

impl Layer {
    /// Loads the norms and the linears of a layer.
    pub fn load(
        model: &Model,
        weights: &dyn Weights,
        compute: Compute,
        layer: usize,
    ) -> Result<Self, Error> {
        let linears = model.arch.linears.iter().map(|linear| {
            Ok((
                linear.role,
                Linear::load(model, weights, compute, layer, linear.role)?,
            ))
        });
        Ok(Self {
            block: Block::load(model, weights, compute, layer)?,
            linears: linears.collect::<Result<_, Error>>()?,
            stages: model.arch.stages,
        })
    }

    /// The linear of a role.
    pub fn linear(&self, role: Role) -> &Linear {
        let linear = self.linears.iter().find(|linear| linear.0 == role);
        &linear
            .unwrap_or_else(|| panic!("the layer has no {role:?}"))
            .1
    }

    /// Runs all stages.
    pub fn forward(
        &self,
        mut state: State,
        rope: &Rope,
        mut cache: Option<&mut KvCache>,
    ) -> Result<State, Error> {
        for stage in self.stages {
            let input = self.block.stage_input(stage, &state)?;
            let outputs = stage
                .linears
                .iter()
                .map(|&role| self.linear(role).forward(&input))
                .collect::<Result<_, Error>>()?;
            drop(input);
            state = self
                .block
                .mix(stage, outputs, state, rope, cache.as_deref_mut())?;
        }
        Ok(state)
    }
}
