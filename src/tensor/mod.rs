//! The one place where bytes become tensors and tensors become bytes or slices.
//!
//! `tch` (0.26) copies from a byte slice without checking its length against the shape, and labels `half::bf16`
//! slices as float16. Everything here checks, and no other module builds a tensor from raw memory or looks into one's.
#![expect(
    unsafe_code,
    reason = "slices of memory that libtorch owns, and a function of its C interface"
)]

pub mod mxfp4;

use std::ffi::c_void;
use std::marker::PhantomData;
use std::{ptr, slice};

use half::{bf16, f16};
use safetensors::Dtype;
use tch::{Device, Kind, Tensor};

/// The libtorch that `tch` was built for; another is refused when it is compiled.
pub const LIBTORCH_VERSION: &str = "2.13.0";

/// What can be wrong when bytes and tensors are exchanged.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A dtype that no computation here takes.
    #[error("dtype {0} is not supported; expected F32, F16, BF16, U8, I32 or I64")]
    Dtype(Dtype),
    /// The data is not as long as dtype and shape say.
    #[error("{found} bytes for {dtype} {shape:?}, expected {expected}")]
    Length {
        dtype: Dtype,
        shape: Vec<usize>,
        expected: usize,
        found: usize,
    },
    /// A value that float16, the dtype of the output, cannot hold.
    #[error(
        "value {value} at position {index} does not fit into float16 (at most 65504), the dtype of the output"
    )]
    NotFloat16 { value: f32, index: usize },
    /// A libtorch failure, out of memory among them.
    #[error(transparent)]
    Torch(#[from] tch::TchError),
}

/// The libtorch kind of a safetensors dtype, where a computation here takes it.
pub fn kind(dtype: Dtype) -> Result<Kind, Error> {
    match dtype {
        Dtype::F32 => Ok(Kind::Float),
        Dtype::F16 => Ok(Kind::Half),
        Dtype::BF16 => Ok(Kind::BFloat16),
        Dtype::I32 => Ok(Kind::Int),
        Dtype::I64 => Ok(Kind::Int64),
        Dtype::U8 => Ok(Kind::Uint8),
        other => Err(Error::Dtype(other)),
    }
}

/// Bytes that `shape` takes in `dtype`; `None` on overflow or for dtypes narrower than a byte.
pub fn byte_len(dtype: Dtype, shape: &[usize]) -> Option<usize> {
    let bits = shape
        .iter()
        .try_fold(dtype.bitsize(), |product, &dim| product.checked_mul(dim))?;
    (bits % 8 == 0).then_some(bits / 8)
}

/// A CPU tensor with a copy of `bytes` (little-endian, row-major).
pub fn from_bytes(bytes: &[u8], dtype: Dtype, shape: &[usize]) -> Result<Tensor, Error> {
    let expected = byte_len(dtype, shape).unwrap_or(usize::MAX);
    if bytes.len() != expected {
        return Err(Error::Length {
            dtype,
            shape: shape.to_vec(),
            expected,
            found: bytes.len(),
        });
    }
    Ok(Tensor::f_from_data_size(bytes, &dims(shape), kind(dtype)?)?)
}

/// A CPU float32 tensor with a copy of `values`; panics if `shape` does not hold them (a bug of the caller's).
pub fn from_f32(values: &[f32], shape: &[usize]) -> Result<Tensor, Error> {
    assert_eq!(values.len(), shape.iter().product::<usize>());
    Ok(Tensor::f_from_slice(values)?.f_view(dims(shape).as_slice())?)
}

/// Overwrites `target` with `source`, of the same shape. Between a GPU and pinned memory of the host the caller goes on meanwhile: all
/// that the GPU does later finds it done, the host has to [`wait_for`] the GPU.
///
/// `tch` has `copy_` without the argument that says so; this is libtorch's own C interface, which promises to stay as it is.
pub fn copy_without_waiting(target: &Tensor, source: &Tensor) -> Result<(), Error> {
    let [to, from] = [target, source].map(|tensor| tensor.as_ptr().cast_mut().cast::<c_void>());
    // SAFETY: tch's pointers are to `at::Tensor`s, as the handles of this interface are, and both tensors are borrowed. It throws
    // nothing. Until the copy is done libtorch gives the memory of neither to anyone but work that comes after it.
    let status = unsafe { aoti_torch_copy_(to, from, 1) };
    if status != 0 {
        // It does not say why; this does.
        target.shallow_clone().f_copy_(source)?;
    }
    Ok(())
}

unsafe extern "C" {
    /// `torch/csrc/inductor/aoti_torch/c/shim.h`: 0 where it worked.
    fn aoti_torch_copy_(target: *mut c_void, source: *mut c_void, non_blocking: i32) -> i32;
}

/// Waits until a GPU has done all that it was given, so that what it had to copy to the host is there.
///
/// # Errors
/// What went wrong on the GPU meanwhile.
pub fn wait_for(device: Device) -> Result<(), Error> {
    if device.is_cuda() {
        // A number that is not there before; where the GPU fails, tch's own wait would panic.
        Tensor::f_zeros([1], (Kind::Float, device))?.f_double_value(&[0])?;
    }
    Ok(())
}

