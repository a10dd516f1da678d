//! The ways in which an engine is run while it is measured.

use pagedraft::session::{DraftLength, DraftRef, Session, SetupId, SpeculationOptions};
use pagedraft_spec_decode::Scorer;

/// A way in which the engine is run.
#[derive(Clone, Debug)]
pub struct Way {
    /// The proposer; `None` without drafts.
    pub proposer: Option<&'static str>,
    /// Whether the proposer has KV of its own.
    pub keeps_kv: bool,
    pub setup: SetupId,
}

impl Way {
    /// All ways: without drafts, and with drafts of each proposer, from one to `most` per row, by both
    /// scorers, eager and, if the session has them, on graphs.
    pub fn all(
        session: &mut Session,
        base: &SpeculationOptions,
        graphs: bool,
    ) -> anyhow::Result<Vec<Vec<Self>>> {
        let modes: &[bool] = if graphs { &[false, true] } else { &[true] };
        let mut plain = Vec::new();
        for &eager in modes {
            let options = SpeculationOptions { draft: None, ..base.clone() };
            plain.push(Self { proposer: None, keeps_kv: false, setup: session.prepare(&options, eager)? });
        }
        let mut ways = vec![plain];
        let mut drafts = vec![DraftRef::Ngram];
        match &base.draft {
            Some(DraftRef::Ngram) | None => drafts.push(DraftRef::Synthetic { rate: SYNTHETIC_RATE }),
            Some(DraftRef::Suffix { store }) => {
                drafts.push(DraftRef::Synthetic { rate: SYNTHETIC_RATE });
                drafts.push(DraftRef::Suffix { store: *store });
            }
            Some(DraftRef::Synthetic { rate }) => drafts.push(DraftRef::Synthetic { rate: *rate }),
            Some(DraftRef::Model(model)) => {
                drafts.push(DraftRef::Synthetic { rate: SYNTHETIC_RATE });
                drafts.push(DraftRef::Model(model.clone()));
            }
        }
        for draft in drafts {
            let mut of_it = Vec::new();
            for k in 1..=base.length.most().clamp(1, DraftLength::AUTO_MAX) {
                for scorer in [Scorer::Mqa, Scorer::BatchExpansion] {
                    for &eager in modes {
                        let length = DraftLength::Fixed(k);
                        let options =
                            SpeculationOptions { draft: Some(draft.clone()), length, scorer, ..base.clone() };
                        of_it.push(Self {
                            proposer: Some(draft.name()),
                            keeps_kv: matches!(draft, DraftRef::Model(_)),
                            setup: session.prepare(&options, eager)?,
                        });
                    }
                }
            }
            ways.push(of_it);
        }
        Ok(ways)
    }
}

/// The rate of synthetic drafts if none is given. It does not matter here, because their recordings are
/// never right.
pub const SYNTHETIC_RATE: f64 = 0.7;
