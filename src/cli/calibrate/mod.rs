//! `pagedraft bench calibrate` measures a cost model from steps of the real engine.

mod acceptance;
mod draws;
mod measure;
mod meter;
mod phase;
mod report;
mod shapes;
mod steps_file;
mod way;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, anyhow};
use clap::Args;
use indicatif::{ProgressBar, ProgressStyle};
use pagedraft::exit::usage;
use pagedraft::session::{DraftLength, DraftRef, EngineOptions, PruneOptions, Session};
use pagedraft_workloads::sim::{Acceptance, fit};

use self::measure::Measuring;
use self::meter::Meter;
use self::phase::Bounds;
use self::steps_file::Measured;
use self::way::{SYNTHETIC_RATE, Way};
use super::engine_flags::EngineFlags;
use super::output_file::OutputFile;
use super::{Ended, held_out, interrupt, stdout};

/// The number of tokens of the text that prompts are cut from.
const TEXT: usize = 65_536;

#[derive(Clone, Debug, Args)]
pub struct Calibrate {
    /// Write the cost model to this file; `replay --executor sim --cost-model` reads it
    #[arg(long, visible_alias = "out", value_name = "FILE")]
    output_json: Option<PathBuf>,
    /// Seconds to measure for, and to fit: what takes too long for them is left out
    #[arg(long, value_name = "S", default_value_t = 20.0, value_parser = seconds)]
    seconds: f64,
    /// Also write every measured step to this file, a JSON object a line
    #[arg(long, value_name = "FILE")]
    steps_out: Option<PathBuf>,
    /// Fit steps that were measured before together with those of now: a file that --steps-out wrote for the same
    /// engine. A machine's speed changes in minutes, and what is measured at several times is nearer
    /// to its mean. How drafts were accepted is told of this run alone
    #[arg(long, value_name = "FILE")]
    steps_in: Option<PathBuf>,
    #[command(flatten)]
    engine: EngineFlags,
}

impl Calibrate {
    pub fn run(&self) -> anyhow::Result<Ended> {
        let options = self.options()?;
        let output = self.output_json.as_deref().map(OutputFile::reserve).transpose()?;
        let steps_out = self.steps_out.as_deref().map(OutputFile::reserve).transpose()?;
        interrupt::listen()?;
        let mut session = interrupt::preparing(|| Session::open(&options))?;
        self.engine.tell_of_the_device(session.info());
        interrupt::preparing(|| session.touch())?;
        let info = session.info().clone();
        let of = Measured { engine: report::name(&info, &options), block_size: info.block_size };
        let earlier = self.steps_in.as_deref().map(|path| steps_file::read(path, &of)).transpose()?;
        let earlier = earlier.unwrap_or_default();
        stdout::print(&report::header(&info, &options))?;
        let ways =
            interrupt::preparing(|| Way::all(&mut session, &options.speculation, !options.enforce_eager))?;
        let text = held_out::prompts(&session, 1, TEXT, options.seed)?.pop().unwrap_or_default();
        let is_text = session.tokenizer().is_some() && !info.dummy_weights;
        let step_tokens =
            if options.enable_chunked_prefill { u32::MAX } else { options.max_num_batched_tokens };
        let bounds = Bounds {
            sequences: options.max_num_seqs,
            tokens: info.max_model_len,
            prompt: info.max_model_len.min(step_tokens),
            pool: u64::from(info.num_blocks) * u64::from(info.block_size),
        };
        let budget = Duration::from_secs_f64(self.seconds);
        let bar = progress();
        let mut measuring = Measuring::new(&mut session, bounds, text, options.seed);
        let told = |share| bar.set_position((share * 1000.0) as u64);
        // If there are earlier steps, they have measured the corners already.
        // There is nothing to show until all is measured, so Ctrl-C may end the process at once.
        let most_tokens = options.max_num_batched_tokens;
        let done =
            interrupt::preparing(|| measuring.run(&ways, most_tokens, budget, earlier.is_empty(), told))?;
        bar.finish_and_clear();
        let Some(Meter { mut steps, tallies, .. }) = done else { return Ok(Ended::Interrupted) };
        let (runs, before) =
            (earlier.iter().map(|step| step.run.saturating_add(1)).max().unwrap_or(0), earlier.len());
        steps.iter_mut().for_each(|step| step.run = step.run.saturating_add(runs));
        steps.splice(..0, earlier);
        if let Some(file) = steps_out {
            file.write(&steps_file::write(&of, &steps)?)?;
        }
        let keeps_kv: BTreeMap<String, bool> =
            ways.iter().flatten().filter_map(|way| Some((way.proposer?.to_owned(), way.keeps_kv))).collect();
        let mut found = fit(&steps, &keeps_kv);
        found.model.name = report::name(&info, &options);
        for (name, tally) in &tallies {
            // Synthetic drafts are as good as they are asked to be, and without text a model's drafts say
            // nothing.
            let acceptance = match &options.speculation.draft {
                _ if *name == "synthetic" => {
                    let rate = match options.speculation.draft {
                        Some(DraftRef::Synthetic { rate }) => rate,
                        _ => SYNTHETIC_RATE,
                    };
                    Some(Acceptance { by_position: vec![rate], given: 1.0 })
                }
                _ if is_text => tally.acceptance(),
                _ => None,
            };
            if let Some(acceptance) = acceptance {
                found.model.acceptance.insert((*name).to_owned(), acceptance);
            }
        }
        found
            .model
            .check()
            .map_err(|what| anyhow!("{what}"))
            .context("too little was measured for a cost model: give it more --seconds")?;
        let json = report::json(&found, &info, &options, self.seconds, [before, steps.len()])?;
        session.close(&json)?;
        stdout::print(&report::table(&found, &tallies))?;
        match output {
            Some(output) => output.write(&format!("{json:#}\n"))?,
            None => stdout::print("not written: give --output-json FILE\n")?,
        }
        Ok(Ended::Done)
    }

    /// The options of the engine to measure. Draft lengths are fixed, so that no drafts are left out by
    /// price. N-gram and synthetic drafts can be asked for whatever --draft says.
    fn options(&self) -> anyhow::Result<EngineOptions> {
        let mut options = self.engine.options(true)?;
        if options.prune != PruneOptions::default() {
            return Err(usage(anyhow!(
                "--prune-spec and --prune-layers: leave them out, the cost of a pruned prompt follows from that of whole ones"
            )));
        }
        let speculation = &mut options.speculation;
        speculation.draft.get_or_insert(DraftRef::Synthetic { rate: SYNTHETIC_RATE });
        if speculation.length == DraftLength::Fixed(0) {
            return Err(usage(anyhow!(
                "--num-speculative-tokens 0: leave it out, what drafts cost is measured too"
            )));
        }
        speculation.length = DraftLength::Fixed(speculation.length.most().min(DraftLength::AUTO_MAX));
        Ok(options)
    }
}

fn progress() -> ProgressBar {
    // The bar is drawn only on a terminal.
    let bar = ProgressBar::new(1000);
    if let Ok(style) = ProgressStyle::with_template("measuring {wide_bar} {percent:>3} % {eta:>4}") {
        bar.set_style(style);
    }
    bar
}

fn seconds(text: &str) -> Result<f64, String> {
    let seconds = text.parse().ok().filter(|s: &f64| (0.1..=86_400.0).contains(s));
    seconds.ok_or_else(|| "seconds, from 0.1 to 86400".to_owned())
}
