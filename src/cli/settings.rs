//! From what was asked to what will be done: every default and every rule about combinations lives here.

use std::path::{Path, PathBuf};
use std::time::Duration;

use regex::Regex;

use crate::device::Choice;
use crate::pack::{Format, Replay};
use crate::quant::{GroupSize, Scheme, gptq};

use super::{ActOrder, ComputeArgs, Dtype, QuantizeArgs};

const DEFAULT_MODEL: &str = "/models";
const DEFAULT_GROUP_SIZE: GroupSize = GroupSize::Columns(128);
const DEFAULT_DAMP: f64 = 0.01;

/// A request that contradicts itself or asks for what does not exist.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("no model given: name a model directory, or mount one at {DEFAULT_MODEL}")]
    NoModel,
    #[error("{method} takes {allowed} bits, not {bits}")]
    Bits {
        method: Method,
        allowed: &'static str,
        bits: u8,
    },
    #[error("group size {0} is not a positive number of columns or -1 (the whole row)")]
    GroupSize(i64),
    #[error(
        "--damp-percent {0} is not a fraction above 0 and below 1; the published value is 0.01"
    )]
    Damp(f64),
    #[error("{option} must be at least 1")]
    Zero { option: &'static str },
    #[error("--{option} {text:?} is not a size such as 5GB, 500MiB or 1000000")]
    Size { option: &'static str, text: String },
    #[error("--output {} is the model itself; choose another directory", .0.display())]
    OutputIsModel(PathBuf),
    #[error("--device {0:?} is not one of auto, cpu, cuda, cuda:N")]
    Device(String),
    #[error("--{option} belongs to GPTQ; add --gptq or leave it out")]
    GptqOnly { option: &'static str },
    #[error("--quant-config asks for {file}, the command line for {flag}; drop one of them")]
    MethodConflict { file: Method, flag: Method },
    #[error("--{option} {pattern} is found in no linear's name; they are like {example}")]
    NoSuchLinear {
        option: &'static str,
        pattern: String,
        example: String,
    },
    #[error("--quantize-vision rounds to 8 bits: take it with --gptq and 8 bits, or leave it out")]
    VisionBits,
    #[error("--quantize-vision: {model_type} has no vision tower that is known here; leave it out")]
    NoTower { model_type: String },
    #[error("--ignore and --only leave nothing to quantize; allow some linears, such as {example}")]
    NothingLeft { example: String },
    #[error("{path}: {message}")]
    QuantConfig { path: PathBuf, message: String },
}

/// The quantization method.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    Awq,
    Gptq,
}

impl Method {
    /// The format that the method's runtimes load. Asymmetric GPTQ goes out as v2, which can store every zero point: the
    /// runtimes that take it asymmetric at all read v2.
    fn format(self, symmetric: bool) -> Format {
        match (self, symmetric) {
            (Self::Awq, _) => Format::AwqGemm,
            (Self::Gptq, true) => Format::GptqV1,
            (Self::Gptq, false) => Format::GptqV2,
        }
    }

    fn of_format(format: Format) -> Self {
        match format {
            Format::AwqGemm => Self::Awq,
            Format::GptqV1 | Format::GptqV2 => Self::Gptq,
        }
    }
}

impl std::fmt::Display for Method {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Awq => "AWQ",
            Self::Gptq => "GPTQ",
        })
    }
}

/// What turns weights into codes.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Solver {
    /// Round to nearest: the baseline, in the format of the method that was named.
    Rtn,
    Awq,
    Gptq(gptq::Settings),
}

impl Solver {
    /// Whether channel scales are folded, so that a stage may change what an earlier one made.
    pub fn folds(self) -> bool {
        self == Self::Awq
    }

    /// GPTQ's settings, where it is GPTQ.
    pub fn gptq(self) -> Option<gptq::Settings> {
        match self {
            Self::Gptq(settings) => Some(settings),
            Self::Rtn | Self::Awq => None,
        }
    }
}

impl std::fmt::Display for Solver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Rtn => "RTN",
            Self::Awq => "AWQ",
            Self::Gptq(_) => "GPTQ",
        })
    }
}

