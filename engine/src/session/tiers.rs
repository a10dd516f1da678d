//! Tiers for the KV of a model with sparse attention: what an engine asks for, and what is done between its steps.

use std::path::PathBuf;
use std::time::Duration;

use pagedraft_block_manager::{BlockId, GroupId, KvEventKind, KvGroup, PartKind};
use pagedraft_model::checkpoint::ModelConfig;
use pagedraft_model::tiers::{LocalPool, Policy, TierCounts, TierOptions, open_remote};
use pagedraft_model::{AnyDevice, Device};

use super::Session;
use super::log;
use super::options::EngineOptions;
use crate::error::{EngineError, Result};
use crate::memory_need::ensure_fits;

/// The most waiting requests whose prefixes are restored before a step.
const MOST_RESTORED: usize = 8;

/// Where the latents of a model with sparse attention are kept.
#[derive(Clone, Debug)]
pub struct KvTiers {
    /// The blocks that tier 0 holds in each layer; by default all.
    pub hbm_blocks: Option<u32>,
    /// The pool behind it.
    pub local_pool: Option<LocalPool>,
    /// The URL of the pool behind that: `file:///DIRECTORY`, or `redis://HOST:PORT` or `s3://BUCKET/DIRECTORY` if the program was
    /// built with them.
    pub remote_pool: Option<String>,
    /// How long a remote pool may take to answer. It is not asked again after that.
    pub patience: Duration,
    /// What goes down first.
    pub policy: Policy,
}

impl Default for KvTiers {
    fn default() -> Self {
        Self {
            hbm_blocks: None,
            local_pool: None,
            remote_pool: None,
            patience: Duration::from_secs(2),
            policy: Policy::default(),
        }
    }
}

impl KvTiers {
    /// Whether anything is asked for.
    #[must_use]
    pub fn is_asked_for(&self) -> bool {
        self.hbm_blocks.is_some() || self.local_pool.is_some() || self.remote_pool.is_some()
    }

    /// The flag that asks for tiers, and its value.
    fn flag(&self) -> String {
        let Self { hbm_blocks, local_pool, remote_pool, .. } = self;
        let local = |pool: &LocalPool| {
            let file = pool.file.as_ref().map_or(String::new(), |file| format!(":{}", file.display()));
            format!("--kv-local-pool {}{file}", pool.bytes)
        };
        let hbm = hbm_blocks.map(|blocks| format!("--kv-hbm-blocks {blocks}"));
        let remote = remote_pool.as_ref().map(|url| format!("--kv-remote-pool {url}"));
        hbm.or(local_pool.as_ref().map(local)).or(remote).unwrap_or_default()
    }
}

/// Tiers as an engine will have them.
pub(super) struct PlannedTiers {
    asked: KvTiers,
    /// The bytes that one layer holds of a block.
    cell_bytes: usize,
    layers: usize,
}

impl PlannedTiers {
    /// The tiers that the options ask for, for a model that keeps these groups; `None` if they ask for none.
    ///
    /// # Errors
    ///
    /// The model or its device cannot have them.
    pub fn new(
        options: &EngineOptions,
        config: &ModelConfig,
        groups: &[KvGroup],
        on_gpu: bool,
    ) -> Result<Option<Self>> {
        let asked = &options.kv_tiers;
        if !asked.is_asked_for() {
            return Ok(None);
        }
        let (flag, model) = (asked.flag(), &options.model);
        if config.dsa.is_none() {
            let error = format!("{flag}: {model} has no sparse attention, so every step reads all of its KV");
            return Err(EngineError::input_hint(
                error,
                "leave the flag out, or take a model with sparse attention",
            ));
        }
        if on_gpu {
            return Err(EngineError::input_hint(
                format!("{flag}: a GPU has no KV tiers here"),
                "use --device cpu",
            ));
        }
        let parts = groups.iter().flat_map(|group| &group.parts);
        let latents = parts.into_iter().find(|part| part.kind == PartKind::Latent);
        let Some(latents) = latents else {
            return Err(EngineError::input(format!("{flag}: {model} keeps no latents")));
        };
        let cell_bytes = latents.bytes_per_token * options.block_size as usize;
        Ok(Some(Self { asked: asked.clone(), cell_bytes, layers: latents.layers.len() }))
    }

    /// The bytes of the latents of a block.
    pub fn latent_bytes(&self) -> u128 {
        self.cell_bytes as u128 * self.layers as u128
    }

    /// The blocks of the pool, of which the options ask for `num_blocks`, or for none in particular if they were not `given`: no more
    /// than the tiers hold.
    pub fn num_blocks(&self, num_blocks: u32, given: bool) -> u32 {
        let Some(frames) = self.asked.hbm_blocks else { return num_blocks };
        let local = self.asked.local_pool.as_ref().map_or(0, |pool| {
            u128::from(pool.bytes) / (self.cell_bytes as u128).max(1) / (self.layers as u128).max(1)
        });
        let hold = u32::try_from(u128::from(frames) + local).unwrap_or(u32::MAX);
        match (&self.asked.remote_pool, given) {
            (Some(_), true) => num_blocks,
            (Some(_), false) => num_blocks.max(hold),
            (None, true) => num_blocks.min(hold),
            (None, false) => hold,
        }
    }

