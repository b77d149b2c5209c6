//! What requests may say, what they may not, and how errors name it.

use serde_json::{json, Value};

use super::*;
use crate::runtime::{Message, Prompt};

fn chat(change: impl FnOnce(&mut Value)) -> Result<ChatRequest, ApiError> {
    let mut body = json!({ "model": "m", "messages": [{ "role": "user", "content": "Hi" }] });
    change(&mut body);
    ChatRequest::parse(body.to_string().as_bytes())
}

fn completion(change: impl FnOnce(&mut Value)) -> Result<CompletionRequest, ApiError> {
    let mut body = json!({ "model": "m", "prompt": "Once" });
    change(&mut body);
    CompletionRequest::parse(body.to_string().as_bytes())
}

fn param_of(error: &ApiError) -> String {
    assert_eq!(error.status(), 400);
    json!(error.object())["error"]["param"].as_str().unwrap_or_default().to_owned()
}

#[test]
fn the_defaults_are_those_of_openai() {
    let request = chat(|_| {}).unwrap();
    assert_eq!(request.messages, [Message::new("user", "Hi")]);
    let Parameters { sampling, stop_strings, max_new_tokens, choices, stream, include_usage } =
        request.parameters;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (1.0, None, None));
    assert_eq!(
        (stop_strings.len(), max_new_tokens, choices, stream, include_usage),
        (0, None, 1, false, false)
    );
    let request = completion(|_| {}).unwrap();
    assert_eq!((request.parameters.max_new_tokens, request.logprobs), (Some(16), None));
    // Without a seed, another one each time.
    assert_ne!(chat(|_| {}).unwrap().parameters.sampling.seed, sampling.seed);
}

#[test]
fn what_a_chat_asks_for_is_what_it_gets() {
    let request = chat(|body| {
        body["messages"] = json!([
            { "role": "developer", "content": [{ "type": "text", "text": "Be " }, { "type": "text", "text": "brief" }] },
            { "role": "assistant", "content": "", "refusal": null, "tool_calls": null, "annotations": [] },
        ]);
        body["temperature"] = json!(0);
        body["top_p"] = json!(0.5);
        body["top_k"] = json!(7);
        body["seed"] = json!(-1);
        body["stop"] = json!("END");
        body["max_completion_tokens"] = json!(9);
        body["n"] = json!(3);
        body["stream"] = json!(true);
        body["stream_options"] = json!({ "include_usage": true });
        body["logprobs"] = json!(true);
        body["top_logprobs"] = json!(4);
        body["user"] = json!("me");
        body["metadata"] = json!({ "a": "b" });
        body["store"] = json!(false);
        body["frequency_penalty"] = json!(0);
        body["response_format"] = json!({ "type": "text" });
        body["tools"] = Value::Null;
    });
    let request = request.unwrap();
    assert_eq!(request.messages, [Message::new("system", "Be brief"), Message::new("assistant", "")]);
    let Parameters { sampling, stop_strings, max_new_tokens, choices, stream, include_usage } =
        request.parameters;
    assert_eq!((sampling.temperature, sampling.top_p, sampling.top_k), (0.0, Some(0.5), Some(7)));
    assert_eq!((sampling.seed, stop_strings, max_new_tokens), (u64::MAX, vec!["END".to_owned()], Some(9)));
    assert_eq!((choices, stream, include_usage, request.logprobs), (3, true, true, Some(4)));
}

#[test]
fn prompts_come_as_text_or_tokens_one_or_several() {
    let text = |text: &str| Prompt::Text(text.to_owned());
    for (prompt, wanted) in [
        (json!("a"), vec![text("a")]),
        (json!(["a", "b"]), vec![text("a"), text("b")]),
        (json!([1, 2]), vec![Prompt::Tokens(vec![1, 2])]),
        (json!([[1, 2], [3]]), vec![Prompt::Tokens(vec![1, 2]), Prompt::Tokens(vec![3])]),
    ] {
        assert_eq!(completion(|body| body["prompt"] = prompt).unwrap().prompts, wanted);
    }
    for prompt in
        [json!(null), json!(1), json!({}), json!([]), json!([1, "a"]), json!(["a", true]), json!([[-1]])]
    {
        let error = completion(|body| body["prompt"] = prompt.clone()).unwrap_err();
        assert_eq!(param_of(&error), "prompt", "{prompt}");
    }
}

