//! Which layers have a window, and how wide: what transformers' configuration classes say.

use super::*;

const FULL: &str = "full_attention";
const SLIDING: &str = "sliding_attention";

/// A model of four layers; fields are replaced, and those that are null are written as null.
fn config(class: &str, changes: Value) -> Value {
    let mut all = json!({"architectures": [format!("{class}ForCausalLM")], "num_hidden_layers": 4});
    for (name, value) in changes.as_object().unwrap() {
        all[name] = value.clone();
    }
    tiny_config(all)
}

#[track_caller]
fn windows(class: &str, changes: Value) -> Vec<Option<u32>> {
    parse(&config(class, changes)).unwrap().windows
}

#[track_caller]
fn refused(class: &str, changes: Value, words: &[&str]) {
    let message = complaint(parse(&config(class, changes.clone())));
    for word in words {
        assert!(message.contains(word), "{changes}: `{message}` lacks `{word}`");
    }
}

const NONE: [Option<u32>; 4] = [None; 4];
const W: Option<u32> = Some(9);

#[test]
fn every_layer_of_mistral_has_a_window_of_4096_unless_the_file_says_another() {
    assert_eq!(windows("Mistral", json!({})), [Some(4096); 4]);
    assert_eq!(windows("Mistral", json!({"sliding_window": 9})), [W; 4]);
    assert_eq!(windows("Mistral", json!({"sliding_window": 9.0})), [W; 4]);
    assert_eq!(windows("Mistral", json!({"sliding_window": null})), NONE);
    // Qwen's fields are not Mistral's.
    let qwen = json!({"sliding_window": 9, "use_sliding_window": false, "max_window_layers": 2});
    assert_eq!(windows("Mistral", qwen), [W; 4]);
}

#[test]
fn a_qwen_has_windows_from_max_window_layers_on_where_they_are_used() {
    for class in ["Qwen2", "Qwen3"] {
        let with = |more: Value| {
            let mut changes = json!({"use_sliding_window": true, "sliding_window": 9});
            for (name, value) in more.as_object().unwrap() {
                changes[name] = value.clone();
            }
            windows(class, changes)
        };
        assert_eq!(with(json!({"max_window_layers": 0})), [W; 4]);
        assert_eq!(with(json!({"max_window_layers": 1})), [None, W, W, W]);
        assert_eq!(with(json!({"max_window_layers": 3})), [None, None, None, W]);
        assert_eq!(with(json!({"max_window_layers": 4})), NONE);
        assert_eq!(with(json!({"max_window_layers": 0, "sliding_window": null})), NONE);
        // Behind the class's default of 28.
        assert_eq!(with(json!({})), NONE);
        let deep = with(json!({"num_hidden_layers": 30}));
        assert_eq!(deep[..28], [None; 28]);
        assert_eq!(deep[28..], [W; 2]);
        let default = json!({"use_sliding_window": true, "max_window_layers": 2});
        assert_eq!(windows(class, default), [None, None, Some(4096), Some(4096)]);
    }
}

#[test]
fn without_use_sliding_window_a_qwens_window_fields_mean_nothing() {
    for class in ["Qwen2", "Qwen3"] {
        for on in [json!(false), json!(null)] {
            for (window, first) in [(json!(9), json!(0)), (json!("x"), json!(-1)), (json!(0), json!([1.5]))] {
                let changes = json!({"use_sliding_window": on, "sliding_window": window,
                    "max_window_layers": first});
                assert_eq!(windows(class, changes), NONE);
            }
        }
    }
}

#[test]
fn an_explicit_list_of_layer_types_wins() {
    let alternating = json!([FULL, SLIDING, FULL, SLIDING]);
    for (class, first) in [("Mistral", 0), ("Qwen2", 4), ("Qwen3", 28), ("Qwen3", 0)] {
        let with = |types: Value, window: Value| {
            windows(
                class,
                json!({"use_sliding_window": true, "sliding_window": window, "max_window_layers": first,
                "layer_types": types}),
            )
        };
        assert_eq!(with(alternating.clone(), json!(9)), [None, W, None, W], "{class}");
        assert_eq!(with(json!(vec![SLIDING; 4]), json!(9)), [W; 4], "{class}");
        assert_eq!(with(json!(vec![FULL; 4]), json!(9)), NONE, "{class}");
        // No window is wanted, so that its width is not looked at.
        assert_eq!(with(json!(vec![FULL; 4]), json!("x")), NONE, "{class}");
    }
    let unset = json!({"use_sliding_window": true, "max_window_layers": "x", "layer_types": alternating});
    assert_eq!(windows("Qwen3", unset), [None, Some(4096), None, Some(4096)]);
    let null = json!({"layer_types": null, "sliding_window": 9});
    assert_eq!(windows("Mistral", null), [W; 4]);
}

