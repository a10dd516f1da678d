//! What `bench infill` found, for people and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write;

use pagedraft::session::{ModelRef, SessionInfo};
use serde_json::{Value, json};

use super::accuracy::Score;
use super::pieces::Piece;
use super::skip::{Compared, Run};

/// What was found at one share of masks.
struct Shared {
    share: f64,
    filled: Score,
    /// The same masks, each filled with the text's most frequent token.
    unigram: Score,
    causal: Option<Score>,
}

/// What was found so far.
pub struct Report {
    info: SessionInfo,
    seed: u64,
    lens: (u32, u32),
    pieces: usize,
    /// The token that the text has most often, and the share of the text that it is.
    frequent: (u32, f64),
    shares: Vec<Shared>,
    causal: Option<String>,
    skips: Vec<(f64, Compared)>,
}

impl Report {
    pub fn new(info: &SessionInfo, seed: u64, lens: (u32, u32), text: &[u32], pieces: usize) -> Self {
        let mut counts: BTreeMap<u32, usize> = BTreeMap::new();
        text.iter().for_each(|&token| *counts.entry(token).or_default() += 1);
        let (count, token) =
            counts.into_iter().map(|(token, count)| (count, token)).max().unwrap_or_default();
        let frequent = (token, count as f64 / text.len().max(1) as f64);
        let (shares, skips) = (Vec::new(), Vec::new());
        Self { info: info.clone(), seed, lens, pieces, frequent, shares, causal: None, skips }
    }

    pub fn header(&self) -> String {
        let Self { info, seed, lens: (prompt, canvas), pieces, .. } = self;
        format!(
            "{}: {} parameters, {}, {}, {} threads, seed {seed}; {pieces} pieces of {prompt} + {canvas} tokens\n",
            info.model_id,
            info.parameters,
            info.types(),
            info.isa,
            info.threads
        )
    }

    pub fn add_filled(&mut self, share: f64, filled: Score, pieces: &[Piece]) {
        let mut unigram = Score::default();
        for piece in pieces {
            piece.hidden(share).for_each(|place| unigram.add(piece.canvas[place] == self.frequent.0));
        }
        self.shares.push(Shared { share, filled, unigram, causal: None });
    }

    pub fn add_causal(&mut self, model: &ModelRef, likeliest: &[Vec<u32>], pieces: &[Piece]) {
        self.causal = Some(model.to_string());
        for shared in &mut self.shares {
            let mut score = Score::default();
            for (piece, likeliest) in pieces.iter().zip(likeliest) {
                piece.hidden(shared.share).for_each(|at| score.add(likeliest[at] == piece.canvas[at]));
            }
            shared.causal = Some(score);
        }
    }

    pub fn add_skip(&mut self, share: f64, compared: Compared) {
        self.skips.push((share, compared));
    }

    pub fn text(&self) -> String {
        let mut text = String::from("\nright choices for masks, all filled in one pass\n");
        let causal = self.causal.as_deref().unwrap_or("no causal model");
        let _ = writeln!(text, "  masked   masks   this model   most frequent token   {causal}");
        for Shared { share, filled, unigram, causal } in &self.shares {
            let causal = causal.map_or_else(|| "-".to_owned(), |score| percent(score.share()));
            let _ = writeln!(
                text,
                "{:>8}{:>8}{:>13}{:>22}{causal:>17}",
                percent(*share),
                filled.all,
                percent(filled.share()),
                percent(unigram.share())
            );
        }
        for (share, compared) in &self.skips {
            let _ = writeln!(text, "\ntoken skip against the dual cache, {} masked", percent(*share));
            let _ = writeln!(text, "  pass       masks   same choice");
            for (passes, score) in grouped(&compared.agreement) {
                let _ = writeln!(text, "  {passes:8}{:>8}{:>14}", score.all, percent(score.share()));
            }
            let all = compared.all();
            let _ = writeln!(text, "  {:8}{:>8}{:>14}", "all", all.all, percent(all.share()));
            let _ = writeln!(
                text,
                "  of these choices are what the text has: dual cache {}, token skip {}",
                percent(compared.dual_choices.share()),
                percent(compared.skip_choices.share())
            );
            for (name, run) in [("dual cache", &compared.dual), ("token skip", &compared.skip)] {
                let _ = writeln!(
                    text,
                    "  {name} on its own: {} evaluations, {:.2} tokens a forward, {} of block-token passes skipped, {} right in the end",
                    run.evaluations,
                    run.tokens_a_forward(),
                    percent(run.skipped()),
                    percent(run.right.share())
                );
            }
        }
        text
    }

    pub fn json(&self) -> Value {
        let shares = self.shares.iter().map(|shared| {
            json!({
                "share": shared.share,
                "masks": shared.filled.all,
                "accuracy": shared.filled.share(),
                "accuracy_unigram": shared.unigram.share(),
                "accuracy_causal": shared.causal.map(Score::share),
            })
        });
        let skips = self.skips.iter().map(|(share, compared)| {
            let by_step = compared
                .agreement
                .iter()
                .map(|(step, score)| json!({"step": step, "masks": score.all, "agreement": score.share()}));
            json!({
                "share": share,
                "agreement": compared.all().share(),
                "agreement_by_step": by_step.collect::<Vec<_>>(),
                "accuracy_dual_cache": compared.dual_choices.share(),
                "accuracy_skip": compared.skip_choices.share(),
                "dual_cache": run_json(&compared.dual),
                "skip": run_json(&compared.skip),
            })
        });
        json!({
            "model_id": self.info.model_id,
            "dtype": self.info.dtype.to_string(),
            "quantization": self.info.quantization.to_string(),
            "instruction_set": self.info.isa.to_string(),
            "causal": self.causal,
            "pieces": self.pieces,
            "prompt_len": self.lens.0,
            "canvas_len": self.lens.1,
            "seed": self.seed,
            "unigram_share": self.frequent.1,
            "shares": shares.collect::<Vec<_>>(),
            "skip": skips.collect::<Vec<_>>(),
        })
    }
}

fn run_json(run: &Run) -> Value {
    json!({
        "evaluations": run.evaluations,
        "tokens_per_forward": run.tokens_a_forward(),
        "token_layers": run.token_layers,
        "skipped_share": run.skipped(),
        "accuracy": run.right.share(),
    })
}

fn percent(share: f64) -> String {
    format!("{:.1} %", 100.0 * share)
}

/// The passes in groups that double: 1, 2-3, 4-7 and so on.
fn grouped(by_step: &BTreeMap<u32, Score>) -> Vec<(String, Score)> {
    let mut groups: BTreeMap<u32, Score> = BTreeMap::new();
    for (step, score) in by_step {
        let group = groups.entry(step.ilog2()).or_default();
        (group.right, group.all) = (group.right + score.right, group.all + score.all);
    }
    let name = |power: u32| match power {
        0 => "1".to_owned(),
        _ => format!("{}-{}", 1u32 << power, (2u64 << power) - 1),
    };
    groups.into_iter().map(|(power, score)| (name(power), score)).collect()
}
