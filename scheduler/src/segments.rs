use pagedraft_block_manager::GroupId;

use crate::config::SegmentKv;
use crate::role::{MAX_SEGMENTS, Role};
use crate::shares::Shares;
use crate::{ConfigError, SchedulerConfig};

/// The model's segments, and what each KV group is for.
#[derive(Debug)]
pub(crate) struct Segments {
    count: u16,
    roles: Vec<Role>,
    in_target: Vec<bool>,
    lagging: Option<GroupId>,
    shares: Shares,
}

impl Segments {
    pub(crate) fn new(config: &SchedulerConfig) -> Result<Self, ConfigError> {
        let all = |group: &GroupId| {
            config.groups.get(usize::from(group.0)).is_some_and(|group| !group.lags && !group.is_scratch())
        };
        let ids = (0..config.groups.len()).map(|index| GroupId(index as u8));
        let one = [SegmentKv { groups: ids.filter(all).collect(), hold: None }];
        let segments = if config.segments.is_empty() { &one[..] } else { &config.segments };
        if segments.len() > MAX_SEGMENTS {
            return Err(ConfigError::Segments {
                segment: MAX_SEGMENTS,
                what: "is one too many: there are 16 at most",
            });
        }
        let mut roles = vec![None; config.groups.len()];
        for (segment, kv) in segments.iter().enumerate() {
            let wrong = |what| ConfigError::Segments { segment, what };
            let owned = kv.groups.iter().map(|&group| (group, Role::Kv(segment as u16)));
            let held = kv.hold.iter().map(|&group| (group, Role::Hold(segment as u16)));
            for (group, role) in owned.chain(held) {
                let Some(kv) = config.groups.get(usize::from(group.0)) else {
                    return Err(wrong("names a KV group that does not exist"));
                };
                if kv.lags || kv.is_scratch() != matches!(role, Role::Hold(_)) {
                    return Err(wrong(
                        "names a KV group of another kind: layers write ordinary groups, rows wait in scratch groups",
                    ));
                }
                if roles[usize::from(group.0)].replace(role).is_some() {
                    return Err(wrong("names a KV group that another segment names as well"));
                }
            }
        }
        let mut lagging = None;
        for (group, role) in config.groups.iter().zip(&mut roles) {
            if group.lags {
                *role = Some(Role::Lagging);
                lagging = Some(group.id);
            }
        }
        let roles = roles.into_iter().collect::<Option<Vec<_>>>();
        let roles = roles.ok_or(ConfigError::Segments {
            segment: segments.len() - 1,
            what: "is the last, and a KV group belongs to no segment",
        })?;
        let count = segments.len() as u16;
        let shares = Shares::new(&config.groups, &roles, count);
        let in_target = roles.iter().map(|role| matches!(role, Role::Kv(_))).collect();
        Ok(Self { count, roles, in_target, lagging, shares })
    }

    #[inline]
    pub(crate) fn count(&self) -> u16 {
        self.count
    }

    /// What each group is for, by its id.
    #[inline]
    pub(crate) fn roles(&self) -> &[Role] {
        &self.roles
    }

    /// By group whether layers of the target write it.
    #[inline]
    pub(crate) fn in_target(&self) -> &[bool] {
        &self.in_target
    }

    #[inline]
    pub(crate) fn num_groups(&self) -> usize {
        self.roles.len()
    }

    /// What share of the work each group and segment has.
    #[inline]
    pub(crate) fn shares(&self) -> &Shares {
        &self.shares
    }

    /// The group of a proposer's KV.
    #[inline]
    pub(crate) fn lagging(&self) -> Option<GroupId> {
        self.lagging
    }
}

/// The token budget of a step: token rows that are left in each segment.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Budget {
    left: [u32; MAX_SEGMENTS],
    segments: u16,
}

impl Budget {
    pub(crate) fn new(rows: u32, segments: u16) -> Self {
        Self { left: [rows; MAX_SEGMENTS], segments }
    }

    /// Rows that every segment has left.
    #[inline]
    pub(crate) fn least(&self) -> u32 {
        if self.segments == 1 {
            return self.left[0];
        }
        self.left[..usize::from(self.segments)].iter().copied().min().unwrap_or(0)
    }

    #[inline]
    pub(crate) fn of(&self, segment: u16) -> u32 {
        self.left[usize::from(segment)]
    }

    #[inline]
    pub(crate) fn take(&mut self, segment: u16, rows: u32) {
        let left = &mut self.left[usize::from(segment)];
        *left = left.saturating_sub(rows);
    }

    /// Takes so many rows in every segment.
    #[inline]
    pub(crate) fn take_in_all(&mut self, rows: u32) {
        if self.segments == 1 {
            self.left[0] = self.left[0].saturating_sub(rows);
        } else {
            (0..self.segments).for_each(|segment| self.take(segment, rows));
        }
    }

    pub(crate) fn give_back(&mut self, segment: u16, rows: u32) {
        self.left[usize::from(segment)] += rows;
    }
}
