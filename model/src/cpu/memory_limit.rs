//! How much memory this process may use: that of the machine, or less if a container or a limit of the
//! process says so.

use std::fmt;
use std::path::{Path, PathBuf};

/// How many bytes of memory a process may use, and who limits it. Its text is meant for the end of a
/// sentence: "this machine has 8589934592 for this container (cgroup limit)".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryLimit {
    /// How many bytes.
    pub bytes: u64,
    /// Who sets the limit.
    pub whose: Whose,
}

/// Who limits memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Whose {
    /// The machine has no more memory.
    Machine,
    /// The control group that this process runs in, or a group that contains it. Containers are made of
    /// control groups.
    Container,
    /// `ulimit -v` or `ulimit -d` sets it.
    Process,
}

impl fmt::Display for MemoryLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "this machine has {}", self.bytes)?;
        match self.whose {
            Whose::Machine => Ok(()),
            Whose::Container => f.write_str(" for this container (cgroup limit)"),
            Whose::Process => f.write_str(" for this process (ulimit -v)"),
        }
    }
}

impl MemoryLimit {
    /// The lowest limit that applies; `None` if the system tells none.
    #[must_use]
    pub fn of_this_process() -> Option<Self> {
        let of = |bytes: Option<u64>, whose| bytes.map(|bytes| Self { bytes, whose });
        let limits =
            [of(machine(), Whose::Machine), of(container(), Whose::Container), of(process(), Whose::Process)];
        limits.into_iter().flatten().min_by_key(|limit| limit.bytes)
    }
}

#[cfg(target_os = "linux")]
fn machine() -> Option<u64> {
    // SAFETY: `sysconf` reads system constants.
    let (pages, size) = unsafe { (libc::sysconf(libc::_SC_PHYS_PAGES), libc::sysconf(libc::_SC_PAGESIZE)) };
    u64::try_from(pages).ok()?.checked_mul(u64::try_from(size).ok()?)
}

/// The bytes that `ulimit` leaves: the limit of the address space less what is mapped by now, or the limit
/// of data.
#[cfg(target_os = "linux")]
fn process() -> Option<u64> {
    let limit = |resource| {
        let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
        // SAFETY: `limit` is ours, and has the type that the system writes.
        let told = unsafe { libc::getrlimit(resource, &mut limit) } == 0;
        (told && limit.rlim_cur != libc::RLIM_INFINITY).then_some(limit.rlim_cur)
    };
    let mapped = || {
        let pages = std::fs::read_to_string("/proc/self/statm").ok()?;
        let pages: u64 = pages.split_whitespace().next()?.parse().ok()?;
        // SAFETY: `sysconf` reads system constants.
        pages.checked_mul(u64::try_from(unsafe { libc::sysconf(libc::_SC_PAGESIZE) }).ok()?)
    };
    let space = limit(libc::RLIMIT_AS).map(|bytes| bytes.saturating_sub(mapped().unwrap_or(0)));
    space.into_iter().chain(limit(libc::RLIMIT_DATA)).min()
}

#[cfg(target_os = "linux")]
fn container() -> Option<u64> {
    let text = |path: &Path| std::fs::read_to_string(path).ok();
    let groups = text(Path::new("/proc/self/cgroup"))?;
    lowest_of_groups(&groups, &text(Path::new("/proc/self/mountinfo"))?, text)
}

#[cfg(not(target_os = "linux"))]
fn machine() -> Option<u64> {
    None
}

#[cfg(not(target_os = "linux"))]
fn process() -> Option<u64> {
    None
}

#[cfg(not(target_os = "linux"))]
fn container() -> Option<u64> {
    None
}

/// The lowest limit of this process's control groups, which `groups` (`/proc/self/cgroup`) names, and of
/// the groups that contain them. `mounts` (`/proc/self/mountinfo`) says where their files are.
#[cfg(any(target_os = "linux", test))]
fn lowest_of_groups(groups: &str, mounts: &str, text: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let limits = mounts.lines().filter_map(Mount::read).flat_map(|mount| {
        let own = mount.own_folder(groups);
        // A group may be allowed more than a group that contains it, so the lowest counts.
        let folders = own.ancestors().take_while(|folder| folder.starts_with(&mount.at));
        folders.filter_map(|folder| text(&folder.join(mount.file))?.trim().parse().ok()).collect::<Vec<u64>>()
    });
    limits.min()
}

/// Where a hierarchy of control groups that limits memory is mounted.
#[cfg(any(target_os = "linux", test))]
struct Mount {
    /// The group whose folder is the mount point.
    root: PathBuf,
    at: PathBuf,
    /// The name of the file, in a group's folder, that holds its limit.
    file: &'static str,
}

