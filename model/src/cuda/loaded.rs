//! The compiled kernels that are loaded on a GPU, by name.

use std::collections::HashMap;
use std::ffi::c_void;

use cudarc::driver::{CudaFunction, result, sys};
use cudarc::nvrtc::Ptx;

use super::backend::ReadyLaunch;
use super::driver::Gpu;
use super::error::{CudaError, Doing};
use super::library::DRIVER;

/// The bytes of dynamic shared memory that a kernel may have without being allowed more: 48 KiB less its static shared
/// memory, which is under 1 KiB in every kernel that has dynamic shared memory.
const PLAIN_SHARED: u32 = 47 << 10;

/// What the compiler made of a kernel, and how much of it a multiprocessor runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelFacts {
    /// Registers of a thread.
    pub registers: i32,
    /// Bytes of a thread that did not fit into registers.
    pub local_bytes: i32,
    /// Bytes of shared memory of a block, those given at the launch left out.
    pub shared_bytes: i32,
    /// Blocks that one multiprocessor runs at once.
    pub blocks_at_once: u32,
}

/// The kernels that were loaded.
pub(super) struct Loaded {
    by_name: HashMap<&'static str, Kernel>,
    /// Whether each kernel is set up while the one before it still runs. The kernels themselves wait for each other.
    overlap: bool,
}

struct Kernel {
    function: CudaFunction,
    /// The bytes of dynamic shared memory that it may have.
    allowed: u32,
}

impl Kernel {
    /// Lets it have so much dynamic shared memory.
    fn allow(&mut self, shared: u32) -> Result<(), CudaError> {
        if shared > self.allowed {
            let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            let set = self.function.set_attribute(attribute, shared as i32);
            set.doing("giving a kernel its shared memory")?;
            self.allowed = shared;
        }
        Ok(())
    }
}

impl Loaded {
    /// A set without kernels.
    pub fn new(gpu: &Gpu, overlap: bool) -> Self {
        Self { by_name: HashMap::new(), overlap: overlap && gpu.capability() >= (9, 0) }
    }

    /// Loads a compiled module, and the kernels of it that are named.
    pub fn load(&mut self, gpu: &Gpu, cubin: Vec<u8>, names: &[&'static str]) -> Result<(), CudaError> {
        let module = gpu.context().load_module(Ptx::from_binary(cubin)).doing("loading kernels")?;
        for &name in names {
            let function = module.load_function(name).doing("looking a kernel up")?;
            self.by_name.insert(name, Kernel { function, allowed: PLAIN_SHARED });
        }
        Ok(())
    }

    /// What became of a kernel, launched with so many threads a block and bytes of dynamic shared memory.
    pub fn facts(&mut self, kernel: &str, threads: u32, shared: u32) -> Result<KernelFacts, CudaError> {
        DRIVER
            .require_some(&["cuFuncGetAttribute", "cuOccupancyMaxActiveBlocksPerMultiprocessorWithFlags"])?;
        let Some(kernel) = self.by_name.get_mut(kernel) else {
            return Err(CudaError::NoKernel { kernel: kernel.to_owned() });
        };
        kernel.allow(shared)?;
        let function = &kernel.function;
        let doing = "looking at a kernel";
        Ok(KernelFacts {
            registers: function.num_regs().doing(doing)?,
            local_bytes: function.local_size_bytes().doing(doing)?,
            shared_bytes: function.shared_size_bytes().doing(doing)?,
            blocks_at_once: function
                .occupancy_max_active_blocks_per_multiprocessor(threads, shared as usize, None)
                .doing(doing)?,
        })
    }

    /// # Safety
    ///
    /// The arguments are those that the kernel takes, and the memory that it reads and writes through them lives until it
    /// is done.
    pub unsafe fn launch(&mut self, gpu: &Gpu, launch: &ReadyLaunch) -> Result<(), CudaError> {
        let Some(kernel) = self.by_name.get_mut(launch.kernel) else {
            return Err(CudaError::NoKernel { kernel: launch.kernel.to_owned() });
        };
        kernel.allow(launch.shared)?;
        let mut arguments = Arguments::of(launch)?;
        let function = kernel.function.cu_function();
        // SAFETY: as the caller promises; the driver copies the arguments during the call.
        let launched = unsafe {
            if self.overlap {
                launch_overlapped(gpu, function, launch, &mut arguments)
            } else {
                let [x, y, z] = launch.grid;
                let (block, stream) = ((launch.block, 1, 1), gpu.raw_stream());
                result::launch_kernel(function, (x, y, z), block, launch.shared, stream, arguments.pointers())
            }
        };
        launched.doing("launching a kernel")
    }
}

/// The greatest number of arguments of a kernel.
const MOST_ARGUMENTS: usize = 16;

/// Pointers to a launch's arguments.
struct Arguments {
    pointers: [*mut c_void; MOST_ARGUMENTS],
    count: usize,
}

impl Arguments {
    fn of(launch: &ReadyLaunch) -> Result<Self, CudaError> {
        let count = launch.arguments.len();
        if count > MOST_ARGUMENTS {
            let what = format!(
                "kernel {} is given {count} arguments, and at most {MOST_ARGUMENTS} go",
                launch.kernel
            );
            return Err(CudaError::Unsupported { what });
        }
        let mut pointers = [std::ptr::null_mut(); MOST_ARGUMENTS];
        for (pointer, argument) in pointers.iter_mut().zip(&launch.arguments) {
            *pointer = std::ptr::from_ref(argument).cast_mut().cast();
        }
        Ok(Self { pointers, count })
    }

    fn pointers(&mut self) -> &mut [*mut c_void] {
        &mut self.pointers[..self.count]
    }
}

/// # Safety
///
/// The same as for a launch.
unsafe fn launch_overlapped(
    gpu: &Gpu,
    function: sys::CUfunction,
    launch: &ReadyLaunch,
    arguments: &mut Arguments,
) -> Result<(), cudarc::driver::DriverError> {
    let id = sys::CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION;
    let value = sys::CUlaunchAttributeValue { programmaticStreamSerializationAllowed: 1 };
    let mut attribute = sys::CUlaunchAttribute { id, pad: [0; 4], value };
    let [x, y, z] = launch.grid;
    let config = sys::CUlaunchConfig {
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: launch.block,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: launch.shared,
        hStream: gpu.raw_stream(),
        attrs: &raw mut attribute,
        numAttrs: 1,
    };
    let pointers = arguments.pointers().as_mut_ptr();
    // SAFETY: as the caller promises; the attribute lives through the call.
    unsafe { sys::cuLaunchKernelEx(&raw const config, function, pointers, std::ptr::null_mut()) }.result()
}
