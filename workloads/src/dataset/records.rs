//! What readers give, before it is cut to a window.

use super::{DatasetError, Item};

/// An item with its time as the file has it: nanoseconds since any fixed moment.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Record {
    pub(super) time_ns: Option<i64>,
    pub(super) item: Item,
}

/// Records in the file's order; it ends with the first error.
pub(super) type Records = Box<dyn Iterator<Item = Result<Record, DatasetError>> + Send>;

/// Records that `pull` gives until it gives none, or fails.
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
