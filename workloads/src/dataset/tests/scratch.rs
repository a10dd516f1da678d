use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// A file that goes with its value.
pub(crate) struct Scratch(PathBuf);

impl Scratch {
    pub(crate) fn new(contents: impl AsRef<[u8]>) -> Self {
        Self::named("file", contents)
    }

    pub(crate) fn named(name: &str, contents: impl AsRef<[u8]>) -> Self {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("pagedraft-dataset-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let file = Self(folder.join(name));
        std::fs::write(&file.0, contents).unwrap();
        file
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        if let Some(folder) = self.0.parent() {
            let _ = std::fs::remove_dir_all(folder);
        }
    }
}

/// Contents as gzip packs them.
pub(super) fn gzip(contents: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    std::io::Write::write_all(&mut encoder, contents).unwrap();
    encoder.finish().unwrap()
}
