//! Makes the bodies of requests, ahead of their time.

use hyper::body::Bytes;
use pagedraft_workloads::replay::PlannedRequest;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// Makes bodies.
#[derive(Clone)]
pub struct BodyMaker {
    /// The fields that all requests share.
    fields: Map<String, Value>,
    /// The fields that each request has of its own, and that a user may have taken out or replaced.
    ignores_eos: bool,
    max_tokens: bool,
}

#[derive(Serialize)]
#[serde(untagged)]
enum Prompt<'a> {
    Text(&'a str),
    Ids(&'a [u32]),
}

#[derive(Serialize)]
struct Body<'a> {
    prompt: Prompt<'a>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max_tokens: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ignore_eos: Option<bool>,
    #[serde(flatten)]
    fields: &'a Map<String, Value>,
}

impl BodyMaker {
    /// Bodies for `model`. `token_ids` asks for the ids of the output. `others` are fields that a user adds or, by a null, takes
    /// out.
    pub fn new(model: &str, token_ids: bool, others: &Map<String, Value>) -> Self {
        let mut fields = Map::new();
        fields.insert("model".to_owned(), json!(model));
        fields.insert("temperature".to_owned(), json!(0));
        fields.insert("stream".to_owned(), json!(true));
        fields.insert(
            "stream_options".to_owned(),
            json!({"include_usage": true, "continuous_usage_stats": true}),
        );
        if token_ids {
            fields.insert("return_token_ids".to_owned(), json!(true));
        }
        fields.extend(others.clone());
        fields.retain(|name, value| !value.is_null() && name != "prompt");
        let ours = |name: &str| !others.contains_key(name);
        Self { fields, ignores_eos: ours("ignore_eos"), max_tokens: ours("max_tokens") }
    }

    /// The fields that all requests share.
    pub fn fields(&self) -> &Map<String, Value> {
        &self.fields
    }

    /// The body of a request. A dataset's text is sent as it is, because a server has a tokenizer of its own.
    pub fn body(&self, request: &PlannedRequest) -> Bytes {
        let prompt = match &request.text {
            Some(text) => Prompt::Text(text),
            None => Prompt::Ids(&request.prompt),
        };
        let body = Body {
            prompt,
            max_tokens: self.max_tokens.then_some(request.max_tokens),
            ignore_eos: (self.ignores_eos && !request.until_stop).then_some(true),
            fields: &self.fields,
        };
        // Maps with text as keys, text and numbers are always written.
        Bytes::from(serde_json::to_vec(&body).unwrap_or_default())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(text: Option<&str>, until_stop: bool) -> PlannedRequest {
        PlannedRequest {
            index: 0,
            source_id: None,
            category: None,
            arrival_ns: None,
            prompt: vec![5, 6],
            text: text.map(str::to_owned),
            max_tokens: 7,
            until_stop,
            expect: None,
        }
    }

    fn body(maker: &BodyMaker, request: PlannedRequest) -> Value {
        serde_json::from_slice(&maker.body(&request)).unwrap()
    }

    #[test]
    fn text_is_sent_as_it_is_and_ids_where_there_is_none() {
        let maker = BodyMaker::new("m", false, &Map::new());
        let shared = json!({"model": "m", "max_tokens": 7, "temperature": 0, "stream": true,
            "stream_options": {"include_usage": true, "continuous_usage_stats": true}});
        let with = |more: Value| {
            let mut all = shared.clone();
            all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
            all
        };
        assert_eq!(body(&maker, request(Some("a\"b"), true)), with(json!({"prompt": "a\"b"})));
        assert_eq!(body(&maker, request(None, false)), with(json!({"prompt": [5, 6], "ignore_eos": true})));
    }

    #[test]
    fn a_user_adds_fields_and_takes_ours_out() {
        let others = json!({"ignore_eos": null, "max_tokens": 3, "temperature": 0.5, "top_k": 4, "stream_options": null});
        let maker = BodyMaker::new("m", true, others.as_object().unwrap());
        let expected = json!({"model": "m", "prompt": [5, 6], "max_tokens": 3, "temperature": 0.5, "top_k": 4,
            "stream": true, "return_token_ids": true});
        assert_eq!(body(&maker, request(None, false)), expected);
    }
}
