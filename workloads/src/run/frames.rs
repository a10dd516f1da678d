//! Reads compressed lines frame by frame.

use std::fs::File;
use std::io::{BufRead, BufReader, Error, ErrorKind, Read};

use ruzstd::decoding::errors::{FrameDecoderError, ReadFrameHeaderError};
use ruzstd::decoding::{BlockDecodingStrategy, FrameDecoder};

/// Reads the contents of zstd frames one after the other, in memory bounded by a frame's window. If the
/// file ends within a frame, the frame is read as far as its whole blocks go.
pub(super) struct FrameReader {
    source: Counted,
    decoder: FrameDecoder,
    /// Whether the decoder is inside a frame.
    inside: bool,
    cut: bool,
    last_byte: Option<u8>,
    whole: u64,
}

/// A file that counts how many bytes were read.
struct Counted {
    file: BufReader<File>,
    position: u64,
    ended: bool,
}

impl Read for Counted {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let read = self.file.read(buffer)?;
        self.position += read as u64;
        self.ended |= read == 0 && !buffer.is_empty();
        Ok(read)
    }
}

impl FrameReader {
    pub(super) fn new(file: File) -> Self {
        let file = BufReader::with_capacity(1 << 18, file);
        Self {
            source: Counted { file, position: 0, ended: false },
            decoder: FrameDecoder::new(),
            inside: false,
            cut: false,
            last_byte: None,
            whole: 0,
        }
    }

    /// Whether the file ended within a frame.
    pub(super) fn is_cut(&self) -> bool {
        self.cut
    }

    /// The number of bytes of the file up to the end of the last frame that is whole and ends with a line.
    pub(super) fn whole(&self) -> u64 {
        self.whole
    }

    /// Begins the next frame. Returns whether there is one.
    fn begin(&mut self) -> std::io::Result<bool> {
        loop {
            if self.source.file.fill_buf()?.is_empty() {
                return Ok(false);
            }
            match self.decoder.reset(&mut self.source) {
                Ok(()) => return Ok(true),
                Err(FrameDecoderError::ReadFrameHeaderError(ReadFrameHeaderError::SkipFrame {
                    length,
                    ..
                })) => {
                    let length = u64::from(length);
                    let skipped =
                        std::io::copy(&mut self.source.by_ref().take(length), &mut std::io::sink())?;
                    if skipped < length {
                        self.cut = true;
                        return Ok(false);
                    }
                }
                Err(_) if self.source.ended => {
                    self.cut = true;
                    return Ok(false);
                }
                Err(error) => return Err(self.corrupt(&error)),
            }
        }
    }

    /// Ends a frame that was read whole.
    fn end(&mut self) -> std::io::Result<()> {
        self.inside = false;
        let (stated, is) = (self.decoder.get_checksum_from_data(), self.decoder.get_calculated_checksum());
        if let (Some(stated), Some(is)) = (stated, is)
            && stated != is
        {
            return Err(self.corrupt(&format!("checksum {is:08x}, should be {stated:08x}")));
        }
        if self.last_byte.is_none_or(|byte| byte == b'\n') {
            self.whole = self.source.position;
        }
        Ok(())
    }

    fn corrupt(&self, what: &dyn std::fmt::Display) -> Error {
        let at = self.source.position;
        Error::new(ErrorKind::InvalidData, format!("no zstd frame before byte {at}: {what}"))
    }
}

impl Read for FrameReader {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        if buffer.is_empty() || self.cut {
            return Ok(0);
        }
        loop {
            if !self.inside {
                self.inside = self.begin()?;
                if !self.inside {
                    return Ok(0);
                }
            }
            while self.decoder.can_collect() == 0 && !self.decoder.is_finished() {
                let decoded =
                    self.decoder.decode_blocks(&mut self.source, BlockDecodingStrategy::UptoBlocks(1));
                match decoded {
                    Ok(_) => {}
                    Err(_) if self.source.ended => {
                        self.cut = true;
                        return Ok(0);
                    }
                    Err(error) => return Err(self.corrupt(&error)),
                }
            }
            let read = self.decoder.read(buffer)?;
            if let Some(byte) = read.checked_sub(1).and_then(|last| buffer.get(last)) {
                self.last_byte = Some(*byte);
                return Ok(read);
            }
            self.end()?;
        }
    }
}
