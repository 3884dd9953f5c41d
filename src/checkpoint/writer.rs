//! Writing a checkpoint tensor by tensor, in any order, from any thread, into a directory that appears when complete.
//!
//! All is planned beforehand, so each tensor goes straight to its place in its shard and nothing is kept in memory.
//! Until [`Writer::finish`] everything lives in `.<name>.partial` beside the target.

use std::{
    fs::{self, File, OpenOptions},
    io,
    ops::Range,
    os::unix::fs::FileExt,
    path::{Path, PathBuf},
    sync::{Mutex, MutexGuard, PoisonError},
};

use serde_json::{Map, Value};

use super::{
    Checkpoint, Error, TensorSpec,
    index::INDEX_FILE,
    journal::{self, JOURNAL, Journal, Step},
    plan::{Place, Plan, Shard},
    sidecars,
    target::{Partial, Target},
};

/// Bytes that [`Writer::copy_tensor`] has in memory at a time.
const COPY_CHUNK: usize = 16 << 20;

/// An output checkpoint in the making. Dropped unfinished, it removes what it wrote, unless a step of it is done: then what is
/// there stays, for [`Writer::open`].
#[derive(Debug)]
pub struct Writer {
    plan: Plan,
    partial: Partial,
    target: Target,
    progress: Mutex<Progress>,
    journal: Mutex<Journal>,
}

#[derive(Debug)]
struct Progress {
    /// By number of the place; set before the bytes are on their way, so that a second writer is caught.
    written: Vec<bool>,
    /// Numbers of the places written completely since the last journal line.
    unjournaled: Vec<usize>,
}

impl Writer {
    /// Plans the shards of `specs`, in their order and of at most `max_shard_bytes` (larger tensors stand alone). Where an interrupted
    /// run of the same `identity`, an object with all that sets it apart from others, had done a step at least, takes up what it left in
    /// `.<name>.partial` beside `target`, and returns the records of its steps; else creates the shards with their headers there.
    ///
    /// With `overwrite`, a model at `target` stays until [`Self::finish`]. Panics if `specs` is empty or names a tensor twice.
    ///
    /// # Errors
    /// [`Error::TargetExists`] without `overwrite`; [`Error::TargetNotAModel`] with it, where `target` holds neither
    /// a `config.json` nor nothing; [`Error::Busy`] if another process writes there; [`Error::OtherRun`] if another run had done a
    /// step; any file system error.
    pub fn open(
        target: &Path,
        specs: Vec<TensorSpec>,
        max_shard_bytes: u64,
        overwrite: bool,
        identity: &Map<String, Value>,
    ) -> Result<(Self, Vec<Value>), Error> {
        let plan = Plan::new(specs, max_shard_bytes)?;
        let target = Target::new(target, overwrite)?;
        if let Some(partial) = target.open_partial()?
            && let (Some(journal), steps) = Journal::open(&partial.path)?
        {
            return Self::resume(plan, target, partial, identity, journal, steps);
        }
        let partial = target.create_partial()?;
        let journal = Journal::create(&partial.path, identity)?;
        let writer = Self::new(plan, target, partial, journal);
        for shard in &writer.plan.shards {
            writer.in_partial(&shard.file, |path| {
                let file = File::create_new(path)?;
                file.write_all_at(&shard.header, 0)?;
                file.set_len(shard.len)
            })?;
        }
        Ok((writer, Vec::new()))
    }

    /// Goes on behind `steps`, if the run of `partial` is the one of this `identity`.
    fn resume(
        plan: Plan,
        target: Target,
        partial: Partial,
        identity: &Map<String, Value>,
        journal: Journal,
        steps: Vec<Step>,
    ) -> Result<(Self, Vec<Value>), Error> {
        let mut differences = journal::differences(&partial.path, identity);
        if differences.is_empty() && !fits(&partial.path, &steps, &plan) {
            differences.push("files".to_owned());
        }
        if !differences.is_empty() {
            return Err(Error::OtherRun {
                partial: partial.path.clone(),
                differences,
            });
        }
        let writer = Self::new(plan, target, partial, journal);
        let mut records = Vec::new();
        for step in steps {
            for name in step.tensors {
                lock(&writer.progress).written[writer.plan.place(&name)] = true;
            }
            records.push(step.record);
        }
        Ok((writer, records))
    }

