//! What the CPU is.

use std::fs;

/// The CPU's name; `None` where the system does not tell.
pub fn model_name() -> Option<String> {
    let cpuinfo = fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = cpuinfo
        .lines()
        .find_map(|line| line.strip_prefix("model name"))?;
    Some(line.trim_start_matches([' ', '\t', ':']).to_owned())
}

/// Cores for this process.
pub fn n_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// Whether products of bfloat16 are faster than those of float32.
#[cfg(target_arch = "x86_64")]
pub fn has_fast_bf16() -> bool {
    // The standard library's detection of AMX is not stable.
    let has_amx = || {
        let cpuinfo = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
        cpuinfo.split_whitespace().any(|flag| flag == "amx_bf16")
    };
    is_x86_feature_detected!("avx512bf16") || has_amx()
}

/// Whether products of bfloat16 are faster than those of float32.
#[cfg(not(target_arch = "x86_64"))]
pub fn has_fast_bf16() -> bool {
    false
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    #[cfg(target_arch = "x86_64")]
    fn the_cpu_has_a_name() {
        let name = model_name().unwrap();
        assert!(name.starts_with(char::is_alphanumeric), "{name:?}");
        assert!(n_cores() >= 1);
    }
}
