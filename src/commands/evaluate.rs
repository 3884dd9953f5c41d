//! `nibble eval DIR`.

use std::path::Path;
use std::time::Instant;

use anyhow::Result;
use serde_json::json;

use crate::calibration::{self, Images, Reading, Tokenizer};
use crate::cli::EvalArgs;
use crate::cli::settings::ComputeChoice;
use crate::eval::{self, Evaluation, Predictions};
use crate::model::Compute;
use crate::pipeline;
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
    let tokenizer = Tokenizer::open(args.reference.as_ref().unwrap_or(&args.models[0]))?;
    let documents = match &args.text {
        Some(path) => calibration::load(Some(path), Images::Dropped)?,
        None => calibration::held_out(Images::Dropped)?,
    };
    let windows = calibration::windows(
        &documents,
        &Reading::plain(&tokenizer),
        args.seq_len,
        args.windows,
        SEED,
    )?;
    let original = reference
        .map(|dir| Predictions::new(&dir, compute, &windows.ids))
        .transpose()?;
    for (dir, model) in args.models.iter().zip(models) {
        let predictions = Predictions::new(&model, compute, &windows.ids)?;
        let result = eval::evaluate(&predictions, original.as_ref(), compute, &windows.ids)?;
        if args.json {
            let mut object = serde_json::to_value(&result)?;
            if let Some(object) = object.as_object_mut() {
                object.insert("model".into(), json!(dir));
                object.insert("windows".into(), json!(windows.ids.len()));
                object.insert("seq_len".into(), json!(args.seq_len));
            }
            super::print(&format!("{object}\n"))?;
        } else {
            super::print(&table(dir, &result))?;
        }
    }
    if !args.json {
        super::print(&format!(
            "{} windows of {} tokens, {:?} in {:?}, {:.1} s\n",
            windows.ids.len(),
            args.seq_len,
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
