//! Numbers for tests.

/// `n` numbers of about a normal distribution, the same for the same seed on every machine.
pub fn noise(seed: u64, n: usize) -> Vec<f32> {
    let mut state = seed;
    let mut uniform = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut bits = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        ((bits ^ (bits >> 31)) >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..n)
        .map(|_| 2.0 * (uniform() + uniform() + uniform()))
        .collect()
}
