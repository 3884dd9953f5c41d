//! quantization_report.log: the report as a person reads it.

use std::fmt::Write;

use super::{Report, human_bytes};
use crate::device::monitor::{Readings, Series};

/// The whole report, one fact a line, one row a linear.
pub fn render(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write(report, &mut text);
    text
}

fn write(report: &Report, out: &mut String) -> std::fmt::Result {
    let Report {
        model,
        settings,
        calibration,
        ..
    } = report;
    writeln!(
        out,
        "nibble {} with libtorch {}",
        report.nibble, report.libtorch
    )?;
    writeln!(out, "command      {}", report.command.join(" "))?;
    writeln!(
        out,
        "model        {} ({}, {} layers, {:.1} M parameters, {:.1} M of them quantized)",
        model.directory,
        model.model_type,
        model.layers,
        model.parameters as f64 / 1e6,
        model.quantized_parameters as f64 / 1e6
    )?;
    writeln!(
        out,
        "method       {} {} bit, group size {}, {}, format {}",
        settings.method,
        settings.bits,
        settings.group_size,
        if settings.symmetric {
            "symmetric"
        } else {
            "asymmetric"
        },
        settings.format
    )?;
    if let (Some(order), Some(damp)) = (&settings.act_order, settings.damp_percent) {
        writeln!(out, "             act order {order}, damp {damp}")?;
    }
    for (option, patterns) in [("ignore", &settings.ignore), ("only", &settings.only)] {
        if !patterns.is_empty() {
            writeln!(out, "{option:12} {}", patterns.join("  "))?;
        }
    }
    writeln!(
        out,
        "calibration  {} ({} documents): {} windows of {} tokens ({} asked for), {} tokens, BOS {}, seed {}",
        calibration.source,
        calibration.documents,
        calibration.windows,
        calibration.seq_len,
        calibration.windows_requested,
        calibration.tokens,
        calibration
            .bos
            .map_or("none".to_owned(), |id| id.to_string()),
        settings.seed
    )?;
    if calibration.images > 0 {
        writeln!(
            out,
            "images       {} shown, {} of the tokens stand for them, the other {} are text",
            calibration.images,
            calibration.image_tokens,
            calibration.tokens - calibration.image_tokens
        )?;
    }
    writeln!(
        out,
        "device       {}, forward pass in {}, {} windows a batch{}{}",
        report.device,
        report.compute_dtype,
        report.batch_size,
        if report.recompute {
            ", the MLP's activations made twice"
        } else {
            ""
        },
        report
            .slice
            .map_or(String::new(), |slice| format!(", {slice} tokens a slice"))
    )?;
    if report.resumed_layers > 0 {
        writeln!(
            out,
            "resumed      behind layer {} of {}, which an interrupted run had finished; times and memory are of the rest",
            report.resumed_layers, model.layers
        )?;
    }
    if let Some(tower) = &report.tower {
        writeln!(
            out,
            "tower        {} linears rounded to nearest, relative weight error {:.2e}; {} in float, as the group size does not divide them",
            tower.linears,
            tower.relative_weight_error,
            tower.in_float.len()
        )?;
    }
    for warning in &report.warnings {
        writeln!(out, "warning      {warning}")?;
    }

    writeln!(out)?;
    let width = report
        .linears
        .iter()
        .map(|linear| linear.name.len())
        .max()
        .unwrap_or(0);
    // Tokens that each linear saw: of text and of images, where there were any.
    let tokens = |text: &str, images: &str| match calibration.images {
        0 => format!("{text:>8}"),
        _ => format!("{text:>11}  {images:>12}"),
    };
    writeln!(
        out,
        "{:width$}  {:>13}  {:>10}  {:>9}  {:>7}  {}  solver",
        "linear",
        "out x in",
        "error",
        "relative",
        "seconds",
        match calibration.images {
            0 => tokens("tokens", ""),
            _ => tokens("text tokens", "image tokens"),
        }
    )?;
    for linear in &report.linears {
        let solver = match (&linear.awq, &linear.gptq) {
            (Some(awq), _) => format!(
                "scale {} (x{:.3} error), clip (x{:.3})",
                awq.scale, awq.scale_gain, awq.clip_gain
            ),
            (_, Some(gptq)) => format!("damp {:.3}, {} dead columns", gptq.damp, gptq.dead_columns),
            _ => "rounded to nearest".to_owned(),
        };
        writeln!(
            out,
            "{:width$}  {:>13}  {:>10.4e}  {:>9.2e}  {:>7.2}  {}  {solver}",
            linear.name,
            format!("{} x {}", linear.out_features, linear.in_features),
            linear.error,
            linear.relative_error,
            linear.seconds,
            tokens(
                &(linear.tokens - linear.image_tokens).to_string(),
                &linear.image_tokens.to_string()
            )
        )?;
    }

    writeln!(out)?;
    writeln!(
        out,
        "mean relative output error  {:.3e}",
        report.mean_relative_error()
    )?;
    writeln!(
        out,
        "size                        {} -> {}",
        human_bytes(report.input_bytes),
        human_bytes(report.output_bytes)
    )?;
    out.push_str(&memory_lines(&report.memory));
    writeln!(out)?;
    write_floor(report, out)
}

