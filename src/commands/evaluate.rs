//! `nibble eval DIR`.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use crate::calibration::{self, ChatTemplate, Images, Reading, Tokenizer};
use crate::cli::EvalArgs;
use crate::cli::settings::ComputeChoice;
use crate::eval::{self, Evaluation, Predictions};
use crate::model::Compute;
use crate::pipeline;
use crate::sight;
use crate::weights::ModelDir;

/// Seed of the order of documents, where the text has several. Fixed, so that figures compare.
const SEED: u64 = 0;

/// Measures and prints each model's perplexity; with a reference, KL divergence and agreement too.
///
/// Computes in float32 on the CPU unless told otherwise: the rounding of bfloat16 would drown an 8-bit model's error.
pub fn evaluate(args: &EvalArgs) -> Result<()> {
    let start = Instant::now();
    let choice = ComputeChoice::resolve(&args.compute)?;
    let compute = Compute {
        kind: choice.kind.unwrap_or(tch::Kind::Float),
        ..pipeline::compute(&choice)?
    };
    let models = (args.models.iter())
        .map(|dir| ModelDir::open(dir))
        .collect::<Result<Vec<_>>>()?;
    let reference = args.reference.as_deref().map(ModelDir::open).transpose()?;
    let reads = reference.as_ref().unwrap_or(&models[0]);
    let dir = reads.checkpoint.dir();
    let tokenizer = Tokenizer::open(dir)?;
    let data = match &args.text {
        Some(path) => sight::load(Some(path), reads)?,
        None => sight::Data::of_text(calibration::held_out(Images::Dropped)?),
    };
    let processor = data.processor.as_ref();
    // Text is measured as it is, whatever the model's template makes of it; images have no place in it without one.
    let template = processor.map(|_| ChatTemplate::open(dir)).transpose()?;
    let template = template.flatten();
    let reading = Reading {
        tokenizer: &tokenizer,
        template: template.as_ref(),
        prompts: processor.map(|processor| processor as _),
    };
    let windows =
        calibration::windows(&data.documents, &reading, args.seq_len, args.windows, SEED)?;
    let original = reference
        .map(|dir| Predictions::new(&dir, compute, &windows, processor))
        .transpose()?;
    let n_images: usize = windows.images.iter().map(Vec::len).sum();
    for (dir, model) in args.models.iter().zip(models) {
        let predictions = Predictions::new(&model, compute, &windows, processor)?;
        let image_token = model.model.vision.as_ref().map(|vision| vision.image_token);
        let original = original.as_ref();
        let result = eval::evaluate(&predictions, original, compute, &windows, image_token)?;
        if args.json {
            let mut object = serde_json::to_value(&result)?;
            if let Some(object) = object.as_object_mut() {
                object.insert("model".into(), json!(dir));
                object.insert("windows".into(), json!(windows.ids.len()));
                object.insert("seq_len".into(), json!(args.seq_len));
                object.insert("images".into(), json!(n_images));
            }
            super::print(&format!("{object}\n"))?;
        } else {
            super::print(&table(dir, &result))?;
        }
    }
    if !args.json {
        super::print(&format!(
            "{} windows of {} tokens{}, {:?} in {:?}, {:.1} s\n",
            windows.ids.len(),
            args.seq_len,
            match n_images {
                0 => String::new(),
                _ => format!(" with {n_images} images"),
            },
            compute.device,
            compute.kind,
            start.elapsed().as_secs_f64()
        ))?;
    }
    Ok(())
}

fn table(dir: &Path, result: &Evaluation) -> String {
    let mut lines = vec![
        dir.display().to_string(),
        format!("perplexity      {:.4}", result.perplexity),
    ];
    if let (Some(kl), Some(top1), Some(original)) = (
        result.kl_divergence,
        result.top1_agreement,
        result.reference_perplexity,
    ) {
        lines.push(format!("the original's  {original:.4}"));
        lines.push(format!("KL divergence   {kl:.5} nats"));
        lines.push(format!("top-1 agreement {:.2} %", 100.0 * top1));
    }
    lines.join("\n") + "\n"
}
