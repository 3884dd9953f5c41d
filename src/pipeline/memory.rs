//! How much memory a run takes, and how it is made to fit: windows a batch, whether wide activations are kept, and
//! whether a window goes through the linears in slices.

use std::ops::Range;

use tch::Device;

use super::batch::first_fit;
use crate::cli::settings::Settings;
use crate::fault::ResourceError;
use crate::model::vision::Vision;
use crate::model::{Compute, LinearPlan, Mix, Model, Slot, Stage, StageInput};
use crate::report::human_bytes;

/// Most tokens that run through a layer together: enough for full-speed products, few enough for a CPU's caches.
const TOKENS_PER_BATCH: usize = 4096;

/// Tokens of a slice.
const TOKENS_PER_SLICE: usize = 512;

/// Float32 matrices of a stage's width that live at once: the Gram matrix, and its reordered copy or a factor of it.
const GRAM_COPIES: usize = 2;

/// What the run will hold beyond libtorch's own, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct MemoryPlan {
    /// Windows that run through a layer together.
    pub batch_size: usize,
    /// Whether the MLP's wide activations are made a second time instead of kept, at the price of running its first stage
    /// twice.
    pub recompute: bool,
    /// Tokens of each window that run together through everything but attention, where that is not all of them.
    pub slice: Option<usize>,
    /// Elements of a token that wait in slots between two stages, at most.
    pub slot_width: usize,
    /// Whether the activations wait on the GPU that computes, instead of on the host.
    pub resident: bool,
    /// All windows' activations, those inside of the expert that is solved among them.
    pub activations: u64,
    /// The weights, statistics and codes of the stage that takes the most, or the tower that sees, where the run computes.
    pub stage: u64,
    /// One batch's temporaries in it, where the run computes.
    pub batch: u64,
}

/// Bytes that the run may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    pub host: u64,
    /// Of the GPU, where one computes.
    pub gpu: u64,
}

