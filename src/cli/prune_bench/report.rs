//! Writes what `bench prune` measured.

use std::collections::BTreeMap;
use std::fmt::Write;

use pagedraft::report::table2;
use pagedraft::session::SessionInfo;
use pagedraft_workloads::latency::Spread;
use serde_json::{Map, Value, json};

use super::Engines;
use super::config::Config;
use super::matrix::Row;
use super::quality::Quality;
use super::timing::Run;
use crate::cli::machine;

/// The timed rounds of one way, and what belongs to them.
#[derive(Default)]
struct Way {
    runs: Vec<Run>,
    flops: f64,
    lens: Vec<u32>,
}

impl Way {
    fn median(&self, of: impl Fn(&Run) -> f64) -> f64 {
        Spread::of(&self.runs.iter().map(of).collect::<Vec<_>>()).map_or(f64::NAN, |spread| spread.median())
    }

    /// The share of the drafts that were accepted.
    fn acceptance(&self) -> Option<f64> {
        let sum = |of: fn(&Run) -> u32| self.runs.iter().map(|run| u64::from(of(run))).sum::<u64>();
        let drafts = sum(|run| run.num_drafts);
        (drafts > 0).then(|| sum(|run| run.num_accepted) as f64 / drafts as f64)
    }

    fn json(&self) -> Value {
        let least = |of: fn(&Run) -> f64| self.runs.iter().map(of).fold(f64::INFINITY, f64::min);
        json!({
            "prefill_latency_seconds": self.median(|run| run.prefill),
            "prefill_latency_seconds_least": least(|run| run.prefill),
            "decode_latency_seconds": self.median(|run| run.decode),
            "total_latency_seconds": self.median(Run::total),
            "kv_lens_after_prefill": self.lens,
            "kv_bytes": self.runs.last().map(|run| run.kv_bytes),
            "prefill_flops": self.flops,
            "scoring_seconds": self.median(|run| run.scoring),
            "draft_acceptance_rate": self.acceptance(),
        })
    }
}

/// What was measured at one length.
#[derive(Default)]
struct Length {
    dense: Way,
    pruned: BTreeMap<String, Way>,
    dense_quality: Option<Quality>,
    quality: BTreeMap<String, Quality>,
    matrix: BTreeMap<String, Vec<Row>>,
}

/// What was measured so far.
pub struct Report {
    seed: u64,
    info: SessionInfo,
    lengths: BTreeMap<u32, Length>,
}

impl Report {
    pub fn new(seed: u64, info: &SessionInfo) -> Self {
        Self { seed, info: info.clone(), lengths: BTreeMap::new() }
    }

    pub fn is_empty(&self) -> bool {
        self.lengths.is_empty()
    }

    pub fn header(&self) -> String {
        let info = &self.info;
        format!(
            "{}: {} parameters{}, {}, {}, {} threads, seed {}\n",
            info.model_id,
            info.parameters,
            if info.dummy_weights { " of random weights" } else { "" },
            info.types(),
            info.isa,
            info.threads,
            self.seed
        )
    }

    /// Adds a round: the dense run (`None`) and one of each configuration.
    pub fn add_round(
        &mut self,
        length: u32,
        configs: &[Config],
        runs: Vec<(Option<usize>, Run)>,
        engines: &mut Engines,
    ) -> anyhow::Result<()> {
        let here = self.lengths.entry(length).or_default();
        for (way, run) in runs {
            let (way, lens, scored) = match way {
                None => (&mut here.dense, vec![length; engines.dense.num_layers()], Vec::new()),
                Some(at) => {
                    let lens = run.prune.as_ref().map(|kept| kept.kv_lens_after_prefill.clone());
                    let lens = lens.unwrap_or_default();
                    // Modules score the tokens that reach the layers behind which tokens are dropped.
                    let learned = configs[at].is_learned();
                    let points = run.prune.iter().flat_map(|kept| kept.keep_k.keys());
                    let scored = points.filter(|_| learned).map(|&layer| lens[usize::from(layer)]).collect();
                    (here.pruned.entry(configs[at].name.clone()).or_default(), lens, scored)
                }
            };
            way.flops = engines.dense.prefill_flops(&lens, &scored);
            way.lens = lens;
            way.runs.push(run);
        }
        Ok(())
    }

