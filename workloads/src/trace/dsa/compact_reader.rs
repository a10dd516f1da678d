//! Reads the frames of a [compact](super::compact) file.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read, Result};

use super::compact::{CompactHeader, FORMAT, FRAME_HEAD, MOST_KEYS, VERSION, crc, length_check};
use super::selection_code::{self, Mode, Room, read_varint};
use super::{DsaFetched, DsaRow, DsaScores, DsaSelection, DsaTiers, DsaToken, DsaTraceConfig};

/// The longest first line, in bytes.
const LONGEST_HEADER: u64 = 1 << 20;

/// Reads tokens one at a time. Memory is bounded by the requests that were introduced and a frame.
#[derive(Debug)]
pub(super) struct CompactReader {
    file: BufReader<File>,
    header: CompactHeader,
    requests: HashMap<u64, Slot>,
    token: DsaToken,
    room: Room,
    body: Vec<u8>,
    /// The bytes read so far.
    position: u64,
    cut: bool,
}

#[derive(Debug)]
struct Slot {
    request_id: String,
    prefix_key: String,
    cached_blocks: u32,
    table: Vec<u32>,
    last: Vec<Vec<u32>>,
}

fn invalid(what: String) -> Error {
    Error::new(ErrorKind::InvalidData, what)
}

impl CompactReader {
    pub(super) fn new(file: File) -> Result<Self> {
        let mut file = BufReader::with_capacity(1 << 18, file);
        let mut line = Vec::new();
        let position = file.by_ref().take(LONGEST_HEADER).read_until(b'\n', &mut line)? as u64;
        let header: CompactHeader = serde_json::from_slice(&line)
            .map_err(|what| invalid(format!("the first line is not that of a file of {FORMAT}: {what}")))?;
        if header.format != FORMAT || header.version != VERSION {
            let (format, version) = (&header.format, header.version);
            let what = format!(
                "the file is {format:?}, version {version}; this build reads {FORMAT:?}, version {VERSION}"
            );
            return Err(invalid(what));
        }
        if header.block_size == 0 || header.dsa.index_topk > MOST_KEYS {
            return Err(invalid("the first line has an impossible block_size or index_topk".to_owned()));
        }
        let token = DsaToken {
            selections: vec![DsaSelection::default(); header.dsa.indexer_layers.len()],
            ..DsaToken::default()
        };
        let (requests, room, body) = (HashMap::new(), Room::default(), Vec::new());
        Ok(Self { file, header, requests, token, room, body, position, cut: false })
    }

    pub(super) fn config(&self) -> (&DsaTraceConfig, u32) {
        (&self.header.dsa, self.header.block_size)
    }

    /// Whether the file ended within a frame, as a killed process leaves it.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    /// The bytes up to the end of the token that was read last.
    pub(super) fn position(&self) -> u64 {
        self.position
    }

    /// The token that was read last.
    pub(super) fn token(&self) -> &DsaToken {
        &self.token
    }

    /// Reads the next token. Returns whether there is one.
    pub(super) fn advance(&mut self) -> Result<bool> {
        let mut head = [0; FRAME_HEAD];
        let read = fill(&mut self.file, &mut head)?;
        if read < FRAME_HEAD {
            self.cut = read > 0;
            return Ok(false);
        }
        let at = |what: &str| invalid(format!("the frame at byte {}: {what}", self.position));
        let [a, b, c, d, check, crc_bytes @ ..] = head;
        let length = u32::from_le_bytes([a, b, c, d]);
        if length_check([a, b, c, d]) != check {
            return Err(at("its length is damaged"));
        }
        self.body.clear();
        let read = self.file.by_ref().take(u64::from(length)).read_to_end(&mut self.body)?;
        if read < length as usize {
            self.cut = true;
            return Ok(false);
        }
        if crc(&self.body) != u32::from_le_bytes(crc_bytes) {
            return Err(at("its checksum differs, so it is damaged"));
        }
        let mut body = self.body.as_slice();
        match read_body(&mut body, &self.header, &mut self.requests, &mut self.room, &mut self.token) {
            Ok(()) if body.is_empty() => {}
            Ok(()) => return Err(at("it has bytes too many")),
            Err(what) => return Err(at(what)),
        }
        self.position += (FRAME_HEAD + read) as u64;
        Ok(true)
    }
}

