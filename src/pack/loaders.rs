//! The table of what formats can hold and what loaders take; `rules` evaluates it.
//!
//! Read in the source of vLLM 0.32.0, GPTQModel 7.7.0, transformers 5.23.0 and optimum 2.3.0; paths are given with the
//! rules. The rules of GPTQModel and transformers were also tried with small models on a CPU.

use super::Format;
use super::fields::group_size_number;
use super::rules::Request;
use crate::quant::GroupSize;

pub(super) const VLLM_GPU: &str = "vLLM 0.32 (GPU)";
pub(super) const VLLM_CPU: &str = "vLLM 0.32 (CPU)";
pub(super) const GPTQMODEL: &str = "GPTQModel 7.7";
pub(super) const TRANSFORMERS: &str = "transformers 5.23";

/// The programs of which enough is known. Another one is unknown here, which is not to say that it refuses.
pub(super) const RUNTIMES: [&str; 4] = [VLLM_GPU, VLLM_CPU, GPTQMODEL, TRANSFORMERS];
const VLLM: &[&str] = &[VLLM_GPU, VLLM_CPU];
/// transformers runs these formats with GPTQModel's kernels.
const GPTQMODEL_KERNELS: &[&str] = &[GPTQMODEL, TRANSFORMERS];

const AWQ: &[Format] = &[Format::AwqGemm];
const GPTQ: &[Format] = &[Format::GptqV1, Format::GptqV2];
const BOTH: &[Format] = &[Format::AwqGemm, Format::GptqV1, Format::GptqV2];

/// Group sizes of the fast GPU kernels (Marlin's), in the order in which they are proposed.
pub(super) const FAST_GROUPS: [i64; 4] = [128, 64, 32, -1];
/// Group sizes of the 4 bit kernel that GPTQModel chooses first on a CPU.
const CPU_GROUPS: [i64; 4] = [32, 64, 128, 256];

/// Group sizes that GPTQModel's kernels take besides the fast ones.
pub(super) fn more_groups(format: Format) -> &'static [i64] {
    match format {
        Format::AwqGemm => &[16],
        Format::GptqV1 | Format::GptqV2 => &[16, 256, 512, 1024],
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Level {
    Slow,
    Refuses,
}
use Level::{Refuses, Slow};

/// One thing that some programs do not take.
pub(super) struct Rule {
    pub runtimes: &'static [&'static str],
    pub formats: &'static [Format],
    pub level: Level,
    /// The reason, where the rule applies.
    pub reason: Reason,
}
type Reason = fn(&Request<'_>) -> Option<String>;

const fn rule(
    runtimes: &'static [&'static str],
    formats: &'static [Format],
    level: Level,
    reason: Reason,
) -> Rule {
    Rule {
        runtimes,
        formats,
        level,
        reason,
    }
}

/// What a file of the format cannot hold, whoever reads it.
pub(super) const FORMAT_LIMITS: &[Rule] = &[
    rule(&RUNTIMES, AWQ, Refuses, |request| {
        let reason = format!("AWQ files hold 4 bits, not {}", request.bits);
        (request.bits != 4).then_some(reason)
    }),
    rule(&RUNTIMES, GPTQ, Refuses, |request| {
        let reason = format!("GPTQ files hold 2, 3, 4 or 8 bits, not {}", request.bits);
        (![2, 3, 4, 8].contains(&request.bits)).then_some(reason)
    }),
    rule(&RUNTIMES, AWQ, Refuses, |request| {
        let reason = "AWQ files have no g_idx, which desc_act needs; leave it off";
        request.desc_act.then(|| reason.to_owned())
    }),
    rule(&RUNTIMES, AWQ, Refuses, |request| {
        let linear = misfit(request, |out, _| out.is_multiple_of(8))?;
        Some(format!(
            "AWQ needs output features divisible by 8; {linear}"
        ))
    }),
    rule(&RUNTIMES, GPTQ, Refuses, |request| {
        let whole = |out: usize, inp: usize| out.is_multiple_of(32) && inp.is_multiple_of(32);
        let linear = misfit(request, |out, inp| request.bits != 3 || whole(out, inp))?;
        Some(format!(
            "3 bits need input and output features divisible by 32; {linear}"
        ))
    }),
    // GPTQ files could hold a narrower last group, but only the slowest of GPTQModel's kernels reads it.
    rule(&RUNTIMES, BOTH, Refuses, |request| {
        let columns = group_columns(request)?;
        let linear = misfit(request, |_, inp| inp.is_multiple_of(columns))?;
        Some(format!(
            "group size {columns} does not divide the input features; {linear}; {}; or leave such linears in float with --ignore",
            proposal(request)
        ))
    }),
];

