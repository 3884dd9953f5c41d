//! What this machine reaches now: the rates that a run's least time is worked out from.

use std::time::Instant;

use half::bf16;
use tch::{Cuda, Device, Kind, TchError, Tensor};

use crate::kernels;
use crate::kernels::gram::{Rows, Scratch, Sums, accumulate};

/// Each measurement is the best of so many: what else runs on the machine only ever slows it down.
const REPEATS: usize = 3;

/// Rates of one device.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Rates {
    /// Operations a second of matrix products in the forward pass's dtype, a multiply-add counted as two.
    pub forward: f64,
    /// The same in float32.
    pub float32: f64,
    /// Bytes a second that the host copies from memory to memory.
    pub copy: f64,
}

impl Rates {
    /// The better of two measurements of one machine, rate by rate: what else ran there only ever slowed it down.
    #[must_use]
    pub fn better(self, other: Self) -> Self {
        Self {
            forward: self.forward.max(other.forward),
            float32: self.float32.max(other.float32),
            copy: self.copy.max(other.copy),
        }
    }

    /// Measures for a tenth of a second or two.
    ///
    /// # Errors
    /// libtorch's, out of memory among them.
    pub fn measure(device: Device, kind: Kind) -> Result<Self, TchError> {
        let forward = product_rate(device, kind)?;
        let float32 = if kind == Kind::Float {
            forward
        } else {
            product_rate(device, Kind::Float)?
        };
        Ok(Self {
            forward,
            float32,
            copy: copy_rate()?,
        })
    }
}

/// Operations a second of one square product, large enough for the device's full rate. On a CPU the Gram kernel counts
/// too: there are processors for which libtorch's float32 products reach half of what they can do.
fn product_rate(device: Device, kind: Kind) -> Result<f64, TchError> {
    let size: i64 = match device {
        // 0.2 GB of the GPU's, which libtorch keeps for what comes.
        Device::Cuda(_) => 4096,
        _ => 1280,
    };
    let factor = Tensor::f_ones([size, size], (kind, device))?;
    let product = factor.f_zeros_like()?;
    let seconds = best(device, || factor.f_mm_out(&product, &factor).map(drop))?;
    let rate = 2.0 * (size as f64).powi(3) / seconds;
    Ok(match (device, kind) {
        (Device::Cpu, Kind::Float) => rate.max(gram_rate(|values| Rows::F32(values), 1.0f32)?),
        (Device::Cpu, Kind::BFloat16) => {
            rate.max(gram_rate(|values| Rows::Bf16(values), bf16::ONE)?)
        }
        _ => rate,
    })
}

/// Operations a second of the Gram matrix of rows of `value`: half of the products, because it is symmetric.
fn gram_rate<E: Copy>(
    rows: impl for<'a> Fn(&'a [E]) -> Rows<'a>,
    value: E,
) -> Result<f64, TchError> {
    const ROWS: usize = 2048;
    const WIDTH: usize = 768;
    let values = vec![value; ROWS * WIDTH];
    let (mut gram, mut abs_sum) = (vec![0.0; WIDTH * WIDTH], vec![0.0; WIDTH]);
    let mut scratch = Scratch::default();
    let seconds = best(Device::Cpu, || {
        let sums = Sums {
            gram: &mut gram,
            abs_sum: &mut abs_sum,
        };
        accumulate(kernels::chosen(), rows(&values), sums, &mut scratch);
        Ok(())
    })?;
    Ok((ROWS * WIDTH * (WIDTH + 1)) as f64 / seconds)
}

/// Bytes a second of copies that no cache holds.
fn copy_rate() -> Result<f64, TchError> {
    const BYTES: i64 = 64 << 20;
    let source = Tensor::f_ones([BYTES], (Kind::Uint8, Device::Cpu))?;
    let mut target = source.f_zeros_like()?;
    let seconds = best(Device::Cpu, || target.f_copy_(&source))?;
    Ok(BYTES as f64 / seconds)
}

/// Seconds of the fastest of several runs of `work` on `device`.
fn best(device: Device, mut work: impl FnMut() -> Result<(), TchError>) -> Result<f64, TchError> {
    let wait = || {
        if let Device::Cuda(index) = device {
            Cuda::synchronize(index as i64);
        }
    };
    let mut best = f64::INFINITY;
    for _ in 0..REPEATS {
        wait();
        let start = Instant::now();
        work()?;
        wait();
        best = best.min(start.elapsed().as_secs_f64());
    }
    Ok(best)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_are_those_of_a_computer() {
        let rates = Rates::measure(Device::Cpu, Kind::Float).unwrap();
        for rate in [rates.forward, rates.float32, rates.copy] {
            assert!((1e7..1e16).contains(&rate), "{rates:?}");
        }
        let idle = Rates {
            forward: 2.0 * rates.forward,
            copy: 0.0,
            ..rates
        };
        let better = rates.better(idle);
        assert_eq!((better.forward, better.copy), (idle.forward, rates.copy));
    }
}
