use serde::Serialize;

/// What a [`DraftControl`](crate::DraftControl) has decided and learnt.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
pub struct DraftReport {
    /// The number of steps whose draft lengths were decided.
    pub decisions: u64,
    /// At index k, how often a decode row was given k drafts.
    pub chosen: Vec<u64>,
    /// The mean number of drafts a decode row had in the most recently decided step.
    pub last_mean: f64,
    /// The number of probes that were begun while drafts were off.
    pub probes: u64,
    /// The estimated probability that a draft is accepted, over all requests.
    pub acceptance: f64,
    /// The target's forward takes this many times its calibrated time.
    pub target_scale: f64,
    /// A forward of the proposer takes this many times its calibrated time.
    pub draft_scale: f64,
    /// Microseconds of a step that neither the target nor the proposer uses.
    pub overhead_us: f64,
}
