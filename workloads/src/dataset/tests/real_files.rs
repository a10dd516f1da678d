//! Totals were counted by a python script of its own (`csv.DictReader`, `json.loads`).

use super::*;
use crate::dataset::Expectation;

/// Samples, skipped records, prompt tokens, output tokens, last arrival.
fn totals(options: &DatasetOptions) -> (usize, usize, u64, u64, Option<f64>) {
    let (mut samples, mut skipped, mut input, mut output, mut last) = (0, 0, 0, 0, None);
    for item in open(options, None).unwrap() {
        match item.unwrap() {
            Item::Sample(sample) => {
                samples += 1;
                input += prompt_tokens(&sample.prompt);
                output += output_tokens(&sample);
                last = sample.arrival_s;
            }
            Item::Skipped(_) => skipped += 1,
        }
    }
    (samples, skipped, input, output, last)
}

#[test]
fn burstgpt_is_read_in_both_column_orders() {
    let Some(path) = shared("burstgpt/BurstGPT_1_rows001-300.csv") else { return };
    let mut first = options(Workload::Burstgpt, Some(path));
    assert_eq!(totals(&first), (289, 11, 170_374, 82_483, Some(35_536.0)));
    let found = survey(&first, None).unwrap();
    assert_eq!(found, Survey { items: 300, skipped: 11, timed: true, span_s: 35_536.0 });
    let failed: Vec<u64> = items(&first)
        .unwrap()
        .into_iter()
        .filter_map(|item| match item {
            Item::Skipped(Skipped {
                line,
                reason: SkipReason::FailedInTrace,
                prompt_tokens: Some(0),
                ..
            }) => Some(line),
            _ => None,
        })
        .collect();
    assert_eq!(failed, [22, 40, 42, 43, 83, 123, 124, 125, 178, 245, 262]);
    first.keep_failed = true;
    assert_eq!(totals(&first), (300, 0, 170_374 + 11, 82_483 + 11, Some(35_536.0)));

    let Some(path) = shared("burstgpt/BurstGPT_3_rows001-250.csv") else { return };
    let third = options(Workload::Burstgpt, Some(path));
    assert_eq!(totals(&third), (249, 1, 172_735, 44_361, Some(38_046.0)));
    let kinds = items(&third).unwrap();
    let calls = kinds
        .iter()
        .filter(|item| matches!(item, Item::Sample(s) if s.category.as_deref() == Some("API log")));
    assert_eq!(calls.count(), 6);
}

#[test]
fn azure_times_are_exact() {
    let Some(path) = shared("azure/AzureLLMInferenceTrace_conv.csv") else { return };
    let azure = options(Workload::Azure, Some(path));
    assert_eq!(totals(&azure), (19_366, 0, 22_361_870, 4_088_665, Some(3_501.721_937)));
    let ticks: i64 = items(&azure)
        .unwrap()
        .iter()
        .map(|item| match item {
            Item::Sample(sample) => (sample.arrival_s.unwrap() * 1e7).round() as i64,
            Item::Skipped(_) => panic!(),
        })
        .sum();
    assert_eq!(ticks, 334_733_403_854_070);
}

#[test]
fn vidur_is_read_with_times_and_without() {
    let Some(path) = shared("vidur/splitwise_conv.csv") else { return };
    let vidur = options(Workload::Vidur, Some(path));
    assert_eq!(totals(&vidur), (19_366, 0, 22_361_870, 4_088_665, Some(3_501.721_937)));
    // The same requests as Azure's file, and the same times to the microsecond that Vidur kept.
    if let Some(path) = shared("azure/AzureLLMInferenceTrace_conv.csv") {
        for (a, b) in items(&vidur).unwrap().iter().zip(items(&options(Workload::Azure, Some(path))).unwrap())
        {
            let (Item::Sample(a), Item::Sample(b)) = (a, b) else { panic!() };
            assert_eq!((&a.prompt, &a.output, a.line), (&b.prompt, &b.output, b.line));
            assert!((a.arrival_s.unwrap() - b.arrival_s.unwrap()).abs() <= 1e-6, "line {}", a.line);
        }
    }
    let Some(path) = shared("vidur/arxiv_summarization_stats_llama2_tokenizer_filtered_v2.csv") else {
        return;
    };
    let arxiv = options(Workload::Vidur, Some(path));
    assert_eq!(totals(&arxiv), (28_257, 0, 73_131_321, 8_234_948, None));
    assert_eq!(
        survey(&arxiv, None).unwrap(),
        Survey { items: 28_257, skipped: 0, timed: false, span_s: 0.0 }
    );
}

#[test]
fn mooncake_has_its_blocks() {
    let Some(path) = shared("mooncake/conversation_trace.jsonl") else { return };
    let mooncake = options(Workload::Mooncake, Some(path));
    assert_eq!(totals(&mooncake), (12_031, 0, 144_793_823, 4_122_048, Some(3_536.999)));
    let mut names = std::collections::HashSet::new();
    let mut blocks = 0;
    for item in items(&mooncake).unwrap() {
        let Item::Sample(Sample { prompt: Prompt::Blocks { block_size: 512, ids, .. }, .. }) = item else {
            panic!()
        };
        blocks += ids.len();
        names.extend(ids);
    }
    assert_eq!((blocks, names.len()), (288_500, 182_790));
}

