//! `pagedraft quantize`.

use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, anyhow};
use clap::Args;
use pagedraft::exit::usage_hint;
use pagedraft::quantize::{files_of, quantize};
use pagedraft::session::ModelRef;

use super::{Ended, interrupt, stdout};

#[derive(Debug, Args)]
pub struct Quantize {
    /// The model: a Hugging Face directory, or builtin:NAME. A GGUF file is not written anew
    #[arg(long, value_name = "DIR|builtin:NAME")]
    model: ModelRef,
    /// The directory that is written; it must not exist, or be empty. Tokenizer, chat template and other small files are copied
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Quantize {
    pub fn run(self) -> anyhow::Result<Ended> {
        interrupt::listen()?;
        let (model, out) = (self.model, &self.out);
        let cant = || format!("can't write the directory {}", out.display());
        let made = !out.exists();
        if !made && !is_empty(out) {
            let error = anyhow!("there is something at {} already", out.display());
            return Err(usage_hint(error, "name a directory that does not exist, or an empty one"));
        }
        files_of(&model)?;
        let writable = |made: std::io::Result<()>| {
            let hint = "name a directory that can be made: the one above it has to exist and to be writable";
            made.with_context(cant).map_err(|error| usage_hint(error, hint))
        };
        if made {
            writable(std::fs::create_dir(out))?;
        }
        // Files are written into a directory beside them and then moved, so that none is ever seen half-written.
        let temporary = out.join(format!(".{}.tmp", std::process::id()));
        writable(std::fs::create_dir(&temporary))?;
        interrupt::remove_tree_with_the_process(if made { out.clone() } else { temporary.clone() });
        let start = Instant::now();
        let written = interrupt::preparing(|| {
            let written = quantize(&model, &temporary)?;
            // The configuration comes last: without it the directory is no model.
            for file in &written.files {
                std::fs::rename(temporary.join(file), out.join(file)).with_context(cant)?;
            }
            std::fs::remove_dir(&temporary).with_context(cant)?;
            anyhow::Ok(written)
        });
        let written = written.inspect_err(|_| {
            let _ = std::fs::remove_dir_all(if made { out } else { &temporary });
        })?;
        let megabytes = |bytes: u64| bytes as f64 / 1e6;
        stdout::print(&format!(
            "wrote {}: {} matrices in 8 bits, {:.1} MB of weights where {:.1} were, in {:.1} s\n",
            out.display(),
            written.matrices,
            megabytes(written.bytes.1),
            megabytes(written.bytes.0),
            start.elapsed().as_secs_f64()
        ))?;
        Ok(Ended::Done)
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}
