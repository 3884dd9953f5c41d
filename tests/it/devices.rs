use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use nibble::device::monitor::{Monitor, Readings};
use nibble::report::text;
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{Finished, TinyModel, finished};

const RESOURCE: i32 = 4;

/// A directory with libraries that the program finds before those of the machine.
struct Libraries(TempDir);

impl Libraries {
    fn new() -> Self {
        Self(tempfile::tempdir().unwrap())
    }

    /// What `tests/stubs/SOURCE` makes.
    fn built(self, name: &str, source: &str) -> Self {
        let source = Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("tests/stubs")
            .join(source);
        let compiler = std::env::var("CC").unwrap_or("cc".into());
        let mut compile = Command::new(compiler);
        compile.args(["-shared", "-fPIC", "-o"]);
        compile.arg(self.0.path().join(name)).arg(source);
        assert!(compile.status().unwrap().success());
        self
    }

    /// A library that cannot be loaded: the program ends its search there.
    fn broken(self, name: &str) -> Self {
        fs::write(self.0.path().join(name), "").unwrap();
        self
    }

    /// Both of the driver, and neither of libtorch's CUDA part.
    fn driver() -> Self {
        Self::new()
            .built("libcuda.so.1", "cuda.c")
            .built("libnvidia-ml.so.1", "nvml.c")
            .broken("libtorch_cuda.so")
    }

    /// Makes `command` find them.
    fn give_to(&self, command: &mut Command) {
        let others = std::env::var("LD_LIBRARY_PATH").unwrap_or_default();
        let path = format!("{}:{others}", self.0.path().display());
        command.env("LD_LIBRARY_PATH", path);
    }

    /// Runs the program with them and with `variables`.
    fn nibble(&self, args: &[&str], variables: &[(&str, &str)]) -> Finished {
        let mut command = Command::new(env!("CARGO_BIN_EXE_nibble"));
        command.args(args).envs(variables.iter().copied());
        self.give_to(&mut command);
        finished(command)
    }

    /// What `nibble devices` says, as text and as JSON.
    fn devices(&self, variables: &[(&str, &str)]) -> (String, Value) {
        let text = self.nibble(&["devices"], variables);
        let json = self.nibble(&["devices", "--json"], variables);
        assert_eq!((text.code, json.code), (0, 0), "{}", text.stderr);
        (text.stdout, serde_json::from_str(&json.stdout).unwrap())
    }
}

/// `nibble devices` names the CPU as what computes, and the `words` of the reason; a run on a GPU ends with the same reason.
fn refused(libraries: &Libraries, variables: &[(&str, &str)], words: &[&str]) -> Value {
    let (text, json) = libraries.devices(variables);
    let problem = json["cuda"]["problem"].as_str().unwrap();
    for word in words {
        assert!(problem.contains(word), "no {word:?} in {problem}");
    }
    assert!(text.contains(problem), "{text}");
    assert_eq!(json["auto"]["device"], "cpu");

    let model = TinyModel::new("llama");
    let args = ["--dry-run", "--device", "cuda", model.path_str()];
    let run = libraries.nibble(&args, variables);
    assert_eq!(run.code, RESOURCE, "{}", run.stderr);
    assert!(run.stderr.contains(problem), "{}", run.stderr);
    // Where no device was asked for, the CPU computes, and that is said.
    let run = libraries.nibble(
        &["--dry-run", "--group-size", "32", model.path_str()],
        variables,
    );
    assert_eq!(run.code, 0, "{}", run.stderr);
    let said = format!("computing on the CPU: {problem}");
    assert!(run.stderr.contains(&said), "{}", run.stderr);
    json
}

#[test]
fn what_the_cpu_is_is_said() {
    let libraries = Libraries::new();
    let (text, json) =
        libraries.devices(&[("NIBBLE_KERNELS", "portable"), ("CUDA_VISIBLE_DEVICES", "")]);
    assert!(text.contains("kernels for portable"), "{text}");
    assert!(text.contains("auto takes   cpu, in "), "{text}");
    assert_eq!(json["cpu"]["kernels"], "portable");
    let [free, limit] = ["free_bytes", "limit_bytes"].map(|key| json["cpu"][key].as_u64().unwrap());
    assert!(free > 1 << 20 && free <= limit, "{json}");
    let directory = PathBuf::from(json["libtorch"]["directory"].as_str().unwrap());
    assert!(directory.join("libtorch_cpu.so").is_file(), "{json}");
}

