use std::fs;

use crate::support::{TinyModel, nibble};

const USAGE: i32 = 2;
const INPUT: i32 = 3;
const RESOURCE: i32 = 4;

/// Runs on a model that `damage` has touched: the exit code, the words of the message, and no output directory.
fn check(damage: impl FnOnce(&TinyModel), args: &[&str], code: i32, words: &[&str]) {
    let model = TinyModel::new("llama");
    damage(&model);
    let before = model.listing();
    let run = nibble(args.iter().copied().chain([model.path_str()]));
    let message = run
        .stderr
        .lines()
        .filter(|line| line.contains("ERROR"))
        .collect::<Vec<_>>()
        .join("\n");
    assert_eq!(run.code, code, "{}", run.stderr);
    for word in words {
        assert!(message.contains(word), "no {word:?} in {message}");
    }
    assert_eq!(message.lines().count(), 1, "not one line: {message}");
    assert!(!run.stderr.contains("panicked"), "{}", run.stderr);
    assert_eq!(model.listing(), before, "something was left behind");
}

const SMALL: &[&str] = &[
    "--group-size",
    "32",
    "--seq-len",
    "16",
    "--num-samples",
    "4",
];

#[test]
fn no_such_directory() {
    let run = nibble(["/no/such/model"]);
    assert_eq!(run.code, INPUT);
    assert!(run.stderr.contains("/no/such/model"), "{}", run.stderr);
}

#[test]
fn no_config() {
    check(
        |model| fs::remove_file(model.path("config.json")).unwrap(),
        SMALL,
        INPUT,
        &["config.json"],
    );
}

#[test]
fn unknown_model_type() {
    check(
        |model| model.edit_config("model_type", "llamma".into()),
        SMALL,
        INPUT,
        &["llamma", "nearest are llama, "],
    );
}

#[test]
fn missing_shard() {
    check(
        |model| {
            model.shard_in_two();
            fs::remove_file(model.path("model-00002-of-00002.safetensors")).unwrap();
        },
        SMALL,
        INPUT,
        &["model-00002-of-00002.safetensors"],
    );
}

#[test]
fn truncated_shard() {
    check(
        |model| {
            let file = fs::File::options()
                .write(true)
                .open(model.path("model.safetensors"))
                .unwrap();
            file.set_len(file.metadata().unwrap().len() - 10).unwrap();
        },
        SMALL,
        INPUT,
        &["model.safetensors", "truncated", "download it again"],
    );
}

#[test]
fn wrong_shape() {
    check(
        |model| model.edit_config("intermediate_size", 64.into()),
        SMALL,
        INPUT,
        &["mlp.gate_proj.weight", "[96, 64]", "[64, 64]"],
    );
}

#[test]
fn nan_in_a_weight() {
    for (name, args) in [
        ("model.layers.1.mlp.up_proj.weight", &["--awq"][..]),
        ("model.layers.1.mlp.up_proj.weight", &["--gptq"]),
        ("model.norm.weight", &["--awq"]),
    ] {
        check(
            |model| model.poison(name, f32::NAN),
            &[SMALL, args].concat(),
            INPUT,
            &[name, "model.safetensors"],
        );
    }
}

#[test]
fn a_value_beyond_float16() {
    let name = "model.embed_tokens.weight";
    check(
        |model| model.poison(name, 1e6),
        SMALL,
        INPUT,
        &[name, "float16"],
    );
}

#[test]
fn too_little_memory() {
    check(
        |_| {},
        &[SMALL, &["--memory", "10kB"]].concat(),
        RESOURCE,
        &["the run needs", "lower --num-samples", "--memory"],
    );
}

#[test]
fn missing_tokenizer() {
    check(
        |model| fs::remove_file(model.path("tokenizer.json")).unwrap(),
        SMALL,
        INPUT,
        &["tokenizer.json"],
    );
}

#[test]
fn too_little_calibration_text() {
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("short.txt");
    fs::write(&text, "a b c").unwrap();
    let args = [SMALL, &["--calib-data", text.to_str().unwrap()]].concat();
    check(|_| {}, &args, INPUT, &["3 tokens", "--seq-len"]);
}

#[test]
fn existing_output() {
    check(
        |model| fs::create_dir(model.path("AWQ-4bit")).unwrap(),
        SMALL,
        INPUT,
        &["AWQ-4bit", "--overwrite"],
    );
}

#[test]
fn group_size_that_does_not_divide() {
    // Inputs of 64 and 96 columns.
    check(|_| {}, &["--group-size", "64"], INPUT, &["64", "96", "32"]);
}

#[test]
fn bits_that_the_method_lacks() {
    check(|_| {}, &["--bits", "8"], USAGE, &["AWQ takes 4 bits"]);
    check(|_| {}, &["--gptq", "--bits", "5"], USAGE, &["2, 3, 4 or 8"]);
}

#[test]
fn both_methods() {
    let run = nibble(["--awq", "--gptq", "model"]);
    assert_eq!(run.code, USAGE);
    assert!(run.stderr.contains("cannot be used with"), "{}", run.stderr);
}

#[test]
fn a_quantized_model_is_not_quantized_again() {
    let model = TinyModel::new("llama");
    assert_eq!(
        nibble(SMALL.iter().copied().chain([model.path_str()])).code,
        0
    );
    let output = model.path("AWQ-4bit");
    let run = nibble(SMALL.iter().copied().chain([output.to_str().unwrap()]));
    assert_eq!(run.code, INPUT);
    assert!(run.stderr.contains("quantized already"), "{}", run.stderr);
}

#[test]
fn cuda_that_is_not_there() {
    if nibble([
        "--dry-run",
        "--device",
        "cuda",
        TinyModel::new("llama").path_str(),
    ])
    .code
        == 0
    {
        eprintln!("SKIPPED: this machine has a GPU");
        return;
    }
    check(|_| {}, &["--device", "cuda"], RESOURCE, &["no CUDA"]);
}
