//! The table of what a run of the bench found.

/// The line before a table. Only the table's lines follow it.
pub const HEADING: &str = "== table";

const FAILED: &str = "FAILED";

/// What was found, one line each.
#[derive(Default)]
pub struct Table {
    lines: Vec<(String, String, String)>,
    failed: bool,
}

impl Table {
    /// Adds a figure, and what it is to be compared with.
    pub fn figure(&mut self, name: &str, value: String, goal: &str) {
        println!("{name}: {value}  {goal}");
        self.lines.push((name.to_owned(), value, goal.to_owned()));
    }

    /// Adds a share, and the least value that it should have.
    pub fn at_least(&mut self, name: &str, value: f64, goal: f64) {
        let verdict = if value >= goal { "met" } else { "missed" };
        self.figure(name, format!("{value:.3}"), &format!("goal {goal}: {verdict}"));
    }

    /// Adds a ratio, and the greatest value that it should have.
    pub fn at_most(&mut self, name: &str, value: f64, goal: f64) {
        let verdict = if value <= goal { "met" } else { "missed" };
        self.figure(name, format!("{value:.3}"), &format!("goal {goal}: {verdict}"));
    }

    /// Adds a check that passed or failed.
    pub fn check(&mut self, name: &str, passed: bool) {
        self.failed |= !passed;
        self.figure(name, if passed { "passed" } else { FAILED }.to_owned(), "");
    }

    /// Adds a section that did not reach its end.
    pub fn failed(&mut self, name: &str) {
        self.check(name, false);
    }

    /// Whether a check or a section failed.
    pub fn any_failed(&self) -> bool {
        self.failed
    }

    /// The lines of the table: name, value and goal, with tabs between them.
    pub fn text(&self) -> String {
        self.lines.iter().map(|(name, value, goal)| format!("{name:<72}\t{value:>12}\t{goal}\n")).collect()
    }

    /// Adds a line of another table's [`text`](Self::text).
    pub fn take(&mut self, line: &str) {
        let mut fields = line.splitn(3, '\t').map(|field| field.trim().to_owned());
        let mut next = || fields.next().unwrap_or_default();
        let line = (next(), next(), next());
        self.failed |= line.1 == FAILED;
        self.lines.push(line);
    }
}
