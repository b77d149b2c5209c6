//! `tokenizer.json`, `tokenizer_config.json` with its chat template, and a text, from a stranger.
//!
//! The input is the three, with a byte 0 between them.

use std::path::Path;

use codecllm::runtime::{ChatTemplate, Message, TextStream, Tokenizer};

pub fn run(data: &[u8]) {
    let mut parts = data.splitn(3, |&byte| byte == 0);
    let mut next = || parts.next().unwrap_or_default();
    let (tokenizer, config) = (next(), next());
    let text = String::from_utf8_lossy(next());
    if let Ok(tokenizer) = Tokenizer::from_bytes(tokenizer, "tokenizer.json") {
        read_and_write(&tokenizer, &text);
    }
    let Ok(config) = std::str::from_utf8(config) else { return };
    if let Ok(Some(template)) = ChatTemplate::from_json(config, "tokenizer_config.json") {
        let _ = template.render(&[Message::new("user", &*text), Message::new("assistant", "b")], true);
    }
}

fn read_and_write(tokenizer: &Tokenizer, text: &str) {
    let Ok(ids) = tokenizer.encode(text, true) else { return };
    let _ = tokenizer.decode(&ids);
    let Ok(mut stream) = TextStream::after(tokenizer, &ids) else { return };
    for id in ids.iter().copied().chain([0, u32::MAX]) {
        if stream.push(id).is_err() {
            return;
        }
    }
    let _ = stream.finish();
}

#[allow(dead_code, reason = "libFuzzer reads its seeds from a folder")]
pub fn seeds(_root: &Path) -> Vec<Vec<u8>> {
    let tokenizer = r#"{"version":"1.0","added_tokens":[{"id":4,"content":"<s>","single_word":false,"lstrip":false,"rstrip":false,
        "normalized":false,"special":true}],"pre_tokenizer":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,
        "use_regex":true},"decoder":{"type":"ByteLevel","add_prefix_space":false,"trim_offsets":true,"use_regex":true},
        "model":{"type":"BPE","vocab":{"a":0,"b":1,"Ġ":2,"ab":3},"merges":[["a","b"]]}}"#;
    let template = |source: &str| format!(r#"{{"bos_token":"<s>","chat_template":"{source}"}}"#);
    let plain = "{% for m in messages %}{{ m.role }}: {{ m.content | trim }}{% endfor %}";
    let set = "{% set ns = namespace(n=0) %}{% for m in messages %}{% if m.role == 'user' %}{% set ns.n = ns.n + 1 %}{% endif %}\
        {% endfor %}{{ bos_token + ns.n | string }}{{ messages[0] | tojson }}{{ strftime_now('%Y') }}";
    [plain, set]
        .map(|source| [tokenizer.as_bytes(), template(source).as_bytes(), "a b ab".as_bytes()].join(&0))
        .into()
}
