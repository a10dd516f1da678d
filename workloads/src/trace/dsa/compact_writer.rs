//! Writes the frames of a [compact](super::compact) file.

use std::collections::HashMap;

use super::compact::{CompactHeader, FORMAT, FRAME_HEAD, VERSION, crc, length_check};
use super::selection_code::{self, Mode, Room, write_varint};
use super::{DsaFetched, DsaRow, DsaSelection, DsaToken, DsaTraceConfig};

/// Makes frames of tokens. It remembers each request's table and what the layers chose for it last.
#[derive(Debug, Default)]
pub(in crate::trace) struct CompactWriter {
    requests: HashMap<String, Slot>,
    /// The numbers of requests that were forgotten.
    free: Vec<u32>,
    room: Room,
    frame: Vec<u8>,
}

/// What the file says about a request so far.
#[derive(Debug)]
struct Slot {
    number: u32,
    table: Vec<u32>,
    last: Vec<Vec<u32>>,
}

impl CompactWriter {
    /// The first line of the file.
    pub(in crate::trace) fn header(config: &DsaTraceConfig, block_size: u32) -> serde_json::Result<Vec<u8>> {
        let header =
            CompactHeader { format: FORMAT.to_owned(), version: VERSION, block_size, dsa: config.clone() };
        let mut line = serde_json::to_vec(&header)?;
        line.push(b'\n');
        Ok(line)
    }

    /// Forgets a request, which ended or will be introduced anew.
    pub(in crate::trace) fn forget(&mut self, request_id: &str) {
        self.free.extend(self.requests.remove(request_id).map(|slot| slot.number));
    }

    /// The frame of a token.
    pub(in crate::trace) fn frame(&mut self, token: &DsaToken) -> &[u8] {
        let out = &mut self.frame;
        out.clear();
        out.resize(FRAME_HEAD, 0);
        let introduced = !self.requests.contains_key(&token.request_id);
        if introduced {
            // Numbers below that of the next new request are in use or free.
            let number = self.free.pop().unwrap_or(self.requests.len() as u32);
            let last = vec![Vec::new(); token.selections.len()];
            self.requests.insert(token.request_id.clone(), Slot { number, table: Vec::new(), last });
        }
        let Some(slot) = self.requests.get_mut(&token.request_id) else { return &[] };
        let changed = slot.table != token.table;
        let kind = match token.row {
            DsaRow::Prefill => 0,
            DsaRow::Decode => 1,
            DsaRow::Verify => 2,
        };
        let accepted = token.accepted.map_or(0, |accepted| 1 + u8::from(accepted));
        out.push(
            kind | accepted << 2
                | u8::from(introduced) << 4
                | u8::from(changed) << 5
                | u8::from(!token.tiers.is_empty()) << 6,
        );
        write_varint(u64::from(slot.number), out);
        if introduced {
            for text in [&token.request_id, &token.prefix_key] {
                write_varint(text.len() as u64, out);
                out.extend_from_slice(text.as_bytes());
            }
            write_varint(u64::from(token.cached_blocks), out);
        }
        write_varint(token.step, out);
        write_varint(u64::from(token.step_idx), out);
        if changed {
            write_table(&mut slot.table, &token.table, out);
        }
        let keys = token.step_idx.saturating_add(1);
        for (selection, last) in token.selections.iter().zip(&mut slot.last) {
            write_selection(selection, keys, last, &mut self.room, out);
        }
        for tiers in &token.tiers {
            out.extend(tiers.found_us.to_le_bytes());
            write_fetched(&tiers.local, out);
            write_fetched(&tiers.remote, out);
        }
        let body = &out[FRAME_HEAD..];
        let (length, check) = ((body.len() as u32).to_le_bytes(), crc(body).to_le_bytes());
        out[..4].copy_from_slice(&length);
        out[4] = length_check(length);
        out[5..FRAME_HEAD].copy_from_slice(&check);
        out
    }
}

fn write_table(known: &mut Vec<u32>, table: &[u32], out: &mut Vec<u8>) {
    let same = known.iter().zip(table).take_while(|(a, b)| a == b).count();
    write_varint(same as u64, out);
    write_varint((table.len() - same) as u64, out);
    let mut before = same.checked_sub(1).map_or(0, |at| i64::from(table[at]));
    for &block in &table[same..] {
        let step = i64::from(block) - before;
        write_varint((step << 1 ^ step >> 63).cast_unsigned(), out);
        before = i64::from(block);
    }
    known.truncate(same);
    known.extend_from_slice(&table[same..]);
}

fn write_fetched(fetched: &DsaFetched, out: &mut Vec<u8>) {
    write_varint(fetched.blocks.len() as u64, out);
    let mut before = 0;
    for &block in &fetched.blocks {
        write_varint(u64::from(block - before), out);
        before = block;
    }
    if !fetched.blocks.is_empty() {
        out.extend(fetched.us.to_le_bytes());
    }
}

fn write_selection(
    selection: &DsaSelection,
    keys: u32,
    last: &mut Vec<u32>,
    room: &mut Room,
    out: &mut Vec<u8>,
) {
    let positions = &selection.positions;
    let code = selection_code::plan(positions, keys, last, room);
    let mode = match code.mode {
        Mode::All => 0,
        Mode::Fresh => 1,
        Mode::Delta => 2,
    };
    out.push(mode | u8::from(selection.scores.is_some()) << 2);
    if code.mode != Mode::All {
        write_varint(positions.len() as u64, out);
    }
    if let Some(scores) = selection.scores {
        let stats = [scores.min, scores.mean, scores.max];
        let each = if selection.each_score.is_empty() { &stats[..] } else { &selection.each_score };
        out.extend(each.iter().flat_map(|score| score.to_le_bytes()));
    }
    selection_code::write(&code, positions, room, out);
    last.clone_from(positions);
}
