//! A decoder-only language model, read from `config.json` and run one stage of one layer at a time.
//!
//! What differs between families is data: a row of [`arch::ARCHITECTURES`]. What the rows can say is computed once,
//! in [`Block`]. Weights come through [`Weights`], so nothing here knows a file, a quantizer or an output format.
//!
//! No tensor here ever requires a gradient, so libtorch records none, on whatever thread the caller runs.

mod activation;
pub mod arch;
mod attention;
mod block;
mod config;
mod experts;
#[doc(hidden)]
pub mod formula;
mod gallery;
mod head;
mod keys;
mod layout;
mod linear;
mod mixers;
mod norm;
mod places;
mod plan;
mod rope;
mod router;
mod selection;
mod state;
mod stored;
#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
pub(crate) mod tests;
pub mod vision;

pub use arch::{Architecture, NormKind, NormSite, QkNorm, Role};
use arch::{Composite, Found};
pub use attention::KvCache;
pub use block::{Block, Layer};
pub use config::{
    Activation, Biases, Config, ExpertsConfig, KeysValues, LatentConfig, LayerConfig,
    LayerInputConfig, RopeConfig, RopeScaling, TemperatureConfig,
};
pub use gallery::{Gallery, Hung};
pub use head::Head;
pub use linear::Linear;
pub use norm::Norm;
pub use places::{Places, Sighting};
pub use plan::{
    ExpertPlan, Fold, Kept, LayerPlan, LinearPlan, Mix, NormPlan, Rows, Slot, Stage, StageInput,
};
pub use state::{State, Versions};
pub use stored::{Packing, Stacked, Stored};

use vision::Vision;

use std::collections::HashSet;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// Tokens of rows of one length, one row after the other.
#[derive(Debug, Clone, Copy)]
pub struct Tokens<'a> {
    pub ids: &'a [u32],
    /// The position of each row's first one.
    pub start: usize,
    /// What images became, where that has taken the place of the embeddings of some.
    pub images: Option<&'a EmbeddedImages>,
}

/// What images became that have taken the place of tokens' embeddings.
#[derive(Debug)]
pub struct EmbeddedImages {
    /// `[n]` int64: which of all tokens.
    pub places: Tensor,
    /// `[n, hidden]`
    pub rows: Tensor,
}

impl<'a> Tokens<'a> {
    /// Words alone.
    pub fn words(ids: &'a [u32], start: usize) -> Self {
        Self {
            ids,
            start,
            images: None,
        }
    }
}

/// Where weights come from: a plain checkpoint, or a quantized directory that is dequantized on the way.
pub trait Weights: Sync {
    /// The whole tensor `name` on the CPU, in any float kind. `shape` is what the model expects; another is an error.
    fn tensor(&self, name: &str, shape: &[usize]) -> anyhow::Result<Tensor>;
    /// These `columns` of rows `ids` of the matrix `name` of `shape`, on the CPU: `[ids.len(), columns.len()]`.
    fn rows(
        &self,
        name: &str,
        shape: [usize; 2],
        ids: &[u32],
        columns: Range<usize>,
    ) -> anyhow::Result<Tensor>;
    /// Part `index` of `parts` equal ones that the tensor `name` of `shape` is cut into along its first dimension, flat.
    fn part(
        &self,
        name: &str,
        shape: &[usize],
        index: usize,
        parts: usize,
    ) -> anyhow::Result<Tensor>;
    /// Whether there is a tensor of this name.
    fn contains(&self, name: &str) -> bool;
    /// Whether the linear called `module` is quantized: then its own weight, as it is computed, is what there is.
    fn is_packed(&self, module: &str) -> bool {
        self.contains(&format!("{module}.qweight"))
    }
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
        "model_type \"{found}\" is not supported; the nearest are {nearest}. A family is one row of data, its \
         tensors' names and what differs from Llama: \"Adding a model family\" in project_context.md. Supported are {supported}"
    )]
    UnknownModelType {
        found: String,
        nearest: String,
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
    #[error("position {position} is past the {seq_len} that there are; lower --seq-len")]
    Position { position: usize, seq_len: usize },
    /// Pixels that are not what the model's tower reads.
    #[error("an image: {0}")]
    Image(String),
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
    pub layers: Vec<LayerPlan>,
    /// How it sees images, where it does.
    pub vision: Option<Vision>,
    /// Why it does not, where it should.
    pub blind: Option<String>,
    /// What the language model is a part of.
    pub composite: Option<&'static Composite>,
    /// Beginnings of the family's names, and what the checkpoint has in their place.
    renamed: Vec<(&'static str, &'static str)>,
}

