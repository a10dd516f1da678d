//! What is odd about published files, one thing a test.

use super::*;
use crate::dataset::{Expectation, RandomOptions};
use proptest::prelude::*;

fn only(workload: Workload, contents: &str) -> Sample {
    let mut samples = samples_of(workload, contents);
    assert_eq!(samples.len(), 1);
    samples.remove(0)
}

#[test]
fn a_byte_order_mark_carriage_returns_blank_lines_and_spaces_change_nothing() {
    let plain = "TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00.009930+00:00,7,3\n";
    let odd = "\u{feff} TIMESTAMP , ContextTokens,GeneratedTokens \r\n\r\n 2024-05-10 00:00:00.009930+00:00,7.0 ,\"3\"\r\n\r\n";
    let mut samples = samples_of(Workload::Azure, odd);
    samples[0].line -= 1;
    assert_eq!(samples, samples_of(Workload::Azure, plain));
    assert_eq!(samples_of(Workload::Azure, plain.trim_end()), samples_of(Workload::Azure, plain));
    let json =
        "\u{feff}{\"input\": \"q\", \"outputs\": [\"a\"]}\r\n\r\n{\"input\": \"r\", \"outputs\": [\"b\"]}";
    assert_eq!(samples_of(Workload::Ruler, json)[1].line, 3);
    let array = "\u{feff} [\r\n{\"conversations\": []}\r\n]\r\n";
    assert_eq!(items_of(Workload::Sharegpt, array).unwrap().len(), 1);
}

#[test]
fn times_keep_their_fractions_however_late_they_are() {
    let trace = "Timestamp,Request tokens,Response tokens\n1700000000.000000100,1,1\n1700000000.0000003,1,1\n1.7000000010e9,1,1\n";
    let times: Vec<f64> =
        samples_of(Workload::Burstgpt, trace).iter().map(|s| s.arrival_s.unwrap()).collect();
    assert_eq!(times, [0.0, 2e-7, 0.999_999_9]);
}

#[test]
fn failed_requests_are_told_or_kept() {
    let file =
        Scratch::new("Timestamp,Request tokens,Response tokens,Log Type\n3,40,0,API log\n4,0,0,\n5,0,6,x\n");
    let mut asked = options(Workload::Burstgpt, Some(file.path().to_path_buf()));
    let skipped = |line, arrival_s, prompt_tokens| {
        let (arrival_s, prompt_tokens) = (Some(arrival_s), Some(prompt_tokens));
        Item::Skipped(Skipped {
            source_id: None,
            line,
            arrival_s,
            prompt_tokens,
            reason: SkipReason::FailedInTrace,
        })
    };
    let all = items(&asked).unwrap();
    assert_eq!(all[..2], [skipped(2, 0.0, 40), skipped(3, 1.0, 0)]);
    asked.keep_failed = true;
    let lengths: Vec<(u64, u64)> = items(&asked)
        .unwrap()
        .iter()
        .map(|item| match item {
            Item::Sample(sample) => (prompt_tokens(&sample.prompt), output_tokens(sample)),
            Item::Skipped(_) => panic!(),
        })
        .collect();
    assert_eq!(lengths, [(40, 1), (1, 1), (0, 6)]);
}

#[test]
fn conversations_become_text_up_to_an_answer() {
    let contents = r#"{"id": 7, "conversations": [{"from": "system", "value": "Be brief."}, {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Hello"}, {"from": "function_call", "value": "f()"}, {"from": "observation", "value": "{1}"},
        {"from": "GPT", "value": "One \"}\" \\"}, {"from": "human", "value": "left"}]}"#;
    let array = format!("[{contents}]");
    let full = only(Workload::Sharegpt, &array);
    let said = "System: Be brief.\nUser: Hi\n";
    let both = format!("{said}Assistant: Hello\nfunction_call: f()\nobservation: {{1}}\nAssistant:");
    assert_eq!((text(&full), full.source_id.as_deref(), full.line), (both.as_str(), Some("7"), 1));
    assert_eq!(full.output, OutputLength::AsText("One \"}\" \\".into()));
    let line = contents.replace('\n', " ");
    assert_eq!(only(Workload::Sharegpt, &line), full);

    let file = Scratch::new(array);
    let turns = Turns::PerUserTurn;
    let all =
        items(&DatasetOptions { turns, ..options(Workload::Sharegpt, Some(file.path().to_path_buf())) })
            .unwrap();
    let [Item::Sample(a), Item::Sample(b)] = all.as_slice() else { panic!("{all:?}") };
    assert_eq!((text(a), a.source_id.as_deref()), (format!("{said}Assistant:").as_str(), Some("7#1")));
    assert_eq!((text(b), b.source_id.as_deref()), (both.as_str(), Some("7#2")));
}

