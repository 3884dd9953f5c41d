//! `nibble [OPTIONS] [MODEL]`.

use std::time::Instant;

use anyhow::Result;

use crate::cli::QuantizeArgs;
use crate::cli::settings::Settings;
use crate::device::rates::Rates;
use crate::pipeline::{self, EXPECTED_IMAGES, Plan};

/// Quantizes, or with `--dry-run` prints the plan.
pub fn quantize(args: QuantizeArgs, start: Instant) -> Result<()> {
    let settings = Settings::resolve(args)?;
    if settings.dry_run {
        let source = pipeline::open(&settings)?;
        let compute = pipeline::compute(&settings.compute)?;
        let plan = Plan::new(&source, &settings, compute, EXPECTED_IMAGES)?;
        let rates = Rates::measure(compute.device, compute.kind)?;
        super::print(&plan.render(&source, &settings, compute, &rates))?;
        return Ok(());
    }
    let command = std::env::args().collect();
    pipeline::quantize(&settings, command, start)?;
    Ok(())
}
