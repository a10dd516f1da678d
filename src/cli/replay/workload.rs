//! A workload that has been read once to its end.

use std::collections::HashSet;
use std::io::Read;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::anyhow;
use pagedraft::exit::{usage, usage_hint};
use pagedraft_model::tokenizer::Tokenizer;
use pagedraft_workloads::arrivals::Arrivals;
use pagedraft_workloads::dataset::{self, DatasetError, DatasetOptions, Survey};
use pagedraft_workloads::prompt::TextTokens;
use pagedraft_workloads::replay::{Incoming, Source, SourceOptions};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use super::arrival_flags::ArrivalFlags;
use super::dataset_flags::DatasetFlags;
use crate::cli::interrupt;

/// What is replayed.
pub struct Workload {
    dataset: DatasetOptions,
    tokenizer: Option<Arc<dyn TextTokens>>,
    pub survey: Survey,
    pub arrivals: Arrivals,
    max_concurrency: Option<u32>,
    length_scale: f64,
    max_prompt_tokens: Option<u32>,
    max_new_tokens: Option<u32>,
    files: Files,
}

/// The files that it is read from: name, SHA-256 and bytes.
#[derive(Default)]
struct Files {
    dataset: Option<Value>,
    haystack: Option<Value>,
    squad: Option<Value>,
}

impl Files {
    fn identify(dataset: &DatasetOptions) -> anyhow::Result<Self> {
        let of = |path: Option<&PathBuf>| path.map(|path| identify(path)).transpose();
        let ruler = dataset.ruler.as_ref();
        Ok(Self {
            dataset: of(dataset.path.as_ref())?,
            haystack: of(ruler.and_then(|ruler| ruler.haystack.as_ref()))?,
            squad: of(ruler.and_then(|ruler| ruler.squad.as_ref()))?,
        })
    }
}

/// What an engine can accept.
pub struct Limits {
    pub max_model_len: u32,
    pub pool_tokens: u64,
    /// The most tokens of a prompt, if it must fit in one step.
    pub step_tokens: Option<u32>,
    /// The token ids that prompts without text are made of.
    pub vocabulary: Range<u32>,
}

/// The longest run of ids below `vocab_size` that are ordinary tokens of a tokenizer. Ids that the
/// tokenizer does not know (models often have more rows) and special tokens mean something else to a model
/// than text does; they are usually at either end. Without a tokenizer, or if it knows no id, it is all
/// ids.
pub fn ordinary_ids(tokenizer: Option<&Tokenizer>, vocab_size: u32) -> Range<u32> {
    let Some(tokenizer) = tokenizer else { return 0..vocab_size };
    let special: HashSet<u32> = tokenizer.special_tokens().into_iter().map(|(id, _)| id).collect();
    let (mut longest, mut start) = (0..0, 0);
    for id in 0..=vocab_size {
        if id < vocab_size && !special.contains(&id) && tokenizer.id_to_token(id).is_some() {
            continue;
        }
        if id - start > longest.end - longest.start {
            longest = start..id;
        }
        start = id.saturating_add(1);
    }
    if longest.is_empty() { 0..vocab_size } else { longest }
}

/// A model's tokenizer in the form that workloads need.
pub struct Encoder(pub Arc<Tokenizer>);

impl TextTokens for Encoder {
    fn count(&self, text: &str) -> Result<u32, String> {
        let tokens = self.0.encode(text, false).map_err(|e| e.to_string())?;
        Ok(u32::try_from(tokens.len()).unwrap_or(u32::MAX))
    }

    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        self.0.encode(text, true).map_err(|e| e.to_string())
    }
}

impl Workload {
    /// Reads the whole workload and counts; `None` if Ctrl-C ended it.
    pub fn survey(
        flags: &DatasetFlags,
        arrivals: &ArrivalFlags,
        seed: u64,
        tokenizer: Option<Arc<dyn TextTokens>>,
    ) -> anyhow::Result<Option<Self>> {
        let dataset = flags.options(seed)?;
        let (what, encoder) = (dataset.clone(), tokenizer.clone());
        let read = move || {
            let survey = dataset::survey(&what, encoder).map_err(bad)?;
            // A file without records is reported by another error.
            let files = if survey.items > 0 { Files::identify(&what)? } else { Files::default() };
            Ok((survey, files))
        };
        let Some((survey, files)) = interrupt::or_done(read)? else { return Ok(None) };
        if survey.items == 0 {
            let path = dataset.path.as_deref().unwrap_or(Path::new("the workload"));
            return Err(usage_hint(
                anyhow!("{}: there is no record to replay", path.display()),
                "is the window of --from and --to in the trace?",
            ));
        }
        let workload = Self {
            tokenizer,
            survey,
            arrivals: arrivals.arrivals(survey.timed)?,
            max_concurrency: arrivals.max_concurrency,
            length_scale: flags.length_scale(),
            max_prompt_tokens: flags.max_prompt_tokens,
            max_new_tokens: flags.max_new_tokens,
            files,
            dataset,
        };
        Ok(Some(workload))
    }

