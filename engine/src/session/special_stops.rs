//! Stop strings that contain special tokens, such as `<|im_end|>`.
//!
//! The text of a request does not contain special tokens, so such a stop string could never be found there.
//! It is looked for in a second text, in which each special token is written by its name. A special token
//! is one piece in it: a stop string may begin before or behind it but not inside its name, so that the
//! stop string `<` does not end a text at `<|im_end|>`.

/// The text of a sequence with its special tokens by name, and the stop strings that are looked for in it.
pub(super) struct SpecialStops {
    stops: Vec<String>,
    /// The bytes of the longest stop string.
    longest: usize,
    text: String,
    /// The pieces of `text` that the text of the request does not have, in ascending order.
    names: Vec<Name>,
}

/// A piece of the text that the text of the request does not have: a name, or text held before it.
struct Name {
    start: usize,
    end: usize,
    /// The bytes of this piece and of all such pieces before it.
    bytes: usize,
}

impl SpecialStops {
    /// Takes those `stops` that contain a name of a special token; `None` if none does.
    pub(super) fn among<'a>(stops: &[String], names: impl Iterator<Item = &'a str> + Clone) -> Option<Self> {
        let holds_one = |stop: &&String| names.clone().any(|name| !name.is_empty() && stop.contains(name));
        let stops: Vec<String> = stops.iter().filter(holds_one).cloned().collect();
        let longest = stops.iter().map(String::len).max()?;
        Some(Self { stops, longest, text: String::new(), names: Vec::new() })
    }

    /// Adds a special token by its `name`. `held` is text before it that was not added yet, because its
    /// last character is unfinished. Returns where in the text of the request the first stop string begins
    /// that this completes.
    pub(super) fn special(&mut self, held: &str, name: &str) -> Option<usize> {
        let from = self.search_from();
        for piece in [held, name] {
            if !piece.is_empty() {
                let (start, before) = (self.text.len(), self.names.last().map_or(0, |name| name.bytes));
                self.text.push_str(piece);
                self.names.push(Name { start, end: self.text.len(), bytes: before + piece.len() });
            }
        }
        self.found(from)
    }

    /// Adds text. Returns where in the text of the request the first stop string begins that this
    /// completes.
    pub(super) fn text(&mut self, piece: &str) -> Option<usize> {
        let from = self.search_from();
        self.text.push_str(piece);
        self.found(from)
    }

    /// Where in the text of the request the part begins that might be the beginning of a stop string.
    pub(super) fn safe_end(&self) -> usize {
        let begun = |stop: &String| {
            let ends = stop.char_indices().map(|(end, _)| end).skip(1);
            let starts =
                ends.filter(|&end| self.text.ends_with(&stop[..end])).map(|end| self.text.len() - end);
            starts.filter(|&start| !self.is_inside(start)).min()
        };
        let begins = self.stops.iter().filter_map(begun).min();
        self.in_request(begins.unwrap_or(self.text.len()))
    }

    /// A stop string that the next piece completes begins at most its own length before that piece.
    fn search_from(&self) -> usize {
        let mut from = (self.text.len() + 1).saturating_sub(self.longest);
        while !self.text.is_char_boundary(from) {
            from -= 1;
        }
        from
    }

    fn found(&self, from: usize) -> Option<usize> {
        let first = |stop: &String| {
            let begins = self.text[from..].char_indices().map(|(at, _)| from + at);
            let mut here = begins.filter(|&at| self.text[at..].starts_with(stop.as_str()));
            here.find(|&at| !self.is_inside(at) && !self.is_inside(at + stop.len()))
        };
        self.stops.iter().filter_map(first).min().map(|at| self.in_request(at))
    }

    /// Whether a place in the text lies inside a name.
    fn is_inside(&self, at: usize) -> bool {
        let next = self.names.partition_point(|name| name.end <= at);
        self.names.get(next).is_some_and(|name| name.start < at)
    }

    /// The corresponding place in the text of the request.
    fn in_request(&self, at: usize) -> usize {
        let before = self.names.partition_point(|name| name.end <= at);
        at - before.checked_sub(1).map_or(0, |last| self.names[last].bytes)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stops(stops: &[&str]) -> SpecialStops {
        let stops: Vec<String> = stops.iter().map(|stop| (*stop).to_owned()).collect();
        SpecialStops::among(&stops, ["<x>", "</s>"].into_iter()).unwrap()
    }

    #[test]
    fn only_stop_strings_that_hold_a_special_token_are_looked_for() {
        let none = ["end".to_owned(), "<".to_owned(), String::new()];
        assert!(SpecialStops::among(&none, ["<x>", ""].into_iter()).is_none());
        assert_eq!(stops(&["end", "a<x>"]).stops, ["a<x>"]);
    }

    #[test]
    fn a_stop_string_begins_where_the_text_of_the_request_says() {
        let mut found = stops(&["b<x>c", "</s>"]);
        assert_eq!(found.text("a"), None);
        assert_eq!(found.special("", "<x>"), None);
        assert_eq!(found.text("b"), None);
        assert_eq!(found.safe_end(), 1, "`b` may be the beginning of a stop string");
        assert_eq!(found.special("", "<x>"), None);
        assert_eq!(found.safe_end(), 1);
        assert_eq!(found.text("c"), Some(1));
        let mut found = stops(&["b<x>c", "</s>"]);
        assert_eq!((found.text("ab"), found.special("", "<x>"), found.text("d")), (None, None, None));
        assert_eq!(found.safe_end(), 3);
        assert_eq!(found.special("", "</s>"), Some(3));
    }

    #[test]
    fn a_special_token_is_one_piece() {
        // `<x><` would end inside the second token, and `x></s>` would begin inside the first.
        let mut found = stops(&["<x><", "x></s>"]);
        assert_eq!((found.special("", "<x>"), found.special("", "<x>")), (None, None));
        assert_eq!(found.special("", "</s>"), None);
        // If the model spells a token out, that is text like any other.
        let mut found = stops(&["<x>"]);
        assert_eq!((found.text("a<"), found.text("x"), found.text(">")), (None, None, Some(1)));
    }

    #[test]
    fn an_unfinished_character_stands_between_the_text_and_the_token() {
        let mut found = stops(&["a<x>", "<x>"]);
        assert_eq!(found.text("a"), None);
        assert_eq!(found.special("\u{fffd}", "<x>"), Some(1));
    }
}
