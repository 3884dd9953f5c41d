//! A decoder-only language model, read from `config.json` and run one stage of one layer at a time.
//!
//! What differs between families is data: a row of [`arch::ARCHITECTURES`]. What the rows can say is computed once,
//! in [`Block`]. Weights come through [`Weights`], so nothing here knows a file, a quantizer or an output format.
//!
//! No tensor here ever requires a gradient, so libtorch records none, on whatever thread the caller runs.

pub mod arch;
mod attention;
mod block;
mod config;
#[doc(hidden)]
pub mod formula;
mod head;
mod keys;
mod linear;
mod norm;
mod rope;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;

pub use arch::{Architecture, Fold, Mix, NormKind, NormSite, Role, Stage, StageInput};
pub use attention::KvCache;
pub use block::{Block, Layer, State};
pub use config::{Activation, Config, RopeConfig, RopeScaling};
pub use head::Head;
pub use linear::Linear;
pub use rope::Rope;

use tch::{Device, Kind, Tensor};

/// Where weights come from: a plain checkpoint, or a quantized directory that is dequantized on the way.
pub trait Weights: Sync {
    /// The whole tensor `name` on the CPU, in any float kind. `shape` is what the model expects; another is an error.
    fn tensor(&self, name: &str, shape: &[usize]) -> anyhow::Result<Tensor>;
    /// Rows `ids` of the matrix `name` of `shape`, on the CPU: `[ids.len(), shape[1]]`.
    fn rows(&self, name: &str, shape: &[usize], ids: &[u32]) -> anyhow::Result<Tensor>;
    /// Whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool;
}

/// The device and the dtype that the forward pass runs in.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Compute {
    pub device: Device,
    pub kind: Kind,
}

impl Compute {
    /// `tensor` where and as the forward pass wants it.
    fn place(self, tensor: &Tensor) -> Result<Tensor, Error> {
        Ok(tensor.f_to_device(self.device)?.f_to_kind(self.kind)?)
    }
}

