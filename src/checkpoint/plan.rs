//! Where each tensor of an output checkpoint goes, decided before any of them is computed.

use std::{
    cmp::Reverse,
    collections::{BTreeMap, HashMap},
    path::Path,
};

use safetensors::Dtype;

use super::{
    Error, header,
    index::{Index, SINGLE_FILE},
};

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// Bytes of its data.
    pub fn byte_len(&self) -> usize {
        crate::tensor::byte_len(self.dtype, &self.shape)
            .unwrap_or_else(|| panic!("{self:?} is no whole number of bytes"))
    }

    /// Bytes that an address of its elements should be a multiple of.
    fn alignment(&self) -> usize {
        self.dtype.bitsize().div_ceil(8)
    }
}

/// The files of a checkpoint and the place of each tensor.
#[derive(Debug)]
pub struct Plan {
    pub shards: Vec<Shard>,
    /// In the order of the files.
    pub places: Vec<Place>,
    by_name: HashMap<String, usize>,
    /// Bytes of all tensors, without headers.
    pub total_bytes: u64,
}

/// One file, before its tensors.
#[derive(Debug)]
pub struct Shard {
    pub file: String,
    pub header: Vec<u8>,
    /// Bytes of the file.
    pub len: u64,
}

/// Where the bytes of a tensor go.
#[derive(Debug)]
pub struct Place {
    pub name: String,
    pub shard: usize,
    /// From the start of the file.
    pub offset: u64,
    pub len: usize,
}

impl Plan {
    /// Fills shards with `specs` in the order given, starting a new one before `max_shard_bytes` would be exceeded.
    ///
    /// A tensor larger than that gets a shard of its own. Panics on duplicate names.
    pub fn new(specs: Vec<TensorSpec>, max_shard_bytes: u64) -> Result<Self, Error> {
        assert!(!specs.is_empty(), "a checkpoint needs tensors");
        let groups = split(specs, max_shard_bytes);
        let n_shards = groups.len();
        let mut plan = Self {
            shards: Vec::with_capacity(n_shards),
            places: Vec::new(),
            by_name: HashMap::new(),
            total_bytes: 0,
        };
        for (shard, mut specs) in groups.into_iter().enumerate() {
            align(&mut specs);
            let file = file_name(shard, n_shards);
            let (header, offsets) = header::write(&specs, Path::new(&file))?;
            let mut end = header.len() as u64;
            for (spec, offset) in specs.into_iter().zip(offsets) {
                let len = spec.byte_len();
                assert_eq!(offset, end, "{}: tensors are contiguous", spec.name);
                end += len as u64;
                plan.total_bytes += len as u64;
                let place = plan.places.len();
                let previous = plan.by_name.insert(spec.name.clone(), place);
                assert!(previous.is_none(), "{} is planned twice", spec.name);
                plan.places.push(Place {
                    name: spec.name,
                    shard,
                    offset,
                    len,
                });
            }
            plan.shards.push(Shard {
                file,
                header,
                len: end,
            });
        }
        Ok(plan)
    }

    /// The number of a tensor in `places`; panics if it was not planned.
    pub fn place(&self, name: &str) -> usize {
        let place = self.find(name);
        place.unwrap_or_else(|| panic!("{name} was not planned"))
    }

    /// The number of a tensor in `places`, if it was planned.
    pub fn find(&self, name: &str) -> Option<usize> {
        self.by_name.get(name).copied()
    }

    /// The index of the shards; none is written for one file.
    pub fn index(&self) -> Option<Index> {
        let file = |place: &Place| self.shards[place.shard].file.clone();
        let weight_map: BTreeMap<_, _> = self
            .places
            .iter()
            .map(|place| (place.name.clone(), file(place)))
            .collect();
        (self.shards.len() > 1).then_some(Index { weight_map })
    }
}

fn split(specs: Vec<TensorSpec>, max_shard_bytes: u64) -> Vec<Vec<TensorSpec>> {
    let mut groups: Vec<Vec<TensorSpec>> = Vec::new();
    let mut group_bytes = 0;
    for spec in specs {
        let len = spec.byte_len() as u64;
        match groups.last_mut() {
            Some(group) if group_bytes + len <= max_shard_bytes => {
                group_bytes += len;
                group.push(spec);
            }
            _ => {
                group_bytes = len;
                groups.push(vec![spec]);
            }
        }
    }
    groups
}

/// Keeps the planned order unless it would put a tensor at an address that does not suit its dtype (odd sizes of a
/// narrower one before it), which loaders that view the mapped bytes cannot take; then wide dtypes go first.
fn align(specs: &mut [TensorSpec]) {
    let mut begin = 0;
    let aligned = specs.iter().all(|spec| {
        let fits = begin % spec.alignment() == 0;
        begin += spec.byte_len();
        fits
    });
    if !aligned {
        specs.sort_by_key(|spec| Reverse(spec.dtype.bitsize()));
    }
}

fn file_name(shard: usize, n_shards: usize) -> String {
    if n_shards == 1 {
        SINGLE_FILE.to_owned()
    } else {
        format!("model-{:05}-of-{n_shards:05}.safetensors", shard + 1)
    }
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    fn spec(name: &str, dtype: Dtype, len: usize) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            dtype,
            shape: vec![len],
        }
    }

    /// Names per file for byte tensors of these sizes, called a, b, c…
    fn check(sizes: &[usize], max_shard_bytes: u64, expected: &[&str]) {
        let names = "abcdefgh";
        let specs = sizes
            .iter()
            .zip(names.chars())
            .map(|(&size, name)| spec(&name.to_string(), Dtype::U8, size))
            .collect();
        let plan = Plan::new(specs, max_shard_bytes).unwrap();
        let mut found = vec![String::new(); plan.shards.len()];
        for place in &plan.places {
            found[place.shard] += &place.name;
        }
        assert_eq!(found, expected);
        assert_eq!(plan.index().is_some(), expected.len() > 1);
    }

    #[test]
    fn shards_are_filled_in_order() {
        check(&[4, 4, 4], 100, &["abc"]);
        check(&[4, 4, 4], 12, &["abc"]);
        check(&[4, 4, 4], 11, &["ab", "c"]);
        check(&[4, 4, 4], 0, &["a", "b", "c"]);
        check(&[2, 50, 3, 3], 10, &["a", "b", "cd"]);
        check(&[10, 0, 0, 1], 10, &["abc", "d"]);
        check(&[0], 0, &["a"]);
        check(&[11, 0], 10, &["a", "b"]);
    }

    #[test]
    fn order_changes_only_to_align() {
        let order = |n_halves| {
            let specs = vec![
                spec("half", Dtype::F16, n_halves),
                spec("word", Dtype::I32, 1),
                spec("byte", Dtype::U8, 1),
                spec("packed", Dtype::F4, 2),
            ];
            let plan = Plan::new(specs, 1000).unwrap();
            let names: Vec<_> = plan.places.iter().map(|p| p.name.clone()).collect();
            names.join(" ")
        };
        assert_eq!(order(2), "half word byte packed");
        assert_eq!(order(3), "word half byte packed");
    }
}
