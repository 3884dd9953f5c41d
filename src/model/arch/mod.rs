//! What differs between model families, as data: names, norms, biases, positions, windows and scales.
//!
//! Adding a family is one file with one row and one entry in [`ARCHITECTURES`]. A family that computes something new
//! adds an enum value that any row can use; nothing asks for a family by name.

mod apertus;
mod arcee;
mod attention;
mod axk1;
mod bloom;
mod codegen;
mod cohere;
mod cohere2;
mod composites;
mod dbrx;
mod deepseek_v2;
mod deepseek_v3;
mod dots1;
mod ernie4_5;
mod ernie4_5_moe;
mod exaone4;
mod exaone_moe;
mod experts;
mod falcon;
mod falcon_h1;
mod find;
mod flex_olmo;
mod gemma;
mod gemma2;
mod gemma3_text;
mod gemma4_text;
mod glm;
mod glm4;
mod glm4_moe;
mod glm4_moe_lite;
mod gpt2;
mod gpt_bigcode;
mod gpt_neox;
mod gpt_oss;
mod gptj;
mod granite;
mod granitemoe;
mod granitemoehybrid;
mod granitemoeshared;
mod helium;
mod hunyuan_v1_dense;
mod hunyuan_v1_moe;
mod hy_v3;
mod internlm3;
mod kimi_k2;
mod lfm2;
mod lfm2_moe;
mod llama;
mod llama4_text;
mod minicpm3;
mod minimax_m2;
mod ministral;
mod ministral3;
mod mistral;
mod mistral4;
mod mixers;
mod mixtral;
mod mllama_text;
mod mpt;
mod nemotron;
mod nemotron_h;
mod olmo;
mod olmo2;
mod olmo3;
mod olmoe;
mod opt;
mod phi;
mod phi3;
mod phimoe;
mod qwen2;
mod qwen2_moe;
mod qwen3;
mod qwen3_5_moe;
mod qwen3_5_moe_text;
mod qwen3_5_text;
mod qwen3_moe;
mod qwen3_next;
mod qwen3_vl_moe;
mod seed_oss;
mod smollm3;
mod solar_open;
mod stablelm;
mod starcoder2;
mod youtu;

pub use attention::{
    Alibi, Attention, AttentionScale, Borrowing, CrossAttention, FullLayers, KvHeads, Latent,
    Pairs, Positions, QkNorm, RopeLayers, Rotary, Temperature, WindowRule,
};
pub use composites::{COMPOSITES, Composite, Names, Text};
pub use experts::{
    Correction, ExpertLinear, Experts, GroupScore, Router, Scoring, Shared, SharedWidth,
    SparseLayers, Stack, StackRows,
};
pub use find::model_types;
pub(super) use find::{Found, find};
pub use mixers::{Mixer, MixerKind, MixerLayers, Multipliers};

/// What a linear's output, or a block of it, is to the mixing step that follows.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    Q,
    K,
    V,
    O,
    /// What the query is made of.
    QueryLatent,
    /// What the heads' keys, but for their turning part, and values are made of.
    KeyValueLatent,
    /// The part of the key that turns, one for all heads.
    TurningKey,
    Gate,
    Up,
    Down,
    /// What the choice of experts follows from.
    Router,
    /// What the shared expert's output is multiplied by, before its sigmoid.
    SharedGate,
    /// What attention's output is multiplied by, before its sigmoid.
    AttentionGate,
    /// What another mixer's output is multiplied by, before its silu.
    OutputGate,
    /// What another mixer writes to its state.
    X,
    /// What it writes that with, or multiplies it by.
    B,
    /// What it reads its state with, or multiplies what it read by.
    C,
    /// How much a head's state takes in, before its sigmoid.
    Beta,
    /// How far a head's state decays, before its softplus.
    Step,
    /// What another mixer adds to the residual stream.
    MixerOutput,
}

/// The norms of a decoder layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum NormSite {
    /// Of the residual stream, before attention; in parallel layers without another one before the MLP too.
    Attention,
    /// Of the residual stream, before the MLP.
    Mlp,
    /// Of the query.
    Query,
    /// Of the key.
    Key,
    /// Of what the query is made of.
    QueryLatent,
    /// Of what keys and values are made of.
    KeyValueLatent,
    /// Of what another mixer makes.
    Mixer,
    /// Of what attention adds to the residual stream.
    AfterAttention,
    /// Of what the MLP adds to the residual stream.
    AfterMlp,
    /// Of what experts and what is beside them add to it, in the layers that have them.
    AfterExperts,
    /// Of the residual stream, before the router, where the experts' norm is another one.
    Router,
    /// Of the residual stream, before experts that an MLP runs beside.
    Experts,
    /// Of what that MLP makes.
    BesideExperts,
    /// Of what those experts make together.
    OfExperts,
    /// Of what the tokens themselves add to the residual stream of a layer.
    AfterLayerInput,
}