#[test]
fn no_driver() {
    let libraries = Libraries::new()
        .broken("libcuda.so.1")
        .broken("libnvidia-ml.so.1");
    let json = refused(
        &libraries,
        &[],
        &["driver is not installed", "libcuda.so.1", "--gpus all"],
    );
    let nvml = json["nvml"]["problem"].as_str().unwrap();
    assert!(
        nvml.starts_with('/') && nvml.contains("libnvidia-ml.so.1"),
        "{nvml}"
    );
    assert_eq!(json["cuda"]["gpus"], Value::Array(Vec::new()));
}

#[test]
fn a_driver_that_says_no() {
    let libraries = Libraries::driver();
    for (code, words) in [
        ("100", ["CUDA_ERROR_NO_DEVICE", "CUDA_VISIBLE_DEVICES"]),
        ("803", ["CUDA_ERROR_SYSTEM_DRIVER_MISMATCH", "restart"]),
        ("999", ["CUDA_ERROR_UNKNOWN", "nvidia-smi"]),
        ("12345", ["no name", "nvidia-smi"]),
    ] {
        let json = refused(
            &libraries,
            &[("STUB_CUDA_INIT", code)],
            &[code, words[0], words[1]],
        );
        assert_eq!(json["cuda"]["driver"], "13.0");
        // NVML shows what CUDA does not.
        assert_eq!(json["nvml"]["gpus"].as_array().unwrap().len(), 2);
    }
    refused(
        &libraries,
        &[("STUB_CUDA_GPUS", "")],
        &["shows no GPU", "CUDA_VISIBLE_DEVICES"],
    );
}

#[test]
fn a_driver_that_is_too_old() {
    let libraries = Libraries::driver();
    let (_, json) = libraries.devices(&[]);
    let built_for = json["libtorch"]["cuda"]
        .as_str()
        .expect("the pinned libtorch is built for CUDA");
    let words = ["too old", "runs CUDA 4.2", built_for, "update the driver"];
    refused(&libraries, &[("STUB_CUDA_VERSION", "4020")], &words);
}

#[test]
fn a_gpu_that_is_too_old_and_one_that_is_not_there() {
    let libraries = Libraries::driver();
    let words = ["Stub A (cuda:0)", "compute capability 7.0", "needs 7.5"];
    refused(&libraries, &[("STUB_CUDA_GPUS", "AB")], &words);
    let model = TinyModel::new("llama");
    for (device, words) in [
        ("cuda:1", "Stub A (cuda:1) has compute capability 7.0"),
        (
            "cuda:2",
            "no device cuda:2: the last of the 2 GPUs is cuda:1",
        ),
    ] {
        let run = libraries.nibble(&["--device", device, model.path_str()], &[]);
        assert_eq!(run.code, RESOURCE, "{}", run.stderr);
        assert!(run.stderr.contains(words), "{}", run.stderr);
    }
}

#[test]
fn a_libtorch_without_cuda() {
    let libraries = Libraries::driver();
    let words = [
        "libtorch_cuda.so",
        "make libtorch CUDA=1",
        "image with CUDA",
    ];
    // A newer driver of the same CUDA and a much newer one are new enough.
    for version in ["13010", "99000"] {
        refused(&libraries, &[("STUB_CUDA_VERSION", version)], &words);
    }
}

#[test]
fn a_libtorch_that_counts_no_gpu() {
    // A library by that name that registers nothing.
    let libraries = Libraries::driver();
    fs::remove_file(libraries.0.path().join("libtorch_cuda.so")).unwrap();
    let libraries = libraries.built("libtorch_cuda.so", "cuda.c");
    refused(&libraries, &[], &["the driver shows 2 GPUs, libtorch none"]);
}

