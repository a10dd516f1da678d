//! The shared libraries of CUDA: where they are found, and whether they have the functions that are called.
//!
//! cudarc loads a library when it is first called, and panics if it is missing. Each library is therefore looked for here
//! first. A library outside the loader's path is opened by its absolute path and kept open, so that the loader returns it
//! to anyone who asks for its name.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use libloading::Library;

use super::error::CudaError;

/// A library that the CUDA device calls.
pub struct SharedLibrary {
    name: &'static str,
    /// The stem of the file name that cudarc looks for.
    stem: &'static str,
    /// The file that is opened by its path if the loader does not find the library.
    file: Option<&'static str>,
    /// The beginning of the names of files that the library needs beside it.
    needs: Option<&'static str>,
    symbols: &'static [&'static str],
    hint: &'static str,
}

/// The library of the driver.
pub const DRIVER: SharedLibrary = SharedLibrary {
    name: "libcuda",
    stem: "cuda",
    file: None,
    needs: None,
    symbols: &[
        "cuInit",
        "cuDriverGetVersion",
        "cuDeviceGetCount",
        "cuDeviceGet",
        "cuDeviceGetName",
        "cuDeviceGetAttribute",
        "cuDevicePrimaryCtxRetain",
        "cuDevicePrimaryCtxRelease_v2",
        "cuCtxGetCurrent",
        "cuCtxSetCurrent",
        "cuStreamCreate",
        "cuStreamDestroy_v2",
        "cuStreamSynchronize",
        "cuStreamBeginCapture_v2",
        "cuStreamEndCapture",
        "cuGraphInstantiateWithFlags",
        "cuGraphUpload",
        "cuGraphLaunch",
        "cuGraphExecDestroy",
        "cuGraphDestroy",
        "cuMemGetInfo_v2",
        "cuMemAlloc_v2",
        "cuMemFree_v2",
        "cuMemHostAlloc",
        "cuMemFreeHost",
        "cuMemcpyHtoDAsync_v2",
        "cuMemcpyDtoHAsync_v2",
        "cuMemcpyDtoDAsync_v2",
        "cuMemsetD8Async",
        "cuModuleLoadData",
        "cuModuleGetFunction",
        "cuModuleUnload",
        "cuFuncSetAttribute",
        "cuLaunchKernel",
        "cuLaunchKernelEx",
        "cuEventCreate",
        "cuEventRecord",
        "cuEventSynchronize",
        "cuEventQuery",
        "cuEventElapsedTime_v2",
        "cuEventDestroy_v2",
    ],
    hint: "install the NVIDIA driver (580 or newer), or run with --device cpu",
};

/// The library of the compiler of the kernels.
pub const NVRTC: SharedLibrary = SharedLibrary {
    name: "libnvrtc",
    stem: "nvrtc",
    file: Some("libnvrtc.so.13"),
    needs: Some("libnvrtc-builtins.so.13"),
    symbols: &[
        "nvrtcVersion",
        "nvrtcCreateProgram",
        "nvrtcCompileProgram",
        "nvrtcGetCUBINSize",
        "nvrtcGetCUBIN",
        "nvrtcGetProgramLogSize",
        "nvrtcGetProgramLog",
        "nvrtcDestroyProgram",
    ],
    hint: "install the CUDA 13.0 toolkit, or `pip install nvidia-cuda-nvrtc==13.0.88`; CUDA_HOME or VIRTUAL_ENV says where",
};

/// The library of matrix products whose sums depend on the number of rows of a step.
pub const CUBLASLT: SharedLibrary = SharedLibrary {
    name: "libcublasLt",
    stem: "cublasLt",
    file: Some("libcublasLt.so.13"),
    needs: None,
    symbols: &[
        "cublasLtCreate",
        "cublasLtDestroy",
        "cublasLtMatmul",
        "cublasLtMatmulAlgoGetHeuristic",
        "cublasLtMatmulDescCreate",
        "cublasLtMatmulDescSetAttribute",
        "cublasLtMatmulDescDestroy",
        "cublasLtMatrixLayoutCreate",
        "cublasLtMatrixLayoutDestroy",
        "cublasLtMatmulPreferenceCreate",
        "cublasLtMatmulPreferenceSetAttribute",
        "cublasLtMatmulPreferenceDestroy",
    ],
    hint: "install the CUDA 13.0 toolkit, or `pip install nvidia-cublas==13.0.*`; or leave --no-deterministic and --deterministic-cost out",
};

