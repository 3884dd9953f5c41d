//! Going on with a run that was interrupted, behind the last layer that it finished.

use std::collections::BTreeSet;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::Path;
use std::time::UNIX_EPOCH;

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::activations::Activations;
use super::job::Job;
use super::{Plan, describe};
use crate::calibration::{ImageSource, Windows};
use crate::checkpoint::{Checkpoint, Writer};
use crate::cli::settings::Settings;
use crate::model::{Block, Linear, LinearPlan, Stage};
use crate::report::{LinearReport, SettingsReport, TowerReport};
use crate::weights::ModelDir;

/// What the journal keeps of a layer that is finished, for the report.
#[derive(Serialize, Deserialize)]
pub struct Finished {
    pub linears: Vec<LinearReport>,
    /// What became of the tower, before the first layer.
    pub tower: Option<TowerReport>,
}

/// Opens the output, where an interrupted run of the same `identity` left it or anew. Also returns the layers that are finished.
pub fn open(
    settings: &Settings,
    plan: &Plan,
    identity: &Map<String, Value>,
) -> Result<(Writer, Vec<Finished>)> {
    let (writer, records) = Writer::open(
        &settings.output,
        plan.specs.clone(),
        settings.max_shard_bytes,
        settings.overwrite,
        identity,
    )?;
    let finished = records.into_iter().map(serde_json::from_value);
    let finished = finished.collect::<Result<Vec<Finished>, _>>();
    let finished = finished.with_context(|| writer.partial().display().to_string())?;
    Ok((writer, finished))
}

/// All that decides what a run writes, under names that its user knows. Not the device and the memory: a run may go on elsewhere.
pub fn identity(
    source: &ModelDir,
    settings: &Settings,
    report: &SettingsReport,
    windows: &Windows,
) -> Result<Map<String, Value>> {
    let mut identity = Map::new();
    // As text: numbers may lose their last digit on the way.
    let mut add = |name: &str, value: String| identity.insert(name.to_owned(), value.into());
    if let Value::Object(report) = serde_json::to_value(report)? {
        for (name, value) in report {
            add(&name, value.to_string());
        }
    }
    add("version of nibble", env!("CARGO_PKG_VERSION").to_owned());
    add("moe_all_tokens", settings.moe_all_tokens.to_string());
    add("quantize_vision", settings.selection.vision.to_string());
    add("max_shard_size", settings.max_shard_bytes.to_string());
    add("config.json", source.config.to_string());
    add("weights", weights(&source.checkpoint)?);
    add("calibration data", hash_of_windows(windows).to_string());
    Ok(identity)
}

/// The files of a checkpoint: names, sizes and when they were last changed.
fn weights(checkpoint: &Checkpoint) -> Result<String> {
    let infos = checkpoint.names().filter_map(|name| checkpoint.info(name));
    let files: BTreeSet<&Path> = infos.map(|info| info.file.as_path()).collect();
    let files = files.into_iter().map(|file| -> Result<String> {
        let metadata = file.metadata()?;
        let changed = metadata.modified()?.duration_since(UNIX_EPOCH)?.as_nanos();
        let name = file.file_name().unwrap_or_default().display();
        Ok(format!("{name} {} {changed}", metadata.len()))
    });
    Ok(files.collect::<Result<Vec<_>>>()?.join("\n"))
}

fn hash_of_windows(windows: &Windows) -> u64 {
    let mut hasher = DefaultHasher::new();
    windows.ids.hash(&mut hasher);
    for image in windows.images.iter().flatten() {
        match &image.source {
            ImageSource::File(path) => path.hash(&mut hasher),
            ImageSource::Bytes(bytes) => bytes.hash(&mut hasher),
        }
    }
    hasher.finish()
}

/// The finished layers, as they were written.
pub struct Written(ModelDir);

impl Written {
    /// Reads them from where `writer` writes.
    pub fn open(
        writer: &Writer,
        source: &ModelDir,
        settings: &Settings,
        plan: &Plan,
    ) -> Result<Self> {
        let config = describe::config(source, settings, &plan.tower);
        let checkpoint = Checkpoint::open(writer.partial())?;
        Ok(Self(ModelDir::new(config, checkpoint)?))
    }

    /// Takes `activations` through a finished layer, with what is in memory of it being one stage's linears.
    pub fn run_layer(
        &self,
        job: &Job<'_>,
        activations: &mut Activations<'_>,
        layer: usize,
    ) -> Result<()> {
        let Self(written) = self;
        let block = Block::load(&written.model, written, job.compute, layer)?;
        activations.enter_layer(job.source, layer)?;
        for stage in &written.model.layers[layer].stages {
            if !stage.experts.is_empty() {
                self.run_experts(job, activations, &block, stage)?;
            } else if !stage.mixes.is_empty() {
                let linears = self.linears(job, &stage.linears)?;
                activations.advance(&block, stage, linears)?;
            }
        }
        activations.leave_layer()
    }

    fn run_experts(
        &self,
        job: &Job<'_>,
        activations: &mut Activations<'_>,
        block: &Block,
        stage: &Stage,
    ) -> Result<()> {
        for (index, expert) in stage.experts.iter().enumerate() {
            let selections = activations.select(block, index, 0)?;
            if selections.is_empty() {
                continue;
            }
            let inputs = self.linears(job, &expert.inputs)?;
            let activated =
                activations.expert_activations(block, stage, index, &inputs, &selections)?;
            let output = Linear::load(&expert.output, &self.0, job.compute)?;
            activations.add_expert(block, index, &output, &selections, &activated)?;
        }
        activations.finish_experts(block, stage)
    }

    fn linears(&self, job: &Job<'_>, plans: &[LinearPlan]) -> Result<Vec<Linear>> {
        let linears = plans.iter();
        let linears = linears.map(|linear| Ok(Linear::load(linear, &self.0, job.compute)?));
        linears.collect()
    }
}
