use std::fs;

use clap::Parser;
use nibble::cli::Cli;
use nibble::cli::settings::Settings;
use nibble::device::Choice;
use nibble::model::Compute;
use nibble::pipeline::{EXPECTED_IMAGES, Plan};
use nibble::weights::ModelDir;
use serde_json::Value;

use crate::support::{self, TinyModel, json_file, nibble};

const SMALL: &[&str] = &[
    "--group-size",
    "32",
    "--seq-len",
    "24",
    "--num-samples",
    "8",
];
const FAMILIES: [&str; 4] = ["llama", "mistral", "qwen2", "qwen3"];

/// Quantizes, and measures the result against the original.
fn quantize(model: &TinyModel, args: &[&str], output: &str) -> Value {
    let run = nibble([SMALL, args, &[model.path_str()]].concat());
    assert_eq!(run.code, 0, "{args:?}: {}", run.stderr);
    let output = model.path(output);
    evaluate(model, output.to_str().unwrap())
}

fn evaluate(model: &TinyModel, dir: &str) -> Value {
    support::evaluate(dir, model.path_str(), "24")
}

fn kl(result: &Value) -> f64 {
    result["kl_divergence"].as_f64().unwrap()
}

#[test]
fn every_family_by_every_method() {
    for family in FAMILIES {
        let model = TinyModel::new(family);
        assert!(kl(&evaluate(&model, model.path_str())).abs() < 1e-9);
        let gptq8 = kl(&quantize(&model, &["--gptq"], "GPTQ-8bit"));
        let gptq4 = kl(&quantize(&model, &["--gptq", "--bits", "4"], "GPTQ-4bit"));
        let awq4 = kl(&quantize(&model, &[], "AWQ-4bit"));
        let rtn4 = kl(&quantize(
            &model,
            &["--rtn", "--gptq", "--bits", "4"],
            "RTN-4bit",
        ));
        assert!(gptq8 < 0.1 * gptq4, "{family}: {gptq8} {gptq4}");
        assert!(gptq4 < rtn4, "{family}: {gptq4} {rtn4}");
        assert!(awq4 < rtn4, "{family}: {awq4} {rtn4}");
    }
}

#[test]
fn every_width_order_and_symmetry_of_gptq() {
    let model = TinyModel::new("llama");
    let mut last = f64::INFINITY;
    for bits in ["2", "3", "4", "8"] {
        let name = format!("GPTQ-{bits}bit");
        let divergence = kl(&quantize(&model, &["--gptq", "--bits", bits], &name));
        assert!(
            divergence < last,
            "{bits} bits: {divergence}, one fewer: {last}"
        );
        last = divergence;
        let asymmetric = kl(&quantize(
            &model,
            &["--gptq", "--asym", "--bits", bits, "--overwrite"],
            &name,
        ));
        assert!(asymmetric.is_finite());
    }
    for order in ["none", "static", "group-aware", "desc-act"] {
        let args = ["--gptq", "--bits", "4", "--act_order", order, "--overwrite"];
        let divergence = kl(&quantize(&model, &args, "GPTQ-4bit"));
        assert!(
            divergence > last && divergence < 1.0,
            "{order}: {divergence}"
        );
        let config = json_file(&model.path("GPTQ-4bit/config.json"));
        let desc_act = &config["quantization_config"]["desc_act"];
        assert_eq!(desc_act, &Value::Bool(order == "desc-act"));
    }
}

#[test]
fn whole_rows_make_one_group() {
    let model = TinyModel::new("llama");
    let args = [
        "--gptq",
        "--bits",
        "4",
        "--group-size",
        "-1",
        "--seq-len",
        "24",
        "--num-samples",
        "8",
        model.path_str(),
    ];
    let run = nibble(args);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let config = json_file(&model.path("GPTQ-4bit/quantize_config.json"));
    assert_eq!(config["group_size"], -1);
    assert!(kl(&evaluate(&model, model.path("GPTQ-4bit").to_str().unwrap())) < 1.0);
}

/// The least `--memory` that a plan fits into.
fn least_memory(model: &TinyModel, args: &[&str]) -> String {
    let source = ModelDir::open(&model.path("")).unwrap();
    let fits = |bytes: &String| {
        let args = [
            &["nibble", model.path_str(), "--memory", bytes],
            SMALL,
            args,
        ]
        .concat();
        let settings = Settings::resolve(Cli::parse_from(args).quantize).unwrap();
        let compute = Compute {
            device: match support::device() {
                Some(Choice::Cuda(index)) => tch::Device::Cuda(index),
                _ => tch::Device::Cpu,
            },
            kind: tch::Kind::Float,
        };
        Plan::new(&source, &settings, compute, EXPECTED_IMAGES).is_ok()
    };
    (1..10_000)
        .map(|kib| format!("{kib}KiB"))
        .find(fits)
        .unwrap()
}

