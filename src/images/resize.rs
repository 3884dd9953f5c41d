//! Resampling of 8-bit images with antialiasing, to the last bit as libtorch's CPU kernel does it for torchvision: weights
//! in fixed point, columns first, rounded to 8 bits between the two passes. And of planes of floats without it.

use image::RgbImage;

use super::cut::Size;

const CHANNELS: usize = 3;

/// The kernel that an image is resampled with; the numbers are Pillow's, which configurations have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filter {
    Lanczos = 1,
    Bilinear = 2,
    Bicubic = 3,
}

impl Filter {
    pub fn from_number(number: u64) -> Option<Self> {
        [Self::Lanczos, Self::Bilinear, Self::Bicubic]
            .into_iter()
            .find(|&filter| filter as u64 == number)
    }

    /// How far it reaches, in input pixels of an image that is not made smaller.
    fn support(self) -> f64 {
        match self {
            Self::Bilinear => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }

    fn weight(self, x: f64) -> f64 {
        let x = x.abs();
        match self {
            Self::Bilinear => (1.0 - x).max(0.0),
            // Keys' cubic with a = -1/2.
            Self::Bicubic if x < 1.0 => (1.5 * x - 2.5) * x * x + 1.0,
            Self::Bicubic if x < 2.0 => ((-0.5 * x + 2.5) * x - 4.0) * x + 2.0,
            Self::Lanczos if x < 3.0 => sinc(x) * sinc(x / 3.0),
            Self::Bicubic | Self::Lanczos => 0.0,
        }
    }
}

fn sinc(x: f64) -> f64 {
    if x == 0.0 {
        return 1.0;
    }
    let x = x * std::f64::consts::PI;
    x.sin() / x
}

/// For each output pixel, the first input pixel that it is made of and their weights.
struct Taps {
    runs: Vec<(usize, Vec<i32>)>,
    /// Bits of the weights behind the point.
    precision: u32,
}

impl Taps {
    fn new(filter: Filter, from: usize, to: usize) -> Self {
        let scale = from as f64 / to as f64;
        let stretch = scale.max(1.0);
        let support = filter.support() * stretch;
        let mut runs = Vec::with_capacity(to);
        let mut largest = 0.0f64;
        for index in 0..to {
            let center = scale * (index as f64 + 0.5);
            let first = (center - support + 0.5).max(0.0) as usize;
            let end = ((center + support + 0.5) as usize).min(from);
            let weights =
                (first..end).map(|at| filter.weight((at as f64 - center + 0.5) / stretch));
            let weights: Vec<f64> = weights.collect();
            let sum: f64 = weights.iter().sum();
            let weights: Vec<f64> = weights.into_iter().map(|weight| weight / sum).collect();
            largest = weights.iter().copied().fold(largest, f64::max);
            runs.push((first, weights));
        }
        // As many bits as leave the largest weight below 2^15.
        let fits = |bits: u32| ((0.5 + largest * f64::from(1u32 << (bits + 1))) as i64) < 1 << 15;
        let precision = (0..22).find(|&bits| !fits(bits)).unwrap_or(22);
        let one = f64::from(1u32 << precision);
        let fixed = |weight: f64| (weight * one + 0.5f64.copysign(weight)) as i32;
        let runs = runs.into_iter().map(|(first, weights)| {
            let weights = weights.into_iter().map(fixed).collect();
            (first, weights)
        });
        Self {
            runs: runs.collect(),
            precision,
        }
    }

    fn sum(&self, weights: &[i32], values: impl Iterator<Item = u8>) -> u8 {
        let products = weights
            .iter()
            .zip(values)
            .map(|(weight, value)| weight * i32::from(value));
        let half = (1 << self.precision) >> 1;
        ((half + products.sum::<i32>()) >> self.precision).clamp(0, 255) as u8
    }
}

/// `image` as `width` by `height` pixels, neither of them 0.
pub fn resize(image: &RgbImage, width: u32, height: u32, filter: Filter) -> RgbImage {
    let columns = if image.width() == width {
        image.clone()
    } else {
        by_rows(image, width, filter)
    };
    if columns.height() == height {
        columns
    } else {
        by_columns(&columns, height, filter)
    }
}

fn by_rows(image: &RgbImage, width: u32, filter: Filter) -> RgbImage {
    let taps = Taps::new(filter, image.width() as usize, width as usize);
    let mut made = Vec::with_capacity(width as usize * image.height() as usize * CHANNELS);
    for row in image
        .as_raw()
        .chunks_exact(image.width() as usize * CHANNELS)
    {
        for (first, weights) in &taps.runs {
            for channel in 0..CHANNELS {
                let values = row[first * CHANNELS + channel..].iter().step_by(CHANNELS);
                made.push(taps.sum(weights, values.copied()));
            }
        }
    }
    RgbImage::from_raw(width, image.height(), made).expect("a value for each pixel")
}

fn by_columns(image: &RgbImage, height: u32, filter: Filter) -> RgbImage {
    let taps = Taps::new(filter, image.height() as usize, height as usize);
    let row_len = image.width() as usize * CHANNELS;
    let raw = image.as_raw();
    let mut made = Vec::with_capacity(row_len * height as usize);
    for (first, weights) in &taps.runs {
        for place in 0..row_len {
            let values = raw[first * row_len + place..].iter().step_by(row_len);
            made.push(taps.sum(weights, values.copied()));
        }
    }
    RgbImage::from_raw(image.width(), height, made).expect("a value for each pixel")
}

/// For each of `to` output values, the four input values that it lies between, the outermost repeated, and their weights: Keys'
/// cubic with a = -3/4. In 32 bits, as libtorch has it: far from 0, the last bits of a place show.
fn cubic_taps(from: u32, to: u32) -> Vec<[(i64, f32); 4]> {
    const A: f32 = -0.75;
    let near = |x: f32| ((A + 2.0) * x - (A + 3.0)) * x * x + 1.0;
    let far = |x: f32| ((A * x - 5.0 * A) * x + 8.0 * A) * x - 4.0 * A;
    let scale = from as f32 / to as f32;
    let last = i64::from(from) - 1;
    let taps = (0..to).map(|index| {
        let place = scale * (index as f32 + 0.5) - 0.5;
        let first = place.floor();
        let x = (place - first).clamp(0.0, 1.0);
        let weights = [far(x + 1.0), near(x), near(1.0 - x), far(2.0 - x)];
        let mut at = first as i64 - 2;
        weights.map(|weight| {
            at += 1;
            (at.clamp(0, last), weight)
        })
    });
    taps.collect()
}

/// A plane of height and width `from`, of what `value` says of each row and column, as one of `to`: bicubic, without antialiasing.
pub fn sample(from: Size, to: Size, value: impl Fn(i64, i64) -> f32) -> Vec<f32> {
    let columns = cubic_taps(from[1], to[1]);
    let mut made = Vec::with_capacity(to[0] as usize * to[1] as usize);
    for rows in cubic_taps(from[0], to[0]) {
        for columns in &columns {
            let in_row = |y: i64| -> f32 { columns.iter().map(|&(x, by)| by * value(y, x)).sum() };
            made.push(rows.iter().map(|&(y, by)| by * in_row(y)).sum());
        }
    }
    made
}
