//! GPTQ's parts: `cargo bench --bench gptq`.

#![allow(clippy::unwrap_used, reason = "a benchmark")]

use divan::Bencher;
use nibble::quant::gptq::{ActOrder, Factor, GridFit, Settings, solve};
use nibble::quant::{GroupSize, InputStats, Scheme};
use tch::{Device, Kind, Tensor};

const SCHEME: Scheme = Scheme {
    bits: 4,
    group_size: GroupSize::Columns(64),
    symmetric: true,
    min_zero_point: 0,
};
const SETTINGS: Settings = Settings {
    act_order: ActOrder::GroupAware,
    damp: 0.01,
    grid_fit: GridFit::Search,
};

fn main() {
    divan::main();
}

fn stats(size: i64) -> InputStats {
    let x = Tensor::randn([size + 64, size], (Kind::Float, Device::Cpu));
    InputStats {
        gram: x.tr().mm(&x),
        abs_sum: x.abs().sum_dim_intlist(0, false, Kind::Float),
        n_tokens: size as usize + 64,
    }
}

#[divan::bench(args = [576, 1536, 4096])]
fn factor(bencher: Bencher<'_, '_>, size: i64) {
    let stats = stats(size);
    let inputs = bencher.with_inputs(|| stats.copy().unwrap());
    inputs.bench_local_values(|stats| Factor::new(stats, SCHEME, &SETTINGS).unwrap());
}

/// `[out, in]`.
#[divan::bench(args = [(960, 576), (3072, 576), (576, 1536)])]
fn solving(bencher: Bencher<'_, '_>, (rows, columns): (i64, i64)) {
    let factor = Factor::new(stats(columns), SCHEME, &SETTINGS).unwrap();
    let weight = Tensor::randn([rows, columns], (Kind::Float, Device::Cpu));
    let weights = || vec![weight.shallow_clone()];
    bencher.bench_local(|| solve(weights(), &factor, SCHEME, &SETTINGS).unwrap());
}