/// A checked request to quantize.
#[derive(Debug, Clone)]
pub struct Settings {
    pub model: PathBuf,
    pub output: PathBuf,
    pub overwrite: bool,
    pub leftover: Leftover,
    pub solver: Solver,
    pub format: Format,
    pub scheme: Scheme,
    pub selection: Selection,
    pub seq_len: usize,
    pub num_samples: usize,
    /// Whether experts are calibrated on all tokens.
    pub moe_all_tokens: bool,
    pub batch_size: Option<usize>,
    /// Bytes of host memory that the run may take beyond libtorch's own; `None`: a share of what is free.
    pub memory: Option<u64>,
    /// The same of a GPU's memory.
    pub vram: Option<u64>,
    pub calib_data: Option<PathBuf>,
    pub seed: u64,
    pub compute: ComputeChoice,
    /// Between two readings of the memory in use.
    pub memory_interval: Duration,
    pub max_shard_bytes: u64,
    pub dry_run: bool,
}

/// What becomes of an interrupted run's finished layers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Leftover {
    Resume,
    Discard,
}

impl Settings {
    /// The same, with so many bytes of a GPU's memory to take.
    #[must_use]
    pub fn with_vram(&self, vram: Option<u64>) -> Self {
        Self {
            vram,
            ..self.clone()
        }
    }
}

/// Which linears are quantized, by regular expressions on their full names.
#[derive(Debug, Clone)]
pub struct Selection {
    /// Those stay in float that one of these is found in.
    pub ignore: Vec<Regex>,
    /// Where there are any, only those are quantized that one of these is found in.
    pub only: Vec<Regex>,
    /// Whether those of a vision tower are quantized too.
    pub vision: bool,
}

impl Selection {
    /// Whether the linear stays in float.
    pub fn leaves_in_float(&self, name: &str) -> bool {
        let found = |patterns: &[Regex]| patterns.iter().any(|pattern| pattern.is_match(name));
        found(&self.ignore) || !(self.only.is_empty() || found(&self.only))
    }

    /// All its expressions, each with its option's name.
    pub fn patterns(&self) -> impl Iterator<Item = (&'static str, &Regex)> {
        let ignore = self.ignore.iter().map(|pattern| ("ignore", pattern));
        ignore.chain(self.only.iter().map(|pattern| ("only", pattern)))
    }
}

/// Where to compute, before the machine was looked at.
#[derive(Debug, Clone)]
pub struct ComputeChoice {
    pub device: Choice,
    pub kind: Option<tch::Kind>,
    pub threads: usize,
}

impl Settings {
    /// Checks `args` and fills in the defaults; reads the file of `--quant-config`, and looks whether `/models` exists.
    pub fn resolve(args: QuantizeArgs) -> Result<Self, Error> {
        let model = args.model.or(args.model_flag);
        let model = model.or_else(|| {
            Path::new(DEFAULT_MODEL)
                .is_dir()
                .then(|| DEFAULT_MODEL.into())
        });
        let model = model.ok_or(Error::NoModel)?;
        let replay = match &args.quant_config {
            Some(path) => read_replay(path)?,
            None => Replay::default(),
        };

        let flag = match (args.awq, args.gptq) {
            (true, _) => Some(Method::Awq),
            (_, true) => Some(Method::Gptq),
            _ => None,
        };
        let replayed = replay.format.map(Method::of_format);
        let method = match (flag, replayed) {
            (Some(flag), Some(file)) if flag != file => {
                return Err(Error::MethodConflict { file, flag });
            }
            _ => flag.or(replayed).unwrap_or(Method::Awq),
        };
        let (default_bits, allowed, allowed_text): (u8, &[u8], _) = match method {
            Method::Awq => (4, &[4], "4"),
            Method::Gptq => (8, &[2, 3, 4, 8], "2, 3, 4 or 8"),
        };
        let bits = args.bits.or(replay.bits).unwrap_or(default_bits);
        if !allowed.contains(&bits) {
            return Err(Error::Bits {
                method,
                allowed: allowed_text,
                bits,
            });
        }
        if args.quantize_vision && (method, bits) != (Method::Gptq, 8) {
            return Err(Error::VisionBits);
        }
        let group_size = match args.group_size {
            None => replay.group_size.unwrap_or(DEFAULT_GROUP_SIZE),
            Some(-1) => GroupSize::WholeRow,
            Some(columns @ 1..) => GroupSize::Columns(columns as usize),
            Some(other) => return Err(Error::GroupSize(other)),
        };
        let symmetric = match (args.sym, args.asym) {
            (false, false) => replay.symmetric.unwrap_or(method == Method::Gptq),
            (symmetric, _) => symmetric,
        };
        if method == Method::Awq {
            let gptq_only = [
                ("act-order", args.act_order.is_some()),
                ("damp-percent", args.damp_percent.is_some()),
            ];
            if let Some((option, _)) = gptq_only.into_iter().find(|(_, given)| *given) {
                return Err(Error::GptqOnly { option });
            }
        }
        let damp = args
            .damp_percent
            .or(replay.damp_percent)
            .unwrap_or(DEFAULT_DAMP);
        if !(damp > 0.0 && damp < 1.0) {
            return Err(Error::Damp(damp));
        }
        let sizes = [
            ("--seq-len", Some(args.seq_len)),
            ("--num-samples", Some(args.num_samples)),
            ("--batch-size", args.batch_size),
            ("--vram-interval", Some(args.vram_interval)),
        ];
        if let Some((option, _)) = sizes.into_iter().find(|(_, size)| *size == Some(0)) {
            return Err(Error::Zero { option });
        }

        let size = |option, text: String| parse_size(&text).ok_or(Error::Size { option, text });
        let limit = |option, text: Option<String>| text.map(|text| size(option, text)).transpose();
        let solver = match method {
            _ if args.rtn => Solver::Rtn,
            Method::Awq => Solver::Awq,
            Method::Gptq => Solver::Gptq(gptq::Settings {
                act_order: act_order(args.act_order, &replay),
                damp,
                grid_fit: gptq::GridFit::Search,
            }),
        };
        let output = args
            .output
            .unwrap_or_else(|| model.join(format!("{solver}-{bits}bit")));
        if output == model
            || model
                .canonicalize()
                .is_ok_and(|model| output.canonicalize().is_ok_and(|output| output == model))
        {
            return Err(Error::OutputIsModel(output));
        }
        let format = method.format(symmetric);
        Ok(Self {
            output,
            model,
            overwrite: args.overwrite,
            leftover: if args.restart {
                Leftover::Discard
            } else {
                Leftover::Resume
            },
            solver,
            format,
            scheme: Scheme {
                bits,
                group_size,
                symmetric,
                min_zero_point: format.min_zero_point(symmetric),
            },
            selection: Selection {
                vision: args.quantize_vision,
                ignore: args.ignore,
                only: args.only,
            },
            seq_len: args.seq_len,
            num_samples: args.num_samples,
            moe_all_tokens: args.moe_all_tokens,
            batch_size: args.batch_size,
            memory: limit("memory", args.memory)?,
            vram: limit("vram", args.vram)?,
            calib_data: args.calib_data,
            seed: args.seed,
            compute: ComputeChoice::resolve(&args.compute)?,
            memory_interval: Duration::from_millis(args.vram_interval as u64),
            max_shard_bytes: size("max-shard-size", args.max_shard_size)?,
            dry_run: args.dry_run,
        })
    }
}

