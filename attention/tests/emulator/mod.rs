//! Runs the CUDA kernels on the CPU: the sources as they are, compiled by g++ with `cuda/emulate`, and launched by name.
#![allow(dead_code)] // each test file uses a part

pub use crate::random::Random;
use std::collections::HashMap;
use std::ffi::{CString, c_char, c_int, c_uint, c_ulonglong, c_void};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

/// Whether kernels can be emulated here; says so where not.
pub fn available() -> bool {
    static FOUND: OnceLock<bool> = OnceLock::new();
    *FOUND.get_or_init(|| {
        let found = cfg!(target_os = "linux") && Command::new("g++").arg("--version").output().is_ok();
        if !found {
            eprintln!("no g++ (or no Linux): tests that emulate CUDA kernels are skipped");
        }
        found
    })
}

/// An argument of a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Arg {
    Pointer(*const c_void),
    U32(u32),
    U64(u64),
    F32(f32),
}

impl Arg {
    /// None.
    pub const NULL: Arg = Arg::Pointer(std::ptr::null());

    fn bits(self) -> u64 {
        match self {
            Arg::Pointer(at) => at as u64,
            Arg::U32(x) => u64::from(x),
            Arg::U64(x) => x,
            Arg::F32(x) => u64::from(x.to_bits()),
        }
    }
}

type Entry = unsafe extern "C" fn(
    *const c_uint,
    *const c_uint,
    c_uint,
    c_ulonglong,
    *mut *mut c_void,
    c_uint,
) -> c_int;

/// The kernels of one source, compiled for some macros.
#[derive(Clone, Copy, Debug)]
pub struct Module {
    library: usize,
}

/// A launch: the kernel's name, grid, threads a block, bytes of dynamic shared memory.
#[derive(Clone, Copy, Debug)]
pub struct Launch<'a> {
    pub kernel: &'a str,
    pub grid: [u32; 3],
    pub threads: u32,
    pub shared: u32,
    /// Draws the order of blocks and threads, and when copies happen.
    pub seed: u64,
}

impl Module {
    /// Compiles a source, once a process for the same macros. Two threads may compile two sources at the same time.
    pub fn build(name: &str, kernels: &[&str], defines: &[String]) -> Module {
        type Built = HashMap<(String, Vec<String>), Arc<OnceLock<usize>>>;
        static BUILT: OnceLock<Mutex<Built>> = OnceLock::new();
        let mut built = BUILT.get_or_init(Mutex::default).lock().unwrap_or_else(PoisonError::into_inner);
        let once = Arc::clone(built.entry((name.to_owned(), defines.to_vec())).or_default());
        drop(built);
        Module { library: *once.get_or_init(|| open(&compile(name, kernels, defines))) }
    }

    /// Runs a kernel to its end. A fault of the kernel ends the process with a message.
    pub fn launch(&self, launch: Launch<'_>, args: &[Arg]) {
        let name = CString::new(format!("emulate_{}", launch.kernel)).unwrap();
        // SAFETY: the library is open for ever.
        let entry = unsafe { libc::dlsym(self.library as *mut c_void, name.as_ptr()) };
        assert!(!entry.is_null(), "there is no kernel {}", launch.kernel);
        // SAFETY: the emulator defines it with this signature.
        let entry: Entry = unsafe { std::mem::transmute(entry) };
        let mut values: Vec<u64> = args.iter().map(|arg| arg.bits()).collect();
        let mut pointers: Vec<*mut c_void> =
            values.iter_mut().map(|value| std::ptr::from_mut(value).cast()).collect();
        let block = [launch.threads, 1, 1];
        // SAFETY: grid, block and arguments are alive; what the arguments point to is the kernel's business.
        let code = unsafe {
            entry(
                launch.grid.as_ptr(),
                block.as_ptr(),
                launch.shared,
                launch.seed,
                pointers.as_mut_ptr(),
                pointers.len() as c_uint,
            )
        };
        assert_eq!(code, 0, "{} has another number of arguments than {}", launch.kernel, args.len());
    }
}

fn compile(name: &str, kernels: &[&str], defines: &[String]) -> PathBuf {
    let script =
        Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().join("attention/cuda/emulate/compile.sh");
    let mut command = Command::new(script);
    command.arg(env!("CARGO_TARGET_TMPDIR")).args([name, &kernels.join(" ")]).args(defines);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{name} {defines:?}: {}", String::from_utf8_lossy(&output.stderr));
    PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
}