/// The values as float32, row-major, on the host.
pub fn to_f32(tensor: &Tensor) -> Result<Vec<f32>, Error> {
    let host = tensor
        .f_to_device(Device::Cpu)?
        .f_to_kind(Kind::Float)?
        .f_contiguous()?;
    let mut values = vec![0f32; host.numel()];
    let len = values.len();
    host.f_copy_data(&mut values, len)?;
    Ok(values)
}

/// Whether the kernels for bfloat16 numbers on the host can take it.
pub fn on_cpu_in_bf16(tensor: &Tensor) -> bool {
    tensor.kind() == Kind::BFloat16 && tensor.device() == Device::Cpu
}

/// The values of a contiguous float32 tensor on the host, without a copy; panics at any other (a bug of the caller's).
///
/// Tensors that share its memory must not be written to while the slice lives.
pub fn f32_slice(tensor: &Tensor) -> &[f32] {
    let start = values(tensor, Kind::Float);
    // SAFETY: `values` found so many float32 numbers there; the borrowed tensor keeps them. Nothing but the sentence above
    // keeps another tensor that shares them from being written to.
    unsafe { slice::from_raw_parts(start, tensor.numel()) }
}

/// [`f32_slice`] of a bfloat16 tensor.
pub fn bf16_slice(tensor: &Tensor) -> &[bf16] {
    let start = values(tensor, Kind::BFloat16);
    // SAFETY: likewise.
    unsafe { slice::from_raw_parts(start, tensor.numel()) }
}

/// The values of a contiguous bfloat16 tensor on the host, to be written; panics at any other (a bug of the caller's).
///
/// No other tensor that is still used may share its memory.
pub fn bf16_slice_mut(tensor: &mut Tensor) -> &mut [bf16] {
    let start = values(tensor, Kind::BFloat16);
    // SAFETY: `values` found so many bfloat16 numbers there, for which any bits will do; the tensor keeps them and is
    // borrowed mutably. Nothing but the sentence above keeps another tensor from sharing them.
    unsafe { slice::from_raw_parts_mut(start, tensor.numel()) }
}

/// Where the values of a contiguous tensor of `kind` on the host start, of which each is a `T`; never null.
fn values<T>(tensor: &Tensor, kind: Kind) -> *mut T {
    assert!(
        tensor.kind() == kind && tensor.device() == Device::Cpu && tensor.is_contiguous(),
        "{tensor:?}"
    );
    assert_eq!(kind.elt_size_in_bytes(), size_of::<T>());
    if tensor.numel() == 0 {
        return ptr::dangling_mut();
    }
    let start = tensor.data_ptr().cast::<T>();
    assert!(!start.is_null() && start.is_aligned());
    start
}

/// A type of Rust's that is what a tensor of some kind holds.
pub trait Value: Copy {
    const KIND: Kind;
}

impl Value for f32 {
    const KIND: Kind = Kind::Float;
}

impl Value for bf16 {
    const KIND: Kind = Kind::BFloat16;
}

/// A tensor on the host in memory that no other tensor shares, so that a slice of it may be written.
#[derive(Debug)]
pub struct Exclusive<T = f32>(Tensor, PhantomData<T>);

impl<T: Value> Exclusive<T> {
    /// Zeros in a shape.
    pub fn zeros(shape: &[usize]) -> Result<Self, Error> {
        let zeros = Tensor::f_zeros(dims(shape), (T::KIND, Device::Cpu))?;
        Ok(Self(zeros, PhantomData))
    }

    /// The values, row-major.
    pub fn values(&mut self) -> &mut [T] {
        let start = values(&self.0, T::KIND);
        // SAFETY: `values` found so many numbers of this kind there; the tensor keeps them, is borrowed mutably, and is the
        // only one that has them.
        unsafe { slice::from_raw_parts_mut(start, self.0.numel()) }
    }

    /// The tensor, which may be shared from now on.
    pub fn into_tensor(self) -> Tensor {
        self.0
    }
}

/// The raw little-endian bytes, row-major, in the tensor's own kind.
pub fn to_bytes(tensor: &Tensor) -> Result<Vec<u8>, Error> {
    let host = tensor.f_to_device(Device::Cpu)?.f_contiguous()?;
    let numel = host.numel();
    let mut bytes = vec![0u8; numel * host.kind().elt_size_in_bytes()];
    host.f_copy_data_u8(&mut bytes, numel)?;
    Ok(bytes)
}

/// Float values rounded to float16, as raw little-endian bytes.
pub fn f16_bytes(values: impl ExactSizeIterator<Item = f32>) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::with_capacity(2 * values.len());
    for (index, value) in values.enumerate() {
        let rounded = f16::from_f32(value);
        if !rounded.is_finite() {
            return Err(Error::NotFloat16 { value, index });
        }
        bytes.extend_from_slice(&rounded.to_le_bytes());
    }
    Ok(bytes)
}

