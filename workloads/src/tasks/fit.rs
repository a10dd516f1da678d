//! Finds the greatest haystack that fits, with few calls of the tokenizer.

use crate::prompt::TextTokens;

/// A sample whose haystack can have any size. The prompt of a size is always the same.
pub(super) trait Composition {
    /// The least number of units (words, lines, documents) in the haystack.
    fn least(&self) -> u64;
    /// The most units in the haystack.
    fn most(&self) -> u64;
    /// The prompt with this many units.
    fn prompt(&self, units: u64) -> String;
    /// The right answers. They do not depend on the haystack's size.
    fn answers(&self) -> Vec<String>;
}

/// A prompt that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    pub(super) prompt: String,
    pub(super) units: u64,
    pub(super) tokens: u64,
}

/// Why no prompt fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// The prompt with the least haystack has this many tokens, which is too many.
    TooLong(u64),
    /// The tokenizer's error for a prompt.
    Tokenizer(String),
}

/// The number of encodings that aim at the budget, before bisection takes over.
const AIMED: u32 = 8;
/// The number of units added for the first guess of how many tokens a unit takes.
const PROBE: u64 = 16;

/// The prompt with the most units that has at most `budget` tokens: with one unit more it would have too
/// many, or the composition has no more. It has at most two units per token, so that the search ends even
/// if a tokenizer returns no tokens.
pub(super) fn fit(
    composition: &dyn Composition,
    budget: u64,
    tokenizer: &dyn TextTokens,
) -> Result<Fit, Misfit> {
    let make = |units| {
        let prompt = composition.prompt(units);
        let tokens = tokenizer.encode(&prompt).map_err(Misfit::Tokenizer)?.len() as u64;
        Ok(Fit { prompt, units, tokens })
    };
    let mut fits = make(composition.least())?;
    if fits.tokens > budget {
        return Err(Misfit::TooLong(fits.tokens));
    }
    let most = composition.most().min(budget.saturating_mul(2).saturating_add(fits.units));
    // The units and tokens of the smallest prompt that is known not to fit.
    let mut over: Option<(u64, u64)> = None;
    let mut tokens_a_unit = 0.0;
    let mut aimed = 0;
    loop {
        let end = over.map_or(most.saturating_add(1), |(units, _)| units);
        if fits.units + 1 >= end {
            return Ok(fits);
        }
        let guess = if aimed == 0 {
            fits.units.saturating_add(PROBE)
        } else if aimed > AIMED || tokens_a_unit <= 0.0 {
            fits.units + (end - fits.units) / 2
        } else {
            // The cast saturates if the number is too great.
            fits.units.saturating_add(((budget - fits.tokens) as f64 / tokens_a_unit) as u64)
        };
        aimed += 1;
        let made = make(guess.clamp(fits.units + 1, end - 1))?;
        let units = made.units - fits.units;
        tokens_a_unit = (made.tokens as f64 - fits.tokens as f64) / units as f64;
        if made.tokens > budget {
            over = Some((made.units, made.tokens));
        } else {
            fits = made;
            if let Some((units, tokens)) = over {
                tokens_a_unit = (tokens as f64 - fits.tokens as f64) / (units - fits.units) as f64;
            }
        }
    }
}