impl Model {
    /// Reads `config.json`.
    ///
    /// # Errors
    /// An unknown family, a missing or impossible number, or a fact that the forward pass does not implement.
    pub fn from_config(json: &serde_json::Value) -> Result<Self, Error> {
        let Found {
            arch,
            composite,
            config,
            path,
        } = arch::find(json)?;
        let config = Config::new(&config, arch, path)?;
        let layers = (0..config.n_layers).map(|layer| LayerPlan::new(arch, &config, layer));
        // Without eyes the language model is as good; text calibrates it.
        let (vision, blind) = match Vision::new(json, config.hidden_size, config.norm_eps) {
            Ok(vision) => (vision, None),
            Err(error) => (None, Some(error.to_string())),
        };
        let mut model = Self {
            vision,
            blind,
            layers: layers.collect(),
            composite,
            renamed: Vec::new(),
            config,
            arch,
        };
        if let Some(composite) = composite {
            model.rename(layout::renaming(composite.names[0]));
        }
        Ok(model)
    }

    /// `model_type` in `config.json`.
    pub fn model_type(&self) -> &'static str {
        self.composite
            .map_or(self.arch.model_type, |row| row.model_type)
    }

    /// The class name that loaders look up, such as `LlamaForCausalLM`.
    pub fn architecture_name(&self) -> &'static str {
        self.composite
            .map_or(self.arch.architecture, |row| row.architecture)
    }

    /// Every tensor that the model is read from, with its shape, once, in the order of its layers. A tied head has none of
    /// its own.
    pub fn tensors(&self) -> Vec<(String, Vec<usize>)> {
        let outer = self.outer_tensors();
        let (embedding, after) = outer.split_at(1);
        let mut tensors = embedding.to_vec();
        tensors.extend(self.layers.iter().flat_map(LayerPlan::tensors));
        tensors.extend_from_slice(after);
        let mut seen = HashSet::new();
        tensors.retain(|(name, _)| seen.insert(name.clone()));
        tensors
    }

    /// What the checkpoint calls a tensor outside the layers.
    pub fn stored_name(&self, name: &str) -> String {
        layout::renamed(&self.renamed, name).unwrap_or_else(|| name.to_owned())
    }

    /// Rows of the embedding: tokens that there are.
    fn n_embeddings(&self) -> usize {
        self.config.vocab_size + self.arch.more_embeddings
    }

    /// What the names begin with where the model is a part of another, such as `model.language_model.`.
    pub fn inside(&self) -> Option<String> {
        self.composite.map(|_| self.stored_name("model."))
    }

    /// The embedding, the norms outside the layers, and the head where it is not tied.
    pub fn outer_tensors(&self) -> Vec<(String, Vec<usize>)> {
        let (arch, config) = (self.arch, &self.config);
        let table = vec![config.vocab_size, config.hidden_size];
        let embedding = vec![self.n_embeddings(), config.hidden_size];
        let mut tensors = vec![(self.stored_name(arch.embedding), embedding)];
        if let Some(positions) = arch.positions {
            let shape = vec![
                config.max_position_embeddings + positions.offset,
                config.hidden_size,
            ];
            tensors.push((self.stored_name(positions.name), shape));
        }
        let mut add_norm = |name, len| {
            let norm = NormPlan {
                site: NormSite::Attention,
                kind: arch.norm,
                name: self.stored_name(name),
                len,
                groups: 1,
            };
            tensors.extend(norm.tensors());
        };
        for norm in arch.embedding_norm.into_iter().chain([arch.final_norm]) {
            add_norm(norm, config.hidden_size);
        }
        if let (Some(row), Some(input)) = (arch.layer_input, config.layer_input) {
            add_norm(row.norm, input.width);
            let all = config.n_layers * input.width;
            let embedding = self.stored_name(row.embedding);
            tensors.push((embedding, vec![input.vocab_size, all]));
            let projection = format!("{}.weight", self.stored_name(row.model_projection));
            tensors.push((projection, vec![all, config.hidden_size]));
        }
        if !config.tie_word_embeddings {
            tensors.push((format!("{}.weight", self.stored_name(arch.head)), table));
        }
        if config.biases.head {
            let bias = format!("{}.bias", self.stored_name(arch.head));
            tensors.push((bias, vec![config.vocab_size]));
        }
        tensors
    }

    /// The hidden states that token `ids` start as, rows of `row_len` whose first token stands at position `start`:
    /// `[ids.len(), hidden]`.
    pub fn embed(
        &self,
        weights: &dyn Weights,
        compute: Compute,
        ids: &[u32],
        row_len: usize,
        start: usize,
    ) -> Result<Tensor, Error> {
        let (arch, config) = (self.arch, &self.config);
        let vocab_size = self.n_embeddings();
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenId { id, vocab_size });
        }
        let shape = [vocab_size, config.hidden_size];
        let whole = 0..config.hidden_size;
        let name = self.stored_name(arch.embedding);
        let mut embedded = compute.place(&weights.rows(&name, shape, ids, whole.clone())?)?;
        if let Some(scale) = config.embedding_scale {
            // transformers rounds the factor too.
            let scale = Tensor::from(scale);
            let _ = embedded.f_mul_(&compute.place(&scale)?)?;
        }
        if let Some(positions) = arch.positions {
            let seq_len = config.max_position_embeddings;
            if start + row_len > seq_len {
                let position = start + row_len - 1;
                return Err(Error::Position { position, seq_len });
            }
            let rows =
                (0..ids.len()).map(|index| (positions.offset + start + index % row_len) as u32);
            let shape = [seq_len + positions.offset, config.hidden_size];
            let name = self.stored_name(positions.name);
            let learned = weights.rows(&name, shape, &rows.collect::<Vec<_>>(), whole)?;
            embedded = embedded.f_add_(&compute.place(&learned)?)?;
        }
        if let Some(name) = arch.embedding_norm {
            let name = self.stored_name(name);
            let (eps, len) = (config.norm_eps, config.hidden_size);
            let norm = Norm::load(weights, compute, arch.norm, eps, &name, len)?;
            embedded = norm.forward(&embedded)?;
        }
        Ok(embedded)
    }

    /// Gives `state` what `layer` takes of its `tokens` themselves, where it takes anything.
    ///
    /// A row of the table is all layers' inputs of a token; only this layer's part of it is read.
    pub fn enter_layer(
        &self,
        weights: &dyn Weights,
        compute: Compute,
        layer: usize,
        tokens: Tokens<'_>,
        state: &mut State,
    ) -> Result<(), Error> {
        let (Some(row), Some(config)) = (self.arch.layer_input, self.config.layer_input) else {
            return Ok(());
        };
        let [n_rows, row_len] = [0, 1].map(|dim| state.hidden.size()[dim]);
        let Tokens { ids, start, images } = tokens;
        let LayerInputConfig {
            width, vocab_size, ..
        } = config;
        if let Some(&id) = ids.iter().find(|&&id| id as usize >= vocab_size) {
            return Err(Error::TokenId { id, vocab_size });
        }
        let (n_layers, hidden) = (self.config.n_layers, self.config.hidden_size);
        let name = self.stored_name(row.embedding);
        let own = layer * width..(layer + 1) * width;
        let tokens = weights.rows(&name, [vocab_size, n_layers * width], ids, own)?;
        // transformers rounds this factor too, but not the others.
        let factor = compute.place(&Tensor::from((width as f64).sqrt()))?;
        let tokens = compute.place(&tokens)?.f_mul_(&factor)?;
        let name = format!("{}.weight", self.stored_name(row.model_projection));
        let projection = weights.part(&name, &[n_layers * width, hidden], layer, n_layers)?;
        let projection = compute.place(&projection.f_view([width as i64, hidden as i64])?)?;
        let mut embedded = self.embed(weights, compute, ids, row_len as usize, start)?;
        if let Some(images) = images {
            let rows = compute.place(&images.rows)?;
            let places = images.places.f_to_device(compute.device)?;
            embedded = embedded.f_index_copy_(0, &places, &rows)?;
        }
        let context = embedded.f_linear(&projection, None::<&Tensor>)?;
        let context = context.f_mul_scalar((hidden as f64).powf(-0.5))?;
        let (kind, eps) = (self.arch.norm, self.config.norm_eps);
        let norm = Norm::load(
            weights,
            compute,
            kind,
            eps,
            &self.stored_name(row.norm),
            width,
        )?;
        let both = norm.forward(&context)?.f_add_(&tokens)?;
        let input = both.f_mul_scalar(0.5f64.sqrt())?;
        let input = input.f_view([n_rows, row_len, width as i64])?;
        state.set_slot(Slot::LayerInput, Some(input));
        Ok(())
    }

    /// The final norm and the output projection.
    pub fn head(&self, weights: &dyn Weights, compute: Compute) -> Result<Head, Error> {
        Head::load(self, weights, compute)
    }

    /// Places of `seq_len` tokens, one after the other. Dynamic scaling takes its base from this `seq_len`.
    pub fn places(&self, compute: Compute, seq_len: usize) -> Result<Places, Error> {
        Places::in_line(&self.config, compute, seq_len)
    }

    /// Places of the tokens of windows that see `sightings`, each of `seq_len` tokens.
    pub fn places_with_images(
        &self,
        compute: Compute,
        seq_len: usize,
        sightings: &[&[Sighting]],
    ) -> Result<Places, Error> {
        match &self.vision {
            Some(vision) if sightings.iter().any(|window| !window.is_empty()) => {
                Places::with_images(&self.config, vision, compute, seq_len, sightings)
            }
            _ => self.places(compute, seq_len),
        }
    }
}