    /// Removes what an unfinished run left for `target`.
    ///
    /// # Errors
    /// Those of [`Self::open`], but for [`Error::OtherRun`].
    pub fn remove_unfinished(target: &Path, overwrite: bool) -> Result<(), Error> {
        Target::new(target, overwrite)?.remove_partial()
    }

    fn new(plan: Plan, target: Target, partial: Partial, journal: Journal) -> Self {
        Self {
            progress: Mutex::new(Progress {
                written: vec![false; plan.places.len()],
                unjournaled: Vec::new(),
            }),
            journal: Mutex::new(journal),
            plan,
            partial,
            target,
        }
    }

    /// Where everything is written until it is finished.
    pub fn partial(&self) -> &Path {
        &self.partial.path
    }

    /// Whether what is written stays when this is dropped unfinished.
    pub fn is_kept(&self) -> bool {
        self.partial.is_kept()
    }

    /// Gives up what steps are done, as no run can go on behind them.
    pub fn discard(&self) {
        self.partial.keep(false);
    }

    /// Writes the bytes of a tensor, little-endian and row-major, to its place.
    ///
    /// Panics if `name` was not planned, was written before, or has another length.
    pub fn write(&self, name: &str, bytes: &[u8]) -> Result<(), Error> {
        self.write_pieces(name, bytes, bytes.len(), |_| ())
    }

    /// Writes a tensor of any dtype as it is in `source`, without holding more than a piece of it in memory.
    ///
    /// Panics as [`Self::write`] does.
    pub fn copy_tensor(&self, source: &Checkpoint, name: &str) -> Result<(), Error> {
        let info = source.require(name)?;
        self.write_pieces(name, source.bytes_of(info), COPY_CHUNK, |range| {
            source.release_range(info, &range);
        })
    }

    /// Writes `bytes` in pieces of `piece_len` and tells `done` the range of each.
    fn write_pieces(
        &self,
        name: &str,
        bytes: &[u8],
        piece_len: usize,
        done: impl Fn(Range<usize>),
    ) -> Result<(), Error> {
        let number = self.plan.place(name);
        let place = &self.plan.places[number];
        assert_eq!(
            bytes.len(),
            place.len,
            "{name}: another length than was planned"
        );
        let before = std::mem::replace(&mut lock(&self.progress).written[number], true);
        assert!(!before, "{name} is written twice");
        self.in_partial(&self.plan.shards[place.shard].file, |path| {
            // Opened for each tensor: however many shards there are, few files are open.
            let file = OpenOptions::new().write(true).open(path)?;
            let mut begin = 0;
            for piece in bytes.chunks(piece_len.max(1)) {
                file.write_all_at(piece, place.offset + begin as u64)?;
                done(begin..begin + piece.len());
                begin += piece.len();
            }
            Ok(())
        })
        .inspect_err(|_| lock(&self.progress).written[number] = false)?;
        lock(&self.progress).unjournaled.push(number);
        Ok(())
    }

    /// Brings the tensors written so far to the disk and records that in the journal, together with `record`: from here on they
    /// need not be written again.
    pub fn step_done(&self, record: &Value) -> Result<(), Error> {
        let numbers = std::mem::take(&mut lock(&self.progress).unjournaled);
        let places: Vec<&Place> = numbers.iter().map(|&n| &self.plan.places[n]).collect();
        let mut shards: Vec<usize> = places.iter().map(|place| place.shard).collect();
        shards.sort_unstable();
        shards.dedup();
        for shard in shards {
            self.in_partial(&self.plan.shards[shard].file, |path| {
                OpenOptions::new().write(true).open(path)?.sync_data()
            })?;
        }
        let step = Step {
            record: record.clone(),
            tensors: places.iter().map(|place| place.name.clone()).collect(),
        };
        let mut journal = lock(&self.journal);
        self.in_partial(JOURNAL, |_| journal.add(&step))?;
        self.partial.keep(true);
        Ok(())
    }

