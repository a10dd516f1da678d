//! Checks the fields of the metadata against each other.

use super::fault::Fault;
use super::rule::Rule;
use crate::trace::StepRecord;

/// Checks lengths, running sums, counts, maxima, and the graph's shape, whose token rows must be one of
/// `graph_sizes`.
pub(super) fn check(step: &StepRecord, graph_sizes: Option<&[u64]>) -> Result<(), Fault> {
    let meta = &step.metadata;
    let tokens = step.input_tokens.len();
    let rows = meta.context_lens.len();
    let lengths = [
        ("input_positions", step.input_positions.len(), tokens),
        ("slot_mapping", meta.slot_mapping.len(), tokens),
        ("seq_lens", meta.seq_lens.len(), rows),
        ("block_tables", meta.block_tables.len(), rows),
        ("query_start_loc", meta.query_start_loc.len(), rows + 1),
        ("seq_start_loc", meta.seq_start_loc.len(), rows + 1),
    ];
    for (name, is, should) in lengths {
        if is != should {
            let what = format!(
                "{name} has {is} entries, should have {should} ({tokens} input tokens, {rows} metadata rows)"
            );
            return Err(Fault::new(Rule::Lengths, what));
        }
    }
    for (name, is, should) in
        [("mask_kinds", meta.mask_kinds.len(), rows), ("kv_index", meta.kv_index.len(), tokens)]
    {
        if is != should && is != 0 {
            let what = format!("{name} has {is} entries, should have {should} or none");
            return Err(Fault::new(Rule::Lengths, what));
        }
    }
    if (meta.query_start_loc[0], meta.seq_start_loc[0]) != (0, 0) {
        return Err(Fault::new(Rule::Lengths, "query_start_loc and seq_start_loc start at 0"));
    }
    let mut counts = Counts::default();
    for m in 0..rows {
        let (start, end) = (meta.query_start_loc[m], meta.query_start_loc[m + 1]);
        if end <= start {
            return Err(Fault::new(
                Rule::Lengths,
                format!("metadata row {m} has its query from {start} to {end}"),
            ));
        }
        let query = end - start;
        let (context, length) = (meta.context_lens[m], meta.seq_lens[m]);
        // The queries of a canvas may have keys behind them.
        let bidirectional = meta.mask_kinds.get(m).is_some_and(|mask| mask == "bidirectional");
        let behind = length.checked_sub(query).and_then(|before| before.checked_sub(context));
        if !(behind == Some(0) || bidirectional && behind.is_some()) {
            let what = format!("metadata row {m}: seq_len {length} is not context {context} + query {query}");
            return Err(Fault::new(Rule::Lengths, what));
        }
        if meta.seq_start_loc[m].checked_add(length) != Some(meta.seq_start_loc[m + 1]) {
            let what = format!(
                "seq_start_loc goes from {} to {} over a seq_len of {length}",
                meta.seq_start_loc[m],
                meta.seq_start_loc[m + 1]
            );
            return Err(Fault::new(Rule::Lengths, what));
        }
        counts.add(m, query, length)?;
    }
    if meta.query_start_loc[rows] != tokens as u64 {
        let what = format!(
            "query_start_loc ends at {}, there are {tokens} input tokens",
            meta.query_start_loc[rows]
        );
        return Err(Fault::new(Rule::Lengths, what));
    }
    let compared = [
        ("num_prefills", meta.num_prefills, counts.prefills),
        ("num_prefill_tokens", meta.num_prefill_tokens, counts.prefill_tokens),
        ("num_decode_tokens", meta.num_decode_tokens, counts.decodes),
        ("max_query_len", meta.max_query_len, counts.query),
        ("max_prefill_seq_len", meta.max_prefill_seq_len, counts.prefill_len),
        ("max_decode_seq_len", meta.max_decode_seq_len, counts.decode_len),
    ];
    for (name, is, should) in compared {
        if is != should {
            return Err(Fault::new(Rule::Counts, format!("{name} is {is}, the rows give {should}")));
        }
    }
    let graph = step.mode == "graph";
    if !graph && step.mode != "eager" {
        return Err(Fault::new(Rule::Counts, format!("mode is {:?}, neither eager nor graph", step.mode)));
    }
    if meta.use_cuda_graph != graph || step.graph_key.is_some() != graph {
        let key = step.graph_key.as_ref().map_or_else(|| "null".to_owned(), ToString::to_string);
        let what = format!("mode {}, use_cuda_graph {}, graph_key {key}", step.mode, meta.use_cuda_graph);
        return Err(Fault::new(Rule::Graph, what));
    }
    step.graph_key.as_ref().map_or(Ok(()), |key| check_key(key, step, graph_sizes))
}

/// Checks that the shape that was replayed has room for the step, and its exact query length.
fn check_key(key: &serde_json::Value, step: &StepRecord, graph_sizes: Option<&[u64]>) -> Result<(), Fault> {
    let (rows, tokens) = (step.metadata.context_lens.len() as u64, step.input_tokens.len() as u64);
    let query = step.metadata.max_query_len;
    for (name, needed, exact) in
        [("token_rows", tokens, false), ("max_query_len", query, true), ("sequences", rows, false)]
    {
        let has = key.get(name).and_then(serde_json::Value::as_u64);
        if has.is_none_or(|has| has < needed || (exact && has != needed)) {
            let what = format!("graph_key {key} for a step whose {name} is {needed}");
            return Err(Fault::new(Rule::Graph, what));
        }
        if let (true, Some(has), Some(sizes)) = (name == "token_rows", has, graph_sizes)
            && !sizes.contains(&has)
        {
            let what = format!("graph_key {key}, and graphs were captured at token rows {sizes:?}");
            return Err(Fault::new(Rule::Graph, what));
        }
    }
    Ok(())
}

#[derive(Default)]
struct Counts {
    prefills: u64,
    prefill_tokens: u64,
    decodes: u64,
    query: u64,
    prefill_len: u64,
    decode_len: u64,
}

impl Counts {
    fn add(&mut self, row: usize, query: u64, length: u64) -> Result<(), Fault> {
        self.query = self.query.max(query);
        if query == 1 {
            self.decodes += 1;
            self.decode_len = self.decode_len.max(length);
            return Ok(());
        }
        if self.decodes > 0 {
            let what = format!("metadata row {row} has {query} query tokens and comes after rows of one");
            return Err(Fault::new(Rule::Counts, what));
        }
        self.prefills += 1;
        self.prefill_tokens += query;
        self.prefill_len = self.prefill_len.max(length);
        Ok(())
    }
}
