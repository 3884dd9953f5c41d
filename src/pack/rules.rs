//! What the programs that load AWQ and GPTQ models take, as a table.
//!
//! Read in the source of vLLM 0.32.0, GPTQModel 7.7.0, transformers 5.23.0 and optimum 2.3.0, and tried on small models
//! with the last three on a CPU. A program that is not in the table is not known, which is not to say that it refuses.

use std::fmt::Write;

use super::fields::group_size_number;
use super::{Error, Format};
use crate::quant::GroupSize;

/// What is about to be written.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub format: Format,
    pub bits: u8,
    pub group_size: GroupSize,
    pub symmetric: bool,
    /// Columns are grouped in another order than the file's: `g_idx` is needed.
    pub desc_act: bool,
    /// Name, output features and input features of the linear layers; one of each shape is enough.
    pub linears: &'a [(String, usize, usize)],
}

/// What becomes of a model in one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Loads,
    /// It loads, at less than full speed, for this reason.
    Slow(String),
    Refuses(String),
}

/// The verdict of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleOutcome {
    pub runtime: &'static str,
    pub verdict: Verdict,
}

const VLLM_GPU: &str = "vLLM 0.32 (GPU)";
const VLLM_CPU: &str = "vLLM 0.32 (CPU)";
const GPTQMODEL: &str = "GPTQModel 7.7";
const TRANSFORMERS: &str = "transformers 5.23";
const RUNTIMES: [&str; 4] = [VLLM_GPU, VLLM_CPU, GPTQMODEL, TRANSFORMERS];

const AWQ: &[Format] = &[Format::AwqGemm];
const GPTQ: &[Format] = &[Format::GptqV1, Format::GptqV2];
const GPTQ_V1: &[Format] = &[Format::GptqV1];
const ALL: &[Format] = &[Format::AwqGemm, Format::GptqV1, Format::GptqV2];

/// Group sizes of the fast GPU kernels (Marlin), in the order in which they are proposed.
const FAST_GROUPS: [i64; 4] = [128, 64, 32, -1];
/// Group sizes that only GPTQModel, and transformers through it, takes besides.
const MORE_GROUPS_AWQ: &[i64] = &[16];
const MORE_GROUPS_GPTQ: &[i64] = &[16, 256, 512, 1024];

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Level {
    Slow,
    Refuses,
}

/// One thing that some programs do not take.
struct Rule {
    runtimes: &'static [&'static str],
    formats: &'static [Format],
    level: Level,
    /// The reason, where the rule applies.
    reason: fn(&Request<'_>) -> Option<String>,
}

/// What a file of the format cannot hold at all, whoever reads it.
const FORMAT_LIMITS: &[Rule] = &[
    Rule {
        runtimes: &RUNTIMES,
        formats: AWQ,
        level: Level::Refuses,
        reason: |request| {
            let wrong = request.bits != 4;
            wrong.then(|| {
                format!(
                    "AWQ files hold 4 bits, not {}; --method gptq writes 2, 3, 4 and 8",
                    request.bits
                )
            })
        },
    },
    Rule {
        runtimes: &RUNTIMES,
        formats: GPTQ,
        level: Level::Refuses,
        reason: |request| {
            let wrong = ![2, 3, 4, 8].contains(&request.bits);
            wrong.then(|| format!("GPTQ files hold 2, 3, 4 or 8 bits, not {}", request.bits))
        },
    },
    Rule {
        runtimes: &RUNTIMES,
        formats: AWQ,
        level: Level::Refuses,
        reason: |request| {
            let reason = "AWQ files have no g_idx, so columns cannot be grouped in another order; leave desc_act off";
            request.desc_act.then(|| reason.to_owned())
        },
    },
    Rule {
        runtimes: &RUNTIMES,
        formats: ALL,
        level: Level::Refuses,
        reason: |request| {
            let step = codes_in_whole_words(request.bits);
            // AWQ packs along the output axis only; GPTQ packs weights along the input axis too.
            let packs_inputs = request.format != Format::AwqGemm;
            let (name, out, inp) = request.linears.iter().find(|(_, out, inp)| {
                !out.is_multiple_of(step) || packs_inputs && !inp.is_multiple_of(step)
            })?;
            let axes = if packs_inputs {
                "input and output features"
            } else {
                "output features"
            };
            Some(format!(
                "{name} [{out}, {inp}] does not fill whole words: {} bits need {axes} divisible by {step}",
                request.bits
            ))
        },
    },
    Rule {
        runtimes: &RUNTIMES,
        formats: ALL,
        level: Level::Refuses,
        reason: |request| {
            let columns = group_columns(request)?;
            let (name, _, inp) = request
                .linears
                .iter()
                .find(|(_, _, inp)| !inp.is_multiple_of(columns))?;
            Some(format!(
                "group size {columns} does not divide the {inp} input features of {name}; {}",
                proposal(request)
            ))
        },
    },
];

