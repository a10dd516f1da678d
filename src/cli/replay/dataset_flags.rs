//! What is replayed, and which part of it.

use std::path::PathBuf;

use anyhow::anyhow;
use clap::Args;
use clap::builder::{PossibleValuesParser, TypedValueParser};
use pagedraft::exit::{usage, usage_hint};
use pagedraft_workloads::dataset::{DatasetOptions, RandomOptions, Turns, Workload};
use pagedraft_workloads::tasks::RulerOptions;

use super::numbers::{name_of, named, positive, seconds, share};

/// The number of requests if `--num-requests` is not given.
const NUM_REQUESTS: u64 = 100;
/// More generated samples than this are probably a typing error. Counting them alone would take minutes.
const MOST_REQUESTS: u64 = 1_000_000_000;
/// The tokens of prompt and answer of a generated RULER sample, if `--length` is not given.
const RULER_LENGTH: u32 = 4096;

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Workload")]
pub struct DatasetFlags {
    /// Kind of dataset or trace
    #[arg(long, value_name = "WORKLOAD", value_parser = PossibleValuesParser::new(
        ["burstgpt", "azure", "mooncake", "vidur", "sharegpt", "ruler", "longbench", "longbench-v2", "spec-bench", "random"])
        .try_map(|name| named::<Workload>(&name)))]
    pub workload: Workload,
    /// Its file, as published, plain or gzip; none for `random`, and for `ruler` with --task
    #[arg(long, value_name = "FILE")]
    pub path: Option<PathBuf>,
    /// RULER: generate samples of this task, as `niah_single_1`
    #[arg(long, value_name = "TASK")]
    task: Option<String>,
    /// RULER: tokens of prompt and answer of a generated sample (default 4096)
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    length: Option<u32>,
    /// RULER: a text file that generated needles are hidden in (default: made-up sentences)
    #[arg(long, value_name = "FILE")]
    haystack: Option<PathBuf>,
    /// RULER: a SQuAD file that `qa_1` asks of (default: made-up facts)
    #[arg(long, value_name = "FILE")]
    squad: Option<PathBuf>,
    /// Samples to generate (`random`, `ruler` with --task; default 100)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=MOST_REQUESTS))]
    num_requests: Option<u64>,
    /// `random`: prompt tokens of a request (default 512)
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    input_len: Option<u32>,
    /// `random`: tokens that a request generates (default 128)
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    output_len: Option<u32>,
    /// `random`: lengths are drawn from len * (1 - R) to len * (1 + R) (default 0)
    #[arg(long, value_name = "R", value_parser = share)]
    random_range_ratio: Option<f64>,
    /// `random`: share of each prompt that all have in common (default 0)
    #[arg(long, value_name = "SHARE", value_parser = share)]
    prefix_share: Option<f64>,
    /// Leave out what came earlier, in seconds since the file's first record
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true)]
    from: Option<f64>,
    /// Leave out what came then or later, in seconds since the file's first record
    #[arg(long, value_name = "SECONDS", value_parser = seconds, allow_negative_numbers = true)]
    to: Option<f64>,
    /// The first so many records of that window; skipped ones count
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    limit: Option<u64>,
    /// Run records that the trace has as failed (no output), with an output of one token
    #[arg(long)]
    keep_failed: bool,
    /// Conversations: one request each, or one for each answer in them
    #[arg(long, value_name = "full|per-user-turn",
        value_parser = PossibleValuesParser::new(["full", "per-user-turn"]).try_map(|name| named::<Turns>(&name)))]
    turns: Option<Turns>,
    /// Factor on the lengths of traces without text
    #[arg(long, value_name = "X", value_parser = positive, allow_negative_numbers = true)]
    length_scale: Option<f64>,
    /// Skip requests with longer prompts
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_prompt_tokens: Option<u32>,
    /// Generate no more tokens than this for a request
    #[arg(long, value_name = "TOKENS", value_parser = clap::value_parser!(u32).range(1..))]
    pub max_new_tokens: Option<u32>,
}

impl DatasetFlags {
    /// The workload's name on the command line.
    pub fn name(&self) -> String {
        name_of(&self.workload)
    }

    /// Whether prompts are made from text, so that a tokenizer is needed.
    pub fn has_text(&self) -> bool {
        use Workload::{Longbench, LongbenchV2, Ruler, Sharegpt, SpecBench};
        matches!(self.workload, Sharegpt | Ruler | Longbench | LongbenchV2 | SpecBench)
    }

    /// The factor on lengths.
    pub fn length_scale(&self) -> f64 {
        self.length_scale.unwrap_or(1.0)
    }

