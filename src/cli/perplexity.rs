//! `pagedraft bench perplexity`: how well a model predicts a text.

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, anyhow};
use clap::Args;
use pagedraft::exit::{usage, usage_hint};
use pagedraft::session::{Request, Session};
use serde_json::json;

use super::engine_flags::EngineFlags;
use super::output_file::OutputFile;
use super::{Ended, held_out, interrupt, stdout, together};

#[derive(Clone, Debug, Args)]
pub struct Perplexity {
    /// The text (default: a play that no embedded model was trained on)
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// Tokens of a piece: the first of each is not predicted, and no piece sees another
    #[arg(long, value_name = "TOKENS", default_value_t = 512, value_parser = clap::value_parser!(u32).range(2..))]
    length: u32,
    /// Pieces of the text (default: as many whole ones as it has)
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pieces: Option<u32>,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    output_json: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineFlags,
}

/// How many pieces run at a time.
const TOGETHER: usize = 16;

impl Perplexity {
    pub fn run(&self) -> anyhow::Result<Ended> {
        let options = self.engine.options(false)?;
        let text = held_out::read(self.text.as_deref())?;
        let output = self.output_json.as_deref().map(OutputFile::reserve).transpose()?;
        self.engine.tell_what_is_idle();
        interrupt::listen()?;
        let mut session = interrupt::preparing(|| Session::open(&options))?;
        self.engine.tell_of_the_device(session.info());
        let info = session.info().clone();
        if info.mask_token_id.is_some() {
            let error =
                anyhow!("{} fills masks: it does not predict a text from left to right", options.model);
            return Err(usage_hint(error, "use `bench infill`"));
        }
        if self.length >= info.max_model_len {
            let (asked, most) = (self.length, info.max_model_len);
            return Err(usage(anyhow!(
                "--length {asked}: a sequence of this engine has at most {most} tokens"
            )));
        }
        let Some(tokenizer) = session.shared_tokenizer() else {
            let error = anyhow!("{} has no tokenizer, and a text is needed to be predicted", options.model);
            return Err(usage_hint(error, "put its tokenizer.json beside it"));
        };
        let tokens = tokenizer.encode(&text, false).context("the text can't be tokenised")?;
        let most = self.pieces.map_or(usize::MAX, |pieces| pieces as usize);
        let pieces: Vec<&[u32]> = tokens.chunks_exact(self.length as usize).take(most).collect();
        if pieces.is_empty() {
            let (asked, has) = (self.length, tokens.len());
            return Err(usage(anyhow!("--length {asked}: the text has only {has} tokens")));
        }
        stdout::print(&format!(
            "{}: {} parameters, {}, {}, {} threads; {} pieces of {} tokens\n",
            info.model_id,
            info.parameters,
            info.types(),
            info.isa,
            info.threads,
            pieces.len(),
            self.length
        ))?;
        let start = Instant::now();
        let (mut sum, mut count) = (0.0, 0u64);
        for pieces in pieces.chunks(TOGETHER) {
            let Some(logprobs) = predicted(&mut session, pieces)? else { break };
            sum += logprobs.iter().sum::<f64>();
            count += logprobs.len() as u64;
        }
        let (seconds, loss) = (start.elapsed().as_secs_f64(), -sum / count.max(1) as f64);
        let figures = json!({
            "model_id": info.model_id,
            "dtype": info.dtype.to_string(),
            "quantization": info.quantization.to_string(),
            "instruction_set": info.isa.to_string(),
            "threads": info.threads,
            "length": self.length,
            "predicted_tokens": count,
            "loss": loss,
            "perplexity": loss.exp(),
            "seconds": seconds,
            "revision": pagedraft::REVISION,
        });
        session.close(&figures)?;
        if interrupt::pressed() {
            return Ok(Ended::Interrupted);
        }
        stdout::print(&format!(
            "perplexity {:.4} (loss {loss:.5} nats) over {count} tokens, in {seconds:.1} s\n",
            loss.exp()
        ))?;
        if let Some(output) = &output {
            output.write(&format!("{figures:#}\n"))?;
        }
        Ok(Ended::Done)
    }
}

/// The log probability of each token of some pieces but their first ones; `None` if Ctrl-C ended it.
fn predicted(session: &mut Session, pieces: &[&[u32]]) -> anyhow::Result<Option<Vec<f64>>> {
    let requests = pieces.iter().enumerate().map(|(index, piece)| {
        let mut request = Request::new(index.to_string(), piece.to_vec(), 1);
        request.sampling.prompt_logprobs = Some(0);
        request
    });
    let Some(outputs) = together::run(session, requests.collect())? else { return Ok(None) };
    let mut all = Vec::new();
    for output in outputs {
        let own = output.prompt_token_logprobs.context("a request has no log probabilities of its prompt")?;
        all.extend(own.into_iter().flatten().map(|own| f64::from(own.logprob)));
    }
    Ok(Some(all))
}
