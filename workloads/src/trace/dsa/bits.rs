//! Bits in bytes, the least significant first.

/// Appends bits to bytes.
#[derive(Debug, Default)]
pub(super) struct BitWriter {
    word: u64,
    used: u32,
}

impl BitWriter {
    /// Appends the lowest `bits` bits of `value`, at most 56; the others must be 0.
    #[inline(always)]
    pub(super) fn put(&mut self, value: u64, bits: u32, out: &mut Vec<u8>) {
        self.word |= value << self.used;
        self.used += bits;
        if self.used >= 64 {
            out.extend_from_slice(&self.word.to_le_bytes());
            self.used -= 64;
            // What did not fit. A shift by all of its bits would be one by 0.
            self.word = value.checked_shr(bits - self.used).unwrap_or(0);
        }
    }

    /// Appends the bits that wait, and fills the last byte with zeros.
    pub(super) fn finish(self, out: &mut Vec<u8>) {
        let bytes = self.used.div_ceil(8) as usize;
        out.extend_from_slice(&self.word.to_le_bytes()[..bytes]);
    }
}

/// Takes bits from bytes. Behind their end it reads zeros; [`bytes`](Self::bytes) says how far it has come.
#[derive(Clone, Copy, Debug)]
pub(super) struct BitReader<'a> {
    from: &'a [u8],
    at: usize,
}

impl<'a> BitReader<'a> {
    pub(super) fn new(from: &'a [u8]) -> Self {
        Self { from, at: 0 }
    }

    /// The next 56 bits or more, without taking them.
    #[inline(always)]
    pub(super) fn peek(&self) -> u64 {
        let start = self.at / 8;
        let word = match self.from.get(start..).and_then(|rest| rest.first_chunk()) {
            Some(bytes) => u64::from_le_bytes(*bytes),
            None => {
                let mut bytes = [0; 8];
                let rest = self.from.get(start..).unwrap_or_default();
                bytes[..rest.len()].copy_from_slice(rest);
                u64::from_le_bytes(bytes)
            }
        };
        word >> (self.at % 8)
    }

    #[inline(always)]
    pub(super) fn skip(&mut self, bits: u32) {
        self.at += bits as usize;
    }

    /// Whether every bit there is was taken, or more.
    pub(super) fn is_at_end(&self) -> bool {
        self.at >= self.from.len() * 8
    }

    /// The number of bytes that were taken in whole or in part; `None` if there are not so many.
    pub(super) fn bytes(&self) -> Option<usize> {
        let bytes = self.at.div_ceil(8);
        (bytes <= self.from.len()).then_some(bytes)
    }
}
