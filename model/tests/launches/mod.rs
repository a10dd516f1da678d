//! Single kernels on a CUDA device, launched by hand: emulated in tests at small sizes, in the bench on a GPU at the sizes of real
//! models. Each is held to plain arithmetic in f64, and to its own bits: alone, among other rows, in every tile, and again and again.
#![allow(dead_code, clippy::unwrap_used, reason = "each file takes what it needs; a fault is a failed test")]

pub mod attention;
pub mod products;
pub mod rows;

use half::{bf16, f16};
use pagedraft_model::Dtype;
use pagedraft_model::cuda::{Backend, Command, Purpose, ReadyLaunch};

/// What a check found: its name, and what is wrong.
pub type Finding = (String, Result<(), String>);

/// SplitMix64.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    pub fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Between -1 and 1.
    pub fn value(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn values(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.value()).collect()
    }
}

pub fn narrow(dtype: Dtype, value: f32) -> u16 {
    match dtype {
        Dtype::F16 => f16::from_f32(value).to_bits(),
        _ => bf16::from_f32(value).to_bits(),
    }
}

pub fn widen(dtype: Dtype, bits: u16) -> f32 {
    match dtype {
        Dtype::F16 => f16::from_bits(bits).to_f32(),
        _ => bf16::from_bits(bits).to_f32(),
    }
}

/// Half the distance of neighbouring numbers, relative to them.
pub fn unit(dtype: Dtype) -> f64 {
    match dtype {
        Dtype::F16 => 1.0 / 2048.0,
        _ => 1.0 / 256.0,
    }
}

/// Random numbers of a 16-bit type.
pub fn halves(random: &mut Random, dtype: Dtype, n: usize) -> Vec<u16> {
    (0..n).map(|_| narrow(dtype, random.value())).collect()
}

pub fn bytes_of<T: Copy, const N: usize>(values: &[T], bytes: impl Fn(T) -> [u8; N]) -> Vec<u8> {
    values.iter().flat_map(|&value| bytes(value)).collect()
}

/// Memory on the device with these numbers in it.
pub fn put_halves<B: Backend>(backend: &mut B, values: &[u16]) -> u64 {
    put(backend, &bytes_of(values, u16::to_le_bytes))
}

pub fn put_floats<B: Backend>(backend: &mut B, values: &[f32]) -> u64 {
    put(backend, &bytes_of(values, f32::to_le_bytes))
}

pub fn put_words<B: Backend>(backend: &mut B, values: &[u32]) -> u64 {
    put(backend, &bytes_of(values, u32::to_le_bytes))
}

pub fn put<B: Backend>(backend: &mut B, bytes: &[u8]) -> u64 {
    let at = space(backend, bytes.len());
    backend.write(at, bytes).unwrap();
    at
}

/// Memory on the device, all zeroes.
pub fn space<B: Backend>(backend: &mut B, bytes: usize) -> u64 {
    // Reads are of whole words.
    backend.allocate(bytes.next_multiple_of(16).max(16), Purpose::Step).unwrap()
}

/// Fills memory with ones: NaNs of every type, and no token.
pub fn poison<B: Backend>(backend: &mut B, at: u64, bytes: usize) {
    backend.write(at, &vec![0xff; bytes]).unwrap();
}

pub fn words<B: Backend>(backend: &mut B, at: u64, count: usize) -> Vec<u32> {
    backend.fetch(at, count).unwrap().to_vec()
}

pub fn halves_at<B: Backend>(backend: &mut B, at: u64, count: usize) -> Vec<u16> {
    let words = backend.fetch(at, count.div_ceil(2)).unwrap();
    let both = words.iter().flat_map(|&word| [word as u16, (word >> 16) as u16]);
    both.take(count).collect()
}

/// Launches a kernel with these arguments, each in the first bytes of its word.
pub fn launch<B: Backend>(
    backend: &mut B,
    kernel: &'static str,
    grid: [u32; 3],
    (block, shared): (u32, u32),
    arguments: &[u64],
) {
    let launch = ReadyLaunch { kernel, grid, block, shared, arguments: arguments.to_vec() };
    // SAFETY: callers give a kernel its list, over memory that they allocated large enough.
    unsafe { backend.run(&[Command::Launch(launch)]) }.unwrap();
}

/// A number's bits as an argument.
pub fn float(value: f32) -> u64 {
    u64::from(value.to_bits())
}

/// A result that should have certain bits: how many differ, where the first is and what both have there, the greatest difference as
/// numbers, the NaNs of both, and whether the kernel repeats itself.
pub fn same_bits(
    got: &[u32],
    want: &[u32],
    width: usize,
    number: impl Fn(u32) -> f32,
    again: impl FnOnce() -> Vec<u32>,
) -> Result<(), String> {
    if got == want {
        return Ok(());
    }
    let differing: Vec<usize> = (0..got.len()).filter(|&i| got[i] != want[i]).collect();
    let nans = |of: &[u32]| of.iter().filter(|&&bits| number(bits).is_nan()).count();
    let greatest = (differing.iter())
        .map(|&i| (number(got[i]) - number(want[i])).abs())
        .fold(0.0f32, |most, error| if error.is_nan() { most } else { most.max(error) });
    let rows: std::collections::BTreeSet<usize> = differing.iter().map(|i| i / width.max(1)).collect();
    let first = differing[0];
    let again = if again() == got { "the same bits" } else { "OTHER bits" };
    Err(format!(
        "{} of {} differ, in {} rows; first in row {}, column {}: {:#010x} ({}) where {:#010x} ({}) goes; greatest difference \
         {greatest:e}; NaNs: {} where {} go; a second run gives {again}",
        differing.len(),
        got.len(),
        rows.len(),
        first / width.max(1),
        first % width.max(1),
        got[first],
        number(got[first]),
        want[first],
        number(want[first]),
        nans(got),
        nans(want),
    ))
}

/// The worst of some numbers that should be near others: `(got, want, allowed)` each.
#[derive(Default)]
pub struct Nearness {
    seen: usize,
    wrong: usize,
    worst: f64,
    first: Option<String>,
}

impl Nearness {
    pub fn add(&mut self, place: impl FnOnce() -> String, got: f64, want: f64, allowed: f64) {
        self.seen += 1;
        let error = (got - want).abs();
        let share = if error.is_nan() { f64::INFINITY } else { error / allowed };
        self.worst = self.worst.max(share);
        if share > 1.0 {
            self.wrong += 1;
            self.first.get_or_insert_with(|| format!("{}: {got} where {want} +- {allowed:e} goes", place()));
        }
    }

    pub fn verdict(self) -> Result<(), String> {
        match self.first {
            None if self.seen > 0 => Ok(()),
            None => Err("nothing was compared".to_owned()),
            Some(first) => {
                let Self { seen, wrong, worst, .. } = self;
                Err(format!(
                    "{wrong} of {seen} are wrong, by up to {worst:.1} times what is allowed; first {first}"
                ))
            }
        }
    }
}
