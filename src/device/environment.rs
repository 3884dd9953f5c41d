//! Environment variables that libtorch and its OpenMP library read before or soon after `main` starts: the program starts itself
//! again with those that are not set.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// A variable, its older name, and its value for this program.
type Default = (&'static str, Option<&'static str>, &'static str);

const DEFAULTS: [Default; 2] = [
    // Threads sleep while they wait for work. Spinning costs a fifth more processor time on an idle machine, and most of the
    // time on one that is shared or has a quota, as containers do.
    ("OMP_WAIT_POLICY", None, "PASSIVE"),
    // Pinned memory is taken as it is asked for, where libtorch would round it up to a power of two, and given back when it is
    // free. The first of the two must not be the smaller one.
    (
        "PYTORCH_ALLOC_CONF",
        Some("PYTORCH_CUDA_ALLOC_CONF"),
        "pinned_max_cached_size_mb:1,pinned_max_round_threshold_mb:1",
    ),
];

/// Sets what the environment leaves open; where that fails the program goes on as it is.
pub fn complete() {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    let missing = DEFAULTS.into_iter().filter(|(name, older, _)| {
        let is_set_by_older = older.is_some_and(is_set);
        !is_set(name) && !is_set_by_older
    });
    let missing: Vec<_> = missing.map(|(name, _, value)| (name, value)).collect();
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
    tracing::debug!("cannot start again with another environment: {error}");
}
