//! Names the machine that figures were measured on.

/// The CPU's name, if the system tells it, and the platform.
pub fn name() -> String {
    let platform = format!("{}-{}", std::env::consts::OS, std::env::consts::ARCH);
    let text = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = text.lines().find_map(|line| line.strip_prefix("model name")?.split_once(':'));
    match model {
        Some((_, model)) => format!("{} ({platform})", model.trim()),
        None => platform,
    }
}
