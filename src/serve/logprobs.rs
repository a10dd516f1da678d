//! Log probabilities in the two forms of OpenAI: parallel lists in completions, a list of objects in chats.

use std::collections::BTreeMap;

use pagedraft_model::tokenizer::Tokenizer;
use pagedraft_spec_decode::sampling::{RowLogprobs, TokenLogprob};
use serde::Serialize;

use super::token_text;

/// What stands under `logprobs` of a choice.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub enum Logprobs {
    /// Of a completion.
    Lists(Lists),
    /// Of a chat.
    Content { content: Vec<Token> },
}

/// Four lists with an element a token. The first token of a prompt has no probability.
#[derive(Debug, Default, Serialize)]
pub struct Lists {
    text_offset: Vec<usize>,
    token_logprobs: Vec<Option<f32>>,
    tokens: Vec<String>,
    top_logprobs: Vec<Option<BTreeMap<String, f32>>>,
}

/// A token of a chat.
#[derive(Debug, Serialize)]
pub struct Token {
    token: String,
    logprob: f32,
    bytes: Option<Vec<u8>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    top_logprobs: Option<Vec<Token>>,
}

impl Lists {
    /// Adds a token of the prompt or of the answer. `offset` is where its text begins, in characters, and is moved behind it.
    fn push(
        &mut self,
        tokenizer: Option<&Tokenizer>,
        token: u32,
        known: Option<(f32, &[TokenLogprob])>,
        offset: &mut usize,
    ) {
        let text = |id| token_text::of(tokenizer, id).text;
        let own = text(token);
        self.text_offset.push(*offset);
        *offset += own.chars().count();
        self.token_logprobs.push(known.map(|(logprob, _)| logprob));
        self.top_logprobs.push(known.map(|(logprob, best)| {
            // Two tokens may have one text. Then the likelier one is meant.
            let mut by_text = BTreeMap::from([(own.clone(), logprob)]);
            for candidate in best.iter().rev() {
                by_text.insert(text(candidate.token_id), candidate.logprob);
            }
            by_text
        }));
        self.tokens.push(own);
    }

    /// Adds generated tokens.
    pub fn extend(&mut self, tokenizer: Option<&Tokenizer>, rows: &[RowLogprobs], offset: &mut usize) {
        for row in rows {
            let known = Some((row.chosen.logprob, row.best.as_slice()));
            self.push(tokenizer, row.chosen.token_id, known, offset);
        }
    }

    /// Adds the tokens of a prompt, of which all but the first have log probabilities.
    pub fn extend_prompt(
        &mut self,
        tokenizer: Option<&Tokenizer>,
        ids: &[u32],
        own: &[Option<TokenLogprob>],
        best: &[Option<Vec<TokenLogprob>>],
        offset: &mut usize,
    ) {
        for (i, &id) in ids.iter().enumerate() {
            let own = own.get(i).copied().flatten();
            let best = best.get(i).and_then(Option::as_deref).unwrap_or_default();
            self.push(tokenizer, id, own.map(|own| (own.logprob, best)), offset);
        }
    }
}

/// The tokens of a chat, each with its best candidates.
pub fn content(tokenizer: Option<&Tokenizer>, rows: &[RowLogprobs]) -> Vec<Token> {
    let token = |known: &TokenLogprob, top_logprobs| {
        let text = token_text::of(tokenizer, known.token_id);
        Token { token: text.text, logprob: known.logprob, bytes: text.bytes, top_logprobs }
    };
    let row = |row: &RowLogprobs| {
        let best = row.best.iter().map(|candidate| token(candidate, None)).collect();
        token(&row.chosen, Some(best))
    };
    rows.iter().map(row).collect()
}

/// A candidate of a prompt token, as vLLM tells it.
#[derive(Debug, Serialize)]
pub struct Candidate {
    logprob: f32,
    /// From 1, if it is among those that were asked for.
    rank: Option<usize>,
    decoded_token: String,
}

/// vLLM's `prompt_logprobs`: for each prompt token but the first the candidates by id.
pub fn of_prompt(
    tokenizer: Option<&Tokenizer>,
    own: &[Option<TokenLogprob>],
    best: &[Option<Vec<TokenLogprob>>],
) -> Vec<Option<BTreeMap<u32, Candidate>>> {
    let candidate = |known: &TokenLogprob, rank| {
        let decoded_token = token_text::of(tokenizer, known.token_id).text;
        (known.token_id, Candidate { logprob: known.logprob, rank, decoded_token })
    };
    let token = |(own, best): (&Option<TokenLogprob>, &Option<Vec<TokenLogprob>>)| {
        let own = own.as_ref()?;
        let mut by_id = BTreeMap::from([candidate(own, None)]);
        let best = best.iter().flatten().enumerate();
        by_id.extend(best.map(|(place, known)| candidate(known, Some(place + 1))));
        Some(by_id)
    };
    own.iter().zip(best).map(token).collect()
}