/// A linear as it is stored, which is how it is quantized and written: what runtimes have as one module stays one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LinearSpec {
    /// Inside the layer, without `.weight`.
    pub name: &'static str,
    /// What its rows compute.
    pub parts: &'static [Role],
    pub split: Split,
}

/// How the rows of a linear's parts lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    /// One part after the other.
    Blocks,
    /// For each key-value head the rows of all parts that belong to it, one head after the other.
    Heads,
    /// The same for each query head.
    QueryHeads,
    /// The same for each group of another mixer's heads.
    Groups,
    /// The same for each fourth of the heads.
    Fourths,
}

/// The MLP of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mlp {
    /// They compute the gate, where there is one, and what it is multiplied with; else what the activation is taken of.
    pub inputs: &'static [LinearSpec],
    pub output: LinearSpec,
    pub bias: Bias,
}

/// How attention and MLP are joined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Joint {
    /// The MLP reads what attention added.
    Sequential,
    /// Both read the same residual stream: through one norm, or through one each.
    Parallel,
    /// Parallel if the key is true, else sequential.
    ParallelIf(&'static str),
}

/// How a norm uses its weight `w` and bias `b`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// `x / rms(x) * w`, rounded to the kind of `x` before the product.
    Rms,
    /// `x / rms(x) * w`, rounded after it.
    RmsLast,
    /// `x / rms(x) * (1 + w)`
    RmsOffset,
    /// `x / rms(x) * w / sqrt(len)`; the weight is stored under the norm's own name.
    RmsOverRoot,
    /// `(x - mean(x)) / deviation(x) * w + b`
    Layer,
    /// The same without `b`.
    LayerWeight,
    /// `(x - mean(x)) / deviation(x) * (1 + w) + b`
    LayerOffset,
    /// `(x - mean(x)) / deviation(x)`: nothing is stored.
    LayerPlain,
}

impl NormKind {
    /// What the norm adds to its stored weight.
    pub fn offset(self) -> f32 {
        match self {
            Self::RmsOffset | Self::LayerOffset => 1.0,
            Self::Rms
            | Self::RmsLast
            | Self::RmsOverRoot
            | Self::Layer
            | Self::LayerWeight
            | Self::LayerPlain => 0.0,
        }
    }

    /// What the weight of the norm `name` is stored as.
    pub fn weight_name(self, name: &str) -> String {
        match self {
            Self::RmsOverRoot => name.to_owned(),
            _ => format!("{name}.weight"),
        }
    }

    pub fn has_weight(self) -> bool {
        self != Self::LayerPlain
    }

    pub fn has_bias(self) -> bool {
        matches!(self, Self::Layer | Self::LayerOffset)
    }

    pub fn subtracts_mean(self) -> bool {
        matches!(
            self,
            Self::Layer | Self::LayerWeight | Self::LayerOffset | Self::LayerPlain
        )
    }
}

/// Whether a linear has a bias.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bias {
    Never,
    Always,
    /// If this key is true.
    If(&'static str),
}