    /// The options that these flags ask for.
    pub fn options(&self, seed: u64) -> anyhow::Result<DatasetOptions> {
        self.check_others()?;
        self.check_window()?;
        let path = match (self.workload, &self.path, &self.task) {
            (Workload::Random, Some(_), _) => {
                return Err(refuse("--path", "`random` reads no file", "leave it out"));
            }
            (Workload::Ruler, Some(_), Some(_)) => {
                return Err(refuse("--task", "--path has the samples", "leave one of them out"));
            }
            (Workload::Random, None, _) | (Workload::Ruler, None, Some(_)) => None,
            (Workload::Ruler, None, None) => {
                return Err(usage_hint(
                    anyhow!("--workload ruler: there is nothing to replay"),
                    "name a file with --path, or a task to generate with --task",
                ));
            }
            (_, None, _) => {
                return Err(usage_hint(
                    anyhow!("--workload {}: there is nothing to replay", self.name()),
                    "name its file with --path",
                ));
            }
            (_, Some(path), _) => {
                if !path.is_file() {
                    let what = match path.exists() {
                        _ if path.is_dir() => "it is a directory",
                        true => "it is not a regular file, and it is read twice",
                        false => "there is no such file",
                    };
                    return Err(usage_hint(
                        anyhow!("--path {}: {what}", path.display()),
                        "name the dataset's file",
                    ));
                }
                Some(path.clone())
            }
        };
        let num_requests = self.num_requests.unwrap_or(NUM_REQUESTS);
        Ok(DatasetOptions {
            workload: self.workload,
            path,
            turns: self.turns.unwrap_or_default(),
            from_s: self.from,
            to_s: self.to,
            limit: self.limit,
            keep_failed: self.keep_failed,
            random: (self.workload == Workload::Random).then(|| RandomOptions {
                num_requests,
                input_len: self.input_len.unwrap_or(512),
                output_len: self.output_len.unwrap_or(128),
                range_ratio: self.random_range_ratio.unwrap_or(0.0),
                prefix_share: self.prefix_share.unwrap_or(0.0),
            }),
            ruler: self.task.clone().map(|task| RulerOptions {
                task,
                length: self.length.unwrap_or(RULER_LENGTH),
                samples: num_requests,
                haystack: self.haystack.clone(),
                squad: self.squad.clone(),
            }),
            seed,
        })
    }

    /// Refuses flags that belong to other workloads, because whoever gives one expects an effect.
    fn check_others(&self) -> anyhow::Result<()> {
        let random = self.workload == Workload::Random;
        let generated = self.workload == Workload::Ruler && self.task.is_some();
        let of = [
            (self.task.is_some() && self.workload != Workload::Ruler, "--task", "`ruler`"),
            (self.length.is_some() && !generated, "--length", "`ruler` with --task"),
            (self.haystack.is_some() && !generated, "--haystack", "`ruler` with --task"),
            (self.squad.is_some() && !generated, "--squad", "`ruler` with --task"),
            (self.num_requests.is_some() && !random && !generated, "--num-requests", "generated samples"),
            (self.input_len.is_some() && !random, "--input-len", "`random`"),
            (self.output_len.is_some() && !random, "--output-len", "`random`"),
            (self.random_range_ratio.is_some() && !random, "--random-range-ratio", "`random`"),
            (self.prefix_share.is_some() && !random, "--prefix-share", "`random`"),
            (
                self.turns.is_some() && !matches!(self.workload, Workload::Sharegpt | Workload::SpecBench),
                "--turns",
                "conversations",
            ),
            (self.length_scale.is_some() && self.has_text(), "--length-scale", "traces without text"),
        ];
        match of.into_iter().find(|(wrong, ..)| *wrong) {
            Some((_, "--num-requests", _)) if self.workload == Workload::Ruler && self.path.is_none() => {
                Err(refuse(
                    "--workload ruler",
                    "--path or --task is missing",
                    "name a file with --path, or a task to generate with --task",
                ))
            }
            Some((_, "--num-requests", _)) => Err(refuse(
                "--num-requests",
                &format!("`{}` is read from a file", self.name()),
                "use --limit N for its first N records",
            )),
            Some((_, flag, whose)) => Err(refuse(
                flag,
                &format!("it is for {whose}, and this is `{}`", self.name()),
                "leave it out",
            )),
            None => Ok(()),
        }
    }

    fn check_window(&self) -> anyhow::Result<()> {
        if let (Some(from), Some(to)) = (self.from, self.to)
            && from >= to
        {
            return Err(usage(anyhow!("--from {from} --to {to}: the window ends before it begins")));
        }
        Ok(())
    }
}

fn refuse(flag: &str, why: &str, hint: &str) -> anyhow::Error {
    usage_hint(anyhow!("{flag}: {why}"), hint)
}
