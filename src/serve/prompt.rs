//! The forms in which clients send a prompt.

use std::fmt::{self, Formatter};

use serde::de::{Deserialize, Deserializer, Error, SeqAccess, Unexpected, Visitor};

/// One prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Prompt {
    /// Text that has to be tokenised.
    Text(String),
    /// Token ids.
    Ids(Vec<u32>),
}

/// One prompt or several: a text, a list of texts, a list of token ids, or a list of such lists.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Prompts(pub Vec<Prompt>);

/// An element of the list that a prompt may be.
enum Item {
    Text(String),
    Id(u32),
    Ids(Vec<u32>),
}

const FORMS: &str = "a text, a list of token ids, or a list of texts or of such lists";

impl<'de> Deserialize<'de> for Item {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Element;
        impl<'de> Visitor<'de> for Element {
            type Value = Item;

            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str("a text, a token id or a list of token ids")
            }

            fn visit_str<E>(self, text: &str) -> Result<Item, E> {
                Ok(Item::Text(text.to_owned()))
            }

            fn visit_u64<E: Error>(self, id: u64) -> Result<Item, E> {
                u32::try_from(id)
                    .map(Item::Id)
                    .map_err(|_| E::invalid_value(Unexpected::Unsigned(id), &"a token id"))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Item, A::Error> {
                let mut ids = Vec::new();
                while let Some(id) = list.next_element()? {
                    ids.push(id);
                }
                Ok(Item::Ids(ids))
            }
        }
        json.deserialize_any(Element)
    }
}

impl<'de> Deserialize<'de> for Prompts {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<Self, D::Error> {
        struct Whole;
        impl<'de> Visitor<'de> for Whole {
            type Value = Prompts;

            fn expecting(&self, f: &mut Formatter<'_>) -> fmt::Result {
                f.write_str(FORMS)
            }

            fn visit_str<E>(self, text: &str) -> Result<Prompts, E> {
                Ok(Prompts(vec![Prompt::Text(text.to_owned())]))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Prompts, A::Error> {
                let (mut ids, mut prompts) = (Vec::new(), Vec::new());
                while let Some(item) = list.next_element()? {
                    match item {
                        Item::Id(id) => ids.push(id),
                        Item::Text(text) => prompts.push(Prompt::Text(text)),
                        Item::Ids(ids) => prompts.push(Prompt::Ids(ids)),
                    }
                }
                match (ids.is_empty(), prompts.is_empty()) {
                    (false, true) => Ok(Prompts(vec![Prompt::Ids(ids)])),
                    (true, false) => Ok(Prompts(prompts)),
                    (true, true) => {
                        Err(A::Error::custom("the list is empty: give at least one token id or prompt"))
                    }
                    (false, false) => Err(A::Error::custom(
                        "the list has token ids beside texts or lists: give one prompt of ids, or several prompts",
                    )),
                }
            }
        }
        json.deserialize_any(Whole)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use pagedraft_workloads::json_fault;

    fn read(json: &str) -> Result<Vec<Prompt>, String> {
        json_fault::parse::<Prompts>(json.as_bytes()).map(|p| p.0).map_err(|e| e.to_string())
    }

    #[test]
    fn a_prompt_is_read_in_each_of_its_four_forms() {
        let text = |t: &str| Prompt::Text(t.to_owned());
        assert_eq!(read(r#""a b""#).unwrap(), [text("a b")]);
        assert_eq!(read(r#"["a", "b"]"#).unwrap(), [text("a"), text("b")]);
        assert_eq!(read("[1, 2]").unwrap(), [Prompt::Ids(vec![1, 2])]);
        assert_eq!(read("[[1], [2, 3]]").unwrap(), [Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]);
        assert_eq!(read(r#"["a", [2]]"#).unwrap(), [text("a"), Prompt::Ids(vec![2])]);
    }

    #[test]
    fn what_is_no_prompt_is_refused_with_the_place() {
        for (json, told) in [
            ("[]", "empty"),
            ("5", "a list of token ids"),
            ("[1, \"a\"]", "beside"),
            ("[-1]", "[0]"),
            ("[1, 4294967296]", "[1]"),
            ("[[1, \"x\"]]", "[0][1]"),
        ] {
            let error = read(json).unwrap_err();
            assert!(error.contains(told), "{json}: {error}");
        }
    }
}
