use super::*;
use crate::dataset::RandomOptions;

const MOON: &str = r#"{"timestamp": 5, "input_length": 600, "output_length": 2, "hash_ids": [1, 2]}"#;
const TALK: &str = r#"{"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}"#;

#[test]
fn what_is_wrong_is_told_with_file_and_line() {
    let burst = |row: &str| format!("Timestamp,Request tokens,Response tokens\n1,2,3\n{row}\n");
    let azure = |row: &str| format!("TIMESTAMP,ContextTokens,GeneratedTokens\r\n{row}");
    let moon = |from: &str, to: &str| format!("{MOON}\n{}\n", MOON.replace(from, to));
    // What is read, the line that must be named (0: none), and what the message must say.
    let table: Vec<(Workload, String, u64, &[&str])> = vec![
        (Workload::Burstgpt, String::new(), 0, &["is empty"]),
        (Workload::Burstgpt, " \r\n\n".into(), 0, &["is empty"]),
        (Workload::Burstgpt, "Timestamp,Request tokens,Response tokens\n".into(), 0, &["no records"]),
        (Workload::Burstgpt, azure("2023-11-16 18:15:46,1,1"), 0, &["no column `Timestamp`", "`TIMESTAMP`, `ContextTokens`, `GeneratedTokens`", "--workload azure?"]),
        (Workload::Azure, burst("2,2,2"), 0, &["no column `TIMESTAMP`", "--workload burstgpt?"]),
        (Workload::Vidur, "arrived_at,num_decode_tokens\n1,1\n".into(), 0, &["no column `num_prefill_tokens`", "`arrived_at`"]),
        (Workload::Azure, MOON.into(), 0, &["is JSON, not csv", "--workload mooncake?"]),
        (Workload::Mooncake, azure("x"), 0, &["is not JSON", "--workload azure?"]),
        (Workload::Mooncake, TALK.into(), 1, &["no field `hash_ids`", "--workload sharegpt?"]),
        (Workload::Sharegpt, MOON.into(), 1, &["no field `conversations`", "--workload mooncake?"]),
        (Workload::Ruler, TALK.into(), 1, &["no field `outputs`", "`conversations`"]),
        (Workload::Burstgpt, burst("2,-5,3"), 3, &["`Request tokens`", "`-5`", "not negative"]),
        (Workload::Burstgpt, burst("2,5.5,3"), 3, &["`Request tokens`", "`5.5`", "whole"]),
        (Workload::Burstgpt, burst("2,NaN,3"), 3, &["`Request tokens`", "`NaN`"]),
        (Workload::Burstgpt, burst("2,5,inf"), 3, &["`Response tokens`", "`inf`", "100000000"]),
        (Workload::Burstgpt, burst("2,100000001,3"), 3, &["`Request tokens`", "100000000"]),
        (Workload::Burstgpt, burst("2,99999999999999999999999999,3"), 3, &["`Request tokens`", "100000000"]),
        (Workload::Burstgpt, burst("2,,3"), 3, &["`Request tokens`", "is empty"]),
        (Workload::Burstgpt, burst("2,five,3"), 3, &["`Request tokens`", "`five`"]),
        (Workload::Burstgpt, burst("-2,5,3"), 3, &["`Timestamp`", "`-2`", "not negative"]),
        (Workload::Burstgpt, burst("nan,5,3"), 3, &["`Timestamp`", "`nan`"]),
        (Workload::Burstgpt, burst("1e300,5,3"), 3, &["`Timestamp`", "too far off"]),
        (Workload::Burstgpt, burst("soon,5,3"), 3, &["`Timestamp`", "`soon`", "seconds"]),
        (Workload::Burstgpt, burst("0.5,5,3"), 3, &["-0.5 s", "line 2", "not in order"]),
        (Workload::Burstgpt, burst("2,5"), 3, &["has 2 fields, but the header has 3", "cut?"]),
        (Workload::Burstgpt, burst("2,5,3,4"), 3, &["has 4 fields, but the header has 3"]),
        (Workload::Burstgpt, burst("2,\"5,3"), 3, &["quote of field 2 is not closed"]),
        (Workload::Azure, azure("2023-11-16 18:15:46,1,1\r\n2023-11-16 18:15:45.9,1,1"), 3, &["-0.1 s", "line 2"]),
        (Workload::Azure, azure("2023-11-31 18:15:46,1,1"), 2, &["`TIMESTAMP`", "2023-11-31", "expected a time as"]),
        (Workload::Mooncake, moon("600", "1025"), 2, &["names 2 blocks", "3 blocks of 512"]),
        (Workload::Mooncake, moon("600", "-600"), 2, &["`input_length`", "-600", "not negative"]),
        (Workload::Mooncake, moon("600", "600.5"), 2, &["`input_length`", "600.5"]),
        (Workload::Mooncake, moon("600", "\"600\""), 2, &["`input_length`", "the text `600`"]),
        (Workload::Mooncake, moon("600", "NaN"), 2, &["not a JSON object"]),
        (Workload::Mooncake, moon("600", "6e11"), 2, &["`input_length`", "100000000"]),
        (Workload::Mooncake, moon("600", "1e999"), 2, &["not a JSON object"]),
        (Workload::Mooncake, moon("[1, 2]", "[1, -2]"), 2, &["`hash_ids`", "`-2`"]),
        (Workload::Mooncake, moon("[1, 2]", "[1, 99999999999999999999]"), 2, &["`hash_ids`"]),
        (Workload::Mooncake, moon("[1, 2]", "7"), 2, &["`hash_ids`", "expected a list"]),
        (Workload::Mooncake, moon("\"timestamp\": 5", "\"timestamp\": 4"), 2, &["-0.001 s", "line 1", "not in order"]),
        (Workload::Mooncake, moon("\"timestamp\": 5", "\"timestamp\": -5"), 2, &["`timestamp`", "not negative"]),
        (Workload::Mooncake, moon("\"timestamp\": 5", "\"timestamp\": 1e30"), 2, &["`timestamp`", "too far off"]),
        (Workload::Mooncake, moon("\"timestamp\": 5", "\"timestamp\": 18446744073709551615"), 2, &["`timestamp`", "too far off"]),
        (Workload::Mooncake, moon("\"timestamp\": 5, ", ""), 2, &["no field `timestamp`", "`hash_ids`"]),
        (Workload::Mooncake, moon(", 2]}", ", 2"), 2, &["not a JSON object", "at column 75: is the line cut?"]),
        (Workload::Mooncake, moon("{", "[] {"), 2, &["not a JSON object"]),
        (Workload::Mooncake, moon("5", &"[".repeat(100_000)), 2, &["not a JSON object", "recursion"]),
        (Workload::Sharegpt, "[]".into(), 0, &["no records"]),
        (Workload::Sharegpt, "[".into(), 1, &["the array is cut here"]),
        (Workload::Sharegpt, format!("[{TALK}"), 1, &["element 2: the array is cut here"]),
        (Workload::Sharegpt, format!("[{TALK},"), 1, &["element 2: the array is cut here"]),
        (Workload::Sharegpt, format!("[{TALK},]"), 1, &["element 2: expected an object, found `]`"]),
        (Workload::Sharegpt, format!("[{TALK}\n{TALK}]"), 2, &["element 2: expected a comma"]),
        (Workload::Sharegpt, format!("[{TALK},\n{}", &TALK[..50]), 2, &["element 2: the file is cut in the middle"]),
        (Workload::Sharegpt, format!("[{TALK}, 7]"), 1, &["expected an object, found `7`"]),
        (Workload::Sharegpt, format!("[{TALK}] {TALK}"), 1, &["behind the array's end"]),
        (Workload::Sharegpt, format!("[\n{TALK},\n\n  {{\"a\"\n 5}}]"), 4, &["element 2: is not a JSON object"]),
        (Workload::Sharegpt, TALK.replace("\"b\"", "5"), 1, &["turn 2 of `conversations` has no text `value`"]),
        (Workload::Sharegpt, TALK.replace("from\": \"gpt", "role\": \"gpt"), 1, &["turn 2 of `conversations` has no text `from`"]),
        (Workload::Sharegpt, r#"{"input_toks": 3, "output_toks": 1, "input_tok_ids": [1]}"#.into(), 1, &["`input_toks` is 3", "1 `input_tok_ids`"]),
        (Workload::Sharegpt, r#"{"input_toks": 1, "output_toks": 1, "input_tok_ids": [4294967296]}"#.into(), 1, &["4294967296"]),
        (Workload::Ruler, r#"{"input": null, "outputs": ["a"]}"#.into(), 1, &["field `input`: expected a text, found null"]),
        (Workload::Vidur, "num_prefill_tokens,num_decode_tokens,num_prefill_tokens\n1,2,3".into(), 0, &["two columns `num_prefill_tokens`"]),
        (Workload::Vidur, "arrived_at,arrived_at,num_prefill_tokens,num_decode_tokens\n1,2,3,4".into(), 0, &["two columns `arrived_at`"]),
        (Workload::Ruler, r#"{"input": "a", "outputs": []}"#.into(), 1, &["`outputs` is an empty list"]),
        (Workload::Ruler, r#"{"input": "a", "outputs": "a"}"#.into(), 1, &["`outputs`", "expected a list"]),
        (Workload::SpecBench, r#"{"question_id": 1, "category": "c", "turns": []}"#.into(), 1, &["`turns` is an empty list"]),
        (Workload::LongbenchV2, r#"{"context": "", "question": "", "choice_A": "", "choice_B": "", "choice_C": "", "choice_D": "", "answer": "E"}"#.into(), 1, &["`answer`", "A, B, C or D", "`E`"]),
    ];
    for (workload, contents, line, fragments) in table {
        let file = Scratch::new(&contents);
        let asked = options(workload, Some(file.path().to_path_buf()));
        let error = items(&asked).expect_err(&contents).to_string();
        let place =
            format!("{}:{}", file.path().display(), if line > 0 { format!("{line}: ") } else { " ".into() });
        assert!(error.starts_with(&place), "{contents}\n{error}");
        for fragment in fragments {
            assert!(error.contains(fragment), "{contents}\n{error}\nlacks {fragment}");
        }
        assert_eq!(survey(&asked, None).expect_err(&contents).to_string(), error);
    }
}

#[test]
fn bytes_that_are_no_text_are_told() {
    let latin = b"Timestamp,Request tokens,Response tokens,Log Type\n1,1,1,x\n2,1,1,caf\xe9\n";
    let error = items_of(Workload::Burstgpt, latin).unwrap_err().to_string();
    assert!(error.contains(":3: byte 10 (0xe9) is not UTF-8"), "{error}");
    let mut array = format!("[{TALK},\n{TALK}]").into_bytes();
    let at = array.len() - 6;
    array[at] = 0xff;
    let error = items_of(Workload::Sharegpt, array).unwrap_err().to_string();
    assert!(error.contains(":2: ") && error.contains("0xff"), "{error}");
    for (bytes, fragment) in [
        (b"\xff\xfeT\0i\0".as_slice(), "UTF-16"),
        (b"\x28\xb5\x2f\xfd....", "zstd"),
        (b"PK\x03\x04....", "zip"),
        (b"PAR1....", "Parquet"),
        (b"\xef\xbb.", "not UTF-8"),
        (b"\0\0\0\0", "no column"),
    ] {
        let error = items_of(Workload::Burstgpt, bytes).unwrap_err().to_string();
        assert!(error.contains(fragment), "{error}");
    }
}

#[test]
fn damaged_gzip_is_told_with_the_line_it_came_to() {
    let rows: String =
        (0..5000).map(|i| format!("{i},{},{}\n", i * 7919 % 1000, i * 104_729 % 997 + 1)).collect();
    let packed = scratch::gzip(format!("Timestamp,Request tokens,Response tokens\n{rows}").as_bytes());
    let error = items_of(Workload::Burstgpt, &packed[..packed.len() / 2]).unwrap_err().to_string();
    let line: u64 = error.split(':').nth(1).unwrap().parse().unwrap();
    assert!(line > 1000 && error.contains("gzip data ends in the middle"), "{error}");
    let mut turned = packed.clone();
    let at = turned.len() - 6;
    turned[at] ^= 1;
    let error = items_of(Workload::Burstgpt, &turned).unwrap_err().to_string();
    assert!(error.contains(":5002: the gzip data is damaged"), "{error}");
    for behind in [b"what is this?".as_slice(), b"x", b"\0\0\0"] {
        let longer = [packed.as_slice(), behind].concat();
        let error = items_of(Workload::Burstgpt, &longer).unwrap_err().to_string();
        assert!(error.contains(":5002: something that is not gzip follows"), "{error}");
    }
    let two =
        [scratch::gzip(b"Timestamp,Request tokens,Response tokens\n1,2,"), scratch::gzip(b"3\n")].concat();
    assert_eq!(items_of(Workload::Burstgpt, &two).unwrap().len(), 1, "two members are one file");
}

#[test]
fn a_line_of_a_gigabyte_is_refused_without_being_held() {
    // Sparse: it takes no room on the disk, and the bytes are zeros.
    for (workload, start) in [
        (Workload::Burstgpt, "Timestamp,Request tokens,Response tokens\n1,1,1\n".to_owned()),
        (Workload::Mooncake, format!("{MOON}\n")),
        (Workload::Sharegpt, format!("[{TALK},\n{{\"conversations\": \"")),
    ] {
        let file = Scratch::new(&start);
        std::fs::OpenOptions::new().write(true).open(file.path()).unwrap().set_len(1 << 30).unwrap();
        let mut reading = open(&options(workload, Some(file.path().to_path_buf())), None).unwrap();
        assert!(matches!(reading.next(), Some(Ok(Item::Sample(_)))));
        let error = reading.next().unwrap().unwrap_err().to_string();
        assert!(error.contains("longer than 64 MiB"), "{error}");
        assert!(reading.next().is_none(), "reading goes on after an error");
    }
}

#[test]
fn files_that_are_not_there_and_options_that_do_not_go_together_are_told() {
    let error = items(&options(Workload::Azure, Some("no/such/file.csv".into()))).unwrap_err().to_string();
    assert!(error.contains("can't read no/such/file.csv"), "{error}");
    let error = items(&options(Workload::Azure, Some(std::env::temp_dir()))).unwrap_err().to_string();
    assert!(error.contains("can't read"), "{error}");
    let random =
        RandomOptions { num_requests: 1, input_len: 5, output_len: 5, range_ratio: 0.0, prefix_share: 0.0 };
    let with = |random| DatasetOptions { random: Some(random), ..options(Workload::Random, None) };
    for (asked, fragment) in [
        (options(Workload::Azure, None), "--path"),
        (options(Workload::Random, None), "--num-requests"),
        (options(Workload::Random, Some("a".into())), "leave out --path"),
        (options(Workload::Ruler, None), "--task"),
        (with(RandomOptions { num_requests: 0, ..random.clone() }), "--num-requests"),
        (with(RandomOptions { input_len: 0, ..random.clone() }), "--input-len"),
        (with(RandomOptions { output_len: u32::MAX, ..random.clone() }), "--output-len"),
        (with(RandomOptions { range_ratio: f64::NAN, ..random.clone() }), "--random-range-ratio"),
        (with(RandomOptions { prefix_share: 1.5, ..random }), "--prefix-share"),
    ] {
        let error = items(&asked).unwrap_err();
        assert!(matches!(error, DatasetError::Options(_)), "{error:?}");
        assert!(error.to_string().contains(fragment), "{error}");
    }
}
