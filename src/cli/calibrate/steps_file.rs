//! Measured steps in a file, a JSON object a line.

use std::fmt::Write;
use std::path::Path;

use anyhow::{Context, anyhow};
use pagedraft::exit::usage;
use pagedraft_workloads::sim::MeasuredStep;

/// The text of a file of steps.
pub fn write(steps: &[MeasuredStep]) -> anyhow::Result<String> {
    let mut text = String::new();
    for step in steps {
        let _ = writeln!(text, "{}", serde_json::to_string(step).context("a step can't be written")?);
    }
    Ok(text)
}

/// Reads a file of steps.
///
/// # Errors
///
/// It can't be read, or has a line that is no step.
pub fn read(path: &Path) -> anyhow::Result<Vec<MeasuredStep>> {
    let text = std::fs::read_to_string(path)
        .map_err(|e| usage(anyhow!(e).context(format!("can't read the steps in {}", path.display()))))?;
    let step = |(line, number): (&str, usize)| {
        serde_json::from_str(line).map_err(|e| {
            usage(anyhow!("{}:{number}: no step as --steps-out writes them: {e}", path.display()))
        })
    };
    text.lines().zip(1..).map(step).collect()
}

#[cfg(test)]
mod tests {
    use pagedraft_workloads::sim::{StepCost, StepShape};

    use super::*;

    #[test]
    fn steps_are_written_and_read_and_a_line_that_is_none_is_named() {
        let steps = vec![
            MeasuredStep {
                shape: StepShape { plan_rows: 3, draft_passes: vec![2, 1], ..StepShape::default() },
                took: StepCost { execute: 12.5, ..StepCost::default() },
                woke_us: 7.0,
                proposer: Some("ngram".into()),
                run: 9,
            },
            MeasuredStep::default(),
        ];
        let path = std::env::temp_dir().join(format!("pagedraft-steps-{}", std::process::id()));
        std::fs::write(&path, write(&steps).unwrap()).unwrap();
        assert_eq!(read(&path).unwrap(), steps);
        std::fs::write(&path, write(&steps).unwrap() + "{\"plan_rows\": -1}\n").unwrap();
        let error = format!("{:#}", read(&path).unwrap_err());
        assert!(error.contains(&format!("{}:3: ", path.display())), "{error}");
        std::fs::remove_file(&path).unwrap();
        assert!(read(&path).is_err());
    }
}
