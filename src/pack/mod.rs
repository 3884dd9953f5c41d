//! Codes to the tensors and configuration files of AWQ and GPTQ models, and back.
//!
//! Owns the bit layouts, the JSON of `config.json` and `quantize_config.json`, and what is known of the programs that
//! load such models. Knows no quantization method, no file and no model: it sees integer codes, never float weights,
//! and names only the last part of a tensor's name (`qweight`).
//!
//! Layouts as AutoAWQ 0.2.9 and GPTQModel 7.7.0 write them; golden files of both are in `tests/golden`.

mod awq;
mod bits;
mod config;
mod families;
mod fields;
mod float;
mod gptq;
mod loaders;
mod replay;
mod rules;

use half::f16;
use safetensors::Dtype;

use crate::quant::{QuantizedLinear, Scheme};

pub use config::{Description, GptqDetails, QuantizedFormat, edit_config};
pub use families::{FAMILIES, Family};
pub use float::{Float, Outside};
pub use replay::Replay;
pub use rules::{Request, RuleOutcome, Verdict, check, refuse, render};

/// A layout of the tensors that stand for one quantized linear layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// AutoAWQ's "gemm": 4 bit, packed along the output axis with the columns of each word interleaved.
    AwqGemm,
    /// GPTQ with `zero point - 1` in `qzeros`: what every loader reads.
    GptqV1,
    /// GPTQ with the true zero point in `qzeros`: GPTQModel's, which asymmetric weights need there.
    GptqV2,
}

/// What follows a linear's name in those of its tensors, in any format.
pub const SUFFIXES: [&str; 4] = ["qweight", "qzeros", "scales", "g_idx"];

/// One tensor that a format stores for a linear layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PackedSpec {
    /// What follows the layer's name and a dot.
    pub suffix: &'static str,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

/// A tensor of a file: little-endian bytes, row-major.
#[derive(Debug, Clone, Copy)]
pub struct PackedTensor<'a> {
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
}

/// Why packed tensors, a configuration or a request are not taken. The caller adds the file or the linear's name.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum Error {
    /// A quantization method that is neither AWQ nor GPTQ.
    #[error("quantization method {method} is not supported; expected awq or gptq")]
    Method { method: String },
    /// A key of a configuration has a value that is not taken.
    #[error("{key} is {value}, expected {expected}")]
    Setting {
        key: String,
        value: String,
        expected: String,
    },
    /// A key that has to be there.
    #[error("{key} is missing")]
    MissingKey { key: &'static str },
    /// Two spellings of one setting contradict each other.
    #[error("{first} is {first_value}, but {second} is {second_value}; remove one of the two")]
    Contradiction {
        first: String,
        first_value: String,
        second: String,
        second_value: String,
    },
    /// A setting that would change the result and that cannot be honoured.
    #[error("{key}: {value} cannot be followed: {reason}")]
    NotReplayed {
        key: String,
        value: String,
        reason: &'static str,
    },
    /// A packed tensor that has to be there.
    #[error("tensor {suffix} is missing")]
    MissingTensor { suffix: &'static str },
    /// A packed tensor of another dtype or shape than the layer and the configuration ask for.
    #[error(
        "tensor {suffix} is {found_dtype} {found_shape:?} in {found_bytes} bytes, expected {dtype} {shape:?}"
    )]
    TensorShape {
        suffix: &'static str,
        dtype: Dtype,
        shape: Vec<usize>,
        found_dtype: Dtype,
        found_shape: Vec<usize>,
        found_bytes: usize,
    },
    /// A `g_idx` entry that names no group.
    #[error("g_idx puts column {column} into group {group}, but there are {n_groups} groups")]
    GroupIndex {
        column: usize,
        group: i32,
        n_groups: usize,
    },
    /// A request that the format cannot hold or that no loader takes.
    #[error("{reason}")]
    Unloadable { reason: String },
}

