//! The engine with a scripted model: policy to the step, without libtorch.

mod ends;
mod failures;
mod places;
mod script;
mod threads;
mod tokens;

use std::sync::Arc;

use serde_json::json;
use tch::Device;

use self::script::{Call, Script, ScriptHandle};
use super::scheduler::Scheduler;
use super::{Answer, Engine, Event, ModelInfo, Refusal, Request, Setup, Usage};
use crate::model::LlamaConfig;
use crate::runtime::{GenerateOptions, Language, Prompt, PromptLimits, StopReason, Tokenizer};

/// Letters a to z are tokens 0 to 25; the script never chooses 26, the stop token, by itself.
const LETTERS: u32 = 26;
const STOP: u32 = 26;
const CONTEXT: usize = 64;

/// An engine whose turns a test takes one by one.
struct Fixture {
    engine: Engine,
    scheduler: Scheduler<Script>,
    script: ScriptHandle,
}

/// Room for `max_batch` answers, `max_queue` in the queue and `pages` pages of four tokens; prompts in pieces of four.
fn fixture(max_batch: usize, max_queue: usize, pages: usize) -> Fixture {
    let (model, script) = Script::new(pages, 4);
    let (engine, scheduler) = Engine::assemble(model, setup(max_batch, max_queue, pages * 4));
    Fixture { engine, scheduler, script }
}

fn setup(max_batch: usize, max_queue: usize, cache_tokens: usize) -> Setup {
    let config = json!({ "model_type": "llama", "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_key_value_heads": 1, "vocab_size": LETTERS + 1, "rms_norm_eps": 1e-5,
        "max_position_embeddings": CONTEXT });
    let config = LlamaConfig::from_json(&config.to_string(), "config.json").unwrap();
    Setup {
        language: Arc::new(Language { tokenizer: tokenizer(), chat: None, stop_tokens: vec![STOP] }),
        limits: PromptLimits::new(&config, CONTEXT),
        info: ModelInfo {
            context: CONTEXT,
            cache_tokens,
            vocab_size: config.vocab_size,
            chat_template: false,
            max_batch,
            max_queue,
            device: "cpu".to_owned(),
            dtype: "fp32".to_owned(),
        },
        prefill_tokens: 4,
        device: Device::Cpu,
        weight_bytes: 0,
        cache_bytes: 0,
    }
}

fn tokenizer() -> Tokenizer {
    let letters: std::collections::BTreeMap<String, u32> =
        (0..LETTERS).map(|i| (char::from(b'a' + i as u8).to_string(), i)).collect();
    let level =
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
    let special = json!({ "id": STOP, "content": "</s>", "single_word": false, "lstrip": false, "rstrip": false,
        "normalized": false, "special": true });
    let json = json!({ "version": "1.0", "added_tokens": [special], "pre_tokenizer": level, "decoder": level,
        "model": { "type": "BPE", "vocab": letters, "merges": [] } });
    Tokenizer::from_bytes(json.to_string().as_bytes(), "tokenizer.json").unwrap()
}

/// A greedy request for `max_new_tokens` tokens behind `prompt`.
fn request(prompt: &str, max_new_tokens: usize) -> Request {
    let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
    Request::new(Prompt::Text(prompt.to_owned()), options)
}

/// The token ids of a text of letters.
fn ids(text: &str) -> Vec<u32> {
    text.bytes().map(|letter| u32::from(letter - b'a')).collect()
}

/// What the script answers to `prompt` when it is alone: the definition, followed token by token.
fn alone(prompt: &str, tokens: usize) -> String {
    let mut all = ids(prompt);
    for _ in 0..tokens {
        all.push(script::next_token(&all));
    }
    all[prompt.len()..].iter().map(|&id| char::from(b'a' + id as u8)).collect()
}

impl Fixture {
    fn submit(&self, prompt: &str, max_new_tokens: usize) -> Answer {
        self.engine.submit(request(prompt, max_new_tokens)).unwrap()
    }

    fn turns(&mut self, count: usize) {
        (0..count).for_each(|_| self.scheduler.turn());
    }

    /// Takes turns until nothing runs or waits.
    fn finish(&mut self) {
        for _ in 0..1000 {
            let stats = self.engine.stats();
            if stats.running + stats.waiting == 0 {
                return;
            }
            self.scheduler.turn();
        }
        panic!("still not done: {:?}", self.engine.stats());
    }

    fn free_pages(&self) -> usize {
        self.engine.stats().pages_free
    }
}

/// How an answer went, as far as it has come.
#[derive(Debug, Default)]
struct Heard {
    prompt_tokens: Option<usize>,
    ids: Vec<u32>,
    text: String,
    logprobs: Vec<super::TokenLogprobs>,
    ended: Option<(StopReason, Usage)>,
    failed: Option<crate::Error>,
}

/// Takes all events that are there.
fn hear(answer: &mut Answer) -> Heard {
    let mut heard = Heard::default();
    while let Some(event) = answer.try_next() {
        assert!(heard.ended.is_none() && heard.failed.is_none(), "an event behind the last");
        match event {
            Event::Started { prompt_tokens } => heard.prompt_tokens = Some(prompt_tokens),
            Event::Token { id, text, logprobs } => {
                heard.ids.push(id);
                heard.text.push_str(&text);
                heard.logprobs.extend(logprobs);
            }
            Event::Ended { reason, text, usage } => {
                heard.text.push_str(&text);
                heard.ended = Some((reason, usage));
            }
            Event::Failed(error) => heard.failed = Some(error),
        }
    }
    heard
}

/// The reason for which an answer ended.
fn reason(answer: &mut Answer) -> StopReason {
    hear(answer).ended.expect("the answer has not ended").0
}