impl SharedLibrary {
    /// Finds the library and every function of it that is called, so that no later call can fail for lack of one.
    ///
    /// # Errors
    ///
    /// [`CudaError::NoLibrary`] or [`CudaError::OldLibrary`].
    pub fn require(&self) -> Result<(), CudaError> {
        self.require_some(self.symbols)
    }

    /// Finds the library and some functions of it.
    ///
    /// # Errors
    ///
    /// Those of [`require`](Self::require).
    pub fn require_some(&self, symbols: &[&'static str]) -> Result<(), CudaError> {
        let library = self.open()?;
        for &symbol in symbols {
            // SAFETY: only the address of the symbol is asked for.
            if unsafe { library.get::<*const ()>(symbol.as_bytes()) }.is_err() {
                return Err(CudaError::OldLibrary { name: self.name, symbol, hint: self.hint });
            }
        }
        // The library stays open for ever, so that cudarc's own handle refers to this same library.
        std::mem::forget(library);
        Ok(())
    }

    /// The functions that are called.
    #[must_use]
    pub fn symbols(&self) -> &'static [&'static str] {
        self.symbols
    }

    fn open(&self) -> Result<Library, CudaError> {
        if let Some(library) = self.known_to_loader() {
            return Ok(library);
        }
        let directories = if self.file.is_none() { Vec::new() } else { directories() };
        if directories.iter().any(|dir| self.keep_from(dir))
            && let Some(library) = self.known_to_loader()
        {
            return Ok(library);
        }
        let names: Vec<_> = directories.iter().map(|dir| dir.display().to_string()).collect();
        let looked = match names.len() {
            0 => String::new(),
            _ => format!(" (nor in {})", names.join(", ")),
        };
        Err(CudaError::NoLibrary { name: self.name, looked, hint: self.hint })
    }

    /// Opens the library under the names that cudarc tries, in its order.
    fn known_to_loader(&self) -> Option<Library> {
        let names = cudarc::get_lib_name_candidates(self.stem);
        // SAFETY: opening one of CUDA's libraries runs only its own initialisers.
        names.iter().find_map(|name| unsafe { Library::new(name) }.ok())
    }

    /// Opens the library from a directory, after the files that it needs. All are visible to everyone and stay open for
    /// ever.
    fn keep_from(&self, dir: &Path) -> bool {
        let Some(path) = self.file.map(|file| dir.join(file)).filter(|path| path.exists()) else {
            return false;
        };
        let names = std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.file_name());
        let needed =
            |name: &OsStr| self.needs.is_some_and(|begins| name.to_string_lossy().starts_with(begins));
        for name in names.filter(|name| needed(name)) {
            // If this one does not open, opening the library itself fails.
            let _ = open_for_all(&dir.join(name));
        }
        open_for_all(&path)
    }
}

#[cfg(unix)]
fn open_for_all(path: &Path) -> bool {
    use libloading::os::unix::{Library, RTLD_GLOBAL, RTLD_NOW};
    // SAFETY: as in `known_to_loader`.
    let opened = unsafe { Library::open(Some(path), RTLD_NOW | RTLD_GLOBAL) };
    opened.map(std::mem::forget).is_ok()
}

#[cfg(not(unix))]
fn open_for_all(_: &Path) -> bool {
    false
}

/// The directories in which libraries are looked for besides the loader's own path: those of `CUDA_HOME` and `CUDA_PATH`,
/// of the usual toolkit, and those that pip installs for the Pythons of this environment.
#[must_use]
pub fn directories() -> Vec<PathBuf> {
    let mut found = Vec::new();
    for root in toolkits() {
        found.extend(["lib64", "lib", "targets/x86_64-linux/lib"].map(|lib| root.join(lib)));
    }
    found.extend(wheels().into_iter().map(|wheel| wheel.join("lib")));
    found.retain(|dir| dir.is_dir());
    found
}

