//! `pagedraft trace`.

mod analyze;
mod tensors;

use std::io::Write;
use std::path::{Path, PathBuf};

use anyhow::anyhow;
use clap::{Args, Subcommand, ValueEnum};
use pagedraft::exit::{usage, usage_hint};
use pagedraft_workloads::run::{LineFormat, LineReader, convert_lines};
use pagedraft_workloads::trace::{
    CheckReport, DSA_STEM, DsaRecords, SCHEMA_VERSION, STEPS_FILE, STEPS_STEM, SchemaOf, TENSORS_STEM,
    TensorLines, check_dir, read_steps, schema, steps_file, write_npy,
};

use super::{Ended, stdout};

#[derive(Debug, Subcommand)]
pub enum Trace {
    /// Re-derive every slot of a trace, and name the first record that breaks a rule
    Check(Check),
    /// Write the lines of a trace in another format
    Export(Export),
    /// Compute figures of the records of a trace
    Analyze {
        #[command(subcommand)]
        what: analyze::Analyze,
    },
    /// Count the tensors that a trace recorded, by event
    Summary(tensors::Summary),
    Diff(tensors::Diff),
    /// Print the JSON Schema of a file of a run
    Schema(Schema),
}

#[derive(Debug, Args)]
pub struct Check {
    /// What --trace-out wrote, or the directory of a run
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

#[derive(Debug, Args)]
pub struct Export {
    /// What --trace-out wrote, or the directory of a run
    #[arg(value_name = "DIR")]
    directory: PathBuf,
    /// Which lines
    #[arg(long, value_enum, default_value = "step")]
    event: Event,
    /// jsonl, jsonl.zst or parquet; of dsa_topk also npy: an array a request, as --return-indexer-topk gives
    #[arg(long, value_name = "FORMAT", value_parser = format)]
    format: Format,
    /// Where to; by default a file beside the steps (npy: a directory with a file a request)
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

/// What lines are made into.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Format {
    Lines(LineFormat),
    Npy,
}

fn format(text: &str) -> Result<Format, String> {
    match text {
        "npy" => Ok(Format::Npy),
        _ => text.parse().map(Format::Lines).map_err(|what: String| format!("{what}, npy")),
    }
}

#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
enum Event {
    /// Everything in `trace_steps`
    Step,
    /// The records of sparse attention
    #[value(name = "dsa_topk")]
    DsaTopk,
    /// What was seen of tensors
    Tensor,
}

impl Event {
    /// What the names of its files begin with.
    fn stem(self) -> &'static str {
        match self {
            Self::Step => STEPS_STEM,
            Self::DsaTopk => DSA_STEM,
            Self::Tensor => TENSORS_STEM,
        }
    }

    /// The lines of a trace.
    fn lines(self, directory: &Path) -> anyhow::Result<LineReader> {
        if self == Self::Step {
            return read_steps(directory).map_err(|e| usage(e.into()));
        }
        if !directory.is_dir() {
            return Err(usage(anyhow!("{} is not a directory", directory.display())));
        }
        if self == Self::Tensor {
            let lines = TensorLines::open(directory).map_err(|e| usage(e.into()))?;
            return lines.map(TensorLines::into_lines).ok_or_else(|| {
                let error = anyhow!("{} has no trace of tensors ({TENSORS_STEM})", directory.display());
                usage_hint(error, "trace with --trace-tensors summary, stats or full")
            });
        }
        let Some(records) = DsaRecords::open(directory).map_err(|e| usage(e.into()))? else {
            let error = anyhow!("{} has no records of sparse attention ({DSA_STEM})", directory.display());
            let hint = "trace a model with sparse attention, and not with --trace-dsa off";
            return Err(usage_hint(error, hint));
        };
        Ok(records.into_lines())
    }
}

