//! `vt`: a chain of variable assignments in noise. A short example of the same task comes first.

use super::draws::{Draws, Part, distinct};
use super::fit::Composition;
use super::needles::NOISE;
use rand::Rng;

/// How many assignments follow the first one.
const HOPS: usize = 4;

/// A chain of assignments in noise.
pub(super) struct Chain {
    draws: Draws,
    places: Part,
    variables: Vec<String>,
    value: String,
    /// The least number of lines of noise.
    least: u64,
}

impl Chain {
    /// The chain that is asked for. Its variables have five letters.
    pub(super) fn asked(draws: Draws) -> Self {
        Self::new(draws, Part::Needles, Part::Places, 5)
    }

    /// The beginning of that chain, for a short text. `shorter` assignments are left out, and one line of
    /// noise is enough. `None` if no assignment after the first would be left.
    pub(super) fn short(draws: Draws, shorter: usize) -> Option<Self> {
        let hops = HOPS.checked_sub(shorter).filter(|&hops| hops > 0)?;
        let mut chain = Self { least: 1, ..Self::asked(draws) };
        chain.variables.truncate(hops + 1);
        Some(chain)
    }

    /// The example's chain. Its variables have three letters.
    pub(super) fn example(draws: Draws) -> Self {
        Self::new(draws, Part::Example, Part::ExamplePlaces, 3)
    }

    fn new(draws: Draws, part: Part, places: Part, letters: usize) -> Self {
        let mut rng = draws.of(part);
        let mut variables: Vec<String> = Vec::new();
        while variables.len() <= HOPS {
            let variable: String = (0..letters).map(|_| char::from(rng.random_range(b'A'..=b'Z'))).collect();
            // Three random letters may be "VAR", which is the keyword.
            if variable != "VAR" && !variables.contains(&variable) {
                variables.push(variable);
            }
        }
        let least = variables.len() as u64;
        Self { draws, places, variables, value: rng.random_range(10_000..99_999u32).to_string(), least }
    }

    /// Turns a prompt of the example into the example's text, by adding the answer.
    pub(super) fn answered(&self, prompt: &str) -> String {
        format!("{prompt} {}\n", self.variables.join(" "))
    }
}

impl Composition for Chain {
    fn least(&self) -> u64 {
        self.least
    }

    fn most(&self) -> u64 {
        u64::MAX
    }

    fn prompt(&self, units: u64) -> String {
        let mut lines: Vec<String> = (0..units).map(|_| NOISE.to_owned()).collect();
        let mut rng = self.draws.of(self.places);
        let places = if lines.len() < self.variables.len() {
            // Several assignments may stand at the same place, or at the end.
            let mut places: Vec<usize> =
                self.variables.iter().map(|_| rng.random_range(0..=lines.len())).collect();
            places.sort_unstable();
            places
        } else {
            distinct(&mut rng, lines.len(), self.variables.len())
        };
        for (i, place) in places.into_iter().enumerate().rev() {
            let variable = &self.variables[i];
            lines.insert(
                place,
                match i.checked_sub(1) {
                    None => format!("VAR {variable} = {}", self.value),
                    // RULER's lines end with the blank.
                    Some(before) => format!("VAR {variable} = VAR {} ", self.variables[before]),
                },
            );
        }
        let (context, value, count) = (lines.join("\n"), &self.value, self.variables.len());
        format!(
            "Memorize and track the chain(s) of variable assignment hidden in the following text.\n\n{context}\n\
             Question: Find all variables that are assigned the value {value} in the text above. \
             Answer: According to the chain(s) of variable assignment in the text above, \
             {count} variables are assigned the value {value}, they are: "
        )
    }

    fn answers(&self) -> Vec<String> {
        self.variables.clone()
    }
}

/// A chain with an example before it.
pub(super) struct Variables {
    pub(super) example: String,
    pub(super) chain: Chain,
}

impl Composition for Variables {
    fn least(&self) -> u64 {
        self.chain.least()
    }

    fn most(&self) -> u64 {
        self.chain.most()
    }

    fn prompt(&self, units: u64) -> String {
        format!("{}\n{}", self.example, self.chain.prompt(units))
    }

    fn answers(&self) -> Vec<String> {
        self.chain.answers()
    }
}
