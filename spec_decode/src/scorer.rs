//! Scorers: two ways to write the metadata of a verify row.

use std::fmt;
use std::str::FromStr;

use pagedraft_attention::metadata::MaskKind;
use pagedraft_attention::{AttentionError, MetadataBuilder};
use pagedraft_block_manager::BlockId;
use serde::Serialize;

/// How the last token of a sequence and the drafts behind it become metadata rows. Both ways give the tokens the same
/// positions and slots, and compute the same bits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Scorer {
    /// One row with k + 1 query tokens. Each key and value is read once for all of them.
    #[default]
    Mqa,
    /// k + 1 rows with one query token each. Every row has the sequence's block table, and one token of context more
    /// than the row before, so that kernels for plain decoding can run it.
    BatchExpansion,
}

impl Scorer {
    /// Whether a plan row with `tokens` query tokens, drafts included, becomes one metadata row with several tokens.
    pub(crate) fn is_one_long_row(self, tokens: u32, has_drafts: bool) -> bool {
        tokens > 1 && (self == Self::Mqa || !has_drafts)
    }

    /// Pushes the metadata rows of a plan row with `tokens` query tokens behind `context` tokens. Returns their number.
    pub(crate) fn push(
        self,
        builder: &mut MetadataBuilder,
        context: u32,
        tokens: u32,
        has_drafts: bool,
        table: &[BlockId],
    ) -> Result<u32, AttentionError> {
        if self == Self::Mqa || !has_drafts {
            builder.push_row(context, tokens, table, MaskKind::Causal)?;
            return Ok(1);
        }
        for j in 0..tokens {
            builder.push_row(context + j, 1, table, MaskKind::Causal)?;
        }
        Ok(tokens)
    }
}

impl fmt::Display for Scorer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Mqa => "mqa",
            Self::BatchExpansion => "batch-expansion",
        })
    }
}

impl FromStr for Scorer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "mqa" => Ok(Self::Mqa),
            "batch-expansion" => Ok(Self::BatchExpansion),
            other => Err(format!("there is no scorer {other:?}: there are mqa and batch-expansion")),
        }
    }
}
