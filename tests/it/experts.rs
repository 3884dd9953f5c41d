use std::fs;

use half::bf16;
use safetensors::{Dtype, SafeTensors};
use serde_json::{Value, json};

use crate::support::{StoredTensor, TinyModel, evaluate, json_file, nibble};

const SMALL: &[&str] = &[
    "--group-size",
    "32",
    "--seq-len",
    "24",
    "--num-samples",
    "8",
];

fn config(model_type: &str, architecture: &str, changes: &Value) -> Value {
    let mut config = json!({
        "architectures": [architecture], "model_type": model_type, "hidden_act": "silu", "hidden_size": 64,
        "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 256, "vocab_size": 128,
    });
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    config
}

fn qwen3_moe() -> Value {
    let changes = json!({
        "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "norm_topk_prob": true,
    });
    config("qwen3_moe", "Qwen3MoeForCausalLM", &changes)
}

fn gpt_oss() -> Value {
    let changes = json!({"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 8});
    config("gpt_oss", "GptOssForCausalLM", &changes)
}

/// All tensors as they are.
fn copied(tensors: &SafeTensors<'_>) -> Vec<StoredTensor> {
    let copied = tensors.tensors().into_iter().map(|(name, view)| {
        (
            name,
            view.dtype(),
            view.shape().to_vec(),
            view.data().to_vec(),
        )
    });
    copied.collect()
}

fn divergence(model: &TinyModel, reference: &TinyModel) -> f64 {
    let result = evaluate(model.path_str(), reference.path_str(), "24");
    result["kl_divergence"].as_f64().unwrap()
}

#[test]
fn experts_in_one_tensor_are_those_of_tensors_of_their_own() {
    let (apart, together) = (TinyModel::of(&qwen3_moe()), TinyModel::of(&qwen3_moe()));
    together.restore(|tensors| {
        let mut stored = copied(tensors);
        stored.retain(|tensor| !tensor.0.contains(".experts."));
        for layer in 0..2 {
            let experts = format!("model.layers.{layer}.mlp.experts");
            let bytes = |expert: usize, linear: &str| {
                let name = format!("{experts}.{expert}.{linear}.weight");
                tensors.tensor(&name).unwrap().data().to_vec()
            };
            let both = |expert| [bytes(expert, "gate_proj"), bytes(expert, "up_proj")].concat();
            let gate_up: Vec<u8> = (0..8).flat_map(both).collect();
            let down: Vec<u8> = (0..8)
                .flat_map(|expert| bytes(expert, "down_proj"))
                .collect();
            stored.push((
                format!("{experts}.gate_up_proj"),
                Dtype::BF16,
                vec![8, 64, 64],
                gate_up,
            ));
            stored.push((
                format!("{experts}.down_proj"),
                Dtype::BF16,
                vec![8, 64, 32],
                down,
            ));
        }
        stored
    });
    assert!(divergence(&together, &apart).abs() < 1e-12);
    // What is written is the same, too.
    for model in [&apart, &together] {
        let run = nibble([SMALL, &["--awq", model.path_str()]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
    }
    let written = |model: &TinyModel| {
        let bytes = fs::read(model.path("AWQ-4bit/model.safetensors")).unwrap();
        let mut tensors = copied(&SafeTensors::deserialize(&bytes).unwrap());
        tensors.sort();
        tensors
    };
    assert_eq!(written(&apart), written(&together));
}

/// The values of E2M1's codes, without their signs.
const VALUES: [f32; 8] = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];

#[test]
fn mxfp4_experts_are_dequantized_as_they_are_read() {
    let (packed, float) = (TinyModel::of(&gpt_oss()), TinyModel::of(&gpt_oss()));
    // Codes and exponents by a rule; the float model has their numbers, transposed.
    let code = |i: usize| (i * 7 + i / 5) % 16;
    let scale = |block: usize| 122 + block % 3;
    let value = |i: usize| {
        let sign = if code(i) < 8 { 1.0 } else { -1.0 };
        sign * VALUES[code(i) % 8] * f32::powi(2.0, scale(i / 32) as i32 - 127)
    };
    let each = |replace: &dyn Fn(&str, usize) -> Vec<StoredTensor>, model: &TinyModel| {
        model.restore(|tensors| {
            let mut stored = Vec::new();
            for tensor in copied(tensors) {
                // Rows of an expert's part: gate's and up's, or those of down.
                match tensor.0.as_str() {
                    name if name.ends_with("gate_up_proj") => stored.extend(replace(name, 128)),
                    name if name.ends_with("experts.down_proj") => stored.extend(replace(name, 64)),
                    _ => stored.push(tensor),
                }
            }
            stored
        });
    };
    let blocks = |name: &str, rows: usize| {
        let pairs = (0..4 * rows * 32).map(|pair| (code(2 * pair) | code(2 * pair + 1) << 4) as u8);
        let scales = (0..4 * rows * 2).map(|block| scale(block) as u8);
        vec![
            (
                format!("{name}_blocks"),
                Dtype::U8,
                vec![4, rows, 2, 16],
                pairs.collect(),
            ),
            (
                format!("{name}_scales"),
                Dtype::U8,
                vec![4, rows, 2],
                scales.collect(),
            ),
        ]
    };
    let numbers = |name: &str, rows: usize| {
        let mut bytes = Vec::new();
        for expert in 0..4 {
            for column in 0..64 {
                for row in 0..rows {
                    let number = value((expert * rows + row) * 64 + column);
                    bytes.extend(bf16::from_f32(number).to_le_bytes());
                }
            }
        }
        vec![(name.to_owned(), Dtype::BF16, vec![4, 64, rows], bytes)]
    };
    each(&blocks, &packed);
    each(&numbers, &float);
    packed.edit_config("quantization_config", json!({"quant_method": "mxfp4"}));
    assert!(divergence(&packed, &float).abs() < 1e-12);
    let run = nibble([SMALL, &["--gptq", packed.path_str()]].concat());
    assert_eq!(run.code, 0, "{}", run.stderr);
    let written = json_file(&packed.path("GPTQ-8bit/config.json"));
    assert_eq!(written["quantization_config"]["quant_method"], "gptq");
}

#[test]
fn routers_stay_in_float_and_are_named() {
    let model = TinyModel::of(&qwen3_moe());
    for (method, directory) in [("--awq", "AWQ-4bit"), ("--gptq", "GPTQ-8bit")] {
        let run = nibble([SMALL, &[method, model.path_str()]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        let bytes = fs::read(model.path(directory).join("model.safetensors")).unwrap();
        let tensors = SafeTensors::deserialize(&bytes).unwrap();
        assert_eq!(
            tensors
                .tensor("model.layers.0.mlp.gate.weight")
                .unwrap()
                .dtype(),
            Dtype::F16
        );
        let config = json_file(&model.path(directory).join("config.json"));
        let quantization = &config["quantization_config"];
        let text = quantization.to_string();
        assert!(text.contains("mlp") && text.contains("gate"), "{text}");
        if method == "--awq" {
            let dense = quantization["modules_to_not_convert"].as_array().unwrap();
            let named: Vec<&str> = dense.iter().map(|name| name.as_str().unwrap()).collect();
            assert_eq!(
                named,
                [
                    "model.layers.0.mlp.gate",
                    "model.layers.1.mlp.gate",
                    "lm_head"
                ]
            );
        } else {
            let inside = quantization["modules_in_block_to_quantize"][0]
                .as_array()
                .unwrap();
            assert_eq!(inside.len(), 4 + 8 * 3);
            assert!(!inside.iter().any(|name| name == "mlp.gate"));
        }
    }
}

#[test]
fn starved_experts_are_named_and_see_what_they_are_given() {
    let model = TinyModel::of(&qwen3_moe());
    let report = |args: &[&str]| {
        let run = nibble([SMALL, args, &["--gptq", "--overwrite", model.path_str()]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        json_file(&model.path("GPTQ-8bit/quantization_report.json"))
    };
    let experts = |report: &Value| -> Vec<(u64, u64, u64)> {
        let linears = report["linears"].as_array().unwrap().iter();
        let number = |linear: &Value, key: &str| linear[key].as_u64().unwrap();
        let experts = linears.filter(|linear| linear["routed_tokens"].is_u64());
        experts
            .map(|linear| {
                let keys = ["routed_tokens", "tokens", "in_features"];
                let [routed, tokens, columns] = keys.map(|key| number(linear, key));
                (routed, tokens, columns)
            })
            .collect()
    };
    let routed = report(&[]);
    let counts = experts(&routed);
    assert_eq!(counts.len(), 2 * 8 * 3);
    // Two experts for each of 8 windows of 24 tokens, in each of two layers, counted for three linears.
    assert_eq!(
        counts.iter().map(|count| count.0).sum::<u64>(),
        8 * 24 * 2 * 2 * 3
    );
    for (routed, tokens, _) in &counts {
        assert_eq!(*tokens, (*routed).max(64));
    }
    assert!(counts.iter().any(|(routed, _, columns)| routed < columns));
    let warnings = routed["warnings"].to_string();
    assert!(warnings.contains("--moe-all-tokens"), "{warnings}");
    let all = report(&["--moe-all-tokens"]);
    assert!(experts(&all).iter().all(|count| count.1 == 8 * 24));
}
