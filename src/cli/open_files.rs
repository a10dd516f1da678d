//! Lets the process have as many connections as the system allows.

/// Raises the limit of open files to the most that the system allows without asking. Each connection is one.
/// Where this fails, connections that are too many fail later, and say so.
pub fn raise() {
    #[cfg(unix)]
    {
        use nix::sys::resource::{Resource, getrlimit, setrlimit};
        if let Ok((_, most)) = getrlimit(Resource::RLIMIT_NOFILE) {
            let _ = setrlimit(Resource::RLIMIT_NOFILE, most, most);
        }
    }
}
