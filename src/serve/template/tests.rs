use serde_json::{Value, json};

use super::*;

fn template(source: &str) -> ChatTemplate {
    let config =
        json!({"bos_token": "<s>", "eos_token": {"content": "</s>", "lstrip": false}, "pad_token": null});
    ChatTemplate::new(source, special_tokens(&config)).unwrap()
}

fn messages(json: &Value) -> Vec<Message> {
    json.as_array().unwrap().iter().map(|message| message.as_object().unwrap().clone()).collect()
}

fn render(template: &ChatTemplate, messages: &[Message], variables: Value) -> Result<String, String> {
    template.render(Asked { messages, add_generation_prompt: true, variables: variables.as_object() })
}

#[test]
fn prompts_are_those_of_jinja2() {
    // Written by Jinja2 3.1.6, set up as `transformers` does it.
    let cases: Value = serde_json::from_str(include_str!("golden.json")).unwrap();
    for case in cases.as_array().unwrap() {
        let template = template(case["template"].as_str().unwrap());
        let found = render(&template, &messages(&case["messages"]), json!({"enable_thinking": false}));
        assert_eq!(found.unwrap(), case["prompt"].as_str().unwrap(), "{}", case["name"]);
    }
}

#[test]
fn what_a_template_raises_is_told_as_it_stands() {
    let cases: Value = serde_json::from_str(include_str!("golden.json")).unwrap();
    let alternating = cases.as_array().unwrap().iter().find(|case| case["name"] == "alternating").unwrap();
    let twice = messages(&json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]));
    let error = render(&template(alternating["template"].as_str().unwrap()), &twice, json!({})).unwrap_err();
    assert_eq!(error, "Roles must alternate: user");
}

#[test]
fn marks_of_what_an_assistant_said_change_nothing() {
    let marked = template(
        "{% for m in messages %}{%- generation -%}\n{{ m.content }}\n{%- endgeneration %}{% endfor %}",
    );
    let chat = messages(&json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b"}]));
    assert_eq!(render(&marked, &chat, json!({})).unwrap(), "ab");
}

#[test]
fn a_template_knows_the_date() {
    let dated = template("{{ strftime_now('%Y-%m-%d') }}");
    let date = render(&dated, &[], json!({})).unwrap();
    let parts: Vec<i64> = date.split('-').map(|part| part.parse().unwrap()).collect();
    assert!(parts[0] > 2025 && (1..=12).contains(&parts[1]) && (1..=31).contains(&parts[2]), "{date}");
}

#[test]
fn variables_of_a_client_never_stand_for_messages_or_special_tokens() {
    let all = template("{{ bos_token }}{{ messages | length }}{{ mine }}");
    let variables = json!({"bos_token": "x", "messages": [1, 2, 3], "mine": "y"});
    assert_eq!(render(&all, &[], variables).unwrap(), "<s>0y");
}

#[test]
fn the_default_of_several_templates_is_taken_and_a_file_goes_before_the_configuration() {
    let dir = std::env::temp_dir().join(format!("pagedraft-template-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let write = |name: &str, text: &str| std::fs::write(dir.join(name), text).unwrap();
    let told = || {
        ChatTemplate::of_directory(&dir, None).map(|found| found.map(|t| render(&t, &[], json!({})).unwrap()))
    };
    assert_eq!(told().unwrap(), None);
    write("tokenizer_config.json", r#"{"chat_template": null}"#);
    assert_eq!(told().unwrap(), None);
    write(
        "tokenizer_config.json",
        r#"{"chat_template": [{"name": "rag", "template": "r"}, {"name": "default", "template": "d"}]}"#,
    );
    assert_eq!(told().unwrap().as_deref(), Some("d"));
    write("tokenizer_config.json", r#"{"chat_template": [{"name": "rag", "template": "r"}]}"#);
    assert!(told().unwrap_err().to_string().contains("tokenizer_config.json"));
    write("tokenizer_config.json", r#"{"chat_template": "{% for %}"}"#);
    assert!(told().unwrap_err().to_string().contains("does not compile"));
    write("chat_template.jinja", "f");
    assert_eq!(told().unwrap().as_deref(), Some("f"));
    std::fs::remove_dir_all(&dir).unwrap();
}