/// What some programs do not take though the file can hold it.
const LOADER_RULES: &[Rule] = &[
    // vllm/model_executor/layers/quantization/auto_gptq.py: TYPE_MAP
    Rule {
        runtimes: &[VLLM_GPU],
        formats: GPTQ,
        level: Level::Refuses,
        reason: |request| {
            let wrong = ![4, 8].contains(&request.bits);
            wrong.then(|| format!("takes 4 and 8 bits, not {}", request.bits))
        },
    },
    // .../kernels/linear/mixed_precision/cpu.py: uint4 and uint4b8 only
    Rule {
        runtimes: &[VLLM_CPU],
        formats: GPTQ,
        level: Level::Refuses,
        reason: |request| {
            (request.bits != 4).then(|| format!("takes 4 bits, not {}", request.bits))
        },
    },
    Rule {
        runtimes: &[VLLM_GPU, VLLM_CPU],
        formats: GPTQ,
        level: Level::Refuses,
        reason: |request| (!request.symmetric).then(|| "takes symmetric weights only".to_owned()),
    },
    // .../quantization/utils/gptq_utils.py: with one group a row the order means nothing and is dropped
    Rule {
        runtimes: &[VLLM_GPU, VLLM_CPU],
        formats: GPTQ,
        level: Level::Refuses,
        reason: |request| {
            (request.desc_act && group_columns(request).is_some())
                .then(|| "no longer takes desc_act with groups".to_owned())
        },
    },
    // .../quantization/utils/marlin_utils.py: verify_marlin_supported, which AutoGPTQLinearMethod calls on a CPU too
    Rule {
        runtimes: &[VLLM_GPU, VLLM_CPU],
        formats: GPTQ,
        level: Level::Refuses,
        reason: |request| group_not_in(request, &FAST_GROUPS),
    },
    // auto_awq.py falls back to AutoAWQ's kernels, which check these sizes when they run (csrc, awq gemm_kernels.cu)
    Rule {
        runtimes: &[VLLM_GPU],
        formats: AWQ,
        level: Level::Slow,
        reason: |request| {
            let taken = group_not_in(request, &FAST_GROUPS)?;
            Some(format!("{taken} in its fast kernels"))
        },
    },
    Rule {
        runtimes: &[VLLM_GPU],
        formats: AWQ,
        level: Level::Refuses,
        reason: |request| {
            group_not_in(request, &FAST_GROUPS)?;
            let columns = group_columns(request)?;
            if !columns.is_multiple_of(32) {
                return Some(format!("group size {columns} is not a multiple of 32"));
            }
            let (name, out, _) = request
                .linears
                .iter()
                .find(|(_, out, _)| !out.is_multiple_of(64) || !out.is_multiple_of(columns))?;
            Some(format!(
                "its kernels for group size {columns} need output features divisible by 64 and by it; {name} has {out}"
            ))
        },
    },
    // marlin_utils.py: marlin_padded_nk
    Rule {
        runtimes: &[VLLM_GPU],
        formats: ALL,
        level: Level::Slow,
        reason: |request| {
            let (name, out, inp) = request.linears.iter().find(|(_, out, inp)| {
                let fits =
                    |out_tile, in_tile| out.is_multiple_of(out_tile) && inp.is_multiple_of(in_tile);
                !fits(64, 128) && !fits(128, 64)
            })?;
            Some(format!(
                "{name} [{out}, {inp}] may be padded on every call: kernels want multiples of [64, 128] or [128, 64]"
            ))
        },
    },
    // cpu.py
    Rule {
        runtimes: &[VLLM_CPU],
        formats: ALL,
        level: Level::Refuses,
        reason: |request| {
            let (name, out, inp) = request
                .linears
                .iter()
                .find(|(_, out, inp)| !out.is_multiple_of(32) || !inp.is_multiple_of(32))?;
            Some(format!(
                "needs input and output features divisible by 32; {name} is [{out}, {inp}]"
            ))
        },
    },
    Rule {
        runtimes: &[VLLM_CPU],
        formats: AWQ,
        level: Level::Refuses,
        reason: |request| {
            let columns = group_columns(request)?;
            (!columns.is_multiple_of(2)).then(|| format!("needs an even group size, not {columns}"))
        },
    },
    // gptqmodel/nn_modules/qlinear: SUPPORTS_GROUP_SIZE of all kernels; transformers loads through GPTQModel's kernels
    Rule {
        runtimes: &[GPTQMODEL, TRANSFORMERS],
        formats: ALL,
        level: Level::Refuses,
        reason: |request| {
            let taken = [&FAST_GROUPS, more_groups(request.format)].concat();
            group_not_in(request, &taken)
        },
    },
    Rule {
        runtimes: &[GPTQMODEL, TRANSFORMERS],
        formats: GPTQ,
        level: Level::Slow,
        reason: |request| {
            (request.bits == 3).then(|| "3 bits run in plain PyTorch only".to_owned())
        },
    },
    // gptqmodel/models/loader.py: asks `meta.quantizer` for gptqmodel >= 0.9
    Rule {
        runtimes: &[GPTQMODEL],
        formats: GPTQ_V1,
        level: Level::Refuses,
        reason: |request| {
            (!request.symmetric).then(|| {
                "takes asymmetric weights of other programs in the gptq_v2 layout only".to_owned()
            })
        },
    },
];

