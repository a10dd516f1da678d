//! A request's tokens, as far as the trace shows them, against what it finds, feeds, accepts and publishes.

use super::lives::{Life, Lives};
use super::{Fault, Rule};
use crate::trace::{OutcomeRecord, RowKind, RowRecord, StepRecord};

impl Lives {
    /// Whoever starts with KV that is there already, found it in blocks that it may have, and of its own tokens. What the
    /// trace had not shown of them so far is known from here on.
    pub(super) fn check_context(&mut self, step: &StepRecord) -> Result<(), Fault> {
        for row in &step.rows {
            let id = row.request_id.as_str();
            let computed = u64::from(row.num_computed);
            let Some(life) = self.live.get(id) else { continue };
            if life.next.is_some() || life.opaque || row.kind == RowKind::Denoise {
                continue;
            }
            let whole = (computed / u64::from(self.block_size)) as usize;
            for (i, &block) in life.table.iter().enumerate().take(whole) {
                let copied = || step.copies.iter().any(|copy| copy.to == i64::from(block));
                if !self.blocks.is_published(block) && !copied() && !self.is_parents(id, block, i) {
                    let what = format!(
                        "starts with {computed} tokens, of them block {block}, which nobody published"
                    );
                    return Err(Fault::of(Rule::Context, id, what));
                }
            }
            if let Some((position, is, should)) =
                self.blocks.first_other(&life.table, &life.tokens, 0, computed)
            {
                let what = format!(
                    "starts with {computed} tokens, and finds token {is} at position {position}, where it has {should}"
                );
                return Err(Fault::of(Rule::Context, id, what));
            }
            let found: Vec<u32> = (life.tokens.len() as u64..computed)
                .map_while(|position| self.blocks.token(&life.table, position))
                .collect();
            if let Some(life) = self.live.get_mut(id) {
                life.tokens.extend(found);
            }
        }
        Ok(())
    }

    /// Whether a running request besides `id` has entry `index` of its table computed: a fork shares it unpublished.
    fn is_parents(&self, id: &str, block: u32, index: usize) -> bool {
        let end = (index as u64 + 1) * u64::from(self.block_size);
        self.live.iter().any(|(other, life)| {
            other != id && life.table.get(index) == Some(&block) && life.next.is_some_and(|next| next >= end)
        })
    }

    /// The blocks that an outcome published, `next` tokens of the request being computed by then.
    pub(super) fn check_published(&mut self, outcome: &OutcomeRecord, next: u64) -> Result<(), Fault> {
        let (id, size) = (outcome.request_id.as_str(), u64::from(self.block_size));
        let Some(life) = self.live.get(id) else { return Ok(()) };
        for &block in &outcome.published {
            let bad =
                |what: String| Err(Fault::of(Rule::Published, id, format!("publishes block {block}{what}")));
            let Some(index) = life.table.iter().position(|&held| held == block) else {
                return bad(", which is not in its table".to_owned());
            };
            let (from, to) = (index as u64 * size, (index as u64 + 1) * size);
            if to > next {
                return bad(format!(" of positions {from}..{to}, and has computed {next} tokens"));
            }
            if let Some(position) = self.blocks.first_unwritten(&life.table, from, to) {
                return bad(format!(", whose position {position} was never written"));
            }
            if !life.opaque
                && let Some((position, is, should)) =
                    self.blocks.first_other(&life.table, &life.tokens, from, to)
            {
                return bad(format!(" with token {is} at position {position}, where it has {should}"));
            }
            if !self.blocks.publish(block) {
                return bad(", which is published already".to_owned());
            }
        }
        Ok(())
    }
}

impl Life {
    /// What a row fed, and what came of it: `input` are its own tokens and the drafts behind them.
    pub(super) fn take_tokens(
        &mut self,
        row: &RowRecord,
        outcome: &OutcomeRecord,
        input: &[u32],
        coupled: bool,
    ) -> Result<(), (Rule, String)> {
        self.opaque |= row.kind == RowKind::Denoise;
        if self.opaque {
            return Ok(());
        }
        let drafted = (outcome.num_drafts as usize).min(input.len());
        let (own, drafts) = input.split_at(input.len() - drafted);
        let start = row.num_computed as usize;
        for (position, &fed) in (start..).zip(own) {
            match self.tokens.get(position) {
                Some(&token) if token != fed => {
                    let what = format!("feeds token {fed} at position {position}, where it has {token}");
                    return Err((Rule::Tokens, what));
                }
                None if position == self.tokens.len() => self.tokens.push(fed),
                Some(_) | None => {}
            }
        }
        check_accepted(drafts, outcome, coupled).map_err(|what| (Rule::Acceptance, what))?;
        if !outcome.token_ids.is_empty() {
            self.tokens.truncate(start + own.len());
            self.tokens.extend_from_slice(&outcome.token_ids);
        }
        Ok(())
    }
}

impl Life {
    /// An end keeps back accepted drafts behind it. Nobody was given them, but whoever wrote their KV may have published
    /// it: to be called once nothing else is to be said of the request's own tokens.
    pub(super) fn take_unkept(&mut self, outcome: &OutcomeRecord, input: &[u32]) {
        let drafts = &input[input.len() - (outcome.num_drafts as usize).min(input.len())..];
        let accepted = &drafts[..(outcome.num_accepted as usize).min(drafts.len())];
        self.tokens.extend(accepted.iter().skip(outcome.token_ids.len()));
    }
}

/// Accepted drafts are what was emitted; the first that was not accepted differs, where acceptance is coupled. Tokens behind
/// an end may be missing.
fn check_accepted(drafts: &[u32], outcome: &OutcomeRecord, coupled: bool) -> Result<(), String> {
    let accepted = outcome.num_accepted as usize;
    for (i, (draft, emitted)) in drafts.iter().zip(&outcome.token_ids).enumerate() {
        if i < accepted && draft != emitted {
            return Err(format!(
                "draft {i} of {accepted} accepted ones is token {draft}, and {emitted} was emitted"
            ));
        }
        if i == accepted && coupled && draft == emitted {
            return Err(format!("draft {i} is token {draft} as emitted, and only {accepted} were accepted"));
        }
    }
    Ok(())
}
