//! Reads SQuAD's file: paragraphs, and questions about them.

use super::essay::read_whole;
use crate::dataset::DatasetError;
use crate::json_fault;
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::Path;

#[derive(Deserialize)]
struct File {
    data: Vec<Article>,
}

#[derive(Deserialize)]
struct Article {
    paragraphs: Vec<Paragraph>,
}

#[derive(Deserialize)]
struct Paragraph {
    context: String,
    qas: Vec<Asked>,
}

#[derive(Deserialize)]
struct Asked {
    question: String,
    answers: Vec<Answer>,
    /// Whether the question has no answer. In version 1 the field is missing.
    #[serde(default)]
    is_impossible: bool,
}

#[derive(Deserialize)]
struct Answer {
    text: String,
}

/// A question that one paragraph answers.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SquadQuestion {
    pub(super) text: String,
    pub(super) answers: Vec<String>,
    /// The paragraph, as an index into [`Squad::documents`].
    pub(super) document: usize,
    /// The paragraph's article, as an index into [`Squad::articles`].
    pub(super) article: usize,
}

/// The contents of a file: paragraphs sorted and without repetitions, questions in the file's order.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Squad {
    pub(super) documents: Vec<String>,
    /// For each article, the indices of its documents.
    pub(super) articles: Vec<Vec<usize>>,
    pub(super) questions: Vec<SquadQuestion>,
}

impl Squad {
    /// Reads a file.
    pub(super) fn read(path: &Path) -> Result<Self, DatasetError> {
        let file: File = json_fault::parse(&read_whole(path)?).map_err(|e| DatasetError::Line {
            path: path.to_owned(),
            line: e.line,
            what: format!(
                "not a SQuAD file (`data[].paragraphs[].context, qas[].question, answers[].text`): {e}"
            ),
        })?;
        let squad = Self::of(&file);
        if squad.questions.is_empty() {
            let what = "no question that can be answered; a SQuAD file has them in `data[].paragraphs[].qas`";
            return Err(DatasetError::File { path: path.to_owned(), what: what.to_owned() });
        }
        Ok(squad)
    }

    fn of(file: &File) -> Self {
        let mut places: BTreeMap<&str, usize> =
            file.data.iter().flat_map(|a| &a.paragraphs).map(|p| (p.context.as_str(), 0)).collect();
        for (i, place) in places.values_mut().enumerate() {
            *place = i;
        }
        let mut questions = Vec::new();
        let mut articles = Vec::new();
        for (number, article) in file.data.iter().enumerate() {
            let mut documents = Vec::new();
            for paragraph in &article.paragraphs {
                // The map has every paragraph, so the default is never used.
                let document = places.get(paragraph.context.as_str()).copied().unwrap_or_default();
                documents.push(document);
                for asked in paragraph.qas.iter().filter(|a| !a.is_impossible && !a.answers.is_empty()) {
                    questions.push(SquadQuestion {
                        text: asked.question.clone(),
                        answers: asked.answers.iter().map(|a| a.text.clone()).collect(),
                        document,
                        article: number,
                    });
                }
            }
            documents.sort_unstable();
            documents.dedup();
            articles.push(documents);
        }
        Self { documents: places.into_keys().map(str::to_owned).collect(), articles, questions }
    }
}
