//! What a trace of tensors says about the judge.

use std::sync::Arc;

use super::judge::{States, cosine};
use super::state::Canvas;
use crate::tensors::{Fact, TensorEvent, TensorTracer, TracedTensor};

/// Writes how the tokens of a block were judged: their states in the pass `before` and now.
pub(super) fn write(
    tracer: &mut TensorTracer,
    canvas: &Canvas,
    before: &States,
    (plan_row, request): (usize, pagedraft_scheduler::RequestKey),
    first_layer: usize,
) {
    let now = canvas.states();
    let (layers, tokens, hidden) = (now.layers(), now.tokens, now.hidden);
    let block: Arc<[u32]> = canvas.block().collect();
    let active = canvas.active().unwrap_or_default();
    let masks: Vec<u32> = canvas.block().filter(|&position| canvas.is_mask(position)).collect();
    let shaped =
        |name, shape: &[usize]| TracedTensor { name, shape: shape.to_vec(), stats: None, values: Vec::new() };
    let mut says = |event, layer, tensors, facts| {
        let (plan_row, pass, positions) = (plan_row as u32, Some(canvas.pass()), Arc::clone(&block));
        tracer.push(TensorEvent { event, layer, request, plan_row, pass, positions, tensors, facts });
    };
    says("MODEL_PREV_HIDDEN_INFO", None, vec![shaped("prev_hidden", &[layers, tokens, hidden])], Vec::new());
    says(
        "SKIP_JUDGE_START",
        None,
        vec![shaped("hidden", &[layers, tokens, hidden])],
        vec![("layers_compared", Fact::Count(layers as u64)), ("masked", Fact::Counts(masks))],
    );
    for layer in 0..layers {
        let cosines = (0..tokens).map(|token| cosine(before.of(layer, token), now.of(layer, token)));
        says(
            "SKIP_COS_SIM_DETAIL",
            // A state that enters a layer is what left the one before.
            u16::try_from((first_layer + layer).saturating_sub(1)).ok(),
            vec![shaped("h1", &[tokens, hidden]), shaped("h2", &[tokens, hidden])],
            vec![("cos_sim", Fact::Reals(cosines.collect()))],
        );
    }
    let count = |count: usize| Fact::Count(count as u64);
    says(
        "SKIP_JUDGE_RESULT",
        None,
        vec![shaped("active_mask", &[tokens])],
        vec![
            ("num_stable", count(tokens - active.len())),
            ("num_active", count(active.len())),
            ("masked_stable", Fact::Count(canvas.masked_stable.into())),
            ("active", Fact::Counts(active.to_vec())),
        ],
    );
    if active.is_empty() {
        return;
    }
    if active.len() < tokens {
        let tensors = vec![
            shaped("active_indices", &[active.len()]),
            shaped("x_after_select", &[1, active.len(), hidden]),
        ];
        says("SKIP_PARTIAL", None, tensors, Vec::new());
    }
    let ids = vec![("position_ids", Fact::Counts(active.to_vec()))];
    says("SKIP_POSITION_UPDATE", None, vec![shaped("position_ids", &[active.len()])], ids);
}
