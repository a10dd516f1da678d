//! The greatest haystack that fits, found with few encodings.

use crate::prompt::TextTokens;

/// A sample whose haystack can have any size. A size's prompt is always the same.
pub(super) trait Composition {
    /// Units (words, lines, documents) the haystack has at least.
    fn least(&self) -> u64;
    /// Units it can have at most.
    fn most(&self) -> u64;
    /// The prompt with so many units.
    fn prompt(&self, units: u64) -> String;
    /// What a right answer is; the haystack's size does not change it.
    fn answers(&self) -> Vec<String>;
}

/// A prompt that fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Fit {
    pub(super) prompt: String,
    pub(super) units: u64,
    pub(super) tokens: u64,
}

/// Why none fits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Misfit {
    /// The least haystack's prompt has so many tokens.
    TooLong(u64),
    /// The tokenizer's word on a prompt.
    Tokenizer(String),
}

/// Encodings that aim at the budget before halving takes over.
const AIMED: u32 = 8;
/// Units added for the first guess at the tokens of one.
const PROBE: u64 = 16;

/// The prompt with the most units that has at most `budget` tokens: with one unit more it has more tokens, or the composition
/// has no more. It has no more than two units a token, so that a tokenizer that gives none comes to an end.
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
    // Units and tokens of the least prompt known not to fit.
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
            // The cast saturates.
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
