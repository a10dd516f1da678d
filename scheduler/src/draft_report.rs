use serde::Serialize;

/// What a [`DraftControl`](crate::DraftControl) has decided and learnt.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DraftReport {
    /// Steps decided.
    pub decisions: u64,
    /// How often a request was given k drafts, by k.
    pub chosen: Vec<u64>,
    /// Drafts a decode row in the last step decided.
    pub last_mean: f64,
    /// Probes begun while drafts were off.
    pub probes: u64,
    /// Probability that a draft is accepted, as far as is known of all requests.
    pub acceptance: f64,
    /// What the target's forward takes, of what it was calibrated at.
    pub target_scale: f64,
    /// What the proposer's forwards take, of what they were calibrated at.
    pub draft_scale: f64,
    /// Microseconds of a step outside the target and the proposer.
    pub overhead_us: f64,
}
