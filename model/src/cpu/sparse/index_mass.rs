//! What the indexer of a layer makes of all keys of a sequence.

use pagedraft_attention::sparse::{SelectCall, SelectionView, SparseRows};
use pagedraft_attention::{MetadataBuilder, MetadataRow, TokenRows};

use crate::cpu::device::CpuDevice;
use crate::device::IndexMass;
use crate::error::ModelError;

impl CpuDevice {
    /// Adds up the scores that the last queries of a sequence give to each key that they see. The kernel is that of the choice of keys, which is
    /// told to choose them all.
    pub(in crate::cpu) fn sum_index_scores(&self, mass: &IndexMass<'_>) -> Result<Vec<f32>, ModelError> {
        let IndexMass { kv, table, keys, queries, shape } = *mass;
        let layer = self.kv.vectors(kv)?;
        let width = shape.heads * layer.layout().width();
        let row = width + shape.heads;
        let count = queries.len() / row;
        if count * row != queries.len() || count == 0 || count > keys {
            let what =
                format!("{} values are no rows of {row} of at most {keys} index queries", queries.len());
            return Err(ModelError::BadInputs { what });
        }
        let block_size = layer.layout().block_size();
        let mut builder = MetadataBuilder::new(block_size)?;
        builder.push(MetadataRow::causal((keys - count) as u32, count as u32, table))?;
        let (metadata, mut rows) = (builder.finish(), SparseRows::new());
        rows.plan(metadata, block_size, layer.num_blocks())?;
        let (mut q, mut weights) = (Vec::new(), Vec::new());
        for row in queries.chunks_exact(row) {
            q.extend_from_slice(&row[..width]);
            weights.extend_from_slice(&row[width..]);
        }
        let (mut positions, mut lens) = (vec![0; count * keys], vec![0; count]);
        let (mut stats, mut scores) = (vec![0.0; count * 3], vec![0.0; count * keys]);
        let all = SelectionView::new(&mut positions, &mut lens, keys);
        // SAFETY: both have these shapes, live longer than the call, and are read only when it is done.
        let all = unsafe { all.with_scores(stats.as_mut_ptr(), scores.as_mut_ptr()) };
        let (q, weights) = (TokenRows::new(&q, width), TokenRows::new(&weights, shape.heads));
        let call = SelectCall::new(self.isa, metadata, &rows, layer, shape, q, weights, all)?;
        // SAFETY: no operation is running, so that nobody writes the keys. The rows were planned from this metadata; each item is drawn once.
        self.for_items(call.num_items(), |item, room| unsafe { call.run_item(item, &mut room.select) });
        let mut sums = vec![0.0; keys];
        for (scores, &seen) in scores.chunks_exact(keys).zip(&lens) {
            sums.iter_mut().zip(&scores[..seen as usize]).for_each(|(sum, score)| *sum += score);
        }
        Ok(sums)
    }
}