impl Format {
    /// `quant_method` in the configuration files.
    pub fn method(self) -> &'static str {
        match self {
            Self::AwqGemm => "awq",
            Self::GptqV1 | Self::GptqV2 => "gptq",
        }
    }

    /// Smallest zero point that the format can store: v1 stores `zero point - 1`.
    pub fn min_zero_point(self, symmetric: bool) -> u8 {
        u8::from(self == Self::GptqV1 && !symmetric)
    }

    /// The tensors of a linear layer `[out, in]`, in the order that [`Self::pack`] returns them.
    pub fn tensor_specs(
        self,
        out_features: usize,
        in_features: usize,
        scheme: Scheme,
    ) -> Vec<PackedSpec> {
        let n_groups = scheme.n_groups(in_features);
        let spec = |suffix, dtype, shape: &[usize]| PackedSpec {
            suffix,
            dtype,
            shape: shape.to_vec(),
        };
        let words = |count| bits::n_words(count, scheme.bits);
        let scales = spec("scales", Dtype::F16, &[n_groups, out_features]);
        let zeros = spec("qzeros", Dtype::I32, &[n_groups, words(out_features)]);
        match self {
            Self::AwqGemm => vec![
                spec("qweight", Dtype::I32, &[in_features, words(out_features)]),
                zeros,
                scales,
            ],
            Self::GptqV1 | Self::GptqV2 => vec![
                spec("qweight", Dtype::I32, &[words(in_features), out_features]),
                zeros,
                scales,
                spec("g_idx", Dtype::I32, &[in_features]),
            ],
        }
    }

    /// The bytes of the tensors in [`Self::tensor_specs`], made of the integer codes alone.
    ///
    /// Panics if the format cannot hold the layer; [`refuse`] says so before any work is done.
    pub fn pack(self, linear: &QuantizedLinear) -> Vec<(&'static str, Vec<u8>)> {
        match self {
            Self::AwqGemm => awq::pack(linear),
            Self::GptqV1 | Self::GptqV2 => gptq::pack(linear, self),
        }
    }
}

/// Reads back a linear layer `[out, in]` that any writer of `quantized.format` packed.
///
/// `tensor` finds the layer's tensor of a suffix; `g_idx` may be missing.
pub fn unpack<'a>(
    quantized: &QuantizedFormat,
    out_features: usize,
    in_features: usize,
    tensor: impl Fn(&'static str) -> Option<PackedTensor<'a>>,
) -> Result<QuantizedLinear, Error> {
    let (format, scheme) = (quantized.format, quantized.scheme);
    if format == Format::AwqGemm && !out_features.is_multiple_of(8) {
        let reason = format!("AWQ needs output features divisible by 8, not {out_features}");
        return Err(Error::Unloadable { reason });
    }
    let mut found = Vec::new();
    for spec in format.tensor_specs(out_features, in_features, scheme) {
        match tensor(spec.suffix) {
            Some(tensor) => {
                found.push(tensor.bytes);
                if tensor.dtype != spec.dtype
                    || tensor.shape != spec.shape
                    || Some(tensor.bytes.len()) != crate::tensor::byte_len(spec.dtype, &spec.shape)
                {
                    return Err(Error::TensorShape {
                        suffix: spec.suffix,
                        dtype: spec.dtype,
                        shape: spec.shape,
                        found_dtype: tensor.dtype,
                        found_shape: tensor.shape.to_vec(),
                        found_bytes: tensor.bytes.len(),
                    });
                }
            }
            None if spec.suffix == "g_idx" => {}
            None => {
                return Err(Error::MissingTensor {
                    suffix: spec.suffix,
                });
            }
        }
    }
    let [qweight, qzeros, scales] = [found[0], found[1], found[2]];
    let n_groups = scheme.n_groups(in_features);
    let (codes, zero_points, g_idx) = match format {
        Format::AwqGemm => (
            awq::unpack(qweight, out_features, in_features),
            awq::unpack(qzeros, out_features, n_groups),
            None,
        ),
        Format::GptqV1 | Format::GptqV2 => (
            gptq::unpack_weight(qweight, out_features, in_features, scheme.bits),
            gptq::unpack_zeros(qzeros, out_features, n_groups, scheme.bits, format),
            gptq::unpack_g_idx(found.get(3).copied(), in_features, scheme)?,
        ),
    };
    let scales: Vec<f16> = scales
        .as_chunks()
        .0
        .iter()
        .map(|&bytes| f16::from_le_bytes(bytes))
        .collect();
    Ok(QuantizedLinear {
        out_features,
        in_features,
        scheme,
        codes,
        scales: bits::transpose(&scales, n_groups, out_features),
        zero_points,
        g_idx,
    })
}

/// `scales` `[out, n_groups]` as both formats store them: float16 `[n_groups, out]`.
fn pack_scales(linear: &QuantizedLinear) -> Vec<u8> {
    let scales: Vec<[u8; 2]> = linear
        .scales
        .iter()
        .map(|scale| scale.to_le_bytes())
        .collect();
    bits::transpose(&scales, linear.out_features, linear.n_groups()).into_flattened()
}

fn words_to_bytes(words: &[u32]) -> Vec<u8> {
    let bytes: Vec<[u8; 4]> = words.iter().map(|word| word.to_le_bytes()).collect();
    bytes.into_flattened()
}

