//! What a trace says about one request.

use std::collections::HashMap;

use pagedraft_block_manager::Salt;

use super::link::Link;
use super::thinned::Thinned;
use crate::trace::{OutcomeRecord, RowKind, RowRecord};

/// A request from its first row to its end.
#[derive(Default)]
pub(super) struct Life {
    /// The position at which its next row starts; `None` before the first row and after a preemption.
    pub(super) next: Option<u64>,
    /// The number of its tokens, including those without KV. It is known once it has emitted a token.
    pub(super) known: Option<u64>,
    /// Whether KV of it was lost, so that it has to be preempted before it has another row.
    pub(super) lost: bool,
    /// The way of its prompt through the model, if not all of its tokens go on.
    pub(super) thinned: Option<Thinned>,
    /// Its tokens from the first one on, as far as the trace shows them.
    pub(super) tokens: Vec<u32>,
    /// Whether it feeds something else than its tokens (a diffusion model's masks), so that `tokens` says
    /// nothing.
    pub(super) opaque: bool,
    /// The salt of the hashes of its blocks, if it is known.
    pub(super) salt: Option<Salt>,
    /// The hashes of its blocks, as far as they were stored or found in the cache.
    pub(super) chain: Vec<Option<Link>>,
    /// The last table written for it in each KV group, for rows that leave theirs out. The key "" is the
    /// group that `metadata` describes.
    pub(super) written: HashMap<String, Vec<i64>>,
}

impl Life {
    /// Checks that a row is a decode or verify row exactly if its first token is the last known one and was
    /// generated.
    pub(super) fn check_kind(&self, row: &RowRecord) -> Result<(), String> {
        let decodes = self.known == Some(u64::from(row.num_computed) + 1);
        let should = match (row.kind, self.known) {
            (RowKind::Prefill, _) if decodes => "all its known tokens but a generated one are computed",
            (RowKind::Decode | RowKind::Verify, None) => "it has generated nothing yet",
            (RowKind::Decode | RowKind::Verify, Some(_)) if !decodes => {
                "more than one known token is to compute"
            }
            _ => return Ok(()),
        };
        let kind = format!("{:?}", row.kind).to_lowercase();
        Err(format!("a {kind} row from {} on, and {should}", row.num_computed))
    }

    /// Checks that a row which reaches the end of the known tokens emits its accepted drafts and one more
    /// token, and any other row nothing.
    pub(super) fn check_emitted(
        &self,
        row: &RowRecord,
        outcome: &OutcomeRecord,
        own: u64,
    ) -> Result<(), String> {
        let ended = outcome.finish_reason.is_some();
        let (emitted, accepted) = (outcome.token_ids.len() as u64, u64::from(outcome.num_accepted));
        let end = u64::from(row.num_computed) + own;
        let wrong = match row.kind {
            _ if outcome.lost => emitted > 0 || accepted > 0,
            RowKind::Prefill => match self.known {
                Some(known) if end > known => true,
                Some(known) if end < known => emitted > 0,
                Some(_) => emitted > 1 || (emitted == 0 && !ended),
                None => emitted > 1,
            },
            RowKind::Decode | RowKind::Verify => emitted > accepted + 1 || (emitted < accepted + 1 && !ended),
            RowKind::Denoise => false,
        };
        if !wrong {
            return Ok(());
        }
        let mut what =
            format!("a {:?} row with {accepted} accepted drafts emitted {emitted} tokens", row.kind)
                .to_lowercase();
        if let (RowKind::Prefill, Some(known)) = (row.kind, self.known) {
            what = format!("a prefill row up to {end} of {known} known tokens emitted {emitted}");
        }
        Err(what)
    }
}
