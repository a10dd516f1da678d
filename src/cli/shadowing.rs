//! The canary of a session, as reports need it: one place where the command line meets it.

use pagedraft::session::Session;
use serde::Serialize;

/// What shadowing came to.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct CanaryFigures {
    /// Steps that were run eagerly as well.
    pub shadow_steps: u64,
    /// Alarms it raised.
    pub alarms: u64,
    /// Steps from the start of shadowing to the first alarm.
    pub first_alarm_step: Option<u64>,
}

/// Shadows the share `rate` of the replayed steps from here on; an alarm is counted, and fails no step.
pub fn begin(session: &mut Session, rate: f64) {
    // The canary is merged next: `session.set_shadowing(rate, false)`.
    let _ = (session, rate);
}

/// What it came to since; `None` where nothing is shadowed.
pub fn figures(session: &Session) -> Option<CanaryFigures> {
    // The canary is merged next: `session.canary_report()`.
    let _ = session;
    None
}
