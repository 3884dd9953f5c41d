//! Where a finished model goes, and how it gets there without a moment at which a crash could lose old and new.

use std::{
    fs::{self, File},
    io,
    path::{Path, PathBuf},
    process,
};

use super::{Error, sidecars::entries};

/// Holds, in a partial directory, the id of the process that writes it.
const PID_FILE: &str = ".pid";

/// A directory that is to appear, or to be replaced, as a whole.
#[derive(Debug)]
pub struct Target {
    pub path: PathBuf,
    parent: PathBuf,
    name: String,
    overwrite: bool,
}

impl Target {
    /// Checks that `path` is free, or, with `overwrite`, a model or empty; undoes what a crashed [`Self::install`] left.
    pub fn new(path: &Path, overwrite: bool) -> Result<Self, Error> {
        let name = path.file_name().ok_or_else(|| Error::TargetName {
            target: path.to_path_buf(),
        })?;
        let parent = match path.parent() {
            Some(parent) if parent != Path::new("") => parent,
            _ => Path::new("."),
        };
        let target = Self {
            path: path.to_path_buf(),
            parent: parent.to_path_buf(),
            name: name.to_string_lossy().into_owned(),
            overwrite,
        };
        target.recover()?;
        target.check()?;
        Ok(target)
    }

    /// Creates the directory to write in, empty, and marks it as ours; one that a dead process left is removed first.
    pub fn create_partial(&self) -> Result<Partial, Error> {
        let path = self.sibling("partial");
        if let Some(pid) = writing_process(&path) {
            return Err(Error::Busy { partial: path, pid });
        }
        fs::create_dir_all(&self.parent).map_err(Error::io(&self.parent))?;
        if path.exists() {
            tracing::warn!(path = %path.display(), "removing what an interrupted run left");
            fs::remove_dir_all(&path).map_err(Error::io(&path))?;
        }
        fs::create_dir(&path).map_err(Error::io(&path))?;
        let partial = Partial { path, keep: false };
        let pid_file = partial.path.join(PID_FILE);
        fs::write(&pid_file, process::id().to_string()).map_err(Error::io(&pid_file))?;
        Ok(partial)
    }

    /// Brings `partial` to the disk and renames it to the target.
    ///
    /// A model that is replaced is first moved aside and last removed. If a rename fails, `partial` stays.
    pub fn install(&self, mut partial: Partial) -> Result<(), Error> {
        let from = &partial.path;
        fs::remove_file(from.join(PID_FILE)).map_err(Error::io(from))?;
        sync_tree(from).map_err(Error::io(from))?;
        let failed = |source| Error::Rename {
            partial: from.clone(),
            target: self.path.clone(),
            source,
        };
        partial.keep = true;
        let aside = self.sibling("replaced");
        let replaces = self.overwrite && is_there(&self.path);
        if replaces {
            fs::rename(&self.path, &aside).map_err(failed)?;
        }
        if let Err(source) = fs::rename(from, &self.path) {
            if replaces {
                fs::rename(&aside, &self.path).map_err(failed)?;
            }
            return Err(failed(source));
        }
        File::open(&self.parent)
            .and_then(|parent| parent.sync_all())
            .map_err(Error::io(&self.parent))?;
        if replaces {
            remove_replaced(&aside);
        }
        Ok(())
    }

    /// The three states in which a crash can leave `install` after it moved the old model aside.
    fn recover(&self) -> Result<(), Error> {
        let aside = self.sibling("replaced");
        if !is_there(&aside) {
            return Ok(());
        }
        if is_there(&self.path) {
            remove_replaced(&aside);
            return Ok(());
        }
        tracing::warn!(path = %self.path.display(), "restoring the model that an interrupted run was replacing");
        fs::rename(&aside, &self.path).map_err(Error::io(&aside))
    }

    fn check(&self) -> Result<(), Error> {
        let target = self.path.clone();
        if !is_there(&target) {
            return Ok(());
        }
        if !self.overwrite {
            return Err(Error::TargetExists { target });
        }
        // What is replaced is deleted, so a mistyped path must not cost a home directory.
        let is_model = target.join("config.json").is_file();
        let is_empty = || entries(&target).is_ok_and(|entries| entries.is_empty());
        if is_model || is_empty() {
            Ok(())
        } else {
            Err(Error::TargetNotAModel { target })
        }
    }

    fn sibling(&self, ending: &str) -> PathBuf {
        self.parent.join(format!(".{}.{ending}", self.name))
    }
}

/// The directory in the making, removed on drop.
#[derive(Debug)]
pub struct Partial {
    pub path: PathBuf,
    keep: bool,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.keep {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the unfinished model");
        }
    }
}

/// The other living process that marked `partial` as its own.
fn writing_process(partial: &Path) -> Option<u32> {
    let pid = fs::read_to_string(partial.join(PID_FILE)).ok()?;
    let pid = pid.parse().ok()?;
    let lives = Path::new("/proc").join(format!("{pid}")).exists();
    (pid != process::id() && lives).then_some(pid)
}

/// Whether anything has this name, a dangling link included.
fn is_there(path: &Path) -> bool {
    path.symlink_metadata().is_ok()
}

/// The new model is in its place, so a failure here is no reason to fail.
fn remove_replaced(aside: &Path) {
    if let Err(error) = fs::remove_dir_all(aside) {
        tracing::warn!(path = %aside.display(), %error, "cannot remove the model that was replaced");
    }
}

/// Brings the files below `dir` and their names to the disk.
fn sync_tree(dir: &Path) -> io::Result<()> {
    for path in entries(dir)? {
        if path.is_dir() {
            sync_tree(&path)?;
        } else {
            File::open(&path)?.sync_all()?;
        }
    }
    File::open(dir)?.sync_all()
}
