//! Progress while a model is quantized: a bar on a terminal, plain log lines anywhere else.

use std::fmt;
use std::io::{IsTerminal, Write};
use std::sync::OnceLock;
use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressState, ProgressStyle};
use tracing::level_filters::LevelFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::{layer::SubscriberExt, util::SubscriberInitExt};

use super::human_bytes;
use crate::cli::{LogArgs, LogFormat};
use crate::device::monitor::{Live, Readings, Series};

/// How often a bar shows the time and the memory in use, whatever else happens.
const REDRAW: Duration = Duration::from_millis(500);

/// Bars are drawn here, and log lines written around them.
static BARS: OnceLock<MultiProgress> = OnceLock::new();

/// Starts the log on stderr, as text or as one JSON object a line. Called once, at the start of the program.
pub fn start_log(args: &LogArgs) {
    let level = match (args.quiet, args.verbose) {
        (true, _) => LevelFilter::WARN,
        (_, 0) => LevelFilter::INFO,
        (_, 1) => LevelFilter::DEBUG,
        _ => LevelFilter::TRACE,
    };
    if !args.quiet && args.log_format == LogFormat::Text && std::io::stderr().is_terminal() {
        // Set once, here; a second call would keep the first.
        let _ = BARS.set(MultiProgress::new());
    }
    let filter = tracing_subscriber::filter::Targets::new()
        .with_default(LevelFilter::WARN)
        .with_target("nibble", level);
    let registry = tracing_subscriber::registry().with(filter);
    match args.log_format {
        LogFormat::Json => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .json()
                    .flatten_event(true)
                    .with_writer(AroundBars),
            )
            .init(),
        LogFormat::Text => registry
            .with(
                tracing_subscriber::fmt::layer()
                    .with_writer(AroundBars)
                    .with_target(false)
                    .without_time()
                    .with_ansi(std::io::stderr().is_terminal()),
            )
            .init(),
    }
}

/// A writer to stderr that lifts the bars while a line is written.
struct AroundBars;

impl Write for AroundBars {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        let write = || std::io::stderr().write(bytes);
        BARS.get().map_or_else(write, |bars| bars.suspend(write))
    }

    fn flush(&mut self) -> std::io::Result<()> {
        std::io::stderr().flush()
    }
}

impl MakeWriter<'_> for AroundBars {
    type Writer = Self;

    fn make_writer(&self) -> Self {
        Self
    }
}

/// The memory in use now and the most that was: the GPU's where one computes.
fn in_use(memory: &Readings) -> String {
    let bytes = |bytes: Option<u64>| bytes.map_or("?".to_owned(), human_bytes);
    match &memory.vram {
        Some(vram) => format!(
            "VRAM {} of {} ({})",
            bytes(vram.device.current_bytes),
            human_bytes(vram.total_bytes),
            peaks(memory)
        ),
        None => format!(
            "RAM {} ({})",
            bytes(memory.ram.current_bytes),
            peaks(memory)
        ),
    }
}

/// The most memory that was in use: the GPU's where one computes.
pub fn peaks(memory: &Readings) -> String {
    let peak = |name: &str, series: &Series| {
        let peak = series.peak.as_ref();
        let bytes = peak.map_or("unknown".to_owned(), |peak| human_bytes(peak.bytes));
        format!("peak {name} {bytes}")
    };
    match &memory.vram {
        Some(vram) if vram.process.peak.is_some() => peak("VRAM", &vram.process),
        Some(vram) => peak("VRAM", &vram.device),
        None => peak("RAM", &memory.ram),
    }
}

/// The progress of one run, in stages of layers.
pub struct Progress {
    memory: Live,
    bar: Option<ProgressBar>,
    start: Instant,
    n_layers: usize,
    n_stages: usize,
    done: usize,
    /// Stages of those that were done before.
    skipped: usize,
}

impl Progress {
    /// For `n_layers` layers of `n_stages` stages each; shows the `memory` in use.
    pub fn new(n_layers: usize, n_stages: usize, memory: Live) -> Self {
        let bar = BARS.get().map(|bars| {
            let template = "{bar:28} {pos}/{len} {msg}, {memory} [{elapsed} < {eta}]";
            let memory = memory.clone();
            let style = ProgressStyle::with_template(template)
                .unwrap_or_else(|_| ProgressStyle::default_bar())
                .with_key(
                    "memory",
                    move |_: &ProgressState, out: &mut dyn fmt::Write| {
                        // What cannot be shown is shown a little later.
                        let _ = out.write_str(&in_use(&memory.readings()));
                    },
                );
            let bar = bars.add(ProgressBar::new((n_layers * n_stages) as u64).with_style(style));
            bar.enable_steady_tick(REDRAW);
            bar
        });
        Self {
            memory,
            bar,
            start: Instant::now(),
            n_layers,
            n_stages,
            done: 0,
            skipped: 0,
        }
    }

    /// A layer was finished before, and is only run; the time until then says nothing of the rest.
    pub fn layer_skipped(&mut self) {
        self.done += self.n_stages;
        self.skipped = self.done;
        self.start = Instant::now();
        if let Some(bar) = &self.bar {
            bar.set_position(self.done as u64);
            bar.reset_eta();
        }
    }

    /// One stage is done: with this mean relative error, at this many tokens a second.
    pub fn stage_done(
        &mut self,
        layer: usize,
        stage: &str,
        relative_error: f64,
        tokens_per_second: f64,
    ) {
        self.done += 1;
        let left = self.start.elapsed().as_secs_f64() / (self.done - self.skipped) as f64
            * (self.n_layers * self.n_stages - self.done) as f64;
        if let Some(bar) = &self.bar {
            bar.set_message(format!(
                "layer {} {stage}: error {relative_error:.2e}, {tokens_per_second:.0} tokens/s",
                layer + 1
            ));
            bar.inc(1);
        } else if self.done.is_multiple_of(self.n_stages) {
            tracing::info!(
                "layer {}/{}: relative error {relative_error:.2e} ({stage}), {tokens_per_second:.0} tokens/s, {}, {left:.0} s left",
                layer + 1,
                self.n_layers,
                in_use(&self.memory.readings())
            );
        }
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
