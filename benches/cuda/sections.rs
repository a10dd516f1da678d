//! Selects the sections to run, and runs each in a process of its own.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};

use crate::table::{HEADING, Table};

/// The names that contain one of `words`, which are separated by commas; all names if there is no word.
pub fn picked<const N: usize>(words: &str, names: [&'static str; N]) -> Result<Vec<&'static str>, String> {
    let words: Vec<&str> = words.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    if let Some(word) = words.iter().find(|word| !names.iter().any(|name| name.contains(*word))) {
        return Err(format!("no section has {word:?} in its name: they are {}", names.join(", ")));
    }
    let wanted = |name: &&str| words.is_empty() || words.iter().any(|word| name.contains(word));
    Ok(names.into_iter().filter(wanted).collect())
}

/// Runs a section in a process of its own, and adds the lines of its table to `table`.
pub fn run_apart(name: &str, table: &mut Table) {
    let program = std::env::current_exe().expect("this program's path");
    let small = crate::shapes::small().then_some("--small");
    let mut child = Command::new(program)
        .args(["--only", name])
        .args(small)
        .stdout(Stdio::piped())
        .spawn()
        .expect("a process");
    let (mut in_table, mut lines) = (false, 0);
    for line in BufReader::new(child.stdout.take().expect("its output")).lines() {
        let line = line.expect("a line");
        if in_table {
            table.take(&line);
            lines += 1;
        } else if line == HEADING {
            in_table = true;
        } else {
            println!("{line}");
        }
    }
    let ended = child.wait().expect("its end");
    // A section that fails after writing its table has reported the failure there.
    if lines == 0 || ended.code().is_none_or(|code| code > 1) {
        println!("{name}: {ended}");
        table.failed(name);
    }
}
