//! Placeholder until the canary branch is merged.
/// Canary.
#[derive(Clone, Debug, Default)]
pub struct Canary {}
