//! Measures how long the GPU was at work, with its own events.

use std::collections::VecDeque;
use std::time::Duration;

use cudarc::driver::CudaEvent;

use super::driver::Gpu;
use super::error::{CudaError, Doing};
use crate::device_times::{DeviceTimes, Stage};

/// When this many spans are open, those that have ended are added up before another one begins.
const MANY: usize = 32;

/// Measures spans of the stream. Nothing waits for it.
#[derive(Debug, Default)]
pub(super) struct Clock {
    /// The spans in the order of the stream, so that the first one ends first.
    open: VecDeque<Span>,
    /// Events that can be used again.
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
    /// Begins a span of the stream.
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

    /// Ends the span that began last.
    pub fn stop(&mut self, gpu: &Gpu) -> Result<(), CudaError> {
        let Some(span) = self.open.back() else { return Ok(()) };
        let ended = span.end.record(gpu.stream()).doing("taking the time");
        if ended.is_err() {
            self.give_up();
        }
        ended
    }

    /// Drops the span that began last, because the work in it failed to be put on the stream.
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

    /// Adds up all spans. The caller must have waited for the stream.
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

    /// The times that were added up since the last call.
    pub fn take(&mut self) -> DeviceTimes {
        std::mem::take(&mut self.times)
    }
}