    pub fn add_quality(&mut self, length: u32, config: &str, dense: &Quality, pruned: Quality) {
        let here = self.lengths.entry(length).or_default();
        here.dense_quality.get_or_insert_with(|| dense.clone());
        here.quality.insert(config.to_owned(), pruned);
    }

    pub fn add_matrix(&mut self, length: u32, config: &str, rows: Vec<Row>) {
        self.lengths.entry(length).or_default().matrix.insert(config.to_owned(), rows);
    }

    /// The figures for programs.
    pub fn json(&self) -> Value {
        let results: Map<String, Value> =
            self.lengths.iter().map(|(length, here)| (length.to_string(), here.json())).collect();
        json!({
            "results": results,
            "model_id": self.info.model_id,
            "parameters": self.info.parameters,
            "dummy_weights": self.info.dummy_weights,
            "dtype": self.info.dtype.to_string(),
            "quantization": self.info.quantization.to_string(),
            "instruction_set": self.info.isa.to_string(),
            "threads": self.info.threads,
            "seed": self.seed,
            "machine": machine::name(),
            "revision": pagedraft::REVISION,
        })
    }

    /// The figures for people.
    pub fn text(&self) -> anyhow::Result<String> {
        if self.is_empty() {
            return Ok("stopped before the first timed round was done\n".to_owned());
        }
        let mut text = format!("\n{}", table2::markdown(&self.json())?);
        for (length, here) in &self.lengths {
            for (config, way) in &here.pruned {
                let (seconds, share) = here.scoring(way);
                let _ = write!(
                    text,
                    "\n{length} tokens, {config}: tokens are scored in {:.1} ms, {:.2} % of the dense prefill",
                    1e3 * seconds,
                    100.0 * share
                );
            }
            text.push_str(&here.quality_table(*length));
            for (config, rows) in &here.matrix {
                let oracle = rows.first().map_or(f64::NAN, |row| row.kept_mass);
                let _ = write!(
                    text,
                    "\n{length} tokens, {config}: share of the answer's attention on kept tokens"
                );
                for Row { scorer, kept_mass, kept_tokens } in rows {
                    let _ = write!(
                        text,
                        "\n  {:<12} {:>6.1} %  {:>6.1} % of the oracle's, {:>5.1} % of the tokens behind the last prune",
                        scorer.to_string(),
                        100.0 * kept_mass,
                        100.0 * kept_mass / oracle,
                        100.0 * kept_tokens
                    );
                }
            }
        }
        text.push('\n');
        Ok(text)
    }
}

impl Length {
    /// The median and the least of the ratios within the rounds.
    fn ratios(&self, way: &Way, of: impl Fn(&Run) -> f64) -> (f64, f64) {
        let ratios = self.dense.runs.iter().zip(&way.runs).map(|(dense, pruned)| of(dense) / of(pruned));
        let ratios: Vec<f64> = ratios.collect();
        let least = ratios.iter().copied().fold(f64::INFINITY, f64::min);
        (Spread::of(&ratios).map_or(f64::NAN, |spread| spread.median()), least)
    }

    /// The median seconds in which tokens were scored and chosen, and the median of what they are of the dense prefill in the same round.
    fn scoring(&self, way: &Way) -> (f64, f64) {
        let shares =
            self.dense.runs.iter().zip(&way.runs).map(|(dense, pruned)| pruned.scoring / dense.prefill);
        let share = Spread::of(&shares.collect::<Vec<_>>()).map_or(f64::NAN, |spread| spread.median());
        (way.median(|run| run.scoring), share)
    }