#[test]
fn a_parameter_out_of_range_or_not_done_here_is_named() {
    for (param, value) in [
        ("temperature", json!(-0.1)),
        ("temperature", json!("hot")),
        ("top_p", json!(1.5)),
        ("top_k", json!(0)),
        ("seed", json!(1.5)),
        ("stop", json!(vec!["a"; 17])),
        ("stop", json!("")),
        ("stop", json!([1])),
        ("stop", json!("x".repeat(513))),
        ("max_tokens", json!(0)),
        ("n", json!(0)),
        ("n", json!(129)),
        ("stream", json!("yes")),
        ("stream_options", json!({ "include_usage": true })),
        ("frequency_penalty", json!(0.5)),
        ("presence_penalty", json!(-1)),
        ("logit_bias", json!({ "5": 1 })),
        ("model", json!(7)),
        ("frobnicate", json!(1)),
    ] {
        let set = |body: &mut Value| body[param] = value.clone();
        assert_eq!(param_of(&chat(set).unwrap_err()), param, "{value}");
        assert_eq!(param_of(&completion(set).unwrap_err()), param, "{value}");
    }
    for (param, value) in [
        ("tools", json!([{ "type": "function" }])),
        ("tool_choice", json!("required")),
        ("functions", json!([{}])),
        ("response_format", json!({ "type": "json_object" })),
        ("modalities", json!(["audio"])),
        ("reasoning_effort", json!("low")),
        ("top_logprobs", json!(3)),
        ("logprobs", json!(3)),
        ("messages", json!([])),
        ("messages", json!("Hi")),
    ] {
        assert_eq!(param_of(&chat(|body| body[param] = value.clone()).unwrap_err()), param, "{value}");
    }
    for (param, value) in [
        ("best_of", json!(2)),
        ("echo", json!(true)),
        ("suffix", json!("end")),
        ("logprobs", json!(6)),
        ("logprobs", json!(true)),
    ] {
        assert_eq!(param_of(&completion(|body| body[param] = value.clone()).unwrap_err()), param, "{value}");
    }
    let both = |body: &mut Value| {
        body["max_tokens"] = json!(3);
        body["max_completion_tokens"] = json!(4);
    };
    assert_eq!(param_of(&chat(both).unwrap_err()), "max_completion_tokens");
}

#[test]
fn the_place_of_a_message_that_is_wrong_is_named() {
    for (message, param) in [
        (json!("Hi"), "messages[1]"),
        (json!({ "content": "Hi" }), "messages[1].role"),
        (json!({ "role": "tool", "content": "Hi" }), "messages[1].role"),
        (json!({ "role": "user" }), "messages[1].content"),
        (json!({ "role": "user", "content": 5 }), "messages[1].content"),
        (json!({ "role": "user", "content": [{ "type": "image_url" }] }), "messages[1].content[0].type"),
        (
            json!({ "role": "user", "content": [{ "type": "text", "text": 5 }] }),
            "messages[1].content[0].text",
        ),
        (json!({ "role": "user", "content": "Hi", "name": "Ann" }), "messages[1].name"),
        (json!({ "role": "assistant", "content": "Hi", "tool_calls": [{}] }), "messages[1].tool_calls"),
    ] {
        let add = |body: &mut Value| body["messages"].as_array_mut().unwrap().push(message.clone());
        assert_eq!(param_of(&chat(add).unwrap_err()), param, "{message}");
    }
}

#[test]
fn what_is_no_json_object_is_refused_in_few_words() {
    let deep = "[".repeat(100_000);
    let strange = format!("{{\"model\": \"m\", \"prompt\": \"a\", \"{}\": 1}}", "x".repeat(100_000));
    for body in [
        &b""[..],
        b"{",
        b"[]",
        b"5",
        b"\xff\xfe",
        b"{\"prompt\": \"\xc3\"}",
        deep.as_bytes(),
        strange.as_bytes(),
    ] {
        let error = CompletionRequest::parse(body).unwrap_err();
        assert_eq!(error.status(), 400);
        assert!(json!(error.object()).to_string().len() < 300, "{error:?}");
    }
}

#[test]
fn logprobs_are_numbers_whatever_they_were() {
    let likely = |bytes: &[u8], logprob| Likely { bytes: bytes.to_vec(), logprob };
    let token = Token {
        chosen: likely(b"\xe2", -0.5),
        top: vec![likely("é".as_bytes(), -0.25), likely(b"x", f32::NEG_INFINITY)],
    };
    let chat = logprobs::chat(std::slice::from_ref(&token));
    assert_eq!(
        chat["content"][0],
        json!({ "token": "\u{FFFD}", "logprob": -0.5, "bytes": [0xe2], "top_logprobs": [
            { "token": "é", "logprob": -0.25, "bytes": [0xc3, 0xa9] },
            { "token": "x", "logprob": -9999.0, "bytes": [0x78] },
        ] })
    );
    let completion = logprobs::completion(&[token], &[3]);
    assert_eq!(
        completion,
        json!({ "tokens": ["bytes:\\xe2"], "token_logprobs": [-0.5], "text_offset": [3],
            "top_logprobs": [{ "é": -0.25, "x": -9999.0, "bytes:\\xe2": -0.5 }] })
    );
}
