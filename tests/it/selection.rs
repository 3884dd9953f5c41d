use std::collections::BTreeMap;
use std::fs;

use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

use crate::families::{SMALL, configurations};
use crate::support::{TinyModel, evaluate, json_file, nibble};

/// Dtypes and bytes by names.
type Tensors = BTreeMap<String, (Dtype, Vec<u8>)>;

/// The divergence of what is written from the original, what it is, and how it is described.
fn quantize(model: &TinyModel, args: &[&str]) -> (f64, Tensors, Value) {
    let output = model.path("out");
    let output = output.to_str().unwrap();
    let run = nibble(
        [
            SMALL,
            args,
            &["--overwrite", "--output", output, model.path_str()],
        ]
        .concat(),
    );
    assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
    let result = evaluate(output, model.path_str(), "24");
    let bytes = fs::read(model.path("out/model.safetensors")).unwrap();
    let tensors = SafeTensors::deserialize(&bytes).unwrap();
    let tensors = tensors.tensors().into_iter();
    let tensors = tensors.map(|(name, view)| (name, (view.dtype(), view.data().to_vec())));
    let config = json_file(&model.path("out/config.json"))["quantization_config"].take();
    (
        result["kl_divergence"].as_f64().unwrap(),
        tensors.collect(),
        config,
    )
}

fn of(wanted: &str) -> TinyModel {
    let configurations = configurations();
    let found = configurations.iter().find(|found| found.0 == wanted);
    TinyModel::of(&found.unwrap().1)
}

/// Linears stored in every way, among them experts and those whose scales are folded into what stays in float.
#[test]
fn what_is_ignored_stays_in_float_and_the_rest_is_nearer_the_original() {
    for (name, pattern, chosen) in [
        (
            "llama_tied",
            "v_proj|layers\\.0\\.mlp",
            &[
                "model.layers.0.mlp.down_proj",
                "model.layers.1.self_attn.v_proj",
            ][..],
        ),
        (
            "llama_tied",
            "(gate|down)_proj$",
            &["model.layers.1.mlp.gate_proj"],
        ),
        (
            "gpt2",
            "h\\.0\\.|c_fc",
            &["transformer.h.0.attn.c_attn", "transformer.h.1.mlp.c_fc"],
        ),
        (
            "mixtral",
            "layers\\.1\\.",
            &[
                "model.layers.1.block_sparse_moe.experts.0.w1",
                "model.layers.1.self_attn.o_proj",
            ],
        ),
        (
            "mixtral",
            "w2",
            &["model.layers.0.block_sparse_moe.experts.1.w2"],
        ),
        (
            "gpt_oss",
            "experts",
            &["model.layers.0.mlp.experts.2.down_proj"],
        ),
        (
            "deepseek_v3",
            "kv_b_proj|shared_experts",
            &["model.layers.1.self_attn.kv_b_proj"],
        ),
    ] {
        let model = of(name);
        for method in ["--awq", "--gptq"] {
            let args = if method == "--awq" {
                &[method][..]
            } else {
                &[method, "--bits", "4"]
            };
            let (whole, all, _) = quantize(&model, args);
            let args = [args, &["--ignore", pattern]].concat();
            let (part, some, config) = quantize(&model, &args);
            assert!(part < whole, "{name} {method} {pattern}: {part} {whole}");
            for linear in chosen {
                assert!(all.contains_key(&format!("{linear}.qweight")), "{linear}");
                assert!(!some.contains_key(&format!("{linear}.qweight")));
                assert_eq!(some[&format!("{linear}.weight")].0, Dtype::F16);
                assert_eq!(excludes(&config, linear), 1, "{config}");
            }
            // transformers takes what ends with one of these, whatever else is said.
            if let Value::Array(inside) = &config["modules_in_block_to_quantize"][0] {
                let mut ends = inside
                    .iter()
                    .map(|end| format!(".{}", end.as_str().unwrap()));
                assert!(!ends.any(|end| chosen.iter().any(|name| name.ends_with(&end))));
            }
            let packed = |tensors: &Tensors| {
                tensors
                    .keys()
                    .filter(|name| name.ends_with(".qweight"))
                    .count()
            };
            assert!(packed(&some) > 0 && packed(&some) < packed(&all));
        }
    }
}

