//! Checks requests that drop tokens of their prompts between two segments of the model.

use std::collections::BTreeMap;

use pagedraft_block_manager::{BlockHash, Salt};

use super::life::Life;
use crate::trace::{OutcomeRecord, PruneRecord, RowRecord};

/// How far such a prompt has come.
#[derive(Default)]
pub(super) struct Thinned {
    /// The segment that its next row begins in, and how many of the tokens that reach it have passed it.
    next: (u16, u64),
    /// How many of the prompt's tokens go on behind each cut.
    kept: Vec<u32>,
    /// How many tokens it has while its prompt is computed: the prompt, and what was generated before a preemption. It is 0 until a row
    /// goes on behind the first segment.
    known: u64,
    /// The length of the prompt.
    prompt_len: u64,
    /// What the blocks of its kept tokens are found by.
    pub(super) name: Option<Salt>,
    /// The positions that were kept behind each layer, as far as the trace told them.
    positions: BTreeMap<u16, Vec<u32>>,
    /// Whether its tokens are numbered anew behind each cut.
    pub(super) compact: bool,
}

impl Thinned {
    /// How many of its tokens reach a segment while the prompt is computed.
    pub(super) fn reach(&self, segment: u16) -> u64 {
        match usize::from(segment).checked_sub(1).and_then(|cut| self.kept.get(cut)) {
            Some(&kept) => u64::from(kept) + self.known.saturating_sub(self.prompt_len),
            None => self.known,
        }
    }

    /// How many tokens a group of a later segment holds once `tokens` tokens of the request have KV there.
    pub(super) fn held(&self, segment: u16, tokens: u64) -> u64 {
        let kept = usize::from(segment).checked_sub(1).and_then(|cut| self.kept.get(cut));
        kept.map_or(tokens, |&kept| (u64::from(kept) + tokens).saturating_sub(self.prompt_len))
    }

    /// Whether part of the prompt has not passed all segments yet.
    pub(super) fn is_on_its_way(&self) -> bool {
        self.next != (0, 0)
    }

    /// How many of the prompt's tokens a later segment holds.
    pub(super) fn kept_behind(&self, segment: u16) -> u64 {
        let kept = usize::from(segment).checked_sub(1).and_then(|cut| self.kept.get(cut));
        kept.map_or(self.prompt_len, |&kept| u64::from(kept))
    }

    /// Checks what was kept of the prompt behind a layer against its counts, and against what was kept behind the layer before.
    pub(super) fn take_kept(&mut self, record: &PruneRecord) -> Result<(), String> {
        let (reached, kept) = (record.input_seq_len, record.kept.len() as u32);
        let before = [self.prompt_len as u32].into_iter().chain(self.kept.iter().copied());
        let is_a_cut = self.kept.iter().zip(before).any(|(&own, before)| own == kept && before == reached);
        if !is_a_cut {
            return Err(format!(
                "{kept} of {reached} tokens were kept behind layer {}, and its counts are {} and then {:?}",
                record.layer, self.prompt_len, self.kept
            ));
        }
        self.positions.retain(|&layer, _| layer < record.layer);
        let within = match self.positions.last_key_value() {
            Some((_, before)) => record.kept.iter().all(|position| before.binary_search(position).is_ok()),
            None => record.kept.last().is_none_or(|&last| u64::from(last) < self.prompt_len),
        };
        if !within {
            return Err(format!("behind layer {} tokens go on that were dropped before", record.layer));
        }
        self.positions.insert(record.layer, record.kept.clone());
        Ok(())
    }

    /// It lost its blocks, so that its prompt is computed again.
    pub(super) fn begin_again(&mut self) {
        (self.next, self.known) = ((0, 0), 0);
    }

    /// What the cache calls block `index` of a later segment's group: `None` where the group holds the whole prompt, as that of a request
    /// that drops nothing.
    pub(super) fn block_name(&self, segment: u16, index: usize) -> Option<u64> {
        let kept = *self.kept.get(usize::from(segment).checked_sub(1)?)?;
        let drops = u64::from(kept) < self.prompt_len;
        let name = self.name.filter(|_| drops)?;
        Some(BlockHash::of(&BlockHash::ROOT, &[index as u32], &name).as_u64())
    }
}

