//! The whole program on every configuration whose logits are held to those of transformers.

use std::fs;
use std::path::Path;

use half::{bf16, f16};
use nibble::model::{LayerPlan, Model};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::support::{TinyModel, evaluate, json_file, nibble};

pub const SMALL: &[&str] = &[
    "--group-size",
    "-1",
    "--seq-len",
    "24",
    "--num-samples",
    "8",
];

/// The configurations of tests/golden/logits.safetensors, by their names.
pub fn configurations() -> Vec<(String, Value)> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/logits.safetensors");
    let bytes = fs::read(path).unwrap();
    let (_, header) = SafeTensors::read_metadata(&bytes).unwrap();
    let mut found: Vec<(String, Value)> = (header.metadata().as_ref().unwrap().iter())
        .map(|(name, config)| (name.clone(), serde_json::from_str(config).unwrap()))
        .collect();
    found.sort_by(|a, b| a.0.cmp(&b.0));
    found
}

/// Quantizes `model`; the divergence of what was written, read back from its packed tensors, from the original.
fn divergence(model: &TinyModel, name: &str, args: &[&str], output: &str) -> f64 {
    let run = nibble([SMALL, args, &[model.path_str()]].concat());
    assert_eq!(run.code, 0, "{name} {args:?}: {}", run.stderr);
    let output = model.path(output);
    let result = evaluate(output.to_str().unwrap(), model.path_str(), "24");
    result["kl_divergence"].as_f64().unwrap()
}

/// Published GPT-2 and BLOOM files lack the first part of the names, and so do others that were saved without a head.
#[test]
fn names_may_lack_their_first_part() {
    let configurations = configurations();
    for (name, prefix) in [
        ("gpt2", "transformer."),
        ("bloom", "transformer."),
        ("mixtral", "model."),
        ("gpt_oss", "model."),
    ] {
        let config = &configurations
            .iter()
            .find(|found| found.0 == name)
            .unwrap()
            .1;
        let (whole, short) = (TinyModel::of(config), TinyModel::of(config));
        short.restore(|tensors| {
            let views = tensors.tensors().into_iter();
            let renamed = views.map(|(name, view)| {
                let name = name.strip_prefix(prefix).unwrap_or(&name).to_owned();
                (
                    name,
                    view.dtype(),
                    view.shape().to_vec(),
                    view.data().to_vec(),
                )
            });
            renamed.collect()
        });
        let result = evaluate(short.path_str(), whole.path_str(), "24");
        assert!(
            result["kl_divergence"].as_f64().unwrap().abs() < 1e-12,
            "{name}: {result}"
        );
        let gptq = divergence(&short, name, &["--gptq"], "GPTQ-8bit");
        assert!(gptq < 0.03, "{name}: {gptq}");
    }
}

/// What a loader would reorder wrongly is stored as numbers, and every reader is told so.
#[test]
fn projections_that_vllm_reorders_stay_in_float() {
    let configurations = configurations();
    for (name, projections) in [
        (
            "bloom",
            &["transformer.h.1.self_attention.query_key_value"][..],
        ),
        (
            "llama4_text",
            &[
                "model.layers.1.self_attn.q_proj",
                "model.layers.1.self_attn.k_proj",
                "model.layers.1.self_attn.v_proj",
            ],
        ),
    ] {
        let found = configurations.iter().find(|found| found.0 == name);
        let config = &found.unwrap().1;
        let model = TinyModel::of(config);
        for (method, directory) in [("--awq", "AWQ-4bit"), ("--gptq", "GPTQ-8bit")] {
            let run = nibble([SMALL, &[method, model.path_str()]].concat());
            assert_eq!(run.code, 0, "{name}: {}", run.stderr);
            let bytes = fs::read(model.path(directory).join("model.safetensors")).unwrap();
            let tensors = SafeTensors::deserialize(&bytes).unwrap();
            let original = fs::read(model.path("model.safetensors")).unwrap();
            let original = SafeTensors::deserialize(&original).unwrap();
            let config = json_file(&model.path(directory).join("config.json"));
            let quantization = &config["quantization_config"];
            for projection in projections {
                let name = format!("{projection}.weight");
                let written = tensors.tensor(&name).unwrap();
                assert_eq!(written.dtype(), Dtype::F16);
                let halves = written.data().as_chunks().0.iter();
                let halves = halves.map(|&half| f16::from_le_bytes(half).to_f32());
                let numbers = original.tensor(&name).unwrap().data().as_chunks().0.iter();
                let numbers = numbers.map(|&number| bf16::from_le_bytes(number).to_f32());
                assert!(halves.eq(numbers.map(|number| f16::from_f32(number).to_f32())));
                let rule = match projection.strip_prefix("model.") {
                    Some(rest) => format!(r"(model\.)?{}", rest.replace('.', r"\.")),
                    None => projection.replace('.', r"\."),
                };
                let rule = format!("-:^{rule}$");
                assert!(
                    quantization["dynamic"].get(&rule).is_some(),
                    "{quantization}"
                );
                let listed = |key: &str, name: &str| {
                    let list = quantization[key].as_array().unwrap();
                    list.iter().any(|entry| entry == name)
                };
                if method == "--awq" {
                    assert!(listed("modules_to_not_convert", projection));
                }
            }
            if method == "--gptq" {
                let inside = quantization["modules_in_block_to_quantize"][0].to_string();
                let kept = ["query_key_value", "q_proj", "k_proj", "v_proj"];
                assert!(!kept.iter().any(|name| inside.contains(name)), "{inside}");
                assert!(inside.contains("self_att"), "{inside}");
            }
        }
    }
}

/// AWQ proves its folds layer by layer on the way: a family whose row has one wrong is an error.
#[test]
fn every_configuration_is_quantized_by_both_methods() {
    for (name, config) in configurations() {
        let model = TinyModel::of(&config);
        let gptq = divergence(&model, &name, &["--gptq"], "GPTQ-8bit");
        let plan = Model::from_config(&config).unwrap();
        // A choice of experts may hang on a rounding.
        let bound = if plan.config.experts.is_some() {
            0.03
        } else {
            0.01
        };
        assert!(gptq < bound, "{name}: {gptq}");
        let mut linears = plan.layers.iter().flat_map(LayerPlan::linears);
        if linears.any(|linear| !linear.out_features.is_multiple_of(8)) {
            let run = nibble([SMALL, &["--awq", model.path_str()]].concat());
            assert_eq!(run.code, 3, "{name}: {}", run.stderr);
            continue;
        }
        let awq = divergence(&model, &name, &["--awq"], "AWQ-4bit");
        assert!(awq < 1.0, "{name}: {awq}");
    }
}
