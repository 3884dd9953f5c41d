//! `nibble inspect DIR`.

use std::collections::BTreeMap;

use anyhow::Result;
use serde_json::json;

use crate::cli::InspectArgs;
use crate::model::Weights;
use crate::pack::Family;
use crate::quant::GroupSize;
use crate::report::human_bytes;
use crate::weights::ModelDir;

/// Prints what a model directory holds, without reading a weight.
pub fn inspect(args: &InspectArgs) -> Result<()> {
    let dir = ModelDir::open(&args.model)?;
    let model = &dir.model;
    let parameters: u64 = model
        .tensors()
        .iter()
        .map(|(_, shape)| shape.iter().product::<usize>() as u64)
        .sum();
    let mut dtypes: BTreeMap<String, u64> = BTreeMap::new();
    let mut packed = 0;
    for name in dir.checkpoint.names() {
        if let Some(info) = dir.checkpoint.info(name) {
            *dtypes.entry(format!("{:?}", info.dtype)).or_default() +=
                crate::tensor::byte_len(info.dtype, &info.shape).unwrap_or(0) as u64;
        }
        packed += usize::from(name.ends_with(".qweight"));
    }
    let missing = model
        .tensors()
        .iter()
        .filter(|(name, _)| {
            let packed = name
                .strip_suffix(".weight")
                .is_some_and(|module| dir.contains(&format!("{module}.qweight")));
            !packed && !dir.contains(name)
        })
        .count();
    let quantization = dir.quantized.map(|quantized| {
        let symmetry = if quantized.scheme.symmetric {
            "symmetric"
        } else {
            "asymmetric"
        };
        let group = match quantized.scheme.group_size {
            GroupSize::Columns(columns) => format!("groups of {columns}"),
            GroupSize::WholeRow => "whole rows".to_owned(),
        };
        format!(
            "{:?}, {} bit, {group}, {symmetry}",
            quantized.format, quantized.scheme.bits
        )
    });
    let loaders = Family::find(model.model_type()).map_or("unknown".to_owned(), Family::loaders);
    if args.json {
        let object = json!({
            "model_type": model.model_type(),
            "architecture": model.architecture_name(),
            "loaded_by": loaders,
            "layers": model.config.n_layers,
            "hidden_size": model.config.hidden_size,
            "parameters": parameters,
            "quantization": quantization,
            "quantized_linears": packed,
            "bytes": dir.checkpoint.total_bytes(),
            "bytes_by_dtype": dtypes,
            "missing_tensors": missing,
        });
        return Ok(super::print(&format!("{object}\n"))?);
    }
    let quantization = quantization.map_or("none".to_owned(), |format| {
        format!("{format}, {packed} linears")
    });
    let mut lines = vec![
        format!(
            "family        {} ({})",
            model.model_type(),
            model.architecture_name()
        ),
        format!("loaded by     {loaders} (quantized models of this family)"),
        format!(
            "layers        {}, hidden size {}",
            model.config.n_layers, model.config.hidden_size
        ),
        format!("parameters    {:.1} M", parameters as f64 / 1e6),
        format!("quantization  {quantization}"),
        format!(
            "size          {}",
            human_bytes(dir.checkpoint.total_bytes())
        ),
    ];
    lines.extend(
        dtypes
            .iter()
            .map(|(dtype, bytes)| format!("  {dtype:<11} {}", human_bytes(*bytes))),
    );
    if missing > 0 {
        lines.push(format!(
            "missing       {missing} tensors that config.json asks for"
        ));
    }
    Ok(super::print(&(lines.join("\n") + "\n"))?)
}
