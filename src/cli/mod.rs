//! The command line, and nothing but it: what can be asked, in which words. [`settings`] decides what it means.

pub mod settings;

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use regex::Regex;

/// Quantize a Hugging Face model with AWQ (4-bit) or GPTQ (8-bit).
///
/// Reads the model directory MODEL, quantizes its linear layers one stage at a time on the GPU, or on the CPU where
/// there is none, and writes MODEL/AWQ-4bit or MODEL/GPTQ-8bit, which vLLM, SGLang, transformers and GPTQModel load.
#[derive(Debug, Parser)]
#[command(
    name = "nibble",
    version,
    args_conflicts_with_subcommands = true,
    max_term_width = 100
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Option<Command>,
    #[command(flatten)]
    pub quantize: QuantizeArgs,
    #[command(flatten)]
    pub log: LogArgs,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Quantize into a directory that is removed again, and print each part's seconds beside the machine's floor
    #[command(hide = true)]
    Bench(Box<QuantizeArgs>),
    /// Say what can compute here, CPU and GPUs, and why the rest cannot
    Devices(DevicesArgs),
    /// Measure perplexity, and the KL divergence from the original, of a plain or quantized model directory
    Eval(EvalArgs),
    /// Continue a prompt with a plain or quantized model directory
    Generate(GenerateArgs),
    /// Say what a model directory holds: family, parameters, dtype, quantization, sizes
    Inspect(InspectArgs),
}

/// How much is logged, and how.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Log")]
pub struct LogArgs {
    /// Log more: -v per linear, -vv everything
    #[arg(short, long, action = clap::ArgAction::Count, global = true)]
    pub verbose: u8,
    /// Log warnings and errors only, and show no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    pub quiet: bool,
    /// Format of the log on stderr
    #[arg(long, value_enum, default_value = "text", global = true)]
    pub log_format: LogFormat,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    Text,
    Json,
}

#[derive(Debug, Clone, Args)]
#[expect(clippy::struct_excessive_bools, reason = "each is a flag of its own")]
#[command(next_help_heading = "Quantization")]
pub struct QuantizeArgs {
    /// Model directory with config.json, tokenizer.json and safetensors [default: /models, where that exists]
    #[arg(value_name = "MODEL")]
    pub model: Option<PathBuf>,
    /// The same as MODEL
    #[arg(long = "model", value_name = "MODEL", conflicts_with = "model")]
    pub model_flag: Option<PathBuf>,
    /// Activation-aware Weight Quantization: channel scales and clipping searched on calibration data (the default)
    #[arg(long, conflicts_with = "gptq")]
    pub awq: bool,
    /// GPTQ: rounding errors compensated column by column
    #[arg(long)]
    pub gptq: bool,
    /// Round to nearest in the chosen method's format, without calibration: the baseline
    #[arg(long, hide = true)]
    pub rtn: bool,
    /// Bits per weight: AWQ 4; GPTQ 2, 3, 4 or 8 [default: 4 with AWQ, 8 with GPTQ]
    #[arg(long, value_name = "N")]
    pub bits: Option<u8>,
    /// Input columns that share one scale; -1 for the whole row [default: 128]
    #[arg(long, value_name = "N", allow_negative_numbers = true)]
    pub group_size: Option<i64>,
    /// Zero points fixed at mid-range [default with GPTQ]
    #[arg(long, conflicts_with = "asym")]
    pub sym: bool,
    /// Zero points fitted to each group [default with AWQ]
    #[arg(long)]
    pub asym: bool,
    /// GPTQ's order of columns [default: group-aware]
    #[arg(long, value_enum, value_name = "ORDER")]
    pub act_order: Option<ActOrder>,
    /// GPTQ's damping as a fraction of the Gram matrix's mean diagonal; raised automatically where needed [default: 0.01]
    #[arg(long, value_name = "F")]
    pub damp_percent: Option<f64>,
    /// Leave linears in float whose names this regular expression is found in (repeatable), such as 'layers\.0\.|down_proj'
    #[arg(long, value_name = "REGEX")]
    pub ignore: Vec<Regex>,
    /// Quantize no other linears than those whose names this regular expression is found in (repeatable)
    #[arg(long, value_name = "REGEX")]
    pub only: Vec<Regex>,
    /// Round the linears of a vision tower to 8 bits too (with --gptq and 8 bits); else they stay as they are
    #[arg(long)]
    pub quantize_vision: bool,
    /// JSON file with AutoAWQ's, GPTQ's or transformers' quantization keys to replay; flags override it
    #[arg(long, value_name = "FILE")]
    pub quant_config: Option<PathBuf>,

