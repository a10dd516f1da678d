//! The tokenizer: byte-level BPE (Sennrich et al., 2016; bytes and splitting as in GPT-2), in the
//! file format of Hugging Face tokenizers.

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::json;
use std::path::Path;
use tokenizers::models::bpe::{BPE, BpeTrainerBuilder};
use tokenizers::pre_tokenizers::byte_level::ByteLevel;
use tokenizers::{AddedToken, DecoderWrapper, NormalizerWrapper, PostProcessorWrapper};
use tokenizers::{PreTokenizerWrapper, Tokenizer, TokenizerImpl};

/// What starts a text.
pub const BOS: &str = "<|bos|>";
/// What ends a text.
pub const EOS: &str = "<|eos|>";

type Trained =
    TokenizerImpl<BPE, NormalizerWrapper, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// Learns `entries` tokens from `texts`: [`BOS`] is 0, [`EOS`] is 1, then the 256 bytes, then merges
/// in the order in which they were found.
pub fn train(texts: &[&str], entries: usize) -> Result<Tokenizer> {
    ensure!(
        entries >= 259,
        "--train-tokenizer {entries} leaves no room for merges: 256 bytes and 2 specials need 259"
    );
    let mut tokenizer = Trained::new(BPE::default());
    tokenizer.with_pre_tokenizer(Some(ByteLevel::new(false, true, true)));
    tokenizer.with_decoder(Some(ByteLevel::default()));
    let special = |content: &str| AddedToken::from(content, true);
    let mut trainer = BpeTrainerBuilder::new()
        .vocab_size(entries)
        .min_frequency(2)
        .show_progress(false)
        .special_tokens(vec![special(BOS), special(EOS)])
        .initial_alphabet(ByteLevel::alphabet().into_iter().collect())
        .build();
    // Pieces end at line ends, so that no piece boundary falls inside what the regex would match
    // as one word.
    let pieces: Vec<&str> = texts.iter().flat_map(|text| text.split_inclusive('\n')).collect();
    tokenizer
        .train(&mut trainer, pieces.into_iter())
        .map_err(|e| anyhow!("the tokenizer could not be trained: {e}"))?;
    let got = tokenizer.get_vocab_size(true);
    if got != entries {
        bail!(
            "the texts only support {got} tokens of the {entries} asked for: give more text or ask for fewer"
        );
    }
    Ok(Tokenizer::from(tokenizer))
}

/// Reads a `tokenizer.json`.
pub fn load(file: &Path) -> Result<Tokenizer> {
    Tokenizer::from_file(file).map_err(|e| anyhow!("{} can't be read as a tokenizer: {e}", file.display()))
}

/// The id of one of [`BOS`] and [`EOS`].
pub fn special(tokenizer: &Tokenizer, content: &str) -> Result<u32> {
    tokenizer.token_to_id(content).with_context(|| {
        format!("the tokenizer has no {content}: use one that `train lm --train-tokenizer` wrote")
    })
}

/// Token ids of `text`, without specials.
pub fn encode(tokenizer: &Tokenizer, text: &str) -> Result<Vec<u32>> {
    let encoding =
        tokenizer.encode_fast(text, false).map_err(|e| anyhow!("a text can't be tokenised: {e}"))?;
    Ok(encoding.get_ids().to_vec())
}

/// The text of `ids`, specials left out.
pub fn decode(tokenizer: &Tokenizer, ids: &[u32]) -> Result<String> {
    tokenizer.decode(ids, true).map_err(|e| anyhow!("tokens can't be decoded: {e}"))
}

/// Writes `tokenizer.json` and `tokenizer_config.json` into `folder`.
pub fn save(tokenizer: &Tokenizer, folder: &Path) -> Result<()> {
    let text = tokenizer.to_string(true).map_err(|e| anyhow!("tokenizer.json: {e}"))?;
    super::export::write_whole(&folder.join("tokenizer.json"), text.as_bytes())?;
    let config = json!({
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": EOS,
        "add_bos_token": false,
        "add_eos_token": false,
        "add_prefix_space": false,
        "clean_up_tokenization_spaces": false,
        "model_max_length": super::export::MAX_POSITIONS,
    });
    let text = serde_json::to_string_pretty(&config)? + "\n";
    super::export::write_whole(&folder.join("tokenizer_config.json"), text.as_bytes())
}
