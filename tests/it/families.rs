//! The whole program on every configuration whose logits are held to those of transformers.

use std::fs;
use std::path::Path;

use nibble::model::{LayerPlan, Model};
use safetensors::SafeTensors;
use serde_json::Value;

use crate::support::{TinyModel, evaluate, nibble};

const SMALL: &[&str] = &[
    "--group-size",
    "-1",
    "--seq-len",
    "24",
    "--num-samples",
    "8",
];

/// The configurations of tests/golden/logits.safetensors, by their names.
fn configurations() -> Vec<(String, Value)> {
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