/// How many rules of a configuration keep `linear` in float.
fn excludes(config: &Value, linear: &str) -> usize {
    if let Value::Array(names) = &config["modules_to_not_convert"] {
        return names.iter().filter(|name| *name == linear).count();
    }
    let rest = linear.strip_prefix("model.").unwrap_or(linear);
    let end = format!("{}$", rest.replace('.', r"\."));
    let rules = config["dynamic"].as_object().unwrap();
    rules.keys().filter(|rule| rule.ends_with(&end)).count()
}

#[test]
fn only_those_that_are_named_are_quantized() {
    let model = of("llama_tied");
    let (_, tensors, config) = quantize(
        &model,
        &[
            "--gptq", "--only", "mlp", "--only", "o_proj", "--ignore", "gate|up",
        ],
    );
    let packed = tensors
        .keys()
        .filter_map(|name| name.strip_suffix(".qweight"));
    let packed: Vec<&str> = packed.collect();
    assert_eq!(
        packed,
        [
            "model.layers.0.mlp.down_proj",
            "model.layers.0.self_attn.o_proj",
            "model.layers.1.mlp.down_proj",
            "model.layers.1.self_attn.o_proj",
            "model.layers.2.mlp.down_proj",
            "model.layers.2.self_attn.o_proj",
        ]
    );
    let inside = serde_json::json!([["mlp.down_proj", "self_attn.o_proj"]]);
    assert_eq!(config["modules_in_block_to_quantize"], inside);
    let report = json_file(&model.path("out/quantization_report.json"));
    assert_eq!(report["linears"].as_array().unwrap().len(), 6);
    assert_eq!(
        report["settings"]["only"],
        serde_json::json!(["mlp", "o_proj"])
    );
    // What GPTQ leaves is the original's bytes, in float16.
    let original = fs::read(model.path("model.safetensors")).unwrap();
    let original = SafeTensors::deserialize(&original).unwrap();
    let name = "model.layers.1.self_attn.k_proj.weight";
    let expected: Vec<u8> = (original.tensor(name).unwrap().data().chunks(2))
        .map(|pair| half::bf16::from_le_bytes([pair[0], pair[1]]).to_f32())
        .flat_map(|value| half::f16::from_f32(value).to_le_bytes())
        .collect();
    assert_eq!(tensors[name].1, expected);
}

#[test]
fn a_selection_that_fits_nothing_is_refused_and_half_of_a_fused_linear_is_said() {
    let model = of("llama_tied");
    let check = |args: &[&str], code: i32, words: &[&str]| {
        let run = nibble([SMALL, args, &["--dry-run", model.path_str()]].concat());
        assert_eq!(run.code, code, "{args:?}: {}", run.stderr);
        for word in words {
            let said = run.stderr.contains(word) || run.stdout.contains(word);
            assert!(said, "{word}: {}{}", run.stderr, run.stdout);
        }
    };
    check(
        &["--ignore", "lm_head"],
        2,
        &["--ignore lm_head", "model.layers.2.mlp.down_proj"],
    );
    check(
        &["--only", "mlp", "--ignore", "layers"],
        2,
        &["nothing to quantize"],
    );
    check(&["--only", "(mlp"], 2, &["unclosed group"]);
    let half = [
        "vLLM 0.32 (GPU)",
        "does not load",
        "k_proj",
        "as one linear",
    ];
    check(&["--ignore", "k_proj"], 0, &half);
    check(
        &["--ignore", "[qkv]_proj"],
        0,
        &["vLLM 0.32 (GPU)    loads"],
    );
}
