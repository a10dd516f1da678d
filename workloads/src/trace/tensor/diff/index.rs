//! The events of the second trace, by what they are compared with.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use crate::Error;
use crate::trace::tensor::reader::TensorLines;
use crate::trace::tensor::record::{LEFT_OUT, TensorRecord, TensorValue};

/// What an event is found by. Events of one canvas differ in their pass, those of other requests in their positions.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Key {
    request_id: String,
    pass: Option<(Option<u32>, u32)>,
    layer: Option<u16>,
    event: String,
}

impl Key {
    fn of(record: &TensorRecord) -> Self {
        Self {
            request_id: record.request_id.clone(),
            pass: record.pass.map(|pass| (record.block, pass)),
            layer: record.layer,
            event: record.event.clone(),
        }
    }
}

/// An event, with the positions of its rows that belong to the sequence.
#[derive(Debug)]
pub(super) struct Event {
    pub record: TensorRecord,
    pub positions: Vec<u32>,
    pub matched: bool,
}

/// The events of a trace.
#[derive(Debug, Default)]
pub(super) struct Other {
    pub events: Vec<Event>,
    /// For each key the events by the first of their positions. If a request was computed again, the later one counts.
    index: HashMap<Key, BTreeMap<u32, usize>>,
    pub left_out: u64,
}

impl Other {
    /// Reads a directory; `None` if it has no trace of tensors.
    pub fn read(directory: &Path) -> Result<Option<Self>, Error> {
        let Some(mut lines) = TensorLines::open(directory)? else { return Ok(None) };
        let mut other = Self::default();
        while let Some(record) = lines.next_event()? {
            if record.event == LEFT_OUT {
                other.left_out += left_out(&record);
                continue;
            }
            let positions = record.kept_positions();
            if record.pass.is_none() && positions.is_empty() {
                continue;
            }
            let first = positions.first().copied().unwrap_or(0);
            other.index.entry(Key::of(&record)).or_default().insert(first, other.events.len());
            other.events.push(Event { record, positions, matched: false });
        }
        Ok(Some(other))
    }

    /// The event that has a row of this position, under the key of `record`, and which row it is.
    pub fn row(&self, record: &TensorRecord, position: u32) -> Option<(usize, usize)> {
        let events = self.index.get(&Key::of(record))?;
        let before = events.range(..=position).rev();
        before
            .take(8)
            .find_map(|(_, &at)| Some((at, self.events[at].positions.binary_search(&position).ok()?)))
    }

    /// The event that `record` is compared with as a whole. Of a request without a canvas it has the row of position `first`. A pass over a
    /// canvas may have run other rows.
    pub fn partner(&self, record: &TensorRecord, first: u32) -> Option<usize> {
        if record.pass.is_none() {
            return self.row(record, first).map(|(at, _)| at);
        }
        let events = self.index.get(&Key::of(record))?;
        events.get(&first).or_else(|| events.first_key_value().map(|(_, at)| at)).copied()
    }

    /// The one event of another name about the same pass as `record`, or about the same request.
    pub fn beside(&self, record: &TensorRecord, event: &str) -> Option<&TensorRecord> {
        let key = Key { layer: None, event: event.to_owned(), ..Key::of(record) };
        let at = *self.index.get(&key)?.first_key_value()?.1;
        Some(&self.events[at].record)
    }
}

/// How many events a last line says were left out.
pub(super) fn left_out(record: &TensorRecord) -> u64 {
    match record.values.get("entries") {
        Some(TensorValue::Count(count)) => *count,
        _ => 0,
    }
}