#[test]
fn a_sliding_layer_without_a_width_is_refused_by_name() {
    let types = json!([FULL, SLIDING, FULL, SLIDING]);
    for class in ["Mistral", "Qwen2", "Qwen3"] {
        let null = json!({"use_sliding_window": true, "sliding_window": null, "layer_types": types});
        refused(class, null, &["layer_types[1]", "sliding_window is null", FULL]);
    }
    for class in ["Qwen2", "Qwen3"] {
        for on in [json!({"use_sliding_window": false}), json!({"use_sliding_window": null}), json!({})] {
            let mut off = on.clone();
            off["sliding_window"] = json!(9);
            off["layer_types"] = types.clone();
            refused(class, off, &["layer_types[1]", "use_sliding_window is off", FULL]);
        }
    }
}

#[test]
fn a_list_of_layer_types_that_does_not_fit_is_refused_by_name_and_index() {
    for class in ["Llama", "Mistral", "Qwen2", "Qwen3"] {
        refused(
            class,
            json!({"layer_types": [FULL, FULL, FULL]}),
            &["layer_types", "3", "4", "num_hidden_layers"],
        );
        refused(class, json!({"layer_types": []}), &["layer_types", "0", "4"]);
        refused(class, json!({"layer_types": FULL}), &["layer_types", FULL]);
        let unknown = json!([FULL, FULL, "chunked_attention", FULL]);
        refused(class, json!({"layer_types": unknown}), &["layer_types[2]", "chunked_attention", SLIDING]);
        refused(class, json!({"layer_types": [FULL, 7, FULL, FULL]}), &["layer_types[1]", "7"]);
    }
}

#[test]
fn a_llama_has_no_windows() {
    assert_eq!(windows("Llama", json!({"sliding_window": 9, "use_sliding_window": true})), NONE);
    assert_eq!(windows("Llama", json!({"layer_types": vec![FULL; 4]})), NONE);
    let types = json!([FULL, FULL, SLIDING, FULL]);
    refused(
        "Llama",
        json!({"layer_types": types, "sliding_window": 9}),
        &["LlamaForCausalLM", "layer_types[2]"],
    );
}

#[test]
fn widths_that_make_no_sense_are_refused_where_they_count() {
    for width in [json!(0), json!(-1), json!(1.5), json!("9"), json!([9]), json!(true)] {
        refused("Mistral", json!({"sliding_window": width}), &["sliding_window"]);
        let qwen = json!({"use_sliding_window": true, "max_window_layers": 0, "sliding_window": width});
        refused("Qwen3", qwen, &["sliding_window"]);
    }
    for first in [json!(-1), json!(0.5), json!("2")] {
        let qwen = json!({"use_sliding_window": true, "max_window_layers": first});
        refused("Qwen2", qwen, &["max_window_layers"]);
    }
    refused("Qwen2", json!({"use_sliding_window": "yes"}), &["use_sliding_window"]);
    assert_eq!(windows("Mistral", json!({"sliding_window": 1u64 << 40})), [Some(u32::MAX); 4]);
}

#[test]
fn a_window_does_not_limit_the_length() {
    let length = |changes: Value| parse(&config("Qwen3", changes)).unwrap().max_position_embeddings;
    let on = |window: u32, types: Value| json!({"use_sliding_window": true, "sliding_window": window, "layer_types": types});
    assert_eq!(length(on(9, json!([FULL, FULL, SLIDING, FULL]))), 64);
    assert_eq!(length(on(9, json!(vec![SLIDING; 4]))), 64);
}

#[test]
fn the_reference_models_have_the_windows_they_were_computed_with() {
    for (model, expected) in
        [("mistral", [Some(24); 4]), ("qwen3-alternating", [None, Some(24), None, Some(24)])]
    {
        let Some(dir) = shared(&format!("reference/window/{model}")) else { return };
        assert_eq!(ModelConfig::open(&dir).unwrap().windows, expected, "{model}");
    }
}