#[test]
fn gpus_are_named_in_cudas_order_with_nvmls_numbers() {
    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::write(&state, "3000 -1").unwrap();
    let state = ("STUB_NVML_STATE", state.to_str().unwrap());
    let libraries = Libraries::driver();
    let (text, json) = libraries.devices(&[state]);
    let lines: Vec<&str> = text
        .lines()
        .filter(|line| line.starts_with("GPU"))
        .collect();
    for (line, words) in lines.iter().zip([
        [
            "cuda:0, Stub B, compute capability 9.0",
            "0B:00.0",
            "2.9 GiB of 7.8 GiB",
        ],
        [
            "cuda:1, Stub A, compute capability 7.0",
            "0A:00.0",
            "1000.0 MiB of 7.8 GiB",
        ],
    ]) {
        assert!(words.iter().all(|word| line.contains(word)), "{line}");
    }
    assert_eq!(lines.len(), 2);
    assert!(
        text.contains("driver       580.01, runs CUDA 13.0"),
        "{text}"
    );
    assert_eq!(
        json["cuda"]["gpus"][0]["uuid"],
        "00000000-0000-0000-0000-00000000000b"
    );
    assert_eq!(
        json["nvml"]["gpus"][1]["uuid"],
        "GPU-00000000-0000-0000-0000-00000000000b"
    );

    // As with CUDA_VISIBLE_DEVICES=1 and CUDA_DEVICE_ORDER=PCI_BUS_ID.
    let (text, _) = libraries.devices(&[("STUB_CUDA_GPUS", "B")]);
    assert!(text.contains("GPU          cuda:0, Stub B"), "{text}");
    assert!(
        text.contains("GPU          not shown by CUDA, Stub A"),
        "{text}"
    );
}

#[test]
fn an_nvml_that_fails_is_no_reason_to_fail() {
    let libraries = Libraries::driver();
    let (text, json) = libraries.devices(&[("STUB_NVML_INIT", "9")]);
    assert!(text.contains("NVML         shows nothing: "), "{text}");
    assert_eq!(json["cuda"]["gpus"].as_array().unwrap().len(), 2);

    let dir = tempfile::tempdir().unwrap();
    let state = dir.path().join("state");
    fs::write(&state, "error 15").unwrap();
    let (text, json) = libraries.devices(&[("STUB_NVML_STATE", state.to_str().unwrap())]);
    let lost = json["nvml"]["gpus"][1]["error"].as_str().unwrap();
    assert!(lost.contains("fell off the bus"), "{lost}");
    assert!(text.contains(&format!("memory unknown: {lost}")), "{text}");
}

/// What a process that finds the stub of NVML does: it watches GPU B, whose state is a file.
struct Watched {
    state: PathBuf,
    monitor: Monitor,
}

impl Watched {
    /// Readings in which B has been in this state from one reading to the next.
    fn after(&self, state: &str) -> Readings {
        let next = self.state.with_extension("next");
        fs::write(&next, state).unwrap();
        fs::rename(next, &self.state).unwrap();
        let count = || {
            let readings = self.monitor.live().readings();
            let device = &readings.vram.as_ref().unwrap().device;
            (device.samples + device.failed, readings)
        };
        let (before, _) = count();
        let start = Instant::now();
        loop {
            let (now, readings) = count();
            // The reading that was under way may have seen the state before.
            if now >= before + 2 {
                return readings;
            }
            assert!(start.elapsed() < Duration::from_secs(30), "no readings");
            std::thread::yield_now();
        }
    }
}

/// Runs this very test again as a process that finds the stub, in which `inside` gets the path of B's state.
fn with_nvml(test: &str, inside: impl FnOnce(PathBuf)) {
    with_libraries(&Libraries::driver(), test, inside);
}

/// [`with_nvml`] with other libraries.
fn with_libraries(libraries: &Libraries, test: &str, inside: impl FnOnce(PathBuf)) {
    const STATE: &str = "STUB_NVML_STATE";
    if let Ok(state) = std::env::var(STATE) {
        return inside(state.into());
    }
    let state = libraries.0.path().join("state");
    fs::write(&state, "100 -1").unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", test, "--nocapture"])
        .env(STATE, &state);
    libraries.give_to(&mut command);
    let run = finished(command);
    assert_eq!(run.code, 0, "{}{}", run.stdout, run.stderr);
    assert!(run.stdout.contains("1 passed"), "{}", run.stdout);
}

