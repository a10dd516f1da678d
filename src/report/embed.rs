//! Encodes the trace for the page, as the JSON of its changes, deflated and in base64.

use std::collections::{BTreeSet, HashMap};
use std::io::Write;

use flate2::Compression;
use flate2::write::ZlibEncoder;
use pagedraft_workloads::trace::RowKind;
use serde::Serialize;

use super::blocks::Pool;
use super::step_delta::{FREED, RowDelta, StepDelta};

/// The data that the page's script reads. `block_state.js` describes the same form.
#[derive(Debug, Serialize)]
struct Embedded<'a> {
    block_size: u32,
    /// The sliding window of the layers, in tokens.
    #[serde(skip_serializing_if = "Option::is_none")]
    window: Option<u32>,
    num_blocks: u64,
    /// The ids of all blocks that are ever used, in ascending order. Everything else names a block by its
    /// index in this list.
    ids: &'a [u32],
    requests: &'a [String],
    start: Start,
    steps: Vec<Step>,
}

/// The pool before the first step.
#[derive(Debug, Serialize)]
struct Start {
    /// For each request: its number, the number of its tokens that have KV, and its blocks. An index beyond
    /// `ids` is a block that was given back behind the window.
    live: Vec<(u32, u64, Vec<u32>)>,
    published: Vec<u32>,
}

/// A step. Fields that are empty are left out. Lists of pairs and triples are flat.
#[derive(Debug, Default, Serialize)]
struct Step {
    /// The step's number.
    s: u64,
    /// Whether a graph was replayed.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    g: bool,
    /// Whether the engine was started anew.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    z: bool,
    /// The microseconds of each stage.
    t: [u64; 5],
    /// The rows, as [`rows`] encodes them.
    r: Vec<i64>,
    /// The requests that were preempted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    x: Vec<u32>,
    /// The requests that were aborted.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    b: Vec<u32>,
    /// The copied blocks: from, to.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    k: Vec<u32>,
    /// The table entries that were replaced: request, index, block.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    c: Vec<u32>,
    /// The blocks that were appended to tables: request, number of blocks, blocks.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    a: Vec<u32>,
    /// The blocks that left the prefix cache.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    h: Vec<u32>,
    /// The blocks that were reserved: request, block.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    e: Vec<u32>,
    /// The blocks that were published.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    p: Vec<u32>,
    /// The requests that ended: request, reason (an index into `REASONS`).
    #[serde(skip_serializing_if = "Vec::is_empty")]
    f: Vec<u32>,
    /// The slots that were written, in the pool's own numbering, if they are not those that follow from
    /// tables and positions.
    #[serde(skip_serializing_if = "Option::is_none")]
    w: Option<Vec<i64>>,
    /// The trace's own counts of used and cached blocks.
    q: [u64; 2],
}

/// The reasons for which a request ended, by number. The first stands for all others.
const REASONS: [&str; 4] = ["", "stop", "length", "abort"];

/// The part of a trace that goes into a page.
#[derive(Debug)]
pub(super) struct Window<'a> {
    pub(super) block_size: u32,
    pub(super) window: Option<u32>,
    pub(super) num_blocks: u64,
    pub(super) requests: &'a [String],
    /// The pool before the first step.
    pub(super) start: &'a Pool,
    pub(super) steps: &'a [StepDelta],
}

impl Window<'_> {
    /// The text that the page decodes.
    ///
    /// # Errors
    ///
    /// No error is expected, because it is written to memory.
    pub(super) fn encode(&self) -> std::io::Result<String> {
        let ids = self.ids();
        let place = |block: &u32| ids.binary_search(block).map_or(u32::MAX, |i| i as u32);
        let start = Start {
            live: (self.start.live().iter())
                .map(|(&request, held)| (request, held.computed, held.table.iter().map(place).collect()))
                .collect(),
            published: self.start.published().iter().map(place).collect(),
        };
        let embedded = Embedded {
            block_size: self.block_size,
            window: self.window,
            num_blocks: self.num_blocks,
            ids: &ids,
            requests: self.requests,
            start,
            steps: self.steps(&place),
        };
        let mut deflated = ZlibEncoder::new(Vec::new(), Compression::default());
        serde_json::to_writer(std::io::BufWriter::with_capacity(1 << 16, &mut deflated), &embedded)?;
        deflated.flush()?;
        Ok(base64(&deflated.finish()?))
    }

    fn steps(&self, place: &impl Fn(&u32) -> u32) -> Vec<Step> {
        let live = self.start.live().iter();
        let mut computed: HashMap<u32, u64> = live.map(|(&request, held)| (request, held.computed)).collect();
        let mut steps = Vec::with_capacity(self.steps.len());
        for delta in self.steps {
            if delta.anew {
                computed.clear();
            }
            for request in delta.preempted.iter().chain(&delta.aborted) {
                computed.remove(request);
            }
            steps.push(step(delta, place, &computed));
            computed.extend(delta.rows.iter().map(|row| (row.request, row.next())));
            for (request, _) in &delta.ended {
                computed.remove(request);
            }
        }
        steps
    }

    /// The ids of all blocks that occur.
    fn ids(&self) -> Vec<u32> {
        let mut ids: BTreeSet<u32> = self.start.published().clone();
        ids.extend(self.start.live().values().flat_map(|held| &held.table));
        for delta in self.steps {
            ids.extend(delta.appended.iter().flat_map(|(_, blocks)| blocks));
            ids.extend(delta.replaced.iter().map(|(_, _, block)| block));
            ids.extend(delta.reserved.iter().map(|(_, block)| block));
            ids.extend(delta.copies.iter().flat_map(|(from, to)| [from, to]));
            ids.extend(delta.published.iter().chain(&delta.removed));
        }
        ids.remove(&FREED);
        ids.into_iter().collect()
    }
}

