use super::*;

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
#[allow(dead_code, reason = "only whether it can be read is looked at")]
struct Asked {
    prompt: Option<String>,
    request_id: Option<JsonName>,
    stop: Option<JsonTexts>,
    temperature: Option<f32>,
    n: Option<u32>,
    ids: Option<Vec<u32>>,
    ignore: Option<bool>,
    priority: Option<i32>,
}

#[derive(Debug, Deserialize)]
#[allow(dead_code, reason = "only whether it can be read is looked at")]
struct Document {
    requests: Vec<Length>,
}

#[derive(Debug, Deserialize)]
#[allow(dead_code, reason = "only whether it can be read is looked at")]
struct Length {
    len: u32,
    more: Option<f64>,
}

#[test]
fn a_field_of_the_wrong_kind_is_told_with_what_was_found_and_what_was_expected() {
    for (text, what) in [
        (r#"{"stop": 5}"#, "`stop`: expected a text or a list of texts, found 5"),
        (r#"{"stop": [1]}"#, "`stop[0]`: expected a text, found 1"),
        (r#"{"stop": ["a", null]}"#, "`stop[1]`: expected a text, found null"),
        (r#"{"stop": {}}"#, "`stop`: expected a text or a list of texts, found an object"),
        (r#"{"request_id": -1}"#, "`request_id`: expected a text or a whole number from 0 on, found -1"),
        (r#"{"request_id": 1.5}"#, "`request_id`: expected a text or a whole number from 0 on, found 1.5"),
        (r#"{"request_id": true}"#, "`request_id`: expected a text or a whole number from 0 on, found true"),
        (r#"{"temperature": "0.5"}"#, "`temperature`: expected a number, found the text \"0.5\""),
        (r#"{"prompt": ["c"]}"#, "`prompt`: expected a text, found a list"),
        (r#"{"n": -1}"#, "`n`: expected a whole number from 0 to 4294967295, found -1"),
        (r#"{"n": 4294967296}"#, "`n`: expected a whole number from 0 to 4294967295, found 4294967296"),
        (
            r#"{"ids": [1, 2, "three, expected x"]}"#,
            "`ids[2]`: expected a whole number from 0 to 4294967295, found the text \"three, expected x\"",
        ),
        (r#"{"ids": 7}"#, "`ids`: expected a list, found 7"),
        (r#"{"ignore": "yes"}"#, "`ignore`: expected true or false, found the text \"yes\""),
        (
            r#"{"priority": 1e3}"#,
            "`priority`: expected a whole number from -2147483648 to 2147483647, found 1000.0",
        ),
        (r#"{"n": 1, "n": 2}"#, "`n` is given twice"),
        ("5", "expected an object, found 5"),
        (r#"{"n": "#, "it is not JSON: EOF while parsing a value at column 6: is it cut?"),
    ] {
        let fault = parse::<Asked>(text.as_bytes()).unwrap_err();
        assert!(fault.to_string().starts_with(what), "{text}: {fault}");
        assert_eq!(fault.line, 1, "{text}");
        assert!(!fault.to_string().contains("line "), "{text}: {fault}");
    }
    let unknown = parse::<Asked>(br#"{"promt": "a"}"#).unwrap_err().to_string();
    assert!(
        unknown.starts_with("`promt` is no field that is known here; known are `prompt`, `request_id`"),
        "{unknown}"
    );
}

#[test]
fn in_a_text_of_several_lines_the_line_of_the_value_is_told() {
    let good = "{\n \"made_by\": {\"requests\": 1},\n \"requests\": [\n  {\"len\": 3},\n  {\n   \"more\": null,\n   \"len\": 4\n  }\n ]\n}";
    type Reader = fn(&[u8]) -> Result<Document, JsonFault>;
    let readers: [Reader; 2] = [|text| parse(text), |text| parse_without_nulls(text)];
    for read in readers {
        read(good.as_bytes()).unwrap();
        for (from, to, line, what) in [
            ("4", "-4", 7, "`requests[1].len`: expected a whole number from 0 to 4294967295, found -4"),
            ("null", "true", 6, "`requests[1].more`: expected a number, found true"),
            ("{\"len\": 3}", "3", 4, "`requests[0]`: expected an object, found 3"),
            ("\"len\": 4", "\"length\": 4", 5, "`requests[1].len` is missing"),
            (" \"requests\"", " \"request\"", 1, "`requests` is missing"),
            ("\"len\": 4\n", "\"len\" 4\n", 7, "it is not JSON: expected `:` at column"),
        ] {
            let fault = read(good.replacen(from, to, 1).as_bytes()).unwrap_err();
            assert_eq!(fault.line, line, "{fault}");
            assert!(fault.to_string().starts_with(what), "{what}: {fault}");
        }
    }
}

#[test]
fn nulls_are_as_good_as_missing_only_where_that_is_asked_for() {
    let text = br#"{"requests": [{"len": null}]}"#;
    assert_eq!(
        parse::<Document>(text).unwrap_err().to_string(),
        "`requests[0].len`: expected a whole number from 0 to 4294967295, found null"
    );
    assert_eq!(
        parse_without_nulls::<Document>(text).unwrap_err().to_string(),
        "`requests[0].len` is missing"
    );
}