    /// The requests of the workload from the first on, as far as an engine can accept them.
    pub fn source(
        &self,
        limits: &Limits,
    ) -> anyhow::Result<impl Iterator<Item = Result<Incoming, DatasetError>> + Send + use<>> {
        let options = SourceOptions {
            arrivals: self.arrivals,
            seed: self.dataset.seed,
            length_scale: self.length_scale,
            max_prompt_tokens: self.max_prompt_tokens,
            max_new_tokens: self.max_new_tokens,
            max_model_len: limits.max_model_len,
            pool_tokens: limits.pool_tokens,
            step_tokens: limits.step_tokens,
            vocabulary: limits.vocabulary.clone(),
        };
        let source =
            Source::open(&self.dataset, &self.survey, options, self.tokenizer.clone()).map_err(bad)?;
        // In a closed loop, a request without an arrival time should be sent when there is room for it.
        let closed = self.arrivals == Arrivals::AtOnce && self.max_concurrency.is_some();
        Ok(source.map(move |incoming| match incoming {
            Ok(Incoming::Request(mut request)) if closed => {
                request.arrival_ns = None;
                Ok(Incoming::Request(request))
            }
            other => other,
        }))
    }

    /// The workload's part of `config.json`.
    pub fn config(&self, limits: &Limits) -> anyhow::Result<Value> {
        let mut dataset = serde_json::to_value(&self.dataset)?;
        if let Some(fields) = dataset.as_object_mut() {
            // Files may lie elsewhere the next time, so they are identified by their contents.
            fields.remove("path");
            fields.insert("file".to_owned(), json!(self.files.dataset));
            if let Some(ruler) = fields.get_mut("ruler").and_then(Value::as_object_mut) {
                ruler.insert("haystack".to_owned(), json!(self.files.haystack));
                ruler.insert("squad".to_owned(), json!(self.files.squad));
            }
        }
        Ok(json!({
            "dataset": dataset,
            "survey": {
                "items": self.survey.items,
                "skipped": self.survey.skipped,
                "timed": self.survey.timed,
                "span_s": self.survey.span_s,
            },
            "arrivals": self.arrivals,
            "max_concurrency": self.max_concurrency,
            "prompt_token_ids": {"from": limits.vocabulary.start, "below": limits.vocabulary.end},
            "length_scale": self.length_scale,
            "max_prompt_tokens": self.max_prompt_tokens,
            "max_new_tokens": self.max_new_tokens,
        }))
    }
}

/// A dataset that can't be read is bad input.
pub fn bad(error: DatasetError) -> anyhow::Error {
    usage(error.into())
}

fn identify(path: &Path) -> anyhow::Result<Value> {
    let cant =
        |e: std::io::Error| usage(anyhow::Error::from(e).context(format!("can't read {}", path.display())));
    let mut file = std::fs::File::open(path).map_err(cant)?;
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut piece = vec![0; 1 << 16];
    loop {
        let read = file.read(&mut piece).map_err(cant)?;
        if read == 0 {
            break;
        }
        bytes += read as u64;
        hash.update(&piece[..read]);
    }
    let sha256: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    let name = path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned());
    Ok(json!({"name": name, "sha256": sha256, "bytes": bytes}))
}

#[cfg(test)]
mod tests {
    use pagedraft::session::{ModelRef, tokenizer};

    use super::*;

    #[test]
    fn drawn_prompts_leave_out_special_tokens_and_ids_without_a_token() {
        let tokenizer = tokenizer(&ModelRef::Builtin("target".to_owned())).unwrap().unwrap();
        let ids = |size| ordinary_ids(Some(&tokenizer), size);
        let special: Vec<u32> = tokenizer.special_tokens().into_iter().map(|(id, _)| id).collect();
        assert_eq!(special, [0, 1]);
        // The builtin model's vocabulary has 2,048 tokens, with the special ones first.
        assert_eq!([ids(2048), ids(5000), ids(100)], [2..2048, 2..2048, 2..100]);
        assert_eq!([ids(2), ids(0), ordinary_ids(None, 77)], [0..2, 0..0, 0..77]);
    }

    #[test]
    fn special_tokens_do_not_count_as_output() {
        // Like many tokenizers, this one puts a token before each text.
        let mut json: Value =
            serde_json::from_slice(include_bytes!("../../../assets/target/tokenizer.json")).unwrap();
        json["post_processor"] = json!({
            "type": "TemplateProcessing",
            "single": [{"SpecialToken": {"id": "<|bos|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
            "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {"<|bos|>": {"id": "<|bos|>", "ids": [0], "tokens": ["<|bos|>"]}}
        });
        let encoder = Encoder(Arc::new(
            Tokenizer::from_bytes(Path::new("with BOS"), json.to_string().as_bytes()).unwrap(),
        ));
        let prompt = encoder.encode("It is wide.").unwrap();
        assert_eq!(prompt[0], 0);
        assert_eq!(encoder.count("It is wide.").unwrap() as usize, prompt.len() - 1);
        assert_eq!(encoder.count(""), Ok(0));
    }
}
