//! The graphs that were captured of a model.

use std::collections::HashMap;

use crate::graph::{CaptureSizes, Fallback, GraphKey};
use crate::step_inputs::StepInputs;

/// Graphs of a model by their keys, and the sizes that they were captured at.
pub(crate) struct CapturedGraphs<G> {
    graphs: HashMap<GraphKey, G>,
    /// Graphs captured under the other setting of [`Device::set_deterministic`](crate::Device::set_deterministic), kept so that
    /// switching back is cheap.
    other_way: HashMap<GraphKey, G>,
    sizes: Option<CaptureSizes>,
}

impl<G> Default for CapturedGraphs<G> {
    fn default() -> Self {
        Self { graphs: HashMap::new(), other_way: HashMap::new(), sizes: None }
    }
}

impl<G> CapturedGraphs<G> {
    /// Forgets every graph, also those of the other setting.
    pub fn clear(&mut self) {
        self.graphs.clear();
        self.other_way.clear();
    }

    /// Forgets the graphs of the present setting and takes those of a new capture at these sizes.
    pub fn replace(&mut self, sizes: CaptureSizes, graphs: HashMap<GraphKey, G>) {
        self.graphs = graphs;
        self.sizes = Some(sizes);
    }

    /// Drops the graphs of the present setting, whose memory a new capture can then take.
    pub fn drop_present(&mut self) {
        self.graphs.clear();
    }

    /// Exchanges the graphs with those of the other setting. If graphs have been captured before but not under this setting,
    /// the sizes at which that is to be done.
    pub fn turn(&mut self) -> Option<CaptureSizes> {
        std::mem::swap(&mut self.graphs, &mut self.other_way);
        self.sizes.clone().filter(|_| self.graphs.is_empty())
    }

    /// How many graphs there are.
    pub fn len(&self) -> usize {
        self.graphs.len()
    }

    /// The graph of a key.
    pub fn get(&self, key: GraphKey) -> Option<&G> {
        self.graphs.get(&key)
    }

    /// The key of the graph that these inputs of a segment are replayed on, or why there is none: `None` if nothing was ever
    /// captured. `by_rows`: pick the graph of single tokens that has as many token rows, whatever the query lengths.
    pub fn key(
        &self,
        inputs: &StepInputs,
        segment: usize,
        by_rows: bool,
    ) -> Result<GraphKey, Option<Fallback>> {
        let Some(sizes) = &self.sizes else { return Err(None) };
        let rows = u32::try_from(inputs.tokens.len()).unwrap_or(u32::MAX);
        let sequences = u32::try_from(inputs.num_sequences()).unwrap_or(u32::MAX);
        let key = sizes.key(rows, inputs.max_query_len(), sequences).map_err(Some)?;
        let key = if by_rows && key.max_query_len > 1 {
            sizes.key(key.token_rows, 1, key.token_rows).map_err(Some)?
        } else {
            key
        };
        let key = GraphKey { segment: segment as u16, ..key };
        if self.graphs.contains_key(&key) { Ok(key) } else { Err(Some(Fallback::NotCaptured)) }
    }
}
