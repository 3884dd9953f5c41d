//! What an unfinished checkpoint says of itself: which run writes it, and how far that is.

use std::{
    collections::BTreeSet,
    fs::{self, File, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Error;

/// One line per step that is done; gone when the model is finished.
pub const JOURNAL: &str = "journal.jsonl";
/// What distinguishes the run from others; gone when the model is finished.
pub const IDENTITY: &str = "run.json";

/// A line of the journal.
#[derive(Debug, Serialize, Deserialize)]
pub struct Step {
    /// The caller's.
    pub record: Value,
    /// Names of those that are final.
    pub tensors: Vec<String>,
}

/// The steps of a run that are done, on the disk.
#[derive(Debug)]
pub struct Journal(File);

impl Journal {
    /// Starts that of the run of this `identity`, which is on the disk afterwards: without it, steps would seem to be another run's.
    pub fn create(dir: &Path, identity: &Map<String, Value>) -> Result<Self, Error> {
        let path = dir.join(IDENTITY);
        let write = || -> io::Result<()> {
            let mut file = File::create_new(&path)?;
            file.write_all(Value::Object(identity.clone()).to_string().as_bytes())?;
            file.sync_all()
        };
        write().map_err(Error::io(&path))?;
        let path = dir.join(JOURNAL);
        let journal = File::create_new(&path).map_err(Error::io(&path))?;
        let names = File::open(dir).and_then(|dir| dir.sync_all());
        names.map_err(Error::io(dir))?;
        Ok(Self(journal))
    }

    /// Goes on with one, behind its last whole line; its steps, none where there is no journal or it cannot be read.
    pub fn open(dir: &Path) -> Result<(Option<Self>, Vec<Step>), Error> {
        let path = dir.join(JOURNAL);
        let text = fs::read(&path).unwrap_or_default();
        let mut steps: Vec<Step> = Vec::new();
        let mut len = 0;
        for line in text.split_inclusive(|&byte| byte == b'\n') {
            match serde_json::from_slice(line) {
                Ok(step) if line.ends_with(b"\n") => steps.push(step),
                _ => break,
            }
            len += line.len() as u64;
        }
        if steps.is_empty() {
            return Ok((None, steps));
        }
        let journal = OpenOptions::new().append(true).open(&path);
        let journal = journal.and_then(|journal| {
            // The other run may have been writing a line when it ended.
            journal.set_len(len)?;
            Ok(Self(journal))
        });
        Ok((Some(journal.map_err(Error::io(&path))?), steps))
    }

    /// Adds a step and brings it to the disk.
    pub fn add(&mut self, step: &Step) -> io::Result<()> {
        self.0.write_all(format!("{}\n", json!(step)).as_bytes())?;
        self.0.sync_data()
    }

    /// The files of a journal in `dir`.
    pub fn files(dir: &Path) -> [PathBuf; 2] {
        [JOURNAL, IDENTITY].map(|name| dir.join(name))
    }
}

/// In what the run that left `dir` differs from the one of this `identity`.
pub fn differences(dir: &Path, identity: &Map<String, Value>) -> Vec<String> {
    let found = fs::read(dir.join(IDENTITY)).unwrap_or_default();
    let found: Map<String, Value> = serde_json::from_slice(&found).unwrap_or_default();
    let keys: BTreeSet<&String> = found.keys().chain(identity.keys()).collect();
    let differs = |key: &&String| found.get(*key) != identity.get(*key);
    keys.into_iter().filter(differs).cloned().collect()
}