    /// Writes a file beside the shards, or replaces it; `name` has no directory.
    pub fn write_file(&self, name: &str, contents: &[u8]) -> Result<(), Error> {
        self.in_partial(name, |path| fs::write(path, contents))
    }

    /// Copies tokenizer, licence and the like from the model directory `source`; returns their names, sorted.
    ///
    /// Not config.json, no weights, no hidden files; of the sub-directories only those of a tokenizer.
    pub fn copy_sidecars(&self, source: &Path) -> Result<Vec<String>, Error> {
        sidecars::copy(source, &self.partial.path)
    }

    /// Bytes of all planned tensors.
    pub fn total_bytes(&self) -> u64 {
        self.plan.total_bytes
    }

    /// Completes the directory, brings it to the disk and gives it its name, which is returned.
    ///
    /// # Errors
    /// [`Error::Unwritten`] if a planned tensor is missing; [`Error::Rename`] if only the last step failed, in which
    /// case the partial directory stays.
    pub fn finish(self) -> Result<PathBuf, Error> {
        let missing: Vec<&Place> = {
            let progress = lock(&self.progress);
            let places = self.plan.places.iter().zip(&progress.written);
            places
                .filter(|(_, written)| !**written)
                .map(|(place, _)| place)
                .collect()
        };
        if let Some(first) = missing.first() {
            return Err(Error::Unwritten {
                first: first.name.clone(),
                count: missing.len(),
            });
        }
        if let Some(index) = self.plan.index() {
            self.write_file(INDEX_FILE, index.to_json(self.plan.total_bytes).as_bytes())?;
        }
        for file in Journal::files(&self.partial.path) {
            fs::remove_file(&file).map_err(Error::io(&file))?;
        }
        self.target.install(&self.partial)?;
        Ok(self.target.path)
    }

    /// Runs `work` on the path of a file in the partial directory, and explains a full disk.
    fn in_partial(
        &self,
        name: &str,
        work: impl FnOnce(&Path) -> io::Result<()>,
    ) -> Result<(), Error> {
        let path = self.partial.path.join(name);
        work(&path).map_err(|source| match source.kind() {
            io::ErrorKind::StorageFull => Error::DiskFull {
                file: path,
                total_bytes: self.plan.total_bytes,
            },
            _ => Error::Io { path, source },
        })
    }
}

/// Whether the shards in `dir` are as planned, and the tensors of `steps` among them.
fn fits(dir: &Path, steps: &[Step], plan: &Plan) -> bool {
    let is_as_planned = |shard: &Shard| -> io::Result<bool> {
        let file = File::open(dir.join(&shard.file))?;
        let mut header = vec![0; shard.header.len()];
        file.read_exact_at(&mut header, 0)?;
        Ok(header == shard.header && file.metadata()?.len() == shard.len)
    };
    let mut tensors = steps.iter().flat_map(|step| &step.tensors);
    let mut shards = plan.shards.iter();
    tensors.all(|name| plan.find(name).is_some())
        && shards.all(|shard| is_as_planned(shard).unwrap_or(false))
}