/// With little memory the MLP's activations are made twice and windows are cut into slices; that may cost time, but not
/// change the result.
#[test]
fn the_least_memory_gives_the_same_model() {
    let model = TinyModel::new("qwen2");
    for (method, file) in [("--gptq", "GPTQ-8bit"), ("--awq", "AWQ-4bit")] {
        let args = [method, "--dtype", "float32", "--batch-size", "1"];
        let memory = least_memory(&model, &args);
        let kept = kl(&quantize(&model, &args, file));
        let kept_bytes = fs::read(model.path(file).join("model.safetensors")).unwrap();
        let args = [&args[..], &["--memory", &memory, "--overwrite"]].concat();
        let remade = kl(&quantize(&model, &args, file));
        let report = json_file(&model.path(file).join("quantization_report.json"));
        assert_eq!(report["recompute"], true, "{memory}");
        if method == "--gptq" {
            let bytes = fs::read(model.path(file).join("model.safetensors")).unwrap();
            assert!(kept_bytes == bytes, "the same operations in the same order");
        }
        // AWQ divides the activations here and the rows that make them there: the same up to float32's rounding.
        assert!((kept - remade).abs() < 1e-2 * kept, "{kept} {remade}");
    }
}

#[test]
fn the_output_is_a_whole_model_directory() {
    let model = TinyModel::new("llama");
    fs::write(model.path("chat_template.jinja"), "{{ messages }}\u{2028}").unwrap();
    fs::write(model.path("LICENSE"), [0u8, 255, 10]).unwrap();
    quantize(&model, &["--max-shard-size", "20kB"], "AWQ-4bit");
    let output = model.path("AWQ-4bit");
    for name in ["tokenizer.json", "chat_template.jinja", "LICENSE"] {
        assert_eq!(
            fs::read(output.join(name)).unwrap(),
            fs::read(model.path(name)).unwrap(),
            "{name}"
        );
    }
    let config = json_file(&output.join("config.json"));
    assert_eq!(config["architectures"][0], "LlamaForCausalLM");
    assert_eq!(config["torch_dtype"], "float16");
    assert_eq!(config["quantization_config"]["quant_method"], "awq");
    assert_eq!(config["quantization_config"]["zero_point"], true);
    assert_eq!(
        config["quantization_config"],
        json_file(&output.join("quantize_config.json"))
    );
    let index = json_file(&output.join("model.safetensors.index.json"));
    let shards: std::collections::BTreeSet<&str> = index["weight_map"]
        .as_object()
        .unwrap()
        .values()
        .map(|file| file.as_str().unwrap())
        .collect();
    assert!(shards.len() > 1);
    assert!(shards.iter().all(|shard| output.join(shard).is_file()));

    let report = json_file(&output.join("quantization_report.json"));
    assert_eq!(report["linears"].as_array().unwrap().len(), 2 * 7);
    assert!(
        report["linears"]
            .as_array()
            .unwrap()
            .iter()
            .all(|linear| linear["relative_error"].as_f64().unwrap() > 0.0)
    );
    let ram = &report["memory"]["ram"];
    assert!(ram["peak"]["bytes"].as_u64().unwrap() > 1 << 20);
    assert!(ram["peak"]["seconds"].as_f64().unwrap() <= report["seconds"].as_f64().unwrap() + 1.0);
    assert_ne!(ram["peak"]["stage"], "");
    assert!(ram["samples"].as_u64().unwrap() >= 2, "{ram}");
    assert_eq!(
        (&ram["failed"], &report["memory"]["interval_ms"]),
        (&0.into(), &50.into())
    );
    assert_eq!(
        report["memory"]["vram"].is_null(),
        report["device"] == "Cpu"
    );
    let log = fs::read_to_string(output.join("quantization_report.log")).unwrap();
    for words in [
        "peak VRAM",
        "peak RAM",
        "model.layers.1.mlp.down_proj",
        "scale",
        "group size 32",
    ] {
        assert!(log.contains(words), "no {words:?} in\n{log}");
    }
    let hidden = model
        .listing()
        .into_iter()
        .filter(|name| name.contains("partial"))
        .count();
    assert_eq!(hidden, 0);
}

#[test]
fn the_same_run_writes_the_same_bytes() {
    let model = TinyModel::new("qwen2");
    for method in ["--awq", "--gptq"] {
        let write = |output: &str| {
            let output = model.path(output);
            let run = nibble(
                [
                    SMALL,
                    &[
                        method,
                        "--output",
                        output.to_str().unwrap(),
                        model.path_str(),
                    ],
                ]
                .concat(),
            );
            assert_eq!(run.code, 0, "{}", run.stderr);
            fs::read(output.join("model.safetensors")).unwrap()
        };
        assert!(
            write(&format!("first{method}")) == write(&format!("second{method}")),
            "{method}"
        );
    }
}

