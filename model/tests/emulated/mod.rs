//! The CUDA device over emulated kernels: everything but the driver is what runs on a GPU.
#![allow(dead_code, reason = "each test file takes what it needs")]

use std::collections::HashMap;
use std::rc::Rc;

use pagedraft_block_manager::{Arena, GroupId};
use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_model::cuda::{
    Backend, Command, CudaArena, CudaDevice, CudaError, CudaOptions, Purpose, ReadyLaunch, attention_shape,
    sources,
};
use pagedraft_model::{DeviceTimes, Dtype, GraphKey, Stage};

use crate::emulator::{Arg, Buffer, Launch, Module, Random};

/// Host memory, in which each allocation ends where nothing may be touched, and kernels compiled for the CPU.
pub struct Emulated {
    modules: HashMap<&'static str, Module>,
    memory: Vec<Rc<Buffer<u8>>>,
    staged: Vec<u32>,
    fetched: Vec<u32>,
    random: Random,
    pub multiprocessors: u32,
    /// Bytes that were allocated.
    pub allocated: usize,
    /// Names of the kernels that ran, in order.
    pub ran: Vec<&'static str>,
}

impl Emulated {
    /// The kernels of a model.
    pub fn new(config: &ModelConfig, options: &CudaOptions, multiprocessors: u32, seed: u64) -> Self {
        let defines = attention_shape(config, options).unwrap().defines();
        let mut modules = HashMap::new();
        for source in sources() {
            let module = Module::build(source.name, source.kernels, &defines);
            modules.extend(source.kernels.iter().map(|&kernel| (kernel, module)));
        }
        Self {
            modules,
            memory: Vec::new(),
            staged: Vec::new(),
            fetched: Vec::new(),
            random: Random(seed),
            multiprocessors,
            allocated: 0,
            ran: Vec::new(),
        }
    }

    fn launch(&mut self, launch: &ReadyLaunch) -> Result<(), CudaError> {
        let Some(module) = self.modules.get(launch.kernel) else {
            return Err(CudaError::NoKernel { kernel: launch.kernel.to_owned() });
        };
        assert!(launch.grid.iter().all(|&n| n > 0), "{launch:?}");
        assert!(launch.grid[1] <= 65_535 && launch.grid[2] <= 65_535 && launch.block <= 1024, "{launch:?}");
        let arguments: Vec<Arg> = launch.arguments.iter().map(|&word| Arg::U64(word)).collect();
        let ReadyLaunch { kernel, grid, block, shared, .. } = *launch;
        module.launch(Launch { kernel, grid, threads: block, shared, seed: self.random.next() }, &arguments);
        self.ran.push(kernel);
        Ok(())
    }
}

/// Zeroed memory.
fn memory(bytes: usize) -> Buffer<u8> {
    Buffer::filled(0u8, bytes.max(1).next_multiple_of(16))
}

/// An arena for this plan.
pub fn arena(plan: &Arena) -> CudaArena<Emulated> {
    CudaArena::over(plan, Rc::new(memory(plan.bytes())))
}

/// A device over emulated kernels, with an arena of its own.
pub fn device(
    config: &ModelConfig,
    options: &CudaOptions,
    plan: &Arena,
    (multiprocessors, seed): (u32, u64),
) -> CudaDevice<Emulated> {
    let backend = Emulated::new(config, options, multiprocessors, seed);
    CudaDevice::on(backend, options, config, &arena(plan), GroupId(0)).unwrap()
}

impl Backend for Emulated {
    type Graph = Vec<Command>;
    type Shared = Rc<Buffer<u8>>;

    fn adopt(&mut self, shared: &Rc<Buffer<u8>>) -> u64 {
        self.memory.push(Rc::clone(shared));
        shared.all().as_ptr().addr() as u64
    }

    fn multiprocessors(&self) -> u32 {
        self.multiprocessors
    }

    fn open_products(&mut self, _: Dtype) -> Result<(), CudaError> {
        Err(CudaError::Unsupported { what: "the emulator has no library of products".to_owned() })
    }

    fn enter(&mut self, _: Stage) {}

    fn allocate(&mut self, bytes: usize, _: Purpose) -> Result<u64, CudaError> {
        let buffer = Rc::new(memory(bytes));
        let at = buffer.all().as_ptr().addr() as u64;
        self.memory.push(buffer);
        self.allocated += bytes;
        Ok(at)
    }

    fn write(&mut self, at: u64, bytes: &[u8]) -> Result<(), CudaError> {
        // SAFETY: addresses come out of `allocate`; beyond its end a page faults.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), at as *mut u8, bytes.len()) };
        Ok(())
    }

    fn copy(&mut self, from: u64, to: u64, bytes: usize) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { std::ptr::copy(from as *const u8, to as *mut u8, bytes) };
        Ok(())
    }

    fn staging(&mut self, words: usize) -> Result<&mut [u32], CudaError> {
        // What a step does not write must not be relied on.
        self.staged.clear();
        self.staged.resize(words, 0xdead_beef);
        Ok(&mut self.staged)
    }

    fn send(&mut self, at: u64, words: usize) -> Result<(), CudaError> {
        // SAFETY: as above.
        unsafe { std::ptr::copy_nonoverlapping(self.staged[..words].as_ptr(), at as *mut u32, words) };
        Ok(())
    }

    fn fetch(&mut self, at: u64, words: usize) -> Result<&[u32], CudaError> {
        self.fetched.clear();
        // SAFETY: as above.
        self.fetched.extend_from_slice(unsafe { std::slice::from_raw_parts(at as *const u32, words) });
        Ok(&self.fetched)
    }

    unsafe fn run(&mut self, commands: &[Command]) -> Result<(), CudaError> {
        commands.iter().try_for_each(|command| match command {
            Command::Launch(launch) => self.launch(launch),
            Command::Product { .. } => panic!("the deterministic device asks for no library's product"),
        })
    }

    unsafe fn capture(&mut self, commands: &[Command], _: GraphKey) -> Result<Vec<Command>, CudaError> {
        Ok(commands.to_vec())
    }

    fn graph_bytes(&self, graph: &Vec<Command>) -> usize {
        size_of_val(graph.as_slice())
    }

    unsafe fn replay(&mut self, graph: &Vec<Command>) -> Result<(), CudaError> {
        // SAFETY: the commands were run before.
        unsafe { self.run(graph) }
    }

    fn busy(&mut self) -> DeviceTimes {
        DeviceTimes::default()
    }
}