impl ComputeChoice {
    /// Checks the device's spelling, and finds the number of threads where none was given.
    pub fn resolve(args: &ComputeArgs) -> Result<Self, Error> {
        let device = if args.force_cpu {
            Choice::Cpu
        } else {
            args.device
                .parse()
                .map_err(|_| Error::Device(args.device.clone()))?
        };
        let kind = args.dtype.map(|dtype| match dtype {
            Dtype::Bfloat16 => tch::Kind::BFloat16,
            Dtype::Float16 => tch::Kind::Half,
            Dtype::Float32 => tch::Kind::Float,
        });
        let threads = match args.threads {
            Some(0) => {
                return Err(Error::Zero {
                    option: "--threads",
                });
            }
            Some(threads) => threads,
            None => crate::device::cpu::n_cores(),
        };
        Ok(Self {
            device,
            kind,
            threads,
        })
    }
}

/// The flag, else what the replayed file says, else the order that helps most and that every runtime loads.
fn act_order(flag: Option<ActOrder>, replay: &Replay) -> gptq::ActOrder {
    match flag {
        Some(ActOrder::None) => gptq::ActOrder::None,
        Some(ActOrder::Static) => gptq::ActOrder::Static,
        Some(ActOrder::GroupAware) => gptq::ActOrder::GroupAware,
        Some(ActOrder::DescAct) => gptq::ActOrder::DescAct,
        None => match (replay.desc_act, replay.static_groups) {
            (Some(true), Some(true)) => gptq::ActOrder::Static,
            (Some(true), _) => gptq::ActOrder::DescAct,
            _ => gptq::ActOrder::GroupAware,
        },
    }
}

fn read_replay(path: &Path) -> Result<Replay, Error> {
    let fail = |message: String| Error::QuantConfig {
        path: path.to_owned(),
        message,
    };
    let text = std::fs::read_to_string(path).map_err(|error| fail(error.to_string()))?;
    let json = serde_json::from_str(&text).map_err(|error| fail(format!("not JSON: {error}")))?;
    Replay::from_json(&json).map_err(|error| fail(error.to_string()))
}

