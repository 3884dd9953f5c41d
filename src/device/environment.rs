//! Environment variables that libraries read before `main` starts: the program starts itself again with them.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// What is set where the environment says nothing else.
const VARIABLES: [(&str, &str); 2] = [
    // Threads that wait for work sleep. Spinning costs a fifth more processor time on an idle machine, and most of the time
    // on one that is shared or has a quota, as containers do.
    ("OMP_WAIT_POLICY", "PASSIVE"),
    // Freed activations are used again. By default every tensor above 128 KiB is fresh memory, whose pages the kernel clears
    // one by one: twice the system time.
    (
        "GLIBC_TUNABLES",
        "glibc.malloc.mmap_threshold=33554432:glibc.malloc.trim_threshold=134217728",
    ),
];

/// Replaces this process by itself with the variables above, unless they are set; where that fails it goes on as it is.
pub fn apply() {
    let missing: Vec<_> = VARIABLES
        .into_iter()
        .filter(|(name, _)| std::env::var_os(name).is_none())
        .collect();
    if missing.is_empty() {
        return;
    }
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let error = match std::env::current_exe() {
        Ok(program) => Command::new(program)
            .arg0(name)
            .args(args)
            .envs(missing)
            .exec(),
        Err(error) => error,
    };
    tracing::debug!("cannot start again with tuned libraries: {error}");
}