/// Reads until `to` is full or the file ends. Returns the number of bytes.
fn fill(file: &mut impl Read, to: &mut [u8]) -> Result<usize> {
    let mut filled = 0;
    while filled < to.len() {
        match file.read(&mut to[filled..]) {
            Ok(0) => break,
            Ok(read) => filled += read,
            Err(error) if error.kind() == ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

type Outcome<T> = std::result::Result<T, &'static str>;

const CUT: &str = "it ends within a number";

fn number(from: &mut &[u8]) -> Outcome<u32> {
    read_varint(from).and_then(|value| u32::try_from(value).ok()).ok_or(CUT)
}

fn take<'a>(from: &mut &'a [u8], count: usize) -> Outcome<&'a [u8]> {
    let (taken, rest) = from.split_at_checked(count).ok_or("it ends too early")?;
    *from = rest;
    Ok(taken)
}

fn text(from: &mut &[u8]) -> Outcome<String> {
    let length = number(from)? as usize;
    let bytes = take(from, length)?;
    std::str::from_utf8(bytes).map(str::to_owned).map_err(|_| "a name is not UTF-8")
}

fn read_body(
    from: &mut &[u8],
    header: &CompactHeader,
    requests: &mut HashMap<u64, Slot>,
    room: &mut Room,
    token: &mut DsaToken,
) -> Outcome<()> {
    let &[flags] = take(from, 1)? else { return Err(CUT) };
    token.row = match flags & 3 {
        0 => DsaRow::Prefill,
        1 => DsaRow::Decode,
        2 => DsaRow::Verify,
        _ => return Err("it has an unknown kind of row"),
    };
    token.accepted = match flags >> 2 & 3 {
        0 => None,
        1 => Some(false),
        2 => Some(true),
        _ => return Err("`accepted` is unknown"),
    };
    let slot = read_varint(from).ok_or(CUT)?;
    if flags >> 4 & 1 == 1 {
        let (request_id, prefix_key) = (text(from)?, text(from)?);
        let (cached_blocks, table) = (number(from)?, Vec::new());
        let last = vec![Vec::new(); header.dsa.indexer_layers.len()];
        requests.insert(slot, Slot { request_id, prefix_key, cached_blocks, table, last });
    }
    let slot = requests.get_mut(&slot).ok_or("it is of a request that was not introduced")?;
    token.step = read_varint(from).ok_or(CUT)?;
    token.step_idx = number(from)?;
    let changed = flags >> 5 & 1 == 1;
    if changed {
        read_table(from, &mut slot.table)?;
    }
    let other = flags >> 4 & 1 == 1 || token.request_id != slot.request_id;
    if other {
        token.request_id.clone_from(&slot.request_id);
        token.prefix_key.clone_from(&slot.prefix_key);
        token.cached_blocks = slot.cached_blocks;
    }
    // The table of a long request is longer than what a token says.
    if changed || other {
        token.table.clone_from(&slot.table);
    }
    let keys = token.step_idx.checked_add(1).ok_or("its position is too large")?;
    for (selection, last) in token.selections.iter_mut().zip(&mut slot.last) {
        read_selection(from, keys, header, last, room, selection)?;
    }
    token.tiers.clear();
    if flags >> 6 & 1 == 1 {
        for _ in 0..header.dsa.layers {
            token.tiers.push(DsaTiers {
                found_us: float(from)?,
                local: read_fetched(from)?,
                remote: read_fetched(from)?,
            });
        }
    }
    Ok(())
}

fn float(from: &mut &[u8]) -> Outcome<f64> {
    let bytes = take(from, 8)?;
    Ok(f64::from_le_bytes(bytes.try_into().map_err(|_| CUT)?))
}

fn read_fetched(from: &mut &[u8]) -> Outcome<DsaFetched> {
    let count = number(from)? as usize;
    if count > from.len() {
        return Err("it has an impossible number of blocks that were fetched");
    }
    let mut blocks = Vec::with_capacity(count);
    let mut before = 0u32;
    for _ in 0..count {
        before = before.checked_add(number(from)?).ok_or("it has an impossible block that was fetched")?;
        blocks.push(before);
    }
    let us = if blocks.is_empty() { 0.0 } else { float(from)? };
    Ok(DsaFetched { blocks, us })
}

fn read_table(from: &mut &[u8], table: &mut Vec<u32>) -> Outcome<()> {
    let (same, more) = (number(from)? as usize, number(from)? as usize);
    if same > table.len() || more > from.len() {
        return Err("its block table is impossible");
    }
    table.truncate(same);
    let mut before = table.last().map_or(0, |&block| i64::from(block));
    for _ in 0..more {
        let step = read_varint(from).ok_or(CUT)?;
        let step = (step >> 1).cast_signed() ^ -(step & 1).cast_signed();
        let block = before.checked_add(step).and_then(|block| u32::try_from(block).ok());
        let block = block.ok_or("its block table has an impossible block")?;
        table.push(block);
        before = i64::from(block);
    }
    Ok(())
}

fn read_selection(
    from: &mut &[u8],
    keys: u32,
    header: &CompactHeader,
    last: &mut Vec<u32>,
    room: &mut Room,
    selection: &mut DsaSelection,
) -> Outcome<()> {
    let &[head] = take(from, 1)? else { return Err(CUT) };
    let mode = match head & 3 {
        0 => Mode::All,
        1 => Mode::Fresh,
        2 => Mode::Delta,
        _ => return Err("a selection is written in an unknown way"),
    };
    let count = if mode == Mode::All { keys } else { number(from)? };
    if count > header.dsa.index_topk.min(keys) {
        return Err("a selection has too many keys");
    }
    selection.each_score.clear();
    selection.scores = None;
    if head >> 2 & 1 == 1 {
        let each = header.dsa.store_scores;
        let bytes = take(from, 4 * if each { count as usize } else { 3 })?;
        let scores = bytes.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes));
        selection.each_score.extend(scores);
        selection.scores = match (each, selection.each_score.as_slice()) {
            (false, &[min, mean, max]) => Some(DsaScores { min, mean, max }),
            (_, each) => DsaScores::of(each),
        };
        if !each {
            selection.each_score.clear();
        }
    }
    let taken = selection_code::read(mode, (count, keys), from, last, room, &mut selection.positions)?;
    take(from, taken)?;
    last.clone_from(&selection.positions);
    Ok(())
}
