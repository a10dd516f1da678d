//! Compares a request's tokens, as far as the trace shows them, with what it feeds and what is accepted.

use super::life::Life;
use super::rule::Rule;
use super::window::UNKNOWN;
use crate::trace::{OutcomeRecord, RowKind, RowRecord};

impl Life {
    /// Takes in what a row fed and what resulted. `input` holds its own tokens and the drafts after them.
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
                Some(&UNKNOWN) => self.tokens[position] = fed,
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
    /// Adds accepted drafts behind the end of a request, which nobody was given. Their KV was written and
    /// may have been published. It is called when nothing more is checked against the request's own tokens.
    pub(super) fn take_unkept(&mut self, outcome: &OutcomeRecord, input: &[u32]) {
        let drafts = &input[input.len() - (outcome.num_drafts as usize).min(input.len())..];
        let accepted = &drafts[..(outcome.num_accepted as usize).min(drafts.len())];
        self.tokens.extend(accepted.iter().skip(outcome.token_ids.len()));
    }
}

/// Checks that accepted drafts are the tokens that were emitted, and that under coupled acceptance the
/// first rejected one is not. Tokens behind an end may be missing.
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
