//! What readers give, before it is cut to the window.

use super::error::DatasetError;
use super::sample::Item;

/// An item and its time in the file, in nanoseconds since any fixed moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) time_ns: Option<i64>,
    pub(super) item: Item,
}

/// Records in the file's order. The first error ends them.
pub(super) type Records = Box<dyn Iterator<Item = Result<Record, DatasetError>> + Send>;

/// The records that `pull` gives, until it gives none or fails.
pub(super) fn records(
    mut pull: impl FnMut() -> Result<Option<Record>, DatasetError> + Send + 'static,
) -> Records {
    let mut over = false;
    Box::new(std::iter::from_fn(move || {
        if over {
            return None;
        }
        let next = pull().transpose();
        over = !matches!(next, Some(Ok(_)));
        next
    }))
}