impl MemoryPlan {
    /// The fastest plan that takes no more than `budget`. The model sees with a `tower` of so many bytes,
    /// which is gone before the first stage, so many images.
    ///
    /// # Errors
    /// [`ResourceError`] if the run does not fit even when it is made as small as it can be.
    pub fn new(
        model: &Model,
        settings: &Settings,
        compute: Compute,
        [tower, n_images]: [usize; 2],
        budget: Budget,
    ) -> Result<Self, ResourceError> {
        let element = compute.kind.elt_size_in_bytes();
        let windows = settings.num_samples;
        let is_gpu = compute.device.is_cuda();
        let stages = || model.layers.iter().flat_map(|layer| &layer.stages);
        // Images that layers attend to wait beside the activations.
        let n_looked_at = model.vision.as_ref().and_then(Vision::n_looked_at);
        let n_looked_at = n_looked_at.unwrap_or(0);
        let images = n_images * n_looked_at * model.config.hidden_size * element;
        let routed = routed_bytes(model, settings, element);
        // The stage that takes the most, its weights and the tokens that run through it together.
        let widest = |batch_size: usize, slice: Option<usize>| {
            let both = stages().map(|stage| {
                // Attention needs whole windows.
                let slice = slice.filter(|_| stage.is_tokenwise());
                let tokens = match stage.input {
                    // As if each window had one.
                    StageInput::Images => batch_size * n_looked_at,
                    _ => batch_size * slice.unwrap_or(settings.seq_len),
                };
                (
                    stage_bytes(stage, element, is_gpu),
                    tokens * token_bytes(stage, element),
                )
            });
            both.max_by_key(|(stage, batch)| stage + batch)
                .unwrap_or((0, 0))
        };
        let largest = settings.batch_size.unwrap_or_else(|| {
            let windows_per_batch = TOKENS_PER_BATCH / settings.seq_len;
            windows_per_batch.clamp(1, windows)
        });
        let smallest = settings.batch_size.unwrap_or(1);
        let plan = |resident: bool, batch_size: usize, recompute: bool, slice: Option<usize>| {
            let (stage, batch) = widest(batch_size, slice);
            let slot_width = slot_width(model, recompute);
            // As if all tokens were those of images.
            let kept = model.vision.as_ref().map_or(0, |vision| {
                vision.n_deep() + usize::from(model.config.layer_input.is_some())
            });
            let width = model.config.hidden_size * (1 + kept) + slot_width;
            let activations = windows * settings.seq_len * width * element + images + routed;
            Self {
                batch_size,
                recompute,
                slice,
                slot_width,
                resident,
                activations: activations as u64,
                stage: stage.max(tower) as u64,
                batch: batch as u64,
            }
        };
        let slice = (settings.seq_len > TOKENS_PER_SLICE).then_some(TOKENS_PER_SLICE);
        // Running a stage twice costs more time than smaller batches; copies to and from a GPU, by arithmetic, cost the most.
        [
            (true, largest, false, None),
            (true, smallest, false, None),
            (true, largest, true, None),
            (true, smallest, true, None),
            (false, largest, false, None),
            (false, smallest, false, None),
            (false, smallest, false, slice),
            (false, largest, true, None),
            (false, smallest, true, None),
            (false, smallest, true, slice),
        ]
        .into_iter()
        .filter(|&(resident, ..)| is_gpu || !resident)
        .map(|(resident, batch_size, recompute, slice)| {
            plan(resident, batch_size.min(windows), recompute, slice)
        })
        .find(|plan| {
            plan.on_host(compute.device) <= budget.host && plan.on_gpu(compute.device) <= budget.gpu
        })
        .ok_or_else(|| {
            let least = plan(false, smallest.min(windows), true, slice);
            let (on_host, on_gpu) = (least.on_host(compute.device), least.on_gpu(compute.device));
            let activations = format!(
                "{} for the activations of {windows} windows of {} tokens, ",
                human_bytes(least.activations),
                settings.seq_len
            );
            let (whose, needed, allowed, activations, remedy) = if on_host > budget.host {
                let remedy = "lower --num-samples or --seq-len, free memory, or raise --memory";
                ("memory", on_host, budget.host, &activations[..], remedy)
            } else {
                let remedy = "lower --seq-len or --batch-size, free the GPU's memory (nvidia-smi says who holds it), raise --vram, \
                              or compute on the CPU with --force-cpu";
                ("the GPU's memory", on_gpu, budget.gpu, "", remedy)
            };
            ResourceError {
                problem: format!(
                    "the run needs {} of {whose}: {activations}{} for the widest stage, {} for one batch; that is {} more \
                     than the {} it may take",
                    human_bytes(needed),
                    human_bytes(least.stage),
                    human_bytes(least.batch),
                    human_bytes(needed - allowed),
                    human_bytes(allowed)
                ),
                remedy,
            }
        })
    }

    /// What the host holds of it where `device` computes. Where a GPU does, weights and codes still pass through.
    pub fn on_host(&self, device: Device) -> u64 {
        match device {
            Device::Cpu => self.activations + self.stage + self.batch,
            _ if self.resident => self.stage,
            _ => self.activations + self.stage,
        }
    }

    /// What the GPU holds of it, if `device` is one.
    pub fn on_gpu(&self, device: Device) -> u64 {
        match device {
            Device::Cpu => 0,
            _ if self.resident => self.activations + self.stage + self.batch,
            _ => self.stage + self.batch,
        }
    }
}

