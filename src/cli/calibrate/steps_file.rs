//! Reads and writes measured steps as a file of JSON lines. The first line says which engine they are from.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, anyhow};
use pagedraft::exit::usage;
use pagedraft_workloads::json_fault;
use pagedraft_workloads::sim::{MeasuredStep, StepCost};
use serde::{Deserialize, Serialize};

/// The most microseconds of a step, and of the time in which an engine wakes.
const MOST_US: f64 = 1e12;

/// Describes the engine that steps are from, as far as their times depend on it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Measured {
    pub engine: String,
    pub block_size: u32,
}

/// The text of a file of steps.
pub fn write(of: &Measured, steps: &[MeasuredStep]) -> anyhow::Result<String> {
    let mut text = serde_json::to_string(of).context("the name of an engine can't be written")? + "\n";
    for step in steps {
        let _ = writeln!(text, "{}", serde_json::to_string(step).context("a step can't be written")?);
    }
    Ok(text)
}

/// Reads a file of steps.
///
/// # Errors
///
/// The file can't be read, is from another engine, has no steps, or has a line that is not one.
pub fn read(path: &Path, of: &Measured) -> anyhow::Result<Vec<MeasuredStep>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| usage(anyhow!(e).context(format!("can't read the steps in {}", path.display()))))?;
    let Some((first, lines)) = text.split_once('\n') else {
        return Err(usage(anyhow!("{}: no steps, as --steps-out writes them", path.display())));
    };
    let found: Measured = json_fault::parse(first.as_bytes()).map_err(|e| {
        usage(anyhow!("{}:1: not the name of an engine, as --steps-out writes it: {e}", path.display()))
    })?;
    if found != *of {
        let name = |of: &Measured| format!("{} with blocks of {}", of.engine, of.block_size);
        return Err(usage(anyhow!(
            "{}: steps of {}, and this engine is {}",
            path.display(),
            name(&found),
            name(of)
        )));
    }
    let step = |(line, number): (&str, usize)| {
        let wrong = |what: String| {
            usage(anyhow!("{}:{number}: no step as --steps-out writes them: {what}", path.display()))
        };
        let step: MeasuredStep = json_fault::parse(line.as_bytes()).map_err(|e| wrong(e.to_string()))?;
        let StepCost { schedule, metadata, propose, execute, sample, other } = step.took;
        let times = [schedule, metadata, propose, execute, sample, other, step.woke_us.unwrap_or(0.0)];
        let shape = &step.shape;
        if let Some(us) = times.iter().find(|us| !(0.0..=MOST_US).contains(*us)) {
            return Err(wrong(format!("it took {us} us")));
        }
        if shape.plan_rows == 0 || shape.token_rows == 0 || shape.metadata_rows == 0 {
            return Err(wrong("it has no rows".to_owned()));
        }
        Ok(step)
    };
    lines.lines().zip(2..).map(step).collect()
}

#[cfg(test)]
mod tests {
    use pagedraft_workloads::sim::StepShape;

    use super::*;

    #[test]
    fn steps_are_written_and_read_and_a_line_that_is_none_is_named() {
        let rows = |rows| StepShape {
            plan_rows: rows,
            token_rows: rows,
            metadata_rows: rows,
            ..StepShape::default()
        };
        let steps = vec![
            MeasuredStep {
                shape: StepShape { draft_passes: vec![2, 1], ..rows(3) },
                took: StepCost { execute: 12.5, ..StepCost::default() },
                woke_us: Some(7.0),
                proposer: Some("ngram".into()),
                run: 9,
            },
            MeasuredStep { shape: rows(1), ..MeasuredStep::default() },
        ];
        let of = Measured { engine: "a model".into(), block_size: 16 };
        let path = std::env::temp_dir().join(format!("pagedraft-steps-{}", std::process::id()));
        let text = write(&of, &steps).unwrap();
        std::fs::write(&path, &text).unwrap();
        assert_eq!(read(&path, &of).unwrap(), steps);
        let other = read(&path, &Measured { block_size: 32, ..of.clone() }).unwrap_err().to_string();
        assert!(other.contains("blocks of 16") && other.contains("blocks of 32"), "{other}");
        let no_rows = serde_json::to_string(&MeasuredStep::default()).unwrap();
        let long = text.lines().nth(1).unwrap().replace("12.5", "1e300");
        let back = text.lines().nth(1).unwrap().replace("12.5", "-5.0");
        for line in ["{\"plan_rows\": -1}", &no_rows, &long, &back] {
            std::fs::write(&path, format!("{text}{line}\n")).unwrap();
            let error = format!("{:#}", read(&path, &of).unwrap_err());
            assert!(error.contains(&format!("{}:4: ", path.display())), "{error}");
        }
        for text in ["", "{}\n"] {
            std::fs::write(&path, text).unwrap();
            assert!(read(&path, &of).is_err(), "{text:?}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(read(&path, &of).is_err());
    }
}
