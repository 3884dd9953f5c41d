use std::fs;
use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::families::configurations;
use crate::support::{Finished, TinyModel, command, json_file, nibble};

/// A run on `model`, with so many windows, into `output`.
fn args<'a>(
    model: &'a TinyModel,
    method: &'a str,
    samples: &'a str,
    output: &'a str,
) -> Vec<&'a str> {
    let common = ["--group-size", "-1", "--seq-len", "24", "--overwrite"];
    let own = [
        method,
        "--num-samples",
        samples,
        "--output",
        output,
        model.path_str(),
    ];
    [&common[..], &own].concat()
}

/// Starts a run into `output` and sends it `signal` as soon as a layer is finished; what it left, unless it was the faster one.
pub fn interrupted(args: &[&str], output: &Path, signal: Signal) -> Option<Finished> {
    let name = output.file_name().unwrap().to_str().unwrap();
    let journal = output.with_file_name(format!(".{name}.partial/journal.jsonl"));
    let child = command(args).stderr(Stdio::piped()).spawn().unwrap();
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    let waiting = std::thread::spawn(move || child.wait_with_output().unwrap());
    while !waiting.is_finished() {
        let lines = fs::read_to_string(&journal).unwrap_or_default();
        if lines.contains('\n') {
            // It may have ended meanwhile.
            let _ = kill_process(pid, signal);
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
    let output = waiting.join().unwrap();
    let stderr = String::from_utf8(output.stderr).unwrap();
    let code = output.status.code().unwrap_or(-1);
    (code != 0).then_some(Finished {
        code,
        stdout: String::new(),
        stderr,
    })
}

/// Lets a run of `config` be interrupted and go on; the directories of a run in one piece and of this one, and the latter's log.
fn in_two_pieces(
    model: &TinyModel,
    name: &str,
    method: &str,
    signal: Signal,
) -> (Finished, Finished) {
    let [whole, pieces] = ["whole", "pieces"].map(|output| model.path(output));
    // More windows until the signal is fast enough.
    for samples in ["100", "400", "1600", "6400"] {
        let run = args(model, method, samples, pieces.to_str().unwrap());
        let Some(first) = interrupted(&run, &pieces, signal) else {
            continue;
        };
        let second = nibble(&run);
        assert_eq!(second.code, 0, "{name}: {}", second.stderr);
        let run = nibble(args(model, method, samples, whole.to_str().unwrap()));
        assert_eq!(run.code, 0, "{name}: {}", run.stderr);
        return (first, second);
    }
    panic!("{name}: no run was slow enough");
}

fn report(model: &TinyModel, output: &str) -> Value {
    json_file(&model.path(output).join("quantization_report.json"))
}

fn configuration(name: &str) -> TinyModel {
    let found = configurations().into_iter().find(|found| found.0 == name);
    TinyModel::of(&found.unwrap_or_else(|| panic!("no {name}")).1)
}

/// Of each kind of layer one.
const FAMILIES: [&str; 9] = [
    "llama_tied",
    "gpt2",
    "mllama",
    "deepseek_v3",
    "gpt_oss",
    "qwen3_moe",
    "qwen3_next",
    "falcon_h1",
    "gemma4_text_everything",
];

fn weights(model: &TinyModel, output: &str) -> Vec<u8> {
    fs::read(model.path(output).join("model.safetensors")).unwrap()
}

/// The names of a report's linears, and their relative errors.
fn linears(report: &Value) -> Vec<(&str, f64)> {
    let linears = report["linears"].as_array().unwrap().iter();
    let linears = linears.map(|linear| {
        let error = linear["relative_error"].as_f64().unwrap();
        (linear["name"].as_str().unwrap(), error)
    });
    linears.collect()
}

#[test]
fn gptq_goes_on_as_if_nothing_had_happened() {
    for name in FAMILIES {
        let model = configuration(name);
        let (_, second) = in_two_pieces(&model, name, "--gptq", Signal::KILL);
        assert!(
            second.stderr.contains("layers are finished"),
            "{}",
            second.stderr
        );
        assert!(
            weights(&model, "whole") == weights(&model, "pieces"),
            "{name}"
        );
        let (whole, pieces) = (report(&model, "whole"), report(&model, "pieces"));
        assert!(pieces["resumed_layers"].as_u64().unwrap() > 0);
        assert_eq!(whole["resumed_layers"], 0);
        assert_eq!(linears(&whole), linears(&pieces), "{name}");
        assert!(!model.path(".pieces.partial").exists());
    }
}

/// In one piece a scale that is folded into rows divides what these rows had made before, and a router runs in float32; in two the
/// rows are divided themselves, and the router was rounded, which sends a few tokens to other experts.
#[test]
fn awq_goes_on_but_for_rounding() {
    for name in FAMILIES {
        let model = configuration(name);
        in_two_pieces(&model, name, "--awq", Signal::KILL);
        let (whole, pieces) = (report(&model, "whole"), report(&model, "pieces"));
        let (whole, pieces) = (linears(&whole), linears(&pieces));
        assert_eq!(whole.len(), pieces.len());
        let mut sum = 0.0;
        for (whole, pieces) in whole.iter().zip(&pieces) {
            assert_eq!(whole.0, pieces.0);
            let change = pieces.1 / whole.1 - 1.0;
            // Another candidate of a search may win by a hair.
            assert!(change.abs() < 0.2, "{name}, {}: {change:.1e}", whole.0);
            sum += change;
        }
        let mean = sum / whole.len() as f64;
        assert!(mean.abs() < 0.005, "{name}: {mean:.1e}");
    }
}

#[test]
fn a_run_with_other_settings_neither_goes_on_nor_destroys_it() {
    let model = TinyModel::new("llama");
    let output = model.path("pieces");
    let run = args(&model, "--gptq", "1600", output.to_str().unwrap());
    let first = interrupted(&run, &output, Signal::TERM).expect("a run that takes its time");
    assert_eq!(first.code, 128 + 15, "{}", first.stderr);
    assert!(
        first.stderr.contains("ended by signal 15"),
        "{}",
        first.stderr
    );
    assert!(first.stderr.contains("goes on"), "{}", first.stderr);

    let other = [&run[..], &["--bits", "3"]].concat();
    let refused = nibble(&other);
    assert_eq!(refused.code, 3, "{}", refused.stderr);
    for words in ["unfinished run with other bits;", "--restart"] {
        assert!(refused.stderr.contains(words), "{}", refused.stderr);
    }
    assert!(model.path(".pieces.partial").exists() && !output.exists());

    let restarted = nibble([&other[..], &["--restart"]].concat());
    assert_eq!(restarted.code, 0, "{}", restarted.stderr);
    assert!(!restarted.stderr.contains("layers are finished"));
    assert_eq!(report(&model, "pieces")["settings"]["bits"], 3);
    assert!(!model.path(".pieces.partial").exists());
}

#[test]
fn a_run_that_failed_behind_its_last_layer_only_ends() {
    let model = TinyModel::new("llama");
    let [whole, pieces] = ["whole", "pieces"].map(|output| model.path(output));
    let run = |output: &Path| nibble(args(&model, "--awq", "8", output.to_str().unwrap()));
    assert_eq!(run(&whole).code, 0);
    // A file to be copied, whose target was removed from a cache.
    let broken = model.path("vocab.json");
    std::os::unix::fs::symlink("nowhere", &broken).unwrap();
    let failed = run(&pieces);
    assert_ne!(failed.code, 0);
    assert!(failed.stderr.contains("vocab.json"), "{}", failed.stderr);
    fs::remove_file(broken).unwrap();
    let ended = run(&pieces);
    assert_eq!(ended.code, 0, "{}", ended.stderr);
    assert_eq!(report(&model, "pieces")["resumed_layers"], 2);
    assert!(weights(&model, "whole") == weights(&model, "pieces"));
}
