//! `pagedraft quantize`.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::time::Instant;

use anyhow::{Context, anyhow};
use clap::Args;
use pagedraft::exit::{usage, usage_hint};
use pagedraft::quantize::{files_of, quantize};
use pagedraft::session::ModelRef;

use super::{Ended, interrupt, stdout};

#[derive(Debug, Args)]
pub struct Quantize {
    /// The model: a Hugging Face directory, or builtin:NAME
    #[arg(long, value_name = "DIR|builtin:NAME")]
    model: ModelRef,
    /// The directory that is written; it must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    out: PathBuf,
}

impl Quantize {
    pub fn run(self) -> anyhow::Result<Ended> {
        interrupt::listen()?;
        let model = self.model;
        let out = &self.out;
        let cant = || format!("can't write the directory {}", out.display());
        if out.exists() && !is_empty(out) {
            let error = anyhow!("there is something at {} already", out.display());
            return Err(usage_hint(error, "name a directory that does not exist, or an empty one"));
        }
        let Some(name) = out.file_name() else {
            return Err(usage(anyhow!("{} names no directory", out.display())));
        };
        let mut hidden = OsString::from(".");
        hidden.push(name);
        hidden.push(format!(".{}.tmp", std::process::id()));
        let temporary = out.with_file_name(hidden);
        let files = files_of(&model).map_err(|e| usage(e.into()))?;
        std::fs::create_dir(&temporary).with_context(cant).map_err(usage)?;
        for file in &files {
            interrupt::remove_with_the_process(temporary.join(file));
        }
        interrupt::remove_with_the_process(temporary.clone());
        let start = Instant::now();
        let written = interrupt::preparing(|| {
            let written = quantize(&model, &temporary)?;
            if out.exists() {
                std::fs::remove_dir(out).with_context(cant)?;
            }
            std::fs::rename(&temporary, out).with_context(cant)?;
            anyhow::Ok(written)
        });
        let written = written.inspect_err(|_| {
            let _ = std::fs::remove_dir_all(&temporary);
        })?;
        let gigabytes = |bytes: u64| bytes as f64 / 1e9;
        stdout::print(&format!(
            "wrote {}: {} matrices in 8 bits, {:.3} GB of weights where {:.3} were, in {:.1} s\n",
            out.display(),
            written.matrices,
            gigabytes(written.bytes.1),
            gigabytes(written.bytes.0),
            start.elapsed().as_secs_f64()
        ))?;
        Ok(Ended::Done)
    }
}

fn is_empty(dir: &Path) -> bool {
    std::fs::read_dir(dir).is_ok_and(|mut entries| entries.next().is_none())
}
