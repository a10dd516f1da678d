//! A GPU, opened: its context and the one stream that everything runs on.

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
    /// Major and minor compute capability.
    capability: (u32, u32),
    multiprocessors: u32,
    /// Of the compiler of its kernels.
    nvrtc: (i32, i32),
}

/// Whether a GPU could be [opened](Gpu::open), found out without taking memory on it; one older than sm_80 could not.
///
/// # Errors
///
/// Why not.
pub fn probe() -> Result<(), CudaError> {
    // What else it lacks is of no interest where there is no GPU.
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
    // SAFETY: the library is there, with this function in it.
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

/// Major and minor compute capability of the first GPU, where the kernels run on it.
fn capability() -> Result<(u32, u32), CudaError> {
    use sys::CUdevice_attribute::{
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR as MAJOR,
        CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR as MINOR,
    };
    let device = result::device::get(0).doing("looking at the GPU")?;
    // SAFETY: the driver gave this device.
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
/// The driver's library is there.
unsafe fn driver_version() -> Result<i32, DriverError> {
    let mut version = 0;
    // SAFETY: the number is ours.
    unsafe { sys::cuDriverGetVersion(&raw mut version) }.result()?;
    Ok(version)
}

pub(super) fn nvrtc_version() -> Result<(i32, i32), CudaError> {
    let (mut major, mut minor) = (0, 0);
    // SAFETY: the library was found, with this function in it.
    let asked = unsafe { nvrtc::sys::nvrtcVersion(&raw mut major, &raw mut minor) };
    asked
        .result()
        .map_err(|error| CudaError::NoGpu { what: format!("libnvrtc gives no version: {error}") })?;
    Ok((major, minor))
}

impl Gpu {
    /// Opens the first GPU that the environment shows (`CUDA_VISIBLE_DEVICES`).
    ///
    /// # Errors
    ///
    /// Those of [`probe`]; a fault of the driver.
    pub fn open() -> Result<Self, CudaError> {
        probe()?;
        let context = CudaContext::new(0).doing("opening the GPU")?;
        // Before anything is allocated: with tracking on, waits on events from outside break every capture.
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

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The target that its kernels are compiled for: `sm_90a`.
    #[must_use]
    pub fn arch(&self) -> String {
        arch(self.capability)
    }

    /// Major and minor compute capability.
    #[must_use]
    pub fn capability(&self) -> (u32, u32) {
        self.capability
    }

    /// Multiprocessors.
    #[must_use]
    pub fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    /// Version of the compiler of its kernels.
    #[must_use]
    pub fn nvrtc_version(&self) -> (i32, i32) {
        self.nvrtc
    }

    /// Free and total memory, in bytes.
    ///
    /// # Errors
    ///
    /// A fault of the driver.
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

    /// Makes the context the calling thread's, and tells of errors that nobody could be told of before.
    pub(super) fn bind(&self) -> Result<(), CudaError> {
        self.context.bind_to_thread().doing("taking up the GPU's context")
    }

    /// Waits until everything issued is done; tells of anything that went wrong in it.
    pub(super) fn wait(&self) -> Result<(), CudaError> {
        self.stream.synchronize().doing("running the step")?;
        self.context.check_err().doing("freeing something earlier")
    }

    /// An event; with `timed`, one that takes the time.
    pub(super) fn event(&self, timed: bool) -> Result<CudaEvent, CudaError> {
        let flags = timed.then_some(sys::CUevent_flags::CU_EVENT_DEFAULT);
        self.context.new_event(flags).doing("making an event")
    }
}

/// Architecture-specific instructions (`a`) exist from 9.0 on, and are asked for where they exist.
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
