//! Compiles a kernel source to a cubin.
//!
//! The compiler is `libnvrtc.so.13`, which is loaded when it is first asked for. It comes with the CUDA toolkit, or as a
//! Python wheel (`pip install nvidia-cuda-nvrtc==13.0.88`). A copy outside the loader's path has to be opened before
//! (`RTLD_GLOBAL`), after its `libnvrtc-builtins.so.13.0`. No header files are needed.

use std::ffi::{CString, c_char};

use cudarc::nvrtc::{result, sys};

/// The options that every source is compiled with. They affect the results of the kernels.
pub const OPTIONS: [&str; 3] = ["--std=c++17", "--fmad=false", "-default-device"];

/// A compiled module.
#[derive(Clone, Debug)]
pub struct Compiled {
    /// The code that a GPU of the architecture loads.
    pub cubin: Vec<u8>,
    /// What the compiler printed: warnings, and what its options ask for.
    pub log: String,
}

/// Why a source was not compiled.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CompileError {
    /// The compiler is not found.
    #[error(
        "libnvrtc.so.13 is not found; install the CUDA 13 toolkit, or `pip install nvidia-cuda-nvrtc==13.0.88`"
    )]
    NoCompiler,
    /// A source or an option contains a zero byte.
    #[error("{name}: a source or option contains a zero byte")]
    ZeroByte {
        /// The name of the source.
        name: String,
    },
    /// The compiler refused the source.
    #[error("{name} does not compile for {arch} ({code:?}): {log}")]
    Refused {
        /// The name of the source.
        name: String,
        /// The architecture.
        arch: String,
        /// The error code of the compiler.
        code: sys::nvrtcResult,
        /// What the compiler printed.
        log: String,
    },
}

/// Whether the compiler can be loaded. This asks the loader each time.
#[must_use]
pub fn is_present() -> bool {
    // SAFETY: this only looks for the library by name and opens it.
    unsafe { sys::is_culib_present() }
}

/// The compiler's version, such as (13, 0).
///
/// # Errors
///
/// [`CompileError::NoCompiler`].
pub fn version() -> Result<(i32, i32), CompileError> {
    if !is_present() {
        return Err(CompileError::NoCompiler);
    }
    let (mut major, mut minor) = (0, 0);
    // SAFETY: both pointers are to local variables, which are written to.
    unsafe { sys::nvrtcVersion(&mut major, &mut minor) }.result().map_err(|_| CompileError::NoCompiler)?;
    Ok((major, minor))
}

/// Compiles `text`, which must need no other file ([`Source::expanded`](super::Source::expanded)), for `arch` (such as
/// `sm_90a`) with [`OPTIONS`] and `more`.
///
/// # Errors
///
/// [`CompileError`]: the library is missing, or the compiler refuses the source.
pub fn compile(name: &str, text: &str, arch: &str, more: &[String]) -> Result<Compiled, CompileError> {
    if !is_present() {
        return Err(CompileError::NoCompiler);
    }
    let c_string = |s: &str| CString::new(s).map_err(|_| CompileError::ZeroByte { name: name.to_owned() });
    let (c_text, c_name) = (c_string(text)?, c_string(name)?);
    let mut options = vec![c_string(&format!("--gpu-architecture={arch}"))?];
    for option in OPTIONS.into_iter().chain(more.iter().map(String::as_str)) {
        options.push(c_string(option)?);
    }
    let refused = |code: result::NvrtcError, log| CompileError::Refused {
        name: name.to_owned(),
        arch: arch.to_owned(),
        code: code.0,
        log,
    };
    let program =
        result::create_program(&c_text, Some(&c_name)).map_err(|code| refused(code, String::new()))?;
    let program = Program(program);
    let options: Vec<*const c_char> = options.iter().map(|option| option.as_ptr()).collect();
    // SAFETY: the program is alive, and so are the options.
    let done =
        unsafe { sys::nvrtcCompileProgram(program.0, options.len() as i32, options.as_ptr()) }.result();
    let log = program.log();
    done.map_err(|code| refused(code, log.clone()))?;
    let cubin = program.cubin().map_err(|code| refused(code, log.clone()))?;
    Ok(Compiled { cubin, log })
}

struct Program(sys::nvrtcProgram);

impl Program {
    fn log(&self) -> String {
        // SAFETY: the program is alive.
        let log = unsafe { result::get_program_log(self.0) }.unwrap_or_default();
        let bytes: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|&c| c != 0).collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn cubin(&self) -> Result<Vec<u8>, result::NvrtcError> {
        let mut size = 0usize;
        // SAFETY: the program is alive, and the size is a local variable, which is written to.
        unsafe { sys::nvrtcGetCUBINSize(self.0, &mut size) }.result()?;
        let mut cubin = vec![0u8; size];
        // SAFETY: there is room for as many bytes as the compiler said.
        unsafe { sys::nvrtcGetCUBIN(self.0, cubin.as_mut_ptr().cast()) }.result()?;
        Ok(cubin)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        // SAFETY: the program is alive, and is not used any more.
        let _ = unsafe { result::destroy_program(self.0) };
    }
}
