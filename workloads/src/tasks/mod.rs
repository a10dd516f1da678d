//! Tasks with right answers: RULER's thirteen tasks, generated at any length, and the scoring of answers.
//!
//! RULER (arXiv:2404.06654, NVIDIA/RULER) hides what a prompt asks for in a text of any length. Its
//! templates, the sizes of its tasks and its scores are kept to the letter. As in the published JSON lines,
//! a prompt ends with the answer's first words. A prompt is as long as fits: with one more word, line or
//! document, prompt and answer together would be longer than asked.
//!
//! # Short lengths
//!
//! If the whole task does not fit, the first of these reductions is used that is enough. A length that is
//! too small for all of them is an error that names the least possible one.
//!
//! 1. The answer has less room than the original gives it, but at least twice what a perfect one takes.
//! 2. `vt` and `cwe` leave their example out; `fwe` has a text of 27 words or more.
//! 3. `vt` needs only one line of noise, and asks for 5, 4, 3 or 2 variables, the beginning of its chain. `cwe` repeats
//!    common words 3 times and asks for the first 10, 5 or 3 of them.
//!
//! With a tokenizer of four bytes per token every task fits in 256 tokens, and the examples are there from
//! about 470 tokens on. With that of the built-in models, whose tokens are shorter, tasks need from 145
//! tokens (`niah_single_2`) to about 400 (`niah_multikey_3`).
//!
//! # What differs from the original, and why
//!
//! Results of models on these samples can be compared with each other, but not with published RULER scores.
//!
//! | Original | Here | Why |
//! |---|---|---|
//! | essays of Paul Graham | sentences of a small grammar, or the text file given as `haystack` | they can't be shipped |
//! | SQuAD (`qa_1`) | documents of made-up facts, or the SQuAD file given as `squad` | likewise |
//! | HotpotQA (`qa_2`) | pairs of documents of made-up facts, a question over both | likewise |
//! | words of `wonderwords` and a list of English words | own lists of about 1,080 words; where `cwe` needs more, words made of syllables | likewise |
//! | Python's random numbers | ChaCha8, a stream a sample | sample *i* can be made alone, on any machine |
//! | one haystack size for a task, lowered where a sample is too long | the greatest size of each sample | lengths are tight |
//! | at least 10 words or documents, 500 words of an essay, 5 or 25 lines | as few as the task's own text needs | short lengths work |
//! | keys, values and words that may come twice | a needle's key and values are nowhere else | a right answer is one |
//! | the example of `vt` has up to 500 tokens | likewise, but at most a third of the length | short lengths work |
//! | `fwe` with any number of words | 74 words or more, or some that are fewer; 5 coded words or more | the third and fourth most frequent words never tie |
//! | NLTK's sentences | a sentence ends with a word that ends in `.`, `!` or `?` | no model of English is needed |
//! | `qa` repeats all documents when they run out | it repeats distractors | the right document is there once |

mod common_words;
mod draws;
mod essay;
mod facts;
mod fit;
mod frequent_words;
mod generator;
mod json_line;
mod needles;
mod options;
mod questions;
mod recall;
mod score;
mod squad;
mod task;
#[cfg(test)]
mod tests;
mod variables;
mod words;

pub use generator::{RulerGenerator, ruler_samples};
pub use json_line::ruler_json_line;
pub use options::RulerOptions;
pub use recall::{RecallGenerator, RecallOptions, RecallSample};
pub use score::{choice, score};
pub use task::RULER_TASKS;
