//! How the rows of a selection are chosen, as the kernels read it.

use super::launch::{Argument, Launch, Place};
use crate::choice::Choice;
use crate::device::BufferId;

use Argument::{At, U32};

/// Every part starts at a multiple of this many words, which are 128 bytes.
const LINE: usize = 32;

/// An array for each parameter, with one element for each row that can have logits; then the chosen tokens, and what the
/// argmax works with. All consist of words of 32 bits.
#[derive(Clone, Copy, Debug)]
pub struct ChoiceTable {
    rows: usize,
    address: u64,
}

/// The arrays in their order. A seed takes two words.
#[derive(Clone, Copy)]
enum Part {
    Temperature = 0,
    TopK = 1,
    TopP = 2,
    MinP = 3,
    Seed = 4,
    Sample = 6,
    Position = 7,
    Chosen = 8,
    /// Two words per row, which are zero between launches.
    Best = 9,
}

impl ChoiceTable {
    /// A table for selections of up to `rows` rows.
    #[must_use]
    pub fn new(rows: usize) -> Self {
        Self { rows, address: 0 }
    }

    /// The same table at an address.
    #[must_use]
    pub fn at(self, address: u64) -> Self {
        Self { address, ..self }
    }

    /// The address of the table.
    #[must_use]
    pub fn address(&self) -> u64 {
        self.address
    }

    /// The address of the chosen tokens.
    #[must_use]
    pub fn chosen_address(&self) -> u64 {
        self.address + (self.part(Part::Chosen) * size_of::<u32>()) as u64
    }

    fn part(&self, part: Part) -> usize {
        part as usize * self.rows.next_multiple_of(LINE)
    }

    /// The number of words of the whole table.
    #[must_use]
    pub fn words(&self) -> usize {
        self.part(Part::Best) + 2 * self.rows.next_multiple_of(LINE)
    }

    /// The number of words of the parameters.
    #[must_use]
    pub fn parameter_words(&self) -> usize {
        self.part(Part::Chosen)
    }

    /// Writes the parameters of `choices` in the places of `rows`. For all other rows the argmax is chosen.
    pub fn pack(&self, rows: &[u32], choices: &[Choice], words: &mut [u32]) {
        let at = |part, row: u32| self.part(part) + row as usize;
        words[..self.part(Part::TopK)].fill(0);
        for (&row, choice) in rows.iter().zip(choices) {
            words[at(Part::Temperature, row)] = choice.temperature.to_bits();
            words[at(Part::TopK, row)] = choice.top_k;
            words[at(Part::TopP, row)] = choice.top_p.to_bits();
            words[at(Part::MinP, row)] = choice.min_p.to_bits();
            let seed = self.part(Part::Seed) + 2 * row as usize;
            words[seed] = choice.seed as u32;
            words[seed + 1] = (choice.seed >> 32) as u32;
            words[at(Part::Sample, row)] = choice.sample;
            words[at(Part::Position, row)] = choice.position;
        }
    }

    /// The launch that chooses from the first `rows` rows of `logits`.
    #[must_use]
    pub fn launch(&self, logits: BufferId, rows: usize, vocab: usize, greedy: bool) -> Launch {
        let part = |part| At(Place::Choice(self.part(part)));
        let (logits, vocab) = (At(Place::Buffer(logits)), U32(vocab as u32));
        if greedy {
            let arguments = vec![logits, part(Part::Best), At(Place::Arrived), part(Part::Chosen), vocab];
            return Launch { kernel: "argmax", grid: [rows as u32, 8, 1], block: 256, shared: 0, arguments };
        }
        let arguments = vec![
            logits,
            part(Part::Temperature),
            part(Part::TopK),
            part(Part::TopP),
            part(Part::MinP),
            part(Part::Seed),
            part(Part::Sample),
            part(Part::Position),
            part(Part::Chosen),
            vocab,
        ];
        Launch { kernel: "sample", grid: [rows as u32, 1, 1], block: 1024, shared: 0, arguments }
    }
}
