//! Turns tokens into text as they come, and looks for stop strings.

use std::sync::Arc;

use pagedraft_model::tokenizer::{TextStream, Tokenizer};

use super::request::Request;
use super::special_stops::SpecialStops;
use crate::error::Result;

/// How many prompt tokens are decoded in front of the text. Whether a word begins with a space depends on
/// the token before it.
const CONTEXT_TOKENS: usize = 6;

/// The text of one sequence. It is decoded token by token. Text that may be the beginning of a stop string
/// is held back.
pub struct StopScan {
    stream: Option<TextStream>,
    stops: Vec<String>,
    /// Whether the stop string stays in the text.
    includes_stop: bool,
    /// How many more tokens are added before stop strings are looked for.
    unlooked: u32,
    /// Those stop strings that contain special tokens are also looked for in a text that shows them.
    special_stops: Option<SpecialStops>,
    text: String,
    /// The bytes of `text` that were handed out already.
    sent: usize,
    closed: bool,
}

impl StopScan {
    /// The text that follows the prompt of `request`, which any of its stop strings ends. Without a tokenizer there is no text.
    ///
    /// # Errors
    ///
    /// The tokenizer can't decode a token of the prompt.
    pub fn new(tokenizer: Option<&Arc<Tokenizer>>, request: &Request) -> Result<Self> {
        let (prompt, stops) = (&request.prompt, request.stop.clone());
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
        Ok(Self {
            stream,
            stops,
            includes_stop: request.include_stop_str_in_output,
            unlooked: request.sampling.changes.as_ref().map_or(0, |changes| changes.min_tokens),
            special_stops,
            text: String::new(),
            sent: 0,
            closed: false,
        })
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
    pub fn push(&mut self, token: u32) -> Result<bool> {
        let Some(stream) = &mut self.stream else { return Ok(false) };
        let looks = self.unlooked == 0;
        self.unlooked = self.unlooked.saturating_sub(1);
        if let Some(special_stops) = &mut self.special_stops
            && stream.tokenizer().special_text(token).is_some()
        {
            let held = stream.held()?;
            let name = stream.tokenizer().special_text(token).unwrap_or_default();
            if let Some(at) = special_stops.special(&held, name).filter(|_| looks) {
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
        Ok(self.extend(&piece, looks))
    }

    /// The text that can be shown since the last call. At the `end` of the sequence it is all of it; before
    /// that, what may be the beginning of a stop string is held back.
    ///
    /// # Errors
    ///
    /// At the end, the tokenizer can't decode the remaining bytes.
    pub fn take(&mut self, end: bool) -> Result<String> {
        if end && !self.closed {
            self.closed = true;
            let rest = self.stream.as_mut().map(TextStream::finish).transpose()?.flatten();
            if let Some(rest) = rest {
                self.extend(&rest, self.unlooked == 0);
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

    /// Adds text. Returns whether it completed a stop string, if those are looked for. A stop string that was complete before is none.
    fn extend(&mut self, piece: &str, looks: bool) -> bool {
        let before = self.text.len();
        self.text.push_str(piece);
        let special = self.special_stops.as_mut().and_then(|stops| stops.text(piece));
        if !looks {
            return false;
        }
        let found = |stop: &String| {
            let mut from = (before + 1).saturating_sub(stop.len());
            while !self.text.is_char_boundary(from) {
                from -= 1;
            }
            let ends_in_piece = |&at: &usize| at + stop.len() > before;
            let at = self.text[from..]
                .match_indices(stop.as_str())
                .map(|(at, _)| from + at)
                .find(ends_in_piece)?;
            Some((at, if self.includes_stop { at + stop.len() } else { at }))
        };
        let found = self.stops.iter().filter_map(found).min_by_key(|&(at, _)| at);
        let cut = found.into_iter().chain(special.map(|at| (at, at))).min_by_key(|&(at, _)| at);
        if let Some((_, end)) = cut {
            self.text.truncate(end);
            self.closed = true;
        }
        cut.is_some()
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
    use pagedraft_spec_decode::sampling::LogitChanges;

    use super::*;

    fn scan(stops: &[&str], pieces: &[&str]) -> (Vec<String>, String, bool) {
        scan_as(
            Request { stop: stops.iter().map(|s| s.to_string()).collect(), ..Request::new("", vec![], 1) },
            pieces,
        )
    }

    fn scan_as(request: Request, pieces: &[&str]) -> (Vec<String>, String, bool) {
        let mut scan = StopScan::new(None, &request).unwrap();
        let mut shown = Vec::new();
        let mut stopped = false;
        for piece in pieces {
            let looks = scan.unlooked == 0;
            scan.unlooked = scan.unlooked.saturating_sub(1);
            stopped = scan.extend(piece, looks);
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
    fn a_stop_string_stays_in_the_text_if_asked_for() {
        let stop = vec!["END".to_owned()];
        let request = Request { stop, include_stop_str_in_output: true, ..Request::new("", vec![], 1) };
        let (shown, text, stopped) = scan_as(request, &["abc E", "N", "Dxyz"]);
        assert!(stopped);
        assert_eq!((shown.concat().as_str(), text.as_str()), ("abc END", "abc END"));
    }

    #[test]
    fn stop_strings_that_are_complete_before_the_least_length_end_nothing() {
        let mut request = Request { stop: vec!["ab".to_owned()], ..Request::new("", vec![], 1) };
        request.sampling.changes = Some(Box::new(LogitChanges { min_tokens: 2, ..LogitChanges::default() }));
        let (_, text, stopped) = scan_as(request.clone(), &["ab", "xa", "b", "c"]);
        assert!(stopped);
        assert_eq!(text, "abx");
        let (_, text, stopped) = scan_as(request, &["ab", "xab", "c", "d"]);
        assert!(!stopped);
        assert_eq!(text, "abxabcd");
    }

    #[test]
    fn the_earliest_of_several_stop_strings_cuts() {
        let (_, text, stopped) = scan(&["yz", "é"], &["aé xyz"]);
        assert!(stopped);
        assert_eq!(text, "a");
    }
}
