//! Turns tokens into text as they come, and looks for stop strings.

use std::sync::Arc;

use pagedraft_model::tokenizer::{TextStream, Tokenizer};

use super::special_stops::SpecialStops;

/// How many prompt tokens are decoded in front of the text. Whether a word begins with a space depends on
/// the token before it.
const CONTEXT_TOKENS: usize = 6;

/// The text of one sequence. It is decoded token by token. Text that may be the beginning of a stop string
/// is held back.
pub struct StopScan {
    stream: Option<TextStream>,
    stops: Vec<String>,
    /// Those stop strings that contain special tokens are also looked for in a text that shows them.
    special_stops: Option<SpecialStops>,
    text: String,
    /// The bytes of `text` that were handed out already.
    sent: usize,
    closed: bool,
}

impl StopScan {
    /// The text that follows `prompt`, which any of `stops` ends. Without a tokenizer there is no text.
    ///
    /// # Errors
    ///
    /// The tokenizer can't decode a token of the prompt.
    pub fn new(
        tokenizer: Option<&Arc<Tokenizer>>,
        prompt: &[u32],
        stops: Vec<String>,
    ) -> anyhow::Result<Self> {
        let mut stream = tokenizer.map(|t| t.stream(true));
        let context = &prompt[prompt.len().saturating_sub(CONTEXT_TOKENS)..];
        if let (Some(stream), Some(tokenizer)) = (&mut stream, tokenizer) {
            // A prompt that ends inside a character would add its bytes to the text. In that case the text
            // is decoded without it.
            if !tokenizer.decode(context, true)?.ends_with(char::REPLACEMENT_CHARACTER) {
                for &token in context {
                    stream.push(token)?;
                }
            }
        }
        let special_stops =
            tokenizer.and_then(|tokenizer| SpecialStops::among(&stops, tokenizer.special_texts()));
        Ok(Self { stream, stops, special_stops, text: String::new(), sent: 0, closed: false })
    }

    /// Whether a token without text may complete a stop string.
    pub fn looks_at_special(&self, token: u32) -> bool {
        let special =
            || self.stream.as_ref().is_some_and(|stream| stream.tokenizer().special_text(token).is_some());
        self.special_stops.is_some() && special()
    }

    /// Adds a token. Returns true if its text completed a stop string, which is then cut off with
    /// everything after it.
    ///
    /// # Errors
    ///
    /// The tokenizer can't decode a token.
    pub fn push(&mut self, token: u32) -> anyhow::Result<bool> {
        let Some(stream) = &mut self.stream else { return Ok(false) };
        if let Some(special_stops) = &mut self.special_stops
            && stream.tokenizer().special_text(token).is_some()
        {
            let held = stream.held()?;
            let name = stream.tokenizer().special_text(token).unwrap_or_default();
            if let Some(at) = special_stops.special(&held, name) {
                if at < self.text.len() {
                    self.text.truncate(at);
                } else {
                    self.text.push_str(&held);
                }
                self.closed = true;
                return Ok(true);
            }
        }
        let Some(piece) = stream.push(token)? else { return Ok(false) };
        Ok(self.extend(&piece))
    }

    /// The text that can be shown since the last call. At the `end` of the sequence it is all of it; before
    /// that, what may be the beginning of a stop string is held back.
    ///
    /// # Errors
    ///
    /// At the end, the tokenizer can't decode the remaining bytes.
    pub fn take(&mut self, end: bool) -> anyhow::Result<String> {
        if end && !self.closed {
            self.closed = true;
            let rest = self.stream.as_mut().map(TextStream::finish).transpose()?.flatten();
            if let Some(rest) = rest {
                self.extend(&rest);
            }
        }
        let safe = if end { self.text.len() } else { self.safe_end() };
        let piece = self.text.get(self.sent..safe).unwrap_or_default().to_owned();
        self.sent = self.sent.max(safe);
        Ok(piece)
    }

    /// The whole text so far.
    pub fn text(&self) -> &str {
        &self.text
    }

    fn extend(&mut self, piece: &str) -> bool {
        // A stop string that ends in this piece begins at most its own length before it.
        let longest = self.stops.iter().map(String::len).max().unwrap_or(0);
        let mut from = self.text.len().saturating_sub(longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        self.text.push_str(piece);
        let found = self.stops.iter().filter_map(|stop| self.text[from..].find(stop.as_str())).min();
        let special = self.special_stops.as_mut().and_then(|stops| stops.text(piece));
        let found = found.map(|at| from + at).into_iter().chain(special).min();
        if let Some(at) = found {
            self.text.truncate(at);
            self.closed = true;
        }
        found.is_some()
    }

    /// Where the longest suffix begins that may be the beginning of a stop string.
    fn safe_end(&self) -> usize {
        let prefixes = |stop: &str| stop.char_indices().map(|(at, _)| at).skip(1).collect::<Vec<_>>();
        let held = self
            .stops
            .iter()
            .flat_map(|stop| prefixes(stop).into_iter().filter(|&n| self.text.ends_with(&stop[..n])).max());
        let safe = self.text.len() - held.max().unwrap_or(0);
        self.special_stops.as_ref().map_or(safe, |stops| stops.safe_end().min(safe))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scan(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        let mut scan = StopScan::new(None, &[], stops.iter().map(|s| s.to_string()).collect()).unwrap();
        let mut shown = Vec::new();
        let mut stopped = false;
        for piece in pieces {
            stopped = scan.extend(piece);
            if stopped {
                break;
            }
            shown.push(scan.take(false).unwrap());
        }
        shown.push(scan.take(true).unwrap());
        (shown, scan.text().to_owned(), stopped)
    }

    #[test]
    fn a_stop_string_over_several_tokens_is_never_shown() {
        let (shown, text, stopped) = scan(&["END"], &["abc E", "N", "Dxyz"]);
        assert!(stopped);
        assert_eq!((shown.concat().as_str(), text.as_str()), ("abc ", "abc "));
    }

    #[test]
    fn what_only_looked_like_a_stop_string_is_shown_later() {
        let (shown, text, stopped) = scan(&["END"], &["abc E", "N", "ough"]);
        assert!(!stopped);
        assert_eq!(shown, ["abc ", "", "ENough", ""]);
        assert_eq!(text, "abc ENough");
    }

    #[test]
    fn the_earliest_of_several_stop_strings_cuts() {
        let (_, text, stopped) = scan(&["yz", "é"], &["aé xyz"]);
        assert!(stopped);
        assert_eq!(text, "a");
    }
}
