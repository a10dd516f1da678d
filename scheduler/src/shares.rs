use pagedraft_block_manager::KvGroup;

use crate::role::{MAX_SEGMENTS, Role};

/// What share of the target's work each KV group and each segment has, so that rows and contexts that do not go through
/// all of the model are priced by the part that they go through.
///
/// A part's share is that of the bytes a token takes in it: where all layers are alike, that of its layers.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shares {
    /// Windows shorter than the whole context, each with the share of the layers that have it.
    windows: Vec<(u32, f64)>,
    /// Share of each segment; empty where there is one.
    segments: Vec<f64>,
}

impl Shares {
    pub(crate) fn new(groups: &[KvGroup], roles: &[Role], segments: u16) -> Self {
        let of = |wanted: &dyn Fn(&KvGroup, Role) -> bool| -> f64 {
            let parts = groups.iter().zip(roles).filter(|(group, role)| wanted(group, **role));
            parts.map(|(group, _)| group.bytes_per_token() as f64).sum()
        };
        let all = of(&|_, role| matches!(role, Role::Kv(_))).max(f64::MIN_POSITIVE);
        let windows = groups.iter().zip(roles).filter(|(_, role)| matches!(role, Role::Kv(_)));
        let windows = windows
            .filter_map(|(group, _)| {
                group.window.map(|window| (window, group.bytes_per_token() as f64 / all))
            })
            .collect();
        let share = |segment: u16| of(&|_, role| role == Role::Kv(segment)) / all;
        let segments = if segments > 1 { (0..segments).map(share).collect() } else { Vec::new() };
        Self { windows, segments }
    }

    /// Tokens of context that a query behind `len` tokens reads, averaged over the layers.
    #[inline]
    pub(crate) fn context(&self, len: u32) -> u32 {
        if self.windows.is_empty() {
            return len;
        }
        let unseen: f64 =
            self.windows.iter().map(|&(window, share)| share * f64::from(len.saturating_sub(window))).sum();
        len - (unseen.round() as u32).min(len)
    }

    /// The share of a segment; 1 where there is only one.
    pub(crate) fn segment(&self, segment: u16) -> f64 {
        self.segments.get(usize::from(segment)).copied().unwrap_or(1.0)
    }

    /// Token rows of the whole model that so many rows in each segment are worth.
    pub(crate) fn rows(&self, rows: impl Fn(u16) -> u32) -> u32 {
        if self.segments.is_empty() {
            return rows(0);
        }
        let segments = (0..MAX_SEGMENTS as u16).zip(&self.segments);
        segments.map(|(segment, share)| share * f64::from(rows(segment))).sum::<f64>().ceil() as u32
    }
}

#[cfg(test)]
mod tests {
    use pagedraft_block_manager::GroupId;

    use super::*;

    fn group(id: u8, layers: u16, window: Option<u32>) -> KvGroup {
        KvGroup { id: GroupId(id), window, ..KvGroup::dense(layers, 64) }
    }

    #[test]
    fn a_context_beyond_the_window_is_read_by_the_layers_without_one_alone() {
        let groups = [group(0, 3, None), group(1, 1, Some(100))];
        let shares = Shares::new(&groups, &[Role::Kv(0), Role::Kv(0)], 1);
        assert_eq!([50, 100, 500].map(|len| shares.context(len)), [50, 100, 400]);
        let whole = Shares::new(&groups[..1], &[Role::Kv(0)], 1);
        assert_eq!(whole.context(12_345), 12_345);
    }

    #[test]
    fn rows_count_by_the_layers_that_they_go_through() {
        let groups = [group(0, 1, None), group(1, 3, None)];
        let shares = Shares::new(&groups, &[Role::Kv(0), Role::Kv(1)], 2);
        assert_eq!(shares.rows(|_| 40), 40);
        assert_eq!(shares.rows(|segment| if segment == 0 { 40 } else { 20 }), 25);
        assert_eq!(shares.rows(|segment| if segment == 0 { 40 } else { 0 }), 10);
    }
}
