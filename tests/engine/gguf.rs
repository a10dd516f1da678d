//! Models in GGUF files: the tokens are those of the directory that a file was made of, and a real file speaks.

use std::path::{Path, PathBuf};

use half::f16;
use pagedraft::model::checkpoint::Checkpoint;
use pagedraft::model::{ActivationType, Dtype, Quantization};
use pagedraft::serve::{Asked, ChatTemplate};
use pagedraft::session::{
    DraftLength, DraftRef, EngineOptions, LoadFormat, ModelRef, Request, RequestOutput, Session,
    SpeculationOptions, open_checkpoint, tokenizer,
};
use pagedraft::spec_decode::sampling::SamplingParams;
use serde_json::Value as Json;

use crate::gguf_writer::{F32, Q4_0, Q4_1, Q8_0, Value, Writer, interleave, name_of};
use crate::models::{deep, directory, small};
use crate::schedule::{alone, every_schedule};

/// A file with the weights of a checkpoint in F32, as llama.cpp's converter would write it.
fn written(checkpoint: &Checkpoint) -> Writer {
    let config = checkpoint.config();
    let arch = config.architecture.model_type();
    let mut writer = Writer::new();
    writer.set("general.architecture", arch);
    for (key, value) in [
        ("block_count", config.num_layers),
        ("context_length", config.max_position_embeddings),
        ("embedding_length", config.hidden_size),
        ("feed_forward_length", config.intermediate_size),
        ("attention.head_count", config.num_heads),
        ("attention.head_count_kv", config.num_kv_heads),
        ("attention.key_length", config.head_dim),
        ("attention.value_length", config.head_dim),
    ] {
        writer.set(&format!("{arch}.{key}"), value as u32);
    }
    writer.set(&format!("{arch}.attention.layer_norm_rms_epsilon"), config.rms_norm_eps);
    writer.set(&format!("{arch}.rope.freq_base"), config.rope.theta as f32);
    if let Some(&end) = config.eos_token_ids.first() {
        writer.set("tokenizer.ggml.eos_token_id", end);
    }
    for (name, shape) in config.tensors() {
        let values = checkpoint.tensor(&name, &shape).unwrap().to_vec_f32().unwrap();
        let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
        let turned = arch == "llama" && (name.contains("q_proj") || name.contains("k_proj"));
        let bytes = match turned {
            true => interleave(&bytes, bytes.len() / shape[0], config.head_dim),
            false => bytes,
        };
        writer.tensor(&name_of(&name), &shape, F32, bytes);
    }
    writer
}

/// Adds a byte-level tokenizer with GPT-2's words, given as its `tokenizer.json`.
fn add_tokenizer(writer: &mut Writer, json: &Json) {
    let vocab = json["model"]["vocab"].as_object().unwrap();
    let mut tokens = vec![String::new(); vocab.len()];
    for (text, id) in vocab {
        tokens[id.as_u64().unwrap() as usize] = text.clone();
    }
    let mut kinds = vec![1; tokens.len()];
    for added in json["added_tokens"].as_array().unwrap() {
        kinds[added["id"].as_u64().unwrap() as usize] = 3;
    }
    let merge = |merge: &Json| match merge {
        Json::String(text) => text.clone(),
        pair => format!("{} {}", pair[0].as_str().unwrap(), pair[1].as_str().unwrap()),
    };
    let merges: Vec<String> = json["model"]["merges"].as_array().unwrap().iter().map(merge).collect();
    writer.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", "gpt-2");
    writer.set("tokenizer.ggml.tokens", &tokens[..]).set("tokenizer.ggml.token_type", Value::I32s(kinds));
    writer.set("tokenizer.ggml.merges", &merges[..]);
}

fn file(name: &str, writer: &Writer) -> ModelRef {
    let file = directory(name).join("model.gguf");
    std::fs::write(&file, writer.bytes()).unwrap();
    ModelRef::Directory(file)
}

fn options(model: ModelRef) -> EngineOptions {
    EngineOptions {
        num_blocks: Some(256),
        max_model_len: Some(512),
        dtype: Some(Dtype::F32),
        ..EngineOptions::new(model)
    }
}

