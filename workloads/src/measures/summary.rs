use serde::{Deserialize, Serialize};

/// `summary.json`: what a replay came to.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Summary {}
