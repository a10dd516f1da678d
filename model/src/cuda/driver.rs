//! An open GPU: its context, and the one stream on which everything runs.

use std::sync::Arc;

use cudarc::driver::sys::CUresult;
use cudarc::driver::{CudaContext, CudaEvent, CudaStream, DriverError, result, sys};
use cudarc::nvrtc;

use super::error::{CudaError, Doing};
use super::library::{DRIVER, NVRTC};

/// The GPU that a device runs on.
#[derive(Clone, Debug)]
pub struct Gpu {
    context: Arc<CudaContext>,
    stream: Arc<CudaStream>,
    name: String,
    /// The major and the minor compute capability.
    capability: (u32, u32),
    multiprocessors: u32,
    /// The version of the compiler of its kernels.
    nvrtc: (i32, i32),
}

/// Checks whether a GPU can be [opened](Gpu::open), without taking memory on it. A GPU older than sm_80 can't be opened.
///
/// # Errors
///
/// The error says why not.
pub fn probe() -> Result<(), CudaError> {
    // If there is no GPU, it does not matter what else the driver lacks.
    DRIVER.require_some(&["cuInit"])?;
    match result::init() {
        Ok(()) => {}
        Err(DriverError(CUresult::CUDA_ERROR_NO_DEVICE)) => return Err(no_gpu()),
        Err(DriverError(code)) => return Err(CudaError::Driver { doing: "starting CUDA", code }),
    }
    DRIVER.require()?;
    if result::device::get_count().doing("counting GPUs")? == 0 {
        return Err(no_gpu());
    }
    capability()?;
    // SAFETY: the library was found, and it has this function.
    let version = unsafe { driver_version() }.doing("asking for the driver's version")?;
    NVRTC.require()?;
    let (major, minor) = nvrtc_version()?;
    if version / 1000 < major {
        let (has, minor_has) = (version / 1000, version % 1000 / 10);
        let what = format!(
            "the NVIDIA driver supports CUDA {has}.{minor_has}, and the kernels are compiled by CUDA {major}.{minor}: update the \
             driver, or install a libnvrtc of CUDA {has}"
        );
        return Err(CudaError::NoGpu { what });
    }
    Ok(())
}

fn no_gpu() -> CudaError {
    let what =
        "the NVIDIA driver sees no GPU: check nvidia-smi and CUDA_VISIBLE_DEVICES, or run with --device cpu";
    CudaError::NoGpu { what: what.to_owned() }
}

/// The major and the minor compute capability of the first GPU, if the kernels can run on it.
fn capability() -> Result<(u32, u32), CudaError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let device = result::device::get(0).doing("looking at the GPU")?;
    // SAFETY: the driver returned this device.
    let part = |of| unsafe { result::device::get_attribute(device, of) }.doing("looking at the GPU");
    let (major, minor) = (part(MAJOR)?.unsigned_abs(), part(MINOR)?.unsigned_abs());
    if (major, minor) < (8, 0) {
        let name = result::device::get_name(device).unwrap_or_else(|_| "the GPU".to_owned());
        let what = format!(
            "{name} has compute capability {major}.{minor}; the kernels need 8.0 (Ampere) or newer: run with --device cpu"
        );
        return Err(CudaError::NoGpu { what });
    }
    Ok((major, minor))
}

/// # Safety
///
/// The driver's library was found.
unsafe fn driver_version() -> Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: the number is a local variable.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(version)
}

pub(super) fn nvrtc_version() -> Result<(i32, i32), CudaError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library was found, and it has this function.
    let asked = unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    asked
        .result()
        .map_err(|error| CudaError::NoGpu { what: format!("libnvrtc gives no version: {error}") })?;
    Ok((major, minor))
}

impl Gpu {
    /// Opens the first GPU that the environment allows (`CUDA_VISIBLE_DEVICES`).
    ///
    /// # Errors
    ///
    /// Those of [`probe`], or the driver has a fault.
    pub fn open() -> Result<Self, CudaError> {
        probe()?;
        let context = CudaContext::new(0).doing("opening the GPU")?;
        // This has to come before anything is allocated. With tracking on, waits for events from outside break every
        // capture.
        // SAFETY: there is one stream, which orders everything.
        unsafe { context.disable_event_tracking() };
        let name = context.name().doing("naming the GPU")?;
        let capability = capability()?;
        let attribute = sys::CUdevice_attribute::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT;
        let multiprocessors = context.attribute(attribute).doing("looking at the GPU")?.unsigned_abs();
        // The legacy default stream cannot be captured.
        let stream = context.new_stream().doing("making a stream")?;
        Ok(Self { context, stream, name, capability, multiprocessors, nvrtc: nvrtc_version()? })
    }

    /// The name of the GPU.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The target that its kernels are compiled for, such as `sm_90a`.
    #[must_use]
    pub fn arch(&self) -> String {
        arch(self.capability)
    }

    /// The major and the minor compute capability.
    #[must_use]
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// The number of multiprocessors.
    #[must_use]
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// The version of the compiler of its kernels.
    #[must_use]
    pub fn nvrtc_version(&self) -> (i32, i32) {
        self.nvrtc
    }

    /// The numbers of bytes of free memory and of all memory.
    ///
    /// # Errors
    ///
    /// The driver has a fault.
    pub fn memory(&self) -> Result<(usize, usize), CudaError> {
        self.context.mem_get_info().doing("asking for the GPU's memory")
    }

    pub(super) fn context(&self) -> &Arc<CudaContext> {
        &self.context
    }

    pub(super) fn stream(&self) -> &Arc<CudaStream> {
        &self.stream
    }

    pub(super) fn raw_stream(&self) -> sys::CUstream {
        self.stream.cu_stream()
    }

    /// Makes the context that of the calling thread. It also returns errors that could not be reported before.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().doing("taking up the GPU's context")
    }

    /// Waits until everything that was issued is done, and returns any error that occurred in it.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        self.stream.synchronize().doing("running the step")?;
        self.context.check_err().doing("freeing something earlier")
    }

    /// Makes an event. With `timed`, the event records the time.
    pub(super) fn event(&self, timed: bool) -> Result<CudaEvent, CudaError> {
        let flags = timed.then_some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        self.context.new_event(flags).doing("making an event")
    }
}

/// The target of a compute capability. Architecture-specific instructions (`a`) exist from 9.0 on, and are asked for if
/// they exist.
fn arch((major, minor): (u32, u32)) -> String {
    let specific = if (major, minor) >= (9, 0) { "a" } else { "" };
    format!("sm_{major}{minor}{specific}")
}

#[cfg(test)]
mod tests {
    use super::arch;

    #[test]
    fn architectures_are_named_as_the_compiler_has_them() {
        assert_eq!([(8, 0), (8, 9), (9, 0), (10, 0)].map(arch), ["sm_80", "sm_89", "sm_90a", "sm_100a"]);
    }
}
