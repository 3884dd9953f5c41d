//! Says, before any work is done, which programs will load what is asked for, and refuses what none will.

use std::fmt::Write;

use super::loaders::{FORMAT_LIMITS, LOADER_RULES, Level, RUNTIMES, Rule, group_columns, proposal};
use super::{Error, Family, Format};
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
    /// The family, where it is known.
    pub family: Option<&'static Family>,
    /// The names of two linears that vLLM has as one, where only the second is quantized.
    pub torn: Option<[&'a str; 2]>,
    /// Whether linears of what the model sees with are among `linears`.
    pub tower: bool,
    /// Name, output features and input features of the linear layers; one of each shape is enough.
    pub linears: &'a [(String, usize, usize)],
}

/// What becomes of a model in one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    Loads,
    /// It loads, but not at full speed or not everywhere, for this reason.
    Slow(String),
    Refuses(String),
}

/// The verdict of one program.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleOutcome {
    pub runtime: &'static str,
    pub verdict: Verdict,
}

/// What each known program makes of the request.
pub fn check(request: &Request<'_>) -> Vec<RuleOutcome> {
    let outcome = |runtime| RuleOutcome {
        runtime,
        verdict: verdict(runtime, request),
    };
    RUNTIMES.into_iter().map(outcome).collect()
}

/// Refuses what the format cannot hold and what no known program takes.
///
/// # Errors
/// [`Error::Unloadable`] with the linear, the numbers and what would fit.
pub fn refuse(request: &Request<'_>) -> Result<(), Error> {
    if let Some(reason) = reasons(FORMAT_LIMITS, RUNTIMES[0], Level::Refuses, request).next() {
        return Err(Error::Unloadable { reason });
    }
    // What no program loads yet is the user's to quantize: the plan and the report say so.
    let outcomes = check(&Request {
        family: None,
        tower: false,
        ..*request
    });
    let refuses = |outcome: &RuleOutcome| matches!(outcome.verdict, Verdict::Refuses(_));
    if !outcomes.iter().all(refuses) {
        return Ok(());
    }
    let mut reason = format!("no known program loads this\n{}", render(&outcomes));
    if group_columns(request).is_some() {
        write!(reason, "for the group size, {}", proposal(request)).expect("writing to a string");
    }
    Err(Error::Unloadable { reason })
}