/// What some programs do not take though the file can hold it. Paths of vLLM are below `vllm/model_executor`.
pub(super) const LOADER_RULES: &[Rule] = &[
    // layers/quantization/auto_gptq.py: TYPE_MAP
    rule(&[VLLM_GPU], GPTQ, Refuses, |request| {
        let reason = format!("takes 4 and 8 bits, not {}", request.bits);
        (![4, 8].contains(&request.bits)).then_some(reason)
    }),
    // kernels/linear/mixed_precision/cpu.py: _CPUWNA16_SUPPORTED_QUANT_TYPES
    rule(&[VLLM_CPU], GPTQ, Refuses, |request| {
        let reason = format!("takes 4 bits, not {}", request.bits);
        (request.bits != 4).then_some(reason)
    }),
    // layers/quantization/utils/quant_utils.py: is_layer_skipped; utils/gptq_utils.py: is_layer_gptq_quantized
    rule(VLLM, BOTH, Refuses, |request| {
        let [in_float, quantized] = request.torn?;
        Some(format!(
            "has {in_float} and {quantized} as one linear, of which only a part would be quantized; leave both in float, or none"
        ))
    }),
    // layers/quantization/auto_gptq.py: TYPE_MAP
    rule(VLLM, GPTQ, Refuses, |request| {
        (!request.symmetric).then(|| "takes symmetric weights only".to_owned())
    }),
    // layers/quantization/utils/gptq_utils.py; with one group a row the order means nothing
    rule(VLLM, GPTQ, Refuses, |request| {
        let reason = "no longer takes desc_act with groups".to_owned();
        (request.desc_act && group_columns(request).is_some()).then_some(reason)
    }),
    // layers/quantization/utils/marlin_utils.py: verify_marlin_supported, which GPTQ layers call on a CPU too
    rule(VLLM, GPTQ, Refuses, |request| {
        group_not_in(request, &FAST_GROUPS)
    }),
    // layers/quantization/auto_gptq.py: create_weights counts whole words
    rule(VLLM, GPTQ, Refuses, |request| {
        let codes = 32 / usize::from(request.bits.clamp(1, 32));
        let linear = misfit(request, |out, inp| {
            out.is_multiple_of(codes) && inp.is_multiple_of(codes)
        })?;
        Some(format!(
            "needs input and output features divisible by {codes}; {linear}"
        ))
    }),
    // layers/quantization/auto_awq.py falls back to AutoAWQ's kernels
    rule(&[VLLM_GPU], AWQ, Slow, |request| {
        let taken = group_not_in(request, &FAST_GROUPS)?;
        Some(format!("not with its fast kernels, which {taken}"))
    }),
    // and these check sizes when they run: csrc, awq gemm_kernels.cu
    rule(&[VLLM_GPU], AWQ, Refuses, |request| {
        group_not_in(request, &FAST_GROUPS)?;
        let columns = group_columns(request)?;
        if !columns.is_multiple_of(32) {
            return Some(format!("needs a group size divisible by 32, not {columns}"));
        }
        let linear = misfit(request, |out, _| {
            out.is_multiple_of(64) && out.is_multiple_of(columns)
        })?;
        Some(format!(
            "needs output features divisible by 64 and by the group size {columns}; {linear}"
        ))
    }),
    // layers/quantization/utils/marlin_utils.py: marlin_padded_nk
    rule(&[VLLM_GPU], BOTH, Slow, |request| {
        let linear = misfit(request, |out, inp| {
            let fits =
                |out_tile, in_tile| out.is_multiple_of(out_tile) && inp.is_multiple_of(in_tile);
            fits(64, 128) || fits(128, 64)
        })?;
        Some(format!(
            "may pad on every call, as its kernels want shapes divisible by [64, 128] or [128, 64]; {linear}"
        ))
    }),
    // kernels/linear/mixed_precision/cpu.py: can_implement
    rule(&[VLLM_CPU], BOTH, Refuses, |request| {
        let linear = misfit(request, |out, inp| {
            out.is_multiple_of(32) && inp.is_multiple_of(32)
        })?;
        Some(format!(
            "needs input and output features divisible by 32; {linear}"
        ))
    }),
    rule(&[VLLM_CPU], AWQ, Refuses, |request| {
        let columns = group_columns(request)?;
        let reason = format!("needs an even group size, not {columns}");
        (!columns.is_multiple_of(2)).then_some(reason)
    }),
    // gptqmodel/nn_modules/qlinear: SUPPORTS_GROUP_SIZE of every kernel
    rule(GPTQMODEL_KERNELS, BOTH, Refuses, |request| {
        let taken = [&FAST_GROUPS, more_groups(request.format)].concat();
        group_not_in(request, &taken)
    }),
    // torch_aten_kernel.py, torch_aten_kernel_awq.py: chosen first on a CPU, fails at other sizes when it runs
    rule(GPTQMODEL_KERNELS, BOTH, Slow, |request| {
        let taken = group_not_in(request, &CPU_GROUPS)?;
        let reason = format!("on a CPU its first kernel {taken}; choose the torch backend there");
        (request.bits == 4).then_some(reason)
    }),
    // gptqmodel/nn_modules/qlinear: SUPPORTS_BITS
    rule(GPTQMODEL_KERNELS, GPTQ, Slow, |request| {
        (request.bits == 3).then(|| "3 bits run in plain PyTorch".to_owned())
    }),
    // gptqmodel/models/loader.py asks `meta.quantizer` for gptqmodel >= 0.9
    rule(&[GPTQMODEL], &[Format::GptqV1], Refuses, |request| {
        let reason = "takes other programs' asymmetric weights in the gptq_v2 layout only";
        (!request.symmetric).then(|| reason.to_owned())
    }),
];

