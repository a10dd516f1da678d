//! What is read behind a forward pass: logits, hidden states, tokens that the device chooses.

use super::Runner;
use crate::choice::Choice;
use crate::device::Device;
use crate::error::ModelError;
use crate::graph::Ran;
use crate::selected::Selected;

impl<D: Device> Runner<D> {
    /// Computes the logits of token rows of the last segment, unless its graph has computed them already.
    fn head(&mut self, rows: &[u32]) -> Result<(), ModelError> {
        if self.segment + 1 != self.model.num_segments() {
            let what = format!("logits behind segment {}, which is not the model's last", self.segment);
            return Err(ModelError::BadInputs { what });
        }
        if rows.len() > self.limits.logit_rows {
            return Err(ModelError::StepTooLarge { rows: rows.len(), limit: self.limits.logit_rows });
        }
        if let Some(&row) = rows.iter().find(|&&r| r as usize >= self.rows) {
            return Err(ModelError::NoSuchTokenRow { row: row as usize, rows: self.rows });
        }
        if !self.replayed_head() {
            self.device.select(rows)?;
            self.ops.clear();
            self.model.head(rows.len(), &mut self.ops);
            self.run_ops()?;
        }
        Ok(())
    }

    /// Whether [`choose`](Self::choose) gives tokens.
    #[must_use]
    pub fn chooses(&self) -> bool {
        self.device.chooses()
    }

    /// The tokens that `choices` take from the logits of token rows of the last [`forward`](Self::forward), chosen on the device.
    /// A row without one has [`NO_CHOICE`](crate::NO_CHOICE). The logits themselves can still be [read](Self::logits).
    ///
    /// # Errors
    ///
    /// Those of [`logits`](Self::logits).
    pub fn choose(&mut self, rows: &[u32], choices: &[Choice]) -> Result<&[u32], ModelError> {
        self.head(rows)?;
        // A graph computed the logits of all rows, the step's own first.
        let rows = if self.replayed_head() { rows } else { &self.every_row[..rows.len()] };
        self.device.choose(self.model.logits(), rows, choices)
    }

    /// The logits of token rows of the last [`forward`](Self::forward).
    ///
    /// # Errors
    ///
    /// More rows than `limits().logit_rows`, a row that the step did not have, or a fault of the device.
    pub fn logits<'a>(&'a mut self, rows: &'a [u32]) -> Result<Selected<'a>, ModelError> {
        self.head(rows)?;
        self.selected(self.model.logits(), rows, self.config().vocab_size)
    }

    /// The final norm's output of the rows last given to [`logits`](Self::logits).
    ///
    /// # Errors
    ///
    /// A fault of the device.
    pub fn final_hidden<'a>(&'a mut self, rows: &'a [u32]) -> Result<Selected<'a>, ModelError> {
        self.selected(self.model.final_hidden(), rows, self.config().hidden_size)
    }

    fn selected<'a>(
        &'a mut self,
        buffer: D::Buf,
        rows: &'a [u32],
        width: usize,
    ) -> Result<Selected<'a>, ModelError> {
        Ok(match self.replayed_head() {
            // The graph computed all rows, the step's own first.
            true => Selected::new(self.device.read(buffer, self.rows)?, width, Some(rows)),
            false => Selected::new(self.device.read(buffer, rows.len())?, width, None),
        })
    }

    /// Whether a graph computed the logits of the last step's rows.
    fn replayed_head(&self) -> bool {
        matches!(self.ran, Ran::Graph(_)) && self.graphs_have_heads()
    }

    /// The residual stream of the last step as it entered layer `layer` (`num_layers`: as it left the last layer). `None` if
    /// [`tap_hidden`](Self::tap_hidden) was not called or there is no such layer.
    ///
    /// # Errors
    ///
    /// A fault of the device.
    pub fn hidden(&mut self, layer: usize) -> Result<Option<&[f32]>, ModelError> {
        match self.model.taps().get(layer) {
            Some(&tap) => self.device.read(tap, self.rows).map(Some),
            None => Ok(None),
        }
    }
}
