//! Captured steps.

use cudarc::driver::CudaGraph as Graph;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};

use super::driver::Gpu;
use super::error::{CudaError, Doing};
use crate::graph::GraphKey;

/// A list of operations as a CUDA graph, for one key.
pub struct CudaGraph {
    gpu: Gpu,
    graph: Graph,
    key: GraphKey,
    bytes: usize,
}

// SAFETY: CUDA requires that a graph is used by one thread at a time, but any thread will do. A graph is neither shared (it
// is not `Sync`) nor copied, and every call on it, including the last one in `drop`, first binds the context to its thread.
unsafe impl Send for CudaGraph {}

impl CudaGraph {
    /// Captures what `issue` puts on the stream. These must be kernels over fixed buffers that have all run before, because
    /// a first run loads code, which is not allowed during a capture.
    pub(super) fn capture(
        gpu: &Gpu,
        key: GraphKey,
        issue: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Self, CudaError> {
        let (free, _) = gpu.memory()?;
        let stream = gpu.stream();
        // In this mode, other threads may still make calls that are not allowed during a capture.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).doing("beginning to capture a graph")?;
        let issued = issue();
        // The capture is ended in any case, since the stream could not be used again otherwise. The error of `issue` is
        // returned first, because it names the cause.
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).doing("capturing a graph");
        issued?;
        let Some(graph) = graph? else {
            return Err(CudaError::NoGpu { what: format!("nothing was captured for {key:?}") });
        };
        graph.upload().doing("uploading a graph")?;
        let bytes = free.saturating_sub(gpu.memory()?.0);
        Ok(Self { gpu: gpu.clone(), graph, key, bytes })
    }

    /// The number of bytes of the GPU's memory that capturing took. It is 0 for many graphs, because the driver takes
    /// memory in large pieces.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn launch(&self) -> Result<(), CudaError> {
        self.graph.launch().doing("replaying a graph")
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // The graph itself is dropped next. Its own `drop` does not bind the context.
        self.gpu.context().record_err(self.gpu.context().bind_to_thread());
    }
}

impl std::fmt::Debug for CudaGraph {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CudaGraph")
            .field("key", &self.key)
            .field("bytes", &self.bytes)
            .finish_non_exhaustive()
    }
}
