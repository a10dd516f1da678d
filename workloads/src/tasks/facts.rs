//! Documents of made-up facts about made-up places and people, and questions about them.

use super::draws::{Draws, Part};
use super::words::{CoinedWords, adjectives, nouns, one_of};
use rand::Rng;

const WORKS: &[&str] = &[
    "Aqueduct",
    "Bridge",
    "Clock Tower",
    "Concert Hall",
    "Lighthouse",
    "Library",
    "Mill",
    "Museum",
    "Observatory",
    "Orchard",
    "Theatre",
    "Town Hall",
];
const TRADES: &[&str] =
    &["baker", "botanist", "brewer", "cartographer", "clockmaker", "glazier", "mason", "printer", "weaver"];

/// The facts about one work and its architect. Different works of a sample have no name in common.
#[derive(Clone, Debug)]
struct Facts {
    work: String,
    town: String,
    river: String,
    founder: [String; 2],
    keeper: [String; 2],
    architect: [String; 2],
    birthplace: String,
    teacher: [String; 2],
    year: u32,
    trade: &'static str,
    architects_trade: &'static str,
    adjectives: [&'static str; 3],
    nouns: [&'static str; 3],
}

/// The most names that one work takes.
const NAMES: u64 = 16;

/// The documents of a sample. The first of them answers its question (with two hops, the first two do).
#[derive(Clone, Copy, Debug)]
pub(super) struct World {
    draws: Draws,
    names: CoinedWords,
    two_hops: bool,
}

/// A question and its right answers.
#[derive(Clone, Debug)]
pub(super) struct Question {
    pub(super) text: String,
    /// The right answers. Any one of them will do.
    pub(super) answers: Vec<String>,
}

impl World {
    /// The most documents. With more, names would occur twice.
    pub(super) const MOST: u64 = CoinedWords::COUNT / NAMES;

    pub(super) fn new(draws: Draws, two_hops: bool) -> Self {
        Self { draws, names: CoinedWords::new(&mut draws.of(Part::Names)), two_hops }
    }

    /// How many documents the question needs.
    pub(super) fn needed(&self) -> u64 {
        if self.two_hops { 2 } else { 1 }
    }

    /// The first `count` documents.
    pub(super) fn documents(&self, count: u64) -> Vec<String> {
        let mut rng = self.draws.of(Part::Haystack);
        let mut documents = Vec::new();
        let mut number = 0;
        let mut left = count;
        while left > 0 {
            let facts = self.facts(&mut rng, number);
            number += 1;
            left -= 1;
            if self.two_hops {
                documents.push(facts.work_article());
                if left > 0 {
                    documents.push(facts.architect_article());
                    left -= 1;
                }
            } else {
                documents.push(facts.paragraph());
            }
        }
        documents
    }

    /// The question about the first document (with two hops, about the first two).
    pub(super) fn question(&self) -> Question {
        let facts = self.facts(&mut self.draws.of(Part::Haystack), 0);
        let person = |name: &[String; 2]| vec![name.join(" "), name[1].clone()];
        let work = &facts.work;
        let mut choices = if self.two_hops {
            vec![
                (
                    format!("In which town was the architect of the {work} born?"),
                    vec![facts.birthplace.clone()],
                ),
                (format!("Who was the teacher of the architect of the {work}?"), person(&facts.teacher)),
            ]
        } else {
            vec![
                (format!("Who founded the {work}?"), person(&facts.founder)),
                (format!("In which town does the {work} stand?"), vec![facts.town.clone()]),
                (format!("On which river lies the town of the {work}?"), vec![facts.river.clone()]),
                (format!("Who is the keeper of the {work} today?"), person(&facts.keeper)),
            ]
        };
        let (text, answers) =
            choices.swap_remove(self.draws.of(Part::Queries).random_range(0..choices.len()));
        Question { text, answers }
    }

    fn facts(&self, rng: &mut impl Rng, number: u64) -> Facts {
        let mut place = number * NAMES;
        let mut name = || {
            place += 1;
            self.names.name_at(place - 1)
        };
        Facts {
            work: format!("{} {}", name(), one_of(rng, WORKS)),
            town: name(),
            river: name(),
            founder: [name(), name()],
            keeper: [name(), name()],
            architect: [name(), name()],
            birthplace: name(),
            teacher: [name(), name()],
            year: rng.random_range(1601..1951),
            trade: one_of(rng, TRADES),
            architects_trade: one_of(rng, TRADES),
            adjectives: std::array::from_fn(|_| one_of(rng, adjectives())),
            nouns: std::array::from_fn(|_| one_of(rng, nouns())),
        }
    }
}

impl Facts {
    /// A document for questions about one document. Like SQuAD's it has no title.
    fn paragraph(&self) -> String {
        let [first, second, third] = self.adjectives;
        let [sign, collection, gift] = self.nouns;
        format!(
            "The {} stands in {}, {} {first} town on the river {}. It was founded in {} by {}, who had made a living as {} {} \
             and wanted to give the town something {second}. Over its door hangs {} {third} {sign}, and inside visitors \
             find a collection that began with {} {collection}. Its keeper today is {}, who shows every guest the \
             founder's {gift} first.",
            self.work,
            self.town,
            article(first),
            self.river,
            self.year,
            self.founder.join(" "),
            article(self.trade),
            self.trade,
            article(third),
            article(collection),
            self.keeper.join(" "),
        )
    }

    /// The first of two documents. Like HotpotQA's it has a title.
    fn work_article(&self) -> String {
        let [first, second, _] = self.adjectives;
        let [sign, ..] = self.nouns;
        format!(
            "{0}\nThe {0} is a building in {1} that was opened in {2}. It was designed by the architect {3} and paid for by \
             {4}, {5} {6} of the town. It is known for its {first} front and for the {second} {sign} above the stairs.",
            self.work,
            self.town,
            self.year,
            self.architect.join(" "),
            self.founder.join(" "),
            article(self.trade),
            self.trade,
        )
    }

    /// The second of two documents.
    fn architect_article(&self) -> String {
        let [.., third] = self.adjectives;
        let [_, collection, gift] = self.nouns;
        format!(
            "{0}\n{0} was an architect, born in {1} on the river {2} as the child of {3} {4}. {5} was the teacher of the young \
             architect and praised {6} {third} drawing of the {collection}. Later years were given to travel and to a book \
             about the {gift}.",
            self.architect.join(" "),
            self.birthplace,
            self.river,
            article(self.architects_trade),
            self.architects_trade,
            self.teacher.join(" "),
            article(third),
        )
    }
}

/// The indefinite article before a word of the lists.
fn article(word: &str) -> &'static str {
    let vowel =
        word.starts_with(['a', 'e', 'i', 'o', 'u']) && !word.starts_with("uni") && !word.starts_with("use");
    if vowel || word == "honest" { "an" } else { "a" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn articles_go_by_the_sound() {
        for (word, wanted) in [
            ("able", "an"),
            ("urban", "an"),
            ("useful", "a"),
            ("unicorn", "a"),
            ("honest", "an"),
            ("honey", "a"),
            ("mill", "a"),
        ] {
            assert_eq!(article(word), wanted, "{word}");
        }
    }

    #[test]
    fn a_shorter_list_of_documents_is_the_beginning_of_a_longer_one() {
        for two_hops in [false, true] {
            let world = World::new(Draws { task: 1, seed: 2, index: 3 }, two_hops);
            let long = world.documents(9);
            assert_eq!(long.len(), 9);
            for count in 0..9 {
                assert_eq!(world.documents(count), long[..count as usize], "{two_hops} {count}");
            }
        }
    }
}
