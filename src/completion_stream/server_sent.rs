//! Reads server-sent events (HTML Living Standard, section 9.2) from bytes that come in any pieces.

/// The longest event that is kept, in bytes. A chunk of a completion has some hundred.
const LONGEST: usize = 16 << 20;

/// An event, or a line of one, is longer than anybody would send.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("an event of the stream has more than {LONGEST} bytes")]
pub struct TooLong;

/// What has come of the event that is being read.
#[derive(Debug, Default)]
pub struct Events {
    /// The line that has not ended.
    line: Vec<u8>,
    /// The data of the event so far, each line of it with a line feed behind.
    data: Vec<u8>,
    /// Whether the last byte was a carriage return, so that a line feed would belong to the same line end.
    returned: bool,
    /// Whether the first line, which may begin with a byte order mark, has been read.
    begun: bool,
}

impl Events {
    /// Takes the next bytes of a stream, and calls `take` with the data of each event that they end.
    ///
    /// # Errors
    ///
    /// An event is too long. The stream can't be read any further.
    pub fn feed(&mut self, mut bytes: &[u8], mut take: impl FnMut(&[u8])) -> Result<(), TooLong> {
        while !bytes.is_empty() {
            if std::mem::take(&mut self.returned) && bytes[0] == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|&byte| byte == b'\n' || byte == b'\r');
            let (part, rest) = bytes.split_at(end.unwrap_or(bytes.len()));
            if self.line.len() + self.data.len() + part.len() > LONGEST {
                return Err(TooLong);
            }
            let Some(&ending) = rest.first() else {
                self.line.extend_from_slice(part);
                return Ok(());
            };
            self.returned = ending == b'\r';
            bytes = &rest[1..];
            if self.line.is_empty() {
                self.end_line(part, &mut take);
            } else {
                let mut line = std::mem::take(&mut self.line);
                line.extend_from_slice(part);
                self.end_line(&line, &mut take);
                line.clear();
                self.line = line;
            }
        }
        Ok(())
    }

    fn end_line(&mut self, mut line: &[u8], take: &mut impl FnMut(&[u8])) {
        if !std::mem::replace(&mut self.begun, true) {
            line = line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line);
        }
        if line.is_empty() {
            // An event without data is none.
            if let Some((_, data)) = self.data.split_last() {
                take(data);
                self.data.clear();
            }
            return;
        }
        let colon = line.iter().position(|&byte| byte == b':').unwrap_or(line.len());
        // Names of events, ids and comments say nothing here.
        if &line[..colon] == b"data" {
            let value = line.get(colon + 1..).unwrap_or_default();
            self.data.extend_from_slice(value.strip_prefix(b" ").unwrap_or(value));
            self.data.push(b'\n');
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The events of a whole stream, by the standard's words: lines first, then fields.
    fn slowly(stream: &[u8]) -> Vec<Vec<u8>> {
        let stream = stream.strip_prefix(b"\xef\xbb\xbf").unwrap_or(stream);
        let mut lines = vec![Vec::new()];
        for (i, &byte) in stream.iter().enumerate() {
            match byte {
                b'\n' if i > 0 && stream[i - 1] == b'\r' => {}
                b'\n' | b'\r' => lines.push(Vec::new()),
                _ => lines.last_mut().unwrap().push(byte),
            }
        }
        // The last line has not ended.
        lines.pop();
        let (mut events, mut data) = (Vec::new(), Vec::<Vec<u8>>::new());
        for line in lines {
            if line.is_empty() {
                if !data.is_empty() {
                    events.push(data.join(&b'\n'));
                }
                data.clear();
            } else if line == b"data" {
                data.push(Vec::new());
            } else if let Some(value) = line.strip_prefix(b"data:") {
                data.push(value.strip_prefix(b" ").unwrap_or(value).to_vec());
            }
        }
        events
    }

    fn in_pieces(stream: &[u8], cuts: &[usize]) -> Vec<Vec<u8>> {
        let (mut reader, mut events, mut rest) = (Events::default(), Vec::new(), stream);
        for &cut in cuts {
            let (piece, after) = rest.split_at(cut.min(rest.len()));
            reader.feed(piece, |data| events.push(data.to_vec())).unwrap();
            rest = after;
        }
        reader.feed(rest, |data| events.push(data.to_vec())).unwrap();
        events
    }

    #[test]
    fn events_end_with_an_empty_line_however_lines_end() {
        let stream =
            b"\xef\xbb\xbfdata: a\n\n: comment\r\nevent: x\rdata:b\rdata:  c\r\rid\n\ndata\n\ndata: cut";
        assert_eq!(in_pieces(stream, &[]), [&b"a"[..], b"b\n c", b""]);
        assert_eq!(in_pieces(stream, &vec![1; stream.len()]), in_pieces(stream, &[]));
    }

    #[test]
    fn an_endless_line_ends_with_an_error() {
        let mut reader = Events::default();
        let piece = vec![b'x'; 1 << 20];
        let fed = (0..20).try_for_each(|_| reader.feed(&piece, |_| panic!("no event")));
        assert_eq!(fed, Err(TooLong));
        let mut reader = Events::default();
        let line = [&b"data: "[..], &piece, b"\n"].concat();
        let fed = (0..20).try_for_each(|_| reader.feed(&line, |_| panic!("no event")));
        assert_eq!(fed, Err(TooLong));
    }

    proptest! {
        #[test]
        fn pieces_of_any_bytes_give_the_events_of_the_whole(
            words in prop::collection::vec(prop::sample::select(vec![
                &b"data"[..], b"data:", b"data: ", b":", b" ", b"\n", b"\n\n", b"\r", b"\r\n", b"\xef\xbb\xbf", b"x", b"\xff", b"{}", b"id: 3",
            ]), 0..60),
            cuts in prop::collection::vec(0_usize..6, 0..80),
        ) {
            let stream = words.concat();
            prop_assert_eq!(in_pieces(&stream, &cuts), slowly(&stream));
        }
    }
}
