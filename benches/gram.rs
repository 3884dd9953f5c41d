//! The Gram matrix kernel beside libtorch's product of float32 matrices: `cargo bench --bench gram`.
//!
//! Rates count the products of the lower triangle for both, so that they compare as times do; libtorch computes both
//! halves. One core: RAYON_NUM_THREADS=1 OMP_NUM_THREADS=1.

use divan::Bencher;
use divan::counter::ItemsCount;
use nibble::kernels::gram::{Rows, Scratch, Sums, accumulate};
use nibble::kernels::{InstructionSet, available};
use nibble::tensor::{bf16_slice, f32_slice};
use tch::{Device, Kind, Tensor};

const WIDTHS: [i64; 4] = [576, 1536, 2048, 4096];
const N_ROWS: i64 = 32768;

fn main() {
    divan::main();
}

fn rows(width: i64, kind: Kind) -> Tensor {
    tch::manual_seed(1);
    Tensor::randn([N_ROWS, width], (Kind::Float, Device::Cpu)).to_kind(kind)
}

/// Additions and multiplications of the lower triangle.
fn operations(width: i64) -> ItemsCount {
    ItemsCount::new((N_ROWS * width * (width + 1)) as usize)
}

/// Instruction sets that are fast enough for many rows, with each width.
fn cases() -> impl Iterator<Item = (String, i64)> {
    (WIDTHS.into_iter()).flat_map(|width| {
        let sets = available().into_iter().skip(1);
        sets.map(move |set| (set.name().to_owned(), width))
    })
}

fn kernel(bencher: Bencher<'_, '_>, name: &str, width: i64, kind: Kind) {
    let set: InstructionSet = available()
        .into_iter()
        .find(|set| set.name() == name)
        .expect("cases are available");
    let x = rows(width, kind);
    let rows = match kind {
        Kind::BFloat16 => Rows::Bf16(bf16_slice(&x)),
        _ => Rows::F32(f32_slice(&x)),
    };
    let mut gram = vec![0.0; (width * width) as usize];
    let mut abs_sum = vec![0.0; width as usize];
    let mut scratch = Scratch::default();
    bencher.counter(operations(width)).bench_local(|| {
        let sums = Sums {
            gram: &mut gram,
            abs_sum: &mut abs_sum,
        };
        accumulate(set, rows, sums, &mut scratch);
    });
}

#[divan::bench(args = cases(), sample_count = 5)]
fn bf16(bencher: Bencher<'_, '_>, (name, width): &(String, i64)) {
    kernel(bencher, name, *width, Kind::BFloat16);
}

#[divan::bench(args = cases(), sample_count = 5)]
fn f32(bencher: Bencher<'_, '_>, (name, width): &(String, i64)) {
    kernel(bencher, name, *width, Kind::Float);
}

#[divan::bench(args = WIDTHS, sample_count = 5)]
fn libtorch_f32(bencher: Bencher<'_, '_>, width: i64) {
    let x = rows(width, Kind::Float);
    (bencher.counter(operations(width))).bench_local(|| x.tr().mm(&x));
}