#[test]
fn conversations_without_an_answer_are_skipped() {
    let contents = r#"[{"conversation_id": "a", "conversations": []},
        {"conversations": [{"from": "human", "value": "Anyone?"}]},
        {"conversations": [{"from": "gpt", "value": "An answer to nothing."}]},
        {"conversations": [{"from": "gpt", "value": "x"}, {"from": "human", "value": null}, {"from": "someone", "value": "y"}]},
        {"conversations": [{"from": "user", "value": "u"}, {"from": "assistant", "value": ""}]}]"#;
    let all = items_of(Workload::Sharegpt, contents).unwrap();
    for (item, line) in all[..4].iter().zip(1..) {
        let Item::Skipped(skipped) = item else { panic!("{item:?}") };
        assert_eq!((skipped.line, skipped.reason), (line, SkipReason::NoAnswer));
    }
    assert!(matches!(&all[0], Item::Skipped(s) if s.source_id.as_deref() == Some("a")));
    assert!(matches!(&all[4], Item::Sample(s) if s.output == OutputLength::AsText(String::new())));
}

#[test]
fn every_name_that_published_files_give_the_assistant_is_an_answer() {
    for name in ["gpt", "chatgpt", "bing", "bard", "assistant", "model", "Bard"] {
        let contents = format!(
            r#"[{{"conversations": [{{"from": "human", "value": "q"}}, {{"from": "gpt", "value": "one"}},
                {{"from": "user", "value": "q2"}}, {{"from": "{name}", "value": "two"}}]}}]"#
        );
        let sample = only(Workload::Sharegpt, &contents);
        assert_eq!(text(&sample), "User: q\nAssistant: one\nUser: q2\nAssistant:", "{name}");
        assert_eq!(sample.output, OutputLength::AsText("two".into()), "{name}");
    }
}

#[test]
fn token_id_lines_may_lack_ids_and_times() {
    let all = samples_of(
        Workload::Sharegpt,
        "{\"input_toks\": 2, \"output_toks\": 4, \"input_tok_ids\": [5, 9]}\n{\"input_toks\": 3, \"output_toks\": 1}\n",
    );
    assert_eq!(all[0].prompt, Prompt::Tokens(vec![5, 9]));
    assert_eq!((&all[1].prompt, all[1].arrival_s), (&Prompt::Length(3), None));
}

#[test]
fn ruler_adds_the_answer_prefix_and_question_answering_needs_one_answer() {
    let row = r#"{"index": 3, "input": "Q?", "answer_prefix": " Answer:", "outputs": ["a", "b"], "length": 9, "task": "qa_2"}"#;
    let sample = only(Workload::Ruler, row);
    assert_eq!(text(&sample), "Q? Answer:");
    let answers = vec!["a".to_owned(), "b".to_owned()];
    assert_eq!(sample.expect, Some(Expectation::Contains { answers: answers.clone(), any: true }));
    assert_eq!(sample.output, OutputLength::UntilStop(Some(32)));
    let sample = only(Workload::Ruler, &row.replace("qa_2", "something"));
    assert_eq!(sample.expect, Some(Expectation::Contains { answers, any: false }));
    assert_eq!(sample.output, OutputLength::UntilStop(None));
}

#[test]
fn longbench_asks_by_the_kind_of_its_task() {
    let row = |dataset: &str| {
        format!(
            r#"{{"input": "Who?", "context": "C", "answers": ["x"], "length": 1, "dataset": "{dataset}", "all_classes": null, "_id": "i"}}"#
        )
    };
    let question = only(Workload::Longbench, &row("hotpotqa_e"));
    assert_eq!((text(&question), question.source_id.as_deref()), ("C\n\nWho?\nAnswer:", Some("i")));
    assert_eq!(question.output, OutputLength::UntilStop(Some(32)));
    assert_eq!(question.expect, Some(Expectation::Contains { answers: vec!["x".into()], any: true }));
    let code = only(Workload::Longbench, &row("repobench-p"));
    assert_eq!((text(&code), &code.expect), ("CWho?", &None));
}

