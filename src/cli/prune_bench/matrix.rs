//! Scorers side by side: how much of what the answer attends to does each of them keep?

use std::collections::BTreeMap;
use std::sync::Arc;

use anyhow::Context;
use pagedraft::prune::PruneScorer;
use pagedraft::session::{PruneOutput, Request, RequestPrune, Session};

use super::answers::run;
use super::config::Config;

/// Tokens of the dense model's answer, at most.
const ANSWER: u32 = 32;

/// What a scorer keeps.
#[derive(Clone, Debug)]
pub struct Row {
    pub scorer: PruneScorer,
    /// The share of the attention that the answer pays to the prompt which falls on kept tokens, the mean over the layers behind the first
    /// prune and over prompts.
    pub kept_mass: f64,
    /// The share of the prompts' tokens that the last layer holds.
    pub kept_tokens: f64,
}

/// Whether the scorers, and the oracle beside them, can score prompts in this engine.
///
/// # Errors
///
/// One can't; the error names it.
pub fn check(
    session: &Session,
    config: &Config,
    scorers: &[PruneScorer],
    num_layers: u16,
) -> anyhow::Result<()> {
    for scorer in [PruneScorer::Oracle].iter().chain(scorers) {
        let mut request = Request::new("scorer", vec![0], 1);
        request.prune = RequestPrune::Choice(config.scored_by(*scorer, num_layers)?);
        request.recorded = vec![Arc::from([0])];
        session.check(&request).with_context(|| format!("--scorers with the engine of {}", config.name))?;
    }
    Ok(())
}

/// A row for the oracle and for each scorer, at equal kept tokens, over `prompts` and the number of tokens that an answer to each has; `None` if
/// Ctrl-C ended it.
pub fn rows(
    dense: &mut Session,
    pruned: &mut Session,
    (config, scorers): (&Config, &[PruneScorer]),
    prompts: &[(&[u32], u32)],
) -> anyhow::Result<Option<Vec<Row>>> {
    let num_layers = dense.num_layers() as u16;
    let mut sums: BTreeMap<usize, (f64, f64)> = BTreeMap::new();
    let scorers: Vec<PruneScorer> =
        [PruneScorer::Oracle].into_iter().chain(scorers.iter().copied()).collect();
    for &(prompt, answer_tokens) in prompts {
        let mut request = Request::new("answer", prompt.to_vec(), answer_tokens.min(ANSWER));
        (request.ignore_eos, request.prune) = (true, RequestPrune::Never);
        let Some(answer) = run(dense, request.clone())? else { return Ok(None) };
        let answer: Arc<[u32]> = answer.token_ids.into();
        let mass = pruned.answer_mass(prompt, &answer)?;
        for (at, &scorer) in scorers.iter().enumerate() {
            request.prune = RequestPrune::Choice(config.scored_by(scorer, num_layers)?);
            request.recorded = vec![Arc::clone(&answer)];
            request.max_tokens = 1;
            let Some(output) = run(pruned, request.clone())? else { return Ok(None) };
            let Some(kept) = output.prune.flatten() else { continue };
            let sum = sums.entry(at).or_default();
            sum.0 += kept_mass(&kept, &mass);
            sum.1 += f64::from(kept.kv_lens_after_prefill.last().copied().unwrap_or(0)) / prompt.len() as f64;
        }
    }
    let count = prompts.len().max(1) as f64;
    let row = |(at, (mass, tokens)): (usize, (f64, f64))| Row {
        scorer: scorers[at],
        kept_mass: mass / count,
        kept_tokens: tokens / count,
    };
    Ok(Some(sums.into_iter().map(row).collect()))
}

/// The share of `mass` (by layer and position) that falls on kept tokens, the mean over the layers behind the first prune.
fn kept_mass(kept: &PruneOutput, mass: &[Vec<f32>]) -> f64 {
    let mut shares = Vec::new();
    for (layer, mass) in mass.iter().enumerate() {
        // The layers behind which tokens were dropped, up to the one before this.
        let Some((_, positions)) = kept.kept.range(..layer as u16).next_back() else { continue };
        let all: f64 = mass.iter().map(|&x| f64::from(x)).sum();
        let here: f64 = positions.iter().filter_map(|&at| mass.get(at as usize)).map(|&x| f64::from(x)).sum();
        shares.push(here / all);
    }
    shares.iter().sum::<f64>() / shares.len().max(1) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_share_is_that_of_the_layers_behind_the_first_prune() {
        let kept = BTreeMap::from([(0, vec![0, 2, 3]), (1, vec![3])]);
        let output = PruneOutput { kept, ..PruneOutput::default() };
        let mass = [vec![9.0; 4], vec![1.0, 1.0, 1.0, 1.0], vec![1.0, 0.0, 0.0, 3.0]];
        assert_eq!(kept_mass(&output, &mass), 0.75);
    }
}