/// What requests give: greedy ones and drawn ones, with log probabilities.
fn outputs(options: &EngineOptions) -> Vec<Json> {
    let mut session = Session::open(options).unwrap();
    let prompts = [vec![5, 9, 17, 30, 2, 250], (20..90).collect::<Vec<u32>>()];
    let requests = prompts.into_iter().flat_map(|prompt| {
        let drawn = SamplingParams { temperature: 0.9, seed: 3, ..SamplingParams::default() };
        [SamplingParams::greedy(), drawn].map(|sampling| Request {
            ignore_eos: true,
            sampling: SamplingParams { logprobs: Some(3), ..sampling },
            ..Request::new("", prompt.clone(), 24)
        })
    });
    let requests: Vec<Request> = requests.collect();
    run(&mut session, requests).iter().map(|output| serde_json::to_value(output).unwrap()).collect()
}

fn run(session: &mut Session, requests: Vec<Request>) -> Vec<RequestOutput> {
    let ids: Vec<_> = requests.into_iter().flat_map(|request| session.submit(request).unwrap()).collect();
    while session.has_unfinished() {
        session.step().unwrap();
    }
    ids.into_iter().map(|id| session.take_output(id).unwrap()).collect()
}

#[test]
fn a_file_gives_the_tokens_and_texts_of_the_model_that_it_was_made_of() {
    let plain = ModelRef::Builtin("target".into());
    let mut writer = written(&open_checkpoint(&plain).unwrap());
    let json = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/target/tokenizer.json");
    add_tokenizer(&mut writer, &serde_json::from_slice(&std::fs::read(json).unwrap()).unwrap());
    let file = file("gguf-target", &writer);
    assert_eq!(outputs(&options(file.clone())), outputs(&options(plain.clone())));
    let (ours, theirs) = (tokenizer(&file).unwrap().unwrap(), tokenizer(&plain).unwrap().unwrap());
    assert!(ours.same_vocabulary(&theirs));
    for text in ["The king said to the", "  'Tis 1234 years,\n\nsince<|eos|> naïve — 日本", "", "\t \n"]
    {
        let ids = ours.encode(text, true).unwrap();
        assert_eq!(ids, theirs.encode(text, true).unwrap(), "{text}");
        assert_eq!(ours.decode(&ids, false).unwrap(), text);
    }
}

#[test]
fn files_of_every_architecture_give_the_tokens_of_their_directories() {
    for architecture in ["Llama", "Qwen2", "Qwen3"] {
        let dir = small(&format!("gguf-of-{architecture}"), architecture);
        let drawn = EngineOptions { load_format: LoadFormat::Dummy, seed: 7, ..options(dir.clone()) };
        let ModelRef::Directory(path) = &dir else { unreachable!("it lies in a directory") };
        let writer = written(&Checkpoint::open_dummy(path, 7).unwrap());
        let file = file(&format!("gguf-{architecture}"), &writer);
        let read = EngineOptions { seed: 7, ..options(file) };
        assert_eq!(outputs(&read), outputs(&drawn), "{architecture}");
    }
}

/// Values in blocks of 32, as the type stores them.
fn blocks(kind: u32, values: &[f32]) -> Vec<u8> {
    let half = |x: f32| f16::from_f32(x).to_le_bytes();
    let (low, high) = values.split_at(16);
    let nibbles = |scale: f32, least: f32| -> Vec<u8> {
        let of =
            |x: &f32| if scale == 0.0 { 0 } else { ((x - least) / scale).round().clamp(0.0, 15.0) as u8 };
        low.iter().zip(high).map(|(low, high)| of(low) | of(high) << 4).collect()
    };
    let (least, most) = values.iter().fold((0.0f32, 0.0f32), |(least, most), &x| (least.min(x), most.max(x)));
    let mut out = Vec::new();
    match kind {
        Q8_0 => {
            let scale = most.max(-least) / 127.0;
            out.extend(half(scale));
            out.extend(
                values.iter().map(|x| (x / scale.max(1e-30)).round().clamp(-127.0, 127.0) as i8 as u8),
            );
        }
        Q4_0 => {
            let scale = most.max(-least) / 7.0;
            out.extend(half(scale));
            out.extend(nibbles(scale, -8.0 * scale));
        }
        _ => {
            let scale = (most - least) / 15.0;
            out.extend(half(scale));
            out.extend(half(least));
            out.extend(nibbles(scale, least));
        }
    }
    out
}

