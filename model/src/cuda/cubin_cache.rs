//! A cache on disk of compiled kernels. Its keys are all that the kernels were compiled from.
//!
//! A file is named by the source's name and a hash of everything that decides its contents: the source, the options, the
//! architecture and the compiler's version. It is written beside its place and then moved there, so that nobody sees half a
//! file. It carries a hash of its own contents, and a damaged file is compiled anew. Without a directory that can be
//! written to, kernels are compiled at every start.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use sha2::{Digest, Sha256};

use super::error::CudaError;

const MAGIC: &[u8; 16] = b"pagedraft cubin1";

/// Everything that a compiled module depends on.
#[derive(Clone, Copy, Debug)]
pub struct CubinKey<'a> {
    /// The name of the source.
    pub name: &'a str,
    /// The text of the source.
    pub source: &'a str,
    /// The options of the compiler, except for those that only say where to look.
    pub options: &'a [String],
    /// The target, such as `sm_90a`.
    pub arch: &'a str,
    /// The version of the compiler.
    pub compiler: (i32, i32),
}

impl CubinKey<'_> {
    fn file(&self) -> String {
        let mut hash = Sha256::new();
        field(&mut hash, self.source.as_bytes());
        self.options.iter().for_each(|option| field(&mut hash, option.as_bytes()));
        field(&mut hash, self.arch.as_bytes());
        field(&mut hash, format!("{}.{}", self.compiler.0, self.compiler.1).as_bytes());
        let hash: String = hash.finalize().iter().take(16).map(|byte| format!("{byte:02x}")).collect();
        let stem =
            Path::new(self.name).file_stem().map_or_else(|| self.name.into(), |stem| stem.to_string_lossy());
        format!("{stem}-{}-{hash}.cubin", self.arch)
    }
}

/// A directory of compiled modules.
#[derive(Clone, Debug)]
pub struct CubinCache {
    dir: Option<PathBuf>,
}

impl CubinCache {
    /// A cache in this directory, which is made when something is first written.
    #[must_use]
    pub fn in_directory(dir: PathBuf) -> Self {
        Self { dir: Some(dir) }
    }

    /// A cache in `pagedraft/kernels` in the user's cache directory (`XDG_CACHE_HOME`, or `.cache` in the home directory),
    /// or no cache if neither variable is set.
    #[must_use]
    pub fn of_user() -> Self {
        let set = |name| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
        let base = set("XDG_CACHE_HOME").or_else(|| set("HOME").map(|home| home.join(".cache")));
        Self { dir: base.map(|base| base.join("pagedraft/kernels")) }
    }

    /// The module of this key. It is taken from the cache, or compiled and then stored there if possible.
    ///
    /// # Errors
    ///
    /// Those of `compile`.
    pub fn get(
        &self,
        key: &CubinKey<'_>,
        compile: impl FnOnce() -> Result<Vec<u8>, CudaError>,
    ) -> Result<Vec<u8>, CudaError> {
        let path = self.dir.as_ref().map(|dir| dir.join(key.file()));
        if let Some(cubin) = path.as_deref().and_then(read) {
            return Ok(cubin);
        }
        let cubin = compile()?;
        if let Some(path) = &path {
            // If the cache can't be written, the next start has to compile again, but this one loses nothing.
            let _ = write(path, &cubin);
        }
        Ok(cubin)
    }
}

fn read(path: &Path) -> Option<Vec<u8>> {
    let file = fs::read(path).ok()?;
    let rest = file.strip_prefix(MAGIC)?;
    let (hash, cubin) = rest.split_first_chunk::<32>()?;
    (Sha256::digest(cubin)[..] == hash[..] && !cubin.is_empty()).then(|| cubin.to_vec())
}

