//! An environment variable that libtorch's OpenMP library reads before `main` starts: the program starts itself again with it.

use std::os::unix::process::CommandExt;
use std::process::Command;

/// Decides whether threads spin or sleep while they wait for work.
const WAIT_POLICY: &str = "OMP_WAIT_POLICY";

/// Makes libtorch's threads sleep while they wait, unless the environment asks for something else; where that fails the
/// program goes on as it is.
///
/// Spinning costs a fifth more processor time on an idle machine, and most of the time on one that is shared or has a
/// quota, as containers do.
pub fn sleep_while_waiting() {
    if std::env::var_os(WAIT_POLICY).is_some() {
        return;
    }
    let mut args = std::env::args_os();
    let name = args.next().unwrap_or_default();
    let error = match std::env::current_exe() {
        Ok(program) => Command::new(program)
            .arg0(name)
            .args(args)
            .env(WAIT_POLICY, "PASSIVE")
            .exec(),
        Err(error) => error,
    };
    tracing::debug!("cannot set {WAIT_POLICY}: {error}");
}
