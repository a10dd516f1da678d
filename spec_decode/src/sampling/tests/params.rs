//! Parameters out of their range are refused by name.

use super::*;

#[track_caller]
fn refused(params: SamplingParams, word: &str) {
    let message = params.validate().unwrap_err().to_string();
    assert!(message.contains(word), "`{message}` lacks `{word}`");
    let chosen = Sampler::default().choose(&[1.0, 2.0], &params, 0);
    assert_eq!(chosen.unwrap_err().to_string(), message);
    assert_eq!(distribution(&[1.0], &params).unwrap_err().to_string(), message);
}

#[test]
fn a_temperature_that_is_negative_or_no_number_is_refused() {
    for value in [-0.1, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        refused(at(value), "temperature");
        refused(at(value), &value.to_string());
    }
    for value in [0.0, -0.0, 1e-40, 0.7, 100.0, f32::MAX] {
        at(value).validate().unwrap();
    }
}

#[test]
fn a_top_p_outside_its_interval_is_refused() {
    for top_p in [0.0, -0.5, 1.0001, f32::NAN, f32::INFINITY] {
        refused(SamplingParams { top_p, ..at(1.0) }, "top_p");
    }
}

#[test]
fn a_min_p_outside_its_interval_is_refused() {
    for min_p in [-0.001, 1.5, f32::NAN] {
        refused(SamplingParams { min_p, ..at(1.0) }, "min_p");
    }
}

#[test]
fn a_top_k_of_zero_or_minus_one_means_off_where_it_is_written() {
    assert_eq!(SamplingParams::top_k_from(-1), Ok(None));
    assert_eq!(SamplingParams::top_k_from(0), Ok(None));
    assert_eq!(SamplingParams::top_k_from(40), Ok(Some(40)));
    for bad in [-2, i64::MIN, 1 << 32, i64::MAX] {
        let message = SamplingParams::top_k_from(bad).unwrap_err().to_string();
        assert!(message.contains(&bad.to_string()), "{message}");
    }
    let top_k = Some(0);
    refused(SamplingParams { top_k, ..at(1.0) }, "top_k");
}

#[test]
fn the_defaults_are_valid_and_filter_nothing() {
    let params = SamplingParams::default();
    params.validate().unwrap();
    assert!(params.keeps_all() && !params.is_greedy());
    assert!(SamplingParams::greedy().is_greedy());
}
