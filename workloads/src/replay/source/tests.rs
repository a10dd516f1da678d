use super::*;
use crate::dataset::tests::{Scratch, options as dataset_options, shared};
use crate::dataset::{DatasetOptions, Workload, open, survey};

/// A token a word.
struct Words;

impl TextTokens for Words {
    fn encode(&self, text: &str) -> Result<Vec<u32>, String> {
        let id = |word: &str| {
            if word == "unspeakable" { Err("no such word".to_owned()) } else { Ok(word.len() as u32) }
        };
        text.split_whitespace().map(id).collect()
    }
}

fn words() -> Option<Arc<dyn TextTokens>> {
    Some(Arc::new(Words))
}

fn options(arrivals: Arrivals) -> SourceOptions {
    SourceOptions {
        arrivals,
        seed: 3,
        length_scale: 1.0,
        max_prompt_tokens: None,
        max_new_tokens: None,
        max_model_len: u32::MAX,
        pool_tokens: u64::MAX,
        step_tokens: None,
        vocabulary: 0..1000,
    }
}

const RECORDED: Arrivals = Arrivals::Recorded { speed: 1.0 };

fn source(
    asked: &DatasetOptions,
    options: SourceOptions,
    tokenizer: Option<Arc<dyn TextTokens>>,
) -> Result<Source, DatasetError> {
    let found = survey(asked, tokenizer.clone())?;
    Source::open(asked, &found, options, tokenizer)
}

fn all(asked: &DatasetOptions, options: SourceOptions) -> Result<Vec<Incoming>, DatasetError> {
    source(asked, options, words())?.collect()
}

/// A trace of these times and lengths.
fn trace(rows: &[(f64, u32, u32)]) -> (Scratch, DatasetOptions) {
    let rows: String =
        rows.iter().map(|(time, input, output)| format!("{time},{input},{output}\n")).collect();
    file_of(Workload::Vidur, &format!("arrived_at,num_prefill_tokens,num_decode_tokens\n{rows}"))
}

fn file_of(workload: Workload, contents: &str) -> (Scratch, DatasetOptions) {
    let file = Scratch::new(contents);
    let asked = dataset_options(workload, Some(file.path().to_path_buf()));
    (file, asked)
}

/// Index, arrival in milliseconds, tokens of the prompt, tokens of the output or why there are none.
type Row = (u64, Option<u64>, Option<u32>, Result<u32, SkipReason>);

fn rows(incoming: &[Incoming]) -> Vec<Row> {
    let millis = |ns: Option<u64>| ns.map(|ns| ns / 1_000_000);
    incoming
        .iter()
        .map(|incoming| match incoming {
            Incoming::Request(r) => (
                r.index,
                millis(r.arrival_ns),
                Some(u32::try_from(r.prompt.len()).unwrap()),
                Ok(r.max_tokens),
            ),
            Incoming::Skipped(s) => (s.index, millis(s.arrival_ns), s.prompt_tokens, Err(s.reason)),
        })
        .collect()
}

#[test]
fn what_does_not_fit_is_skipped_with_its_reason_and_never_cut() {
    use SkipReason::{
        EmptyPrompt, FailedInTrace, LargerThanPool, LargerThanStep, LongerThanModel, PromptTooLong,
    };
    let (_file, asked) = trace(&[
        (0.0, 10, 5),
        (1.0, 0, 5),
        (2.0, 101, 5),
        (3.0, 90, 31),
        (4.0, 90, 22),
        (5.0, 71, 1),
        (6.0, 70, 41),
        (7.0, 9, 0),
    ]);
    let limits = SourceOptions {
        max_prompt_tokens: Some(100),
        max_model_len: 120,
        pool_tokens: 110,
        step_tokens: Some(70),
        ..options(Arrivals::Recorded { speed: 2.0 })
    };
    let expected = [
        (0, Some(0), Some(10), Ok(5)),
        (1, Some(500), Some(0), Err(EmptyPrompt)),
        (2, Some(1000), Some(101), Err(PromptTooLong)),
        (3, Some(1500), Some(90), Err(LongerThanModel)),
        (4, Some(2000), Some(90), Err(LargerThanPool)),
        (5, Some(2500), Some(71), Err(LargerThanStep)),
        (6, Some(3000), Some(70), Ok(41)),
        (7, Some(3500), Some(9), Err(FailedInTrace)),
    ];
    assert_eq!(rows(&all(&asked, limits.clone()).unwrap()), expected);
    // Where arrivals are made, a skipped record takes none of them.
    let drawn = all(&asked, SourceOptions { arrivals: Arrivals::Constant { rate: 10.0 }, ..limits }).unwrap();
    let times: Vec<Option<u64>> = rows(&drawn).iter().map(|row| row.1).collect();
    assert_eq!(times, [Some(0), None, None, None, None, None, Some(100), None]);
}

