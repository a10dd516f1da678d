//! The part of a run's `config.json` that the checker needs.

use std::path::Path;

use pagedraft_block_manager::Salt;
use serde::Deserialize;
use serde_json::Value;

use crate::Error;
use crate::json_fault;
use crate::trace::{DsaTraceConfig, KvGroupRecord, OLDEST_SCHEMA_VERSION, SCHEMA_VERSION};

/// What the checker must know of a run's configuration.
pub(super) struct TraceConfig {
    pub(super) schema_version: u32,
    pub(super) block_size: u32,
    pub(super) num_blocks: Option<u64>,
    /// The number of engines. Each has `num_blocks` blocks.
    pub(super) replicas: u32,
    /// Whether tables that did not change are left out.
    pub(super) delta: bool,
    /// Whether a draft is accepted exactly if it is the token that the target chooses.
    pub(super) coupled: bool,
    /// The numbers of token rows that graphs were captured for.
    pub(super) graph_sizes: Option<Vec<u64>>,
    /// Whether full blocks are published to the prefix cache.
    pub(super) caching: bool,
    /// The KV groups, the one that `metadata` describes first. Empty if nothing is said.
    pub(super) kv_groups: Vec<KvGroupRecord>,
    /// The salt of block hashes, if it is known.
    pub(super) kv_salt: Option<Salt>,
    /// What the records of sparse attention are about, if there are any.
    pub(super) dsa: Option<DsaTraceConfig>,
}

impl TraceConfig {
    pub(super) fn read(path: &Path) -> Result<Self, Error> {
        let bytes = std::fs::read(path).map_err(|source| Error::Read { path: path.to_owned(), source })?;
        let bad = |what: String| Error::BadConfig { path: path.to_owned(), what };
        let config: Value =
            json_fault::parse(&bytes).map_err(|fault| bad(format!("line {}: {fault}", fault.line)))?;
        let field = |name| {
            let found = config.get(name).or_else(|| config.get("engine").and_then(|e| e.get(name)));
            found.filter(|value| !value.is_null())
        };
        let schema_version = match field("schema_version") {
            None => SCHEMA_VERSION,
            Some(version) => {
                let known = version.as_u64().and_then(|version| u32::try_from(version).ok());
                let known =
                    known.filter(|version| (OLDEST_SCHEMA_VERSION..=SCHEMA_VERSION).contains(version));
                known.ok_or_else(|| {
                    bad(format!(
                        "schema_version is {version}, this build reads {OLDEST_SCHEMA_VERSION} to {SCHEMA_VERSION}"
                    ))
                })?
            }
        };
        let Some(size) = field("block_size") else { return Err(bad("no block_size".to_owned())) };
        let known = size.as_u64().and_then(|size| u32::try_from(size).ok());
        let Some(block_size) = known.filter(|size| [16, 32, 64].contains(size)) else {
            return Err(bad(format!("block_size is {size}, not 16, 32 or 64")));
        };
        let num_blocks = match field("num_blocks") {
            None => None,
            Some(blocks) => {
                Some(blocks.as_u64().ok_or_else(|| bad(format!("num_blocks is {blocks}, not a number")))?)
            }
        };
        let replicas = match field("replicas") {
            None => 1,
            Some(count) => {
                let known = count.as_u64().and_then(|count| u32::try_from(count).ok());
                let known = known.filter(|&count| count > 0);
                known.ok_or_else(|| bad(format!("replicas is {count}, not a number from 1 on")))?
            }
        };
        let delta = match field("trace_tables") {
            None => false,
            Some(tables) => match tables.as_str() {
                Some("full") => false,
                Some("delta") => true,
                _ => return Err(bad(format!("trace_tables is {tables}, neither full nor delta"))),
            },
        };
        let coupled = field("acceptance").is_none_or(|rule| rule == "coupled");
        let graph_sizes = match field("graph_sizes") {
            None => None,
            Some(sizes) => {
                Some(Vec::deserialize(sizes).map_err(|e| bad(format!("graph_sizes {sizes}: {e}")))?)
            }
        };
        let caching = field("enable_prefix_caching").is_none_or(|yes| yes != false);
        let kv_groups = match field("kv_groups") {
            None => Vec::new(),
            Some(groups) => Vec::deserialize(groups).map_err(|e| bad(format!("kv_groups {groups}: {e}")))?,
        };
        let kv_salt = match field("kv_salt") {
            None => None,
            Some(salt) => {
                let known = salt.as_str().and_then(Salt::from_hex);
                Some(known.ok_or_else(|| bad(format!("kv_salt is {salt}, not 64 hexadecimal digits")))?)
            }
        };
        let dsa = match field("dsa") {
            None => None,
            Some(dsa) => Some(DsaTraceConfig::deserialize(dsa).map_err(|e| bad(format!("dsa {dsa}: {e}")))?),
        };
        Ok(Self {
            schema_version,
            block_size,
            num_blocks,
            replicas,
            delta,
            coupled,
            graph_sizes,
            caching,
            kv_groups,
            kv_salt,
            dsa,
        })
    }
}
