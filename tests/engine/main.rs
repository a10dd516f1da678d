//! The engine inside this process: the promises, and what each kind of model and request gives.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that fails says where")]

mod assets;
mod canary;
mod canvas;
mod canvases;
mod diffusion;
mod ends;
mod gguf;
#[path = "../../model/tests/gguf_writer/mod.rs"]
mod gguf_writer;
mod handle;
mod indexer_topk;
mod interrupted;
mod kv_news;
mod kv_tiers;
#[path = "../models/mod.rs"]
mod models;
mod promise;
mod prune;
mod prune_cache;
mod prune_scorers;
mod prune_sparse;
mod pruned;
mod quantized;
#[path = "../requests/mod.rs"]
mod requests;
mod schedule;
mod sparse;
mod speculation;
mod window;