#[test]
fn outputs_are_cut_to_what_is_asked_and_scaled_with_prompts() {
    let (_file, asked) = trace(&[(0.0, 100, 50), (1.0, 3, 1)]);
    let cut = SourceOptions { max_new_tokens: Some(20), ..options(RECORDED) };
    assert_eq!(rows(&all(&asked, cut.clone()).unwrap())[0], (0, Some(0), Some(100), Ok(20)));
    let scaled = rows(&all(&asked, SourceOptions { length_scale: 0.1, ..cut }).unwrap());
    assert_eq!(scaled, [(0, Some(0), Some(10), Ok(5)), (1, Some(1000), Some(1), Ok(1))]);
}

#[test]
fn lengths_beyond_counting_are_skipped_and_not_made() {
    let (_file, asked) = trace(&[(0.0, 100_000_000, 100_000_000), (0.0, 1, 1)]);
    let scaled = SourceOptions { length_scale: 1e9, max_model_len: 10_000, ..options(RECORDED) };
    let found = rows(&all(&asked, scaled).unwrap());
    assert_eq!(found[0], (0, Some(0), Some(u32::MAX), Err(SkipReason::LongerThanModel)));
    assert_eq!(found[1].2, Some(1_000_000_000));
}

#[test]
fn text_is_made_into_tokens_and_answers_count_theirs() {
    let (_file, asked) = file_of(
        Workload::Sharegpt,
        r#"[{"id": "x", "conversations": [{"from": "human", "value": "one two"}, {"from": "gpt", "value": "three four five"}]},
            {"conversations": [{"from": "human", "value": "one"}, {"from": "gpt", "value": ""}]},
            {"conversations": []}]"#,
    );
    let found = all(&asked, options(Arrivals::AtOnce)).unwrap();
    // "User: one two\nAssistant:"
    let Incoming::Request(first) = &found[0] else { panic!() };
    assert_eq!(
        (first.prompt.as_slice(), first.max_tokens, first.until_stop),
        ([5, 3, 3, 10].as_slice(), 3, false)
    );
    assert_eq!(first.source_id.as_deref(), Some("x"));
    assert_eq!(rows(&found)[1], (1, Some(0), Some(3), Ok(1)));
    assert_eq!(rows(&found)[2], (2, None, None, Err(SkipReason::NoAnswer)));
    let limited = SourceOptions { max_prompt_tokens: Some(3), ..options(Arrivals::AtOnce) };
    assert_eq!(rows(&all(&asked, limited).unwrap())[0], (0, None, Some(4), Err(SkipReason::PromptTooLong)));
}