/// The most memory that was in use, of which kind, when and in which stage, and how often that was looked at.
pub fn memory_lines(memory: &Readings) -> String {
    let peak = |series: &Series, unseen: &str| match &series.peak {
        None => unseen.to_owned(),
        Some(peak) => format!(
            "{} at {:.1} s, in {}",
            human_bytes(peak.bytes),
            peak.seconds,
            peak.stage
        ),
    };
    let counts = |series: &Series| {
        format!(
            "{} readings, one every {} ms, {} failed",
            series.samples, memory.interval_ms, series.failed
        )
    };
    let ram = peak(&memory.ram, "unknown");
    let mut lines = vec![("peak RAM", format!("{ram} ({})", counts(&memory.ram)))];
    match &memory.vram {
        None if memory.note.is_none() => lines.push(("peak VRAM", "no GPU was used".to_owned())),
        None => lines.push(("peak VRAM", "unknown".to_owned())),
        Some(vram) => {
            let total = human_bytes(vram.total_bytes);
            let hidden = "unknown, the driver does not show this process";
            lines.extend([
                ("peak VRAM", peak(&vram.process, hidden)),
                ("peak VRAM of all processes", peak(&vram.device, "unknown")),
                (
                    "VRAM read",
                    format!("{} of {total}: {}", vram.gpu, counts(&vram.device)),
                ),
            ]);
        }
    }
    let lines = lines.into_iter();
    let lines: Vec<String> = lines
        .map(|(label, value)| format!("{label:<26}  {value}"))
        .collect();
    lines.join("\n") + "\n"
}

/// Operations, ideal and measured seconds of each part of the run, and the rates behind the ideal.
pub fn floor_table(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ = write_floor(report, &mut text);
    text
}

fn write_floor(report: &Report, out: &mut String) -> std::fmt::Result {
    writeln!(
        out,
        "{:<20} {:>10} {:>10} {:>10} {:>7}",
        "part", "TFLOP", "ideal s", "seconds", "ratio"
    )?;
    // Nothing to count, nothing to compare with.
    let counted = |value: f64, decimals: usize| match value {
        0.0 => "-".to_owned(),
        value => format!("{value:.decimals$}"),
    };
    for phase in &report.phases {
        let ratio = match phase.ideal_seconds {
            0.0 => 0.0,
            ideal => phase.seconds / ideal,
        };
        writeln!(
            out,
            "{:<20} {:>10} {:>10} {:>10.2} {:>7}",
            phase.name,
            counted(phase.operations / 1e12, 3),
            counted(phase.ideal_seconds, 2),
            phase.seconds,
            counted(ratio, 2)
        )?;
    }
    writeln!(
        out,
        "ideal at {:.0} GFLOP/s in {}, {:.0} GFLOP/s in float32, copies of {:.1} GB/s, measured before and after the run",
        report.rates.forward / 1e9,
        report.compute_dtype,
        report.rates.float32 / 1e9,
        report.rates.copy / 1e9
    )
}
