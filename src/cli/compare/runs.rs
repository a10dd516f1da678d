//! The eight runs that are compared.

use pagedraft::session::{DraftRef, SpeculationOptions};
use pagedraft_spec_decode::Scorer;

/// A proposer, and how its drafts are scored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// No speculation.
    Plain,
    /// N-gram look-up, scored as `--scorer` says.
    Ngram,
    /// The proposer of `--draft`, scored in k + 1 rows of one token.
    BatchExpansion,
    /// The proposer of `--draft`, scored in one row of k + 1 tokens.
    Mqa,
}

/// One of the runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    pub way: Way,
    pub eager: bool,
}

/// The runs in the order of the table: eager, then on graphs, for each way.
pub const RUNS: [Run; 8] = [
    Run { way: Way::Plain, eager: true },
    Run { way: Way::Plain, eager: false },
    Run { way: Way::Ngram, eager: true },
    Run { way: Way::Ngram, eager: false },
    Run { way: Way::BatchExpansion, eager: true },
    Run { way: Way::BatchExpansion, eager: false },
    Run { way: Way::Mqa, eager: true },
    Run { way: Way::Mqa, eager: false },
];

impl Run {
    /// The index of the run that gives the reference: plain and eager.
    pub const REFERENCE: usize = 0;

    /// The index of the run without speculation in the same mode.
    pub fn plain(self) -> usize {
        usize::from(!self.eager)
    }

    /// The index of the eager run of the same way as run `index`.
    pub fn eager_twin(index: usize) -> usize {
        index & !1
    }

    pub fn mode(self) -> &'static str {
        if self.eager { "eager" } else { "graph" }
    }

    /// How this run speculates under the flags `flags`.
    pub fn options(self, flags: &SpeculationOptions) -> SpeculationOptions {
        let mut options = flags.clone();
        match self.way {
            Way::Plain => options.draft = None,
            Way::Ngram => options.draft = Some(DraftRef::Ngram),
            Way::BatchExpansion => options.scorer = Scorer::BatchExpansion,
            Way::Mqa => options.scorer = Scorer::Mqa,
        }
        options
    }

    /// The name of the proposer, or `none`.
    pub fn proposer(self, flags: &SpeculationOptions) -> &'static str {
        self.options(flags).draft.map_or("none", |draft| draft.name())
    }

    /// The name of the scorer, or `none`.
    pub fn scorer(self, flags: &SpeculationOptions) -> String {
        match self.way {
            Way::Plain => "none".to_owned(),
            _ => self.options(flags).scorer.to_string(),
        }
    }

    /// The name of the run in the table, without its mode.
    pub fn name(self, flags: &SpeculationOptions) -> String {
        match self.way {
            Way::Plain => "no speculation".to_owned(),
            _ => format!("{}, {}", self.proposer(flags), self.scorer(flags)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_run_finds_the_runs_it_is_measured_against() {
        for (i, run) in RUNS.into_iter().enumerate() {
            let plain = RUNS[run.plain()];
            assert_eq!((plain.way, plain.eager), (Way::Plain, run.eager));
            let twin = RUNS[Run::eager_twin(i)];
            assert_eq!((twin.way, twin.eager), (run.way, true));
        }
        assert_eq!(RUNS[Run::REFERENCE], Run { way: Way::Plain, eager: true });
    }

    #[test]
    fn the_flags_scorer_is_that_of_the_n_gram_runs_alone() {
        let flags = SpeculationOptions {
            draft: Some(DraftRef::Synthetic { rate: 0.5 }),
            scorer: Scorer::BatchExpansion,
            ..SpeculationOptions::default()
        };
        let names: Vec<_> = RUNS.iter().step_by(2).map(|run| run.name(&flags)).collect();
        let wanted =
            ["no speculation", "ngram, batch-expansion", "synthetic, batch-expansion", "synthetic, mqa"];
        assert_eq!(names, wanted);
    }
}
