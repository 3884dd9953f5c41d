//! Reading a checkpoint: all shards mapped, tensors by name, memory given back as soon as a tensor is copied.

use std::{
    collections::BTreeMap,
    ops::Range,
    path::{Path, PathBuf},
};

use safetensors::Dtype;
use tch::Tensor;

use super::{
    Error, header,
    index::{self, INDEX_FILE},
    map::Map,
};
use crate::tensor;

/// What the header says of a tensor.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorInfo {
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// The shard that holds it.
    pub file: PathBuf,
    shard: usize,
    /// Of its bytes in the shard.
    range: Range<usize>,
}

impl TensorInfo {
    /// Bytes of its data.
    pub fn byte_len(&self) -> usize {
        self.range.len()
    }
}

/// An open checkpoint. Threads may share it.
#[derive(Debug)]
pub struct Checkpoint {
    dir: PathBuf,
    shards: Vec<Map>,
    tensors: BTreeMap<String, TensorInfo>,
}

impl Checkpoint {
    /// Opens `model.safetensors`, or the shards named by `model.safetensors.index.json`, or else every `*.safetensors`.
    ///
    /// All headers are read and checked against the files' lengths and the index; no tensor is read.
    pub fn open(dir: &Path) -> Result<Self, Error> {
        let (files, index) = index::shards(dir)?;
        let mut checkpoint = Self {
            dir: dir.to_path_buf(),
            shards: Vec::with_capacity(files.len()),
            tensors: BTreeMap::new(),
        };
        for file in files {
            checkpoint.add_shard(file)?;
        }
        for (name, file) in index.iter().flat_map(|index| &index.weight_map) {
            let found = checkpoint.tensors.get(name);
            if found.is_none_or(|info| info.file != dir.join(file)) {
                return Err(Error::NotInShard {
                    index: dir.join(INDEX_FILE),
                    name: name.clone(),
                    file: file.clone(),
                });
            }
        }
        Ok(checkpoint)
    }

    fn add_shard(&mut self, file: PathBuf) -> Result<(), Error> {
        let map = Map::open(&file).map_err(Error::io(&file))?;
        let (metadata, data_start) = header::read(map.bytes(), &file)?;
        for (name, info) in metadata.tensors() {
            let (begin, end) = info.data_offsets;
            let info = TensorInfo {
                dtype: info.dtype,
                shape: info.shape.clone(),
                file: file.clone(),
                shard: self.shards.len(),
                range: data_start + begin..data_start + end,
            };
            if let Some(first) = self.tensors.insert(name.clone(), info) {
                return Err(Error::Duplicate {
                    name,
                    first: first.file,
                    second: file,
                });
            }
        }
        self.shards.push(map);
        Ok(())
    }