fn open(library: &Path) -> usize {
    let path = CString::new(library.to_str().unwrap()).unwrap();
    // SAFETY: the library has no initialisers but its own thread-local state.
    let handle = unsafe { libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL) };
    assert!(!handle.is_null(), "{}", {
        // SAFETY: after a failure there is a message.
        let message: *const c_char = unsafe { libc::dlerror() };
        // SAFETY: as above, ending in 0.
        unsafe { std::ffi::CStr::from_ptr(message) }.to_string_lossy().into_owned()
    });
    handle as usize
}

/// Memory of a kernel: it ends (within 16 bytes) where a page begins that can't be touched, and begins behind another.
pub struct Buffer<T: Copy> {
    map: *mut c_void,
    map_bytes: usize,
    data: *mut T,
    len: usize,
}

const PAGE: usize = 4096;

impl<T: Copy> Buffer<T> {
    /// A copy of `values`.
    pub fn from(values: &[T]) -> Buffer<T> {
        let bytes = std::mem::size_of_val(values).next_multiple_of(16);
        let pages = bytes.next_multiple_of(PAGE);
        let map_bytes = pages + 2 * PAGE;
        // SAFETY: asks for memory that is nobody's.
        unsafe {
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
            let map = libc::mmap(std::ptr::null_mut(), map_bytes, libc::PROT_NONE, flags, -1, 0);
            assert_ne!(map, libc::MAP_FAILED);
            let inside = map.byte_add(PAGE);
            if pages > 0 {
                assert_eq!(libc::mprotect(inside, pages, libc::PROT_READ | libc::PROT_WRITE), 0);
            }
            let data: *mut T = inside.byte_add(pages - bytes).cast();
            std::ptr::copy_nonoverlapping(values.as_ptr(), data, values.len());
            Buffer { map, map_bytes, data, len: values.len() }
        }
    }

    /// `len` times the same value.
    pub fn filled(value: T, len: usize) -> Buffer<T> {
        Buffer::from(&vec![value; len])
    }

    /// As an argument.
    pub fn arg(&self) -> Arg {
        Arg::Pointer(self.data.cast_const().cast())
    }

    /// As an argument, from a byte on.
    pub fn arg_at(&self, byte: usize) -> Arg {
        Arg::Pointer(self.data.cast_const().cast::<u8>().wrapping_add(byte).cast())
    }

    pub fn all(&self) -> &[T] {
        // SAFETY: `len` values were copied there.
        unsafe { std::slice::from_raw_parts(self.data, self.len) }
    }

    pub fn all_mut(&mut self) -> &mut [T] {
        // SAFETY: as in `all`; the buffer is borrowed.
        unsafe { std::slice::from_raw_parts_mut(self.data, self.len) }
    }
}

impl<T: Copy> Drop for Buffer<T> {
    fn drop(&mut self) {
        // SAFETY: the mapping is this buffer's.
        unsafe { libc::munmap(self.map, self.map_bytes) };
    }
}

/// A 16-bit type of the kernels.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Half {
    Bf16,
    F16,
}

impl Half {
    pub const BOTH: [Half; 2] = [Half::Bf16, Half::F16];

    /// Its name in the sources.
    pub fn name(self) -> &'static str {
        match self {
            Half::Bf16 => "bf16",
            Half::F16 => "f16",
        }
    }

    /// Half the distance of neighbours, relative.
    pub fn unit(self) -> f32 {
        match self {
            Half::Bf16 => 1.0 / 256.0,
            Half::F16 => 1.0 / 2048.0,
        }
    }

    pub fn narrow(self, x: f32) -> u16 {
        match self {
            Half::Bf16 => half::bf16::from_f32(x).to_bits(),
            Half::F16 => half::f16::from_f32(x).to_bits(),
        }
    }

    pub fn widen(self, bits: u16) -> f32 {
        match self {
            Half::Bf16 => half::bf16::from_bits(bits).to_f32(),
            Half::F16 => half::f16::from_bits(bits).to_f32(),
        }
    }

    pub fn narrow_all(self, values: &[f32]) -> Vec<u16> {
        values.iter().map(|&x| self.narrow(x)).collect()
    }

    pub fn widen_all(self, bits: &[u16]) -> Vec<f32> {
        bits.iter().map(|&x| self.widen(x)).collect()
    }
}
