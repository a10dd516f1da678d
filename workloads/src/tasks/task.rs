use crate::dataset::DatasetError;

/// The names of the thirteen tasks, in the order of RULER's `synthetic.yaml`.
pub const RULER_TASKS: [&str; 13] = [
    "niah_single_1",
    "niah_single_2",
    "niah_single_3",
    "niah_multikey_1",
    "niah_multikey_2",
    "niah_multikey_3",
    "niah_multivalue",
    "niah_multiquery",
    "vt",
    "cwe",
    "fwe",
    "qa_1",
    "qa_2",
];

/// What needles are hidden in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Haystack {
    /// One line that is repeated.
    Noise,
    /// Prose.
    Essay,
    /// Other needles.
    Needles,
}

/// The kind of keys or values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strings {
    Words,
    Numbers,
    Uuids,
}

/// The sizes of a needle task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NeedleTask {
    pub(super) haystack: Haystack,
    pub(super) keys: Strings,
    pub(super) values: Strings,
    pub(super) num_keys: usize,
    /// The number of values per key.
    pub(super) num_values: usize,
    /// The number of keys that are asked for.
    pub(super) num_queries: usize,
}

/// RULER's five programs, which make the thirteen tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Needles(NeedleTask),
    Variables,
    CommonWords,
    FrequentWords,
    /// Whether a question needs two documents.
    Questions {
        two_hops: bool,
    },
}

/// One of the thirteen tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Task {
    /// Its index in [`RULER_TASKS`].
    pub(super) number: usize,
    pub(super) kind: Kind,
}

impl Task {
    /// Finds a task by its name.
    pub(super) fn named(name: &str) -> Result<Self, DatasetError> {
        let number = RULER_TASKS.iter().position(|&task| task == name).ok_or_else(|| {
            DatasetError::Options(format!(
                "no RULER task is named {name:?}; there are {}",
                RULER_TASKS.join(", ")
            ))
        })?;
        Ok(Self { number, kind: kind(name) })
    }

    pub(super) fn name(self) -> &'static str {
        RULER_TASKS[self.number]
    }

    /// The most tokens of an answer (`tokens_to_generate`), if the length has room for them.
    pub(super) fn tokens_to_generate(self) -> u32 {
        match self.kind {
            Kind::Needles(_) => 128,
            Kind::Variables => 30,
            Kind::CommonWords => 120,
            Kind::FrequentWords => 50,
            Kind::Questions { .. } => 32,
        }
    }

    /// Whether one of the answers is enough.
    pub(super) fn any(self) -> bool {
        matches!(self.kind, Kind::Questions { .. })
    }
}

/// The arguments that `synthetic.yaml` gives to the program.
fn kind(name: &str) -> Kind {
    use Haystack::{Essay, Noise};
    use Strings::{Numbers, Uuids, Words};
    let single = NeedleTask {
        haystack: Essay,
        keys: Words,
        values: Numbers,
        num_keys: 1,
        num_values: 1,
        num_queries: 1,
    };
    match name {
        "niah_single_1" => Kind::Needles(NeedleTask { haystack: Noise, ..single }),
        "niah_single_3" => Kind::Needles(NeedleTask { values: Uuids, ..single }),
        "niah_multikey_1" => Kind::Needles(NeedleTask { num_keys: 4, ..single }),
        "niah_multikey_2" => Kind::Needles(NeedleTask { haystack: Haystack::Needles, ..single }),
        "niah_multikey_3" => {
            Kind::Needles(NeedleTask { haystack: Haystack::Needles, keys: Uuids, values: Uuids, ..single })
        }
        "niah_multivalue" => Kind::Needles(NeedleTask { num_values: 4, ..single }),
        "niah_multiquery" => Kind::Needles(NeedleTask { num_keys: 4, num_queries: 4, ..single }),
        "vt" => Kind::Variables,
        "cwe" => Kind::CommonWords,
        "fwe" => Kind::FrequentWords,
        "qa_1" => Kind::Questions { two_hops: false },
        "qa_2" => Kind::Questions { two_hops: true },
        // niah_single_2
        _ => Kind::Needles(single),
    }
}
