//! The forward pass: segments of operations, eagerly or from graphs.

use std::ops::Range;
use std::time::Instant;

use pagedraft_attention::mass::MassOver;
use pagedraft_block_manager::BlockId;

use super::Runner;
use crate::architecture::{Attended, Indexed};
use crate::device::{Device, IndexMass, Mass, Op};
use crate::error::ModelError;
use crate::graph::{Fallback, GraphKey, Ran};
use crate::single_tokens::as_single_tokens;
use crate::step_inputs::StepInputs;

impl<D: Device> Runner<D> {
    /// Computes the residual stream of every token row, and writes their KV. It replays the graph of the step's shape if one
    /// was captured, and runs eagerly otherwise. It is for models of one segment: those of several are run
    /// [a segment at a time](Self::forward_segment).
    ///
    /// # Errors
    ///
    /// More rows than [`limits`](Self::limits) says, inconsistent inputs, a model of several segments, or a fault of the device.
    pub fn forward(&mut self, inputs: &StepInputs) -> Result<Ran, ModelError> {
        self.check_single()?;
        self.forward_segment(0, inputs)
    }

    /// Runs one segment: from the embedding (segment 0), or from the residual stream that the segment before left, to the next
    /// residual stream. `inputs` are those of the segment's own rows. Between two segments the caller may look at the
    /// [residual stream](Self::residual) and [compact](Self::compact) it.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward), or a segment that the model does not have.
    pub fn forward_segment(&mut self, segment: usize, inputs: &StepInputs) -> Result<Ran, ModelError> {
        let ran = self.rehearse_segment(segment, inputs)?;
        self.counts.add(ran);
        Ok(ran)
    }

