//! Records of what sparse attention (DSA) chose: one for each layer of each query token.

mod bits;
mod compact;
mod compact_reader;
mod compact_writer;
mod derive;
mod fetch;
mod npy;
mod record;
mod records;
mod selection_code;
mod subset;
mod token;
mod writer;

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::CONFIG_FILE;
use crate::{Error, json_fault};

pub use derive::{DsaFacts, prefix_key};
pub use fetch::{DsaFetched, DsaTiers};
pub use npy::{npy_header, write_npy};
pub(super) use record::DsaLine;
pub use record::{DsaFetch, DsaPrefix, DsaRow, DsaScores, DsaSource, DsaTopkRecord, DsaTouched};
use records::files;
pub(super) use records::names;
pub use records::{DsaRecords, dsa_file, read_compact};
pub use token::{DsaSelection, DsaToken};
pub(super) use writer::{DsaWriter, lines_before};

/// What the names of the files with these records begin with.
pub const DSA_STEM: &str = "dsa_topk";

/// Which rows of a step have records (`--trace-dsa`). Each kind has the rows of those before it too.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum DsaRows {
    /// None.
    Off,
    /// Rows that decode one token.
    #[default]
    Decode,
    /// And those that verify drafts.
    Verify,
    /// And those that compute tokens of a prompt, or tokens whose KV was lost.
    All,
}

impl DsaRows {
    /// Whether rows of a kind have records.
    #[must_use]
    pub fn has(self, row: DsaRow) -> bool {
        match row {
            DsaRow::Decode => self != Self::Off,
            DsaRow::Verify => matches!(self, Self::Verify | Self::All),
            DsaRow::Prefill => self == Self::All,
        }
    }
}

impl fmt::Display for DsaRows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Off => "off",
            Self::Decode => "decode",
            Self::Verify => "verify",
            Self::All => "all",
        })
    }
}

impl FromStr for DsaRows {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let all = [Self::Off, Self::Decode, Self::Verify, Self::All];
        let found = all.into_iter().find(|rows| rows.to_string() == text);
        found.ok_or_else(|| format!("{text:?} is none of off, decode, verify, all"))
    }
}

/// How these records are stored (`--trace-dsa-format`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DsaFormat {
    /// Coded positions, in `dsa_topk.bin`.
    #[default]
    Compact,
    /// A JSON object a line, in `dsa_topk.jsonl`.
    Jsonl,
}

/// What a trace with these records says about them in `config.json`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct DsaTraceConfig {
    /// Which rows have records.
    pub rows: DsaRows,
    /// The share of the query tokens that have records. Whether a token has them depends on its request's name
    /// and its position alone.
    pub sample_rate: f64,
    /// How many tokens of a prompt `prefix_key` stands for, at most.
    pub prefix_key_tokens: u32,
    /// Whether records have the score of each chosen key.
    pub store_scores: bool,
    /// The keys that a query attends to, at most.
    pub index_topk: u32,
    /// The layers of the model.
    pub layers: u16,
    /// Those that have an indexer, ascending. Another layer uses the choice of the one before it.
    pub indexer_layers: Vec<u16>,
    /// The bytes of a token's latent in one layer.
    pub latent_bytes: u64,
}

impl DsaTraceConfig {
    /// Whether a query token has records.
    #[must_use]
    pub fn samples(&self, request_id: &str, position: u32) -> bool {
        if self.sample_rate >= 1.0 {
            return true;
        }
        // FNV-1a of the name and the position, mixed by the last steps of SplitMix64.
        let bytes = request_id.bytes().chain(position.to_le_bytes());
        let mut z = bytes.fold(0xcbf2_9ce4_8422_2325u64, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
        });
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^= z >> 31;
        ((z >> 11) as f64) < self.sample_rate * (1u64 << 53) as f64
    }

    /// What the `config.json` of a trace says about its records.
    ///
    /// # Errors
    ///
    /// The file can't be read, or says nothing about such records.
    pub fn of_trace(directory: &Path) -> Result<Self, Error> {
        let path = directory.join(CONFIG_FILE);
        let bytes = std::fs::read(&path).map_err(|source| Error::Read { path: path.clone(), source })?;
        let bad = |what: String| Error::BadConfig { path: path.clone(), what };
        let config: Value =
            json_fault::parse(&bytes).map_err(|fault| bad(format!("line {}: {fault}", fault.line)))?;
        let dsa = config.get("dsa").filter(|dsa| !dsa.is_null());
        let dsa = dsa.ok_or_else(|| bad("no `dsa`, which says what the records are about".to_owned()))?;
        Self::deserialize(dsa).map_err(|e| bad(format!("dsa {dsa}: {e}")))
    }

    /// The layer whose indexer chose for a layer; `None` if there is none.
    #[must_use]
    pub fn selection_layer(&self, layer: u16) -> Option<u16> {
        self.indexer_layers.iter().copied().rfind(|&own| own <= layer)
    }
}

#[cfg(test)]
mod tests;
