//! `nibble bench MODEL`: a whole run against the floor.

use std::time::Instant;

use anyhow::{Context, Result};

use crate::cli::QuantizeArgs;
use crate::cli::settings::Settings;
use crate::pipeline;

/// Quantizes into a temporary directory, removes it, and prints the table that closes quantization_report.log.
pub fn bench(args: QuantizeArgs, start: Instant) -> Result<()> {
    let directory = std::env::temp_dir().join(format!("nibble-bench-{}", std::process::id()));
    let settings = Settings {
        output: directory.join("model"),
        ..Settings::resolve(args)?
    };
    let report = pipeline::quantize(&settings, std::env::args().collect(), start);
    let removed = std::fs::remove_dir_all(&directory);
    let report = report?;
    removed.with_context(|| directory.display().to_string())?;
    Ok(super::print(&report.floor_table())?)
}