/// What each known program makes of the request.
pub fn check(request: &Request<'_>) -> Vec<RuleOutcome> {
    RUNTIMES
        .into_iter()
        .map(|runtime| RuleOutcome {
            runtime,
            verdict: verdict(runtime, request),
        })
        .collect()
}

/// Refuses what the format cannot hold and what no known program takes, before any work is done.
///
/// # Errors
/// [`Error::Unloadable`] with the linear, the numbers and what would fit.
pub fn refuse(request: &Request<'_>) -> Result<(), Error> {
    if let Some(reason) = reasons(FORMAT_LIMITS, RUNTIMES[0], Level::Refuses, request).next() {
        return Err(Error::Unloadable { reason });
    }
    let outcomes = check(request);
    if outcomes
        .iter()
        .all(|outcome| matches!(outcome.verdict, Verdict::Refuses(_)))
    {
        let list = render(&outcomes);
        let mut reason = format!("no known program loads this:\n{}", list.trim_end());
        if group_columns(request).is_some() {
            write!(reason, "\nFor the group size, {}", proposal(request))
                .expect("writing to a string");
        }
        return Err(Error::Unloadable { reason });
    }
    Ok(())
}

/// One line a program, for people.
pub fn render(outcomes: &[RuleOutcome]) -> String {
    let width = outcomes
        .iter()
        .map(|outcome| outcome.runtime.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for RuleOutcome { runtime, verdict } in outcomes {
        let (word, reason) = match verdict {
            Verdict::Loads => ("loads", ""),
            Verdict::Slow(reason) => ("loads, not at full speed: ", reason.as_str()),
            Verdict::Refuses(reason) => ("does not load: ", reason.as_str()),
        };
        writeln!(text, "{runtime:width$}  {word}{reason}").expect("writing to a string");
    }
    text
}

fn verdict(runtime: &'static str, request: &Request<'_>) -> Verdict {
    let all = |level| {
        let limits = reasons(FORMAT_LIMITS, runtime, level, request);
        let rules = reasons(LOADER_RULES, runtime, level, request);
        limits.chain(rules).collect::<Vec<_>>().join("; ")
    };
    let (refused, slow) = (all(Level::Refuses), all(Level::Slow));
    match (refused.is_empty(), slow.is_empty()) {
        (false, _) => Verdict::Refuses(refused),
        (true, false) => Verdict::Slow(slow),
        (true, true) => Verdict::Loads,
    }
}

fn reasons<'r>(
    rules: &'static [Rule],
    runtime: &'static str,
    level: Level,
    request: &'r Request<'r>,
) -> impl Iterator<Item = String> + 'r {
    rules
        .iter()
        .filter(move |rule| {
            rule.level == level
                && rule.formats.contains(&request.format)
                && rule.runtimes.contains(&runtime)
        })
        .filter_map(|rule| (rule.reason)(request))
}

