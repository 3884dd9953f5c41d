//! Where a finished model goes, and how it gets there without a moment at which a crash could lose old and new.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io::{self, Read, Write},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    process,
    sync::atomic::{AtomicBool, Ordering},
};

use super::{Error, sidecars::entries};

/// Is locked, in a partial directory, by the process that writes it, and holds its id.
const LOCK_FILE: &str = ".lock";

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
    ///
    /// # Errors
    /// [`Error::Busy`] if another process writes there; any of the file system.
    pub fn create_partial(&self) -> Result<Partial, Error> {
        self.remove_partial()?;
        let path = self.sibling("partial");
        fs::create_dir_all(&self.parent).map_err(Error::first_write(&self.parent))?;
        fs::create_dir(&path).map_err(Error::first_write(&self.parent))?;
        Partial::lock(path, false)
    }

    /// The directory that an earlier process wrote in and left unfinished, with all that is in it, marked as ours.
    ///
    /// # Errors
    /// [`Error::Busy`] if another process still writes there; any of the file system.
    pub fn open_partial(&self) -> Result<Option<Partial>, Error> {
        let path = self.sibling("partial");
        let exists = path.is_dir();
        exists.then(|| Partial::lock(path, true)).transpose()
    }

    /// Removes what an earlier process left unfinished.
    ///
    /// # Errors
    /// Those of [`Self::open_partial`].
    pub fn remove_partial(&self) -> Result<(), Error> {
        if let Some(left) = self.open_partial()? {
            tracing::warn!(path = %left.path.display(), "removing what an interrupted run left");
            fs::remove_dir_all(&left.path).map_err(Error::io(&left.path))?;
        }
        Ok(())
    }

    /// Brings `partial` to the disk and renames it to the target.
    ///
    /// A model that is replaced is first moved aside and last removed. If a rename fails, `partial` stays.
    pub fn install(&self, partial: &Partial) -> Result<(), Error> {
        let from = &partial.path;
        // Slow, so still under our mark.
        sync_tree(from).map_err(Error::io(from))?;
        fs::remove_file(from.join(LOCK_FILE))
            .and_then(|()| sync(from))
            .map_err(Error::io(from))?;
        let failed = |source| Error::Rename {
            partial: from.clone(),
            target: self.path.clone(),
            source,
        };
        partial.keep(true);
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
        sync(&self.parent).map_err(Error::io(&self.parent))?;
        if replaces {
            remove_replaced(&aside);
        }
        Ok(())
    }

    /// Completes or undoes an `install` that crashed after it moved the old model aside.
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
        self.parent.join(hidden(&self.name, ending))
    }
}

/// The directory in the making, no other process's while this lives; removed on drop, unless it is to be kept.
#[derive(Debug)]
pub struct Partial {
    pub path: PathBuf,
    keep: AtomicBool,
    /// The lock goes with it, however the process ends.
    _lock: File,
}

impl Partial {
    fn lock(path: PathBuf, keep: bool) -> Result<Self, Error> {
        let lock_path = path.join(LOCK_FILE);
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false);
        let mut lock = options.open(&lock_path).map_err(Error::io(&lock_path))?;
        match lock.try_lock() {
            Err(TryLockError::WouldBlock) => {
                let mut pid = String::new();
                // Only told; the process may not have written it yet.
                let _ = lock.read_to_string(&mut pid);
                return Err(Error::Busy { partial: path, pid });
            }
            // Some network file systems have no locks.
            Err(TryLockError::Error(error)) => {
                tracing::warn!("{}: not locked: {error}", lock_path.display());
            }
            Ok(()) => {}
        }
        let pid = process::id().to_string();
        lock.set_len(0)
            .and_then(|()| lock.write_all(pid.as_bytes()))
            .map_err(Error::io(&lock_path))?;
        Ok(Self {
            path,
            keep: AtomicBool::new(keep),
            _lock: lock,
        })
    }

    /// Leaves the directory there, or no longer does.
    pub fn keep(&self, keep: bool) {
        self.keep.store(keep, Ordering::Relaxed);
    }

    pub fn is_kept(&self) -> bool {
        self.keep.load(Ordering::Relaxed)
    }
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.is_kept() {
            return;
        }
        if let Err(error) = fs::remove_dir_all(&self.path) {
            tracing::warn!(path = %self.path.display(), %error, "cannot remove the unfinished model");
        }
    }
}