#[derive(Debug, Args)]
pub struct Schema {
    /// Which file
    #[arg(long, value_enum, default_value = "steps")]
    of: Files,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Files {
    /// A line of `trace_steps.jsonl`
    Steps,
    /// A line of `requests.jsonl`
    Requests,
    /// `summary.json`
    Summary,
    /// `config.json`
    Config,
    /// A line of `trace_tensors.jsonl`
    Tensors,
}

impl Trace {
    pub fn run(&self) -> anyhow::Result<Ended> {
        match self {
            Self::Check(check) => check.run(),
            Self::Export(export) => export.run(),
            Self::Analyze { what } => what.run(),
            Self::Summary(summary) => summary.run(),
            Self::Diff(diff) => diff.run(),
            Self::Schema(schema) => schema.run(),
        }
    }
}

impl Check {
    fn run(&self) -> anyhow::Result<Ended> {
        let report = check_dir(&self.directory).map_err(|e| usage(e.into()))?;
        if let Some(violation) = &report.violation {
            let file = steps_file(&self.directory).map_or(self.directory.join(STEPS_FILE), |(path, _)| path);
            // If standard error is closed, the exit code still says it.
            let _ = writeln!(
                std::io::stderr(),
                "error: {violation}\n  {}:{}\n  {} steps before it keep every rule{}",
                file.display(),
                violation.line,
                report.steps,
                older(&report),
            );
            return Ok(Ended::Difference);
        }
        stdout::print(&sound(&report))?;
        Ok(Ended::Done)
    }
}

/// What may be behind a broken rule in a trace that an older program wrote.
fn older(report: &CheckReport) -> String {
    match report.schema_version {
        SCHEMA_VERSION.. => String::new(),
        version => format!(
            "\n  the trace is of an older writer: its schema_version is {version}, and this build writes {SCHEMA_VERSION}. Version 1 has no \
             kv_events, so that what reads a cached prefix may break a rule without being wrong; check it with the program that \
             wrote it, or run it again"
        ),
    }
}

fn sound(report: &CheckReport) -> String {
    let mut text = format!(
        "trace ok: {} steps, {} plan rows, {} input tokens, {} slots re-derived\n          {} requests, {} finished, {} tokens emitted, {} preemptions, {} blocks still held\n",
        report.steps,
        report.rows,
        report.input_tokens,
        report.slots,
        report.requests,
        report.finished,
        report.emitted_tokens,
        report.preemptions,
        report.blocks_held,
    );
    if report.engines > 1 {
        text.push_str(&format!("          of {} engines\n", report.engines));
    }
    if report.resumed > 0 {
        text.push_str(&format!("          stopped and resumed {} times\n", report.resumed));
    }
    if report.dsa_records > 0 {
        let records = report.dsa_records;
        text.push_str(&format!("          {records} records of sparse attention proved\n"));
    }
    if report.prune_records > 0 {
        text.push_str(&format!("          {} records of pruned prompts proved\n", report.prune_records));
    }
    if report.other_events > 0 {
        text.push_str(&format!("          {} lines of other events, not checked\n", report.other_events));
    }
    if report.cut_last_line {
        text.push_str("          last line incomplete, ignored (the process was stopped while it wrote)\n");
    }
    text
}

impl Export {
    fn run(&self) -> anyhow::Result<Ended> {
        let stem = self.event.stem();
        let name = match self.format {
            Format::Lines(format) => format.file_name(stem),
            Format::Npy => format!("{stem}.npy"),
        };
        let out = self.out.clone().unwrap_or_else(|| self.directory.join(name));
        let mut lines = self.event.lines(&self.directory)?;
        if out.exists() {
            let error = anyhow!("{} is there already", out.display());
            return Err(usage_hint(error, "name another file (--out FILE)"));
        }
        let Format::Lines(format) = self.format else { return self.arrays(&out) };
        let written = convert_lines(&mut lines, &out, format).map_err(|e| usage(e.into()))?;
        let mut text = format!("{written} lines of {} in {}\n", lines.path().display(), out.display());
        if lines.is_cut() {
            text.push_str(
                "the last line is incomplete and was left out (the process was stopped while it wrote)\n",
            );
        }
        stdout::print(&text)?;
        Ok(Ended::Done)
    }
}

impl Export {
    /// Writes an array for each request.
    fn arrays(&self, out: &Path) -> anyhow::Result<Ended> {
        if self.event != Event::DsaTopk {
            let error = anyhow!("--format npy: these lines are no arrays");
            return Err(usage_hint(error, "add --event dsa_topk, or name another format"));
        }
        let made = write_npy(&self.directory, out).map_err(|e| usage(e.into()))?;
        stdout::print(&format!("arrays of {} requests in {}\n", made.len(), out.display()))?;
        Ok(Ended::Done)
    }
}

impl Schema {
    fn run(&self) -> anyhow::Result<Ended> {
        let of = match self.of {
            Files::Steps => SchemaOf::Steps,
            Files::Requests => SchemaOf::Requests,
            Files::Summary => SchemaOf::Summary,
            Files::Config => SchemaOf::Config,
            Files::Tensors => SchemaOf::Tensors,
        };
        let mut text = serde_json::to_string_pretty(&schema(of))?;
        text.push('\n');
        stdout::print(&text)?;
        Ok(Ended::Done)
    }
}
