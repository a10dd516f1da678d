//! The GPU as a [`Backend`].

use std::collections::BTreeMap;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, result};

use super::backend::{Backend, Command, ReadyLaunch};
use super::blas::Blas;
use super::clock::Clock;
use super::driver::Gpu;
use super::error::{CudaError, Doing};
use super::graph::CudaGraph;
use super::loaded::{KernelFacts, Loaded};
use super::memory::DeviceMemory;
use super::pinned::Pinned;
use super::purpose::Purpose;
use crate::checkpoint::Dtype;
use crate::device_times::{DeviceTimes, Stage};
use crate::graph::GraphKey;

/// The memory, kernels and graphs of one device on a GPU. Several devices may share the GPU: its one stream orders their
/// work.
pub struct GpuBackend {
    gpu: Gpu,
    kernels: Loaded,
    /// The vendor's library of products. It is `None` if results must not depend on the number of rows.
    blas: Option<Blas>,
    /// Every piece of memory by its address.
    memory: BTreeMap<u64, Arc<DeviceMemory>>,
    /// Two pieces of page-locked memory that are used in turns, so that one can be filled while the other is copied.
    staged: [Staging; 2],
    turn: usize,
    fetched: Option<Pinned>,
    clock: Clock,
    /// The stage that the clock counts time for.
    stage: Stage,
    /// Whether every command outside a graph is waited for, so that a fault is told with the kernel that it happened in.
    wait_for_each: bool,
}

/// Memory on a GPU that several devices on it use.
#[derive(Clone, Debug)]
pub struct GpuMemory(Arc<DeviceMemory>);

impl GpuMemory {
    /// Allocates zeroed memory.
    ///
    /// # Errors
    ///
    /// There is not enough memory. The error names the purpose.
    pub fn zeroed(gpu: &Gpu, bytes: usize, purpose: Purpose) -> Result<Self, CudaError> {
        Ok(Self(Arc::new(DeviceMemory::zeroed(gpu, bytes, purpose)?)))
    }
}

/// Page-locked words, and the last copy to the GPU that read them.
#[derive(Debug, Default)]
struct Staging {
    words: Option<Pinned>,
    copied: Option<CudaEvent>,
}

impl GpuBackend {
    /// A backend with these kernels and without memory. `blas` is the dtype of products by cuBLASLt, if any are wanted.
    pub(super) fn new(gpu: Gpu, kernels: Loaded, blas: Option<Dtype>) -> Result<Self, CudaError> {
        let blas = blas.map(|dtype| Blas::new(&gpu, dtype)).transpose()?;
        Ok(Self {
            gpu,
            kernels,
            blas,
            memory: BTreeMap::new(),
            staged: Default::default(),
            turn: 0,
            fetched: None,
            clock: Clock::default(),
            stage: Stage::default(),
            wait_for_each: std::env::var_os("PAGEDRAFT_CUDA_SYNC").is_some_and(|value| value != "0"),
        })
    }

    /// The GPU that the backend runs on.
    #[must_use]
    pub fn gpu(&self) -> &Gpu {
        &self.gpu
    }

    /// What became of a kernel, launched with so many threads a block and bytes of dynamic shared memory.
    ///
    /// # Errors
    ///
    /// No such kernel; a fault of the driver.
    pub fn kernel_facts(
        &mut self,
        kernel: &str,
        threads: u32,
        shared: u32,
    ) -> Result<KernelFacts, CudaError> {
        self.gpu.bind()?;
        self.kernels.facts(kernel, threads, shared)
    }

    /// Refuses a range that does not lie in a single piece of memory.
    fn own(&self, at: u64, bytes: usize) -> Result<(), CudaError> {
        match self.memory.range(..=at).next_back() {
            Some((_, memory)) if memory.holds(at, bytes) => Ok(()),
            _ => Err(CudaError::Outside { at, bytes }),
        }
    }

