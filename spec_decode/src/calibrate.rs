//! Measures what a forward pass of the loaded model costs.

use std::time::{Duration, Instant};

use pagedraft_attention::MetadataBuilder;
use pagedraft_attention::metadata::{MaskKind, PAD_SLOT};
use pagedraft_block_manager::BlockId;
use pagedraft_model::{Device, Runner, StepInputs};
use pagedraft_scheduler::CostCurve;

use crate::error::ExecuteError;
use crate::sampling::{Sampler, SamplingParams};

/// The numbers of token rows at which a curve is measured, in this order: the first span the range, the others lie
/// between.
const ROWS: [u32; 17] = [1, 8, 32, 4, 16, 64, 2, 128, 256, 3, 6, 12, 24, 48, 96, 5, 192];
/// At least this many points are measured, even beyond the time budget.
const LEAST_POINTS: usize = 3;
/// Each point is timed in this many passes, after one pass that warms up. The shortest time counts.
const PASSES: usize = 3;
/// Once the passes of a point have taken this long together, no further pass is run.
const LONG: Duration = Duration::from_millis(100);
/// The price of attention is measured at this many context tokens, or at as many as the pool has room for.
const CONTEXT: u32 = 1024;
const SEQUENCES: u32 = 8;
const QUERIES: u32 = 4;

/// Measures forward passes of rows with one token and no context, logits and greedy choices included, from one row up
/// to `most`. It stops when `budget` is spent, but measures three points at least. Nothing is written to the KV cache.
///
/// # Errors
///
/// The model or its device failed.
pub fn measure<D: Device>(
    runner: &mut Runner<D>,
    block_size: u32,
    num_blocks: u32,
    most: u32,
    budget: Duration,
) -> Result<CostCurve, ExecuteError> {
    let start = Instant::now();
    let limits = runner.limits();
    let most = most.min(limits.token_rows as u32);
    let mut probe =
        Probe { builder: MetadataBuilder::new(block_size)?, block_size, sampler: Sampler::default() };
    let mut points = Vec::new();
    for rows in ROWS.into_iter().filter(|&rows| rows <= most.max(1)) {
        if points.len() >= LEAST_POINTS && start.elapsed() > budget {
            break;
        }
        points.push((rows, probe.us(runner, Shape { sequences: rows, queries: 1, context: 0 })?));
    }
    points.sort_unstable_by_key(|&(rows, _)| rows);
    let room = num_blocks.saturating_mul(block_size).min(limits.max_model_len as u32).saturating_sub(QUERIES);
    let context = CONTEXT.min(room);
    let (mut us_per_context, mut us_per_read) = (0.0, 0.0);
    let sequences = most.min(limits.token_rows as u32 / QUERIES).min(SEQUENCES);
    if context > 0 && sequences > 0 {
        // We compare what a context adds to a pass with one query token a sequence and to one with several, because a
        // context is read once for all query tokens of its sequence.
        let mut added = |queries| -> Result<f64, ExecuteError> {
            let with = probe.us(runner, Shape { sequences, queries, context })?;
            let without = probe.us(runner, Shape { sequences, queries, context: 0 })?;
            Ok((with - without).max(0.0) / f64::from(sequences) / f64::from(context))
        };
        let (one, several) = (added(1)?, added(QUERIES)?);
        us_per_context = ((several - one) / f64::from(QUERIES - 1)).clamp(0.0, one);
        us_per_read = one - us_per_context;
    }
    Ok(CostCurve { points, us_per_context, us_per_read })
}

/// A pass to be timed.
#[derive(Clone, Copy)]
struct Shape {
    sequences: u32,
    queries: u32,
    context: u32,
}

struct Probe {
    builder: MetadataBuilder,
    block_size: u32,
    sampler: Sampler,
}

impl Probe {
    /// The microseconds that a pass of this shape takes.
    fn us<D: Device>(&mut self, runner: &mut Runner<D>, shape: Shape) -> Result<f64, ExecuteError> {
        let Shape { sequences, queries, context } = shape;
        // All sequences read the same blocks. What the blocks hold does not matter.
        let table: Vec<BlockId> = (0..(context + queries).div_ceil(self.block_size)).map(BlockId).collect();
        self.builder.begin();
        for _ in 0..sequences {
            self.builder.push_row(context, queries, &table, MaskKind::Causal)?;
        }
        let mut metadata = self.builder.take(Default::default());
        metadata.slot_mapping.fill(PAD_SLOT);
        // Every KV group is read as the first one: only the time counts.
        let groups = runner.model().kv().iter();
        let groups = groups.map(|group| {
            let mut metadata = metadata.clone();
            metadata.window = group.window;
            metadata
        });
        let groups: Vec<_> = groups.collect();
        let rows = sequences * queries;
        let positions = (0..rows).map(|row| context + row % queries).collect();
        let inputs = StepInputs { tokens: vec![0; rows as usize], positions, groups };
        let all: Vec<u32> = (0..rows).collect();
        let (begun, mut least) = (Instant::now(), f64::INFINITY);
        for pass in 0..=PASSES {
            if pass > 1 && begun.elapsed() > LONG {
                break;
            }
            let start = Instant::now();
            for segment in 0..runner.model().num_segments() {
                runner.rehearse_segment(segment, &inputs)?;
            }
            for some in all.chunks(runner.limits().logit_rows) {
                if runner.chooses() {
                    let choices = vec![SamplingParams::greedy().choice(0); some.len()];
                    runner.choose(some, &choices)?;
                    continue;
                }
                let logits = runner.logits(some)?;
                for i in 0..some.len() {
                    // Only the time counts, so the token is dropped, and so is an error of the sampler.
                    let _ = self.sampler.choose(logits.row(i), &SamplingParams::greedy(), 0);
                }
            }
            if pass > 0 {
                least = least.min(start.elapsed().as_secs_f64() * 1e6);
            }
        }
        Ok(least)
    }
}