/// The first linear whose output and input features do not fit, in words.
fn misfit(request: &Request<'_>, fits: impl Fn(usize, usize) -> bool) -> Option<String> {
    let mut linears = request.linears.iter();
    let (name, out, inp) = linears.find(|&&(_, out, inp)| !fits(out, inp))?;
    Some(format!("{name} is [{out}, {inp}]"))
}

/// The group size, unless whole rows are meant.
pub(super) fn group_columns(request: &Request<'_>) -> Option<usize> {
    match request.group_size {
        GroupSize::Columns(columns) => Some(columns),
        GroupSize::WholeRow => None,
    }
}

fn group_not_in(request: &Request<'_>, taken: &[i64]) -> Option<String> {
    let size = group_size_number(request.group_size);
    let reason = || format!("takes group sizes {}, not {size}", list(taken, "and"));
    (!taken.contains(&size)).then(reason)
}

/// The known group sizes that divide every linear's input.
pub(super) fn proposal(request: &Request<'_>) -> String {
    let divides = |size: &i64| {
        let columns = usize::try_from(*size).unwrap_or(1);
        let mut linears = request.linears.iter();
        linears.all(|(_, _, inp)| inp.is_multiple_of(columns))
    };
    let fitting = |sizes: &[i64]| -> Vec<i64> { sizes.iter().copied().filter(divides).collect() };
    let fast = list(&fitting(&FAST_GROUPS), "or");
    match fitting(more_groups(request.format)).as_slice() {
        [] => format!("use {fast} (whole rows)"),
        more => format!(
            "use {fast} (whole rows), or {}, which GPTQModel alone takes",
            list(more, "or")
        ),
    }
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