    /// # Safety
    ///
    /// The same as for [`run`](Backend::run).
    unsafe fn issue(&mut self, commands: &[Command], wait_for_each: bool) -> Result<(), CudaError> {
        for command in commands {
            match (command, &mut self.blas) {
                // SAFETY: as the caller promises; memory stays until the backend is dropped, which waits.
                (Command::Launch(launch), _) => unsafe { self.kernels.launch(&self.gpu, launch) }?,
                (&Command::Product { shape, x, weights, out }, Some(blas)) => {
                    // SAFETY: likewise.
                    unsafe { blas.multiply(&self.gpu, shape, x, weights, out) }?;
                }
                (Command::Product { .. }, None) => {
                    return Err(CudaError::Unsupported { what: "cuBLASLt was not opened".to_owned() });
                }
            }
            if wait_for_each {
                self.gpu.wait().map_err(|error| CudaError::After {
                    command: described(command),
                    error: Box::new(error),
                })?;
            }
        }
        Ok(())
    }

    /// Ends the span of work that was put on the stream, or drops the span if the work failed to be put there.
    fn took(&mut self, issued: Result<(), CudaError>) -> Result<(), CudaError> {
        match issued {
            Ok(()) => self.clock.stop(&self.gpu),
            Err(error) => {
                self.clock.give_up();
                Err(error)
            }
        }
    }
}

impl Backend for GpuBackend {
    type Graph = CudaGraph;
    type Shared = GpuMemory;

    fn adopt(&mut self, shared: &GpuMemory) -> u64 {
        let at = shared.0.address();
        self.memory.insert(at, Arc::clone(&shared.0));
        at
    }

    fn multiprocessors(&self) -> u32 {
        self.gpu.multiprocessors()
    }

    fn open_products(&mut self, dtype: Dtype) -> Result<(), CudaError> {
        if self.blas.is_none() {
            self.blas = Some(Blas::new(&self.gpu, dtype)?);
        }
        Ok(())
    }

    fn enter(&mut self, stage: Stage) {
        self.stage = stage;
    }

