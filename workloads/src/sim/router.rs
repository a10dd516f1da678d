use serde::{Deserialize, Serialize};

/// Who gets a request, of several engines.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Router {
    /// Each in turn.
    #[default]
    RoundRobin,
    /// Who has the fewest tokens to compute and to generate.
    LeastLoaded,
    /// Who has most of its prompt in the prefix cache, unless others have much less to do.
    PrefixAware,
}
