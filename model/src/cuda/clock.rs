//! How long the GPU was at work, by its own events.

use std::collections::VecDeque;
use std::time::Duration;

use cudarc::driver::CudaEvent;

use super::driver::Gpu;
use super::error::{CudaError, Doing};
use crate::device_times::{DeviceTimes, Stage};

/// Spans that are left open before it is asked which have ended.
const MANY: usize = 32;

/// Takes the time of spans of the stream; nobody waits for it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// In the stream's order, so that the first end first.
    open: VecDeque<Span>,
    /// Events to be used again.
    spare: Vec<(CudaEvent, CudaEvent)>,
    times: DeviceTimes,
}

#[derive(Debug)]
struct Span {
    stage: Stage,
    start: CudaEvent,
    end: CudaEvent,
}

impl Clock {
    /// A span of the stream begins.
    pub fn start(&mut self, gpu: &Gpu, stage: Stage) -> Result<(), CudaError> {
        if self.open.len() >= MANY {
            self.collect()?;
        }
        let (start, end) = match self.spare.pop() {
            Some(pair) => pair,
            None => (gpu.event(true)?, gpu.event(true)?),
        };
        start.record(gpu.stream()).doing("taking the time")?;
        self.open.push_back(Span { stage, start, end });
        Ok(())
    }

    /// It ends.
    pub fn stop(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        let Some(span) = self.open.back() else { return Ok(()) };
        let ended = span.end.record(gpu.stream()).doing("taking the time");
        if ended.is_err() {
            self.give_up();
        }
        ended
    }

    /// It has no end: what it was to take failed.
    pub fn give_up(&mut self) {
        self.spare.extend(self.open.pop_back().map(|span| (span.start, span.end)));
    }

    /// Adds up the spans that have ended by now.
    fn collect(&mut self) -> Result<(), CudaError> {
        while let Some(span) = self.open.front() {
            if !span.end.try_is_complete().doing("taking the time")? {
                break;
            }
            self.add_first()?;
        }
        Ok(())
    }

    /// Adds up all of them. The stream was waited for.
    pub fn settle(&mut self) -> Result<(), CudaError> {
        while !self.open.is_empty() {
            self.add_first()?;
        }
        Ok(())
    }

    fn add_first(&mut self) -> Result<(), CudaError> {
        let Some(Span { stage, start, end }) = self.open.pop_front() else { return Ok(()) };
        let milliseconds = start.elapsed_ms(&end).doing("taking the time")?;
        self.times.add(stage, Duration::from_secs_f64(f64::from(milliseconds.max(0.0)) * 1e-3));
        self.spare.push((start, end));
        Ok(())
    }

    /// What was added up since this was last asked.
    pub fn take(&mut self) -> DeviceTimes {
        std::mem::take(&mut self.times)
    }
}
