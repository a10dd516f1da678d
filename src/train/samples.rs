//! What saliency and pruning modules are trained on: prompts, and what follows them.

use anyhow::{Context, Result, bail, ensure};
use pagedraft_model::tokenizer::Tokenizer;
use serde::Deserialize;
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// Which samples are read, and how.
#[derive(Debug, Clone, clap::Args)]
pub struct SampleArgs {
    /// Samples. A .jsonl file has a JSON object a line: "text"; "prompt" and "response"; "instruction", "context" (may be
    /// left out) and "response"; or RULER's "input" and "outputs". Any other file is a plain text, and cut into samples
    #[arg(long, value_name = "FILE", num_args = 1.., required = true)]
    pub samples: Vec<PathBuf>,
    /// Samples that are used, the first ones
    #[arg(long, value_name = "SAMPLES", default_value_t = 1000)]
    pub most_samples: usize,
    /// Tokens of a sample: longer texts are cut to so many, and longer pairs are left out
    #[arg(long, value_name = "TOKENS", default_value_t = 1024)]
    pub most_tokens: usize,
    /// Share of a text that counts as the response to the rest, its end
    #[arg(long, default_value_t = 0.25)]
    pub response_share: f64,
}

/// One sample as tokens, without any padding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Sample {
    /// What names it: the hash of its tokens and of where the response begins.
    pub id: String,
    /// The prompt's tokens, and then the response's.
    pub tokens: Vec<u32>,
    /// How many of them are the prompt's.
    pub prompt: usize,
}

impl Sample {
    /// A sample and its id.
    pub fn new(tokens: Vec<u32>, prompt: usize) -> Self {
        let mut hash = Sha256::new();
        hash.update((prompt as u64).to_le_bytes());
        tokens.iter().for_each(|token| hash.update(token.to_le_bytes()));
        let id = hash.finalize()[..12].iter().map(|byte| format!("{byte:02x}")).collect();
        Self { id, tokens, prompt }
    }

    /// The places whose predictions count, and the tokens that should be predicted: those of the response.
    pub fn predictions(&self) -> (Vec<usize>, &[u32]) {
        ((self.prompt - 1..self.tokens.len() - 1).collect(), &self.tokens[self.prompt..])
    }

    /// What the model reads: all tokens but the last, which nothing follows.
    pub fn inputs(&self) -> &[u32] {
        &self.tokens[..self.tokens.len() - 1]
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Line {
    text: Option<String>,
    prompt: Option<String>,
    instruction: Option<String>,
    context: Option<String>,
    response: Option<String>,
    input: Option<String>,
    outputs: Vec<String>,
}

impl Line {
    /// Prompt and response; or a text and nothing.
    fn parts(self) -> Result<(String, Option<String>)> {
        if let Some(text) = self.text {
            return Ok((text, None));
        }
        if let (Some(input), Some(answer)) = (self.input, self.outputs.first()) {
            return Ok((input, Some(format!(" {answer}"))));
        }
        let prompt = match (self.prompt, self.instruction, self.context) {
            (Some(prompt), _, _) => prompt,
            (None, Some(instruction), None) => format!("{instruction}\n"),
            (None, Some(instruction), Some(context)) => format!("{context}\n{instruction}\n"),
            (None, None, _) => bail!("it has no text, no prompt, no instruction and no input"),
        };
        Ok((prompt, Some(self.response.context("it has a prompt and no response")?)))
    }
}

impl SampleArgs {
    /// Reads the samples.
    pub fn read(&self, tokenizer: &Tokenizer) -> Result<Vec<Sample>> {
        ensure!(self.most_tokens > 1, "--most-tokens {}: a sample has 2 tokens or more", self.most_tokens);
        ensure!(
            self.response_share > 0.0 && self.response_share < 1.0,
            "--response-share {} isn't between 0 and 1",
            self.response_share
        );
        let mut samples = Vec::new();
        let mut left_out = 0;
        for file in &self.samples {
            let text = std::fs::read_to_string(file)
                .with_context(|| format!("{} can't be read: give UTF-8 text", file.display()))?;
            if file.extension().is_none_or(|extension| extension != "jsonl") {
                let tokens = tokenizer.encode(&text, false)?;
                let pieces = tokens.chunks(self.most_tokens).filter_map(|tokens| self.text(tokens.to_vec()));
                samples.extend(pieces.take(self.most_samples.saturating_sub(samples.len())));
                continue;
            }
            for (number, line) in text.lines().enumerate() {
                if samples.len() < self.most_samples && !line.trim().is_empty() {
                    match self.sample(tokenizer, line).with_context(|| place(file, number))? {
                        Some(sample) => samples.push(sample),
                        None => left_out += 1,
                    }
                }
            }
        }
        if left_out > 0 {
            println!("{left_out} samples left out: longer than --most-tokens {}, or empty", self.most_tokens);
        }
        ensure!(!samples.is_empty(), "--samples: there is no sample of at most {} tokens", self.most_tokens);
        Ok(samples)
    }

    fn sample(&self, tokenizer: &Tokenizer, line: &str) -> Result<Option<Sample>> {
        let line: Line =
            serde_json::from_str(line).context("it is no JSON object of the form --samples names")?;
        let (prompt, response) = line.parts()?;
        let mut tokens = tokenizer.encode(&prompt, true)?;
        let Some(response) = response else {
            tokens.truncate(self.most_tokens);
            return Ok(self.text(tokens));
        };
        let prompt = tokens.len();
        tokens.extend(tokenizer.encode(&response, false)?);
        let fits = tokens.len() <= self.most_tokens && prompt > 0 && prompt < tokens.len();
        Ok(fits.then(|| Sample::new(tokens, prompt)))
    }

    /// A text whose end counts as the response to the rest.
    fn text(&self, tokens: Vec<u32>) -> Option<Sample> {
        let response = (tokens.len() as f64 * self.response_share).ceil() as usize;
        let prompt = tokens.len().saturating_sub(response);
        (prompt > 0 && response > 0).then(|| Sample::new(tokens, prompt))
    }
}

fn place(file: &Path, number: usize) -> String {
    format!("line {} of {} is not a sample", number + 1, file.display())
}