impl Life {
    /// Takes in what a row says of how its request drops prompt tokens, which must be what the rows before said.
    pub(super) fn note_kept(&mut self, row: &RowRecord) -> Result<(), String> {
        let Some(kept) = row.kept.as_deref() else { return Ok(()) };
        let prompt_len = u64::from(row.prompt_len);
        if !kept.is_sorted_by(|a, b| a >= b) || kept.contains(&0) || kept.first() > Some(&row.prompt_len) {
            return Err(format!(
                "kept is {kept:?} of {prompt_len}: a later cut keeps more than an earlier one, or a cut keeps nothing"
            ));
        }
        let name = match &row.kept_name {
            None => None,
            Some(text) => Some(
                Salt::from_hex(text)
                    .ok_or_else(|| format!("kept_name {text:?} is not 64 hexadecimal digits"))?,
            ),
        };
        let thinned = self.thinned.get_or_insert_with(Thinned::default);
        if thinned.kept.is_empty() {
            (thinned.kept, thinned.compact) = (kept.to_vec(), row.compact);
            (thinned.prompt_len, thinned.name) = (prompt_len, name);
        }
        let known = (&thinned.kept[..], thinned.compact, thinned.prompt_len, thinned.name);
        if known != (kept, row.compact, prompt_len, name) {
            return Err(format!("kept is {kept:?} of {prompt_len}, and was {:?}", thinned.kept));
        }
        Ok(())
    }

    /// Checks that a row of a thinned prompt begins where its row before ended.
    pub(super) fn check_thinned(&mut self, row: &RowRecord) -> Result<(), String> {
        let cuts = row.kept.as_deref().unwrap_or_default().len() as u16;
        let (first, last) = row.segments.unwrap_or((0, cuts + 1));
        if first >= last || last > cuts + 1 {
            return Err(format!("segments {first}..{last} of a model that is cut {cuts} times"));
        }
        let tokens = self.tokens.len() as u64;
        let Some(thinned) = &mut self.thinned else { return Ok(()) };
        if thinned.next.0 == 0 && thinned.next.1 > 0 && first == 1 {
            // The row before had the last of its tokens, which its line did not say.
            thinned.known = tokens;
            thinned.next = (1, 0);
        }
        let (segment, passed) = thinned.next;
        if (segment, passed) != (first, u64::from(row.num_computed)) {
            return Err(format!(
                "begins at token {} of segment {first}, and the rows before come to token {passed} of segment {segment}",
                row.num_computed
            ));
        }
        Ok(())
    }

    /// Takes in a row of a thinned prompt and what it emitted. Returns how many of its tokens have KV in the first segment.
    pub(super) fn take_thinned(
        &mut self,
        row: &RowRecord,
        outcome: &OutcomeRecord,
        input: &[u32],
    ) -> Result<u64, String> {
        for (position, &fed) in (row.num_computed as usize..).zip(input) {
            match self.tokens.get(position) {
                Some(&token) if token != fed => {
                    return Err(format!("feeds token {fed} at position {position}, where it has {token}"));
                }
                None if position == self.tokens.len() => self.tokens.push(fed),
                Some(_) | None => {}
            }
        }
        let tokens = self.tokens.len() as u64;
        let Some(thinned) = &mut self.thinned else { return Ok(0) };
        let (first, last) = row.segments.unwrap_or((0, thinned.kept.len() as u16 + 1));
        if last > 1 && thinned.known == 0 {
            thinned.known = tokens;
        }
        let alone = u64::from(row.num_computed) + u64::from(row.num_new);
        let passed = if last - first == 1 { alone } else { thinned.reach(last - 1) };
        let reach = thinned.reach(last - 1);
        if last > 1 && passed > reach {
            return Err(format!("{passed} of its tokens pass segment {}, and {reach} reach it", last - 1));
        }
        let whole = last > 1 && passed == reach;
        let ends = whole && usize::from(last) == thinned.kept.len() + 1;
        let emitted = outcome.token_ids.len();
        if emitted > usize::from(ends) || (ends && emitted == 0 && outcome.finish_reason.is_none()) {
            return Err(format!(
                "emits {emitted} tokens once {passed} tokens have passed segment {}",
                last - 1
            ));
        }
        let computed = if last == 1 { passed } else { thinned.known };
        thinned.next = match (ends, whole) {
            (true, _) => (0, 0),
            (false, true) => (last, 0),
            (false, false) => (last - 1, passed),
        };
        if ends {
            self.known = Some(thinned.known + emitted as u64);
            self.tokens.extend_from_slice(&outcome.token_ids);
        }
        self.next = Some(computed);
        Ok(computed)
    }
}