#[test]
fn longbench_v2_is_read_as_array_and_as_lines() {
    let row = r#"{"_id": "66", "domain": "Single-Document QA", "sub_domain": "s", "difficulty": "easy", "length": "short", "question": "Q? ", "choice_A": "a", "choice_B": "b", "choice_C": "c", "choice_D": "d", "answer": "C", "context": "Text {[\"]}\\"}"#;
    let sample = only(Workload::LongbenchV2, row);
    assert_eq!(
        text(&sample),
        "Please read the following text and answer the question below.\n\n<text>\nText {[\"]}\\\n</text>\n\nWhat is the correct \
         answer to this question: Q?\nChoices:\n(A) a\n(B) b\n(C) c\n(D) d\n\nFormat your response as follows: \"The correct \
         answer is (insert answer here)\"."
    );
    assert_eq!(sample.expect, Some(Expectation::Choice { answer: 'C' }));
    assert_eq!(sample.category.as_deref(), Some("Single-Document QA"));
    let array = format!("[\n  {row},\n  {}\n]", row.replace("66", "67"));
    let both = samples_of(Workload::LongbenchV2, array);
    assert_eq!(both[0], Sample { line: 2, ..sample });
    assert_eq!((both[1].line, both[1].source_id.as_deref()), (3, Some("67")));
}

fn random(num_requests: u64, range_ratio: f64, prefix_share: f64, seed: u64) -> DatasetOptions {
    let lengths = RandomOptions { num_requests, input_len: 100, output_len: 10, range_ratio, prefix_share };
    DatasetOptions { random: Some(lengths), seed, ..options(Workload::Random, None) }
}

#[test]
fn random_lengths_cover_their_range_evenly_and_prompts_share_their_part() {
    let fixed = items(&random(3, 0.0, 0.25, 1)).unwrap();
    for item in &fixed {
        let Item::Sample(sample) = item else { panic!() };
        assert_eq!(sample.prompt, Prompt::SharedPrefix { length: 100, prefix: 25, group: 0 });
        assert_eq!((&sample.output, sample.line, sample.arrival_s), (&OutputLength::Tokens(10), 0, None));
    }
    let mut seen = [0_u32; 201];
    for item in items(&random(40_400, 1.0, 0.0, 2)).unwrap() {
        let Item::Sample(Sample { prompt: Prompt::Length(n), .. }) = item else { panic!() };
        seen[n as usize] += 1;
    }
    // 1 to 200, some 202 times each: standard deviation 14.
    assert_eq!(seen[0], 0);
    assert!(seen[1..].iter().all(|n| (120..290).contains(n)), "{seen:?}");
    assert_eq!(items(&random(9, 0.5, 0.5, 3)).unwrap(), items(&random(9, 0.5, 0.5, 3)).unwrap());
    assert_ne!(items(&random(9, 0.5, 0.5, 3)).unwrap(), items(&random(9, 0.5, 0.5, 4)).unwrap());
}

proptest! {
    #[test]
    fn csv_columns_may_stand_in_any_order_among_others(order in Just(vec![0, 1, 2, 3, 4, 5]).prop_shuffle()) {
        let header = ["Timestamp", "Request tokens", "Response tokens", "Log Type", "Session ID", "\"a, b\""];
        let rows = [["1", "10", "2", "API log", "", "\"\""], ["2.5", "30", "4", "Conversation log", "u", "\"1,\"\"2\""]];
        let line = |fields: &[&str; 6]| order.iter().map(|&i| fields[i]).collect::<Vec<_>>().join(",");
        let contents = format!("{}\n{}\n{}\n", line(&header), line(&rows[0]), line(&rows[1]));
        let found = samples_of(Workload::Burstgpt, contents);
        let expected = samples_of(
            Workload::Burstgpt,
            "Timestamp,Request tokens,Response tokens,Log Type\n1,10,2,API log\n2.5,30,4,Conversation log\n",
        );
        prop_assert_eq!(found.len(), 2);
        prop_assert_eq!(found, expected);
    }
}
