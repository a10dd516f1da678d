//! GGUF files: a whole model in one file, as llama.cpp writes it.
//!
//! The file is mapped, and its header is read when it is opened: the metadata, and for each tensor its name, shape, type
//! and place, all checked against the length of the file. Nothing is allocated for a count that the file merely claims.
//! Weights are dequantised row by row when they are read ([`Tensor::read_row`](super::Tensor::read_row)), exactly as ggml's
//! reference code does.
//!
//! What is read: versions 2 and 3 of the container, little-endian; tensors of the types of [`GgmlType`]; the architectures
//! `llama` (Llama, Mistral, SmolLM2), `qwen2` and `qwen3`; tokenizers of the kinds `gpt2` (byte-level BPE) and `llama`
//! (SentencePiece). Anything else is an error that names it. The format is described in `docs/gguf.md` of ggml.

mod byte_level;
mod checkpoint;
mod config;
mod cursor;
mod dequantise;
mod file;
mod ggml_type;
mod header;
mod pre_tokenizer;
mod quant_rows;
mod rope;
mod rows;
mod sentencepiece;
mod special;
mod stored_name;
#[cfg(test)]
mod tests;
mod tokenizer;
mod value;
mod vocabulary;

pub use file::Gguf;
pub use ggml_type::GgmlType;
pub(super) use rows::Rows;
