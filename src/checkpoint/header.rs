//! The safetensors header: eight bytes of length, then JSON that gives each tensor's dtype, shape and offsets.
//!
//! Specification: <https://github.com/huggingface/safetensors#format>. The JSON is parsed and checked (contiguous
//! offsets, sizes that fit dtype and shape) by the `safetensors` crate; the lengths are checked here, because its
//! error does not tell them.

use std::{collections::HashMap, path::Path};

use safetensors::tensor::{Metadata, TensorInfo};

use super::{Error, TensorSpec};

/// Length of the length.
const PREFIX: usize = 8;
/// The `safetensors` crate reads no longer header.
const MAX_LEN: u64 = 100_000_000;
/// What a file starts with where git-lfs did not fetch it.
const LFS_POINTER: &[u8] = b"version https://git-lfs";

/// The tensors of a shard and where its data section starts; `bytes` are the whole file.
pub fn read(bytes: &[u8], file: &Path) -> Result<(Metadata, usize), Error> {
    if bytes.starts_with(LFS_POINTER) {
        return Err(Error::LfsPointer {
            file: file.to_path_buf(),
        });
    }
    let wrong_length = |expected| Error::FileLength {
        file: file.to_path_buf(),
        expected,
        found: bytes.len(),
    };
    let invalid = |reason| Error::Header {
        file: file.to_path_buf(),
        reason,
    };
    let prefix = bytes
        .first_chunk::<PREFIX>()
        .ok_or_else(|| wrong_length(PREFIX))?;
    let len = u64::from_le_bytes(*prefix);
    if len > MAX_LEN {
        return Err(invalid(format!("its length would be {len} bytes")));
    }
    let start = PREFIX + len as usize;
    let json = bytes
        .get(PREFIX..start)
        .ok_or_else(|| wrong_length(start))?;
    let metadata: Metadata =
        serde_json::from_slice(json).map_err(|error| invalid(error.to_string()))?;
    let expected = start.saturating_add(metadata.data_len());
    if expected != bytes.len() {
        return Err(wrong_length(expected));
    }
    Ok((metadata, start))
}

/// The header of a shard that holds `specs` one after the other, and where the data of each starts in the file.
///
/// Padded with spaces so that the data section starts at a multiple of eight.
pub fn write(specs: &[TensorSpec], file: &Path) -> Result<(Vec<u8>, Vec<u64>), Error> {
    let mut end = 0;
    let infos: Vec<_> = specs
        .iter()
        .map(|spec| {
            let begin = end;
            end += spec.byte_len();
            let info = TensorInfo {
                dtype: spec.dtype,
                shape: spec.shape.clone(),
                data_offsets: (begin, end),
            };
            (spec.name.clone(), info)
        })
        .collect();
    let begins: Vec<usize> = infos.iter().map(|(_, info)| info.data_offsets.0).collect();
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    let invalid = |reason: String| Error::Header {
        file: file.to_path_buf(),
        reason,
    };
    let json = Metadata::new(Some(format), infos)
        .map_err(|error| error.to_string())
        .and_then(|metadata| serde_json::to_vec(&metadata).map_err(|error| error.to_string()))
        .map_err(invalid)?;
    let len = json.len().next_multiple_of(PREFIX);
    if len as u64 > MAX_LEN {
        return Err(invalid(format!(
            "{} tensors make it {len} bytes long; give a smaller shard size",
            specs.len()
        )));
    }
    let mut header = (len as u64).to_le_bytes().to_vec();
    header.extend(json);
    header.resize(PREFIX + len, b' ');
    let offsets = begins
        .into_iter()
        .map(|begin| (header.len() + begin) as u64)
        .collect();
    Ok((header, offsets))
}
