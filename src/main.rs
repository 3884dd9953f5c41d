//! The program: parse, run one command, turn its outcome into an exit code.

use std::process::ExitCode;
use std::time::Instant;

use anyhow::Result;
use clap::Parser;
use nibble::cli::{self, Cli, Command};
use nibble::commands;
use nibble::device;
use nibble::fault::{self, Fault};
use nibble::report::progress;
use signal_hook::consts::{SIGINT, SIGTERM};
use signal_hook::iterator::Signals;

/// libtorch's memory comes from here too, because it takes malloc's place. Where glibc's malloc kept up to twice what a run
/// needs, differently from run to run, this one gives back what the run no longer uses, after ten seconds.
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's settings: large pages, which cost fewer faults; one arena, because what one thread gave back another can take;
/// and none of its own for large tensors, which would give their pages back at once and have them cleared again.
#[expect(unsafe_code, reason = "the name under which jemalloc looks for it")]
// SAFETY: the name is jemalloc's, which reads a pointer to a C string there, as this is one.
#[unsafe(export_name = "malloc_conf")]
static SETTINGS: &[u8; 42] = b"thp:always,narenas:1,oversize_threshold:0\0";

fn main() -> ExitCode {
    let start = Instant::now();
    let cli = Cli::parse_from(cli::with_hyphens(std::env::args_os()));
    progress::start_log(&cli.log);
    match run(cli, start) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{}", fault::message(&error));
            ExitCode::from(Fault::of(&error) as u8)
        }
    }
}

fn run(cli: Cli, start: Instant) -> Result<()> {
    // Nothing here trains: without this guard every operation would keep what a backward pass needs.
    let _no_grad = tch::no_grad_guard();
    nibble::kernels::choose()?;
    if !matches!(cli.command, Some(Command::Inspect(_) | Command::Devices(_))) {
        device::environment::complete();
    }
    end_when_told(cli.command.is_none())?;
    match cli.command {
        None => commands::quantize(cli.quantize, start),
        Some(Command::Bench(args)) => commands::bench(*args, start),
        Some(Command::Devices(args)) => commands::devices(&args),
        Some(Command::Eval(args)) => commands::evaluate(&args),
        Some(Command::Generate(args)) => commands::generate(&args),
        Some(Command::Inspect(args)) => commands::inspect(&args),
    }
}

/// Ends the program where it is when a signal says so, also as the first process of a container, which the kernel would spare.
fn end_when_told(quantizes: bool) -> std::io::Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM])?;
    std::thread::spawn(move || {
        if let Some(signal) = signals.forever().next() {
            let kept = if quantizes {
                ": the same command goes on behind the last layer that is finished"
            } else {
                ""
            };
            tracing::warn!("ended by signal {signal}{kept}");
            // The shells' exit code; without destructors, as other threads compute on.
            signal_hook::low_level::exit(128 + signal);
        }
    });
    Ok(())
}
