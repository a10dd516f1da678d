//! Records of sparse attention on disk: bytes a record beside the entropy bound, and how fast they are written and read. A plain
//! program: `cargo bench -p pagedraft-workloads --bench dsa_records`.
//!
//! One request, one layer, 65,536 keys, 2,048 chosen, blocks of 16, figures of the scores. *random*: each choice is drawn anew. *overlap*: from one
//! token to the next 45 % (90 %) of the choice, drawn at random, stay; the others are drawn from all other positions. The bound is the
//! logarithm of the number of choices that are as likely: `log2 C(65536, 2048)` bits, or `log2 C(2048, kept) + log2 C(63488, 2048 - kept)`.
//!
//! Every record is timed by itself, so that a busy machine spoils few of them; the median and the least are printed.
#![allow(clippy::unwrap_used, reason = "a fault here is a failed bench")]

use std::time::Instant;

use pagedraft_workloads::run::LineFormat;
use pagedraft_workloads::trace::{
    DsaFormat, DsaRecords, DsaRows, DsaScores, DsaSelection, DsaToken, DsaTraceConfig, TraceWriter, dsa_file,
    read_compact,
};

const KEYS: u32 = 65_536;
const TOPK: u32 = 2048;
const TOKENS: u32 = 400;
const ROUNDS: usize = 9;

/// SplitMix64.
fn random(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let mut z = *state;
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// `count` members of `from`, ascending.
fn some(from: &[u32], count: usize, state: &mut u64) -> Vec<u32> {
    let mut pool = from.to_vec();
    for i in 0..count {
        let j = i + random(state) as usize % (pool.len() - i);
        pool.swap(i, j);
    }
    pool.truncate(count);
    pool.sort_unstable();
    pool
}

fn choices(kept: Option<usize>, state: &mut u64) -> Vec<Vec<u32>> {
    let all: Vec<u32> = (0..KEYS).collect();
    let mut made = vec![some(&all, TOPK as usize, state)];
    while made.len() < TOKENS as usize {
        let last = &made[made.len() - 1];
        let next = match kept {
            None => some(&all, TOPK as usize, state),
            Some(kept) => {
                let others: Vec<u32> =
                    all.iter().copied().filter(|p| last.binary_search(p).is_err()).collect();
                let mut next = some(last, kept, state);
                next.extend(some(&others, TOPK as usize - kept, state));
                next.sort_unstable();
                next
            }
        };
        made.push(next);
    }
    made
}

/// The bits of one of C(n, m) choices.
fn bits(n: u32, m: u32) -> f64 {
    (0..m).map(|i| (f64::from(n - i) / f64::from(i + 1)).log2()).sum()
}

fn median(times: &mut [f64]) -> (f64, f64) {
    times.sort_by(f64::total_cmp);
    (times[times.len() / 2], times[0])
}

fn main() {
    let config = DsaTraceConfig {
        rows: DsaRows::Decode,
        sample_rate: 1.0,
        prefix_key_tokens: 256,
        store_scores: false,
        index_topk: TOPK,
        layers: 1,
        indexer_layers: vec![0],
        latent_bytes: 1152,
    };
    let mut state = 20_261_130;
    println!("seed {state}; {TOKENS} records a case, {ROUNDS} rounds; times are median (least)");
    println!("case         bytes a record   bound   ratio   write, us a record   read, positions/s");
    for (name, kept) in [("random", None), ("overlap 45 %", Some(922)), ("overlap 90 %", Some(1843))] {
        let choices = choices(kept, &mut state);
        let bound = match kept {
            None => bits(KEYS, TOPK),
            Some(kept) => bits(TOPK, kept as u32) + bits(KEYS - TOPK, TOPK - kept as u32),
        } / 8.0;
        let directory = std::env::temp_dir().join(format!("pagedraft-dsa-bench-{}", std::process::id()));
        let (mut writes, mut reads) = (Vec::new(), Vec::new());
        let mut bytes = 0;
        for _ in 0..ROUNDS {
            let _ = std::fs::remove_dir_all(&directory);
            let mut writer =
                TraceWriter::create(&directory, &serde_json::json!({}), LineFormat::Jsonl).unwrap();
            writer.keep_dsa(&config, 16, DsaFormat::Compact).unwrap();
            let mut token = DsaToken {
                request_id: "0".to_owned(),
                step_idx: KEYS - 1,
                prefix_key: "0123456789abcdef".to_owned(),
                table: (0..KEYS / 16).collect(),
                selections: vec![DsaSelection::default()],
                ..DsaToken::default()
            };
            for (step, choice) in (0..).zip(&choices) {
                token.step = step;
                token.selections[0].positions.clone_from(choice);
                token.selections[0].scores = Some(DsaScores { min: -1.0, mean: 0.5, max: 7.25 });
                let start = Instant::now();
                writer.write_dsa(&token).unwrap();
                writes.push(start.elapsed().as_secs_f64() * 1e6);
            }
            writer.finish(&serde_json::json!({})).unwrap();
            let path = dsa_file(&directory).unwrap();
            bytes = std::fs::metadata(&path).unwrap().len();
            let (mut start, mut sum) = (Instant::now(), 0u64);
            read_compact(&path, |token| {
                let chosen = &token.selections[0].positions;
                sum += u64::from(chosen[chosen.len() - 1]);
                reads.push(start.elapsed().as_secs_f64() / chosen.len() as f64);
                start = Instant::now();
                true
            })
            .unwrap();
            assert_eq!(sum, choices.iter().map(|choice| u64::from(choice[choice.len() - 1])).sum::<u64>());
        }
        let mut records = DsaRecords::open(&directory).unwrap().unwrap();
        for choice in &choices {
            assert_eq!(records.next_record().unwrap().unwrap().selected_token_pos, *choice);
        }
        let ((write, least), (read, fastest)) = (median(&mut writes), median(&mut reads));
        let each = bytes as f64 / f64::from(TOKENS);
        println!(
            "{name:<12}{each:>15.1}{bound:>8.0}{:>8.3}{write:>13.1} ({least:.1}){:>14.3e} ({:.3e})",
            each / bound,
            1.0 / read,
            1.0 / fastest,
        );
        let _ = std::fs::remove_dir_all(&directory);
    }
}
