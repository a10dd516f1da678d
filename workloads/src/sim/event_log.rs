//! Hashes everything that happened, so that runs that differ anywhere have different hashes.

use pagedraft_scheduler::FinishReason;
use sha2::{Digest, Sha256};

use crate::replay::{RowReport, StepReport};

/// How many bytes are hashed at a time.
const CHUNK: usize = 64 << 10;

/// The SHA-256 of everything that happened in a simulation, in order. Two runs can be compared to the byte
/// without keeping either.
///
/// All numbers are little-endian. The log is a header and records. The first byte of each is its kind:
///
/// | record | kind | then |
/// |---|---|---|
/// | header | `H` | version u32 (1), seed u64, replicas u32 |
/// | a request was sent | `S` | its place in the workload u64, intended arrival u64, sent u64 (both ns), replica u32 |
/// | the scheduler refused it | `F` | its place u64, time u64 |
/// | a step was made | `T` | replica u32, number u64, start u64, end u64 (ns), preempted u32, rows u32, and of each row: the request's place u64, tokens emitted u16, drafts scored u16, drafts accepted u16, how the request ended u8 (0: it did not, 1: stop, 2: length, 3: abort) |
#[derive(Debug)]
pub(super) struct EventLog {
    sha: Sha256,
    buffer: Vec<u8>,
}

impl EventLog {
    pub(super) fn new(seed: u64, replicas: u32) -> Self {
        let mut log = Self { sha: Sha256::new(), buffer: Vec::with_capacity(2 * CHUNK) };
        log.put(b"H");
        log.put(&1u32.to_le_bytes());
        log.put(&seed.to_le_bytes());
        log.put(&replicas.to_le_bytes());
        log
    }

    pub(super) fn sent(&mut self, index: u64, intended_ns: u64, sent_ns: u64, replica: u32) {
        self.put(b"S");
        self.put(&index.to_le_bytes());
        self.put(&intended_ns.to_le_bytes());
        self.put(&sent_ns.to_le_bytes());
        self.put(&replica.to_le_bytes());
        self.flush();
    }

    pub(super) fn refused(&mut self, index: u64, now_ns: u64) {
        self.put(b"F");
        self.put(&index.to_le_bytes());
        self.put(&now_ns.to_le_bytes());
        self.flush();
    }

    /// Logs a step. A call of [`row`](Self::row) for each of its rows must follow.
    pub(super) fn step(&mut self, report: &StepReport, rows: usize) {
        self.flush();
        self.put(b"T");
        self.put(&report.replica.to_le_bytes());
        self.put(&report.step.to_le_bytes());
        self.put(&report.start_ns.to_le_bytes());
        self.put(&report.end_ns.to_le_bytes());
        self.put(&report.preempted.to_le_bytes());
        self.put(&(rows as u32).to_le_bytes());
    }

    #[inline]
    pub(super) fn row(&mut self, index: u64, row: &RowReport, end: Option<FinishReason>) {
        let mut bytes = [0; 15];
        bytes[..8].copy_from_slice(&index.to_le_bytes());
        bytes[8..10].copy_from_slice(&row.new_tokens.to_le_bytes());
        bytes[10..12].copy_from_slice(&row.num_drafts.to_le_bytes());
        bytes[12..14].copy_from_slice(&row.num_accepted.to_le_bytes());
        bytes[14] = match end {
            None => 0,
            Some(FinishReason::Stop) => 1,
            Some(FinishReason::Length) => 2,
            Some(FinishReason::Abort | FinishReason::Failed) => 3,
        };
        self.put(&bytes);
    }

    /// The hash in hexadecimal digits.
    pub(super) fn finish(mut self) -> String {
        self.sha.update(&self.buffer);
        self.sha.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
    }

    #[inline]
    fn put(&mut self, bytes: &[u8]) {
        self.buffer.extend_from_slice(bytes);
    }

    fn flush(&mut self) {
        if self.buffer.len() >= CHUNK {
            self.sha.update(&self.buffer);
            self.buffer.clear();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_log_of_nothing_is_the_hash_of_its_header() {
        let mut header = b"H".to_vec();
        header.extend([1, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
        let expected: String = Sha256::digest(&header).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(EventLog::new(7, 2).finish(), expected);
    }

    #[test]
    fn what_is_hashed_in_pieces_is_hashed_as_a_whole() {
        let mut log = EventLog::new(0, 1);
        let mut whole = log.buffer.clone();
        for index in 0..20_000u64 {
            log.sent(index, index * 3, index * 5, 9);
            whole.extend(b"S");
            whole.extend(index.to_le_bytes());
            whole.extend((index * 3).to_le_bytes());
            whole.extend((index * 5).to_le_bytes());
            whole.extend(9u32.to_le_bytes());
        }
        assert!(log.buffer.len() < 2 * CHUNK);
        let expected: String = Sha256::digest(&whole).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(log.finish(), expected);
    }
}
