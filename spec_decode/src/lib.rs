//! Executes the plan of a step: drafts, metadata, forward pass and verification.
//!
//! [`ModelExecutor`] implements the scheduler's [`Executor`](pagedraft_scheduler::Executor) with a model. A
//! [`proposer`] gives rows their drafts, a [`Scorer`] writes the drafts into the metadata, and [`acceptance`] decides
//! which of them are accepted. Plain decoding is the case without drafts.
//!
//! # What this crate promises
//!
//! - **The record is what ran.** [`ExecutionRecord`] holds the very [`StepInputs`](pagedraft_model::StepInputs) that
//!   the model was given, not a copy made for the log. A draft model's [`GroupStep`](proposer::GroupStep) is put
//!   together from the inputs of its passes.
//! - **A draw is a function of seed, sample and position** ([`sampling`]). The order of requests, the rest of the
//!   batch, and how often a position was computed change nothing.
//! - **Drafts change how many tokens a step gives, not which.** With coupled [`acceptance`], the default, a draft is
//!   accepted exactly when it is the token that the target chooses there. Every proposer, scorer and draft length
//!   therefore gives the tokens and bits of the run without drafts. Rejection sampling keeps only the distribution, and
//!   typical acceptance not even that.
//! - **Graphs change nothing.** A step is replayed if a captured graph has room for it, and runs eagerly otherwise,
//!   with the same bits. A [`Shadow`] runs a share of the replayed steps again eagerly and compares.
//! - **A step that fails is not counted** in the [`metrics`]. The requests that its plan names as finished are
//!   forgotten all the same.
//!
//! # What it costs beside the models
//!
//! Writing the metadata takes less than a microsecond a row. Each sampled row takes a pass over the vocabulary, and so
//! does each draft up to the first that is rejected. A draft model takes one forward pass of its own for each round,
//! and a shadowed step takes a second forward pass of the target. A steady step allocates nothing, as long as it has no
//! logprobs, no rejection sampling and no shadow.
//!
//! # Example
//!
//! ```
//! # use pagedraft_attention::isa::Isa;
//! # use pagedraft_block_manager::{GroupId, KvGroup};
//! # use pagedraft_model::checkpoint::{Checkpoint, ModelConfig};
//! # use pagedraft_model::cpu::{CpuDevice, CpuOptions, KvArena};
//! # use pagedraft_model::{Dtype, Runner, StepLimits};
//! # use pagedraft_scheduler::{Executor, RequestSpec, Scheduler, SchedulerConfig, StepOutcome, StepPlan};
//! # use pagedraft_spec_decode::{ModelExecutor, Registered, proposer::NgramProposer, sampling::SamplingParams};
//! # let json = br#"{"architectures": ["Qwen3ForCausalLM"], "vocab_size": 50, "hidden_size": 32, "intermediate_size": 48,
//! #     "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-6,
//! #     "max_position_embeddings": 160, "rope_theta": 10000.0, "tie_word_embeddings": true}"#;
//! // A tiny model with random weights, and a KV pool of 64 blocks of 16 tokens.
//! let checkpoint = Checkpoint::dummy(ModelConfig::parse("config.json".as_ref(), json)?, 9);
//! let layout = CpuDevice::kv_layout(checkpoint.config(), Dtype::F32, 16)?;
//! let groups = vec![KvGroup::dense(2, layout.token_bytes())];
//! let config = SchedulerConfig { num_blocks: 64, num_speculative_tokens: 4, groups, ..SchedulerConfig::default() };
//! let mut scheduler = Scheduler::new(config)?;
//! let arena = KvArena::new(scheduler.blocks().arena())?;
//! let cpu = CpuOptions { isa: Isa::detect(), threads: 1, dtype: Dtype::F32, block_size: 16 };
//! let limits = StepLimits { token_rows: 64, logit_rows: 64, max_model_len: 160 };
//! let runner = Runner::load(CpuDevice::new(&cpu, &arena, &[GroupId(0)])?, &checkpoint, limits)?;
//!
//! let mut executor = ModelExecutor::new(runner, 16)?;
//! let ngram = executor.add_proposer(Box::new(NgramProposer::new(1, 4)?));
//! executor.choose_proposer(Some(ngram));
//! let request = scheduler.submit(RequestSpec::new(vec![7, 8, 9, 7, 8, 9], 20))?;
//! executor.register(request, Registered { sampling: SamplingParams::greedy(), prompt_len: 6, ..Registered::default() });
//!
//! let (mut plan, mut outcome, mut applied) = (StepPlan::default(), StepOutcome::default(), Vec::new());
//! let mut generated = Vec::new();
//! while scheduler.has_unfinished() {
//!     scheduler.step(&mut plan)?;
//!     executor.execute(&plan, &scheduler, &mut outcome)?;
//!     scheduler.apply(&outcome, &mut applied)?;
//!     for kept in applied.iter().map(|one| one.tokens.start as usize..one.tokens.end as usize) {
//!         generated.extend_from_slice(&outcome.tokens[kept]);
//!     }
//! }
//! assert_eq!(generated.len(), 20);
//! assert!(executor.metrics().num_draft_tokens > 0);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![deny(missing_docs)]

pub mod acceptance;
pub mod calibrate;
pub mod canary;
mod canvas;
mod drafts;
mod error;
mod executor;
pub mod metrics;
pub mod proposer;
mod record;
mod requests;
mod sample;
mod sampled;
pub mod sampling;
mod scorer;
mod segment_rows;
mod segment_run;
mod shadow;
mod shadow_run;
pub mod tensors;
mod thinning;

pub use canvas::{CanvasPass, Denoising, ForcedPass, Guard, Remasking, Skip, SkipPolicy, SkipStates};
pub use drafts::Drafts;
pub use error::ExecuteError;
pub use executor::{ModelExecutor, ProposerId, TARGET_GROUP};
pub use record::{CutRecord, ExecutionRecord, PromptLogprobs, SegmentRecord, StageTimes};
pub use requests::{Registered, Requests};
pub use scorer::Scorer;
pub use shadow::Shadow;
pub use thinning::{Thin, Thinning, Watched};
