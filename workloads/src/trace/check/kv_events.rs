//! Compares what enters and leaves the prefix cache with the blocks and tokens that the steps show.

use super::fault::Fault;
use super::lives::Lives;
use super::own_group::OwnGroup;
use super::rule::Rule;
use super::window::FREED;
use crate::trace::{KvChange, KvEventRecord, StepRecord};

/// The group that an event is about.
enum Place {
    /// A group of the target, by its index.
    Rows(usize),
    /// A group of a draft model, by its name.
    Own(String),
}

impl Lives {
    /// Checks the blocks that left the cache while the plan was made, before the step added anything to it.
    pub(super) fn check_early_events(&mut self, step: &StepRecord) -> Result<(), Fault> {
        for event in &step.kv_events[..num_early(step)] {
            match event.kind {
                KvChange::Restored => self.restore(event)?,
                _ => self.forget(event)?,
            }
        }
        Ok(())
    }

    /// Checks what the step's outcome changed. By then `nexts` tokens of each plan row are computed.
    pub(super) fn check_late_events(&mut self, step: &StepRecord, nexts: &[u64]) -> Result<(), Fault> {
        for event in &step.kv_events[num_early(step)..] {
            match event.kind {
                KvChange::Stored => self.check_stored(step, event, nexts)?,
                KvChange::Kept => self.check_kept(step, event)?,
                KvChange::Restored => self.restore(event)?,
                KvChange::Removed | KvChange::Lost | KvChange::Cleared => self.forget(event)?,
            }
        }
        Ok(())
    }

    /// Checks that a block which comes back has contents that the cache has had.
    fn restore(&mut self, event: &KvEventRecord) -> Result<(), Fault> {
        let block = block_of(event)?;
        let Place::Rows(at) = self.place(event)? else {
            let what = format!("block {block} of a draft model is restored, which no tier keeps");
            return Err(Fault::new(Rule::Published, what));
        };
        let blocks = &mut self.row_groups[at].blocks;
        blocks.restore(block, event.hash).map_err(|what| Fault::new(Rule::Published, what))
    }

    fn forget(&mut self, event: &KvEventRecord) -> Result<(), Fault> {
        if event.kind == KvChange::Cleared {
            self.row_groups.iter_mut().for_each(|group| group.blocks.clear_published());
            self.own_groups.values_mut().for_each(|group| group.blocks.clear_published());
            return Ok(());
        }
        let block = block_of(event)?;
        if event.num_tokens != 0 || event.parent.is_some() {
            let what = format!("block {block} leaves the cache, and the event has tokens or a parent");
            return Err(Fault::new(Rule::Published, what));
        }
        let blocks = match self.place(event)? {
            Place::Rows(at) => &mut self.row_groups[at].blocks,
            Place::Own(name) => &mut self.own_group(&name).blocks,
        };
        blocks.unpublish(block, event.hash).map_err(|what| Fault::new(Rule::Published, what))
    }

    /// Checks that a block is published correctly: it is full of computed and accepted tokens of a request
    /// that has a row, it was not published before, and its hash follows from its parent's.
    fn check_stored(&mut self, step: &StepRecord, event: &KvEventRecord, nexts: &[u64]) -> Result<(), Fault> {
        let block = block_of(event)?;
        let at = match self.place(event)? {
            Place::Rows(at) => at,
            Place::Own(name) => return self.check_own_stored(event, block, &name),
        };
        let (size, group) = (self.block_size, &self.row_groups[at]);
        let Some((row, index)) = group.row_of(block, step) else {
            let what = format!("block {block} is published, which is in no row's table");
            return Err(Fault::new(Rule::Published, what));
        };
        let id = step.rows[row].request_id.as_str();
        let bad = |what: String| Fault::of(Rule::Published, id, format!("publishes block {block}{what}"));
        let (from, to) = (index as u64 * u64::from(size), (index as u64 + 1) * u64::from(size));
        if to > nexts[row] {
            return Err(bad(format!(" of positions {from}..{to}, and has computed {} tokens", nexts[row])));
        }
        let Some(life) = self.live.get_mut(id) else { return Ok(()) };
        group.check_contents(life, id, index).map_err(bad)?;
        if group.blocks.is_published(block) {
            return Err(bad(", which is published already".to_owned()));
        }
        let table = group.held.get(id).map(|held| &held.table[..]).unwrap_or_default();
        let unseen = index.checked_sub(1).and_then(|before| table.get(before)) == Some(&FREED);
        let tokens = group.blocks.tokens(block);
        let link = life.store(index, event, tokens, (size, unseen)).map_err(bad)?;
        self.row_groups[at].blocks.publish(block, link);
        Ok(())
    }

    fn check_own_stored(&mut self, event: &KvEventRecord, block: u32, name: &str) -> Result<(), Fault> {
        let size = self.block_size;
        let group = self.own_groups.entry(name.to_owned()).or_insert_with(|| OwnGroup::new(size));
        let named = |fault: Fault| Fault { what: format!("group {name:?}: {}", fault.what), ..fault };
        group.check_stored(event, block, &mut self.live).map_err(named)
    }

    /// Checks that a block of kept tokens is published correctly.
    fn check_kept(&mut self, step: &StepRecord, event: &KvEventRecord) -> Result<(), Fault> {
        let block = block_of(event)?;
        let size = self.block_size;
        let name = event.group.as_deref().unwrap_or_default();
        let segment = step.groups.as_ref().and_then(|groups| groups.get(name)?.segment);
        let Some(segment) = segment else {
            let what =
                format!("block {block} of kept tokens is published in group {name:?}, which had no rows");
            return Err(Fault::new(Rule::Published, what));
        };
        let group = self.own_groups.entry(name.to_owned()).or_insert_with(|| OwnGroup::new(size));
        let named = |fault: Fault| Fault { what: format!("group {name:?}: {}", fault.what), ..fault };
        group.check_kept(event, (block, segment), &self.live).map_err(named)
    }

    /// The group that an event names. An engine with one group need not name it.
    fn place(&self, event: &KvEventRecord) -> Result<Place, Fault> {
        let Some(name) = &event.group else {
            return Err(Fault::new(Rule::Published, format!("a {:?} event names no group", event.kind)));
        };
        let lags = self.kv_groups.iter().any(|group| group.lags && group.name == *name);
        if lags || self.own_groups.contains_key(name) {
            return Ok(Place::Own(name.clone()));
        }
        let named = self.row_groups.iter().position(|group| group.name == *name);
        let unnamed = || self.row_groups.first().is_some_and(|group| group.name.is_empty()).then_some(0);
        match named.or_else(unnamed) {
            Some(at) => Ok(Place::Rows(at)),
            None => {
                Err(Fault::new(Rule::Published, format!("an event is of group {name:?}, and there is none")))
            }
        }
    }

    fn own_group(&mut self, name: &str) -> &mut OwnGroup {
        let size = self.block_size;
        self.own_groups.entry(name.to_owned()).or_insert_with(|| OwnGroup::new(size))
    }
}

/// The number of events before the first `stored` or `kept` one. They are from the time when the plan was made.
fn num_early(step: &StepRecord) -> usize {
    let is_late =
        |event: &KvEventRecord| matches!(event.kind, KvChange::Stored | KvChange::Kept | KvChange::Lost);
    let stored = step.kv_events.iter().position(is_late);
    stored.unwrap_or(step.kv_events.len())
}

fn block_of(event: &KvEventRecord) -> Result<u32, Fault> {
    let what = || Fault::new(Rule::Published, format!("a {:?} event names no block", event.kind));
    event.block.ok_or_else(what)
}
