//! What the configuration files say of a quantized model.

use std::collections::{BTreeMap, HashSet};

use anyhow::Result;
use serde_json::Value;

use super::tower::Tower;
use crate::checkpoint::Writer;
use crate::cli::settings::Settings;
use crate::model::{LayerPlan, Model};
use crate::pack::{self, Description, Family, Float, GptqDetails, Outside};
use crate::quant::gptq::ActOrder;
use crate::weights::ModelDir;

/// config.json with the quantization that the runtimes read, and the same beside it.
pub fn write_config(
    writer: &Writer,
    source: &ModelDir,
    settings: &Settings,
    tower: &Tower,
) -> Result<()> {
    let quantization = quantization(source, settings, tower);
    let config = edited(source, quantization.clone());
    for (file, content) in [
        ("config.json", config),
        ("quantize_config.json", quantization),
    ] {
        writer.write_file(file, &serde_json::to_vec_pretty(&content)?)?;
    }
    Ok(())
}

/// What config.json will say.
pub fn config(source: &ModelDir, settings: &Settings, tower: &Tower) -> Value {
    edited(source, quantization(source, settings, tower))
}

fn edited(source: &ModelDir, quantization: Value) -> Value {
    pack::edit_config(
        &source.config,
        quantization,
        source.model.architecture_name(),
    )
}

fn quantization(source: &ModelDir, settings: &Settings, tower: &Tower) -> Value {
    let gptq = settings.solver.gptq().map(|gptq| GptqDetails {
        damp_percent: gptq.damp,
        desc_act: gptq.act_order == ActOrder::DescAct,
        static_groups: gptq.act_order == ActOrder::Static,
        act_group_aware: gptq.act_order == ActOrder::GroupAware,
    });
    let model = &source.model;
    let layers = &model.layers;
    let dense = || layers.iter().flat_map(LayerPlan::in_float);
    let projections = dense().filter(|linear| linear.in_float || linear.is_projection());
    let projections: Vec<String> = projections.map(|linear| linear.name.clone()).collect();
    let mut dense: Vec<String> = dense().map(|linear| linear.name.clone()).collect();
    let outside = outside_decoder(source, tower);
    dense.extend(outside.linears);
    let layer_input = model.config.layer_input;
    if let Some(row) = model.arch.layer_input.filter(|_| layer_input.is_some()) {
        dense.push(model.stored_name(row.model_projection));
    }
    let mut in_block = quantized_in_block(model);
    in_block.extend(tower.linears.iter().map(|linear| linear.0.clone()));
    let blocks = model.stored_name(model.arch.layers);
    let inside = model.inside();
    let description = Description {
        format: settings.format,
        scheme: settings.scheme,
        gptq,
        float: Float {
            linears: &dense,
            projections: &projections,
            parts: &outside.parts,
            inside: inside.as_deref(),
        },
        head: &model.stored_name(model.arch.head),
        quantized_in_block: &in_block,
        named_by_vllm: Family::find(model.model_type()).map_or(&[], |family| family.named_by_vllm),
        blocks: Some(&blocks[..]).filter(|_| inside.is_some()),
    };
    description.quantization_config()
}

/// Linears of the checkpoint that stay in float outside the language model: what sees, but for those of `tower`, and layers that
/// predict more than the next token.
fn outside_decoder(source: &ModelDir, tower: &Tower) -> Outside {
    let (model, checkpoint) = (&source.model, &source.checkpoint);
    let mut used: HashSet<String> = model.tensors().into_iter().map(|tensor| tensor.0).collect();
    let in_tower = tower.linears.iter();
    used.extend(in_tower.map(|linear| format!("{}.weight", linear.0)));
    let head = format!("{}.weight", model.stored_name(model.arch.head));
    let unused = checkpoint
        .names()
        .filter(|&name| !used.contains(name) && name != head);
    let linears = unused.filter_map(|name| {
        let is_matrix = checkpoint.info(name)?.shape.len() == 2;
        name.strip_suffix(".weight").filter(|_| is_matrix)
    });
    let quantized = model.layers.iter().flat_map(LayerPlan::quantized);
    let quantized = quantized.map(|linear| &linear.name[..]);
    let in_tower = tower.linears.iter().map(|linear| &linear.0[..]);
    let quantized: Vec<&str> = quantized.chain(in_tower).collect();
    Outside::new(linears, &used, &quantized)
}

/// Names of the linears that are quantized: as they are inside a block, or with the block's (`layers.3.mlp.down_proj`), where
/// those of other blocks stay in float. Readers look for them at the end of their full names, or anywhere in these.
fn quantized_in_block(model: &Model) -> Vec<String> {
    let blocks = model.stored_name(model.arch.layers);
    let last = blocks.rsplit('.').next().unwrap_or_default();
    let mut found: BTreeMap<&str, (Vec<usize>, bool)> = BTreeMap::new();
    for (index, layer) in model.layers.iter().enumerate() {
        let prefix = format!("{blocks}.{index}.");
        for linear in layer.linears() {
            let name = linear.name.strip_prefix(&prefix).unwrap_or(&linear.name);
            let (quantized, everywhere) = found.entry(name).or_insert((Vec::new(), true));
            *everywhere &= !linear.in_float;
            if !linear.in_float {
                quantized.push(index);
            }
        }
    }
    let names = found
        .into_iter()
        .flat_map(|(name, (quantized, everywhere))| {
            let in_blocks = quantized
                .iter()
                .map(|index| format!("{last}.{index}.{name}"));
            if everywhere {
                vec![name.to_owned()]
            } else {
                in_blocks.collect()
            }
        });
    names.collect()
}
