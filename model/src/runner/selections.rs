//! Which keys the indexers of a model with sparse attention chose.

use pagedraft_attention::sparse::{ChosenScores, KeepScores};

use super::Runner;
use crate::device::Device;
use crate::error::ModelError;

impl<D: Device> Runner<D> {
    /// Keeps what each indexer chooses in every later step for [`selected_keys`](Self::selected_keys), and what `keep` says of the
    /// scores for [`selected_scores`](Self::selected_scores). Keys cost no time, and 4 bytes for each that may be chosen for a
    /// token row of the largest step in each layer with an indexer; scores take as much if each is kept, and 12 bytes a row if not.
    /// To be called before [`capture`](Self::capture): graphs that were captured earlier do not keep it. A model whose attention
    /// is not sparse keeps nothing.
    ///
    /// # Errors
    ///
    /// Not enough memory.
    pub fn tap_selections(&mut self, keep: KeepScores) -> Result<(), ModelError> {
        let (layers, keys) = (self.model.indexer_layers().len(), self.model.selected_keys());
        let rows = self.limits.token_rows;
        let buffers = (0..layers).map(|_| self.device.choices(rows, keys, keep));
        let buffers = buffers.collect::<Result<_, _>>()?;
        self.model.set_selections(buffers);
        Ok(())
    }

    /// The layers that have an indexer, ascending; empty of a model whose attention is not sparse.
    #[must_use]
    pub fn indexer_layers(&self) -> &[u16] {
        self.model.indexer_layers()
    }

    /// The keys that the `place`-th of the [indexer layers](Self::indexer_layers) chose for a token row of the last forward
    /// pass of its segment: indices in the KV group, ascending. They are all that the row sees, if it sees no more than may be chosen.
    /// `None` unless selections are [tapped](Self::tap_selections).
    ///
    /// # Errors
    ///
    /// A row that the largest step does not have, or a fault of the device.
    pub fn selected_keys(&mut self, place: usize, row: usize) -> Result<Option<&[u32]>, ModelError> {
        match self.model.selections().get(place) {
            Some(&buffer) => self.device.read_choices(buffer, row).map(Some),
            None => Ok(None),
        }
    }

    /// The scores of these keys. `None` unless they are [kept](Self::tap_selections), and if a score is not finite.
    ///
    /// # Errors
    ///
    /// Those of [`selected_keys`](Self::selected_keys).
    pub fn selected_scores(
        &mut self,
        place: usize,
        row: usize,
    ) -> Result<Option<ChosenScores<'_>>, ModelError> {
        match self.model.selections().get(place) {
            Some(&buffer) => self.device.read_scores(buffer, row),
            None => Ok(None),
        }
    }
}
