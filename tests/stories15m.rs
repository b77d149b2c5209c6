//! A real model, stories15M: it tells stories, and the same one however it is run.

mod tiny_llama;

use std::ops::ControlFlow;

use codecllm::model::LogitsOf;
use codecllm::runtime::{GenerateOptions, Generation, Generator, LoadOptions, Prompt};
use tch::{Kind, Tensor};
use tiny_llama::downloaded;

const PROMPT: &str = "Once upon a time";

fn open(kind: Kind) -> Option<Generator> {
    let options = LoadOptions { kind, ..LoadOptions::default() };
    downloaded("stories15M").map(|dir| Generator::open(dir, &options).unwrap())
}

fn tell(generator: &Generator, prompts: &[&str], max_new_tokens: usize) -> Vec<Generation> {
    let prompts: Vec<_> = prompts.iter().map(|text| Prompt::Text((*text).to_owned())).collect();
    let options = GenerateOptions { max_new_tokens, ..GenerateOptions::default() };
    generator.generate(&prompts, &options, &mut |_| ControlFlow::Continue(())).unwrap()
}

#[test]
fn tells_a_story() {
    let Some(generator) = open(Kind::Float) else { return };
    assert_eq!(generator.encode(&Prompt::Text(PROMPT.to_owned())).unwrap(), [1, 9038, 2501, 263, 931]);
    let story = tell(&generator, &[PROMPT], 48).remove(0);
    let wanted = ", there was a little girl named Lily. She loved to play outside in the sunshine. One day, \
                  she saw a big, red ball in the sky. It was the sun! She thought it was so pretty.\n";
    assert_eq!(story.text, wanted);
    assert_eq!(story.token_ids[..11], [29892, 727, 471, 263, 2217, 7826, 4257, 365, 2354, 29889, 2296]);
}

#[test]
fn tells_the_same_story_in_every_dtype() {
    // As far as the dtypes can be expected to agree: BF16 has eight bits.
    for (kind, tokens) in [(Kind::Half, 32), (Kind::BFloat16, 8)] {
        let (Some(generator), Some(exact)) = (open(kind), open(Kind::Float)) else { return };
        let told = |generator| tell(generator, &[PROMPT], tokens).remove(0).token_ids;
        assert_eq!(told(&generator), told(&exact), "{kind:?}");
    }
}

#[test]
fn the_cache_changes_nothing() {
    let Some(generator) = open(Kind::Float) else { return };
    let prompt = generator.encode(&Prompt::Text(PROMPT.to_owned())).unwrap();
    let story = tell(&generator, &[PROMPT], 24).remove(0);
    let ids: Vec<i64> = prompt.iter().chain(&story.token_ids).map(|&id| i64::from(id)).collect();
    let llama = generator.model().llama();
    let row = |ids: &[i64]| Tensor::from_slice(ids).view([1, -1]);
    let mut cache = generator.model().new_cache(1, ids.len()).unwrap();
    let whole = llama.forward(&row(&ids), &mut cache, LogitsOf::All).unwrap();
    // One pass over prompt and story predicts, at each place, the token that decoding chose there.
    for (i, &id) in ids.iter().enumerate().skip(prompt.len()) {
        assert_eq!(whole.argmax(-1, false).int64_value(&[0, i as i64 - 1]), id, "token {i}");
    }
    let mut stepwise = generator.model().new_cache(1, ids.len()).unwrap();
    for (i, &id) in ids.iter().enumerate() {
        let logits = llama.forward(&row(&[id]), &mut stepwise, LogitsOf::Last).unwrap();
        let error = (logits - whole.narrow(1, i as i64, 1)).abs().max().double_value(&[]);
        assert!(error < 1e-3, "logits of token {i} differ by {error}");
    }
}

#[test]
fn stories_in_a_batch_are_the_stories_alone() {
    let Some(generator) = open(Kind::Float) else { return };
    let prompts = [PROMPT, "Tom had a", "The little dog was very sad because"];
    for (prompt, story) in prompts.iter().zip(tell(&generator, &prompts, 24)) {
        let alone = tell(&generator, &[prompt], 24).remove(0);
        assert_eq!((story.text, story.token_ids), (alone.text, alone.token_ids), "{prompt}");
    }
}

#[test]
fn a_prompt_longer_than_the_context_is_refused() {
    let Some(generator) = open(Kind::Float) else { return };
    let prompts = [Prompt::Text("and then ".repeat(200))];
    let error = generator
        .generate(&prompts, &GenerateOptions::default(), &mut |_| ControlFlow::Continue(()))
        .unwrap_err();
    assert!(error.to_string().contains("wanted at most 256, the context"), "{error}");
}
