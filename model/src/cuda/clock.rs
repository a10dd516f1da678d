//! How long the GPU was at work, by its own events.

use std::time::Duration;

use cudarc::driver::CudaEvent;

use super::driver::Gpu;
use super::error::{CudaError, Doing};

/// Spans that may be open before somebody waits for them.
const MOST: usize = 64;

/// Takes the time of spans of the stream; nobody waits for it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    open: Vec<(CudaEvent, CudaEvent)>,
    /// Events to be used again.
    spare: Vec<(CudaEvent, CudaEvent)>,
    busy: Duration,
}

impl Clock {
    /// A span of the stream begins.
    pub fn start(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        if self.open.len() >= MOST {
            self.settle()?;
        }
        let pair = match self.spare.pop() {
            Some(pair) => pair,
            None => (gpu.event(true)?, gpu.event(true)?),
        };
        pair.0.record(gpu.stream()).doing("taking the time")?;
        self.open.push(pair);
        Ok(())
    }

    /// It ends.
    pub fn stop(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        let Some((_, end)) = self.open.last() else { return Ok(()) };
        let ended = end.record(gpu.stream()).doing("taking the time");
        if ended.is_err() {
            self.give_up();
        }
        ended
    }

    /// It has no end: what it was to take failed.
    pub fn give_up(&mut self) {
        self.spare.extend(self.open.pop());
    }

    /// Adds up what has been run; waits for it.
    pub fn settle(&mut self) -> Result<(), CudaError> {
        for (start, end) in self.open.drain(..) {
            let milliseconds = start.elapsed_ms(&end).doing("taking the time")?;
            self.busy += Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) * 1e-3);
            self.spare.push((start, end));
        }
        Ok(())
    }

    /// What was added up since this was last asked.
    pub fn take(&mut self) -> Duration {
        std::mem::take(&mut self.busy)
    }
}
