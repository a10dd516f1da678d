//! A breach of a rule, before it has a line and a step.

use super::rule::Rule;

/// A rule that the present step breaks.
#[derive(Debug)]
pub(super) struct Fault {
    pub(super) rule: Rule,
    pub(super) request: Option<String>,
    pub(super) what: String,
}

impl Fault {
    pub(super) fn new(rule: Rule, what: impl Into<String>) -> Self {
        Self { rule, request: None, what: what.into() }
    }

    pub(super) fn of(rule: Rule, request: &str, what: impl Into<String>) -> Self {
        Self { rule, request: Some(request.to_owned()), what: what.into() }
    }
}