/// Elements of a token that mixing steps leave for later stages, at most.
pub(super) fn slot_width(model: &Model, recompute: bool) -> usize {
    let mut widest = 0;
    let mut places: Vec<(Slot, Range<usize>)> = Vec::new();
    for layer in &model.layers {
        if let Some(input) = model.config.layer_input {
            let start = first_fit(&places, input.width);
            places.push((Slot::LayerInput, start..start + input.width));
            widest = widest.max(start + input.width);
        }
        if layer.config.looks {
            let start = first_fit(&places, 1);
            places.push((Slot::Sees, start..start + 1));
        }
        for stage in &layer.stages {
            let empties = stage.empties();
            let empty =
                |places: &mut Vec<(Slot, _)>| places.retain(|place| !empties.contains(&place.0));
            if !stage.is_tokenwise() {
                empty(&mut places);
            }
            if !(recompute && stage.remakable) {
                let mut fills = stage.fills();
                let added = (Slot::Added, stage.in_features);
                if !stage.experts.is_empty() && !places.iter().any(|place| place.0 == Slot::Added) {
                    fills.push(added);
                }
                for (slot, width) in fills {
                    let start = first_fit(&places, width);
                    places.push((slot, start..start + width));
                    widest = widest.max(start + width);
                }
            }
            empty(&mut places);
        }
    }
    widest
}

/// Bytes of what the last linear of an expert reads of the tokens that calibrate it, as if twice as many were routed to it as to the
/// mean one.
fn routed_bytes(model: &Model, settings: &Settings, element: usize) -> usize {
    let Some(config) = &model.config.experts else {
        return 0;
    };
    let stages = model.layers.iter().flat_map(|layer| &layer.stages);
    let widths = stages.flat_map(|stage| &stage.experts);
    let widest = widths.map(|expert| expert.output.in_features).max();
    let tokens = settings.num_samples * settings.seq_len;
    let routed = if settings.moe_all_tokens {
        tokens
    } else {
        tokens.min(2 * tokens * config.top_k / config.count)
    };
    routed * widest.unwrap_or(0) * element
}

/// Bytes of a stage's weights (two float32 copies while they are solved, on a GPU three, codes, as they run, and waiting to be
/// written) and Gram matrix.
///
/// Experts are solved one by one; a second float32 copy of one is then kept for the proof of its folds.
fn stage_bytes(stage: &Stage, element: usize, is_gpu: bool) -> usize {
    let copies = if is_gpu { 3 } else { 2 };
    let bytes = |weights: usize, inp: usize| {
        weights * (copies * 4 + 1 + 1 + element) + inp * inp * 4 * GRAM_COPIES
    };
    let experts = stage.experts.iter().map(|expert| {
        let weights = |linear: &LinearPlan| linear.out_features * linear.in_features;
        let inputs: usize = expert.inputs.iter().map(weights).sum();
        let [rows, width] = expert.output.shape();
        let copies = (inputs + rows * width) * 2 * 4;
        copies + bytes(inputs, stage.in_features).max(bytes(rows * width, width))
    });
    let own = bytes(stage.out_features() * stage.in_features, stage.in_features);
    // What stays in float, and a copy of it as it runs.
    let dense: usize = stage.dense.iter().map(|linear| linear.out_features).sum();
    let dense = dense * stage.in_features * (4 + element);
    experts.max().unwrap_or(0).max(own) + dense
}

