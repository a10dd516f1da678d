/// What an acceptance rule finds about one draft.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Finding {
    /// The draft is accepted.
    Stands,
    /// The draft is rejected.
    Falls,
}

impl Finding {
    pub fn stands_if(yes: bool) -> Self {
        if yes { Self::Stands } else { Self::Falls }
    }
}
