//! Tests how rules are written and read.

use super::*;

#[test]
fn a_rule_is_read_as_it_is_written() {
    let rules = [
        (Acceptance::Coupled, "coupled"),
        (Acceptance::Rejection, "rejection"),
        (Acceptance::typical_default(), "typical"),
        (Acceptance::Typical { threshold: 0.2, alpha: 0.5 }, "typical:0.2,0.5"),
        (Acceptance::Typical { threshold: 1.0, alpha: 1e-7 }, "typical:1,0.0000001"),
    ];
    for (rule, text) in rules {
        assert_eq!(rule.to_string(), text);
        assert_eq!(text.parse(), Ok(rule));
        assert_eq!(serde_json::to_value(rule).unwrap(), text);
    }
    assert_eq!("typical:0.09, 0.3".parse(), Ok(Acceptance::typical_default()));
    assert_eq!(Acceptance::default(), Acceptance::Coupled);
}

#[test]
fn what_is_no_rule_is_refused_with_the_rules_there_are() {
    for text in ["", "Coupled", "greedy", "typical:", "typical:0.1", "typical:a,b", "typical:0.1,0.2,0.3"] {
        let error = text.parse::<Acceptance>().unwrap_err();
        assert_eq!(error, SamplingError::Acceptance { found: text.to_owned() });
        assert!(error.to_string().contains("coupled, rejection, typical"), "{error}");
    }
    for text in
        ["typical:-0.1,0.3", "typical:1.1,0.3", "typical:NaN,0.3", "typical:0.1,inf", "typical:0.1,-1"]
    {
        let error = text.parse::<Acceptance>().unwrap_err();
        assert!(matches!(error, SamplingError::Typical { .. }), "{text}: {error}");
    }
}
