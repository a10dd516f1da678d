//! Readers on real slices of what is published, and on small files for whatever is odd or broken.

mod broken_files;
mod odd_files;
mod real_files;
mod scratch;
mod windows;

use std::path::{Path, PathBuf};

pub(crate) use self::scratch::Scratch;
use super::{
    DatasetError, DatasetOptions, Item, OutputLength, Prompt, Sample, SkipReason, Skipped, Survey, Turns,
    Workload, open, survey,
};

pub(crate) fn options(workload: Workload, path: Option<PathBuf>) -> DatasetOptions {
    DatasetOptions {
        workload,
        path,
        turns: Turns::Full,
        from_s: None,
        to_s: None,
        limit: None,
        keep_failed: false,
        random: None,
        ruler: None,
        seed: 0,
    }
}

/// All items, or the first error, whether it comes at the opening or later.
fn items(options: &DatasetOptions) -> Result<Vec<Item>, DatasetError> {
    open(options, None)?.collect()
}

/// All items of a file of such contents.
fn items_of(workload: Workload, contents: impl AsRef<[u8]>) -> Result<Vec<Item>, DatasetError> {
    let file = Scratch::new(contents);
    items(&options(workload, Some(file.path().to_path_buf())))
}

/// The samples among all items of such contents.
fn samples_of(workload: Workload, contents: impl AsRef<[u8]>) -> Vec<Sample> {
    let items = items_of(workload, contents).unwrap();
    items
        .into_iter()
        .filter_map(|item| if let Item::Sample(sample) = item { Some(sample) } else { None })
        .collect()
}

/// Tokens of a prompt whose dataset tells its length.
fn prompt_tokens(prompt: &Prompt) -> u64 {
    match prompt {
        Prompt::Length(n) | Prompt::Blocks { length: n, .. } | Prompt::SharedPrefix { length: n, .. } => {
            u64::from(*n)
        }
        Prompt::Tokens(ids) => ids.len() as u64,
        Prompt::Text(_) => 0,
    }
}

fn text(sample: &Sample) -> &str {
    let Prompt::Text(text) = &sample.prompt else { panic!("no text: {:?}", sample.prompt) };
    text
}

fn output_tokens(sample: &Sample) -> u64 {
    let OutputLength::Tokens(n) = sample.output else { panic!("no length: {:?}", sample.output) };
    u64::from(n)
}

/// A file of the shared data; `None`, with a word on it, where there is none.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../shared/data").join(name);
    if path.exists() {
        return Some(path);
    }
    eprintln!("skipped: no shared/data/{name}");
    None
}
