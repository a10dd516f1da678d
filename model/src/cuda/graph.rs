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

// SAFETY: CUDA asks that a graph be used by one thread at a time, whichever it is: a graph is neither shared (it is not `Sync`) nor
// copied, and every call on it, the last one in `drop` too, binds the context to its thread first.
unsafe impl Send for CudaGraph {}

impl CudaGraph {
    /// Captures what `issue` puts on the stream: kernels over fixed buffers that have all run before (a first run loads code,
    /// which a capture must not).
    pub(super) fn capture(
        gpu: &Gpu,
        key: GraphKey,
        issue: impl FnOnce() -> Result<(), CudaError>,
    ) -> Result<Self, CudaError> {
        let (free, _) = gpu.memory()?;
        let stream = gpu.stream();
        // Other threads may go on with what a capture forbids.
        let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
        stream.begin_capture(mode).doing("beginning to capture a graph")?;
        let issued = issue();
        // Ended in any case, or the stream could not be used again; the first error names the culprit.
        let graph = stream.end_capture(CUgraphInstantiate_flags(0)).doing("capturing a graph");
        issued?;
        let Some(graph) = graph? else {
            return Err(CudaError::NoGpu { what: format!("nothing was captured for {key:?}") });
        };
        graph.upload().doing("uploading a graph")?;
        let bytes = free.saturating_sub(gpu.memory()?.0);
        Ok(Self { gpu: gpu.clone(), graph, key, bytes })
    }

    /// Memory of the GPU that capturing took: the driver hands it out in large pieces, so that many graphs take none.
    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn launch(&self) -> Result<(), CudaError> {
        self.graph.launch().doing("replaying a graph")
    }
}

impl Drop for CudaGraph {
    fn drop(&mut self) {
        // The graph itself goes next, and does not see to it.
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
