use super::*;
use proptest::prelude::*;

/// A trace of requests at these seconds, each of as many tokens as its line's number.
fn trace(times: &[u32]) -> Scratch {
    let rows = times.iter().enumerate().map(|(i, time)| format!("{time},{},1\n", i + 2));
    Scratch::new(
        std::iter::once("arrived_at,num_prefill_tokens,num_decode_tokens\n".into())
            .chain(rows)
            .collect::<String>(),
    )
}

/// Times and lines of a window.
fn window(
    file: &Scratch,
    from_s: Option<f64>,
    to_s: Option<f64>,
    limit: Option<u64>,
) -> Result<Vec<(f64, u64)>, String> {
    let asked =
        DatasetOptions { from_s, to_s, limit, ..options(Workload::Vidur, Some(file.path().to_path_buf())) };
    let items = items(&asked).map_err(|e| e.to_string())?;
    let found: Vec<(f64, u64)> = items
        .into_iter()
        .map(|item| match item {
            Item::Sample(sample) => (sample.arrival_s.unwrap(), sample.line),
            Item::Skipped(_) => panic!(),
        })
        .collect();
    let counted = survey(&asked, None).unwrap();
    assert_eq!((counted.items, counted.timed), (found.len() as u64, true));
    assert_eq!(counted.span_s, found.last().map_or(0.0, |last| last.0));
    Ok(found)
}

#[test]
fn a_window_counts_from_the_first_record_and_times_count_from_the_window() {
    let file = trace(&[100, 100, 110, 115, 120, 300]);
    assert_eq!(window(&file, None, None, Some(2)).unwrap(), [(0.0, 2), (0.0, 3)]);
    assert_eq!(window(&file, Some(10.0), Some(20.0), None).unwrap(), [(0.0, 4), (5.0, 5)]);
    assert_eq!(window(&file, Some(9.5), None, Some(3)).unwrap(), [(0.5, 4), (5.5, 5), (10.5, 6)]);
    assert_eq!(window(&file, None, Some(0.001), None).unwrap(), [(0.0, 2), (0.0, 3)]);
    let error = window(&file, Some(201.0), None, None).unwrap_err();
    assert!(error.contains("no record in the window") && error.contains("200 s"), "{error}");
    let error = window(&file, Some(5.0), Some(5.0), None).unwrap_err();
    assert!(error.contains("--to must be later than --from"), "{error}");
    for from in [-1.0, f64::NAN, f64::INFINITY, 1e30] {
        let error = window(&file, Some(from), None, None).unwrap_err();
        assert!(error.contains("--from is"), "{error}");
    }
    assert!(window(&file, None, None, Some(0)).unwrap_err().contains("--limit"));
}

#[test]
fn skipped_records_count_towards_the_limit() {
    let file = Scratch::new("arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,0\n1,6,2\n2,7,3\n");
    let asked =
        DatasetOptions { limit: Some(2), ..options(Workload::Vidur, Some(file.path().to_path_buf())) };
    let found = survey(&asked, None).unwrap();
    assert_eq!(found, Survey { items: 2, skipped: 1, timed: true, span_s: 1.0 });
}

#[test]
fn a_window_of_a_file_without_times_is_refused() {
    let file = Scratch::new("num_prefill_tokens,num_decode_tokens\n5,1\n");
    let asked =
        DatasetOptions { from_s: Some(1.0), ..options(Workload::Vidur, Some(file.path().to_path_buf())) };
    let error = items(&asked).unwrap_err().to_string();
    assert!(error.contains("no arrival times"), "{error}");
}

#[test]
fn what_lies_behind_the_window_is_not_read() {
    let file = Scratch::new("arrived_at,num_prefill_tokens,num_decode_tokens\n0,5,1\n9,5,1\nbroken\n");
    assert_eq!(window(&file, None, Some(5.0), None).unwrap(), [(0.0, 2)]);
    assert_eq!(window(&file, None, None, Some(2)).unwrap(), [(0.0, 2), (9.0, 3)]);
    assert!(window(&file, None, None, None).unwrap_err().contains(":4: "));
}

proptest! {
    #[test]
    fn windows_are_what_filtering_all_records_gives(
        mut times in prop::collection::vec(0_u32..50, 1..30), from in 0_u32..40, length in 1_u32..40, limit in 1_u64..20,
    ) {
        times.sort_unstable();
        let to = from + length;
        let expected: Vec<(f64, u64)> = times
            .iter()
            .zip(2..)
            .map(|(time, line)| (time - times[0], line))
            .filter(|(time, _)| (from..to).contains(time))
            .map(|(time, line)| (f64::from(time - from), line))
            .take(usize::try_from(limit).unwrap())
            .collect();
        let found = window(&trace(&times), Some(f64::from(from)), Some(f64::from(to)), Some(limit));
        match found {
            Ok(found) => prop_assert_eq!(found, expected),
            Err(error) => prop_assert!(expected.is_empty(), "{}", error),
        }
    }
}
