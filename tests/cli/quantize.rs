//! `pagedraft quantize`, and models with weights in 8 bits.

use serde_json::{Value, json};

use crate::program::{Run, Scratch, pagedraft};

fn done(run: &Run) {
    assert_eq!(run.code, Some(0), "{run:?}");
}

fn text(run: &Run) -> &str {
    done(run);
    &run.stdout
}

const PROMPT: [&str; 6] = ["generate", "--prompt", "The old man", "--max-tokens", "24", "--temperature"];

/// What a model goes on with.
fn generated(more: &[&str]) -> String {
    text(&pagedraft(&[&PROMPT[..], &["0"], more].concat())).to_owned()
}

#[test]
fn a_quantised_directory_says_the_same_as_its_model_quantised_at_load_and_half_as_large() {
    let scratch = Scratch::new("quantize");
    let (out, json_out) = (scratch.path("small"), scratch.path("out.json"));
    let run = pagedraft(&["quantize", "--model", "builtin:target", "--out", &out]);
    assert!(text(&run).contains("matrices in 8 bits"), "{run:?}");
    let at_load = generated(&["--quantization", "int8"]);
    assert_eq!(generated(&["--model", &out]), at_load);
    // Activations in f32 multiply the stored weights themselves.
    let widened = generated(&["--model", &out, "--quantization", "none", "--dtype", "f32"]);
    assert_eq!(generated(&["--model", &out, "--activations", "f32", "--dtype", "f32"]), widened);
    // Each run says what its weights are.
    let bench = ["bench", "latency", "--batch-size", "1", "--input-len", "8", "--output-len", "4"];
    let one = ["--num-iters", "1", "--num-iters-warmup", "0", "--output-json", &json_out];
    for (more, quantization) in [
        (&["--model", &out][..], "int8"),
        (&["--quantization", "int8", "--activations", "f32"][..], "int8, activations in f32"),
        (&["--quantization", "none"][..], "none"),
    ] {
        let run = pagedraft(&[&bench[..], &one[..], more].concat());
        done(&run);
        assert_eq!(scratch.json("out.json")["quantization"], json!(quantization));
        assert_eq!(run.stdout.contains("weights int8"), quantization != "none", "{run:?}");
    }
    // A second time there is something at that place, and what is quantised is not quantised again.
    for (arguments, told) in [
        (["quantize", "--model", "builtin:target", "--out", &out], "there is something at"),
        (["quantize", "--model", &out, "--out", &scratch.path("again")], "in 8 bits already"),
        (["quantize", "--model", &scratch.path("none"), "--out", &scratch.path("again")], "can't read"),
    ] {
        let run = pagedraft(&arguments);
        assert_eq!(run.code, Some(2), "{run:?}");
        assert!(run.stderr.contains(told), "{run:?}");
    }
    let left: Vec<_> = std::fs::read_dir(scratch.path("")).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(left.len(), 2, "nothing half-written is left: {left:?}");
}

#[test]
fn the_models_that_fill_masks_and_those_that_choose_keys_run_in_8_bits_too() {
    for model in ["builtin:dsa", "builtin:recall"] {
        assert!(!generated(&["--model", model, "--quantization", "int8"]).is_empty());
    }
    let canvas =
        ["generate", "--model", "builtin:llada", "--prompt", "Once upon a time", "--max-tokens", "32"];
    done(&pagedraft(&[&canvas[..], &["--quantization", "int8"]].concat()));
}