#[cfg(any(target_os = "linux", test))]
impl Mount {
    /// Reads one line of `mountinfo`: `31 23 0:28 ROOT MOUNTED_AT OPTIONS - TYPE SOURCE SUPER_OPTIONS`.
    fn read(line: &str) -> Option<Self> {
        let (mount, system) = line.split_once(" - ")?;
        let mut system = system.split(' ');
        let file = match (system.next()?, system.nth(1)?) {
            ("cgroup2", _) => "memory.max",
            ("cgroup", options) if options.split(',').any(|o| o == "memory") => "memory.limit_in_bytes",
            _ => return None,
        };
        let mut mount = mount.split(' ').skip(3).map(PathBuf::from);
        Some(Self { root: mount.next()?, at: mount.next()?, file })
    }

    /// The folder of this process's own group. In a container the process often has a path that only the
    /// host knows; then the mounted folder itself is its group.
    fn own_folder(&self, groups: &str) -> PathBuf {
        let named = groups.lines().find_map(|line| {
            let mut parts = line.splitn(3, ':').skip(1);
            let (controllers, path) = (parts.next()?, parts.next()?);
            let own = match self.file {
                "memory.max" => controllers.is_empty(),
                _ => controllers.split(',').any(|name| name == "memory"),
            };
            own.then(|| Path::new(path))
        });
        let below = named.and_then(|path| path.strip_prefix(&self.root).ok());
        below.map_or_else(|| self.at.clone(), |below| self.at.join(below))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lowest(groups: &str, mounts: &str, files: &[(&str, &str)]) -> Option<u64> {
        let text = |path: &Path| {
            files.iter().find(|(name, _)| Path::new(name) == path).map(|(_, text)| (*text).to_owned())
        };
        lowest_of_groups(groups, mounts, text)
    }

    const V2: &str = "30 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n\
                      23 1 8:1 / / rw - ext4 /dev/sda1 rw";

    #[test]
    fn the_lowest_limit_of_the_own_group_and_its_parents_counts() {
        let files = [
            ("/sys/fs/cgroup/a/b/memory.max", "max\n"),
            ("/sys/fs/cgroup/a/memory.max", "8000\n"),
            ("/sys/fs/cgroup/memory.max", "9000\n"),
            ("/sys/fs/cgroup/other/memory.max", "5\n"),
        ];
        assert_eq!(lowest("0::/a/b\n", V2, &files), Some(8000));
        assert_eq!(lowest("0::/a/b\n", V2, &files[..1]), None);
        // With a namespace of its own, the container's group is the root that it sees.
        assert_eq!(lowest("0::/\n", V2, &[("/sys/fs/cgroup/memory.max", "7\n")]), Some(7));
    }

    #[test]
    fn groups_of_the_first_version_have_their_own_files() {
        let mounts = "35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory\n\
                      32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu\n\
                      41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw";
        let groups = "4:memory:/box/inner\n1:cpu:/\n0::/\n";
        let files = [
            ("/sys/fs/cgroup/memory/box/inner/memory.limit_in_bytes", "9223372036854771712\n"),
            ("/sys/fs/cgroup/memory/box/memory.limit_in_bytes", "4096\n"),
            ("/sys/fs/cgroup/cpu/memory.limit_in_bytes", "1\n"),
        ];
        assert_eq!(lowest(groups, mounts, &files), Some(4096));
        // Without a namespace for groups, a container is mounted at a path that only its host knows.
        let mounts = "35 31 0:32 /docker/1f /sys/fs/cgroup/memory ro - cgroup cgroup rw,memory";
        let file = [("/sys/fs/cgroup/memory/memory.limit_in_bytes", "77\n")];
        assert_eq!(lowest("4:memory:/docker/1f\n", mounts, &file), Some(77));
        assert_eq!(lowest("4:memory:/elsewhere\n", mounts, &file), Some(77));
    }

    #[test]
    fn a_limit_is_told_with_whose_it_is() {
        let told = |whose| MemoryLimit { bytes: 5, whose }.to_string();
        assert_eq!(told(Whose::Machine), "this machine has 5");
        assert_eq!(told(Whose::Container), "this machine has 5 for this container (cgroup limit)");
        assert_eq!(told(Whose::Process), "this machine has 5 for this process (ulimit -v)");
        assert!(MemoryLimit::of_this_process().is_none_or(|limit| limit.bytes > 1 << 20));
    }
}
