//! `pagedraft bench infill`: how well a model fills masks, and what token skip changes about it.

mod accuracy;
mod pieces;
mod report;
mod skip;

use std::path::PathBuf;

use anyhow::{Context, anyhow};
use clap::Args;
use clap::builder::{OsStringValueParser, TypedValueParser};
use pagedraft::exit::{usage, usage_hint};
use pagedraft::model::tokenizer::Tokenizer;
use pagedraft::session::{Decoder, DiffusionOptions, EngineOptions, ModelRef, Request, Session};

use self::pieces::{Piece, pieces};
use self::report::Report;
use super::engine_flags::EngineFlags;
use super::output_file::OutputFile;
use super::{Ended, held_out, interrupt, stdout};

#[derive(Clone, Debug, Args)]
pub struct Infill {
    /// Shares of the tokens that are masked
    #[arg(long, value_name = "SHARE,..", value_delimiter = ',', default_value = "0.15,0.5,0.8", value_parser = share)]
    shares: Vec<f64>,
    /// Pieces of the text
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..))]
    pieces: u32,
    /// Tokens at the beginning of a piece that are never masked
    #[arg(long, value_name = "TOKENS", default_value_t = 32, value_parser = clap::value_parser!(u32).range(1..))]
    prompt_len: u32,
    /// Tokens behind them, of which a share is masked
    #[arg(long, value_name = "TOKENS", default_value_t = 96, value_parser = clap::value_parser!(u32).range(1..))]
    canvas_len: u32,
    /// Text that pieces are cut from (default: a play that no embedded model was trained on)
    #[arg(long, value_name = "FILE")]
    text: Option<PathBuf>,
    /// A causal model of the same vocabulary that predicts the same tokens from those before them (default: builtin:target for
    /// builtin:llada, else none)
    #[arg(long, value_name = "DIR|FILE.gguf|builtin:NAME", value_parser = OsStringValueParser::new().map(ModelRef::from))]
    causal: Option<ModelRef>,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    output_json: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineFlags,
}

fn share(text: &str) -> Result<f64, String> {
    let share = text.parse().ok().filter(|&share| share > 0.0 && share <= 1.0);
    share.ok_or_else(|| "a share is a number above 0, and 1 at most".to_owned())
}

impl Infill {
    pub fn run(&self) -> anyhow::Result<Ended> {
        let options = self.engine.options(false)?;
        if options.trace.is_some() {
            return Err(usage(anyhow!("--trace-out: several engines may run here; trace a run of generate")));
        }
        let block = options.diffusion.all.block_length;
        if !self.canvas_len.is_multiple_of(block) {
            let canvas = self.canvas_len;
            return Err(usage(anyhow!("--canvas-len {canvas} is not a multiple of --block-length {block}")));
        }
        let text = held_out::read(self.text.as_deref())?;
        let output = self.output_json.as_deref().map(OutputFile::reserve).transpose()?;
        self.engine.tell_what_is_idle();
        interrupt::listen()?;
        let mut session = interrupt::preparing(|| Session::open(&options))?;
        self.engine.tell_of_the_device(session.info());
        self.engine.refuse_for_canvases(session.info())?;
        let Some(mask) = session.info().mask_token_id else {
            let error = anyhow!("{} is a causal model and fills no masks", options.model);
            return Err(usage_hint(error, "name a model of model_type llada, such as builtin:llada"));
        };
        let Some(tokenizer) = session.shared_tokenizer() else {
            let error = anyhow!("{} has no tokenizer, and a text is needed to be filled in", options.model);
            return Err(usage_hint(error, "put its tokenizer.json beside it"));
        };
        let tokens = tokenizer.encode(&text, false).context("the text can't be tokenised")?;
        let lens = (self.prompt_len, self.canvas_len);
        let pieces = pieces(&tokens, self.pieces, lens, self.engine.seed).map_err(usage)?;
        let mut report = Report::new(session.info(), self.engine.seed, lens, &tokens, pieces.len());
        stdout::print(&report.header())?;
        let causal = self.causal_model(&options.model);
        let likeliest =
            causal.as_ref().map(|model| self.predict(model, &options, &tokenizer, &pieces)).transpose()?;
        for &share in &self.shares {
            let Some(score) = accuracy::filled(&mut session, &pieces, share, mask)? else { break };
            report.add_filled(share, score, &pieces);
        }
        if options.diffusion.all.decoder == Decoder::DualCacheSkip {
            for &share in &self.shares {
                let Some(compared) =
                    skip::compare(&mut session, &pieces, share, mask, &options.diffusion.all)?
                else {
                    break;
                };
                report.add_skip(share, compared);
            }
        }
        if let (Some(model), Some(likeliest)) = (causal, likeliest.flatten()) {
            report.add_causal(&model, &likeliest, &pieces);
        }
        session.close(&report.json())?;
        stdout::print(&report.text())?;
        if let (Some(output), false) = (&output, interrupt::pressed()) {
            output.write(&format!("{:#}\n", report.json()))?;
        }
        Ok(if interrupt::pressed() { Ended::Interrupted } else { Ended::Done })
    }

    /// The causal model to compare with, if any.
    fn causal_model(&self, model: &ModelRef) -> Option<ModelRef> {
        let beside = || match model {
            ModelRef::Builtin(name) if name == "llada" => Some(ModelRef::Builtin("target".to_owned())),
            _ => None,
        };
        self.causal.clone().or_else(beside)
    }

    /// What a causal model thinks likeliest at each place of the canvases; `None` if Ctrl-C ended it.
    fn predict(
        &self,
        model: &ModelRef,
        options: &EngineOptions,
        tokenizer: &Tokenizer,
        pieces: &[Piece],
    ) -> anyhow::Result<Option<Vec<Vec<u32>>>> {
        let options =
            EngineOptions { model: model.clone(), diffusion: DiffusionOptions::default(), ..options.clone() };
        let session = interrupt::preparing(|| Session::open(&options));
        let mut session = session.with_context(|| format!("--causal {model}"))?;
        if session.info().mask_token_id.is_some() {
            return Err(usage(anyhow!("--causal {model}: it fills masks too; name a causal model")));
        }
        if !session.shared_tokenizer().is_some_and(|theirs| theirs.same_vocabulary(tokenizer)) {
            return Err(usage(anyhow!(
                "--causal {model}: its tokenizer is not that of {}",
                self.engine.model
            )));
        }
        accuracy::predicted(&mut session, pieces)
    }
}

/// A request for what is masked of each piece, denoised as `how` says for the piece of this index.
fn requests(pieces: &[Piece], how: impl Fn(usize, &Piece) -> pagedraft::session::Diffusion) -> Vec<Request> {
    let one = |(index, piece): (usize, &Piece)| Request {
        diffusion: Some(how(index, piece)),
        ..Request::new(index.to_string(), piece.prompt.clone(), piece.canvas.len() as u32)
    };
    pieces.iter().enumerate().map(one).collect()
}