#[test]
fn conversations_are_calibrated_on_as_the_chat_template_writes_them() {
    let model = TinyModel::new("llama");
    let line = r#"{"messages": [{"role": "user", "content": "ae be cs"}, {"role": "assistant", "content": "dn es"}]}"#;
    let data = model.path("chats.jsonl");
    fs::write(&data, format!("{line}\n").repeat(100)).unwrap();
    let write = |template: Option<&str>| {
        if let Some(template) = template {
            fs::write(model.path("chat_template.jinja"), template).unwrap();
        }
        let args = [
            "--gptq",
            "--overwrite",
            "--calib-data",
            data.to_str().unwrap(),
        ];
        let run = nibble([SMALL, &args, &[model.path_str()]].concat());
        assert_eq!(run.code, 0, "{}", run.stderr);
        let output = model.path("GPTQ-8bit");
        let report = json_file(&output.join("quantization_report.json"));
        let weights = fs::read(output.join("model.safetensors")).unwrap();
        (weights, report["warnings"].to_string())
    };
    let (plain, _) = write(None);
    let (written, warnings) = write(Some(
        "{% for m in messages %}z {{ m.content }} y {% endfor %}",
    ));
    assert!(written != plain);
    assert!(!warnings.contains("transcripts"), "{warnings}");
    // A template that cannot be used is told, and conversations are what they are without one.
    let (broken, warnings) = write(Some("\n{{ raise_exception('never') }}"));
    assert!(broken == plain);
    assert!(
        warnings.contains("plain transcripts") && warnings.contains("chat_template.jinja:2: never"),
        "{warnings}"
    );
}

#[test]
fn a_stale_partial_directory_is_replaced() {
    let model = TinyModel::new("llama");
    let stale = model.path(".GPTQ-8bit.partial");
    fs::create_dir(&stale).unwrap();
    fs::write(stale.join("model.safetensors"), "half").unwrap();
    quantize(&model, &["--gptq"], "GPTQ-8bit");
    assert!(!stale.exists());
}

#[test]
fn a_written_config_can_be_replayed() {
    let model = TinyModel::new("llama");
    quantize(&model, &["--gptq", "--bits", "3"], "GPTQ-3bit");
    let config = model.path("GPTQ-3bit/quantize_config.json");
    let output = model.path("replayed");
    let run = nibble([
        "--quant_config",
        config.to_str().unwrap(),
        "--seq_len=24",
        "--num_samples=8",
        "--output",
        output.to_str().unwrap(),
        model.path_str(),
    ]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    let weights = |dir: &str| fs::read(model.path(dir).join("model.safetensors")).unwrap();
    assert!(weights("replayed") == weights("GPTQ-3bit"));
}

#[test]
fn a_dry_run_writes_nothing_and_names_the_runtimes() {
    let model = TinyModel::new("llama");
    let before = model.listing();
    let run = nibble([
        "--dry-run",
        "--gptq",
        "--asym",
        "--group-size",
        "32",
        model.path_str(),
    ]);
    assert_eq!(run.code, 0, "{}", run.stderr);
    assert!(
        run.stdout.contains("vLLM") && run.stdout.contains("does not load"),
        "{}",
        run.stdout
    );
    assert_eq!(model.listing(), before);
}

#[test]
fn other_dtypes_and_layouts_of_the_same_model_give_the_same_answer() {
    let whole = TinyModel::new("llama");
    let reference = kl(&quantize(
        &whole,
        &["--gptq", "--bits", "4", "--dtype", "float32"],
        "GPTQ-4bit",
    ));
    let sharded = TinyModel::new("llama");
    sharded.shard_in_two();
    let found = kl(&quantize(
        &sharded,
        &["--gptq", "--bits", "4", "--dtype", "float32"],
        "GPTQ-4bit",
    ));
    assert_eq!(reference.to_bits(), found.to_bits());
}

#[test]
fn inspect_and_generate_read_both_kinds() {
    let model = TinyModel::new("llama");
    quantize(&model, &["--gptq"], "GPTQ-8bit");
    let quantized = model.path("GPTQ-8bit");
    for (dir, quantization) in [
        (model.path_str(), Value::Null),
        (quantized.to_str().unwrap(), "GptqV1".into()),
    ] {
        let run = nibble(["inspect", "--json", dir]);
        let found: Value = serde_json::from_str(&run.stdout).unwrap();
        assert_eq!(found["model_type"], "llama");
        assert_eq!(found["missing_tensors"], 0);
        match quantization.as_str() {
            None => assert!(found["quantization"].is_null()),
            Some(name) => assert!(found["quantization"].as_str().unwrap().contains(name)),
        }
        let said = nibble(["generate", dir, "--prompt", "a b c", "--max-tokens", "5"]);
        assert_eq!(said.code, 0, "{}", said.stderr);
        // The test's tokenizer drops the white space.
        assert!(
            said.stdout.starts_with("abc") && said.stdout.trim().len() >= 3 + 5,
            "{}",
            said.stdout
        );
    }
}
