//! `qa_1` and `qa_2`: a question over some documents among many others.

use super::draws::{Draws, Part};
use super::facts::{Question, World};
use super::fit::Composition;
use super::squad::Squad;
use rand::seq::SliceRandom;
use std::sync::Arc;

/// Where the documents come from.
enum Source {
    Made(World),
    /// A SQuAD file: the question's document and all others, those of the same article first.
    Squad {
        squad: Arc<Squad>,
        document: usize,
        others: Vec<usize>,
    },
}

/// A sample. Its units are the documents that the question does not need.
pub(super) struct Questions {
    draws: Draws,
    source: Source,
    question: Question,
}

impl Questions {
    /// A sample of made-up facts.
    pub(super) fn made(draws: Draws, two_hops: bool) -> Self {
        let world = World::new(draws, two_hops);
        Self { draws, question: world.question(), source: Source::Made(world) }
    }

    /// A sample of a file; `None` if the file has no such question.
    pub(super) fn of_squad(draws: Draws, squad: &Arc<Squad>) -> Option<Self> {
        let question = squad.questions.get(usize::try_from(draws.index).ok()?)?;
        let article = squad.articles.get(question.article)?;
        let mut rng = draws.of(Part::Haystack);
        let mut others: Vec<usize> = article.iter().copied().filter(|&d| d != question.document).collect();
        others.shuffle(&mut rng);
        let mut strangers: Vec<usize> = (0..squad.documents.len())
            .filter(|d| article.binary_search(d).is_err() && *d != question.document)
            .collect();
        strangers.shuffle(&mut rng);
        others.append(&mut strangers);
        Some(Self {
            draws,
            question: Question { text: question.text.clone(), answers: question.answers.clone() },
            source: Source::Squad { squad: squad.clone(), document: question.document, others },
        })
    }

    fn documents(&self, units: u64) -> Vec<String> {
        match &self.source {
            Source::Made(world) => world.documents(world.needed().saturating_add(units)),
            Source::Squad { squad, document, others } => std::iter::once(document)
                .chain(others.iter().cycle().take(usize::try_from(units).unwrap_or(usize::MAX)))
                .map(|&document| squad.documents[document].clone())
                .collect(),
        }
    }
}

impl Composition for Questions {
    fn least(&self) -> u64 {
        0
    }

    fn most(&self) -> u64 {
        match &self.source {
            Source::Made(world) => World::MOST - world.needed(),
            Source::Squad { others, .. } if others.is_empty() => 0,
            Source::Squad { .. } => u64::MAX,
        }
    }

    fn prompt(&self, units: u64) -> String {
        const ASK: &str = "Answer the question based on the given documents. \
             Only give me the answer and do not output any other words.";
        let mut documents = self.documents(units);
        documents.shuffle(&mut self.draws.of(Part::Places));
        let context: Vec<String> =
            documents.iter().enumerate().map(|(i, d)| format!("Document {}:\n{d}", i + 1)).collect();
        format!(
            "{ASK}\n\nThe following are given documents.\n\n{}\n\n{ASK}\n\nQuestion: {} Answer:",
            context.join("\n\n"),
            self.question.text
        )
    }

    fn answers(&self) -> Vec<String> {
        self.question.answers.clone()
    }
}