/// Bytes of one token's temporaries in a stage: its normalized input (on the way to it two float32 copies, but not of
/// bfloat16 on the CPU), its outputs and what the mixing step makes of them.
fn token_bytes(stage: &Stage, element: usize) -> usize {
    let input = match stage.input {
        StageInput::Norm(_) | StageInput::NormOf(..) => stage.in_features * (4 + 4 + element),
        StageInput::Hidden | StageInput::Slot(_) | StageInput::Images => 0,
    };
    // Queries and keys are put together of their parts.
    let copies = if stage.mixes.contains(&Mix::LatentAttention) {
        6
    } else {
        2
    };
    let experts = stage.experts.iter();
    let expert = experts.map(|expert| expert.output.in_features).max();
    let dense: usize = stage.dense.iter().map(|linear| linear.out_features).sum();
    let rows = stage.out_features() + dense + 2 * expert.unwrap_or(0);
    // Other mixers compute in float32.
    let wide = if stage.mixes.contains(&Mix::Mixer) {
        4 * rows * size_of::<f32>()
    } else {
        0
    };
    input + copies * rows * element + wide
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use serde_json::json;
    use tch::Kind;

    use super::*;
    use crate::cli::Cli;

    fn plan(args: &[&str], host: u64) -> Result<MemoryPlan, ResourceError> {
        let gpu = 0;
        plan_on(Device::Cpu, args, Budget { host, gpu })
    }

    fn plan_on(device: Device, args: &[&str], budget: Budget) -> Result<MemoryPlan, ResourceError> {
        let config = json!({
            "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_act": "silu", "hidden_size": 256,
            "intermediate_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
            "head_dim": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "max_position_embeddings": 4096,
            "vocab_size": 128, "tie_word_embeddings": true,
        });
        let model = Model::from_config(&config).unwrap();
        let args = ["nibble", "m", "--seq-len", "1024"].iter().chain(args);
        let settings = Settings::resolve(Cli::try_parse_from(args).unwrap().quantize).unwrap();
        let compute = Compute {
            device,
            kind: Kind::BFloat16,
        };
        MemoryPlan::new(&model, &settings, compute, [0, 0], budget)
    }

    #[test]
    fn less_memory_makes_batches_smaller_then_slices_and_then_recomputes() {
        let expected = [
            (4, false, None),
            (1, false, None),
            (1, false, Some(512)),
            (4, true, None),
            (1, true, None),
            (1, true, Some(512)),
        ];
        let mut budget = u64::MAX;
        for expected in expected {
            let found = plan(&[], budget).unwrap();
            assert_eq!((found.batch_size, found.recompute, found.slice), expected);
            let carried = if found.recompute { 256 } else { 1024 };
            assert_eq!(found.activations, 128 * 1024 * (256 + carried) * 2);
            budget = found.on_host(Device::Cpu) - 1;
        }
        let error = plan(&[], budget).unwrap_err();
        assert!(error.to_string().contains("that is 1 B more"), "{error}");
    }

    #[test]
    fn a_gpu_with_little_memory_keeps_less_there() {
        let gpu = Device::Cuda(0);
        let host = u64::MAX;
        let all = Budget {
            host,
            gpu: u64::MAX,
        };
        let largest = plan_on(gpu, &[], all).unwrap();
        let needed = largest.on_gpu(gpu);
        let bytes = largest.stage + largest.batch + largest.activations;
        assert_eq!((largest.batch_size, largest.resident), (4, true));
        assert_eq!((needed, largest.on_host(gpu)), (bytes, largest.stage));
        // Then the activations wait on the host.
        let mut budget = all;
        for expected in [
            (4, false, true),
            (1, false, true),
            (4, true, true),
            (1, true, true),
            (4, false, false),
            (1, false, false),
        ] {
            let found = plan_on(gpu, &[], budget).unwrap();
            let way = (found.batch_size, found.recompute, found.resident);
            assert_eq!(way, expected);
            budget.gpu = found.on_gpu(gpu) - 1;
        }
        let error = plan_on(gpu, &[], Budget { host, gpu: 1000 })
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("of the GPU's memory") && error.contains("--force-cpu"),
            "{error}"
        );
        let error = plan_on(gpu, &[], Budget { host: 1000, ..all })
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("of memory: ") && error.contains("--num-samples"),
            "{error}"
        );
    }

    #[test]
    fn a_batch_size_that_was_asked_for_is_kept() {
        for budget in [u64::MAX, 400 << 20] {
            assert_eq!(plan(&["--batch-size", "3"], budget).unwrap().batch_size, 3);
        }
        let few = plan(&["--num-samples", "2"], u64::MAX).unwrap();
        assert_eq!(few.batch_size, 2);
    }
}