/// A number that something is multiplied by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    One,
    /// This key's value.
    By(&'static str),
    /// One over this key's value.
    Over(&'static str),
    /// The root of `hidden_size`, rounded to the kind of the forward pass.
    RootOfHidden,
    /// This key's value over `hidden_size`.
    OverHidden(&'static str),
    /// This key's value over the root of the number of layers.
    OverRootOfLayers(&'static str),
}

/// Numbers that steps outside the linears multiply by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Scales {
    pub embedding: Scale,
    /// Of what attention and MLP add to the residual stream.
    pub residual: Scale,
    pub logits: Scale,
}

/// What each layer takes of its tokens themselves, beside what the layers before it made of them ("per-layer embeddings").
/// Its width is `hidden_size_per_layer_input`; there is none where that is 0.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LayerInput {
    /// Tensor name of the table: for each token the rows of all layers.
    pub embedding: &'static str,
    /// What all layers' inputs are made of besides, from the embedded tokens; without `.weight`.
    pub model_projection: &'static str,
    /// The norm of that, of each layer by itself; without `.weight`.
    pub norm: &'static str,
    /// From the residual stream to the gate of the layer's input, inside the layer; without `.weight`.
    pub gate: &'static str,
    /// From the gated input to the residual stream, likewise.
    pub projection: &'static str,
}

/// One model family.
#[derive(Debug, PartialEq, Eq)]
pub struct Architecture {
    /// `model_type` in `config.json`.
    pub model_type: &'static str,
    /// The class that loaders look up: `architectures` in `config.json`.
    pub architecture: &'static str,
    /// Where a family has several rows: keys and their JSON values with which this one is meant. The first one that fits
    /// counts.
    pub when: &'static [(&'static str, &'static str)],
    /// Tensor name of the embedding.
    pub embedding: &'static str,
    /// Its rows past those of `vocab_size`, for tokens that the model does not predict.
    pub more_embeddings: usize,
    /// Learned positions, which are added to it.
    pub positions: Option<Positions>,
    /// Name of a norm after both, without `.weight`.
    pub embedding_norm: Option<&'static str>,
    /// Prefix of the layers, before `.0`.
    pub layers: &'static str,
    /// Name of the norm after the last layer, without `.weight`.
    pub final_norm: &'static str,
    /// Name of the output projection, without `.weight`; where it is not tied to the embedding.
    pub head: &'static str,
    pub head_bias: Bias,
    /// Names inside the layer, without `.weight`.
    pub norms: &'static [(NormSite, &'static str)],
    pub norm: NormKind,
    /// The key of what is added to the mean square or the variance.
    pub norm_eps: &'static str,
    pub attention: Attention,
    /// What some layers have in its place, or beside it.
    pub mixer: Option<Mixer>,
    /// What some layers have in its place, where the model sees.
    pub cross_attention: Option<CrossAttention>,
    pub mlp: Mlp,
    /// What some layers have in its place.
    pub experts: Option<Experts>,
    pub layer_input: Option<LayerInput>,
    /// The tensor of the number that the residual stream is multiplied by after a layer: inside it, the whole name.
    pub layer_scale: Option<&'static str>,
    /// Whether the MLP is four times as wide as the residual stream where the config does not say.
    pub four_times_wide: bool,
    /// Whether linears are stored `[in, out]`.
    pub transposed: bool,
    pub kv_heads: KvHeads,
    pub joint: Joint,
    pub rotary: Rotary,
    pub window: WindowRule,
    pub scales: Scales,
    pub multipliers: Option<Multipliers>,
    /// Usual keys, and what this family calls them.
    pub aliases: &'static [(&'static str, &'static str)],
    /// Keys, a string that the family's configs hold there, and what transformers takes it for.
    pub synonyms: &'static [(&'static str, &'static str, &'static str)],
    /// What transformers takes for a key that is absent (not null), as JSON.
    pub defaults: &'static [(&'static str, &'static str)],
    /// Keys that must be absent or hold one of these JSON values, because the forward pass computes nothing else.
    pub requires: &'static [(&'static str, &'static [&'static str])],
}

/// Every family that can be quantized.
pub const ARCHITECTURES: &[&Architecture] = &[
    &apertus::APERTUS,
    &arcee::ARCEE,
    &axk1::AXK1,
    &bloom::BLOOM,
    &codegen::CODEGEN,
    &cohere::COHERE,
    &cohere2::COHERE2,
    &dbrx::DBRX,
    &deepseek_v2::DEEPSEEK_V2,
    &deepseek_v3::DEEPSEEK_V3,
    &dots1::DOTS1,
    &ernie4_5::ERNIE4_5,
    &ernie4_5_moe::ERNIE4_5_MOE,
    &exaone4::EXAONE4,
    &exaone_moe::EXAONE_MOE,
    &falcon::FALCON_GROUPED_ONE_NORM,
    &falcon::FALCON_GROUPED,
    &falcon::FALCON_SEQUENTIAL,
    &falcon::FALCON,
    &falcon_h1::FALCON_H1,
    &flex_olmo::FLEX_OLMO,
    &gemma::GEMMA,
    &gemma2::GEMMA2,
    &gemma3_text::GEMMA3_TEXT,
    &gemma4_text::GEMMA4_TEXT,
    &glm::GLM,
    &glm4::GLM4,
    &glm4_moe::GLM4_MOE,
    &glm4_moe_lite::GLM4_MOE_LITE,
    &gpt2::GPT2,
    &gpt_bigcode::GPT_BIGCODE,
    &gpt_neox::GPT_NEOX,
    &gpt_oss::GPT_OSS,
    &gptj::GPTJ,
    &granite::GRANITE,
    &granitemoe::GRANITEMOE,
    &granitemoehybrid::GRANITEMOEHYBRID,
    &granitemoeshared::GRANITEMOESHARED,
    &helium::HELIUM,
    &hunyuan_v1_dense::HUNYUAN_V1_DENSE,
    &hunyuan_v1_moe::HUNYUAN_V1_MOE,
    &hy_v3::HY_V3,
    &internlm3::INTERNLM3,
    &kimi_k2::KIMI_K2,
    &lfm2::LFM2,
    &lfm2_moe::LFM2_MOE,
    &llama::LLAMA,
    &llama4_text::LLAMA4_TEXT,
    &minicpm3::MINICPM3,
    &minimax_m2::MINIMAX_M2,
    &ministral::MINISTRAL,
    &ministral3::MINISTRAL3,
    &mistral::MISTRAL,
    &mistral4::MISTRAL4,
    &mixtral::MIXTRAL,
    &mpt::MPT,
    &nemotron::NEMOTRON,
    &nemotron_h::NEMOTRON_H,
    &olmo::OLMO,
    &olmo2::OLMO2,
    &olmo3::OLMO3,
    &olmoe::OLMOE,
    &opt::OPT,
    &phi::PHI,
    &phi3::PHI3,
    &phimoe::PHIMOE,
    &qwen2::QWEN2,
    &qwen2_moe::QWEN2_MOE,
    &qwen3::QWEN3,
    &qwen3_5_moe_text::QWEN3_5_MOE_TEXT,
    &qwen3_5_text::QWEN3_5_TEXT,
    &qwen3_moe::QWEN3_MOE,
    &qwen3_next::QWEN3_NEXT,
    &seed_oss::SEED_OSS,
    &smollm3::SMOLLM3,
    &solar_open::SOLAR_OPEN,
    &stablelm::STABLELM,
    &starcoder2::STARCODER2,
    &youtu::YOUTU,
];