fn step(delta: &StepDelta, place: &impl Fn(&u32) -> u32, computed: &HashMap<u32, u64>) -> Step {
    let places = |blocks: &[u32]| blocks.iter().map(place).collect::<Vec<u32>>();
    let reason = |reason: &Option<String>| {
        let known = REASONS.iter().position(|name| Some(*name) == reason.as_deref());
        known.map_or(0, |i| i as u32)
    };
    let mut appended = Vec::new();
    for (request, blocks) in &delta.appended {
        appended.extend([*request, u32::try_from(blocks.len()).unwrap_or(u32::MAX)]);
        appended.extend(blocks.iter().map(place));
    }
    Step {
        s: delta.step,
        g: delta.replayed,
        z: delta.anew,
        t: delta.time_us.map(|us| us.max(0.0).round() as u64),
        r: rows(&delta.rows, computed),
        x: delta.preempted.clone(),
        b: delta.aborted.clone(),
        k: delta.copies.iter().flat_map(|(from, to)| [place(from), place(to)]).collect(),
        c: delta.replaced.iter().flat_map(|(r, i, block)| [*r, *i, place(block)]).collect(),
        a: appended,
        h: places(&delta.removed),
        e: delta.reserved.iter().flat_map(|(request, block)| [*request, place(block)]).collect(),
        p: places(&delta.published),
        f: delta.ended.iter().flat_map(|(request, why)| [*request, reason(why)]).collect(),
        w: delta.slots.clone(),
        q: [delta.pool.used, delta.pool.cached],
    }
}

/// Encodes rows in one list. For each row it has the request's number minus that of the row before minus 1,
/// then flags, then the values that the flags announce. A decode row that follows its neighbour takes two
/// small numbers.
///
/// The flags are the kind (0 decode, 1 prefill, 2 verify, 3 denoise) plus these: 4: the number of query
/// tokens is not 1; 8: the numbers of drafts and accepted drafts follow; 16: the number of emitted tokens
/// is not accepted + 1; 32: `num_computed` is not what the request's row before left (0 if there was none).
fn rows(rows: &[RowDelta], computed: &HashMap<u32, u64>) -> Vec<i64> {
    let mut coded = Vec::with_capacity(rows.len() * 3);
    let mut before = -1;
    for row in rows {
        let kind = match row.kind {
            RowKind::Decode => 0,
            RowKind::Prefill => 1,
            RowKind::Verify => 2,
            RowKind::Denoise => 3,
        };
        let (several, drafts) = (row.queries != 1, row.drafts > 0);
        let odd = u64::from(row.emitted) != u64::from(row.accepted) + 1;
        let jumps = computed.get(&row.request).copied().unwrap_or(0) != u64::from(row.num_computed);
        let flag = |set: bool, bit: i64| if set { bit } else { 0 };
        let flags = kind | flag(several, 4) | flag(drafts, 8) | flag(odd, 16) | flag(jumps, 32);
        coded.extend([i64::from(row.request) - before - 1, flags]);
        coded.extend(jumps.then_some(i64::from(row.num_computed)));
        coded.extend(several.then_some(i64::from(row.queries)));
        if drafts {
            coded.extend([i64::from(row.drafts), i64::from(row.accepted)]);
        }
        coded.extend(odd.then_some(i64::from(row.emitted)));
        before = i64::from(row.request);
    }
    coded
}

/// Base64 as in RFC 4648, with padding.
fn base64(bytes: &[u8]) -> String {
    const DIGITS: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut text = String::with_capacity(bytes.len().div_ceil(3) * 4);
    for chunk in bytes.chunks(3) {
        let at = |i: usize| u32::from(chunk.get(i).copied().unwrap_or(0));
        let bits = at(0) << 16 | at(1) << 8 | at(2);
        for digit in 0..4 {
            let index = (bits >> (18 - 6 * digit) & 63) as usize;
            text.push(if digit > chunk.len() { '=' } else { char::from(DIGITS[index]) });
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::base64;

    #[test]
    fn base64_is_that_of_rfc_4648() {
        let of = ["", "f", "fo", "foo", "foob", "fooba", "foobar"];
        let is = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        assert_eq!(of.map(|text| base64(text.as_bytes())), is);
    }
}
