use super::super::draws::{Draws, Part, distinct};
use super::super::words::{CoinedWords, adjectives, nouns, verbs};

#[test]
fn no_english_word_is_twice_or_inside_another() {
    let all = [adjectives(), nouns(), verbs()].concat();
    assert!(
        all.len() > 1_000 && all.iter().all(|w| w.len() > 2 && w.bytes().all(|b| b.is_ascii_lowercase()))
    );
    for (i, a) in all.iter().enumerate() {
        for (j, b) in all.iter().enumerate() {
            assert!(i == j || !b.contains(a), "{a} is in {b}");
        }
    }
}

#[test]
fn a_million_coined_words_differ() {
    let words = CoinedWords::new(&mut Draws { task: 0, seed: 1, index: 0 }.of(Part::Words));
    let mut all: Vec<String> = (0..CoinedWords::COUNT).map(|place| words.at(place)).collect();
    assert!(all.iter().all(|w| w.len() == 6));
    all.sort_unstable();
    all.dedup();
    assert_eq!(all.len() as u64, CoinedWords::COUNT);
}

#[test]
fn distinct_numbers_are_so_many_or_all() {
    let mut rng = Draws { task: 0, seed: 1, index: 0 }.of(Part::Places);
    for (below, count) in [(0, 3), (3, 3), (2, 5), (100, 5), (1, 1)] {
        let drawn = distinct(&mut rng, below, count);
        assert_eq!(drawn.len(), count.min(below));
        assert!(drawn.windows(2).all(|w| w[0] < w[1]) && drawn.iter().all(|&d| d < below));
    }
}