    /// Refuses frames and a pool for which there is no memory.
    ///
    /// # Errors
    ///
    /// The error names the flag.
    pub fn check_memory(&self, num_blocks: u32) -> Result<()> {
        let frames = self.asked.hbm_blocks.unwrap_or(num_blocks).min(num_blocks);
        ensure_fits(&format!("tier 0 of {frames} blocks"), u128::from(frames) * self.latent_bytes())?;
        match &self.asked.local_pool {
            Some(LocalPool { bytes, file: None }) => {
                ensure_fits(&format!("--kv-local-pool {bytes}"), u128::from(*bytes))
            }
            _ => Ok(()),
        }
    }

    /// Says in the groups that an arena is planned for that their latents lie elsewhere.
    pub fn mark(&self, groups: &mut [KvGroup]) {
        for part in groups.iter_mut().flat_map(|group| &mut group.parts) {
            part.tiered |= part.kind == PartKind::Latent;
        }
    }

    /// Opens the pools, and has the device use them.
    ///
    /// # Errors
    ///
    /// A pool cannot be opened.
    pub fn open(&self, device: &mut AnyDevice) -> Result<()> {
        let KvTiers { hbm_blocks: frames, local_pool, remote_pool, patience, policy } = &self.asked;
        let mut options = TierOptions { frames: *frames, policy: *policy, ..TierOptions::default() };
        if let Some(local) = local_pool {
            options =
                options.with_local(local, self.cell_bytes).map_err(|e| EngineError::from(e).into_input())?;
        }
        if let Some(url) = remote_pool {
            options.pools.push(open_remote(url, *patience).map_err(|e| EngineError::from(e).into_input())?);
        }
        device.keep_in_tiers(options)?;
        Ok(())
    }
}

impl Session {
    /// What the KV tiers did since the engine was opened; `None` without tiers.
    pub fn tier_counts(&mut self) -> Option<TierCounts> {
        self.executor.runner().device_mut().tiers().map(|tiers| tiers.counts())
    }

    /// Brings back what the tiers below have of the prefixes of the requests that are admitted next.
    pub(super) fn restore_prefixes(&mut self) -> Result<()> {
        if !self.keeps_prefixes {
            return Ok(());
        }
        for at in 0..MOST_RESTORED {
            let Some(tiers) = self.executor.runner().device_mut().tiers() else { return Ok(()) };
            let Some((key, restore)) =
                self.scheduler.begin_restore(at, &mut |hash| tiers.has_prefix(hash))?
            else {
                // Those behind a request that cannot be admitted wait too.
                if at < self.scheduler.stats().waiting { continue } else { return Ok(()) }
            };
            // What was in these blocks goes down first.
            self.save_prefixes();
            let Some(tiers) = self.executor.runner().device_mut().tiers() else { return Ok(()) };
            let filled =
                restore.blocks.iter().take_while(|(block, hash)| tiers.restore_prefix(hash, block.0)).count();
            let asked = restore.blocks.len();
            log::restored(filled, asked);
            self.scheduler.end_restore(key, restore, filled as u32)?;
        }
        Ok(())
    }

    /// Sends down what the prefix cache has forgotten, before it is written anew.
    pub(super) fn save_prefixes(&mut self) {
        if !self.keeps_prefixes {
            return;
        }
        let events = self.scheduler.blocks().pool().journal().map_or(&[][..], |journal| &journal.events);
        let Some(tiers) = self.executor.runner().device_mut().tiers() else { return };
        for event in events.get(self.journal_seen..).unwrap_or_default() {
            match event.kind {
                KvEventKind::Removed if event.group == GroupId(0) => {
                    tiers.save_prefix(&event.hash, event.block.0);
                }
                KvEventKind::Cleared => tiers.forget_prefixes(),
                _ => {}
            }
        }
        self.journal_seen = events.len();
    }

    /// Takes blocks out of the prefix cache whose KV the last step found to be lost.
    pub(super) fn forget_lost_blocks(&mut self) {
        let Some(tiers) = self.executor.runner().device_mut().tiers() else { return };
        let lost = tiers.take_lost_blocks();
        if !lost.is_empty() {
            log::lost(&lost, tiers.lost_rows().len());
        }
        for block in lost {
            self.scheduler.lose_block(GroupId(0), BlockId(block));
        }
    }
}

/// Reads `SIZE[:FILE]`, given how a size is read.
pub fn local_pool(text: &str, bytes: impl Fn(&str) -> Result<u64, String>) -> Result<LocalPool, String> {
    let (size, file) = match text.split_once(':') {
        Some((_, "")) => return Err("the name of the file behind the colon is missing".to_owned()),
        Some((size, file)) => (size, Some(PathBuf::from(file))),
        None => (text, None),
    };
    Ok(LocalPool { bytes: bytes(size)?, file })
}