/// What stands beside a target of this name for a while.
fn hidden(name: &str, ending: &str) -> String {
    format!(".{name}.{ending}")
}

/// Bytes on the disk of what an unfinished run left for a directory at `path`: the next run goes on with them or gives them back.
pub fn unfinished_bytes(path: &Path) -> u64 {
    let Some(name) = path.file_name() else {
        return 0;
    };
    let partial = path.with_file_name(hidden(&name.to_string_lossy(), "partial"));
    let files = entries(&partial).unwrap_or_default();
    let files = files.iter().filter_map(|file| file.metadata().ok());
    // The kernel's unit; what is planned and not yet written takes none.
    files.map(|metadata| metadata.blocks() * 512).sum()
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
            sync(&path)?;
        }
    }
    sync(dir)
}

/// Brings a file, or the names in a directory, to the disk.
fn sync(path: &Path) -> io::Result<()> {
    File::open(path)?.sync_all()
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use tempfile::TempDir;

    use super::*;

    /// A directory to work in, and a target in it.
    fn temp() -> (TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("out");
        (dir, path)
    }

    /// All of what a writer does here: a model with this config appears at `path`.
    fn install(path: &Path, overwrite: bool, config: &str) -> Result<(), Error> {
        let target = Target::new(path, overwrite)?;
        let partial = target.create_partial()?;
        fs::write(partial.path.join("config.json"), config).unwrap();
        target.install(&partial)
    }

    fn config(dir: &Path) -> String {
        fs::read_to_string(dir.join("config.json")).unwrap()
    }

    /// Names in the directory, hidden ones included.
    fn ls(dir: &Path) -> Vec<String> {
        let name = |path: &PathBuf| path.file_name().unwrap().to_str().unwrap().to_owned();
        entries(dir).unwrap().iter().map(name).collect()
    }

    #[test]
    fn a_model_and_its_parents_appear() {
        let (dir, _) = temp();
        let path = dir.path().join("deep/er/out");
        install(&path, false, "new").unwrap();
        assert_eq!(config(&path), "new");
        assert_eq!(ls(path.parent().unwrap()), ["out"]);
        assert_eq!(ls(&path), ["config.json"]);
    }

    #[test]
    fn an_existing_target_is_refused() {
        let (dir, path) = temp();
        install(&path, false, "old").unwrap();
        let error = install(&path, false, "new").unwrap_err();
        assert!(matches!(error, Error::TargetExists { .. }), "{error}");
        assert_eq!(config(&path), "old");
        assert_eq!(ls(dir.path()), ["out"]);
    }

    #[test]
    fn overwriting_replaces_only_when_finished() {
        let (dir, path) = temp();
        install(&path, false, "old").unwrap();
        let target = Target::new(&path, true).unwrap();
        drop(target.create_partial().unwrap());
        assert_eq!(config(&path), "old");
        install(&path, true, "new").unwrap();
        assert_eq!(config(&path), "new");
        assert_eq!(ls(dir.path()), ["out"]);
    }

    #[test]
    fn what_is_no_model_is_never_replaced() {
        let (_dir, path) = temp();
        fs::create_dir(&path).unwrap();
        install(&path, true, "an empty directory may go").unwrap();
        fs::rename(path.join("config.json"), path.join("thesis.tex")).unwrap();
        for target in [path.clone(), path.join("thesis.tex")] {
            let error = install(&target, true, "new").unwrap_err();
            assert!(matches!(error, Error::TargetNotAModel { .. }), "{error}");
        }
        assert_eq!(ls(&path), ["thesis.tex"]);
    }

    #[test]
    fn a_crash_between_the_renames_loses_nothing() {
        let (dir, path) = temp();
        install(&path, false, "old").unwrap();
        fs::rename(&path, dir.path().join(".out.replaced")).unwrap();
        let error = install(&path, false, "new").unwrap_err();
        assert!(matches!(error, Error::TargetExists { .. }), "{error}");
        assert_eq!(config(&path), "old");
        assert_eq!(ls(dir.path()), ["out"]);
    }

    #[test]
    fn a_crash_after_the_renames_leaves_nothing_behind() {
        let (dir, path) = temp();
        install(&path, false, "new").unwrap();
        install(&dir.path().join(".out.replaced"), false, "old").unwrap();
        install(&path, true, "newer").unwrap();
        assert_eq!(config(&path), "newer");
        assert_eq!(ls(dir.path()), ["out"]);
    }

    #[test]
    fn a_failed_rename_keeps_the_complete_model() {
        let (dir, path) = temp();
        let target = Target::new(&path, false).unwrap();
        let partial = target.create_partial().unwrap();
        fs::write(partial.path.join("config.json"), "new").unwrap();
        // Somebody else creates the target meanwhile.
        fs::create_dir(&path).unwrap();
        fs::write(path.join("config.json"), "theirs").unwrap();
        let error = target.install(&partial).unwrap_err();
        assert!(matches!(error, Error::Rename { .. }), "{error}");
        assert_eq!(config(&path), "theirs");
        assert_eq!(config(&dir.path().join(".out.partial")), "new");
    }

    #[test]
    fn what_a_killed_process_left_is_removed() {
        let (dir, path) = temp();
        let partial = dir.path().join(".out.partial");
        fs::create_dir(&partial).unwrap();
        // The kernel has taken the lock from it.
        fs::write(partial.join(LOCK_FILE), "4194305").unwrap();
        fs::write(partial.join("model.safetensors"), "half").unwrap();
        install(&path, false, "new").unwrap();
        assert_eq!(ls(&path), ["config.json"]);
        assert_eq!(ls(dir.path()), ["out"]);
    }

    #[test]
    fn another_running_process_is_left_alone() {
        let (dir, path) = temp();
        let partial = dir.path().join(".out.partial");
        fs::create_dir(&partial).unwrap();
        let lock = partial.join(LOCK_FILE);
        fs::write(&lock, "1234").unwrap();
        // As another process does: locks are of open files.
        let other = File::open(&lock).unwrap();
        other.lock().unwrap();
        let error = install(&path, false, "new").unwrap_err();
        assert!(
            matches!(&error, Error::Busy { pid, .. } if pid == "1234"),
            "{error}"
        );
        assert_eq!(ls(&partial), [LOCK_FILE]);
        drop(other);
        install(&path, false, "new").unwrap();
    }

    #[test]
    fn what_an_earlier_process_left_can_be_opened_and_stays() {
        let (dir, path) = temp();
        let target = Target::new(&path, false).unwrap();
        assert!(target.open_partial().unwrap().is_none());
        let partial = target.create_partial().unwrap();
        fs::write(partial.path.join("model.safetensors"), "half").unwrap();
        partial.keep(true);
        drop(partial);
        let partial = target.open_partial().unwrap().unwrap();
        assert_eq!(ls(&partial.path), [LOCK_FILE, "model.safetensors"]);
        drop(partial);
        let bytes = unfinished_bytes(&path);
        assert!((1..1 << 20).contains(&bytes), "{bytes}");
        assert_eq!(unfinished_bytes(&dir.path().join("other")), 0);
        assert_eq!(ls(dir.path()), [".out.partial"]);
    }

    #[test]
    fn paths_without_a_name_are_refused() {
        for path in ["/", "..", ""] {
            let error = install(Path::new(path), true, "new").unwrap_err();
            assert!(matches!(error, Error::TargetName { .. }), "{error}");
        }
    }
}