    /// The directory, as it was given.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    pub fn info(&self, name: &str) -> Option<&TensorInfo> {
        self.tensors.get(name)
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        let lens = self.tensors.values().map(|info| info.byte_len() as u64);
        lens.sum()
    }

    /// The bytes of a tensor of any dtype, little-endian and row-major, straight from the map.
    ///
    /// Pages that were read stay in memory until [`Self::release`]; [`super::Writer::copy_tensor`] copies without that.
    pub fn bytes(&self, name: &str) -> Result<&[u8], Error> {
        Ok(self.bytes_of(self.require(name)?))
    }

    /// A float tensor, copied into a CPU tensor of its own dtype; its pages of the map are released.
    ///
    /// # Errors
    /// [`Error::NoTensor`], [`Error::Shape`] if it is not `shape`, [`Error::Dtype`] if it is not F32, F16 or BF16.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor, Error> {
        let info = self.require_float(name, shape)?;
        let tensor = tensor::from_bytes(self.bytes_of(info), info.dtype, shape);
        self.release_range(info, &(0..info.byte_len()));
        tensor.map_err(|source| failed(info, name, source))
    }

    /// These `columns` of rows `ids` of the float table `name`, which is `[n_rows, width]` = `shape`: a CPU tensor
    /// `[ids.len(), columns.len()]`.
    ///
    /// Reads these only, so that an embedding table need not be loaded. `ids` may repeat.
    ///
    /// # Errors
    /// Those of [`Self::tensor`], and [`Error::Row`] for an id that is not below `n_rows`.
    pub fn rows(
        &self,
        name: &str,
        shape: [usize; 2],
        ids: &[u32],
        columns: Range<usize>,
    ) -> Result<Tensor, Error> {
        let [n_rows, width] = shape;
        let info = self.require_float(name, &shape)?;
        let row_len = info.byte_len() / n_rows.max(1);
        let element = row_len / width.max(1);
        let part = columns.start * element..columns.end * element;
        let table = self.bytes_of(info);
        let mut rows = Vec::with_capacity(ids.len() * part.len());
        for &id in ids {
            let row = id as usize;
            if row >= n_rows {
                return Err(Error::Row {
                    file: info.file.clone(),
                    name: name.to_owned(),
                    row: id,
                    n_rows,
                });
            }
            rows.extend_from_slice(&table[row * row_len..][part.clone()]);
        }
        self.release_range(info, &(0..info.byte_len()));
        tensor::from_bytes(&rows, info.dtype, &[ids.len(), columns.len()])
            .map_err(|source| failed(info, name, source))
    }

    /// Part `index` of `parts` equal ones that the tensor `name` of `shape` is cut into along its first dimension, as
    /// a flat CPU tensor of its own dtype; only its pages of the map are read, and released.
    ///
    /// # Errors
    /// Those of [`Self::tensor`].
    ///
    /// # Panics
    /// Where the tensor has no such part.
    pub fn part(
        &self,
        name: &str,
        shape: &[usize],
        index: usize,
        parts: usize,
    ) -> Result<Tensor, Error> {
        let info = self.require_shape(name, shape)?;
        assert!(
            index < parts && shape[0].is_multiple_of(parts),
            "{name}: part {index} of {parts} of {shape:?}"
        );
        let (len, bytes) = (
            shape.iter().product::<usize>() / parts,
            info.byte_len() / parts,
        );
        let range = index * bytes..(index + 1) * bytes;
        let part = tensor::from_bytes(&self.bytes_of(info)[range.clone()], info.dtype, &[len]);
        self.release_range(info, &range);
        part.map_err(|source| failed(info, name, source))
    }

    /// Asks for a tensor's bytes to be read from the disk meanwhile; an unknown name does nothing.
    pub fn prefetch(&self, name: &str) {
        if let Some(info) = self.info(name) {
            self.shards[info.shard].prefetch(&info.range);
        }
    }

    /// Gives the pages of a tensor back to the kernel. They are read again if needed; an unknown name does nothing.
    pub fn release(&self, name: &str) {
        if let Some(info) = self.info(name) {
            self.release_range(info, &(0..info.byte_len()));
        }
    }

    /// [`Self::release`] for `range` of the tensor's bytes.
    pub(super) fn release_range(&self, info: &TensorInfo, range: &Range<usize>) {
        let begin = info.range.start;
        self.shards[info.shard].release(&(begin + range.start..begin + range.end));
    }

    pub(super) fn require(&self, name: &str) -> Result<&TensorInfo, Error> {
        self.info(name).ok_or_else(|| Error::NoTensor {
            dir: self.dir.clone(),
            name: name.to_owned(),
        })
    }

    fn require_shape(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo, Error> {
        let info = self.require(name)?;
        if info.shape != shape {
            return Err(Error::Shape {
                file: info.file.clone(),
                name: name.to_owned(),
                found: info.shape.clone(),
                expected: shape.to_vec(),
            });
        }
        Ok(info)
    }

    fn require_float(&self, name: &str, shape: &[usize]) -> Result<&TensorInfo, Error> {
        let info = self.require_shape(name, shape)?;
        match info.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(info),
            found => Err(Error::Dtype {
                file: info.file.clone(),
                name: name.to_owned(),
                found,
            }),
        }
    }

    pub(super) fn bytes_of(&self, info: &TensorInfo) -> &[u8] {
        &self.shards[info.shard].bytes()[info.range.clone()]
    }
}

fn failed(info: &TensorInfo, name: &str, source: tensor::Error) -> Error {
    Error::Tensor {
        file: info.file.clone(),
        name: name.to_owned(),
        source,
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests;
