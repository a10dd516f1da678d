//! Cuts a dataset to the window that was asked for, and checks the order of its times.

use std::path::PathBuf;

use super::error::DatasetError;
use super::options::DatasetOptions;
use super::quantity::{self, SECOND};
use super::records::{Record, Records};
use super::sample::Item;

/// The items of the window, with times that count from its start.
pub(super) struct Window {
    records: Records,
    /// The first record, which was read when the window was opened.
    first: Option<Record>,
    path: Option<PathBuf>,
    from_ns: Option<i64>,
    to_ns: Option<i64>,
    limit: Option<u64>,
    /// The time of the first record that has one.
    origin: Option<i64>,
    /// The time and the line of the record before.
    last: Option<(i64, u64)>,
    given: u64,
    over: bool,
}

impl Window {
    /// Reads the first record at once, so that a file of another kind is reported at once.
    pub(super) fn open(mut records: Records, options: &DatasetOptions) -> Result<Self, DatasetError> {
        let bound = |flag: &str, value: Option<f64>| {
            let Some(value) = value else { return Ok(None) };
            match quantity::nanoseconds(value, SECOND, &value.to_string()) {
                Ok(ns) => Ok(Some(ns)),
                Err(what) => Err(DatasetError::Options(format!("{flag} {what}"))),
            }
        };
        let (from_ns, to_ns) = (bound("--from", options.from_s)?, bound("--to", options.to_s)?);
        if to_ns.is_some_and(|to| to <= from_ns.unwrap_or(0)) {
            return Err(DatasetError::Options("--to must be later than --from".into()));
        }
        if options.limit == Some(0) {
            return Err(DatasetError::Options("--limit is 0; expected at least 1".into()));
        }
        let path = options.path.clone();
        let first = match records.next().transpose()? {
            Some(first) => first,
            None => return Err(whole(path, "has no records")),
        };
        if first.time_ns.is_none() && (from_ns.is_some() || to_ns.is_some()) {
            return Err(whole(
                path,
                "has no arrival times, so that --from and --to have no meaning; use --limit",
            ));
        }
        Ok(Self {
            records,
            first: Some(first),
            path,
            from_ns,
            to_ns,
            limit: options.limit,
            origin: None,
            last: None,
            given: 0,
            over: false,
        })
    }

    fn pull(&mut self) -> Result<Option<Item>, DatasetError> {
        while self.limit.is_none_or(|limit| self.given < limit) {
            let next = match self.first.take() {
                Some(first) => Some(first),
                None => self.records.next().transpose()?,
            };
            let Some(mut record) = next else { break };
            if let Some(time) = record.time_ns {
                let since_origin = self.in_order(time, line_of(&record.item))?;
                if self.to_ns.is_some_and(|to| since_origin >= to) {
                    break;
                }
                let from = self.from_ns.unwrap_or(0);
                if since_origin < from {
                    continue;
                }
                *arrival_of(&mut record.item) = Some((since_origin - from) as f64 / SECOND as f64);
            } else if self.from_ns.is_some() || self.to_ns.is_some() {
                let what =
                    "this record has no arrival time, so that --from and --to can't tell whether it is meant";
                return Err(self.line_error(line_of(&record.item), what.into()));
            }
            self.given += 1;
            return Ok(Some(record.item));
        }
        if self.given == 0 {
            let last = self.last.zip(self.origin).map_or(0, |((last, _), origin)| last - origin);
            let what = format!(
                "has no record in the window of --from and --to; the last one read comes {} s after the first",
                last as f64 / SECOND as f64
            );
            return Err(whole(self.path.clone(), &what));
        }
        Ok(None)
    }

    /// The nanoseconds since the first record. It is an error if the record before was later.
    fn in_order(&mut self, time: i64, line: u64) -> Result<i64, DatasetError> {
        let origin = *self.origin.get_or_insert(time);
        let since = |time: i64| time.saturating_sub(origin) as f64 / SECOND as f64;
        if let Some((before, line_before)) = self.last.filter(|&(before, _)| before > time) {
            let what = format!(
                "arrives {} s after the first record, line {line_before} before it {} s: times are not in order; \
                 sort the file by them",
                since(time),
                since(before)
            );
            return Err(self.line_error(line, what));
        }
        self.last = Some((time, line));
        Ok(time.saturating_sub(origin))
    }

    fn line_error(&self, line: u64, what: String) -> DatasetError {
        match self.path.clone() {
            Some(path) => DatasetError::Line { path, line, what },
            None => DatasetError::Options(what),
        }
    }
}

impl Iterator for Window {
    type Item = Result<Item, DatasetError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.over {
            return None;
        }
        let next = self.pull().transpose();
        self.over = !matches!(next, Some(Ok(_)));
        next
    }
}

/// An error that says what is wrong with a dataset as a whole.
fn whole(path: Option<PathBuf>, what: &str) -> DatasetError {
    match path {
        Some(path) => DatasetError::File { path, what: what.into() },
        None => DatasetError::Options(format!("the dataset {what}")),
    }
}

fn line_of(item: &Item) -> u64 {
    match item {
        Item::Sample(sample) => sample.line,
        Item::Skipped(skipped) => skipped.line,
    }
}

fn arrival_of(item: &mut Item) -> &mut Option<f64> {
    match item {
        Item::Sample(sample) => &mut sample.arrival_s,
        Item::Skipped(skipped) => &mut skipped.arrival_s,
    }
}
