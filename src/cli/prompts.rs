//! Reads the prompts of `generate`, and how each is to be continued.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use anyhow::{Context, anyhow};
use clap::Args;
use pagedraft::exit::{usage, usage_hint};
use pagedraft::prune::{PruneChoice, PruneSpec};
use pagedraft::session::{Request, RequestPrune, Session};
use pagedraft_spec_decode::sampling::{LogitChanges, SamplingParams};
use pagedraft_workloads::json_fault::{self, JsonName, JsonTexts};
use serde::Deserialize;

#[derive(Clone, Debug, Args)]
#[group(id = "source", required = true, multiple = false)]
#[command(next_help_heading = "Prompt")]
pub struct PromptSource {
    /// The prompt
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    prompt: Option<String>,
    /// The prompt is this file's text (`-`: standard input)
    #[arg(long, value_name = "FILE")]
    prompt_file: Option<PathBuf>,
    /// The prompt as token ids
    #[arg(long, value_name = "ID,ID,..", value_delimiter = ',', value_parser = token_id)]
    token_ids: Option<Vec<u32>>,
    /// A JSON object a line: prompt or prompt_token_ids, request_id, arrival_step, cache_salt, and any sampling parameter
    #[arg(long, value_name = "FILE.jsonl")]
    prompts: Option<PathBuf>,
}

#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Sampling")]
pub struct SamplingFlags {
    /// Most tokens to generate
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// 0 is greedy
    #[arg(long, value_name = "T", default_value_t = 0.0, allow_negative_numbers = true)]
    temperature: f32,
    /// Only the K likeliest tokens (0 or -1: all)
    #[arg(long, value_name = "K", default_value_t = 0, allow_negative_numbers = true)]
    top_k: i64,
    /// Only the likeliest tokens that have this probability together
    #[arg(long, value_name = "P", default_value_t = 1.0, allow_negative_numbers = true)]
    top_p: f32,
    /// Only tokens at least this likely, as a share of the likeliest
    #[arg(long, value_name = "P", default_value_t = 0.0, allow_negative_numbers = true)]
    min_p: f32,
    /// Subtract this from the logits of tokens that were generated before (-2 to 2)
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    presence_penalty: f32,
    /// Subtract this once for each time that the token was generated before (-2 to 2)
    #[arg(long, value_name = "X", default_value_t = 0.0, allow_negative_numbers = true)]
    frequency_penalty: f32,
    /// Divide the positive logits of tokens of the prompt or the output by this, and multiply the negative ones (1: off)
    #[arg(long, value_name = "X", default_value_t = 1.0, allow_negative_numbers = true)]
    repetition_penalty: f32,
    /// Do not end before so many tokens
    #[arg(long, value_name = "N", default_value_t = 0)]
    min_tokens: u32,
    /// Samples of each prompt
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u32).range(1..))]
    n: u32,
    /// End before this text (may be given several times); special tokens stand in it by their names, as `<|im_end|>`
    #[arg(long, value_name = "TEXT", allow_hyphen_values = true)]
    stop: Vec<String>,
    /// End at this token
    #[arg(long, value_name = "ID,ID,..", value_delimiter = ',', value_parser = token_id)]
    stop_token_ids: Vec<u32>,
    /// Go on after the model's end-of-sequence token
    #[arg(long)]
    ignore_eos: bool,
    /// Report the N best log probabilities of every generated token
    #[arg(long, value_name = "N")]
    logprobs: Option<u32>,
    /// Report the N best log probabilities of every prompt token
    #[arg(long, value_name = "N")]
    prompt_logprobs: Option<u32>,
    /// Lower goes first (with --policy priority)
    #[arg(long, default_value_t = 0, allow_negative_numbers = true)]
    priority: i32,
}

/// A prompt before the model is loaded. Its text may still have to be tokenised.
#[derive(Debug)]
pub struct Prompt {
    text: Option<String>,
    request: Request,
    arrival_step: u64,
    /// Where it comes from, for error messages.
    place: String,
}