const B: &str = "00000000-0000-0000-0000-00000000000b";
const MIB: u64 = 1 << 20;

#[test]
fn vram_is_followed_until_the_gpu_vanishes() {
    with_nvml(
        "devices::vram_is_followed_until_the_gpu_vanishes",
        |state| {
            let monitor = Monitor::start(Some(B), Duration::from_millis(1), Instant::now());
            let watched = Watched { state, monitor };
            watched.monitor.enter("layer 0, attention inputs");
            watched.after("2000 700");
            watched.monitor.enter("layer 0, MLP inputs");
            let live = watched.after("1500 900").vram.unwrap();
            assert_eq!(live.device.current_bytes, Some(1500 * MIB));
            watched.monitor.enter("layer 0, MLP output");
            watched.after("1000 600");
            watched.after("error 15");

            let readings = watched.monitor.finish();
            let vram = readings.vram.as_ref().unwrap();
            assert_eq!((&vram.gpu[..], vram.total_bytes), ("Stub B", 8000 * MIB));
            let peak = |series: &nibble::device::monitor::Series| {
                let peak = series.peak.clone().unwrap();
                assert!(peak.seconds > 0.0 && peak.seconds < 60.0);
                (peak.bytes / MIB, peak.stage)
            };
            assert_eq!(
                peak(&vram.device),
                (2000, "layer 0, attention inputs".to_owned())
            );
            assert_eq!(peak(&vram.process), (900, "layer 0, MLP inputs".to_owned()));
            assert!(vram.device.samples >= 4 && vram.device.failed >= 2);
            let note = readings.note.as_deref().unwrap();
            assert!(
                note.contains("failed") && note.contains("fell off the bus"),
                "{note}"
            );

            let lines = text::memory_lines(&readings);
            for words in [
                "peak VRAM                   900.0 MiB at ",
                "peak VRAM of all processes  2.0 GiB at ",
                "Stub B of 7.8 GiB",
                "one every 1 ms",
                "in layer 0, MLP inputs",
            ] {
                assert!(lines.contains(words), "no {words:?} in\n{lines}");
            }
        },
    );
}

#[test]
fn a_process_that_nvml_does_not_show_is_unknown() {
    with_nvml(
        "devices::a_process_that_nvml_does_not_show_is_unknown",
        |state| {
            let monitor = Monitor::start(Some(B), Duration::from_millis(1), Instant::now());
            let watched = Watched { state, monitor };
            watched.after("3000 -1");
            let readings = watched.monitor.finish();
            let vram = readings.vram.as_ref().unwrap();
            assert_eq!((vram.process.samples, vram.device.failed), (0, 0));
            assert_eq!(vram.device.peak.as_ref().unwrap().bytes, 3000 * MIB);
            assert!(readings.note.is_none());
            let lines = text::memory_lines(&readings);
            assert!(lines.contains("does not show this process"), "{lines}");
        },
    );
}

#[test]
fn a_gpu_that_nvml_does_not_know_is_noted() {
    with_nvml("devices::a_gpu_that_nvml_does_not_know_is_noted", |_| {
        let uuid = "00000000-0000-0000-0000-00000000000c";
        let monitor = Monitor::start(Some(uuid), Duration::from_millis(1), Instant::now());
        let readings = monitor.finish();
        assert!(readings.vram.is_none());
        let note = readings.note.as_deref().unwrap();
        assert!(
            note.contains("was not measured") && note.contains(uuid),
            "{note}"
        );
        assert!(readings.ram.peak.is_some());
    });
}

#[test]
fn without_nvml_all_else_is_measured() {
    let libraries = Libraries::new().broken("libnvidia-ml.so.1");
    with_libraries(
        &libraries,
        "devices::without_nvml_all_else_is_measured",
        |_| {
            let monitor = Monitor::start(Some(B), Duration::from_millis(1), Instant::now());
            let readings = monitor.finish();
            let note = readings.note.as_deref().unwrap();
            assert!(
                note.contains("was not measured") && note.contains("libnvidia-ml.so.1"),
                "{note}"
            );
            assert!(readings.ram.peak.is_some());
            let lines = text::memory_lines(&readings);
            assert!(
                lines.contains("peak VRAM                   unknown"),
                "{lines}"
            );
        },
    );
}
