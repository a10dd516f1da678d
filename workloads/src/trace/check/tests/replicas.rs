//! Traces of several engines.

use serde_json::{Value, json};

use super::super::synthetic::trace;
use super::super::{Rule, check_dir};
use super::Directory;

/// A request by its name everywhere in a line.
fn rename(line: &mut Value, replica: u64) {
    let named = |name: &mut Value| *name = json!(format!("{replica}-{}", name.as_str().unwrap()));
    for part in ["rows", "outcome"] {
        line[part].as_array_mut().unwrap().iter_mut().for_each(|row| named(&mut row["request_id"]));
    }
    for part in ["preempted", "finished"] {
        line[part].as_array_mut().unwrap().iter_mut().for_each(named);
    }
}

/// The steps of two engines with blocks and step numbers of their own, in turn.
fn of_two(seed: u64) -> Vec<Value> {
    let engine = |replica: u64| {
        trace(seed + 100 * replica, 8, false).into_iter().map(move |mut line| {
            rename(&mut line, replica);
            line["replica"] = json!(replica);
            line
        })
    };
    let (mut one, mut other) = (engine(0), engine(1));
    let mut lines = Vec::new();
    loop {
        let turn = [one.next(), other.next()];
        if turn.iter().all(Option::is_none) {
            return lines;
        }
        lines.extend(turn.into_iter().flatten());
    }
}

#[test]
fn engines_are_checked_each_for_itself() {
    let directory = Directory::toy("replicas", None);
    directory.configure(&json!({"replicas": 2}));
    for seed in 0..20 {
        let lines = of_two(seed);
        let report = directory.check(&lines);
        assert_eq!(report.violation, None, "seed {seed}");
        assert_eq!((report.engines, report.steps), (2, lines.len() as u64), "seed {seed}");
        assert_eq!(report.requests, report.finished, "seed {seed}");

        let broken = |change: &dyn Fn(&mut Value), at: usize| {
            let mut lines = lines.clone();
            change(&mut lines[at]);
            directory.check(&lines).violation.map(|v| (v.rule, v.line))
        };
        let at = 6 + seed as usize;
        let found = (Rule::Replica, at as u64 + 1);
        let unsaid = |line: &mut Value| drop(line.as_object_mut().unwrap().remove("replica"));
        assert_eq!(broken(&unsaid, at), Some(found), "seed {seed}");
        assert_eq!(broken(&|line| line["replica"] = json!(2), at), Some(found), "seed {seed}");
        let strayed = |line: &mut Value| line["replica"] = json!(1 - line["replica"].as_u64().unwrap());
        assert!(broken(&strayed, at).is_some_and(|(_, line)| line == at as u64 + 1), "seed {seed}");
        // As the steps of one engine they make no sense.
        directory.configure(&json!({}));
        let mut one = lines.clone();
        one.iter_mut().for_each(unsaid);
        assert!(directory.check(&one).violation.is_some(), "seed {seed}");
        directory.configure(&json!({"replicas": 2}));
    }
}

#[test]
fn a_request_is_of_one_engine() {
    let directory = Directory::toy("strayed", None);
    directory.configure(&json!({"replicas": 2}));
    let mut lines = trace(3, 4, false);
    lines.iter_mut().for_each(|line| line["replica"] = json!(0));
    let mut again = lines.clone();
    again.iter_mut().for_each(|line| line["replica"] = json!(1));
    let whole = lines.len() as u64;
    lines.extend(again);
    let violation = directory.check(&lines).violation.unwrap();
    assert_eq!((violation.rule, violation.line), (Rule::Replica, whole + 1), "{violation}");
    assert!(violation.request.is_some() && violation.what.contains("engine 0"), "{violation}");
}

#[test]
fn engines_that_are_no_number_are_told() {
    let directory = Directory::toy("no-replicas", None);
    for count in [json!(0), json!("two"), json!(-1)] {
        directory.configure(&json!({"replicas": count}));
        std::fs::write(directory.0.join("trace_steps.jsonl"), "").unwrap();
        let error = check_dir(&directory.0).unwrap_err().to_string();
        assert!(error.contains("replicas is"), "{error}");
    }
}
