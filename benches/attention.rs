//! The attention kernel beside libtorch's, in bfloat16: `cargo bench --bench attention`.
//!
//! Rates count the products of the causal half for both, so that they compare as times do. One core:
//! RAYON_NUM_THREADS=1 OMP_NUM_THREADS=1.

use divan::Bencher;
use divan::counter::ItemsCount;
use half::bf16;
use nibble::kernels::attention::{Problem, attend};
use nibble::kernels::available;
use nibble::tensor::{Exclusive, bf16_slice};
use tch::{Device, Kind, Tensor};

#[derive(Debug, Clone, Copy)]
struct Shape {
    n_rows: i64,
    n_tokens: i64,
    n_heads: i64,
    n_kv_heads: i64,
    head_dim: i64,
}

const SHAPES: [Shape; 3] = [
    Shape {
        n_rows: 8,
        n_tokens: 512,
        n_heads: 9,
        n_kv_heads: 3,
        head_dim: 64,
    },
    Shape {
        n_rows: 2,
        n_tokens: 2048,
        n_heads: 32,
        n_kv_heads: 8,
        head_dim: 64,
    },
    Shape {
        n_rows: 2,
        n_tokens: 2048,
        n_heads: 16,
        n_kv_heads: 8,
        head_dim: 128,
    },
];

fn main() {
    divan::main();
}

impl Shape {
    fn name(self) -> String {
        let Self {
            n_rows,
            n_tokens,
            n_heads,
            n_kv_heads,
            head_dim,
        } = self;
        format!("{n_rows}x{n_tokens} {n_heads}/{n_kv_heads} heads of {head_dim}")
    }

    /// Query, key and value.
    fn tensors(self) -> [Tensor; 3] {
        tch::manual_seed(1);
        [self.n_heads, self.n_kv_heads, self.n_kv_heads].map(|n_heads| {
            let size = [self.n_rows, self.n_tokens, n_heads, self.head_dim];
            Tensor::randn(size, (Kind::Float, Device::Cpu)).to_kind(Kind::BFloat16)
        })
    }

    /// Additions and multiplications of the causal half.
    fn operations(self) -> ItemsCount {
        let pairs = self.n_tokens * (self.n_tokens + 1) / 2;
        ItemsCount::new((4 * self.n_rows * self.n_heads * pairs * self.head_dim) as usize)
    }
}

/// Instruction sets that are fast enough, with each shape.
fn cases() -> impl Iterator<Item = (String, usize)> {
    (0..SHAPES.len()).flat_map(|shape| {
        let sets = available().into_iter().skip(1);
        sets.map(move |set| (format!("{} {}", set.name(), SHAPES[shape].name()), shape))
    })
}

#[divan::bench(args = cases(), sample_count = 5)]
fn kernel(bencher: Bencher<'_, '_>, (name, shape): &(String, usize)) {
    let set = (available().into_iter())
        .find(|set| name.split(' ').next() == Some(set.name()))
        .expect("cases are available");
    let shape = SHAPES[*shape];
    let [query, key, value] = shape.tensors();
    let problem = Problem {
        query: bf16_slice(&query),
        key: bf16_slice(&key),
        value: bf16_slice(&value),
        n_tokens: shape.n_tokens as usize,
        n_heads: shape.n_heads as usize,
        n_kv_heads: shape.n_kv_heads as usize,
        head_dim: shape.head_dim as usize,
        value_dim: shape.head_dim as usize,
        sinks: None,
        window: None,
        scale: (shape.head_dim as f32).sqrt().recip(),
    };
    let size = query
        .size()
        .iter()
        .map(|&dim| dim as usize)
        .collect::<Vec<_>>();
    bencher.counter(shape.operations()).bench_local(|| {
        let mut output = Exclusive::<bf16>::zeros(&size).expect("enough memory");
        attend(set, &problem, output.values());
        output
    });
}

#[divan::bench(args = SHAPES.map(Shape::name), sample_count = 5)]
fn libtorch(bencher: Bencher<'_, '_>, name: &str) {
    let shape = (SHAPES.into_iter())
        .find(|shape| shape.name() == name)
        .expect("one of the shapes");
    let tensors = shape.tensors().map(|tensor| tensor.transpose(1, 2));
    let [query, key, value] = &tensors;
    let is_grouped = shape.n_heads != shape.n_kv_heads;
    bencher.counter(shape.operations()).bench_local(|| {
        Tensor::scaled_dot_product_attention(
            query,
            key,
            value,
            None::<Tensor>,
            0.0,
            true,
            None,
            is_grouped,
        )
    });
}
