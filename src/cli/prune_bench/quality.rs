//! How good what a request generates is.

use std::collections::BTreeMap;

/// What texts and tasks say of a model.
#[derive(Clone, Debug, Default)]
pub struct Quality {
    /// Sum and number of the negative logarithms of the probabilities of tokens that really follow.
    nats: (f64, u64),
    /// Sum and number of the scores of each task, 0 to 1.
    tasks: BTreeMap<String, (f64, u64)>,
    /// The same as `nats`, of the answers that the authors of each task give.
    answers: BTreeMap<String, (f64, u64)>,
}

fn add_nats(to: &mut (f64, u64), logprobs: impl IntoIterator<Item = f32>) {
    for logprob in logprobs {
        (to.0, to.1) = (to.0 - f64::from(logprob), to.1 + 1);
    }
}

fn perplexity((nats, count): (f64, u64)) -> Option<f64> {
    (count > 0).then(|| (nats / count as f64).exp())
}

impl Quality {
    /// Adds the log probabilities of the tokens that follow a text.
    pub fn add_text(&mut self, logprobs: impl IntoIterator<Item = f32>) {
        add_nats(&mut self.nats, logprobs);
    }

    /// Adds the log probabilities of the tokens of the right answer to a task.
    pub fn add_right_answer(&mut self, task: &str, logprobs: impl IntoIterator<Item = f32>) {
        add_nats(self.answers.entry(task.to_owned()).or_default(), logprobs);
    }

    /// Adds an answer to a task.
    pub fn add_answer(&mut self, task: &str, score: f64) {
        let entry = self.tasks.entry(task.to_owned()).or_default();
        (entry.0, entry.1) = (entry.0 + score, entry.1 + 1);
    }

    /// The perplexity of the texts; `None` without any.
    pub fn perplexity(&self) -> Option<f64> {
        perplexity(self.nats)
    }

    /// The perplexity of the right answers to each task that gives them.
    pub fn answers(&self) -> impl Iterator<Item = (&str, Option<f64>)> {
        self.answers.iter().map(|(task, &answers)| (task.as_str(), perplexity(answers)))
    }

    /// That of one task.
    pub fn answer(&self, name: &str) -> Option<f64> {
        self.answers.get(name).copied().and_then(perplexity)
    }

    /// The mean score of each task.
    pub fn tasks(&self) -> impl Iterator<Item = (&str, f64)> {
        self.tasks.iter().map(|(task, &(sum, count))| (task.as_str(), sum / count.max(1) as f64))
    }

    /// Whether the model solves a task: it scores at least 0.9, or gives each token of a right answer a probability of 0.9 (the geometric mean).
    pub fn solves(&self, name: &str) -> bool {
        self.task(name).is_some_and(|score| score >= 0.9)
            || self.answer(name).is_some_and(|one| one * 0.9 <= 1.0)
    }

    /// The mean score of one task.
    pub fn task(&self, name: &str) -> Option<f64> {
        self.tasks().find(|(task, _)| *task == name).map(|(_, score)| score)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn means_are_over_tokens_and_over_answers() {
        let mut quality = Quality::default();
        assert_eq!((quality.perplexity(), quality.task("vt")), (None, None));
        quality.add_text([-1.0, -3.0]);
        quality.add_text([-2.0]);
        quality.add_answer("vt", 1.0);
        quality.add_answer("vt", 0.5);
        assert!((quality.perplexity().unwrap() - 2f64.exp()).abs() < 1e-12);
        assert_eq!(quality.task("vt"), Some(0.75));
        quality.add_right_answer("qasper", [-1.0, -1.0]);
        quality.add_right_answer("lcc", [-0.1]);
        assert!(quality.solves("lcc") && !quality.solves("qasper") && !quality.solves("vt"));
        assert_eq!((quality.answer("qasper"), quality.answer("vt")), (Some(1f64.exp()), None));
    }
}