#[test]
fn sharegpt_is_read_in_its_three_forms() {
    for (name, full, per_turn) in [
        ("fastchat_dummy_conversation.json", 500, 1000),
        ("glaive_toolcall_en_demo.json", 300, 746),
        ("sharegpt_conversations_001-030.json", 30, 30),
    ] {
        let Some(path) = shared(&format!("sharegpt/{name}")) else { return };
        let mut conversations = options(Workload::Sharegpt, Some(path));
        let all = Survey { items: full, skipped: 0, timed: false, span_s: 0.0 };
        assert_eq!(survey(&conversations, None).unwrap(), all, "{name}");
        conversations.turns = Turns::PerUserTurn;
        assert_eq!(survey(&conversations, None).unwrap(), Survey { items: per_turn, ..all }, "{name}");
    }
    let Some(path) = shared("sharegpt/llmservingsim_sharegpt_llama3.1_tokens_300.jsonl") else { return };
    let tokens = options(Workload::Sharegpt, Some(path));
    // The first arrives 46926808 ns, the last 29183763203 ns after the file's own zero.
    assert_eq!(totals(&tokens), (300, 0, 257_239, 195_753, Some(29.136_836_395)));
}

#[test]
fn ruler_takes_its_task_from_the_file_name() {
    let Some(path) = shared("ruler/niah_multikey_3_4096_rows001-250.jsonl") else { return };
    let all = items(&options(Workload::Ruler, Some(path))).unwrap();
    assert_eq!(all.len(), 250);
    let Item::Sample(first) = &all[0] else { panic!() };
    let answers = vec!["1ee34dc4-3b04-4a8b-805b-fdc94e7ed827".to_owned()];
    assert_eq!(first.expect, Some(Expectation::Contains { answers, any: false }));
    assert_eq!(first.output, OutputLength::UntilStop(Some(128)));
    assert_eq!((first.category.as_deref(), first.source_id.as_deref()), (Some("niah_multikey_3"), Some("0")));
    for item in &all {
        let Item::Sample(sample) = item else { panic!() };
        let Some(Expectation::Contains { answers, .. }) = &sample.expect else { panic!() };
        assert!(
            text(sample).contains(&answers[0]) && text(sample).ends_with("mentioned in the provided text is")
        );
    }
}

#[test]
fn longbench_summaries_have_no_score() {
    let Some(path) = shared("longbench/longbench_v1_multi_news.jsonl") else { return };
    let all = items(&options(Workload::Longbench, Some(path))).unwrap();
    assert_eq!(all.len(), 200);
    for item in all {
        let Item::Sample(sample) = item else { panic!() };
        assert!(text(&sample).ends_with("\n\nSummary:"));
        assert_eq!(sample.output, OutputLength::UntilStop(Some(512)));
        assert_eq!((sample.expect.as_ref(), sample.category.as_deref()), (None, Some("multi_news")));
    }
}

#[test]
fn spec_bench_gives_first_turns_or_all_user_turns() {
    let Some(path) = shared("specbench/spec_bench_question.jsonl") else { return };
    let mut questions = options(Workload::SpecBench, Some(path));
    assert_eq!(survey(&questions, None).unwrap().items, 480);
    questions.turns = Turns::PerUserTurn;
    let all = items(&questions).unwrap();
    assert_eq!(all.len(), 560);
    let Item::Sample(second) = &all[1] else { panic!() };
    assert_eq!((second.source_id.as_deref(), second.category.as_deref()), (Some("81#2"), Some("writing")));
    assert_eq!(
        text(second),
        "User: Compose an engaging travel blog post about a recent trip to Hawaii, highlighting cultural experiences and \
         must-see attractions.\nUser: Rewrite your previous response. Start every sentence with the letter A.\nAssistant:"
    );
}

#[test]
fn a_gzipped_file_reads_as_the_plain_one() {
    for (workload, name) in [
        (Workload::Azure, "azure/AzureLLMInferenceTrace_conv.csv"),
        (Workload::Mooncake, "mooncake/conversation_trace.jsonl"),
        (Workload::Sharegpt, "sharegpt/glaive_toolcall_en_demo.json"),
    ] {
        let Some(path) = shared(name) else { return };
        let contents = std::fs::read(&path).unwrap();
        // In two members, as `cat a.gz b.gz` makes them, cut where it happens to be.
        let (a, b) = contents.split_at(contents.len() / 3);
        let packed = Scratch::new([scratch::gzip(a), scratch::gzip(b)].concat());
        let unpacked = items(&options(workload, Some(packed.path().to_path_buf()))).unwrap();
        assert!(unpacked == items(&options(workload, Some(path))).unwrap(), "{name}");
    }
}