/// What can be wrong with a model: its configuration before work starts, its weights or libtorch during it.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// No row of [`arch::ARCHITECTURES`] has this model type.
    #[error(
        "model_type \"{found}\" is not supported; the nearest is \"{nearest}\", supported are {supported}"
    )]
    UnknownModelType {
        found: String,
        nearest: &'static str,
        supported: String,
    },
    /// The model type is known, the head on top of it is not.
    #[error(
        "config.json: architectures is {found}, but for model_type \"{model_type}\" only {expected} is supported"
    )]
    UnknownArchitecture {
        model_type: &'static str,
        found: String,
        expected: &'static str,
    },
    /// A number that nothing can be computed without.
    #[error("config.json: {key} is missing")]
    Missing { key: &'static str },
    /// A value of the wrong type or outside its range.
    #[error("config.json: {key} is {found}, expected {expected}")]
    Invalid {
        key: String,
        found: String,
        expected: String,
    },
    /// A valid value that asks for something that the forward pass does not compute.
    #[error("config.json: {key} is {found}, which is not implemented; supported: {supported}")]
    Unsupported {
        key: String,
        found: String,
        supported: String,
    },
    /// A token that the embedding has no row for.
    #[error(
        "token id {id} is outside the vocabulary of {vocab_size}; do tokenizer.json and config.json belong together?"
    )]
    TokenId { id: u32, vocab_size: usize },
    /// A position past the end of the rotary tables that were made.
    #[error("position {position} is past the {seq_len} that the rotary tables were made for")]
    Position { position: usize, seq_len: usize },
    /// The weights could not be had.
    #[error(transparent)]
    Weights(#[from] anyhow::Error),
    /// A libtorch failure, out of memory among them.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
    /// A tensor that could not be made.
    #[error(transparent)]
    Tensor(#[from] crate::tensor::Error),
}

/// A model's shape and structure, without any weights.
#[derive(Debug, Clone)]
pub struct Model {
    pub config: Config,
    pub arch: &'static Architecture,
}

impl Model {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// An unknown family, a missing or impossible number, or a fact that the forward pass does not implement.
    pub fn from_config(json: &serde_json::Value) -> Result<Self, Error> {
        let arch = arch::find(json)?;
        Ok(Self {
            config: Config::new(json, arch)?,
            arch,
        })
    }

    /// The class name that loaders look up, such as `LlamaForCausalLM`.
    pub fn architecture_name(&self) -> String {
        self.arch.architecture.to_owned()
    }

    /// The tensor name of a linear without its `.weight` or `.bias`: `model.layers.3.self_attn.q_proj`.
    pub fn linear_name(&self, layer: usize, role: Role) -> String {
        self.in_layer(layer, self.arch.linear(role).name)
    }

    /// The tensor name of a linear's bias.
    pub fn bias_name(&self, layer: usize, role: Role) -> String {
        format!("{}.bias", self.linear_name(layer, role))
    }

    /// Output and input width of a linear.
    pub fn linear_shape(&self, role: Role) -> (usize, usize) {
        let config = &self.config;
        let queries = config.n_heads * config.head_dim;
        let keys = config.n_kv_heads * config.head_dim;
        match role {
            Role::Q => (queries, config.hidden_size),
            Role::K | Role::V => (keys, config.hidden_size),
            Role::O => (config.hidden_size, queries),
            Role::Gate | Role::Up => (config.intermediate_size, config.hidden_size),
            Role::Down => (config.hidden_size, config.intermediate_size),
        }
    }

    /// Whether a linear has a bias.
    pub fn has_bias(&self, role: Role) -> bool {
        match self.arch.linear(role).bias {
            arch::Bias::Never => false,
            arch::Bias::Always => true,
            arch::Bias::AttentionBias => self.config.attention_bias,
            arch::Bias::MlpBias => self.config.mlp_bias,
        }
    }

    /// The tensor name of a layer's norm.
    pub fn norm_name(&self, layer: usize, site: NormSite) -> String {
        format!("{}.weight", self.in_layer(layer, self.arch.norm_name(site)))
    }

    /// The length of a layer's norm.
    pub fn norm_len(&self, site: NormSite) -> usize {
        match site {
            NormSite::Attention | NormSite::Mlp => self.config.hidden_size,
            NormSite::Query | NormSite::Key => self.config.head_dim,
        }
    }

    /// Every tensor that the model needs, with its shape, in the order of its layers. A tied head has none of its own.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let outer = self.outer_tensors();
        let (embedding, after) = outer.split_at(1);
        let mut tensors = embedding.to_vec();
        for layer in 0..self.config.n_layers {
            tensors.extend(self.layer_dense_tensors(layer));
            for linear in self.arch.linears {
                let (rows, columns) = self.linear_shape(linear.role);
                let name = self.linear_name(layer, linear.role);
                tensors.push((format!("{name}.weight"), vec![rows, columns]));
            }
        }
        tensors.extend_from_slice(after);
        tensors
    }

    /// The embedding, the final norm, and the head where it is not tied.
    pub fn outer_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let table = vec![self.config.vocab_size, self.config.hidden_size];
        let mut tensors = vec![
            (self.arch.embedding.to_owned(), table.clone()),
            (
                self.arch.final_norm.to_owned(),
                vec![self.config.hidden_size],
            ),
        ];
        if !self.config.tie_word_embeddings {
            tensors.push((self.arch.head.to_owned(), table));
        }
        tensors
    }

    /// A layer's norms and biases.
    pub fn layer_dense_tensors(&self, layer: usize) -> Vec<(String, Vec<usize>)> {
        let norms = self.arch.norms.iter();
        let norms =
            norms.map(|&(site, _)| (self.norm_name(layer, site), vec![self.norm_len(site)]));
        let biased = self
            .arch
            .linears
            .iter()
            .filter(|linear| self.has_bias(linear.role));
        let biases = biased.map(|linear| {
            let name = self.bias_name(layer, linear.role);
            (name, vec![self.linear_shape(linear.role).0])
        });
        norms.chain(biases).collect()
    }

    /// The source row behind each input channel of a stage that folds into rows, where they are not one to one: query heads
    /// that share a value head share its rows, and so their scale.
    pub fn fold_classes(&self, stage: &Stage) -> Option<Vec<usize>> {
        let Config {
            n_heads,
            n_kv_heads,
            head_dim,
            ..
        } = self.config;
        if stage.fold != Fold::Rows(Role::V) || n_heads == n_kv_heads {
            return None;
        }
        let channels = (0..n_heads).flat_map(|head| (0..head_dim).map(move |dim| (head, dim)));
        Some(
            channels
                .map(|(head, dim)| head * n_kv_heads / n_heads * head_dim + dim)
                .collect(),
        )
    }

    /// The hidden states that token `ids` start as: `[ids.len(), hidden]`.
    pub fn embed(
        &self,
        weights: &dyn Weights,
        compute: Compute,
        ids: &[u32],
    ) -> Result<Tensor, Error> {
        let vocab_size = self.config.vocab_size;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenId { id, vocab_size });
        }
        let shape = [vocab_size, self.config.hidden_size];
        compute.place(&weights.rows(self.arch.embedding, &shape, ids)?)
    }

    /// The final norm and the output projection.
    pub fn head(&self, weights: &dyn Weights, compute: Compute) -> Result<Head, Error> {
        Head::load(self, weights, compute)
    }

    /// Rotary tables for positions `0..seq_len`. Dynamic scaling takes its base from this `seq_len`.
    pub fn rope(&self, compute: Compute, seq_len: usize) -> Result<Rope, Error> {
        Rope::new(&self.config, compute, seq_len)
    }

    fn in_layer(&self, layer: usize, name: &str) -> String {
        format!("{}.{layer}.{name}", self.arch.layers)
    }
}