/// [`f16_bytes`] of raw values in `dtype`, without a float32 copy of them.
pub fn raw_to_f16_bytes(bytes: &[u8], dtype: Dtype) -> Result<Vec<u8>, Error> {
    match dtype {
        Dtype::F16 => f16_bytes(
            bytes
                .chunks_exact(2)
                .map(|b| f16::from_le_bytes([b[0], b[1]]).to_f32()),
        ),
        Dtype::BF16 => f16_bytes(
            bytes
                .chunks_exact(2)
                .map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()),
        ),
        Dtype::F32 => f16_bytes(
            bytes
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])),
        ),
        other => Err(Error::Dtype(other)),
    }
}

/// Dimensions as libtorch counts them.
pub fn dims(shape: &[usize]) -> Vec<i64> {
    shape.iter().map(|&dim| dim as i64).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_survives_the_round_trip() {
        let bits: Vec<u8> = [0x3f80u16, 0xc000, 0x7f7f, 0x0001]
            .iter()
            .flat_map(|bits| bits.to_le_bytes())
            .collect();
        let tensor = from_bytes(&bits, Dtype::BF16, &[2, 2]).unwrap();
        assert_eq!(tensor.kind(), Kind::BFloat16);
        assert_eq!(to_f32(&tensor).unwrap()[..2], [1.0, -2.0]);
        assert_eq!(to_bytes(&tensor).unwrap(), bits);
    }

    #[test]
    fn a_copy_goes_into_a_part_of_another_tensors_memory() {
        let target = Tensor::zeros([2, 4], (Kind::BFloat16, Device::Cpu));
        let source = from_f32(&[1.0, 2.0, 3.0, 4.0], &[2, 2]).unwrap();
        copy_without_waiting(&target.narrow(1, 1, 2), &source).unwrap();
        wait_for(target.device()).unwrap();
        assert_eq!(
            to_f32(&target).unwrap(),
            [0.0, 1.0, 2.0, 0.0, 0.0, 3.0, 4.0, 0.0]
        );
        let error = copy_without_waiting(&target, &source).unwrap_err();
        let text = error.to_string();
        assert!(text.contains("must match"), "{text}");
    }

    #[test]
    fn float16_takes_what_fits_and_names_what_does_not() {
        let bf16_bytes: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|&v| bf16::from_f32(v).to_le_bytes())
            .collect();
        let f16_bytes: Vec<u8> = [1.5f32, -2.0]
            .iter()
            .flat_map(|&v| f16::from_f32(v).to_le_bytes())
            .collect();
        assert_eq!(
            raw_to_f16_bytes(&bf16_bytes, Dtype::BF16).unwrap(),
            f16_bytes
        );
        assert_eq!(raw_to_f16_bytes(&f16_bytes, Dtype::F16).unwrap(), f16_bytes);
        let large: Vec<u8> = [1.0f32, 1e5].iter().flat_map(|v| v.to_le_bytes()).collect();
        let error = raw_to_f16_bytes(&large, Dtype::F32).unwrap_err();
        assert!(
            matches!(error, Error::NotFloat16 { index: 1, .. }),
            "{error}"
        );
    }

    #[test]
    fn wrong_lengths_are_refused() {
        for len in [0, 15, 17] {
            let error = from_bytes(&vec![0; len], Dtype::F32, &[2, 2]).unwrap_err();
            assert!(
                matches!(error, Error::Length { expected: 16, .. }),
                "{error}"
            );
        }
        assert!(from_bytes(&[], Dtype::F32, &[usize::MAX, 2]).is_err());
    }

    #[test]
    fn slices_are_the_values_where_they_lie() {
        let mut sums = Exclusive::<f32>::zeros(&[2, 3]).unwrap();
        sums.values()[4] = 2.5;
        let tensor = sums.into_tensor();
        assert_eq!(f32_slice(&tensor.get(1)), [0.0, 2.5, 0.0]);
        assert_eq!(f32_slice(&tensor.narrow(0, 0, 0)), [0.0; 0]);
        let rounded = tensor.to_kind(Kind::BFloat16);
        assert_eq!(
            bf16_slice(&rounded.get(1)),
            [0.0, 2.5, 0.0].map(bf16::from_f32)
        );
        let mut rounded = Exclusive::<bf16>::zeros(&[2]).unwrap();
        rounded.values()[1] = bf16::from_f32(-1.5);
        assert_eq!(to_f32(&rounded.into_tensor()).unwrap(), [0.0, -1.5]);
    }

    #[test]
    fn views_are_copied_in_row_major_order() {
        let tensor = from_f32(&[1.0, 2.0, 3.0, 4.0, 5.0, 6.0], &[2, 3]).unwrap();
        assert_eq!(
            to_f32(&tensor.tr()).unwrap(),
            [1.0, 4.0, 2.0, 5.0, 3.0, 6.0]
        );
    }
}