/// The group size, unless whole rows are meant.
fn group_columns(request: &Request<'_>) -> Option<usize> {
    match request.group_size {
        GroupSize::Columns(columns) => Some(columns),
        GroupSize::WholeRow => None,
    }
}

fn group_not_in(request: &Request<'_>, taken: &[i64]) -> Option<String> {
    let size = group_size_number(request.group_size);
    (!taken.contains(&size))
        .then(|| format!("takes group sizes {}, not {size}", list(taken, "and")))
}

fn more_groups(format: Format) -> &'static [i64] {
    match format {
        Format::AwqGemm => MORE_GROUPS_AWQ,
        Format::GptqV1 | Format::GptqV2 => MORE_GROUPS_GPTQ,
    }
}

/// The smallest count of codes that fills whole words: 32 where codes straddle words.
fn codes_in_whole_words(bits: u8) -> usize {
    match bits {
        2 | 4 | 8 => 32 / usize::from(bits),
        _ => 32,
    }
}

/// The group sizes that divide every linear's input.
fn proposal(request: &Request<'_>) -> String {
    let divides = |size: &i64| {
        let columns = usize::try_from(*size);
        columns.map_or(true, |columns| {
            request
                .linears
                .iter()
                .all(|(_, _, inp)| inp.is_multiple_of(columns))
        })
    };
    let fast: Vec<i64> = FAST_GROUPS.into_iter().filter(divides).collect();
    let more = more_groups(request.format).iter().copied();
    let more: Vec<i64> = more.filter(divides).collect();
    let mut text = format!("use {} (whole rows)", list(&fast, "or"));
    if !more.is_empty() {
        write!(
            text,
            ", or {}, which GPTQModel alone takes",
            list(&more, "or")
        )
        .expect("writing to a string");
    }
    text
}