    /// The quality of all ways side by side as Markdown, tasks of one key before those of several; empty if it was not measured.
    fn quality_table(&self, length: u32) -> String {
        let Some(dense) = &self.dense_quality else { return String::new() };
        let several = |task: &str| task.contains("multikey");
        let mut tasks: Vec<&str> = dense.tasks().map(|(task, _)| task).collect();
        tasks.sort_by_key(|task| several(task));
        let answers: Vec<&str> = dense.answers().map(|(task, _)| task).collect();
        let acceptance = self.dense.acceptance().is_some();
        let mut table = format!("\n\n| {length} tokens | perplexity |");
        table.push_str(if acceptance { " drafts accepted |" } else { "" });
        tasks.iter().for_each(|task| table.push_str(&format!(" {task} |")));
        answers.iter().for_each(|task| table.push_str(&format!(" {task}: perplexity of the answer |")));
        let columns = 1 + usize::from(acceptance) + tasks.len() + answers.len();
        table.push_str(&format!("\n|---|{}\n", "---:|".repeat(columns)));
        let number = |value: Option<f64>| value.map_or("-".to_owned(), |value| format!("{value:.3}"));
        let pruned =
            self.quality.iter().map(|(name, quality)| (name.as_str(), quality, self.pruned.get(name)));
        for (name, quality, way) in [("dense", dense, Some(&self.dense))].into_iter().chain(pruned) {
            let mut figures = vec![quality.perplexity()];
            figures.extend(acceptance.then(|| way.and_then(Way::acceptance)));
            figures.extend(tasks.iter().map(|task| quality.task(task)));
            figures.extend(answers.iter().map(|task| quality.answer(task)));
            let figures: Vec<String> = figures.into_iter().map(number).collect();
            table.push_str(&format!("| {name} | {} |\n", figures.join(" | ")));
        }
        if tasks.iter().any(|task| several(task)) {
            table.push_str(
                "Tokens are scored before a question behind them is read, so that no score knows which of several keys will be asked for.\n",
            );
        }
        table
    }

    fn json(&self) -> Value {
        let mut all = Map::new();
        all.insert("baseline".to_owned(), self.dense.json());
        let (mut speedup, mut reduction) = (Map::new(), Map::new());
        let bytes = |way: &Way| way.runs.last().map_or(f64::NAN, |run| run.kv_bytes as f64);
        for (name, way) in &self.pruned {
            let mut figures = way.json();
            let (first, last) =
                (way.lens.first().copied().unwrap_or(0), way.lens.last().copied().unwrap_or(0));
            figures["tokens_kept"] = last.into();
            figures["tokens_pruned"] = (first - last).into();
            all.insert(name.clone(), figures);
            let (prefill, decode, total) = (
                self.ratios(way, |run| run.prefill),
                self.ratios(way, |run| run.decode),
                self.ratios(way, Run::total),
            );
            let ceiling = self.dense.flops / way.flops;
            speedup.insert(
                name.clone(),
                json!({
                    "prefill": prefill.0, "decode": decode.0, "total": total.0,
                    "prefill_least": prefill.1, "decode_least": decode.1, "total_least": total.1,
                    "flops_ceiling": ceiling, "prefill_of_ceiling": prefill.0 / ceiling, "scoring_of_dense_prefill": self.scoring(way).1,
                }),
            );
            reduction.insert(name.clone(), (1.0 - bytes(way) / bytes(&self.dense)).into());
        }
        all.insert("speedup".to_owned(), speedup.into());
        all.insert("kv_reduction".to_owned(), reduction.into());
        let dense = self.dense_quality.as_ref();
        let quality = self.quality.iter().map(|(name, pruned)| {
            let tasks: Map<String, Value> = pruned
                .tasks()
                .map(|(task, score)| (task.to_owned(), json!({"pruned": score, "dense": dense.and_then(|dense| dense.task(task))})))
                .collect();
            let answers: Map<String, Value> = pruned
                .answers()
                .map(|(task, own)| (task.to_owned(), json!({"pruned": own, "dense": dense.and_then(|dense| dense.answer(task))})))
                .collect();
            let acceptance = self.pruned.get(name).and_then(Way::acceptance);
            let value = json!({
                "perplexity": pruned.perplexity(), "perplexity_dense": dense.and_then(Quality::perplexity), "tasks": tasks, "answer_perplexity": answers,
                "draft_acceptance_rate": acceptance, "draft_acceptance_rate_dense": self.dense.acceptance(),
            });
            (name.clone(), value)
        });
        all.insert("quality".to_owned(), quality.collect::<Map<_, _>>().into());
        let matrix = self.matrix.iter().map(|(name, rows)| {
            let oracle = rows.first().map_or(f64::NAN, |row| row.kept_mass);
            let scorers: Map<String, Value> = rows
                .iter()
                .map(|row| {
                    let value = json!({
                        "kept_mass": row.kept_mass, "of_oracle": row.kept_mass / oracle, "kept_tokens": row.kept_tokens,
                    });
                    (row.scorer.to_string(), value)
                })
                .collect();
            (name.clone(), Value::from(scorers))
        });
        all.insert("scorers".to_owned(), matrix.collect::<Map<_, _>>().into());
        all.into()
    }
}