/// Bytes of "5GB", "500 MiB", "1000"; decimal and binary units.
fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit: f64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1.0,
        "kb" | "k" => 1e3,
        "mb" | "m" => 1e6,
        "gb" | "g" => 1e9,
        "kib" => 1024.0,
        "mib" => 1024.0 * 1024.0,
        "gib" => 1024.0 * 1024.0 * 1024.0,
        _ => return None,
    };
    let bytes = number.parse::<f64>().ok()? * unit;
    (bytes >= 1.0).then_some(bytes as u64)
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    fn resolve(args: &[&str]) -> Result<Settings, Error> {
        let args = ["nibble", "m"].iter().chain(args);
        Settings::resolve(super::super::Cli::try_parse_from(args).unwrap().quantize)
    }

    #[test]
    fn published_defaults() {
        let awq = resolve(&[]).unwrap();
        assert_eq!(
            (awq.solver, awq.scheme.bits, awq.scheme.symmetric),
            (Solver::Awq, 4, false)
        );
        assert_eq!(awq.output, Path::new("m/AWQ-4bit"));
        assert_eq!(awq.scheme.min_zero_point, 0);
        let gptq = resolve(&["--gptq"]).unwrap();
        assert_eq!((gptq.scheme.bits, gptq.scheme.symmetric), (8, true));
        let solver = gptq.solver.gptq().unwrap();
        assert_eq!(solver.act_order, gptq::ActOrder::GroupAware);
        assert!((solver.damp - 0.01).abs() < 1e-12);
        assert_eq!(gptq.output, Path::new("m/GPTQ-8bit"));
        assert_eq!(gptq.scheme.group_size, GroupSize::Columns(128));
        assert_eq!(gptq.format, Format::GptqV1);
        assert_eq!(
            resolve(&["--gptq", "--asym"]).unwrap().format,
            Format::GptqV2
        );
        assert_eq!(
            resolve(&["--group-size", "-1"]).unwrap().scheme.group_size,
            GroupSize::WholeRow
        );
    }

    #[test]
    fn contradictions_are_refused() {
        for (args, message) in [
            (&["--bits", "8"][..], "AWQ takes 4 bits, not 8"),
            (
                &["--gptq", "--bits", "5"],
                "GPTQ takes 2, 3, 4 or 8 bits, not 5",
            ),
            (&["--group-size", "0"], "group size 0"),
            (&["--group-size", "-2"], "group size -2"),
            (&["--damp-percent", "0.1"], "belongs to GPTQ"),
            (&["--gptq", "--damp-percent", "1.5"], "--damp-percent 1.5"),
            (&["--seq-len", "0"], "--seq-len must be at least 1"),
            (&["--max-shard-size", "5 parsecs"], "5 parsecs"),
            (&["--memory", "lots"], "--memory \"lots\""),
            (&["--vram", "lots"], "--vram \"lots\""),
            (&["--threads", "0"], "--threads must be at least 1"),
            (&["--device", "tpu"], "tpu"),
        ] {
            let error = resolve(args).unwrap_err().to_string();
            assert!(error.contains(message), "{args:?}: {error}");
        }
    }

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("5GB", Some(5_000_000_000)),
            ("1.5 MiB", Some(1_572_864)),
            ("12", Some(12)),
            ("0", None),
            ("GB", None),
            ("-1GB", None),
        ] {
            assert_eq!(parse_size(text), bytes, "{text}");
        }
    }

    #[test]
    fn a_config_file_is_replayed_and_flags_override_it() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("quantize_config.json");
        let text = r#"{"quant_method": "gptq", "bits": 4, "group_size": 32, "sym": true, "desc_act": true, "damp_percent": 0.05}"#;
        std::fs::write(&path, text).unwrap();
        let file = path.to_str().unwrap();
        let replayed = resolve(&["--quant-config", file]).unwrap();
        let solver = replayed.solver.gptq().unwrap();
        assert_eq!(replayed.scheme.bits, 4);
        assert_eq!(replayed.scheme.group_size, GroupSize::Columns(32));
        assert_eq!(solver.act_order, gptq::ActOrder::DescAct);
        assert!((solver.damp - 0.05).abs() < 1e-12);
        assert_eq!(
            resolve(&["--quant-config", file, "--bits", "8"])
                .unwrap()
                .scheme
                .bits,
            8
        );
        let conflict = resolve(&["--quant-config", file, "--awq"]).unwrap_err();
        assert!(matches!(conflict, Error::MethodConflict { .. }));
        let missing = resolve(&["--quant-config", "no-such-file.json"]).unwrap_err();
        assert!(missing.to_string().contains("no-such-file.json"));
    }
}