    /// A [`forward`](Self::forward) that is not counted: one to be timed, which computes nobody's tokens.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn rehearse(&mut self, inputs: &StepInputs) -> Result<Ran, ModelError> {
        self.check_single()?;
        self.rehearse_segment(0, inputs)
    }

    /// A [`forward_segment`](Self::forward_segment) that is not counted.
    ///
    /// # Errors
    ///
    /// Those of [`forward_segment`](Self::forward_segment).
    pub fn rehearse_segment(&mut self, segment: usize, inputs: &StepInputs) -> Result<Ran, ModelError> {
        match self.key(segment, inputs) {
            Ok(key) => {
                self.check(segment, inputs)?;
                self.replay(inputs, key)?;
                self.segment = segment;
                self.ran = Ran::Graph(key);
            }
            Err(why) => {
                self.segment_eager(segment, inputs)?;
                self.ran = Ran::Eager(why);
            }
        }
        Ok(self.ran)
    }

    /// Whether [`forward`](Self::forward) would replay a graph for these inputs.
    #[must_use]
    pub fn replays(&self, inputs: &StepInputs) -> bool {
        self.replays_segment(0, inputs)
    }

    /// Whether [`forward_segment`](Self::forward_segment) would replay a graph for these inputs.
    #[must_use]
    pub fn replays_segment(&self, segment: usize, inputs: &StepInputs) -> bool {
        self.key(segment, inputs).is_ok()
    }

    /// [`forward`](Self::forward), but operation by operation whatever was captured, and not counted.
    ///
    /// # Errors
    ///
    /// Those of [`forward`](Self::forward).
    pub fn forward_eager(&mut self, inputs: &StepInputs) -> Result<(), ModelError> {
        self.check_single()?;
        self.segment_eager(0, inputs)
    }

    /// [`forward_segment`](Self::forward_segment), but operation by operation whatever was captured, and not counted.
    ///
    /// # Errors
    ///
    /// Those of [`forward_segment`](Self::forward_segment).
    pub fn segment_eager(&mut self, segment: usize, inputs: &StepInputs) -> Result<(), ModelError> {
        self.bind_eager(segment, inputs)?;
        self.run_ops()
    }

    /// Prepares to run a segment operation by operation.
    pub(super) fn bind_eager(&mut self, segment: usize, inputs: &StepInputs) -> Result<(), ModelError> {
        self.check(segment, inputs)?;
        self.device.bind(inputs, None)?;
        self.ops.clear();
        self.model.segment(segment, self.rows, &mut self.ops);
        self.segment = segment;
        self.ran = Ran::Eager(None);
        Ok(())
    }

    /// The first `rows` rows of the residual stream behind the segment that ran last, `[rows, hidden]`.
    ///
    /// # Errors
    ///
    /// More rows than the stream has, or a fault of the device.
    pub fn residual(&mut self, rows: usize) -> Result<&[f32], ModelError> {
        if rows > self.rows {
            return Err(ModelError::StepTooLarge { rows, limit: self.rows });
        }
        self.device.read(self.model.residual(), rows)
    }

    /// What `each` gives for some rows of the residual stream behind the segment that ran last, as the device's
    /// [`map_rows`](Device::map_rows) does.
    ///
    /// # Errors
    ///
    /// More rows than the stream has, or a fault of the device.
    pub fn map_residual(
        &mut self,
        rows: Range<usize>,
        each: &(dyn Fn(usize, &[f32]) -> f32 + Sync),
    ) -> Result<Vec<f32>, ModelError> {
        if rows.end > self.rows {
            return Err(ModelError::StepTooLarge { rows: rows.end, limit: self.rows });
        }
        self.device.map_rows(self.model.residual(), rows, each)
    }

    /// The queries with which the last layer of the segment that ran last attended, of some token rows.
    ///
    /// # Errors
    ///
    /// More rows than ran, a model that does not tell, or a fault of the device.
    pub fn queries(&mut self, rows: Range<usize>) -> Result<&[f32], ModelError> {
        if rows.end > self.rows {
            return Err(ModelError::StepTooLarge { rows: rows.end, limit: self.rows });
        }
        let q = self.attended()?.q;
        let all = self.device.read(q, rows.end)?;
        let width = all.len() / rows.end.max(1);
        Ok(all.get(rows.start * width..).unwrap_or_default())
    }

    /// How much attention the queries `q` of the last of a sequence's `keys` tokens pay to each of these tokens, in the last layer of the
    /// segment that ran last. The keys are those in the blocks of `table`.
    ///
    /// # Errors
    ///
    /// Those of [`Device::attention_mass`].
    pub fn attention_mass(
        &mut self,
        (table, keys): (&[BlockId], usize),
        q: &[f32],
        over: MassOver,
    ) -> Result<Vec<f32>, ModelError> {
        let Attended { kv, scale, .. } = self.attended()?;
        self.device.attention_mass(&Mass { kv, table, keys, q, scale, over })
    }

    /// The queries with which the indexer scored that chose the keys of the last layer of the segment that ran last, of some token rows. Behind
    /// each query are the weights of its heads.
    ///
    /// # Errors
    ///
    /// More rows than ran, a model without indexers, or a fault of the device.
    pub fn index_queries(&mut self, rows: Range<usize>) -> Result<Vec<f32>, ModelError> {
        if rows.end > self.rows {
            return Err(ModelError::StepTooLarge { rows: rows.end, limit: self.rows });
        }
        let Indexed { q, weights, shape, .. } = self.indexed()?;
        let weights = self.device.read(weights, rows.end)?.to_vec();
        let q = self.device.read(q, rows.end)?;
        let width = q.len() / rows.end.max(1);
        let row = |r: usize| {
            let (q, weights) = (&q[r * width..][..width], &weights[r * shape.heads..][..shape.heads]);
            q.iter().chain(weights).copied()
        };
        Ok(rows.flat_map(row).collect())
    }

    /// For each of a sequence's `keys` tokens the sum of its index scores, in the last layer of the segment that ran last, over the
    /// [`queries`](Self::index_queries) of the last tokens. The keys are those in the blocks of `table`.
    ///
    /// # Errors
    ///
    /// Those of [`Device::index_mass`].
    pub fn index_mass(
        &mut self,
        (table, keys): (&[BlockId], usize),
        queries: &[f32],
    ) -> Result<Vec<f32>, ModelError> {
        let Indexed { kv, shape, .. } = self.indexed()?;
        self.device.index_mass(&IndexMass { kv, table, keys, queries, shape })
    }

    fn indexed(&self) -> Result<Indexed<D::Buf>, ModelError> {
        self.model
            .indexed(self.segment)
            .ok_or_else(|| ModelError::BadInputs { what: "this architecture has no indexers".to_owned() })
    }

    fn attended(&self) -> Result<Attended<D::Buf>, ModelError> {
        self.model.attended(self.segment).ok_or_else(|| ModelError::BadInputs {
            what: "this architecture does not tell what its queries attend to".to_owned(),
        })
    }

    /// Decides between two segments which token rows go on: row i of the next segment is row `rows[i]` of the residual stream
    /// now. A row that the next segment [fetches](Op::Fetch) may be any.
    ///
    /// # Errors
    ///
    /// A model of one segment, a row that the stream does not have, more rows than [`limits`](Self::limits) says, or a fault of
    /// the device.
    pub fn compact(&mut self, rows: &[u32]) -> Result<(), ModelError> {
        let Some(spare) = self.spare else {
            let what = "rows of a model of one segment all go on: there is nothing to compact".to_owned();
            return Err(ModelError::BadInputs { what });
        };
        if rows.len() > self.limits.token_rows {
            return Err(ModelError::StepTooLarge { rows: rows.len(), limit: self.limits.token_rows });
        }
        if let Some(&row) = rows.iter().find(|&&row| row as usize >= self.rows) {
            return Err(ModelError::NoSuchTokenRow { row: row as usize, rows: self.rows });
        }
        self.rows = rows.len();
        if rows.iter().zip(0..).all(|(&row, i)| row == i) {
            return Ok(());
        }
        let x = self.model.residual();
        self.device.select(rows)?;
        self.ops.clear();
        self.ops.push(Op::Gather { x, out: spare, rows: rows.len() });
        self.ops.push(Op::Copy { x: spare, out: x, rows: rows.len() });
        self.run_ops()
    }

    fn check_single(&self) -> Result<(), ModelError> {
        match self.model.num_segments() {
            1 => Ok(()),
            n => {
                let what =
                    format!("a step of this model has {n} segments, which are to be run one at a time");
                Err(ModelError::BadInputs { what })
            }
        }
    }

    fn check(&mut self, segment: usize, inputs: &StepInputs) -> Result<(), ModelError> {
        let rows = inputs.tokens.len();
        if rows > self.limits.token_rows {
            return Err(ModelError::StepTooLarge { rows, limit: self.limits.token_rows });
        }
        let bad = |what| Err(ModelError::BadInputs { what });
        let segments = self.model.num_segments();
        if segment >= segments {
            return bad(format!("segment {segment} of a model that has {segments}"));
        }
        let vocab = self.model.config().vocab_size;
        if let Some(token) = inputs.tokens.iter().find(|&&t| t as usize >= vocab) {
            return bad(format!("token id {token}, and the model's are below {vocab}"));
        }
        let positions = self.limits.max_model_len;
        if let Some(position) = inputs.positions.iter().find(|&&p| p as usize >= positions) {
            return bad(format!("position {position}, and the engine was built for {positions}"));
        }
        let groups = self.model.kv();
        if inputs.groups.len() != groups.len() {
            let (found, kept) = (inputs.groups.len(), groups.len());
            return bad(format!("metadata of {found} KV groups, and the model keeps {kept}"));
        }
        for (group, metadata) in groups.iter().zip(&inputs.groups) {
            if metadata.num_rows() > 0 && metadata.window != group.window {
                let (name, found, window) = (&group.name, metadata.window, group.window);
                return bad(format!(
                    "metadata of the KV group {name:?} with window {found:?}, and the group's is {window:?}"
                ));
            }
        }
        self.rows = rows;
        Ok(())
    }

    /// The key of the graph that a segment replays; or why it does not, `None` when graphs are off.
    fn key(&self, segment: usize, inputs: &StepInputs) -> Result<GraphKey, Option<Fallback>> {
        if self.enforce_eager {
            return Err(None);
        }
        self.captured.key(inputs, segment, self.fault.is_some())
    }

    fn replay(&mut self, inputs: &StepInputs, key: GraphKey) -> Result<(), ModelError> {
        let Some(graph) = self.captured.get(key) else {
            return Err(ModelError::BadInputs { what: format!("no graph was captured for {key:?}") });
        };
        match &mut self.fault {
            Some(builder) if inputs.max_query_len() > 1 => {
                self.device.bind(&as_single_tokens(builder, inputs, key)?, Some(key))?;
            }
            _ => self.device.bind(inputs, Some(key))?,
        }
        if usize::from(key.segment) + 1 == self.model.num_segments() && self.graphs_have_heads() {
            self.device.select(&self.every_row[..key.token_rows as usize])?;
        }
        let start = Instant::now();
        self.device.replay(graph)?;
        self.clock(start);
        Ok(())
    }
}
