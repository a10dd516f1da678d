//! Decides how a trace names the requests, and when it says that they ended.

use std::collections::HashMap;

use pagedraft_block_manager::Salt;
use pagedraft_scheduler::{Applied, FinishReason, Kind, RequestKey, StepPlan};

use super::{KeptCounts, StepNames};

/// The names of the requests of a run, and those that ended with the present step.
///
/// A plan lists the requests that ended one step late, because executors keep data for them until then. A
/// trace lists them in the line of the step that ended them, which is also the time of its `pool`. Names
/// are kept until they have been written.
#[derive(Debug, Default)]
pub struct RequestNames {
    names: HashMap<RequestKey, Named>,
    /// The requests that ended with the step, and the reasons.
    ended: Vec<(RequestKey, FinishReason)>,
    /// The requests that were aborted since the line before, then those that ended with the step.
    finished: Vec<RequestKey>,
}

#[derive(Debug)]
struct Named {
    name: String,
    /// The salt of its block hashes, if it is not the engine's.
    kv_salt: Option<Salt>,
    /// How it drops tokens of its prompt, if it does.
    kept: Option<KeptCounts>,
    /// Whether a line has had a row of it.
    ran: bool,
}

impl RequestNames {
    /// Names a request. It must be called before its first step.
    pub fn insert(&mut self, request: RequestKey, name: impl Into<String>) {
        self.names.insert(request, Named { name: name.into(), kv_salt: None, kept: None, ran: false });
    }

    /// Says that a request, which has been named, drops tokens of its prompt.
    pub fn set_kept(&mut self, request: RequestKey, kept: KeptCounts) {
        if let Some(named) = self.names.get_mut(&request) {
            named.kept = Some(kept);
        }
    }

    /// Says that the block hashes of a request, which has been named, have a salt of their own.
    pub fn set_kv_salt(&mut self, request: RequestKey, salt: Salt) {
        if let Some(named) = self.names.get_mut(&request) {
            named.kv_salt = Some(salt);
        }
    }

    /// Takes note of a step that was applied, so that [`finished`](Self::finished) and the names are those
    /// of its line. A row without an entry in `applied` belongs to a request that was aborted while the
    /// step ran.
    pub fn note(&mut self, plan: &StepPlan, applied: &[Applied]) {
        for told in self.finished.drain(..) {
            self.names.remove(&told);
        }
        self.ended.clear();
        for &request in &plan.finished {
            match self.names.get(&request) {
                Some(named) if named.ran => self.finished.push(request),
                // The trace never mentioned this request.
                Some(_) => drop(self.names.remove(&request)),
                None => {}
            }
        }
        let mut applied = applied.iter().peekable();
        for row in &plan.rows {
            // A request's first row is a prefill.
            if row.kind == Kind::Prefill
                && let Some(named) = self.names.get_mut(&row.request)
            {
                named.ran = true;
            }
            let end = match applied.next_if(|one| one.request == row.request) {
                Some(one) => one.finish,
                None => Some(FinishReason::Abort),
            };
            if let Some(reason) = end {
                self.ended.push((row.request, reason));
                self.finished.push(row.request);
            }
        }
    }

    /// The requests that ended since the line before: by the outcome of the step that was noted last, or by
    /// an abort before it. Each is listed once, and only if it had a row in some line.
    #[must_use]
    pub fn finished(&self) -> &[RequestKey] {
        &self.finished
    }
}

impl StepNames for RequestNames {
    fn request_id(&self, request: RequestKey) -> &str {
        self.names.get(&request).map_or("", |named| named.name.as_str())
    }

    fn finish_reason(&self, request: RequestKey) -> Option<FinishReason> {
        self.ended.iter().find(|(ended, _)| *ended == request).map(|(_, reason)| *reason)
    }

    fn kv_salt(&self, request: RequestKey) -> Option<Salt> {
        self.names.get(&request)?.kv_salt
    }

    fn kept(&self, request: RequestKey) -> Option<&KeptCounts> {
        self.names.get(&request)?.kept.as_ref()
    }
}

#[cfg(test)]
mod tests {
    use pagedraft_scheduler::fake::{FakeExecutor, Script};
    use pagedraft_scheduler::{Executor, RequestSpec, Scheduler, SchedulerConfig, StepOutcome};

    use super::*;

    struct Run {
        scheduler: Scheduler,
        plan: StepPlan,
        names: RequestNames,
    }

    impl Run {
        fn new() -> Self {
            let config = SchedulerConfig { max_num_seqs: 2, ..SchedulerConfig::default() };
            let scheduler = Scheduler::new(config).unwrap();
            Self { scheduler, plan: StepPlan::default(), names: RequestNames::default() }
        }

        fn submit(&mut self, name: &str, output: u32) -> RequestKey {
            let key = self.scheduler.submit(RequestSpec::new(vec![1, 2, 3], output)).unwrap();
            self.names.insert(key, name);
            key
        }

        /// The requests that the line of the next step names as finished, with their reasons. `abort`
        /// arrives while the step runs.
        fn line(&mut self, abort: Option<RequestKey>) -> Vec<(String, Option<FinishReason>)> {
            let (mut outcome, mut applied) = (StepOutcome::default(), Vec::new());
            self.scheduler.step(&mut self.plan).unwrap();
            let mut fake = FakeExecutor::new();
            for row in &self.plan.rows {
                fake.insert(row.request, 3, Script::default());
            }
            fake.execute(&self.plan, &self.scheduler, &mut outcome).unwrap();
            if let Some(request) = abort {
                assert!(self.scheduler.abort(request).unwrap());
            }
            self.scheduler.apply(&outcome, &mut applied).unwrap();
            self.names.note(&self.plan, &applied);
            let names = &self.names;
            let told = |&r: &RequestKey| (names.request_id(r).to_owned(), names.finish_reason(r));
            names.finished().iter().map(told).collect()
        }
    }

    #[test]
    fn an_end_is_told_once_in_the_line_of_its_step() {
        let mut run = Run::new();
        run.submit("short", 1);
        run.submit("long", 3);
        assert_eq!(run.line(None), [("short".to_owned(), Some(FinishReason::Length))]);
        assert_eq!(run.line(None), []);
        assert_eq!(run.line(None), [("long".to_owned(), Some(FinishReason::Length))]);
        assert!(!run.scheduler.has_unfinished());
    }

    #[test]
    fn an_abort_between_steps_is_told_in_the_next_line_and_one_during_a_step_in_its_own() {
        let mut run = Run::new();
        let [a, b] = ["a", "b"].map(|name| run.submit(name, 9));
        let waiting = run.submit("never ran", 9);
        assert_eq!(run.line(None), []);
        assert!(run.scheduler.abort(a).unwrap() && run.scheduler.abort(waiting).unwrap());
        run.submit("c", 9);
        assert_eq!(run.line(None), [("a".to_owned(), None)]);
        assert_eq!(run.line(Some(b)), [("b".to_owned(), Some(FinishReason::Abort))]);
        assert_eq!(run.line(None), []);
        assert_eq!(run.names.names.len(), 1, "only c has a name still");
    }
}