#[test]
fn weights_of_8_and_4_bits_are_multiplied_as_they_are_stored_under_every_schedule() {
    let dir = deep("gguf-of-few-bits", 3);
    let ModelRef::Directory(path) = &dir else { unreachable!("it lies in a directory") };
    let mut writer = written(&Checkpoint::open_dummy(path, 7).unwrap());
    // The parts of a stack are stored in types of their own, and some in plain numbers.
    let mut kinds = [Q8_0, Q4_0, Q4_1, F32, Q4_1].into_iter().cycle();
    for tensor in writer.tensors.iter_mut().filter(|tensor| tensor.sizes.len() == 2) {
        let kind = kinds.next().unwrap();
        if kind != F32 {
            let values: Vec<f32> =
                tensor.bytes.as_chunks::<4>().0.iter().map(|four| f32::from_le_bytes(*four)).collect();
            tensor.bytes = values.chunks_exact(32).flat_map(|values| blocks(kind, values)).collect();
            tensor.kind = kind;
        }
    }
    let file = file("gguf-few-bits", &writer);
    let base = options(file);
    assert_eq!(Session::open(&base).unwrap().info().quantization, Quantization::Gguf(ActivationType::Int8));
    // With activations in f32 these are the products of the dequantised weights, to the bit.
    let in_f32 = EngineOptions { activations: Some(ActivationType::F32), ..base.clone() };
    let widened = EngineOptions { quantization: Some(Quantization::None), ..base.clone() };
    assert_eq!(outputs(&in_f32), outputs(&widened));
    assert_ne!(outputs(&base), outputs(&widened), "activations in 8 bits change log probabilities");
    let requests = crate::requests::requests(31, 8, 300, 100);
    let base = EngineOptions { dtype: Some(Dtype::Bf16), max_num_batched_tokens: 512, ..base };
    every_schedule("a file of few bits", &base, 14, &requests, &alone(&base, &requests)).check();
}

#[test]
fn a_file_is_not_quantised_once_more() {
    let ModelRef::Directory(dir) = small("gguf-to-quantise", "Llama") else {
        unreachable!("it lies in a directory")
    };
    let file = file("gguf-quantise", &written(&Checkpoint::open_dummy(&dir, 7).unwrap()));
    let error = pagedraft::engine::quantize::quantize(&file, &directory("gguf-quantised")).unwrap_err();
    assert!(error.to_string().contains("is a GGUF file"), "{error}");
}

#[test]
fn a_file_may_draft_for_a_file() {
    let made = |name: &str| {
        let plain = ModelRef::Builtin(name.into());
        file(&format!("gguf-draft-{name}"), &written(&open_checkpoint(&plain).unwrap()))
    };
    let target = options(made("target"));
    let speculation = SpeculationOptions {
        draft: Some(DraftRef::Model(made("draft"))),
        length: DraftLength::Fixed(4),
        ..SpeculationOptions::default()
    };
    let drafted = outputs(&EngineOptions { speculation, ..target.clone() });
    assert!(drafted.iter().any(|output| output["num_accepted"] != 0));
    let tokens =
        |outputs: Vec<Json>| outputs.iter().map(|output| output["token_ids"].clone()).collect::<Vec<_>>();
    assert_eq!(tokens(drafted), tokens(outputs(&target)));
}

