//! What is known of each family beside how it computes: its name, and which programs load quantized models of it.
//!
//! Read in the sources of vLLM 0.32.0 (`model_executor/models/registry.py`, its transformers backend included),
//! GPTQModel 7.7.0 (`models/auto.py`) and transformers 5.23.0; run only where README says so. A program is named where it takes both formats; some take one of them only. transformers 5 holds all
//! experts of a layer in one tensor and replaces linears alone, so it loads no quantized experts. vLLM's DBRX and gpt-oss
//! read their experts from stacked tensors, which these formats do not have. vLLM splits Mamba 2's packed linears between GPUs
//! only where the number of these divides that of the groups.

use super::loaders::{GPTQMODEL, TRANSFORMERS, VLLM_CPU, VLLM_GPU};

/// A family's entry.
#[derive(Debug, Clone, Copy)]
pub struct Family {
    pub model_type: &'static str,
    /// As people call it.
    pub name: &'static str,
    loaders: &'static [Loader],
    /// The programs that load those of its models that have no experts, beside these.
    without_experts: &'static [Loader],
    /// Names inside a block that vLLM's model has for linears that are stored under others, and cannot trace back: linears
    /// that it fuses without its class saying so, and renamed ones. It looks for its own names in GPTQ's
    /// `modules_in_block_to_quantize`, where a part of a name is enough; an empty one is a part of every name.
    pub named_by_vllm: &'static [&'static str],
}

/// A program that loads quantized models.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Loader {
    Vllm,
    Transformers,
    GptqModel,
}
use Loader::{GptqModel, Transformers, Vllm};

impl Family {
    /// The entry of a `model_type`, where there is one.
    pub fn find(model_type: &str) -> Option<&'static Self> {
        FAMILIES
            .iter()
            .find(|family| family.model_type == model_type)
    }

    /// Whether the program `runtime` loads quantized models of the family, with experts or without.
    pub(super) fn is_loaded_by(&self, runtime: &str, has_experts: bool) -> bool {
        let loader = match runtime {
            VLLM_GPU | VLLM_CPU => Vllm,
            TRANSFORMERS => Transformers,
            GPTQMODEL => GptqModel,
            _ => return true,
        };
        let is_dense = !has_experts && self.without_experts.contains(&loader);
        is_dense || self.loaders.contains(&loader)
    }

    /// The programs by their names, for people.
    pub fn loaders(&self) -> String {
        let name = |loader: &Loader| match loader {
            Vllm => "vLLM",
            Transformers => "transformers",
            GptqModel => "GPTQModel",
        };
        let names = self.loaders.iter().map(|loader| name(loader).to_owned());
        let dense = self.without_experts.iter();
        let dense = dense.map(|loader| format!("{} without experts", name(loader)));
        match &names.chain(dense).collect::<Vec<_>>()[..] {
            [] => "none known".to_owned(),
            names => names.join(", "),
        }
    }
}

const fn family(
    model_type: &'static str,
    name: &'static str,
    loaders: &'static [Loader],
) -> Family {
    Family {
        model_type,
        name,
        loaders,
        without_experts: &[],
        named_by_vllm: &[],
    }
}

impl Family {
    const fn without_experts(self, loaders: &'static [Loader]) -> Self {
        Self {
            without_experts: loaders,
            ..self
        }
    }

    const fn named_by_vllm(self, names: &'static [&'static str]) -> Self {
        Self {
            named_by_vllm: names,
            ..self
        }
    }
}

/// All three.
const ALL: &[Loader] = &[Vllm, Transformers, GptqModel];