/// A request and the step before which it may not be scheduled.
#[derive(Debug)]
pub struct Arrival {
    pub step: u64,
    pub request: Request,
}

/// The greatest step number that every JSON reader represents exactly.
const LAST_STEP: u64 = 1 << 53;
/// More samples of one prompt than this are probably a typing error.
const MOST_SAMPLES: u32 = 16_384;

/// A line of `--prompts`.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
struct Line {
    prompt: Option<String>,
    prompt_token_ids: Option<Vec<u32>>,
    request_id: Option<JsonName>,
    cache_salt: Option<String>,
    #[serde(default)]
    arrival_step: u64,
    max_tokens: Option<u32>,
    temperature: Option<f32>,
    top_k: Option<i64>,
    top_p: Option<f32>,
    min_p: Option<f32>,
    seed: Option<u64>,
    n: Option<u32>,
    stop: Option<JsonTexts>,
    stop_token_ids: Option<Vec<u32>>,
    ignore_eos: Option<bool>,
    logprobs: Option<u32>,
    prompt_logprobs: Option<u32>,
    priority: Option<i32>,
    num_speculative_tokens: Option<u32>,
    presence_penalty: Option<f32>,
    frequency_penalty: Option<f32>,
    repetition_penalty: Option<f32>,
    min_tokens: Option<u32>,
    logit_bias: Option<BTreeMap<u32, f32>>,
    #[serde(default)]
    include_stop_str_in_output: bool,
    /// Absent: as the engine's flags say; null: not at all; a spec, or the name of a preset.
    #[serde(default, deserialize_with = "said")]
    prune: Option<Option<serde_json::Value>>,
}

/// A field that is there, though it may be null.
fn said<'de, D: serde::Deserializer<'de>>(from: D) -> Result<Option<Option<serde_json::Value>>, D::Error> {
    Deserialize::deserialize(from).map(Some)
}

/// How a line's prompt is pruned. Modules lie relative to `folder`.
fn prune(said: Option<Option<serde_json::Value>>, folder: &Path) -> anyhow::Result<RequestPrune> {
    Ok(match said {
        None => RequestPrune::AsEngine,
        Some(None) => RequestPrune::Never,
        Some(Some(serde_json::Value::String(name))) => RequestPrune::Choice(PruneChoice::named(&name)?),
        Some(Some(spec)) => RequestPrune::Choice(PruneChoice::Spec(PruneSpec::from_json(spec, folder)?)),
    })
}

fn token_id(text: &str) -> Result<u32, String> {
    text.trim().parse().map_err(|_| format!("{text:?} is no token id: a number from 0 on"))
}

impl PromptSource {
    /// Whether it may hold several prompts.
    pub fn is_a_list(&self) -> bool {
        self.prompts.is_some()
    }

    /// Reads the prompts. What they don't say themselves is taken from the flags.
    pub fn read(&self, flags: &SamplingFlags, seed: u64) -> anyhow::Result<Vec<Prompt>> {
        if let Some(path) = &self.prompts {
            return read_list(path, flags, seed);
        }
        let mut line = Line { request_id: Some(JsonName("0".to_owned())), ..Line::default() };
        let place = match (&self.prompt, &self.prompt_file, &self.token_ids) {
            (Some(text), ..) => {
                line.prompt = Some(text.clone());
                "--prompt".to_owned()
            }
            (_, Some(path), _) => {
                line.prompt = Some(read_text(path)?);
                format!("prompt file {}", path.display())
            }
            (.., ids) => {
                line.prompt_token_ids.clone_from(ids);
                "--token-ids".to_owned()
            }
        };
        Ok(vec![line.prompt("0".to_owned(), place, flags, seed)?])
    }
}

