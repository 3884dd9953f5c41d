//! One file as a read-only memory map: the only unsafe code of the checkpoint module.

#![expect(unsafe_code, reason = "memory maps have no safe constructor")]

use std::{fs::File, io, ops::Range, path::Path};

use memmap2::{Advice, Mmap, UncheckedAdvice};

/// A whole file, mapped shared and read-only.
#[derive(Debug)]
pub struct Map(Mmap);

impl Map {
    pub fn open(path: &Path) -> io::Result<Self> {
        let file = File::open(path)?;
        // SAFETY: nothing here writes to the file, and `Writer` never modifies a file in place (it renames finished
        // directories), so our own process keeps the bytes constant. Doubt: another process may still change the file
        // under us; then a tensor holds garbage, or, if the file got shorter, the process ends with SIGBUS. Every
        // memory-mapping reader of safetensors lives with that, and copying whole models into memory is no option.
        let map = unsafe { Mmap::map(&file) }?;
        // Layers are read in order: the kernel may read far ahead. Refused advice costs nothing but time.
        let _ = map.advise(Advice::Sequential);
        Ok(Self(map))
    }

    /// Asks the kernel to read `range` soon, without waiting for it.
    pub fn prefetch(&self, range: &Range<usize>) {
        // Refused advice costs nothing but time.
        let _ = self
            .0
            .advise_range(Advice::WillNeed, range.start, range.len());
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }

    /// Takes the pages of `range` out of this process's resident set; reading them again maps them again.
    ///
    /// The range is widened to whole pages. That the neighbours' bytes on these pages go too is harmless, and a
    /// failure only leaves the memory in use, so it is ignored.
    pub fn release(&self, range: &Range<usize>) {
        if range.is_empty() {
            return;
        }
        // SAFETY: MADV_DONTNEED on a shared, read-only, file-backed mapping drops page table entries, never contents:
        // the next access reads the same bytes from the page cache or the file, so live slices stay valid. The doubt
        // is the one of `open`: a file changed by somebody else.
        let _ = unsafe {
            self.0
                .unchecked_advise_range(UncheckedAdvice::DontNeed, range.start, range.len())
        };
    }
}
