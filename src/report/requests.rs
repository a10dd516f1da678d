//! Reads `requests.jsonl` into columns with what the charts need of each request.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;

use pagedraft_workloads::json_fault;
use pagedraft_workloads::replay::{RequestLine, Status};
use pagedraft_workloads::run::REQUESTS_FILE;

/// The longest line that is read, in bytes. A line with token ids and text of 32,768 tokens has about 400
/// KB.
const LONGEST_LINE: u64 = 64 << 20;

/// What is kept of a request that finished.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Finished {
    pub(super) intended_s: f64,
    pub(super) sent_s: f64,
    pub(super) first_s: f64,
    pub(super) finish_s: f64,
    pub(super) ttft_ms: f64,
    pub(super) tpot_ms: Option<f64>,
    pub(super) e2el_ms: f64,
    /// Not known of requests that a server ran.
    pub(super) queue_ms: Option<f64>,
    pub(super) prompt_tokens: u32,
    pub(super) output_tokens: u32,
    /// Not known if a server ran it that does not tell.
    pub(super) cached_tokens: Option<u32>,
}

/// The requests of a run.
#[derive(Clone, Debug, Default)]
pub(super) struct Requests {
    /// The requests that finished, in the order of the file.
    pub(super) finished: Vec<Finished>,
    /// The number of requests that were skipped, by reason.
    pub(super) skipped: BTreeMap<String, u64>,
    /// The number of requests that failed, by message.
    pub(super) failed: BTreeMap<String, u64>,
    /// The number of requests that ended, by finish reason.
    pub(super) ends: BTreeMap<String, u64>,
    /// For each position, the number of drafts scored there and the number accepted.
    pub(super) acceptance: Vec<(u64, u64)>,
    pub(super) preemptions: u64,
    pub(super) resumed: u64,
    /// The sum of the scores, and their number.
    pub(super) score: (f64, u64),
    /// What is odd about the file, for people.
    pub(super) warnings: Vec<String>,
}

/// The most kinds of failure that are counted separately.
const MOST_REASONS: usize = 20;

impl Requests {
    /// Reads the file in `directory`; `None` if there is none.
    ///
    /// # Errors
    ///
    /// The file can't be read, or a line of it is not a request. The error names the line and the reason.
    pub(super) fn read(directory: &Path) -> anyhow::Result<Option<Self>> {
        let path = directory.join(REQUESTS_FILE);
        if !path.is_file() {
            return Ok(None);
        }
        let mut requests = Self::default();
        let mut file = BufReader::with_capacity(1 << 18, File::open(&path)?);
        let (mut line, mut number) = (Vec::new(), 0u64);
        loop {
            line.clear();
            if file.by_ref().take(LONGEST_LINE).read_until(b'\n', &mut line)? == 0 {
                return Ok(Some(requests));
            }
            number += 1;
            match json_fault::parse::<RequestLine>(&line) {
                Ok(request) => requests.take(&request),
                Err(_) if line.last() != Some(&b'\n') && (line.len() as u64) < LONGEST_LINE => {
                    let cut = format!("The last line of {REQUESTS_FILE} ({number}) is cut; it is left out.");
                    requests.warnings.push(cut);
                }
                Err(e) => anyhow::bail!("{}:{number}: no request: {e}", path.display()),
            }
        }
    }

    fn take(&mut self, line: &RequestLine) {
        self.preemptions += u64::from(line.num_preemptions);
        self.resumed += u64::from(line.resumed);
        match line.status {
            Status::Skipped => {
                let reason = line.skip_reason.and_then(|reason| serde_json::to_value(reason).ok());
                let name = reason.as_ref().and_then(|reason| reason.as_str()).unwrap_or("no reason given");
                *self.skipped.entry(name.to_owned()).or_default() += 1;
                return;
            }
            Status::Failed => {
                let mut what: String =
                    line.error.as_deref().unwrap_or("no reason given").chars().take(200).collect();
                if self.failed.len() >= MOST_REASONS && !self.failed.contains_key(&what) {
                    "other reasons".clone_into(&mut what);
                }
                *self.failed.entry(what).or_default() += 1;
                return;
            }
            Status::Finished => {}
        }
        *self.ends.entry(line.finish_reason.clone().unwrap_or_default()).or_default() += 1;
        if let Some(score) = line.score.filter(|score| score.is_finite()) {
            self.score = (self.score.0 + score, self.score.1 + 1);
        }
        // No proposer drafts beyond this position.
        let places = line.drafted_by_position.iter().zip(&line.accepted_by_position).take(256);
        for (i, (&drafted, &accepted)) in places.enumerate() {
            if self.acceptance.len() <= i {
                self.acceptance.push((0, 0));
            }
            self.acceptance[i].0 += u64::from(drafted);
            self.acceptance[i].1 += u64::from(accepted);
        }
        if let Some(finished) = finished(line) {
            self.finished.push(finished);
        }
    }

    /// When the first request should have been sent, and when the last one ended, in seconds.
    pub(super) fn span(&self) -> Option<(f64, f64)> {
        let from = self.finished.iter().map(|r| r.intended_s).reduce(f64::min)?;
        let to = self.finished.iter().map(|r| r.finish_s).reduce(f64::max)?;
        Some((from, to))
    }

    /// Whether a server ran them, which tells of tokens and not of steps.
    pub(super) fn of_server(&self) -> bool {
        !self.finished.is_empty() && self.finished.iter().all(|request| request.queue_ms.is_none())
    }

    /// The values of all requests that finished, for distributions.
    pub(super) fn values(&self, of: impl Fn(&Finished) -> Option<f64>) -> Vec<f64> {
        let mut values: Vec<f64> = self.finished.iter().filter_map(of).filter(|v| v.is_finite()).collect();
        values.sort_by(f64::total_cmp);
        values
    }
}

fn finished(line: &RequestLine) -> Option<Finished> {
    let intended_s = line.intended_arrival_s.or(line.sent_s)?;
    let finish_s = line.finish_s?;
    let first_s = line.first_token_s?;
    let found = Finished {
        intended_s,
        sent_s: line.sent_s.unwrap_or(intended_s),
        first_s,
        finish_s,
        ttft_ms: line.ttft_ms?,
        tpot_ms: line.tpot_ms,
        e2el_ms: line.e2el_ms?,
        queue_ms: line.queue_ms,
        prompt_tokens: line.prompt_tokens.unwrap_or(0),
        output_tokens: line.output_tokens,
        cached_tokens: line.cached_tokens,
    };
    [found.intended_s, found.finish_s, found.first_s, found.sent_s]
        .iter()
        .all(|s| s.is_finite())
        .then_some(found)
}