fn read_text(path: &Path) -> anyhow::Result<String> {
    let read = if path == Path::new("-") {
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut std::io::stdin().lock(), &mut bytes).map(|_| bytes)
    } else {
        std::fs::read(path)
    };
    let bytes = read.with_context(|| format!("can't read prompt file {}", path.display())).map_err(usage)?;
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        usage(anyhow!("prompt file {} is not UTF-8: byte {at} begins no character", path.display()))
    })
}

fn read_list(path: &Path, flags: &SamplingFlags, seed: u64) -> anyhow::Result<Vec<Prompt>> {
    let text = read_text(path)?;
    let mut prompts: Vec<Prompt> = Vec::new();
    let mut names: HashMap<String, usize> = HashMap::new();
    // Some editors begin a file with a byte-order mark.
    let text = text.trim_start_matches('\u{feff}');
    for (number, line) in (1..).zip(text.lines()) {
        if line.trim().is_empty() {
            continue;
        }
        let place = format!("{}:{number}", path.display());
        if !line.trim_start().starts_with('{') {
            return Err(usage(anyhow!("{place}: not a prompt: a line is one JSON object")));
        }
        let mut line: Line =
            json_fault::parse(line.as_bytes()).map_err(|fault| usage(anyhow!("{place}: {fault}")))?;
        let name = match line.request_id.take() {
            Some(JsonName(name)) => name,
            None => unnamed(prompts.len(), &names),
        };
        if line.arrival_step > LAST_STEP {
            let step = line.arrival_step;
            return Err(usage(anyhow!("{place}: arrival_step {step} is beyond the last step, {LAST_STEP}")));
        }
        let prune = prune(line.prune.take(), path.parent().unwrap_or(Path::new("")));
        let prune = prune.with_context(|| format!("{place}: bad prune")).map_err(usage)?;
        let mut prompt = line.prompt(name, place, flags, seed)?;
        prompt.request.prune = prune;
        // In traces, samples of one prompt are distinguished by a number after the name.
        let name = &prompt.request.request_id;
        let samples = (0..prompt.request.n).filter(|_| prompt.request.n > 1).map(|i| format!("{name}/{i}"));
        for name in samples.chain([name.clone()]) {
            if let Some(first) = names.insert(name.clone(), number) {
                let place = &prompt.place;
                return Err(usage(anyhow!("{place}: request_id {name:?} is that of line {first} already")));
            }
        }
        prompts.push(prompt);
    }
    if prompts.is_empty() {
        return Err(usage(anyhow!("{} has no prompts", path.display())));
    }
    Ok(prompts)
}

/// A name for a line that has none: its number among the prompts, unless an earlier line has that name.
fn unnamed(index: usize, taken: &HashMap<String, usize>) -> String {
    let mut name = index.to_string();
    while taken.contains_key(&name) {
        name.insert(0, '#');
    }
    name
}

