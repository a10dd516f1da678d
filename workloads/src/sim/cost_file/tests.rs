use super::*;

const FULL: &str = r#"{
  "name": "by hand",
  "target": {"points": [[256, 900], [1, 300.5]], "us_per_context": 0.001, "us_per_read": 0.02},
  "us_per_step": 6, "us_per_row": 0.3, "us_per_token": 0.01, "us_per_metadata_row": 0.1, "us_per_logit_row": 4,
  "us_per_sampled_row": 1, "us_per_eager_step": 50, "us_per_prefill": 14,
  "us_per_single_read": 0.01, "us_per_prefill_pair": 0.002, "us_per_begun": 20, "us_per_ended": 8, "us_to_wake": 150,
  "us_per_row_before": 0.5, "us_after_idle": 700, "us_per_row_after_idle": 2, "us_per_idle_s": 900,
  "us_per_row_and_idle_s": 3,
  "schedule": {"us_per_step": 1}, "metadata": {"us_per_row": 2, "us_per_token": 3},
  "proposers": {"draft": {"pass": {"points": [[1, 60]]}, "us_per_step": 5, "us_per_row": 1.5, "keeps_kv": true}, "ngram": {}},
  "acceptance": {"draft": {"by_position": [0.8, 0.7]}},
  "freezes": [{"at_s": 20, "for_s": 10}],
  "calibration": {"anything": ["goes"]}
}"#;

#[test]
fn a_model_is_read_and_written_and_read() {
    let model = CostModel::from_json(FULL).unwrap();
    assert_eq!(model.target.points, [(1, 300.5), (256, 900.0)]);
    assert_eq!((model.schedule.us_per_step, model.metadata.us_per_token), (1.0, 3.0));
    assert_eq!(model.acceptance["draft"], Acceptance { by_position: vec![0.8, 0.7], given: 1.0 });
    assert!(model.proposers["draft"].keeps_kv && !model.proposers["ngram"].keeps_kv);
    let again = CostModel::from_json(&serde_json::to_string(&model).unwrap()).unwrap();
    assert_eq!(again, model);
}

#[test]
fn name_and_points_are_enough() {
    let model = CostModel::from_json(r#"{"name": "flat", "target": {"points": [[1, 5]]}}"#).unwrap();
    assert_eq!(model.target.us(1000), 5.0);
}

/// The value at a path of `FULL` made another.
fn with(pointer: &str, value: &str) -> String {
    let mut all: Value = serde_json::from_str(FULL).unwrap();
    *all.pointer_mut(pointer).unwrap() = serde_json::from_str(value).unwrap();
    all.to_string()
}

#[test]
fn an_error_names_the_field_and_says_what_belongs_there() {
    let wrong = [
        (with("/name", "7"), "name is 7: give a text"),
        (with("/target", "[]"), "target is []: give an object"),
        (with("/target/points", "[]"), "target.points is empty"),
        (with("/target/points/1", "[1]"), "target.points[1] is [1]: give [token rows, microseconds]"),
        (with("/target/points/0/0", "-1"), "target.points[0] is [-1,900]"),
        (with("/target/points/0/0", "4294967296"), "target.points[0] is [4294967296,900]"),
        (with("/target/points/0/1", "-900"), "target.points[1] is -900: give microseconds"),
        (with("/target/points/0/0", "1"), "target.points has 1 token rows twice"),
        (with("/target/points/0/1", "200"), "target.points has 200 us for 256 token rows and 300.5 us for 1"),
        (with("/target/us_per_read", "\"x\""), "target.us_per_read is \"x\": give a number"),
        (with("/us_per_row", "-0.3"), "us_per_row is -0.3: give microseconds"),
        (with("/us_per_step", "1e300"), "us_per_step is"),
        (with("/metadata", r#"{"us_per_page": 1}"#), "metadata.us_per_page is no field"),
        (with("/proposers/draft/keeps_kv", "1"), "proposers.draft.keeps_kv is 1: give true or false"),
        (with("/proposers/ngram", "[]"), "proposers.ngram is []: give an object"),
        (with("/acceptance/draft/by_position", "[]"), "acceptance.draft.by_position is empty"),
        (
            with("/acceptance/draft/by_position/1", "1.5"),
            "acceptance.draft.by_position[1] is 1.5: give a share",
        ),
        (with("/freezes/0", r#"{"at_s": 1}"#), "freezes[0].for_s is missing"),
        (with("/freezes/0/at_s", "-1"), "freezes[0].at_s is -1: give seconds"),
        (
            FULL.replace("us_per_step\": 6", "us_per_stop\": 6"),
            "us_per_stop is no field of a cost model; here are: name, target",
        ),
        (FULL.replace("\"name\": \"by hand\",", ""), "name is missing"),
        (FULL.replace("900", "NaN"), "it is not JSON"),
        ("[1]".into(), "it is [1]: give an object"),
        (String::new(), "it is not JSON"),
    ];
    for (text, message) in wrong {
        let error = CostModel::from_json(&text).unwrap_err();
        assert!(error.contains(message), "{error:?} does not say {message:?}");
    }
}

#[test]
fn an_error_of_a_file_names_the_file() {
    let dir = std::env::temp_dir().join(format!("pagedraft-cost-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let path = dir.join("cost.json");
    let missing = CostModel::read(&path).unwrap_err().to_string();
    assert!(missing.contains("cost.json"), "{missing}");
    std::fs::write(&path, FULL.replace("900", "\"slow\"")).unwrap();
    let wrong = CostModel::read(&path).unwrap_err().to_string();
    assert!(wrong.contains("cost.json") && wrong.contains("target.points[0]"), "{wrong}");
    std::fs::write(&path, [0xff, 0xfe, 0]).unwrap();
    assert!(CostModel::read(&path).unwrap_err().to_string().contains("cost.json"));
    std::fs::write(&path, FULL).unwrap();
    assert_eq!(CostModel::read(&path).unwrap(), CostModel::from_json(FULL).unwrap());
    std::fs::remove_dir_all(&dir).unwrap();
}

#[test]
fn what_can_not_be_written_in_json_is_refused_too() {
    let mut model = CostModel::from_json(FULL).unwrap();
    model.us_per_row = f64::NAN;
    assert!(model.check().unwrap_err().starts_with("us_per_row is NaN"));
    model.us_per_row = 0.0;
    model.target.points = vec![(4, 1.0), (2, 2.0)];
    assert!(model.check().unwrap_err().contains("ascending order"));
    model.target.points = vec![(4, f64::INFINITY)];
    assert!(model.check().unwrap_err().starts_with("target.points[0] is inf"));
}