/// The directories of CUDA's headers, which are found in the same way.
#[must_use]
pub fn include_directories() -> Vec<PathBuf> {
    let roots = toolkits().into_iter().chain(wheels());
    roots
        .flat_map(|root| ["include", "include/cccl"].map(|dir| root.join(dir)))
        .filter(|d| d.is_dir())
        .collect()
}

fn toolkits() -> Vec<PathBuf> {
    let named = ["CUDA_HOME", "CUDA_PATH"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    named.chain([PathBuf::from("/usr/local/cuda")]).collect()
}

/// The directories `nvidia/cu13` of all site-packages that `VIRTUAL_ENV`, `CONDA_PREFIX`, `PATH` and `HOME` lead to.
fn wheels() -> BTreeSet<PathBuf> {
    let environments =
        ["VIRTUAL_ENV", "CONDA_PREFIX"].into_iter().filter_map(std::env::var_os).map(PathBuf::from);
    let path = std::env::var_os("PATH").unwrap_or_default();
    let pythons = std::env::split_paths(&path).filter(|dir| dir.join("python3").exists());
    let prefixes = environments.chain(pythons.flat_map(|bin| prefixes(&bin.join("python3"))));
    let home = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".local"));
    prefixes.chain(home).flat_map(|prefix| site_packages(&prefix)).collect()
}

/// The installation prefixes of a program: one for each step along its links, and one for the file at their end.
fn prefixes(program: &Path) -> Vec<PathBuf> {
    let target = |link: &PathBuf| Some(link.parent()?.join(std::fs::read_link(link).ok()?));
    let steps = std::iter::successors(Some(program.to_owned()), target).take(16);
    let programs = steps.chain(program.canonicalize().ok());
    programs.filter_map(|program| Some(program.parent()?.parent()?.to_owned())).collect()
}

fn site_packages(prefix: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(prefix.join("lib")).into_iter().flatten().flatten();
    let pythons = entries.filter(|entry| is_python(&entry.file_name())).map(|entry| entry.path());
    let packages = pythons.flat_map(|python| ["site-packages", "dist-packages"].map(|dir| python.join(dir)));
    packages.map(|dir| dir.join("nvidia/cu13")).filter(|dir| dir.is_dir()).collect()
}

fn is_python(name: &OsStr) -> bool {
    name.to_string_lossy().starts_with("python3")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn wheels_are_found_beside_an_environments_python() {
        let root = std::env::temp_dir().join(format!("pagedraft-wheels-{}", std::process::id()));
        let wheel = root.join("lib/python3.11/site-packages/nvidia/cu13");
        std::fs::create_dir_all(&wheel).unwrap();
        std::fs::create_dir_all(root.join("lib/perl5/site-packages/nvidia/cu13")).unwrap();
        let found = site_packages(&root);
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, [wheel]);
    }

    #[cfg(unix)]
    #[test]
    fn a_linked_python_has_the_prefix_of_every_step() {
        let root = std::env::temp_dir().join(format!("pagedraft-prefixes-{}", std::process::id()));
        for prefix in ["usr", "conda", "env"] {
            std::fs::create_dir_all(root.join(prefix).join("bin")).unwrap();
        }
        std::fs::write(root.join("conda/bin/python3.11"), b"").unwrap();
        std::os::unix::fs::symlink("../../conda/bin/python3.11", root.join("env/bin/python3")).unwrap();
        std::os::unix::fs::symlink(root.join("env/bin/python3"), root.join("usr/bin/python3")).unwrap();
        let found: Vec<_> = prefixes(&root.join("usr/bin/python3"))
            .iter()
            .map(|prefix| prefix.canonicalize().unwrap())
            .collect();
        let wanted = ["usr", "env", "conda", "conda"].map(|prefix| root.join(prefix).canonicalize().unwrap());
        std::fs::remove_dir_all(&root).unwrap();
        assert_eq!(found, wanted);
    }

    #[test]
    fn a_library_that_is_nowhere_is_an_error_that_says_what_brings_it() {
        let nowhere = SharedLibrary {
            name: "libnowhere",
            stem: "pagedraft-nowhere",
            file: Some("libpagedraft-nowhere.so.13"),
            needs: None,
            symbols: &[],
            hint: "make one",
        };
        let said = nowhere.require().unwrap_err().to_string();
        assert!(said.starts_with("libnowhere is not found") && said.ends_with(": make one"), "{said}");
    }
}
