//! The loop that sends requests and takes note of what comes back.

use std::collections::HashSet;
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::time::Duration;

use pagedraft_workloads::dataset::DatasetError;
use pagedraft_workloads::measures::Recorder;
use pagedraft_workloads::replay::{PlannedRequest, RequestLine};
use pagedraft_workloads::run::RunDirectory;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval};

use super::pacer::pace;
use super::{News, Prepared, Target, Teller, What};
use crate::cli::interrupt;
use crate::cli::live::{AHEAD, Before, Clock, Seats, prepare};
use crate::cli::replay::progress::Progress;
use crate::cli::replay::workload::bad;

/// How often Ctrl-C is looked for.
const LOOK: Duration = Duration::from_millis(20);
/// The most requests whose time has come and that wait to be sent.
const DUE: usize = 1024;

/// Writes the lines, and shows the progress.
pub struct Watch {
    pub directory: RunDirectory,
    pub progress: Progress,
}

/// Whoever is to be sent a workload, and how.
pub struct Drive<'a, T> {
    pub target: T,
    pub before: &'a Before,
    pub max_concurrency: Option<u32>,
}

impl<T: Target> Drive<'_, T> {
    /// Sends all requests and reads all answers. Returns `false` if Ctrl-C ended it.
    pub fn run(
        self,
        runtime: &Runtime,
        source: impl Iterator<Item = Result<Prepared<T::Made>, DatasetError>> + Send,
        recorder: &mut Recorder,
        watch: &mut Watch,
    ) -> anyhow::Result<bool> {
        std::thread::scope(|scope| {
            let (ahead, prepared) = sync_channel(AHEAD);
            scope.spawn(move || prepare(source, &ahead));
            let first = loop {
                match prepared.recv_timeout(LOOK) {
                    Ok(first) => break first,
                    Err(_) if interrupt::pressed() => return Ok(false),
                    Err(RecvTimeoutError::Timeout) => {}
                    Err(RecvTimeoutError::Disconnected) => return Ok(true),
                }
            };
            // The run begins when there is something to send.
            let clock = Clock::start(self.before.end_ns);
            let (send, due) = mpsc::channel(DUE);
            let before = self.before;
            scope.spawn(move || pace(first, &prepared, before, clock, &send));
            let (news, told) = mpsc::unbounded_channel();
            let seats = self.max_concurrency.map(|count| Seats::new(count, before.end_ns));
            let flight = Flight {
                drive: self,
                recorder,
                watch,
                clock,
                seats,
                news,
                in_flight: 0,
                resumed: HashSet::new(),
                tokens: 0,
            };
            runtime.block_on(flight.run(due, told))
        })
    }
}

/// The requests in flight.
struct Flight<'a, T> {
    drive: Drive<'a, T>,
    recorder: &'a mut Recorder,
    watch: &'a mut Watch,
    clock: Clock,
    /// The seats, if the number of requests in flight is limited.
    seats: Option<Seats>,
    news: mpsc::UnboundedSender<News>,
    in_flight: u32,
    /// The names of requests in flight that had been sent before the run was stopped.
    resumed: HashSet<String>,
    /// The number of tokens that came since the progress was shown.
    tokens: u64,
}

impl<T: Target> Flight<'_, T> {
    async fn run(
        mut self,
        mut due: mpsc::Receiver<Result<Prepared<T::Made>, DatasetError>>,
        mut told: mpsc::UnboundedReceiver<News>,
    ) -> anyhow::Result<bool> {
        let mut tick = interval(LOOK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut open = true;
        while open || self.in_flight > 0 {
            let has_seat = !self.seats.as_ref().is_some_and(Seats::are_taken);
            tokio::select! {
                record = due.recv(), if open && has_seat => match record {
                    Some(record) => self.take(record.map_err(bad)?)?,
                    None => open = false,
                },
                Some(news) = told.recv() => self.hear(news)?,
                _ = tick.tick() => {
                    if interrupt::pressed() {
                        return Ok(false);
                    }
                    self.show();
                }
            }
        }
        Ok(true)
    }

    fn take(&mut self, record: Prepared<T::Made>) -> anyhow::Result<()> {
        match record {
            Prepared::Request(request, made) => {
                self.send(request, made);
                Ok(())
            }
            Prepared::Skipped(skipped) => {
                let line = self.recorder.skip(&skipped);
                self.write(line)
            }
        }
    }

    fn send(&mut self, request: PlannedRequest, made: T::Made) {
        let Drive { before, max_concurrency, .. } = &self.drive;
        // A request without an arrival time should have been sent when a seat became free.
        let free_ns = self.seats.as_mut().and_then(Seats::take).unwrap_or(before.end_ns);
        let intended_ns = request.arrival_ns.unwrap_or(free_ns);
        if before.sent(&request, *max_concurrency) {
            self.resumed.insert(request.index.to_string());
        }
        let ticket = self.recorder.send(&request, intended_ns, self.clock.now_ns());
        self.in_flight += 1;
        self.drive.target.send(request, made, Teller { ticket, news: self.news.clone(), clock: self.clock });
    }

    fn hear(&mut self, News { ticket, what }: News) -> anyhow::Result<()> {
        match what {
            What::Tokens { at_ns, tokens } => {
                self.recorder.received(ticket, at_ns, tokens);
                self.tokens += u64::from(tokens);
                Ok(())
            }
            What::Ended { end, retries } => {
                self.in_flight -= 1;
                let (at_ns, line) = match end {
                    Ok(end) => (end.at_ns, self.recorder.end_stream(ticket, end, retries)),
                    Err(failure) => (failure.at_ns, self.recorder.fail_stream(ticket, failure, retries)),
                };
                if let Some(seats) = &mut self.seats {
                    seats.give_back(at_ns);
                }
                self.write(line)
            }
        }
    }

    fn write(&mut self, mut line: RequestLine) -> anyhow::Result<()> {
        line.resumed = self.resumed.remove(&line.request_id);
        Ok(self.watch.directory.write(&line)?)
    }

    fn show(&mut self) {
        let (tokens, in_flight) = (std::mem::take(&mut self.tokens), self.in_flight);
        let at_s = self.clock.now_ns() as f64 / 1e9;
        let progress = &mut self.watch.progress;
        progress.stepped(tokens, || format!("{in_flight} in flight"), at_s, self.recorder.done());
    }
}