/// `1, 2 and 3`.
fn list(numbers: &[i64], conjunction: &str) -> String {
    let words: Vec<String> = numbers.iter().map(ToString::to_string).collect();
    match words.split_last() {
        Some((last, rest)) if !rest.is_empty() => {
            format!("{} {conjunction} {last}", rest.join(", "))
        }
        Some((last, _)) => last.clone(),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn linears(shapes: &[(usize, usize)]) -> Vec<(String, usize, usize)> {
        let named = shapes.iter().enumerate();
        named
            .map(|(i, &(out, inp))| (format!("layer.{i}"), out, inp))
            .collect()
    }

    fn request(linears: &[(String, usize, usize)], format: Format, bits: u8) -> Request<'_> {
        Request {
            format,
            bits,
            group_size: GroupSize::Columns(128),
            symmetric: format != Format::AwqGemm,
            desc_act: false,
            linears,
        }
    }

    /// Whether [vLLM on a GPU, vLLM on a CPU, GPTQModel, transformers] load at full speed (+), slowly (~) or not (-).
    fn verdicts(request: &Request<'_>) -> String {
        check(request)
            .iter()
            .map(|outcome| match outcome.verdict {
                Verdict::Loads => '+',
                Verdict::Slow(_) => '~',
                Verdict::Refuses(_) => '-',
            })
            .collect()
    }

    #[test]
    fn the_defaults_load_at_full_speed() {
        let linears = linears(&[(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)]);
        let awq = request(&linears, Format::AwqGemm, 4);
        let gptq = request(&linears, Format::GptqV1, 8);
        assert_eq!(verdicts(&awq), "++++");
        assert_eq!(verdicts(&gptq), "+-++");
        assert_eq!(verdicts(&Request { bits: 4, ..gptq }), "++++");
        assert_eq!(refuse(&awq).and_then(|()| refuse(&gptq)), Ok(()));
    }

    #[test]
    fn each_rule_bites() {
        let linears = linears(&[(4096, 4096)]);
        let gptq = request(&linears, Format::GptqV1, 4);
        let awq = request(&linears, Format::AwqGemm, 4);
        let columns = GroupSize::Columns;
        for (request, expected) in [
            (Request { bits: 2, ..gptq }, "--++"),
            (Request { bits: 3, ..gptq }, "--~~"),
            (
                Request {
                    symmetric: false,
                    ..gptq
                },
                "---+",
            ),
            (
                Request {
                    symmetric: false,
                    format: Format::GptqV2,
                    ..gptq
                },
                "--++",
            ),
            (
                Request {
                    desc_act: true,
                    ..gptq
                },
                "--++",
            ),
            (
                Request {
                    desc_act: true,
                    group_size: GroupSize::WholeRow,
                    ..gptq
                },
                "++++",
            ),
            (
                Request {
                    group_size: columns(16),
                    ..gptq
                },
                "--++",
            ),
            (
                Request {
                    group_size: columns(256),
                    ..gptq
                },
                "--++",
            ),
            (
                Request {
                    group_size: columns(256),
                    ..awq
                },
                "~+--",
            ),
            (
                Request {
                    group_size: columns(16),
                    ..awq
                },
                "-+++",
            ),
            (
                Request {
                    symmetric: true,
                    ..awq
                },
                "++++",
            ),
            (Request { bits: 8, ..awq }, "----"),
            (Request { bits: 5, ..gptq }, "----"),
            (
                Request {
                    desc_act: true,
                    ..awq
                },
                "----",
            ),
        ] {
            assert_eq!(verdicts(&request), expected, "{request:?}");
        }
    }

    #[test]
    fn awkward_shapes_are_named() {
        let shapes = linears(&[(576, 576), (192, 576), (1536, 576), (576, 1536)]);
        let small = Request {
            group_size: GroupSize::Columns(64),
            ..request(&shapes, Format::AwqGemm, 4)
        };
        assert_eq!(verdicts(&small), "~+++");
        assert!(render(&check(&small)).contains("layer.0 [576, 576] may be padded"));
        let odd = linears(&[(200, 160)]);
        let odd = Request {
            group_size: GroupSize::WholeRow,
            ..request(&odd, Format::GptqV1, 4)
        };
        assert_eq!(verdicts(&odd), "~-++");
    }

    #[test]
    fn refusals_say_what_would_fit() {
        let check = |request: Request<'_>, expected: &str| {
            let message = refuse(&request).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        let shapes = linears(&[(1536, 1536), (576, 576)]);
        let (awq, gptq) = (
            request(&shapes, Format::AwqGemm, 4),
            request(&shapes, Format::GptqV1, 8),
        );
        let message = "group size 128 does not divide the 576 input features of layer.1; \
                       use 64, 32 or -1 (whole rows), or 16, which GPTQModel alone takes";
        check(awq, message);
        check(gptq, message);
        check(Request { bits: 8, ..awq }, "AWQ files hold 4 bits, not 8");
        let columns = GroupSize::Columns;
        check(
            Request {
                group_size: columns(192),
                ..gptq
            },
            "no known program loads this",
        );
        check(
            Request {
                group_size: columns(0),
                ..gptq
            },
            "group size 0 does not divide",
        );
        let odd = linears(&[(36, 64)]);
        check(
            Request {
                linears: &odd,
                group_size: GroupSize::WholeRow,
                ..awq
            },
            "layer.0 [36, 64] does not fill whole words: 4 bits need output features divisible by 8",
        );
        let odd = linears(&[(64, 40)]);
        check(
            Request {
                linears: &odd,
                bits: 3,
                group_size: GroupSize::WholeRow,
                ..gptq
            },
            "3 bits need input and output features divisible by 32",
        );
    }
}