/// One line a program, for people.
pub fn render(outcomes: &[RuleOutcome]) -> String {
    let widths = outcomes.iter().map(|outcome| outcome.runtime.len());
    let width = widths.max().unwrap_or(0);
    let mut text = String::new();
    for RuleOutcome { runtime, verdict } in outcomes {
        let (word, reason) = match verdict {
            Verdict::Loads => ("loads", ""),
            Verdict::Slow(reason) => ("loads, but ", reason.as_str()),
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
    if request.tower {
        let reason = "it is not known to load a quantized vision tower (--quantize-vision)";
        return Verdict::Refuses(reason.to_owned());
    }
    let mut names = request.linears.iter().map(|(name, ..)| name);
    let has_experts = names.any(|name| name.contains(".experts."));
    if let Some(family) = request
        .family
        .filter(|family| !family.is_loaded_by(runtime, has_experts))
    {
        let reason = format!(
            "by its sources it does not load both formats of {} models",
            family.name
        );
        return Verdict::Refuses(reason);
    }
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
    let applies = move |rule: &&Rule| {
        rule.level == level
            && rule.formats.contains(&request.format)
            && rule.runtimes.contains(&runtime)
    };
    rules
        .iter()
        .filter(applies)
        .filter_map(|rule| (rule.reason)(request))
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    const GROUPS: fn(usize) -> GroupSize = GroupSize::Columns;
    const ROWS: GroupSize = GroupSize::WholeRow;

    type Linears = Vec<(String, usize, usize)>;

    fn linears(shapes: &[(usize, usize)]) -> Linears {
        let named = shapes.iter().enumerate();
        named
            .map(|(i, &(out, inp))| (format!("layer.{i}"), out, inp))
            .collect()
    }

    /// Symmetric, as GPTQ's default is; group size 128.
    fn request(linears: &Linears, format: Format, bits: u8) -> Request<'_> {
        Request {
            format,
            bits,
            group_size: GROUPS(128),
            symmetric: true,
            desc_act: false,
            family: None,
            torn: None,
            tower: false,
            linears,
        }
    }

    /// Whether [vLLM on a GPU, vLLM on a CPU, GPTQModel, transformers] load (+), load with a reserve (~) or refuse (-).
    fn verdicts(request: &Request<'_>) -> String {
        let sign = |outcome: &RuleOutcome| match outcome.verdict {
            Verdict::Loads => '+',
            Verdict::Slow(_) => '~',
            Verdict::Refuses(_) => '-',
        };
        check(request).iter().map(sign).collect()
    }

    #[test]
    fn each_program_has_its_verdict() {
        let linears = linears(&[(4096, 4096), (1024, 4096), (14336, 4096), (4096, 14336)]);
        let check = |format, bits, group_size, symmetric, desc_act, expected: &str| {
            let request = Request {
                group_size,
                symmetric,
                desc_act,
                ..request(&linears, format, bits)
            };
            assert_eq!(verdicts(&request), expected, "{request:?}");
            assert_eq!(refuse(&request).is_err(), expected == "----");
        };
        let (awq, v1, v2) = (Format::AwqGemm, Format::GptqV1, Format::GptqV2);
        // The defaults, and GPTQ at 4 bits.
        check(awq, 4, GROUPS(128), false, false, "++++");
        check(v1, 8, GROUPS(128), true, false, "+-++");
        check(v1, 4, GROUPS(128), true, false, "++++");
        // Bits.
        check(v1, 2, GROUPS(128), true, false, "--++");
        check(v1, 3, GROUPS(128), true, false, "--~~");
        check(v1, 5, GROUPS(128), true, false, "----");
        check(awq, 8, GROUPS(128), false, false, "----");
        // Zero points.
        check(v1, 4, GROUPS(128), false, false, "---+");
        check(v2, 4, GROUPS(128), false, false, "--++");
        check(awq, 4, GROUPS(128), true, false, "++++");
        // The order of columns.
        check(v1, 4, GROUPS(128), true, true, "--++");
        check(v1, 8, ROWS, true, true, "+-++");
        check(awq, 4, GROUPS(128), false, true, "----");
        // Group sizes.
        check(v1, 8, ROWS, true, false, "+-++");
        check(v1, 4, ROWS, true, false, "++~~");
        check(awq, 4, ROWS, false, false, "++~~");
        check(v1, 4, GROUPS(16), true, false, "--~~");
        check(awq, 4, GROUPS(16), false, false, "-+~~");
        check(v1, 4, GROUPS(256), true, false, "--++");
        check(awq, 4, GROUPS(256), false, false, "~+--");
        check(v1, 8, GROUPS(8), true, false, "----");
    }

    #[test]
    fn a_family_with_experts_may_have_fewer_loaders() {
        let dense = linears(&[(4096, 4096)]);
        let experts = vec![("layers.0.experts.3.up_proj".to_owned(), 4096, 4096)];
        for (model_type, linears, expected) in [
            ("gemma4", &dense, "++-+"),
            ("gemma4", &experts, "++--"),
            ("qwen3_moe", &experts, "+++-"),
            ("paligemma", &dense, "---+"),
        ] {
            let request = Request {
                family: Family::find(model_type),
                ..request(linears, Format::GptqV1, 4)
            };
            assert_eq!(verdicts(&request), expected, "{model_type}");
        }
    }

    #[test]
    fn awkward_shapes_are_named() {
        let small = linears(&[(576, 576), (192, 576), (1536, 576), (576, 1536)]);
        let small = Request {
            group_size: GROUPS(64),
            ..request(&small, Format::AwqGemm, 4)
        };
        assert_eq!(verdicts(&small), "~+++");
        let text = render(&check(&small));
        let first = "vLLM 0.32 (GPU)    loads, but may pad on every call, as its kernels want shapes divisible by \
                     [64, 128] or [128, 64]; layer.0 is [576, 576]\n";
        assert!(text.starts_with(first), "{text}");
        for (shape, expected) in [((200, 160), "~-++"), ((202, 160), "--++")] {
            let linears = linears(&[shape]);
            let odd = Request {
                group_size: ROWS,
                ..request(&linears, Format::GptqV1, 8)
            };
            assert_eq!(verdicts(&odd), expected);
        }
    }

    #[test]
    fn refusals_say_what_would_fit() {
        let check = |shapes: &[(usize, usize)], format, bits, group_size, expected: &str| {
            let linears = linears(shapes);
            let request = Request {
                group_size,
                ..request(&linears, format, bits)
            };
            let message = refuse(&request).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        let (awq, v1) = (Format::AwqGemm, Format::GptqV1);
        let small = [(1536, 1536), (576, 576)];
        let message = "group size 128 does not divide the input features; layer.1 is [576, 576]; \
                       use 64, 32 or -1 (whole rows), or 16, which GPTQModel alone takes";
        check(&small, awq, 4, GROUPS(128), message);
        check(&small, v1, 8, GROUPS(128), message);
        check(&small, v1, 8, GROUPS(0), "group size 0 does not divide");
        check(
            &small,
            v1,
            8,
            GROUPS(192),
            "no known program loads this\nvLLM",
        );
        check(
            &small,
            v1,
            8,
            GROUPS(192),
            "\nfor the group size, use 64, 32 or -1",
        );
        check(&small, awq, 8, GROUPS(64), "AWQ files hold 4 bits, not 8");
        check(
            &[(36, 5)],
            awq,
            4,
            GROUPS(5),
            "divisible by 8; layer.0 is [36, 5]",
        );
        check(
            &[(36, 5)],
            awq,
            4,
            ROWS,
            "divisible by 8; layer.0 is [36, 5]",
        );
        check(
            &[(64, 40)],
            v1,
            3,
            ROWS,
            "divisible by 32; layer.0 is [64, 40]",
        );
    }
}