impl Line {
    fn prompt(self, name: String, place: String, flags: &SamplingFlags, seed: u64) -> anyhow::Result<Prompt> {
        let (text, ids) = match (self.prompt, self.prompt_token_ids) {
            (Some(text), None) => (Some(text), Vec::new()),
            (None, Some(ids)) => (None, ids),
            (None, None) => return Err(usage(anyhow!("{place}: neither prompt nor prompt_token_ids"))),
            (Some(_), Some(_)) => return Err(usage(anyhow!("{place}: both prompt and prompt_token_ids"))),
        };
        if text.as_ref().map_or(ids.is_empty(), String::is_empty) {
            return Err(usage(anyhow!("{place}: the prompt is empty")));
        }
        if self.cache_salt.as_ref().is_some_and(String::is_empty) {
            return Err(usage(anyhow!(
                "{place}: cache_salt is an empty text: leave it out, or name whose prefixes may be shared"
            )));
        }
        let stop = match self.stop {
            None => flags.stop.clone(),
            Some(JsonTexts(texts)) => texts,
        };
        if stop.iter().any(String::is_empty) {
            return Err(usage(anyhow!("{place}: a stop string is empty")));
        }
        let (max_tokens, n) = (self.max_tokens.unwrap_or(flags.max_tokens), self.n.unwrap_or(flags.n));
        for (name, value) in [("max_tokens", max_tokens), ("n", n)] {
            if value == 0 {
                return Err(usage(anyhow!("{place}: {name} is 0, it should be at least 1")));
            }
        }
        if n > MOST_SAMPLES {
            return Err(usage(anyhow!("{place}: n is {n}, it should be {MOST_SAMPLES} at most")));
        }
        let changes = LogitChanges {
            bias: self.logit_bias.into_iter().flatten().collect(),
            presence: self.presence_penalty.unwrap_or(flags.presence_penalty),
            frequency: self.frequency_penalty.unwrap_or(flags.frequency_penalty),
            repetition: self.repetition_penalty.unwrap_or(flags.repetition_penalty),
            min_tokens: self.min_tokens.unwrap_or(flags.min_tokens),
            ends: Vec::new(),
        };
        let changes = changes.is_some().then(|| Box::new(changes));
        let top_k = SamplingParams::top_k_from(self.top_k.unwrap_or(flags.top_k));
        let sampling = top_k.and_then(|top_k| {
            let sampling = SamplingParams {
                temperature: self.temperature.unwrap_or(flags.temperature),
                top_k,
                top_p: self.top_p.unwrap_or(flags.top_p),
                min_p: self.min_p.unwrap_or(flags.min_p),
                seed: self.seed.unwrap_or(seed),
                logprobs: self.logprobs.or(flags.logprobs),
                prompt_logprobs: self.prompt_logprobs.or(flags.prompt_logprobs),
                sample: 0,
                changes,
            };
            sampling.validate().map(|()| sampling)
        });
        let sampling = sampling.with_context(|| format!("{place}: bad sampling parameter")).map_err(usage)?;
        let request = Request {
            request_id: name,
            prompt: ids,
            sampling,
            max_tokens,
            stop,
            include_stop_str_in_output: self.include_stop_str_in_output,
            stop_token_ids: self.stop_token_ids.unwrap_or_else(|| flags.stop_token_ids.clone()),
            ignore_eos: self.ignore_eos.unwrap_or(flags.ignore_eos),
            priority: self.priority.unwrap_or(flags.priority),
            n,
            cache_salt: self.cache_salt,
            recorded: Vec::new(),
            follows_recorded: false,
            return_indexer_topk: false,
            prune: RequestPrune::default(),
            num_speculative_tokens: self.num_speculative_tokens,
            diffusion: None,
        };
        Ok(Prompt { text, request, arrival_step: self.arrival_step, place })
    }
}

impl Prompt {
    /// How it asks to be pruned, if it does.
    pub fn prune(&self) -> Option<&PruneChoice> {
        match &self.request.prune {
            RequestPrune::Choice(choice) => Some(choice),
            RequestPrune::AsEngine | RequestPrune::Never => None,
        }
    }

    /// Makes the request for this model by tokenising the text.
    pub fn arrival(mut self, session: &Session) -> anyhow::Result<Arrival> {
        if let Some(text) = &self.text {
            let Some(tokenizer) = session.tokenizer() else {
                let error =
                    anyhow!("{}: {} has no tokenizer, so text can't be read", self.place, session.model_id());
                return Err(usage_hint(error, "give the prompt as --token-ids or prompt_token_ids"));
            };
            let ids = tokenizer.encode(text, true);
            self.request.prompt =
                ids.with_context(|| format!("{}: can't tokenise the prompt", self.place))?;
            if self.request.prompt.is_empty() {
                return Err(usage(anyhow!("{}: the prompt is empty once it is tokenised", self.place)));
            }
        }
        Ok(Arrival { step: self.arrival_step, request: self.request })
    }
}