#[test]
fn what_can_not_be_done_with_8_bits_is_told() {
    let scratch = Scratch::new("quantize-refusals");
    let out = scratch.path("small");
    done(&pagedraft(&["quantize", "--model", "builtin:draft", "--out", &out]));
    let refused = |more: &[&str], told: &[&str]| {
        let run = pagedraft(&[&PROMPT[..], &["0"], more].concat());
        assert_eq!(run.code, Some(2), "{more:?}: {run:?}");
        for told in told {
            assert!(run.stderr.contains(told), "{told}: {run:?}");
        }
    };
    refused(&["--activations", "f32"], &["--activations", "--quantization int8"]);
    refused(&["--quantization", "int4"], &["int4", "int8"]);
    // Files that are not as they must be.
    let config = scratch.read("small/config.json");
    let changed = |change: &dyn Fn(&mut Value)| {
        let mut config: Value = serde_json::from_str(&config).unwrap();
        change(&mut config);
        scratch.write("small/config.json", config.to_string().as_bytes());
    };
    changed(&|config| config["quantization_config"]["group_size"] = json!(128));
    refused(&["--model", &out], &["config.json", "quantization_config.group_size", "64"]);
    changed(&|config| drop(config["quantization_config"].as_object_mut().unwrap().remove("group_size")));
    refused(&["--model", &out], &["config.json", "group_size"]);
    changed(&|config| config["quantization_config"]["bits"] = json!(4));
    refused(&["--model", &out], &["config.json", "quantization_config.bits", "8"]);
    changed(&|config| drop(config.as_object_mut().unwrap().remove("quantization_config")));
    refused(&["--model", &out], &["without a quantization_config", "quantise the model again"]);
    scratch.write("small/config.json", config.as_bytes());
    // A tensor's name in the header is changed to another one of the same length.
    let path = scratch.path("small/model.safetensors");
    let bytes = std::fs::read(&path).unwrap();
    let name = b"mlp.up_proj.weight_int8_scale";
    let at = bytes.windows(name.len()).position(|part| part == name).unwrap();
    let mut renamed = bytes.clone();
    renamed[at..at + name.len()].copy_from_slice(b"mlp.up_proj.weight_int8_scal_");
    std::fs::write(&path, &renamed).unwrap();
    refused(&["--model", &out], &["mlp.up_proj.weight_int8_scale", "scales"]);
    std::fs::write(&path, &bytes[..bytes.len() - 100]).unwrap();
    refused(&["--model", &out], &["model.safetensors"]);
}

#[cfg(unix)]
#[test]
fn an_empty_directory_is_filled_and_keeps_its_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new("quantize-into");
    let out = scratch.path("there");
    std::fs::create_dir(&out).unwrap();
    std::fs::set_permissions(&out, std::fs::Permissions::from_mode(0o700)).unwrap();
    let link = scratch.path("link");
    std::os::unix::fs::symlink(&out, &link).unwrap();
    done(&pagedraft(&["quantize", "--model", "builtin:draft", "--out", &link]));
    assert_eq!(std::fs::metadata(&out).unwrap().permissions().mode() & 0o777, 0o700);
    let names: Vec<_> = std::fs::read_dir(&out).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names.len(), 3, "configuration, tokenizer and weights: {names:?}");
    assert!(!generated(&["--model", &out]).is_empty());
    // A place that can't be made is told before anything is computed.
    let run = pagedraft(&["quantize", "--model", "builtin:draft", "--out", &scratch.path("no/such/place")]);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("the one above it has to exist"), "{run:?}");
    let gguf = scratch.write("model.gguf", b"GGUF");
    let run = pagedraft(&["quantize", "--model", &gguf, "--out", &scratch.path("of-gguf")]);
    assert_eq!(run.code, Some(2), "{run:?}");
    assert!(run.stderr.contains("is a GGUF file"), "{run:?}");
    assert!(!std::path::Path::new(&scratch.path("of-gguf")).exists());
}

#[test]
fn perplexity_in_8_bits_is_within_a_hundredth_of_the_plain_one_and_bad_texts_are_told() {
    let scratch = Scratch::new("perplexity");
    let out = scratch.path("out.json");
    let measure = |more: &[&str]| {
        let bench = ["bench", "perplexity", "--length", "128", "--pieces", "24", "--output-json", &out];
        let run = pagedraft(&[&bench[..], more].concat());
        (run.code, run.stderr.clone(), run)
    };
    let mut found = Vec::new();
    for quantization in ["none", "int8"] {
        let (_, _, run) = measure(&["--quantization", quantization]);
        assert!(text(&run).contains("perplexity"), "{run:?}");
        let json = scratch.json("out.json");
        assert_eq!(json["predicted_tokens"], json!(24 * 127));
        assert_eq!(json["quantization"], json!(quantization));
        found.push(json["perplexity"].as_f64().unwrap());
    }
    assert!((found[1] / found[0] - 1.0).abs() < 0.01 && found[0] != found[1], "{found:?}");
    // Pieces do not depend on what runs beside them.
    measure(&["--quantization", "int8", "--threads", "1", "--prefill-chunk", "33"]);
    assert_eq!(scratch.json("out.json")["perplexity"].as_f64(), Some(found[1]));
    let short = scratch.write("short.txt", b"Three words here");
    for (more, told) in [
        (&["--text", "no such text"][..], "no such text"),
        (&["--text", &short][..], "the text has only"),
        (&["--model", "builtin:llada"][..], "bench infill"),
    ] {
        let (code, stderr, _) = measure(more);
        assert_eq!(code, Some(2), "{stderr}");
        assert!(stderr.contains(told), "{stderr}");
    }
}