/// A linear with one part, or some one after the other.
const fn linear(name: &'static str, parts: &'static [Role]) -> LinearSpec {
    LinearSpec {
        name,
        parts,
        split: Split::Blocks,
    }
}

/// Q, K, V and O under the names that Llama gave them.
const fn llama_attention(bias: Bias, output_bias: Bias) -> Attention {
    const INPUTS: &[LinearSpec] = &[
        linear("self_attn.q_proj", &[Role::Q]),
        linear("self_attn.k_proj", &[Role::K]),
        linear("self_attn.v_proj", &[Role::V]),
    ];
    Attention {
        inputs: INPUTS,
        float_inputs: false,
        latent: None,
        bias,
        output: linear("self_attn.o_proj", &[Role::O]),
        output_bias,
        scale: AttentionScale::HeadDim,
        qk_norm: QkNorm::Heads,
        qk_norm_if: None,
        clip: None,
        temperature: Temperature::One,
        sinks: None,
        alibi: Alibi::Never,
        value_norm: false,
        full_layers: None,
        borrowing: None,
    }
}

/// The gated MLP under the names that Llama gave it.
const fn llama_mlp(bias: Bias) -> Mlp {
    const INPUTS: &[LinearSpec] = &[
        linear("mlp.gate_proj", &[Role::Gate]),
        linear("mlp.up_proj", &[Role::Up]),
    ];
    Mlp {
        inputs: INPUTS,
        output: linear("mlp.down_proj", &[Role::Down]),
        bias,
    }
}

/// A plain MLP under these names.
const fn plain_mlp(inputs: &'static [LinearSpec], output: &'static str, bias: Bias) -> Mlp {
    Mlp {
        inputs,
        output: linear(output, &[Role::Down]),
        bias,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn rows_are_consistent() {
        for (i, arch) in ARCHITECTURES.iter().enumerate() {
            for other in &ARCHITECTURES[..i] {
                // Of rows of one family the first one that is meant counts, so the one for the rest is the last.
                assert!(arch.model_type != other.model_type || !other.when.is_empty());
            }
            let parts = |linears: &[LinearSpec]| -> Vec<Role> {
                linears
                    .iter()
                    .flat_map(|linear| linear.parts)
                    .copied()
                    .collect()
            };
            let model_type = arch.model_type;
            let inputs: &[Role] = match arch.attention.latent {
                None => &[Role::Q, Role::K, Role::V],
                Some(_) => &[],
            };
            assert!(
                inputs.len() == 3 || !arch.attention.float_inputs,
                "{model_type}"
            );
            let mut found = parts(arch.attention.inputs);
            found.retain(|&role| role != Role::AttentionGate);
            found.sort_unstable();
            assert_eq!(found, inputs, "{model_type}");
            assert_eq!(arch.attention.output.parts, [Role::O], "{model_type}");
            let mlp = parts(arch.mlp.inputs);
            let gated = mlp == [Role::Gate, Role::Up];
            assert!(gated || mlp == [Role::Up], "{model_type}");
            assert_eq!(arch.mlp.output.parts, [Role::Down], "{model_type}");
            for (_, value) in arch.defaults {
                serde_json::from_str::<serde_json::Value>(value).unwrap();
            }
        }
    }
}
