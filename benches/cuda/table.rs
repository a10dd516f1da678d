//! What a run of the bench found.

/// The line before a table; what follows it are the table's lines alone.
pub const HEADING: &str = "== table";

const FAILED: &str = "FAILED";

/// What was found, a line each.
#[derive(Default)]
pub struct Table {
    lines: Vec<(String, String, String)>,
    failed: bool,
}

impl Table {
    /// A figure, and what it is to be compared with.
    pub fn figure(&mut self, name: &str, value: String, goal: &str) {
        println!("{name}: {value}  {goal}");
        self.lines.push((name.to_owned(), value, goal.to_owned()));
    }

    /// A share, and the least it should be.
    pub fn at_least(&mut self, name: &str, value: f64, goal: f64) {
        let verdict = if value >= goal { "met" } else { "missed" };
        self.figure(name, format!("{value:.3}"), &format!("goal {goal}: {verdict}"));
    }

    /// A ratio, and the most it should be.
    pub fn at_most(&mut self, name: &str, value: f64, goal: f64) {
        let verdict = if value <= goal { "met" } else { "missed" };
        self.figure(name, format!("{value:.3}"), &format!("goal {goal}: {verdict}"));
    }

    /// A check that passed or didn't.
    pub fn check(&mut self, name: &str, passed: bool) {
        self.failed |= !passed;
        self.figure(name, if passed { "passed" } else { FAILED }.to_owned(), "");
    }

    /// A section that did not come to its end.
    pub fn failed(&mut self, name: &str) {
        self.check(name, false);
    }

    /// Whether a check failed, or a section.
    pub fn any_failed(&self) -> bool {
        self.failed
    }

    /// Its lines: name, value and goal, with a tab before the latter two.
    pub fn text(&self) -> String {
        self.lines.iter().map(|(name, value, goal)| format!("{name:<72}\t{value:>12}\t{goal}\n")).collect()
    }

    /// Takes a line of another's [`text`](Self::text) up.
    pub fn take(&mut self, line: &str) {
        let mut fields = line.splitn(3, '\t').map(|field| field.trim().to_owned());
        let mut next = || fields.next().unwrap_or_default();
        let line = (next(), next(), next());
        self.failed |= line.1 == FAILED;
        self.lines.push(line);
    }
}
