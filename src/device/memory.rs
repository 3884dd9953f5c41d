//! Host memory: what this process takes, and what it may take.

use std::fs;
use std::path::{Path, PathBuf};

/// Resident memory of this process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Resident {
    /// The most it was at any time.
    pub peak_bytes: u64,
    /// Now.
    pub current_bytes: u64,
}

/// Resident memory of this process, from `/proc/self/status`; `None` where there is no such file.
pub fn resident() -> Option<Resident> {
    let status = fs::read_to_string("/proc/self/status").ok()?;
    Some(Resident {
        peak_bytes: field(&status, "VmHWM:")?,
        current_bytes: field(&status, "VmRSS:")?,
    })
}

/// Bytes that an unprivileged process can still write below `path`, which need not exist, and the directory that was
/// asked. `None` where the system does not tell.
pub fn free_disk_bytes(path: &Path) -> Option<(PathBuf, u64)> {
    let path = std::path::absolute(path).ok()?;
    let directory = path.ancestors().find(|path| path.is_dir())?;
    let status = rustix::fs::statvfs(directory).ok()?;
    Some((directory.to_owned(), status.f_bavail * status.f_frsize))
}

/// The host's memory for this process, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// What it can still take without swapping: the machine's available memory, or what is left below the limit of a
    /// control group that it is in, whichever is less.
    pub free_bytes: u64,
    /// All of the machine's, or the least limit of such a group.
    pub limit_bytes: u64,
}

/// The room that this process has; `None` where the system does not tell.
pub fn room() -> Option<Room> {
    room_below(Path::new("/"))
}

fn room_below(root: &Path) -> Option<Room> {
    let machine = fs::read_to_string(root.join("proc/meminfo")).ok();
    let machine = machine.and_then(|meminfo| {
        Some(Room {
            free_bytes: field(&meminfo, "MemAvailable:")?,
            limit_bytes: field(&meminfo, "MemTotal:")?,
        })
    });
    let groups = fs::read_to_string(root.join("proc/self/cgroup")).unwrap_or_default();
    let groups = groups.lines().filter_map(|line| group_room(root, line));
    machine.into_iter().chain(groups).reduce(Room::least)
}

impl Room {
    fn least(self, other: Self) -> Self {
        Self {
            free_bytes: self.free_bytes.min(other.free_bytes),
            limit_bytes: self.limit_bytes.min(other.limit_bytes),
        }
    }
}

/// The room in the control group of a line `id:controllers:/path` of `/proc/self/cgroup`, and in those above it.
fn group_room(root: &Path, line: &str) -> Option<Room> {
    let mut parts = line.splitn(3, ':').skip(1);
    let (controllers, path) = (parts.next()?, parts.next()?);
    let (mount, limit, usage, inactive) = if controllers.is_empty() {
        // Version 2: cgroups(7).
        (
            "sys/fs/cgroup",
            "memory.max",
            "memory.current",
            "inactive_file",
        )
    } else if controllers.split(',').any(|name| name == "memory") {
        (
            "sys/fs/cgroup/memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
        )
    } else {
        return None;
    };
    let left = |group: &Path| {
        let group = root.join(mount).join(group.strip_prefix("/").ok()?);
        let number = |name| {
            fs::read_to_string(group.join(name))
                .ok()?
                .trim()
                .parse::<u64>()
                .ok()
        };
        // "max" is no number: no limit here.
        let (limit, usage) = (number(limit)?, number(usage)?);
        // File pages that were not used lately count as usage but are given up first.
        let stat = fs::read_to_string(group.join("memory.stat")).unwrap_or_default();
        let inactive = stat.lines().find_map(|line| {
            let (name, bytes) = line.split_once(' ')?;
            (name == inactive).then(|| bytes.trim().parse::<u64>().ok())?
        });
        Some(Room {
            free_bytes: limit.saturating_sub(usage.saturating_sub(inactive.unwrap_or(0))),
            limit_bytes: limit,
        })
    };
    let groups = Path::new(path).ancestors().filter_map(left);
    groups.reduce(Room::least)
}

/// Bytes of a line `name   123 kB`.
fn field(text: &str, name: &str) -> Option<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name))?;
    let kib: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
#[expect(clippy::unwrap_used, reason = "tests")]
mod tests {
    use super::*;

    #[test]
    fn this_process_is_resident() {
        let resident = resident().unwrap();
        assert!(resident.peak_bytes >= resident.current_bytes);
        assert!(resident.current_bytes > 1 << 20);
        let room = room().unwrap();
        assert!((1 << 20..=room.limit_bytes).contains(&room.free_bytes));
    }

    #[test]
    fn a_disk_has_room_where_nothing_is_yet() {
        let dir = tempfile::tempdir().unwrap();
        let (found, free) = free_disk_bytes(&dir.path().join("a/b")).unwrap();
        assert_eq!(found, dir.path());
        assert!(free > 0);
    }

    #[test]
    fn the_tightest_limit_counts() {
        let root = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| {
            let path = root.path().join(name);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        let check = |expected: Option<(u64, u64)>| {
            let room = room_below(root.path());
            let room = room.map(|room| (room.free_bytes, room.limit_bytes));
            assert_eq!(room, expected);
        };
        check(None);
        write(
            "proc/meminfo",
            "MemTotal: 9000 kB\nMemAvailable:    8000 kB\n",
        );
        let machine = 9_216_000;
        check(Some((8_192_000, machine)));
        // Version 2: the limit may be a parent's, and cold file pages are free.
        write("proc/self/cgroup", "0::/a/b\n");
        write("sys/fs/cgroup/a/b/memory.max", "max\n");
        write("sys/fs/cgroup/a/b/memory.current", "1000\n");
        check(Some((8_192_000, machine)));
        write("sys/fs/cgroup/a/memory.max", "500000\n");
        write("sys/fs/cgroup/a/memory.current", "200000\n");
        check(Some((300_000, 500_000)));
        write(
            "sys/fs/cgroup/a/memory.stat",
            "anon 1\ninactive_file 50000\n",
        );
        check(Some((350_000, 500_000)));
        // Version 1, and a group that is over its limit.
        write("proc/self/cgroup", "5:cpu:/x\n4:hugetlb,memory:/c\n");
        write("sys/fs/cgroup/memory/c/memory.limit_in_bytes", "70000\n");
        write("sys/fs/cgroup/memory/c/memory.usage_in_bytes", "60000\n");
        check(Some((10_000, 70_000)));
        write("sys/fs/cgroup/memory/c/memory.usage_in_bytes", "80000\n");
        check(Some((0, 70_000)));
    }
}
