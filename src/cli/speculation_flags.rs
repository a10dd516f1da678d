//! The flags of speculation.

use anyhow::anyhow;
use clap::builder::{OsStringValueParser, TypedValueParser};
use clap::{Args, ValueEnum};
use pagedraft::exit::{usage, usage_hint};
use pagedraft::session::{DraftLength, DraftRef, SpeculationOptions};
use pagedraft_spec_decode::Scorer;
use pagedraft_spec_decode::acceptance::Acceptance;

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Speculation")]
pub struct SpeculationFlags {
    /// Who proposes drafts: a model of the same vocabulary, n-gram look-up, suffix look-up (in the request, and in up to TOKENS
    /// tokens of past outputs), or the plain run's tokens, each right with probability RATE (default: nobody)
    #[arg(long, value_name = "DIR|FILE.gguf|builtin:NAME|ngram|suffix[:TOKENS]|synthetic:RATE",
        value_parser = OsStringValueParser::new().try_map(DraftRef::named))]
    pub draft: Option<DraftRef>,
    /// What a token of a synthetic draft is made to take, as a share of a decode step
    #[arg(long, value_name = "SHARE", default_value_t = 0.0, value_parser = draft_cost, allow_negative_numbers = true)]
    draft_cost: f64,
    /// Drafts of a row at most; `auto`: as many as pay, for each request and step
    #[arg(long, value_name = "K|auto", default_value_t = DraftLength::Auto)]
    pub num_speculative_tokens: DraftLength,
    /// How verify rows become metadata: one row of k + 1 query tokens (the default), or k + 1 rows of one
    #[arg(long, value_enum)]
    scorer: Option<ScorerName>,
    /// Which drafts stand; `coupled`, the default, gives the very tokens of the run without drafts
    #[arg(long, value_enum)]
    acceptance: Option<AcceptanceName>,
    /// Typical acceptance: a draft more likely than this always stands
    #[arg(long, value_name = "P", default_value_t = Acceptance::TYPICAL_THRESHOLD, value_parser = share32, allow_negative_numbers = true)]
    typical_threshold: f32,
    /// Typical acceptance: factor of exp(-entropy)
    #[arg(long, value_name = "A", default_value_t = Acceptance::TYPICAL_ALPHA, value_parser = share32, allow_negative_numbers = true)]
    typical_alpha: f32,
    /// Shortest n-gram that is looked up
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    ngram_min: u32,
    /// Longest n-gram that is looked up
    #[arg(long, value_name = "N", default_value_t = 4, value_parser = clap::value_parser!(u32).range(1..))]
    ngram_max: u32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ScorerName {
    Mqa,
    BatchExpansion,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum AcceptanceName {
    /// A draft stands when the target, by its own noise, chooses it
    Coupled,
    /// Rejection sampling: keeps the target's distribution
    Rejection,
    /// As likely as is typical: changes the distribution
    Typical,
}

impl SpeculationFlags {
    /// The flags that were given but have no effect, because there is no proposer.
    pub fn idle(&self) -> Vec<&'static str> {
        if self.draft.is_some() {
            return Vec::new();
        }
        let given = [
            (matches!(self.num_speculative_tokens, DraftLength::Fixed(1..)), "--num-speculative-tokens"),
            (self.scorer.is_some(), "--scorer"),
            (self.acceptance.is_some(), "--acceptance"),
            (self.draft_cost > 0.0, "--draft-cost"),
        ];
        given.into_iter().filter(|(given, _)| *given).map(|(_, flag)| flag).collect()
    }

    /// The options that these flags ask for.
    pub fn options(&self) -> anyhow::Result<SpeculationOptions> {
        if self.ngram_min > self.ngram_max {
            return Err(usage(anyhow!(
                "--ngram-min {} is more than --ngram-max {}: the shortest n-gram is longer than the longest",
                self.ngram_min,
                self.ngram_max
            )));
        }
        if self.draft_cost > 0.0 && !matches!(self.draft, None | Some(DraftRef::Synthetic { .. })) {
            return Err(usage_hint(
                anyhow!("--draft-cost is the cost of a synthetic draft, and --draft names another"),
                "leave it out: what other drafts cost is measured",
            ));
        }
        let options = SpeculationOptions {
            draft: self.draft.clone(),
            draft_cost: self.draft_cost,
            ngram: (self.ngram_min, self.ngram_max),
            length: self.num_speculative_tokens,
            scorer: match self.scorer {
                None | Some(ScorerName::Mqa) => Scorer::Mqa,
                Some(ScorerName::BatchExpansion) => Scorer::BatchExpansion,
            },
            acceptance: match self.acceptance {
                None | Some(AcceptanceName::Coupled) => Acceptance::Coupled,
                Some(AcceptanceName::Rejection) => Acceptance::Rejection,
                Some(AcceptanceName::Typical) => {
                    Acceptance::Typical { threshold: self.typical_threshold, alpha: self.typical_alpha }
                }
            },
        };
        options.acceptance.validate().map_err(|e| usage(e.into()))?;
        Ok(options)
    }
}

/// Reads a number that is not negative.
fn share(text: &str) -> Result<f64, String> {
    let number = text.parse().ok().filter(|n: &f64| n.is_finite() && *n >= 0.0);
    number.ok_or_else(|| "a number that is not negative, such as 0.2".to_owned())
}

/// Reads a cost in decode steps. A greater one would only make the program stand still.
fn draft_cost(text: &str) -> Result<f64, String> {
    const MOST: f64 = 1000.0;
    share(text)
        .ok()
        .filter(|share| *share <= MOST)
        .ok_or_else(|| format!("a number from 0 to {MOST}, such as 0.2"))
}

fn share32(text: &str) -> Result<f32, String> {
    share(text).map(|number| number as f32)
}