    /// Tokens in a calibration window
    #[arg(
        long,
        value_name = "N",
        default_value_t = 2048,
        help_heading = "Calibration"
    )]
    pub seq_len: usize,
    /// Calibration windows
    #[arg(
        long,
        value_name = "N",
        default_value_t = 128,
        help_heading = "Calibration"
    )]
    pub num_samples: usize,
    /// Windows that run through a layer together [default: what fits in memory]
    #[arg(long, value_name = "N", help_heading = "Calibration")]
    pub batch_size: Option<usize>,
    /// Host memory that the run may take, such as 8GB [default: three quarters of what is free]
    #[arg(long, value_name = "SIZE", help_heading = "Calibration")]
    pub memory: Option<String>,
    /// GPU memory that the run may take, such as 20GB [default: three quarters of what is free]
    #[arg(long, value_name = "SIZE", help_heading = "Calibration")]
    pub vram: Option<String>,
    /// Calibration data: a .txt file, a .jsonl file with `text` or `messages` (with images, for models that see), or a directory of
    /// them or of images with captions [default: a built-in set]
    #[arg(long, value_name = "PATH", help_heading = "Calibration")]
    pub calib_data: Option<PathBuf>,
    /// Seed of the order in which calibration documents are mixed
    #[arg(
        long,
        value_name = "N",
        default_value_t = 42,
        help_heading = "Calibration"
    )]
    pub seed: u64,

    /// Calibrate every expert of a mixture on all tokens, not on those that are routed to it
    #[arg(long, help_heading = "Calibration")]
    pub moe_all_tokens: bool,

    #[command(flatten)]
    pub compute: ComputeArgs,
    /// Milliseconds between two readings of the memory in use, of this process and of the GPU
    #[arg(long, value_name = "MS", default_value_t = 50, help_heading = "Device")]
    pub vram_interval: usize,

    /// Output directory [default: MODEL/METHOD-BITRATE, such as MODEL/AWQ-4bit]
    #[arg(long, short, value_name = "DIR", help_heading = "Output")]
    pub output: Option<PathBuf>,
    /// Replace the output directory where it exists
    #[arg(long, help_heading = "Output")]
    pub overwrite: bool,
    /// Start over, even where an interrupted run of the same command could go on behind its last finished layer
    #[arg(long, help_heading = "Output")]
    pub restart: bool,
    /// Largest size of one safetensors file, such as 5GB or 500MiB
    #[arg(
        long,
        value_name = "SIZE",
        default_value = "5GB",
        help_heading = "Output"
    )]
    pub max_shard_size: String,
    /// Check everything, print the plan and which runtimes will load the result, and stop
    #[arg(long, help_heading = "Output")]
    pub dry_run: bool,
}

/// Where and in which dtype the model runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Device")]
pub struct ComputeArgs {
    /// Use the CPU even where there is a GPU
    #[arg(long, conflicts_with = "device")]
    pub force_cpu: bool,
    /// Threads of the CPU that compute [default: as many as there are cores for this process]
    #[arg(long, value_name = "N")]
    pub threads: Option<usize>,
    /// auto, cpu, cuda or cuda:N
    #[arg(long, value_name = "DEVICE", default_value = "auto")]
    pub device: String,
    /// Dtype of the forward pass [default: bfloat16 where the device is fast at it, else float32]
    #[arg(long, value_enum, value_name = "DTYPE")]
    pub dtype: Option<Dtype>,
}