/// Every family, by its `model_type`.
pub const FAMILIES: &[Family] = &[
    family("apertus", "Apertus", ALL),
    family("arcee", "Arcee", &[Vllm, Transformers]),
    family("axk1", "A.X K1", &[Vllm]),
    family("bloom", "BLOOM", &[Vllm]),
    family("codegen", "CodeGen", &[Transformers, GptqModel]),
    family("cohere", "Command R, Command R+", ALL),
    family("cohere2", "Command R7B, Command A", ALL),
    family("dbrx", "DBRX", &[]),
    family("deepseek_v2", "DeepSeek V2, V2-Lite", &[Vllm, GptqModel]),
    family("deepseek_v3", "DeepSeek V3, R1", &[Vllm, GptqModel]),
    family("dots1", "dots.llm1", &[GptqModel]),
    family("ernie4_5", "ERNIE 4.5 (dense)", ALL),
    family("ernie4_5_moe", "ERNIE 4.5 with experts", &[Vllm]),
    family("exaone4", "EXAONE 4", ALL),
    family("exaone_moe", "K-EXAONE", &[Vllm]),
    family("falcon", "Falcon 1", &[Vllm, GptqModel]),
    // models/falcon_h1.py gives its attention the layer's name, and its Mamba one of no layer.
    family("falcon_h1", "Falcon H1", ALL).named_by_vllm(&[
        "q_proj",
        "k_proj",
        "v_proj",
        "o_proj",
        "mixer.in_proj",
        "mixer.out_proj",
    ]),
    family("flex_olmo", "FlexOlmo", &[Vllm]),
    family("gemma", "Gemma 1", ALL),
    family("gemma2", "Gemma 2", ALL),
    family("gemma3", "Gemma 3", &[Vllm, Transformers]),
    family("gemma3_text", "Gemma 3 (text models)", ALL),
    // models/gemma4.py loads keys for values where these are the keys.
    family("gemma4", "Gemma 4", &[Vllm])
        .without_experts(&[Transformers])
        .named_by_vllm(&["self_attn.v_proj"]),
    family("gemma4_text", "Gemma 4 (text models)", &[Vllm])
        .without_experts(&[Transformers])
        .named_by_vllm(&["self_attn.v_proj"]),
    family("glm", "GLM-4 (`glm`)", ALL),
    family("glm4", "GLM-4-0414", ALL),
    family("glm4_moe", "GLM-4.5, GLM-4.6, GLM-4.7", &[Vllm, GptqModel]),
    family("glm4_moe_lite", "GLM-4.7-Flash", &[Vllm, GptqModel]),
    family("glm4v", "GLM-4.1V, GLM-4.6V-Flash", &[Transformers]),
    family("glm4v_moe", "GLM-4.5V, GLM-4.6V", &[]),
    family("gpt2", "GPT-2", &[Vllm]),
    family("gpt_bigcode", "StarCoder, SantaCoder", &[Vllm, GptqModel]),
    family("gpt_neox", "GPT-NeoX, Pythia", &[Vllm, GptqModel]),
    family("gpt_oss", "gpt-oss", &[GptqModel]),
    // models/gpt_j.py
    family("gptj", "GPT-J", &[Vllm, GptqModel]).named_by_vllm(&["attn.qkv_proj"]),
    family("granite", "Granite 3", ALL),
    family("granitemoe", "Granite 3 with experts", &[Vllm]),
    // models/granitemoehybrid.py
    family("granitemoehybrid", "Granite 4", &[Vllm])
        .named_by_vllm(&["mixer.in_proj", "mixer.out_proj"]),
    family(
        "granitemoeshared",
        "Granite with experts and a shared one",
        &[Vllm],
    ),
    family("helium", "Helium", &[Transformers]),
    family("hunyuan_v1_dense", "HunYuan (dense)", ALL),
    family(
        "hunyuan_v1_moe",
        "HunYuan with experts (Hunyuan-A13B)",
        &[Vllm, GptqModel],
    ),
    family("hy_v3", "HunYuan 3", &[Vllm]),
    family("idefics3", "Idefics 3", &[Vllm, Transformers]),
    family("internlm3", "InternLM 3", &[Vllm, Transformers]),
    family(
        "internvl",
        "InternVL 2.5, 3, 3.5 (as transformers stores it)",
        &[Vllm, Transformers],
    ),
    family("kimi_k2", "Kimi K2", &[Vllm, GptqModel]),
    family("lfm2", "LFM2", ALL),
    family("lfm2_moe", "LFM2 with experts", &[Vllm]),
    family(
        "llama",
        "Llama 1-3 and what is stored like it (SmolLM2, TinyLlama, Yi, …)",
        ALL,
    ),
    family("llama4", "Llama 4", &[]),
    family("llama4_text", "Llama 4 (text models)", &[Vllm, GptqModel]),
    family("llava", "LLaVA 1.5, Pixtral", &[Vllm, Transformers]),
    family("llava_next", "LLaVA-NeXT", &[Vllm, Transformers]),
    family("llava_onevision", "LLaVA-OneVision", &[Transformers]),
    // models/minicpm3.py gives its q_a_proj no name.
    family("minicpm3", "MiniCPM3", ALL).named_by_vllm(&[""]),
    family("minimax_m2", "MiniMax M2", &[Vllm]),
    family("ministral", "Ministral", &[Transformers]),
    family("ministral3", "Ministral 3 (text models)", ALL),
    family("mistral", "Mistral", ALL),
    family(
        "mistral3",
        "Mistral Small 3.1, 3.2, Ministral 3",
        &[Vllm, Transformers],
    ),
    family("mistral4", "Mistral 4 (text models)", &[]),
    family("mixtral", "Mixtral", &[Vllm]),
    // vLLM had it up to 0.10.2. GPTQModel's definitions/mllama.py knows no linears of cross-attention.
    family("mllama", "Llama 3.2 Vision (Mllama)", &[]),
    family("mpt", "MPT", &[GptqModel]),
    family(
        "nemotron",
        "Nemotron 3 and 4, Minitron",
        &[Vllm, Transformers],
    ),
    family("nemotron_h", "Nemotron H, Nemotron Nano 2 and 3", &[Vllm]),
    family("olmo", "OLMo 1", &[Vllm, Transformers]),
    family("olmo2", "OLMo 2", ALL),
    family("olmo3", "OLMo 3", ALL),
    family("olmoe", "OLMoE", &[Vllm, GptqModel]),
    family("opt", "OPT", ALL),
    family("paligemma", "PaliGemma 1, 2", &[Transformers]),
    family("phi", "Phi 1, 1.5, 2", ALL),
    family("phi3", "Phi 3, 3.5 and 4", ALL),
    family("phi4_multimodal", "Phi-4 multimodal", &[Transformers]),
    family("phimoe", "Phi-3.5-MoE", &[Vllm]),
    family("qwen2", "Qwen2, Qwen2.5", ALL),
    family("qwen2_5_vl", "Qwen2.5-VL", &[Vllm, Transformers]),
    family("qwen2_moe", "Qwen1.5-MoE, Qwen2-MoE", &[Vllm, GptqModel]),
    family("qwen2_vl", "Qwen2-VL", &[Vllm, Transformers]),
    family("qwen3", "Qwen3 (dense)", ALL),
    family("qwen3_5", "Qwen3.5 (dense)", ALL),
    family("qwen3_5_moe", "Qwen3.5 with experts", &[Vllm, GptqModel]),
    family(
        "qwen3_5_moe_text",
        "Qwen3.5 with experts (text models)",
        &[Vllm, GptqModel],
    ),
    family("qwen3_5_text", "Qwen3.5 (dense, text models)", ALL),
    family("qwen3_moe", "Qwen3 with experts", &[Vllm, GptqModel]),
    family("qwen3_next", "Qwen3-Next", &[Vllm, GptqModel]),
    family("qwen3_vl", "Qwen3-VL", ALL),
    family("qwen3_vl_moe", "Qwen3-VL with experts", &[]),
    family("seed_oss", "Seed-OSS", ALL),
    family("smollm3", "SmolLM3", ALL),
    family("smolvlm", "SmolVLM", &[Transformers]),
    family("solar_open", "Solar Open", &[GptqModel]),
    // models/stablelm.py
    family("stablelm", "StableLM (sequential)", ALL)
        .named_by_vllm(&["self_attn.qkv_proj", "mlp.gate_up_proj"]),
    family("starcoder2", "StarCoder2", &[Vllm, GptqModel]),
    family("youtu", "Youtu-LLM", &[Transformers]),
];