#[test]
fn chats_are_made_prompts_by_the_template_that_the_file_carries() {
    let ModelRef::Directory(dir) = small("gguf-chat", "Llama") else {
        unreachable!("it lies in a directory")
    };
    let mut writer = written(&Checkpoint::open_dummy(&dir, 7).unwrap());
    writer.set("tokenizer.ggml.model", "gpt2").set("tokenizer.ggml.pre", "gpt-2");
    writer.set("tokenizer.ggml.tokens", &["<s>", "</s>", "a"][..]).set("tokenizer.ggml.merges", &[""; 0][..]);
    writer.set("tokenizer.ggml.bos_token_id", 0).set("tokenizer.ggml.eos_token_id", 1);
    let path = directory("gguf-chat-file").join("model.gguf");
    let template = |writer: &Writer, file: Option<&Path>| {
        std::fs::write(&path, writer.bytes()).unwrap();
        ChatTemplate::of_gguf(&path, file)
    };
    assert!(template(&writer, None).unwrap().is_none());
    let source =
        "{{ bos_token }}{% for m in messages %}{{ m.role }}: {{ m.content }}{{ eos_token }}{% endfor %}";
    writer.set("tokenizer.chat_template", source);
    let message = serde_json::json!({"role": "user", "content": "Hi"}).as_object().unwrap().clone();
    let messages = [message];
    let asked = Asked { messages: &messages, add_generation_prompt: true, variables: None };
    let made = template(&writer, None).unwrap().unwrap();
    assert_eq!(made.render(asked).unwrap(), "<s>user: Hi</s>");
    // One that is given goes before the file's own.
    let given = path.with_file_name("given.jinja");
    std::fs::write(&given, "{{ eos_token }}!").unwrap();
    let made = template(&writer, Some(&given)).unwrap().unwrap();
    assert_eq!(made.render(asked).unwrap(), "</s>!");
    writer.set("tokenizer.chat_template", "{% for %}");
    assert!(template(&writer, None).unwrap_err().to_string().contains("does not compile"));
}

/// The real file, where it was fetched.
fn smollm2() -> Option<ModelRef> {
    let name = "target/smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
    let path: PathBuf = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
    if !path.exists() {
        println!("skipped: {} is not there (scripts/fetch_smollm2.sh fetches it)", path.display());
        return None;
    }
    Some(ModelRef::Directory(path))
}

#[test]
fn smollm2_speaks_and_its_tokens_are_those_of_llama_cpp() {
    let Some(model) = smollm2() else { return };
    let own = tokenizer(&model).unwrap().unwrap();
    // As llama.cpp's server tokenizes them.
    for (text, expected) in [
        ("The capital of France is", &[504, 3575, 282, 4649, 314][..]),
        ("Hello world! 123", &[19556, 905, 17, 216, 33, 34, 35]),
        ("Café déjà vu.", &[51, 1939, 2756, 32564, 90, 16739, 386, 101, 30]),
        ("  multiple   spaces", &[216, 2701, 256, 5600]),
        ("I've they'll WE'RE don't", &[57, 3543, 502, 3060, 26587, 23, 3256, 1326, 982]),
        ("<|im_start|>user\nHi<|im_end|>\n", &[1, 4093, 198, 26843, 2, 198]),
    ] {
        assert_eq!(own.encode(text, true).unwrap(), expected, "{text}");
        assert_eq!(own.decode(expected, false).unwrap(), text);
    }
    // With activations in 8 bits the text is another one, and as sensible.
    let mut session = Session::open(&options(model.clone())).unwrap();
    let prompt = own.encode("The capital of France is", true).unwrap();
    let request = Request { sampling: SamplingParams::greedy(), ..Request::new("", prompt.clone(), 8) };
    let output = serde_json::to_value(run(&mut session, vec![request]).remove(0)).unwrap();
    assert!(output["text"].as_str().unwrap().starts_with(" Paris."), "{output}");
    let in_f32 = EngineOptions { activations: Some(ActivationType::F32), ..options(model) };
    let mut session = Session::open(&in_f32).unwrap();
    let sampling = SamplingParams { logprobs: Some(1), ..SamplingParams::greedy() };
    let request = Request { sampling, ..Request::new("", prompt, 8) };
    let output = serde_json::to_value(run(&mut session, vec![request]).remove(0)).unwrap();
    // The tokens of a forward pass in numpy over weights that ggml's Python package dequantised, and the first log probability.
    assert_eq!(output["token_ids"], serde_json::json!([7042, 30, 198, 198, 504, 2988, 314, 42]));
    assert!(output["text"].as_str().unwrap().starts_with(" Paris."), "{output}");
    let logprob = output["logprobs"][0][0]["logprob"].as_f64().unwrap();
    assert!((logprob + 0.2581).abs() < 1e-3, "{logprob}");
}