fn bytes_to_words(bytes: &[u8]) -> Vec<u32> {
    bytes
        .as_chunks()
        .0
        .iter()
        .map(|&word| u32::from_le_bytes(word))
        .collect()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use proptest::prelude::*;
    use safetensors::SafeTensors;

    use super::*;
    use crate::quant::GroupSize;

    /// A layer of the golden file, in the order of [`PackedTensor`]s under `NAME.packed`.
    fn golden(file: &[u8], name: &str, format: Format) -> QuantizedLinear {
        let file = SafeTensors::deserialize(file).unwrap();
        let tensor = |part: &str| file.tensor(&format!("{name}.{part}")).unwrap();
        let codes = tensor("codes");
        let [out_features, in_features] = codes.shape().try_into().unwrap();
        let settings: Vec<i64> = tensor("settings")
            .data()
            .as_chunks()
            .0
            .iter()
            .map(|&bytes| i64::from_le_bytes(bytes))
            .collect();
        let [bits, group_size, symmetric] = settings[..].try_into().unwrap();
        let scheme = Scheme {
            bits: bits as u8,
            group_size: match group_size {
                -1 => GroupSize::WholeRow,
                columns => GroupSize::Columns(columns as usize),
            },
            symmetric: symmetric == 1,
            min_zero_point: format.min_zero_point(symmetric == 1),
        };
        let scales = tensor("scales").data().as_chunks().0.to_vec();
        let g_idx = file.tensor(&format!("{name}.packed.g_idx")).ok();
        QuantizedLinear {
            out_features,
            in_features,
            scheme,
            codes: codes.data().to_vec(),
            scales: scales.into_iter().map(f16::from_le_bytes).collect(),
            zero_points: tensor("zeros").data().to_vec(),
            g_idx: g_idx.and_then(|g_idx| {
                gptq::unpack_g_idx(Some(g_idx.data()), in_features, scheme).unwrap()
            }),
        }
    }

    /// Packing the golden layers gives the golden bytes, and unpacking those gives the layers.
    pub(super) fn check_golden(file: &[u8], names: &[&str], format: Format, qzeros: &str) {
        for name in names {
            let linear = golden(file, name, format);
            let tensors = SafeTensors::deserialize(file).unwrap();
            for (suffix, bytes) in format.pack(&linear) {
                let part = if suffix == "qzeros" { qzeros } else { suffix };
                let expected = tensors.tensor(&format!("{name}.packed.{part}")).unwrap();
                assert_eq!(bytes, expected.data(), "{name}.{suffix}");
            }
            check_unpack(file, name, format, qzeros);
        }
    }

    pub(super) fn check_unpack(file: &[u8], name: &str, format: Format, qzeros: &str) {
        let linear = golden(file, name, format);
        let tensors = SafeTensors::deserialize(file).unwrap();
        let packed = |suffix| {
            let part = if suffix == "qzeros" { qzeros } else { suffix };
            tensors.tensor(&format!("{name}.packed.{part}"))
        };
        let quantized = QuantizedFormat {
            format,
            scheme: linear.scheme,
        };
        let views: Vec<_> = SUFFIXES.map(|suffix| (suffix, packed(suffix))).into();
        let unpacked = unpack(
            &quantized,
            linear.out_features,
            linear.in_features,
            |suffix| {
                let (_, view) = views.iter().find(|(name, _)| *name == suffix)?;
                let view = view.as_ref().ok()?;
                Some(PackedTensor {
                    dtype: view.dtype(),
                    shape: view.shape(),
                    bytes: view.data(),
                })
            },
        );
        assert_eq!(unpacked.unwrap(), linear, "{name}");
    }

    type Tensors = Vec<(PackedSpec, Vec<u8>)>;

    /// Unpacks what [`Format::pack`] and [`Format::tensor_specs`] say; `change` may spoil it first.
    fn round_trip(
        format: Format,
        linear: &QuantizedLinear,
        change: impl Fn(&mut Tensors),
    ) -> Result<QuantizedLinear, Error> {
        let specs = format.tensor_specs(linear.out_features, linear.in_features, linear.scheme);
        let packed = format.pack(linear);
        assert_eq!(specs.len(), packed.len());
        let mut tensors: Vec<_> = specs
            .into_iter()
            .zip(packed)
            .map(|(spec, (suffix, bytes))| {
                assert_eq!(spec.suffix, suffix);
                (spec, bytes)
            })
            .collect();
        change(&mut tensors);
        let quantized = QuantizedFormat {
            format,
            scheme: linear.scheme,
        };
        unpack(
            &quantized,
            linear.out_features,
            linear.in_features,
            |suffix| {
                let (spec, bytes) = tensors.iter().find(|(spec, _)| spec.suffix == suffix)?;
                Some(PackedTensor {
                    dtype: spec.dtype,
                    shape: &spec.shape,
                    bytes,
                })
            },
        )
    }

    prop_compose! {
        /// A layer that `format` can hold: any width for GPTQ, sizes that need not fill words there, narrow last groups.
        fn layers(format: Format)(
            bits in 2u8..=8,
            out in 1usize..40,
            inp in 1usize..70,
            columns in prop::option::of(1usize..40),
            ordered in any::<bool>(),
        )(
            scheme in Just(Scheme {
                bits: if format == Format::AwqGemm { 4 } else { bits },
                group_size: columns.map_or(GroupSize::WholeRow, GroupSize::Columns),
                symmetric: false,
                min_zero_point: format.min_zero_point(false),
            }),
            out in Just(if format == Format::AwqGemm { out.next_multiple_of(8) } else { out }),
            inp in Just(inp),
            ordered in Just(ordered || format == Format::AwqGemm),
            bytes in prop::collection::vec(any::<u8>(), 40 * 70),
        ) -> QuantizedLinear {
            let n_groups = scheme.n_groups(inp);
            let g_idx = (0..inp).map(|column| u32::from(bytes[column]) % n_groups as u32).collect();
            let mut linear = QuantizedLinear {
                out_features: out,
                in_features: inp,
                scheme,
                codes: bytes[..out * inp].iter().map(|byte| byte & scheme.max_code()).collect(),
                scales: bytes[..out * n_groups].iter().map(|&byte| f16::from_f32(byte.into())).collect(),
                zero_points: bytes[..out * n_groups]
                    .iter()
                    .map(|byte| (byte & scheme.max_code()).max(scheme.min_zero_point))
                    .collect(),
                g_idx: Some(g_idx),
            };
            if ordered || (0..inp).all(|column| linear.group_of(column) == column / scheme.group_columns(inp)) {
                linear.g_idx = None;
            }
            linear
        }
    }

    proptest! {
        #[test]
        fn awq_layers_survive_the_round_trip(linear in layers(Format::AwqGemm)) {
            prop_assert_eq!(round_trip(Format::AwqGemm, &linear, |_| {}), Ok(linear));
        }

        #[test]
        fn gptq_v1_layers_survive_the_round_trip(linear in layers(Format::GptqV1)) {
            prop_assert_eq!(round_trip(Format::GptqV1, &linear, |_| {}), Ok(linear));
        }

        #[test]
        fn gptq_v2_layers_survive_the_round_trip(linear in layers(Format::GptqV2)) {
            prop_assert_eq!(round_trip(Format::GptqV2, &linear, |_| {}), Ok(linear));
        }
    }

    #[test]
    fn spoilt_tensors_are_refused() {
        let scheme = Scheme {
            bits: 4,
            group_size: GroupSize::Columns(16),
            symmetric: true,
            min_zero_point: 0,
        };
        let weight: Vec<f32> = (0..8 * 32u16).map(|i| f32::from(i) - 99.5).collect();
        let linear = crate::quant::rtn(&weight, 8, 32, scheme);
        let spoilt = |change: &dyn Fn(&mut Tensors)| round_trip(Format::GptqV1, &linear, change);
        assert_eq!(spoilt(&|_| {}), Ok(linear.clone()));
        assert_eq!(
            spoilt(&|tensors| {
                tensors.retain(|(spec, _)| spec.suffix != "g_idx");
            }),
            Ok(linear.clone())
        );
        assert_eq!(
            spoilt(&|tensors| {
                tensors.remove(1);
            }),
            Err(Error::MissingTensor { suffix: "qzeros" })
        );
        assert_eq!(
            spoilt(&|tensors| tensors[3].1[4..8].copy_from_slice(&(-1i32).to_le_bytes())),
            Err(Error::GroupIndex {
                column: 1,
                group: -1,
                n_groups: 2
            })
        );
        for change in [
            |tensors: &mut Tensors| tensors[0].0.shape[1] += 1,
            |tensors: &mut Tensors| tensors[1].1.truncate(3),
            |tensors: &mut Tensors| tensors[2].0.dtype = Dtype::BF16,
        ] {
            let error = spoilt(&change).unwrap_err();
            assert!(matches!(error, Error::TensorShape { .. }), "{error}");
        }
    }
}