#[derive(Debug, Clone, Args)]
pub struct EvalArgs {
    /// Model directories, plain or quantized; several are measured on the same windows
    #[arg(required = true, value_name = "MODEL")]
    pub models: Vec<PathBuf>,
    /// The original to compare with: adds KL divergence and top-1 agreement
    #[arg(long, value_name = "DIR")]
    pub reference: Option<PathBuf>,
    /// Text to measure on: .txt, .jsonl or a directory of them, also of conversations with images [default: a built-in text that
    /// is not calibrated on]
    #[arg(long, value_name = "PATH")]
    pub text: Option<PathBuf>,
    /// Windows of text
    #[arg(long, value_name = "N", default_value_t = 40)]
    pub windows: usize,
    /// Tokens in a window
    #[arg(long, value_name = "N", default_value_t = 512)]
    pub seq_len: usize,
    /// Print a JSON object a model instead of a table
    #[arg(long)]
    pub json: bool,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

#[derive(Debug, Clone, Args)]
pub struct GenerateArgs {
    /// Model directory, plain or quantized
    pub model: PathBuf,
    /// Text to continue
    #[arg(long, short)]
    pub prompt: String,
    /// Most tokens to add
    #[arg(long, value_name = "N", default_value_t = 64)]
    pub max_tokens: usize,
    /// 0 takes the likeliest token each time; higher values sample more freely
    #[arg(long, value_name = "T", default_value_t = 0.0)]
    pub temperature: f64,
    /// Sample from the likeliest tokens that make up this much probability
    #[arg(long, value_name = "P", default_value_t = 1.0)]
    pub top_p: f64,
    /// Seed of the sampling
    #[arg(long, value_name = "N", default_value_t = 42)]
    pub seed: u64,
    #[command(flatten)]
    pub compute: ComputeArgs,
}

#[derive(Debug, Clone, Args)]
pub struct DevicesArgs {
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Args)]
pub struct InspectArgs {
    /// Model directory, plain or quantized
    pub model: PathBuf,
    /// Print one JSON object
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ActOrder {
    /// As stored
    None,
    /// By falling activation, with the grids fixed beforehand
    Static,
    /// By falling activation, group after group: the gain of an order at no cost for the runtime
    GroupAware,
    /// By falling activation, groups follow the order: needs g_idx, which vLLM refuses
    DescAct,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dtype {
    #[value(alias = "bf16")]
    Bfloat16,
    #[value(alias = "fp16", alias = "half")]
    Float16,
    #[value(alias = "fp32", alias = "float")]
    Float32,
}

/// `--seq_len` is `--seq-len`: underscores in an option's name count as hyphens.
pub fn with_hyphens(args: impl IntoIterator<Item = std::ffi::OsString>) -> Vec<std::ffi::OsString> {
    let mut options_ended = false;
    args.into_iter()
        .map(|arg| {
            options_ended |= arg == "--";
            match arg.to_str() {
                Some(text) if !options_ended && text.starts_with("--") => {
                    let (name, value) = text.split_at(text.find('=').unwrap_or(text.len()));
                    format!("{}{value}", name.replace('_', "-")).into()
                }
                _ => arg,
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn underscores_count_as_hyphens_in_names_only() {
        let parse =
            |args: &[&str]| Cli::try_parse_from(with_hyphens(args.iter().map(Into::into))).unwrap();
        let args = parse(&[
            "nibble",
            "--seq_len",
            "7",
            "--calib_data=a_b",
            "--force_cpu",
            "my_model",
        ])
        .quantize;
        assert_eq!(args.seq_len, 7);
        assert_eq!(args.calib_data.unwrap().to_str(), Some("a_b"));
        assert_eq!(args.model.unwrap().to_str(), Some("my_model"));
        assert!(args.compute.force_cpu);
    }

    #[test]
    fn both_methods_are_refused() {
        assert!(Cli::try_parse_from(["nibble", "--awq", "--gptq"]).is_err());
    }
}
