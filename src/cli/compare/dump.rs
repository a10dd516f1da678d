//! `--dump-metadata`: writes what the first verify step of each run was given.

use anyhow::Context;
use pagedraft::session::{Emitted, Session};
use serde_json::{Value, json};

use super::batch::Observe;

/// Keeps the inputs of the first step with drafts that it sees, as the model was given them.
#[derive(Clone, Debug, Default)]
pub struct FirstVerify {
    pub found: Option<Value>,
}

impl FirstVerify {
    /// Looks at the last step.
    ///
    /// # Errors
    ///
    /// A block table is longer than a sequence can be.
    pub fn look(&mut self, session: &Session) -> anyhow::Result<()> {
        if self.found.is_some() {
            return Ok(());
        }
        let (plan, record) = session.last_step();
        let known: usize = plan.rows.iter().map(|row| row.tokens.len()).sum();
        // Drafts are the tokens that the model was given in addition to the plan's own.
        if record.inputs.tokens.len() <= known {
            return Ok(());
        }
        let mut metadata = record.inputs.metadata().clone();
        // In the usual form of recorded graph steps, every row has room for the longest sequence. The tape
        // of this engine is replayed on the tables as they are.
        let width = record.is_replayed().then(|| {
            let info = session.info();
            info.max_model_len.div_ceil(info.block_size) as usize
        });
        if let Some(width) = width {
            metadata.block_tables = metadata.padded_tables(width)?;
        }
        self.found = Some(json!({
            "step": plan.id.0,
            "input_tokens": record.inputs.tokens,
            "input_positions": record.inputs.positions,
            "block_tables_padded_to": width,
            "metadata": serde_json::to_value(&metadata).context("the metadata can't be written")?,
        }));
        Ok(())
    }
}

/// A [`FirstVerify`] that observes together with another observer.
pub struct Both<'a, O> {
    pub first: O,
    pub verify: &'a mut FirstVerify,
}

impl<O: Observe> Observe for Both<'_, O> {
    fn emitted(&mut self, session: &mut Session, row: usize, news: &Emitted) -> anyhow::Result<()> {
        self.first.emitted(session, row, news)
    }

    fn step(&mut self, session: &Session) -> anyhow::Result<()> {
        self.first.step(session)?;
        self.verify.look(session)
    }
}