    fn allocate(&mut self, bytes: usize, purpose: Purpose) -> Result<u64, CudaError> {
        let memory = DeviceMemory::zeroed(&self.gpu, bytes, purpose)?;
        let at = memory.address();
        self.memory.insert(at, Arc::new(memory));
        Ok(at)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), CudaError> {
        self.own(at, bytes.len())?;
        self.gpu.bind()?;
        // SAFETY: the range is in this backend's memory, and the copy is waited for while the bytes are borrowed.
        unsafe { result::memcpy_htod_async(at, bytes, self.gpu.raw_stream()) }.doing("copying to the GPU")?;
        self.gpu.wait()
    }

    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        self.own(from, bytes)?;
        self.own(to, bytes)?;
        self.gpu.bind()?;
        self.clock.start(&self.gpu, self.stage)?;
        // SAFETY: both ranges are in this backend's memory.
        let copied = unsafe { result::memcpy_dtod_async(to, from, bytes, self.gpu.raw_stream()) };
        self.took(copied.doing("copying on the GPU"))
    }

    fn staging(&mut self, words: usize) -> Result<&mut [u32], CudaError> {
        self.turn = 1 - self.turn;
        let staging = &mut self.staged[self.turn];
        if let Some(copied) = &staging.copied {
            copied.synchronize().doing("waiting for a copy to the GPU")?;
        }
        let pinned = match staging.words.take() {
            Some(pinned) if pinned.words().len() >= words => pinned,
            _ => Pinned::new(&self.gpu, words)?,
        };
        Ok(staging.words.insert(pinned).words_mut())
    }

    fn send(&mut self, at: u64, words: usize) -> Result<(), CudaError> {
        self.own(at, words * size_of::<u32>())?;
        let Self { gpu, staged, turn, clock, stage, .. } = self;
        let staging = &mut staged[*turn];
        let Some(words) = staging.words.as_ref().and_then(|pinned| pinned.words().get(..words)) else {
            return Err(CudaError::Unsupported { what: "more is sent than was staged".to_owned() });
        };
        gpu.bind()?;
        let copied = match staging.copied.take() {
            Some(event) => event,
            None => gpu.event(false)?,
        };
        let copied = staging.copied.insert(copied);
        clock.start(gpu, *stage)?;
        // SAFETY: the range is in this backend's memory. The words are changed or freed only after waiting for the copy's
        // event, or else for the stream.
        let sent = unsafe { result::memcpy_htod_async(at, words, gpu.raw_stream()) };
        let sent = sent.doing("copying to the GPU").and_then(|()| {
            let marked = copied.record(gpu.stream()).doing("marking a copy to the GPU");
            if marked.is_err() {
                gpu.wait()?;
            }
            marked
        });
        self.took(sent)
    }

    fn fetch(&mut self, at: u64, words: usize) -> Result<&[u32], CudaError> {
        self.own(at, words * size_of::<u32>())?;
        let pinned = match self.fetched.take() {
            Some(pinned) if pinned.words().len() >= words => pinned,
            _ => Pinned::new(&self.gpu, words)?,
        };
        let pinned = self.fetched.insert(pinned);
        self.gpu.bind()?;
        self.clock.start(&self.gpu, self.stage)?;
        let to = &mut pinned.words_mut()[..words];
        // SAFETY: the range is in this backend's memory. The stream is waited for before anybody reads or frees the words.
        let copied = unsafe { result::memcpy_dtoh_async(to, at, self.gpu.raw_stream()) };
        let timed = self.took(copied.doing("copying from the GPU"));
        self.gpu.wait()?;
        timed?;
        self.clock.settle()?;
        Ok(self.fetched.as_ref().and_then(|pinned| pinned.words().get(..words)).unwrap_or_default())
    }

    unsafe fn run(&mut self, commands: &[Command]) -> Result<(), CudaError> {
        self.gpu.bind()?;
        self.clock.start(&self.gpu, self.stage)?;
        // SAFETY: as the caller promises.
        let issued = unsafe { self.issue(commands, self.wait_for_each) };
        self.took(issued)
    }

    unsafe fn capture(&mut self, commands: &[Command], key: GraphKey) -> Result<CudaGraph, CudaError> {
        self.gpu.wait()?;
        let gpu = self.gpu.clone();
        // SAFETY: as the caller promises.
        CudaGraph::capture(&gpu, key, || unsafe { self.issue(commands, false) })
    }

    fn graph_bytes(&self, graph: &CudaGraph) -> usize {
        graph.bytes()
    }

    unsafe fn replay(&mut self, graph: &CudaGraph) -> Result<(), CudaError> {
        self.gpu.bind()?;
        self.clock.start(&self.gpu, self.stage)?;
        let launched = graph.launch();
        self.took(launched)
    }

    fn busy(&mut self) -> DeviceTimes {
        // An error stays in the context, and the next fetch reports it.
        let _ = self.gpu.wait().and_then(|()| self.clock.settle());
        self.clock.take()
    }
}

/// A command in words, for an error.
fn described(command: &Command) -> String {
    match command {
        Command::Launch(ReadyLaunch { kernel, grid, block, shared, arguments }) => {
            let arguments: Vec<String> = arguments.iter().map(|word| format!("{word:#x}")).collect();
            let arguments = arguments.join(", ");
            format!(
                "kernel {kernel}, grid {grid:?}, {block} threads, {shared} bytes of shared memory, arguments {arguments}"
            )
        }
        Command::Product { shape, .. } => format!("cuBLASLt's product of {shape:?}"),
    }
}

impl Drop for GpuBackend {
    fn drop(&mut self) {
        // Memory must not be freed while anything that uses it still runs. Nobody is left to report an error to.
        let _ = self.gpu.wait();
    }
}
