//! Embeds the engine in a program: opens a session on the embedded model, submits two requests, and runs steps until
//! both have ended.
//!
//! ```text
//! cargo run --release --example embed_engine
//! ```

use anyhow::Context;
use pagedraft::session::{DraftRef, EngineOptions, ModelRef, Request, Session};
use pagedraft::spec_decode::sampling::SamplingParams;

fn main() -> anyhow::Result<()> {
    // `ModelRef::Directory` names a Hugging Face directory in the same way.
    let mut options = EngineOptions::new(ModelRef::Builtin("target".to_owned()));
    options.speculation.draft = Some(DraftRef::Ngram);
    let mut session = Session::open(&options)?;
    println!(
        "{}: {} KV blocks of {} tokens",
        session.model_id(),
        session.info().num_blocks,
        options.block_size
    );

    let tokenizer = session.tokenizer().context("the model has no tokenizer")?;
    let greedy = tokenizer.encode("The old man looked at the sea", true)?;
    let drawn = tokenizer.encode("It was a dark night", true)?;
    let warm = SamplingParams { temperature: 0.8, seed: 7, ..SamplingParams::greedy() };
    let mut ids = session.submit(Request::new("greedy", greedy, 24))?;
    ids.extend(session.submit(Request { sampling: warm, ..Request::new("drawn", drawn, 24) })?);

    // A step runs all requests that are admitted. What it gave can be shown at once.
    while session.has_unfinished() {
        let step = session.step()?;
        let tokens: usize = step.emitted.iter().map(|news| news.tokens.len()).sum();
        println!(
            "step {:>2}: {} rows, {tokens} tokens, {} KV blocks held",
            step.step, step.rows, step.pool.used
        );
    }
    for id in ids {
        let output = session.take_output(id).context("a request gave no output")?;
        let reason = output.finish_reason.context("a request did not end")?;
        println!("{} ({reason:?}): {:?}", output.request_id, output.text);
    }
    Ok(())
}
