//! The request to the engine that a client's body stands for.

use std::collections::BTreeMap;
use std::path::Path;

use pagedraft_engine::prune::{Preset, PruneChoice, PruneSpec};
use pagedraft_engine::session::{Request, RequestPrune};
use pagedraft_spec_decode::sampling::{LogitChanges, SamplingParams};
use serde_json::Value;

use super::app::App;
use super::ask::Ask;
use super::error::ApiError;

/// What OpenAI generates for a completion that says nothing.
pub const COMPLETION_TOKENS: u32 = 16;

/// What is generated for a chat that says nothing, by a model that fills masks in a canvas.
const CANVAS_TOKENS: u32 = 128;

/// A prompt in tokens.
#[derive(Clone, Debug)]
pub struct Encoded {
    pub ids: Vec<u32>,
    /// What is told of it with `echo`.
    pub text: String,
    /// The most tokens to generate if the body does not say.
    pub default_tokens: Option<u32>,
}

/// The request for one prompt.
///
/// # Errors
///
/// A parameter is out of its range, or the prompt leaves no room. What depends on the model's vocabulary is the engine's to check.
pub fn request(app: &App, ask: &Ask, id: String, prompt: &Encoded) -> Result<Request, ApiError> {
    let mut request = Request::new(id, prompt.ids.clone(), max_tokens(app, ask, prompt)?);
    request.sampling = sampling(app, ask)?;
    request.stop = ask.stop.clone().unwrap_or_default().0;
    request.include_stop_str_in_output = ask.include_stop_str_in_output.unwrap_or(false);
    request.stop_token_ids = ask.stop_token_ids.clone().unwrap_or_default();
    request.ignore_eos = ask.ignore_eos.unwrap_or(false);
    request.priority = ask.priority.unwrap_or(0);
    request.n = ask.n();
    request.cache_salt.clone_from(&ask.cache_salt);
    request.return_indexer_topk = ask.return_indexer_topk.unwrap_or(false);
    request.prune = prune(ask.prune.as_ref())?;
    request.num_speculative_tokens = ask.num_speculative_tokens;
    Ok(request)
}

/// The most tokens to generate. Prompt and answer together must fit the model.
fn max_tokens(app: &App, ask: &Ask, prompt: &Encoded) -> Result<u32, ApiError> {
    let length = u32::try_from(prompt.ids.len()).unwrap_or(u32::MAX);
    let longest = app.engine.info().max_model_len;
    let too_long = |why: String| {
        let message = format!(
            "the model takes {longest} tokens at most, prompt and answer together, and {why}: shorten it"
        );
        ApiError::too_long(message)
    };
    if length >= longest {
        return Err(too_long(format!("the prompt has {length}")));
    }
    if let Some(asked) = ask.most_tokens() {
        if asked == 0 && !ask.echo() {
            return Err(ApiError::bad("max_tokens is 0, it should be at least 1").at("max_tokens"));
        }
        // Of a prompt that is only to be echoed, one token is generated and not told.
        let asked = asked.max(1);
        if asked > longest - length {
            return Err(too_long(format!("the prompt has {length} and {asked} are asked for (max_tokens)")));
        }
        return Ok(asked);
    }
    let room = app.capacity.min(longest).saturating_sub(length).max(1);
    Ok(match app.engine.info().canvas_block.filter(|&block| block > 0) {
        // Every pass computes all of a canvas, so that it is not made as long as it could be.
        Some(block) => {
            let blocks = prompt.default_tokens.unwrap_or(CANVAS_TOKENS).div_ceil(block);
            block * blocks.min(room / block).max(1)
        }
        None => prompt.default_tokens.map_or(room, |tokens| tokens.min(room)),
    })
}

fn sampling(app: &App, ask: &Ask) -> Result<SamplingParams, ApiError> {
    let out_of_range =
        |error: pagedraft_spec_decode::sampling::SamplingError| ApiError::bad(error.to_string());
    let defaults = SamplingParams::default();
    let best = ask.logprobs_count();
    let changes = LogitChanges {
        bias: ask.logit_bias.as_ref().map_or(Ok(Vec::new()), biases)?,
        presence: ask.presence_penalty.unwrap_or(0.0),
        frequency: ask.frequency_penalty.unwrap_or(0.0),
        repetition: ask.repetition_penalty.unwrap_or(1.0),
        min_tokens: ask.min_tokens.unwrap_or(0),
        ends: Vec::new(),
    };
    let sampling = SamplingParams {
        temperature: ask.temperature.unwrap_or(defaults.temperature),
        top_k: SamplingParams::top_k_from(ask.top_k.unwrap_or(0)).map_err(out_of_range)?,
        top_p: ask.top_p.unwrap_or(defaults.top_p),
        min_p: ask.min_p.unwrap_or(defaults.min_p),
        seed: ask.seed.map_or_else(|| Ok(app.serial.draw()), seed)?,
        logprobs: best,
        changes: changes.is_some().then(|| Box::new(changes)),
        prompt_logprobs: ask.prompt_logprobs.max(best.filter(|_| ask.echo())),
        ..defaults
    };
    sampling.validate().map_err(out_of_range)?;
    Ok(sampling)
}

/// What is added to which logits. A token that is named twice, as "5" and "05", counts once.
fn biases(named: &BTreeMap<String, f32>) -> Result<Vec<(u32, f32)>, ApiError> {
    let read = |(token, &bias): (&String, &f32)| match token.parse::<u32>() {
        Ok(token) => Ok((token, bias)),
        Err(_) => {
            Err(ApiError::bad(format!("logit_bias names {token:?}, which is no token id")).at("logit_bias"))
        }
    };
    let by_id = named.iter().map(read).collect::<Result<BTreeMap<_, _>, _>>()?;
    Ok(by_id.into_iter().collect())
}

/// Seeds are numbers of 64 bits, with a sign or without.
fn seed(seed: i128) -> Result<u64, ApiError> {
    let signed = || i64::try_from(seed).map(i64::cast_unsigned);
    u64::try_from(seed).or_else(|_| signed()).map_err(|_| {
        ApiError::bad(format!("seed is {seed}, it should be from {} to {}", i64::MIN, u64::MAX)).at("seed")
    })
}

/// How the prompt is pruned. A client may name no files of the server.
fn prune(asked: Option<&Option<Value>>) -> Result<RequestPrune, ApiError> {
    let no_files =
        "files of the server are not read for clients: start it with --prune-spec, or name a preset";
    let spec = match asked {
        None => return Ok(RequestPrune::AsEngine),
        Some(None) => return Ok(RequestPrune::Never),
        Some(Some(Value::String(name))) => {
            let preset = name.parse::<Preset>().map_err(|()| {
                ApiError::bad(format!("prune: no preset is named {name:?}, and {no_files}")).at("prune")
            })?;
            return Ok(RequestPrune::Choice(PruneChoice::Preset(preset)));
        }
        Some(Some(spec)) => spec,
    };
    let is_builtin = |modules: &Value| modules.as_str().is_some_and(|name| name.starts_with("builtin:"));
    if spec.get("modules").is_some_and(|modules| !modules.is_null() && !is_builtin(modules)) {
        return Err(ApiError::unsupported("prune", format!("prune names a file of modules, and {no_files}")));
    }
    match PruneSpec::from_json(spec.clone(), Path::new("")) {
        Ok(spec) => Ok(RequestPrune::Choice(PruneChoice::Spec(spec))),
        Err(error) => Err(ApiError::bad(format!("prune: {error:#}")).at("prune")),
    }
}