/// A panic while the lock was held left nothing half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use std::collections::BTreeMap;

    use proptest::{collection, prelude::*, sample};
    use safetensors::{Dtype, SafeTensors};
    use serde_json::json;
    use tempfile::TempDir;

    use super::*;

    const DTYPES: [Dtype; 9] = [
        Dtype::BOOL,
        Dtype::U8,
        Dtype::F8_E4M3,
        Dtype::I16,
        Dtype::F16,
        Dtype::BF16,
        Dtype::I32,
        Dtype::F32,
        Dtype::I64,
    ];

    fn spec(name: &str, dtype: Dtype, shape: &[usize]) -> TensorSpec {
        TensorSpec {
            name: name.to_owned(),
            dtype,
            shape: shape.to_vec(),
        }
    }

    /// Two tensors of 8 and 3 bytes.
    fn specs() -> Vec<TensorSpec> {
        vec![spec("a", Dtype::F32, &[2]), spec("b", Dtype::U8, &[1, 3])]
    }

    fn write_all(writer: &Writer) {
        writer.write("b", &[1, 2, 3]).unwrap();
        writer.write("a", &[4; 8]).unwrap();
    }

    /// Names in the directory, hidden ones included.
    fn ls(dir: &Path) -> Vec<String> {
        let mut names: Vec<String> = sidecars::entries(dir)
            .unwrap()
            .iter()
            .map(|path| path.file_name().unwrap().to_str().unwrap().to_owned())
            .collect();
        names.sort();
        names
    }

    /// A writer behind which no step is done.
    fn create(
        target: &Path,
        specs: Vec<TensorSpec>,
        max_shard_bytes: u64,
        overwrite: bool,
        identity: &Map<String, Value>,
    ) -> Result<Writer, Error> {
        let (writer, records) = Writer::open(target, specs, max_shard_bytes, overwrite, identity)?;
        assert!(records.is_empty());
        Ok(writer)
    }

    fn temp() -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let target = dir.path().join("out");
        (dir, target)
    }

    #[test]
    fn one_shard_needs_no_index() {
        let (dir, target) = temp();
        let writer = create(&target, specs(), 1000, false, &Map::new()).unwrap();
        assert_eq!((writer.total_bytes(), writer.plan.shards.len()), (11, 1));
        write_all(&writer);
        writer.write_file("config.json", b"{}").unwrap();
        assert_eq!(writer.finish().unwrap(), target);
        assert_eq!(ls(&target), ["config.json", "model.safetensors"]);
        assert_eq!(ls(dir.path()), ["out"]);
        let file = fs::read(target.join("model.safetensors")).unwrap();
        let (header, metadata) = SafeTensors::read_metadata(&file).unwrap();
        assert_eq!(header % 8, 0);
        assert_eq!(metadata.metadata().as_ref().unwrap()["format"], "pt");
        assert_eq!(metadata.offset_keys(), ["a", "b"]);
        assert_eq!(file[8 + header..], [4, 4, 4, 4, 4, 4, 4, 4, 1, 2, 3]);
    }

    #[test]
    fn several_shards_have_an_index() {
        let (_dir, target) = temp();
        let writer = create(&target, specs(), 8, false, &Map::new()).unwrap();
        write_all(&writer);
        writer.finish().unwrap();
        let names = [
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            INDEX_FILE,
        ];
        assert_eq!(ls(&target), names);
        let index: Value =
            serde_json::from_slice(&fs::read(target.join(INDEX_FILE)).unwrap()).unwrap();
        let expected = json!({ "metadata": { "total_size": 11 }, "weight_map": { "a": names[0], "b": names[1] } });
        assert_eq!(index, expected);
    }

    #[test]
    fn the_target_appears_only_when_finished() {
        let (dir, target) = temp();
        let writer = create(&target, specs(), 8, false, &Map::new()).unwrap();
        write_all(&writer);
        assert_eq!(ls(dir.path()), [".out.partial"]);
        drop(writer);
        assert!(ls(dir.path()).is_empty());
    }

    #[test]
    fn missing_tensors_are_an_error() {
        let (dir, target) = temp();
        let writer = create(&target, specs(), 8, false, &Map::new()).unwrap();
        writer.write("b", &[1, 2, 3]).unwrap();
        let error = writer.finish().unwrap_err();
        assert!(
            matches!(&error, Error::Unwritten { first, count: 1 } if first == "a"),
            "{error}"
        );
        assert!(ls(dir.path()).is_empty());
    }

    fn identity(bits: u8) -> Map<String, Value> {
        Map::from_iter([
            ("bits".to_owned(), json!(bits)),
            ("seed".to_owned(), json!(1)),
        ])
    }

    /// A run of this identity that did one step, wrote a tensor more and ended there.
    fn interrupted(target: &Path) {
        let writer = create(target, specs(), 8, false, &identity(4)).unwrap();
        writer.write("b", &[1, 2, 3]).unwrap();
        writer.step_done(&json!({ "layer": 0 })).unwrap();
        writer.write("a", &[9; 8]).unwrap();
    }

    #[test]
    fn the_journal_has_a_line_a_step() {
        let (dir, target) = temp();
        interrupted(&target);
        let journal = fs::read_to_string(dir.path().join(".out.partial").join(JOURNAL)).unwrap();
        let line: Value = serde_json::from_str(&journal).unwrap();
        assert_eq!(line, json!({ "record": { "layer": 0 }, "tensors": ["b"] }));
    }

    #[test]
    fn an_interrupted_run_goes_on_behind_its_last_step() {
        let (dir, target) = temp();
        interrupted(&target);
        let journal = dir.path().join(".out.partial").join(JOURNAL);
        // The next line was being written.
        let mut torn = fs::read(&journal).unwrap();
        let whole = torn.len();
        torn.extend(&torn.clone()[..whole - 1]);
        fs::write(&journal, torn).unwrap();
        for _ in 0..2 {
            let found = Writer::open(&target, specs(), 8, false, &identity(4));
            let (writer, records) = found.unwrap();
            assert_eq!(records, [json!({ "layer": 0 })]);
            assert_eq!(fs::read(&journal).unwrap().len(), whole);
            // Only what belongs to no step is missing.
            let error = writer.finish().unwrap_err();
            assert!(
                matches!(&error, Error::Unwritten { first, count: 1 } if first == "a"),
                "{error}"
            );
        }
        let found = Writer::open(&target, specs(), 8, false, &identity(4));
        let (writer, _) = found.unwrap();
        writer.write("a", &[4; 8]).unwrap();
        writer.step_done(&json!({ "layer": 1 })).unwrap();
        writer.finish().unwrap();
        assert_eq!(ls(dir.path()), ["out"]);
        let written = Checkpoint::open(&target).unwrap();
        assert_eq!(written.bytes("a").unwrap(), [4; 8]);
        assert_eq!(written.bytes("b").unwrap(), [1, 2, 3]);
    }

    #[test]
    fn only_the_same_run_goes_on() {
        let (dir, target) = temp();
        interrupted(&target);
        let other = || vec![spec("a", Dtype::F32, &[2])];
        for (specs, max_shard_bytes, bits, expected) in [
            (specs(), 8, 3, "with other bits;"),
            (other(), 8, 3, "with other bits;"),
            (specs(), 1000, 4, "with other files;"),
            (other(), 8, 4, "with other files;"),
        ] {
            let found = Writer::open(&target, specs, max_shard_bytes, false, &identity(bits));
            let error = found.unwrap_err().to_string();
            assert!(error.contains(expected), "{error}");
        }
        assert_eq!(ls(dir.path()), [".out.partial"]);
        // A fresh start is another's to make.
        Writer::remove_unfinished(&target, false).unwrap();
        assert!(ls(dir.path()).is_empty());
        drop(create(&target, specs(), 8, false, &identity(3)).unwrap());
        assert!(ls(dir.path()).is_empty());
    }

    #[test]
    fn tensors_are_copied_from_a_checkpoint() {
        let (dir, target) = temp();
        let source = dir.path().join("source");
        // More than one piece, and not a whole number of them.
        let len = 2 * COPY_CHUNK + 12345;
        let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
        let specs = || vec![spec("none", Dtype::F32, &[0]), spec("t", Dtype::U8, &[len])];
        let writer = create(&source, specs(), u64::MAX, false, &Map::new()).unwrap();
        writer.write("none", &[]).unwrap();
        writer.write("t", &bytes).unwrap();
        writer.finish().unwrap();
        let checkpoint = Checkpoint::open(&source).unwrap();
        let writer = create(&target, specs(), 5, false, &Map::new()).unwrap();
        writer.copy_tensor(&checkpoint, "none").unwrap();
        writer.copy_tensor(&checkpoint, "t").unwrap();
        writer.finish().unwrap();
        assert!(Checkpoint::open(&target).unwrap().bytes("t").unwrap() == bytes);
    }

    /// Whether `misuse` of a writer panics, which only a bug of ours can cause.
    fn panics(misuse: impl FnOnce(&Writer)) -> bool {
        let (_dir, target) = temp();
        let writer = create(&target, specs(), 1000, false, &Map::new()).unwrap();
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| misuse(&writer))).is_err()
    }

    #[test]
    fn misuse_is_a_panic() {
        assert!(panics(|writer| writer.write("a", &[0; 7]).unwrap()));
        assert!(panics(|writer| writer.write("c", &[0; 8]).unwrap()));
        assert!(panics(|writer| {
            writer.write("a", &[0; 8]).unwrap();
            writer.write("a", &[0; 8]).unwrap();
        }));
        assert!(!panics(write_all));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(48))]

        /// Any tensors, any shard size, written from two threads: the `safetensors` crate and our reader find them again.
        #[test]
        fn round_trip(
            tensors in collection::btree_map(
                "\\PC{1,8}",
                (sample::select(&DTYPES[..]), collection::vec(0usize..5, 0..4)),
                1..12,
            ),
            max_shard_bytes in 0u64..600,
            seed in any::<u8>(),
        ) {
            let specs: Vec<_> = tensors.iter().map(|(name, (dtype, shape))| spec(name, *dtype, shape)).collect();
            let contents: BTreeMap<&str, Vec<u8>> = specs
                .iter()
                .enumerate()
                .map(|(i, spec)| {
                    let bytes = (0..spec.byte_len()).map(|j| (i * 31 + j * 7) as u8 ^ seed);
                    (spec.name.as_str(), bytes.collect())
                })
                .collect();
            let (_dir, target) = temp();
            let writer = create(&target, specs.clone(), max_shard_bytes, false, &Map::new()).unwrap();
            std::thread::scope(|scope| {
                let (even, odd): (Vec<_>, Vec<_>) = contents.iter().enumerate().partition(|(i, _)| i % 2 == 0);
                for half in [even, odd] {
                    let writer = &writer;
                    scope.spawn(move || {
                        for (_, (name, bytes)) in half.into_iter().rev() {
                            writer.write(name, bytes).unwrap();
                        }
                    });
                }
            });
            let n_shards = writer.plan.shards.len();
            writer.finish().unwrap();

            let checkpoint = Checkpoint::open(&target).unwrap();
            prop_assert!(checkpoint.names().eq(contents.keys().copied()));
            for spec in &specs {
                let info = checkpoint.info(&spec.name).unwrap();
                prop_assert_eq!((info.dtype, &info.shape), (spec.dtype, &spec.shape));
                prop_assert_eq!(checkpoint.bytes(&spec.name).unwrap(), &contents[spec.name.as_str()]);
            }
            let files = ls(&target);
            let shards = files.iter().filter(|file| *file != INDEX_FILE);
            prop_assert_eq!(shards.clone().count(), n_shards);
            prop_assert_eq!(files.len(), if n_shards == 1 { 1 } else { n_shards + 1 });
            let mut found = 0;
            for shard in shards {
                let bytes = fs::read(target.join(shard)).unwrap();
                let shard = SafeTensors::deserialize(&bytes).unwrap();
                let mut data_bytes = 0;
                for (name, view) in shard.iter() {
                    prop_assert_eq!(view.data(), &contents[name]);
                    // Also aligned in the file, which loaders that view it rely on.
                    let offset = view.data().as_ptr() as usize - bytes.as_ptr() as usize;
                    prop_assert_eq!(offset % view.dtype().bitsize().div_ceil(8), 0);
                    data_bytes += view.data().len() as u64;
                }
                prop_assert!(shard.len() == 1 || data_bytes <= max_shard_bytes);
                found += shard.len();
            }
            prop_assert_eq!(found, specs.len());
        }
    }
}