#[test]
fn outputs_that_end_by_themselves_have_a_greatest_length() {
    let (_file, asked) =
        file_of(Workload::SpecBench, r#"{"question_id": 1, "category": "c", "turns": ["a"]}"#);
    for (most, expected) in [(None, DEFAULT_NEW_TOKENS), (Some(9), 9), (Some(1000), 1000)] {
        let found = all(&asked, SourceOptions { max_new_tokens: most, ..options(Arrivals::AtOnce) }).unwrap();
        let Incoming::Request(request) = &found[0] else { panic!() };
        assert_eq!((request.max_tokens, request.until_stop), (expected, true));
        assert_eq!(request.category.as_deref(), Some("c"));
    }
    let row = r#"{"input": "a", "outputs": ["b"], "task": "vt"}"#;
    let (_file, asked) = file_of(Workload::Ruler, row);
    for (most, expected) in [(None, 30), (Some(9), 9), (Some(1000), 30)] {
        let found = all(&asked, SourceOptions { max_new_tokens: most, ..options(Arrivals::AtOnce) }).unwrap();
        assert_eq!(rows(&found)[0].3, Ok(expected));
        assert!(matches!(&found[0], Incoming::Request(PlannedRequest { expect: Some(_), .. })));
    }
}

#[test]
fn options_that_do_not_go_with_the_dataset_are_refused() {
    let told = |result: Result<Source, DatasetError>, fragment: &str| {
        let error = result.unwrap_err();
        assert!(matches!(error, DatasetError::Options(_)), "{error:?}");
        assert!(error.to_string().contains(fragment), "{error}");
    };
    let (_text, text) =
        file_of(Workload::SpecBench, r#"{"question_id": 1, "category": "c", "turns": ["a"]}"#);
    told(source(&text, options(RECORDED), words()), "--request-rate");
    told(source(&text, options(Arrivals::AtOnce), None), "tokenizer");
    let scaled = SourceOptions { length_scale: 0.5, ..options(Arrivals::AtOnce) };
    told(source(&text, scaled.clone(), words()), "--length-scale");
    let (_ids, ids) =
        file_of(Workload::Sharegpt, r#"{"input_toks": 1, "output_toks": 1, "input_tok_ids": [1]}"#);
    told(source(&ids, scaled, None), "--length-scale");
    assert!(source(&ids, options(Arrivals::AtOnce), None).is_ok());
    let (_trace, trace) = trace(&[(0.0, 1, 1)]);
    told(source(&trace, SourceOptions { length_scale: -1.0, ..options(RECORDED) }, None), "--length-scale");
    told(source(&trace, SourceOptions { vocabulary: 4..4, ..options(RECORDED) }, None), "token ids");
    told(source(&trace, options(Arrivals::Recorded { speed: 0.0 }), None), "--speed");
}

#[test]
fn an_error_comes_once_and_ends_the_workload() {
    let (_file, asked) = file_of(
        Workload::SpecBench,
        "{\"question_id\": 1, \"category\": \"c\", \"turns\": [\"a\"]}\n{\"question_id\": 2, \"category\": \"c\", \"turns\": [\"unspeakable\"]}\n",
    );
    let mut source = source(&asked, options(Arrivals::AtOnce), words()).unwrap();
    assert!(matches!(source.next(), Some(Ok(Incoming::Request(_)))));
    let error = source.next().unwrap().unwrap_err().to_string();
    assert!(
        error.contains(":2: ") && error.contains("request 1") && error.contains("no such word"),
        "{error}"
    );
    assert!(source.next().is_none());
}

#[test]
fn a_recorded_trace_twice_is_the_same_and_any_part_of_it_too() {
    let Some(path) = shared("azure/AzureLLMInferenceTrace_conv.csv") else { return };
    let mut asked = dataset_options(Workload::Azure, Some(path));
    asked.limit = Some(200);
    let small = SourceOptions { length_scale: 0.1, ..options(RECORDED) };
    let found = all(&asked, small.clone()).unwrap();
    assert_eq!(found, all(&asked, small).unwrap());
    assert_eq!(found.len(), 200);
    let Incoming::Request(second) = &found[1] else { panic!() };
    // 396 and 109 tokens, 4.314579 s after the first.
    assert_eq!((second.arrival_ns, second.prompt.len(), second.max_tokens), (Some(4_314_579_000), 40, 11));
}

#[test]
fn generated_ruler_samples_are_those_its_lines_say() {
    let ruler =
        crate::tasks::RulerOptions { task: "qa_1".into(), length: 600, samples: 3, ..Default::default() };
    let generated = DatasetOptions { ruler: Some(ruler), ..dataset_options(Workload::Ruler, None) };
    assert_eq!(survey(&generated, words()).unwrap().items, 3);
    let found = all(&generated, options(Arrivals::AtOnce)).unwrap();
    let lines: String = open(&generated, words())
        .unwrap()
        .zip(0..)
        .map(|(item, index)| match item.unwrap() {
            Item::Sample(sample) => format!("{}\n", crate::tasks::ruler_json_line(index, &sample, 0)),
            Item::Skipped(skipped) => panic!("{skipped:?}"),
        })
        .collect();
    let file = Scratch::named("qa_1.jsonl", lines);
    let read = dataset_options(Workload::Ruler, Some(file.path().to_path_buf()));
    assert_eq!(all(&read, options(Arrivals::AtOnce)).unwrap(), found);
    assert!(
        source(&generated, options(Arrivals::AtOnce), None).unwrap_err().to_string().contains("tokenizer")
    );
}

#[test]
fn the_rate_asked_is_that_of_the_half_that_fits_where_lengths_are_known() {
    let rows_of: Vec<(f64, u32, u32)> =
        (0..400).map(|i| (f64::from(i), if i % 2 == 0 { 10 } else { 500 }, 5)).collect();
    let (_file, asked) = trace(&rows_of);
    for arrivals in [
        Arrivals::Constant { rate: 10.0 },
        Arrivals::Gamma { rate: 10.0, burstiness: 0.5 },
        Arrivals::Ramp { from: 10.0, to: 10.0, exponential: false },
    ] {
        let limits = SourceOptions { max_prompt_tokens: Some(100), ..options(arrivals) };
        let found = rows(&all(&asked, limits).unwrap());
        let sent: Vec<u64> = found.iter().filter(|row| row.3.is_ok()).filter_map(|row| row.1).collect();
        assert_eq!(sent.len(), 200);
        // 200 requests at 10 a second; of constant gaps there is none before the first.
        let last = sent[199] as f64 / 1e3;
        assert!((last - 20.0).abs() < 0.11, "{arrivals:?}: {last}");
    }
}

#[test]
fn text_that_does_not_fit_takes_its_arrival_with_it() {
    let lines: String = (0..100)
        .map(|i| {
            let text = if i % 2 == 0 { "a" } else { "a b c d e f" };
            format!("{{\"question_id\": {i}, \"category\": \"c\", \"turns\": [\"{text}\"]}}\n")
        })
        .collect();
    let (_file, asked) = file_of(Workload::SpecBench, &lines);
    let drawn = options(Arrivals::Gamma { rate: 10.0, burstiness: 1.0 });
    let whole = rows(&all(&asked, drawn.clone()).unwrap());
    let half = rows(&all(&asked, SourceOptions { max_prompt_tokens: Some(3), ..drawn }).unwrap());
    assert_eq!(half.iter().filter(|row| row.3.is_ok()).count(), 50);
    let times = |rows: &[Row]| rows.iter().map(|row| row.1).collect::<Vec<_>>();
    assert_eq!(times(&half), times(&whole));
    assert_eq!(half[99].1, Some(10_000));
}

#[test]
fn a_request_may_fill_the_pool_and_one_token_more() {
    let (_file, asked) = trace(&[(0.0, 90, 11), (1.0, 90, 12)]);
    let found = rows(&all(&asked, SourceOptions { pool_tokens: 100, ..options(RECORDED) }).unwrap());
    assert_eq!((found[0].3, found[1].3), (Ok(11), Err(SkipReason::LargerThanPool)));
}

#[test]
fn a_speed_that_stretches_a_trace_over_a_century_is_refused() {
    let (_file, asked) = trace(&[(0.0, 5, 2), (3600.0, 5, 2)]);
    let at = |speed| source(&asked, options(Arrivals::Recorded { speed }), None).map(|_| ());
    let error = at(1e-12).unwrap_err().to_string();
    assert!(error.starts_with("--speed") && error.contains("100 years"), "{error}");
    assert!(at(1e-5).is_ok());
}