fn write(path: &Path, cubin: &[u8]) -> std::io::Result<()> {
    static WRITTEN: AtomicU64 = AtomicU64::new(0);
    let Some(dir) = path.parent() else { return Ok(()) };
    fs::create_dir_all(dir)?;
    let number = WRITTEN.fetch_add(1, Ordering::Relaxed);
    let beside = path.with_extension(format!("{}-{number}.part", std::process::id()));
    let written = fs::File::create(&beside).and_then(|mut file| {
        file.write_all(MAGIC)?;
        file.write_all(&Sha256::digest(cubin))?;
        file.write_all(cubin)?;
        file.sync_all()
    });
    let moved = written.and_then(|()| fs::rename(&beside, path));
    if moved.is_err() {
        let _ = fs::remove_file(&beside);
    }
    moved
}

/// Hashes a field together with its length, so that two different lists of fields never give the same bytes.
fn field(hash: &mut Sha256, bytes: &[u8]) {
    hash.update((bytes.len() as u64).to_le_bytes());
    hash.update(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::cell::Cell;

    struct Scratch(PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let dir = std::env::temp_dir().join(format!("pagedraft-cubins-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&dir);
            Self(dir)
        }

        fn files(&self) -> Vec<PathBuf> {
            fs::read_dir(&self.0).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn key<'a>(source: &'a str, options: &'a [String]) -> CubinKey<'a> {
        CubinKey { name: "attention/decode.cu", source, options, arch: "sm_90a", compiler: (13, 0) }
    }

    #[test]
    fn a_module_is_compiled_once_for_everything_that_decides_it() {
        let scratch = Scratch::new("once");
        let cache = CubinCache::in_directory(scratch.0.clone());
        let compiled = Cell::new(0u8);
        let get = |key: &CubinKey<'_>| {
            let compile = || {
                compiled.set(compiled.get() + 1);
                Ok(vec![compiled.get(); 100])
            };
            cache.get(key, compile).unwrap()[0]
        };
        let (fast, none) = ([String::from("--use_fast_math")], []);
        let base = key("a", &none);
        assert_eq!([get(&base), get(&base)], [1, 1]);
        assert_eq!(get(&key("b", &none)), 2);
        assert_eq!(get(&key("a", &fast)), 3);
        assert_eq!(get(&CubinKey { arch: "sm_80", ..base }), 4);
        assert_eq!(get(&CubinKey { compiler: (13, 1), ..base }), 5);
        assert_eq!([get(&base), get(&key("b", &none))], [1, 2]);
        assert_eq!(scratch.files().len(), 5, "{:?}", scratch.files());
    }

    #[test]
    fn a_damaged_file_is_compiled_anew_and_mended() {
        let scratch = Scratch::new("damaged");
        let cache = CubinCache::in_directory(scratch.0.clone());
        let key = key("a", &[]);
        let good = vec![7u8; 1000];
        cache.get(&key, || Ok(good.clone())).unwrap();
        let path = scratch.files().remove(0);
        let whole = fs::read(&path).unwrap();
        let mut flipped = whole.clone();
        flipped[500] ^= 1;
        for damaged in [&whole[..whole.len() - 1], &whole[..20], &[], &flipped] {
            fs::write(&path, damaged).unwrap();
            let mut called = false;
            let got = cache.get(&key, || {
                called = true;
                Ok(good.clone())
            });
            assert!(called && got.unwrap() == good);
            assert_eq!(fs::read(&path).unwrap(), whole);
        }
    }

    #[test]
    fn a_failed_compilation_leaves_nothing_behind() {
        let scratch = Scratch::new("failed");
        let cache = CubinCache::in_directory(scratch.0.clone());
        let failed = cache.get(&key("a", &[]), || Err(CudaError::NoKernel { kernel: "x".to_owned() }));
        assert!(failed.is_err() && scratch.files().is_empty());
    }

    #[test]
    fn a_directory_that_cannot_be_made_costs_a_compilation_only() {
        let scratch = Scratch::new("file");
        fs::write(&scratch.0, b"a file").unwrap();
        let cache = CubinCache::in_directory(scratch.0.join("below"));
        assert_eq!(cache.get(&key("a", &[]), || Ok(vec![1])).unwrap(), [1]);
        assert_eq!(cache.get(&key("a", &[]), || Ok(vec![2])).unwrap(), [2]);
        fs::remove_file(&scratch.0).unwrap();
    }
}
