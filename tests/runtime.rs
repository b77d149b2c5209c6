//! Tokens, chat templates, sampling, stopping and generation, on a tiny model with random weights.

mod tiny_llama;

use std::collections::BTreeMap;
use std::ops::ControlFlow;

use codecllm::runtime::{
    peak_rss_bytes, rss_bytes, stop_tokens, ChatTemplate, GenerateOptions, Generation, Generator,
    LoadOptions, Message, Model, Prompt, Sampler, SamplerOptions, StopReason, StopStrings, TextStream,
    Tokenizer,
};
use codecllm::ErrorKind;
use proptest::prelude::*;
use serde_json::{json, Value};
use tch::Kind;
use tiny_llama::{byte_tokenizer_json, plain_config, shapes, TinyLlama};

fn byte_tokenizer() -> Tokenizer {
    Tokenizer::from_bytes(byte_tokenizer_json().as_bytes(), "tokenizer.json").unwrap()
}

/// A tokenizer in the manner of Llama 2: words with a leading space, bytes as a fallback, first space stripped.
fn word_tokenizer() -> Tokenizer {
    let mut vocab: BTreeMap<String, u32> = (0..256u32).map(|b| (format!("<0x{b:02X}>"), b)).collect();
    vocab.extend(
        [("▁", 256), ("▁one", 257), ("▁two", 258), ("x", 259), ("<s>", 260)].map(|(t, i)| (t.to_owned(), i)),
    );
    let json = json!({
        "version": "1.0", "added_tokens": [{ "id": 260, "content": "<s>", "single_word": false,
            "lstrip": false, "rstrip": false, "normalized": false, "special": true }],
        "decoder": { "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " },
            { "type": "ByteFallback" }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 } ] },
        "model": { "type": "BPE", "vocab": vocab, "merges": [], "byte_fallback": true },
    });
    Tokenizer::from_bytes(json.to_string().as_bytes(), "tokenizer.json").unwrap()
}

/// All pieces that a stream behind `prompt` gives for `ids`.
fn streamed(tokenizer: &Tokenizer, prompt: &[u32], ids: &[u32]) -> Vec<String> {
    let mut stream = TextStream::after(tokenizer, prompt).unwrap();
    let mut pieces: Vec<String> = ids.iter().map(|&id| stream.push(id).unwrap()).collect();
    pieces.push(stream.finish().unwrap());
    pieces
}

#[test]
fn characters_are_streamed_whole() {
    let tokenizer = byte_tokenizer();
    let ids = tokenizer.encode("a€😀", true).unwrap();
    assert_eq!(ids.len(), 8, "the file's truncation must not cut a prompt");
    assert_eq!(streamed(&tokenizer, &[], &ids), ["a", "", "", "€", "", "", "", "😀", ""]);
    assert_eq!(streamed(&tokenizer, &[], &ids[..3]), ["a", "", "", "\u{fffd}"], "an incomplete end is shown");
}

#[test]
fn spaces_are_streamed_where_the_whole_text_has_them() {
    let tokenizer = word_tokenizer();
    assert_eq!(tokenizer.decode(&[257, 258]).unwrap(), "one two");
    assert_eq!(streamed(&tokenizer, &[], &[257, 258]).concat(), "one two");
    assert_eq!(streamed(&tokenizer, &[257], &[258, 259]).concat(), " twox");
    assert_eq!(streamed(&tokenizer, &[257, 256], &[258]).concat(), " two");
    assert_eq!(streamed(&tokenizer, &[], &[257, 256, 256, 258]).concat(), "one   two");
    assert_eq!(streamed(&tokenizer, &[257], &[260, 258]).concat(), " two", "a special token has no text");
    assert_eq!(streamed(&tokenizer, &[257], &[0xE2, 0x82, 0xAC, 258]), ["", "", "€", " two", ""]);
}

#[test]
fn the_stop_string_that_is_complete_first_counts_in_any_pieces() {
    let stops = ["\u{e9}aa\u{e9}".to_owned(), "a".to_owned()];
    for pieces in [&["\u{e9}aa\u{e9}"][..], &["\u{e9}", "a", "a\u{e9}"]] {
        let mut watcher = StopStrings::new(&stops);
        let mut shown = String::new();
        let stop = pieces.iter().find_map(|piece| {
            let (text, stop) = watcher.push(piece);
            shown += &text;
            stop
        });
        assert_eq!((shown.as_str(), stop.as_deref()), ("\u{e9}", Some("a")), "{pieces:?}");
    }
}

#[test]
fn what_is_no_text_is_shown_before_it_ends() {
    let tokenizer = byte_tokenizer();
    // Bytes that complete no character, and whole U+FFFDs.
    for ids in [vec![0x80; 1000], "\u{fffd}".repeat(400).into_bytes().iter().map(|&b| b.into()).collect()] {
        let whole = tokenizer.decode(&ids).unwrap();
        let pieces = streamed(&tokenizer, &[97], &ids);
        assert_eq!(pieces.concat(), whole);
        let longest = pieces.iter().map(|piece| piece.chars().count()).max().unwrap();
        assert!(longest <= 16, "{longest} characters are held back");
    }
    // A character that such bytes end with comes out whole.
    let ids = [&[0x80; 50][..], &[0xE2, 0x82, 0xAC, 97]].concat();
    let pieces = streamed(&tokenizer, &[], &ids);
    assert_eq!(pieces.concat(), "\u{fffd}".repeat(50) + "€a");
}

proptest! {
    #[test]
    fn streamed_bytes_that_are_no_text_are_the_whole_text(
        prompt in prop::collection::vec(0x80u32..258, 0..6),
        ids in prop::collection::vec(prop_oneof![0x80u32..0x100, 0xE2u32..0xE4, 0x80u32..0x90], 0..120),
    ) {
        let tokenizer = byte_tokenizer();
        let whole = tokenizer.decode(&[&[97], &prompt[..], &[98], &ids[..]].concat()).unwrap();
        let start = tokenizer.decode(&[&[97], &prompt[..], &[98]].concat()).unwrap();
        prop_assert_eq!(streamed(&tokenizer, &[&prompt[..], &[98]].concat(), &ids).concat(), &whole[start.len()..]);
    }

    #[test]
    fn streamed_text_is_the_whole_text(
        prompt in prop::collection::vec(prop::sample::select(vec![32, 97, 98, 256, 257]), 0..6),
        ids in prop::collection::vec(0u32..258, 0..40),
    ) {
        let tokenizer = byte_tokenizer();
        let whole = tokenizer.decode(&[&prompt[..], &ids[..]].concat()).unwrap();
        let start = tokenizer.decode(&prompt).unwrap();
        prop_assert_eq!(streamed(&tokenizer, &prompt, &ids).concat(), &whole[start.len()..]);
    }

    #[test]
    fn streamed_words_are_the_whole_text(
        prompt in prop::collection::vec(256u32..261, 1..4),
        ids in prop::collection::vec(256u32..261, 0..20),
    ) {
        let tokenizer = word_tokenizer();
        let whole = tokenizer.decode(&[&prompt[..], &ids[..]].concat()).unwrap();
        let start = tokenizer.decode(&prompt).unwrap();
        prop_assert_eq!(streamed(&tokenizer, &prompt, &ids).concat(), &whole[start.len()..]);
    }

    #[test]
    fn text_ends_before_the_first_stop_string(text in "[a\u{e9}]{0,30}", stops in prop::collection::vec("[a\u{e9}]{0,6}", 0..4), cuts in prop::collection::vec(1usize..12, 30)) {
        // The first to be complete, and of those the longest.
        let places = stops.iter().filter(|s| !s.is_empty()).filter_map(|s| Some((text.find(s.as_str())? + s.len(), s.len())));
        let first = places.min_by_key(|&(end, bytes)| (end, std::cmp::Reverse(bytes))).map(|(end, bytes)| end - bytes);
        let mut watcher = StopStrings::new(&stops);
        let (mut shown, mut stopped) = (String::new(), false);
        let mut characters = text.chars();
        for cut in cuts {
            let chunk: String = characters.by_ref().take(cut).collect();
            let (out, stop) = watcher.push(&chunk);
            shown += &out;
            stopped = stop.is_some();
            if stopped { break; }
        }
        if !stopped { shown += &watcher.finish(); }
        prop_assert_eq!(stopped, first.is_some());
        prop_assert_eq!(&shown, &text[..first.unwrap_or(text.len())]);
    }
}

#[test]
fn a_broken_tokenizer_is_named() {
    let error = Tokenizer::from_bytes(b"{}", "some/tokenizer.json").unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Corrupt, "some/tokenizer.json"));
    assert_eq!(Tokenizer::from_dir("nowhere").unwrap_err().kind(), ErrorKind::Io);
}

fn sampler(temperature: f64, top_k: Option<usize>, top_p: Option<f64>, seed: u64) -> Sampler {
    Sampler::new(&SamplerOptions { temperature, top_k, top_p, seed }).unwrap()
}

/// How often each token comes up in `n` draws.
fn counts(mut sampler: Sampler, logits: &[f32], n: usize) -> Vec<usize> {
    let mut counts = vec![0; logits.len()];
    (0..n).for_each(|_| counts[sampler.sample(logits).unwrap() as usize] += 1);
    counts
}

#[test]
fn greedy_takes_the_first_of_the_likeliest() {
    assert_eq!(counts(sampler(0.0, None, None, 1), &[1.0, 3.0, 3.0, -1.0], 10), [0, 10, 0, 0]);
    assert_eq!(counts(sampler(5.0, Some(1), None, 1), &[1.0, 3.0, 3.0, -1.0], 10), [0, 10, 0, 0]);
    assert_eq!(counts(sampler(5.0, None, Some(1e-9), 1), &[1.0, 3.0, 3.0, -1.0], 10), [0, 10, 0, 0]);
    assert_eq!(counts(sampler(0.0, None, None, 1), &[f32::NEG_INFINITY, -1e30], 1), [0, 1]);
}

#[test]
fn temperature_shapes_the_distribution() {
    let logits: Vec<f32> = [0.5f32, 0.25, 0.125, 0.125].iter().map(|p| p.ln() + 7.0).collect();
    let n = 40_000;
    for temperature in [0.5f64, 1.0, 2.0] {
        let weights: Vec<f64> =
            [0.5f64, 0.25, 0.125, 0.125].iter().map(|p| p.powf(1.0 / temperature)).collect();
        let total: f64 = weights.iter().sum();
        for (count, weight) in counts(sampler(temperature, None, None, 3), &logits, n).iter().zip(&weights) {
            let (got, wanted) = (*count as f64 / n as f64, weight / total);
            // Five standard deviations of a share.
            assert!(
                (got - wanted).abs() < 5.0 * (wanted / n as f64).sqrt(),
                "{temperature}: {got} for {wanted}"
            );
        }
    }
}

#[test]
fn top_k_and_top_p_cut_the_tail() {
    let logits: Vec<f32> = [0.1f32, 0.4, 0.3, 0.2].iter().map(|p| p.ln()).collect();
    let seen = |sampler| counts(sampler, &logits, 2000).iter().map(|&n| n > 0).collect::<Vec<_>>();
    assert_eq!(seen(sampler(1.0, Some(2), None, 4)), [false, true, true, false]);
    assert_eq!(seen(sampler(1.0, Some(9), None, 4)), [true; 4]);
    assert_eq!(seen(sampler(1.0, None, Some(0.39), 4)), [false, true, false, false]);
    assert_eq!(seen(sampler(1.0, None, Some(0.69), 4)), [false, true, true, false]);
    assert_eq!(seen(sampler(1.0, None, Some(0.71), 4)), [false, true, true, true]);
    assert_eq!(seen(sampler(1.0, None, Some(1.0), 4)), [true; 4]);
    assert_eq!(seen(sampler(1.0, Some(3), Some(0.5), 4)), [false, true, true, false]);
    // Many unlikely tokens: their mass counts, though none of them is in the nucleus.
    let mut long = vec![0.0f32; 10_001];
    long[17] = (10_000.0f32).ln();
    let counts = counts(sampler(1.0, None, Some(0.49), 4), &long, 200);
    assert_eq!(counts[17], 200);
}

#[test]
fn a_seed_repeats_itself() {
    let logits = vec![0.0f32; 1000];
    let draw = |seed| {
        let mut sampler = sampler(1.0, None, None, seed);
        (0..20).map(|_| sampler.sample(&logits).unwrap()).collect::<Vec<_>>()
    };
    assert_eq!(draw(5), draw(5));
    assert_ne!(draw(5), draw(6));
}

#[test]
fn logits_without_a_largest_are_errors() {
    for logits in [&[][..], &[1.0, f32::NAN], &[f32::INFINITY, 0.0], &[f32::NEG_INFINITY]] {
        let error = sampler(1.0, None, None, 0).sample(logits).unwrap_err();
        assert_eq!((error.kind(), error.subject()), (ErrorKind::Corrupt, "logits"), "{logits:?}");
    }
}

#[test]
fn impossible_sampling_is_refused() {
    let base = SamplerOptions::default();
    let cases = [
        (SamplerOptions { temperature: -1.0, ..base.clone() }, "temperature"),
        (SamplerOptions { temperature: f64::NAN, ..base.clone() }, "temperature"),
        (SamplerOptions { top_k: Some(0), ..base.clone() }, "top-k"),
        (SamplerOptions { top_p: Some(0.0), ..base.clone() }, "top-p"),
        (SamplerOptions { top_p: Some(1.5), ..base.clone() }, "top-p"),
    ];
    for (options, subject) in cases {
        let error = Sampler::new(&options).unwrap_err();
        assert_eq!((error.kind(), error.subject()), (ErrorKind::InvalidArgument, subject));
    }
}

fn template(source: &str) -> codecllm::Result<ChatTemplate> {
    let config = json!({ "chat_template": source, "bos_token": { "content": "<s>" }, "eos_token": "</s>" });
    Ok(ChatTemplate::from_json(&config.to_string(), "tokenizer_config.json")?.unwrap())
}

fn render(source: &str, messages: &[Message]) -> codecllm::Result<String> {
    template(source)?.render(messages, true)
}

#[test]
fn templates_are_rendered_as_the_reference_does() {
    let hello = [Message::new("system", "Be brief."), Message::new("user", " Hi <you> & me\n")];
    let chatml = "{% for message in messages %}{{'<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n'}}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}";
    assert_eq!(
        render(chatml, &hello).unwrap(),
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n Hi <you> & me\n<|im_end|>\n<|im_start|>assistant\n"
    );
    assert!(!template(chatml).unwrap().render(&hello, false).unwrap().contains("assistant"));
    let blocks = "{%- for m in messages %}\n    {%- if m.role == 'user' %}\n{{ bos_token + m.content.strip() + eos_token }}\n    {%- endif %}\n{%- endfor %}";
    assert_eq!(render(blocks, &hello).unwrap(), "<s>Hi <you> & me</s>");
    let trimmed = "{% if true %}\nkept\n{% endif %}\nend";
    assert_eq!(render(trimmed, &hello).unwrap(), "kept\nend");
    let loops = "{% set ns = namespace(n=0) %}{% for m in messages[1:] %}{% set ns.n = ns.n + 1 %}{{ m.content | trim | upper }}{% endfor %}{{ ns.n }}";
    assert_eq!(render(loops, &hello).unwrap(), "HI <YOU> & ME1");
    assert_eq!(
        render("{{ {'a': [1, '<\u{e9}>']} | tojson }}", &hello).unwrap(),
        "{\"a\": [1, \"<\u{e9}>\"]}"
    );
    assert_eq!(render("{{ [1] | tojson(indent=2) }}", &hello).unwrap(), "[\n  1\n]");
    assert!(render("{{ strftime_now('%Y') }}", &hello).unwrap().parse::<u32>().unwrap() >= 2024);
    assert_eq!(render("{% if tools is defined and tools %}x{% endif %}", &hello).unwrap(), "");
}

#[test]
fn refused_conversations_and_broken_templates_are_errors() {
    let refused = render("{{ raise_exception('roles must alternate') }}", &[]).unwrap_err();
    assert_eq!((refused.kind(), refused.subject()), (ErrorKind::InvalidArgument, "chat template"));
    assert!(refused.to_string().contains("roles must alternate"), "{refused}");
    let broken = render("{% for %}", &[]).unwrap_err();
    assert_eq!((broken.kind(), broken.subject()), (ErrorKind::Corrupt, "tokenizer_config.json"));
    assert_eq!(
        ChatTemplate::from_json("{\"chat_template\": 3}", "c").unwrap_err().kind(),
        ErrorKind::Corrupt
    );
    assert!(ChatTemplate::from_json("{}", "c").unwrap().is_none());
}

#[test]
fn a_template_is_found_wherever_models_keep_it() {
    let dir = tempfile::tempdir().unwrap();
    assert!(ChatTemplate::from_dir(dir.path()).unwrap().is_none());
    let named = json!({ "bos_token": "B", "chat_template": [
        { "name": "tool_use", "template": "no" }, { "name": "default", "template": "{{ bos_token }}list" } ] });
    std::fs::write(dir.path().join("tokenizer_config.json"), named.to_string()).unwrap();
    let render = || ChatTemplate::from_dir(dir.path()).unwrap().unwrap().render(&[], false).unwrap();
    assert_eq!(render(), "Blist");
    std::fs::write(dir.path().join("chat_template.jinja"), "{{ bos_token }}file").unwrap();
    assert_eq!(render(), "Bfile");
}

#[test]
fn stop_tokens_come_from_both_files() {
    let dir = tempfile::tempdir().unwrap();
    let write = |name: &str, eos: Value| {
        std::fs::write(dir.path().join(name), json!({ "eos_token_id": eos }).to_string()).unwrap();
    };
    assert_eq!(stop_tokens(dir.path()).unwrap_err().kind(), ErrorKind::Io);
    write("config.json", json!(2));
    assert_eq!(stop_tokens(dir.path()).unwrap(), [2]);
    write("generation_config.json", json!([9, 2, 5]));
    assert_eq!(stop_tokens(dir.path()).unwrap(), [2, 5, 9]);
    write("config.json", Value::Null);
    assert_eq!(stop_tokens(dir.path()).unwrap(), [2, 5, 9]);
    for bad in [json!("</s>"), json!(-1), json!([2, "x"]), json!(1u64 << 40)] {
        write("config.json", bad);
        assert_eq!(stop_tokens(dir.path()).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}

/// A random model over the byte tokenizer. Its context is 64 tokens.
fn tiny(seed: u64) -> TinyLlama {
    let mut config = plain_config();
    config["vocab_size"] = 258.into();
    config["max_position_embeddings"] = 64.into();
    config["eos_token_id"] = 257.into();
    let tiny = TinyLlama::new(&config, seed);
    tiny.write("tokenizer.json", &byte_tokenizer_json());
    tiny.write(
        "tokenizer_config.json",
        &json!({ "chat_template": "{% for m in messages %}<s>{{ m.content }}{% endfor %}" }).to_string(),
    );
    tiny
}

fn open(tiny: &TinyLlama) -> Generator {
    let options = LoadOptions { kind: Kind::Float, ..LoadOptions::default() };
    Generator::open(tiny.dir(), &options).unwrap()
}

fn options(max_new_tokens: usize, temperature: f64, seed: u64) -> GenerateOptions {
    let sampling = SamplerOptions { temperature, seed, ..SamplerOptions::default() };
    GenerateOptions { max_new_tokens, sampling, ..GenerateOptions::default() }
}

fn run(generator: &Generator, prompts: &[&str], options: &GenerateOptions) -> Vec<Generation> {
    let prompts: Vec<_> = prompts.iter().map(|text| Prompt::Text((*text).to_owned())).collect();
    let mut texts = vec![String::new(); prompts.len()];
    let mut collect = |piece: codecllm::runtime::Piece<'_>| {
        assert!(!piece.text.is_empty());
        texts[piece.prompt].push_str(piece.text);
        ControlFlow::Continue(())
    };
    let generations = generator.generate(&prompts, options, &mut collect).unwrap();
    for (generation, text) in generations.iter().zip(&texts) {
        assert_eq!(&generation.text, text, "the pieces must add up to the text");
    }
    generations
}

#[test]
fn streamed_text_is_the_text_of_the_tokens() {
    let tiny = tiny(1);
    let generator = open(&tiny);
    for seed in 0..5 {
        let generation = run(&generator, &["Hello"], &options(50, 1.5, seed)).remove(0);
        let whole =
            [&generator.tokenizer().encode("Hello", true).unwrap()[..], &generation.token_ids].concat();
        let whole = generator.tokenizer().decode(&whole).unwrap();
        assert_eq!(format!("Hello{}", generation.text), whole);
        assert_eq!(generation.new_tokens, generation.token_ids.len());
        assert_eq!(generation.prompt_tokens, 5);
    }
}

#[test]
fn a_seed_repeats_its_text_and_another_does_not() {
    let tiny = tiny(2);
    let generator = open(&tiny);
    let tokens = |seed| run(&generator, &["ab"], &options(20, 1.0, seed)).remove(0).token_ids;
    assert_eq!(tokens(7), tokens(7));
    assert_ne!(tokens(7), tokens(8));
    let twice = run(&generator, &["ab", "ab"], &options(20, 1.0, 7));
    assert_eq!(twice[0].token_ids, tokens(7));
    assert_eq!(twice[1].token_ids, tokens(8), "prompt i of a batch has seed + i");
}

#[test]
fn a_prompt_in_a_batch_gets_the_answer_it_gets_alone() {
    let tiny = tiny(3);
    let generator = open(&tiny);
    let prompts = ["a", "something longer", "xyz"];
    let batch = run(&generator, &prompts, &options(12, 0.0, 0));
    for (prompt, in_batch) in prompts.iter().zip(batch) {
        let alone = run(&generator, &[prompt], &options(12, 0.0, 0)).remove(0);
        assert_eq!(in_batch.token_ids, alone.token_ids, "{prompt}");
        assert_eq!(in_batch.text, alone.text);
    }
    assert!(run(&generator, &[], &options(1, 0.0, 0)).is_empty());
}

#[test]
fn generation_ends_where_it_should() {
    let tiny = tiny(4);
    let generator = open(&tiny);
    let free = run(&generator, &["abc"], &options(10, 0.0, 0)).remove(0);
    assert_eq!((free.new_tokens, &free.stop_reason), (10, &StopReason::MaxNewTokens));
    assert!(free.tokens_per_second > 0.0 && free.prefill_seconds > 0.0 && free.decode_seconds > 0.0);
    assert!((free.tokens_per_second - 9.0 / free.decode_seconds).abs() < 1e-9);
    let none = run(&generator, &["abc"], &options(0, 0.0, 0)).remove(0);
    assert_eq!((none.new_tokens, none.text.as_str()), (0, ""));
    // The context is 64: 60 of the prompt, 4 to come back in, and one more that need not.
    let full = run(&generator, &["x".repeat(60).as_str()], &options(100, 0.0, 0)).remove(0);
    assert_eq!((full.new_tokens, full.stop_reason), (5, StopReason::Context));
    let mut prompts = vec![Prompt::Text("abc".to_owned())];
    let stopped =
        generator.generate(&prompts, &options(50, 0.0, 0), &mut |_| ControlFlow::Break(())).unwrap();
    assert_eq!(stopped[0].stop_reason, StopReason::Interrupted);
    prompts[0] = Prompt::Chat(vec![Message::new("user", "abc")]);
    let chat = generator.generate(&prompts, &options(2, 0.0, 0), &mut |_| ControlFlow::Continue(())).unwrap();
    assert_eq!(chat[0].prompt_tokens, 4, "the template's <s> and three bytes");
}

#[test]
fn stop_tokens_and_strings_end_an_answer() {
    let tiny = tiny(5);
    let generator = open(&tiny);
    let free = run(&generator, &["abc"], &options(30, 0.9, 1)).remove(0);
    // Make a token of the free answer the stop token: the answer must end before it.
    let at = (1..free.token_ids.len()).find(|&i| !free.token_ids[..i].contains(&free.token_ids[i])).unwrap();
    tiny.write("generation_config.json", &json!({ "eos_token_id": [257, free.token_ids[at]] }).to_string());
    let stopping = open(&tiny);
    let stopped = run(&stopping, &["abc"], &options(30, 0.9, 1)).remove(0);
    assert_eq!(stopped.token_ids, free.token_ids[..at]);
    assert_eq!(stopped.stop_reason, StopReason::StopToken(free.token_ids[at]));
    let ignoring = GenerateOptions { ignore_stop_tokens: true, ..options(30, 0.9, 1) };
    assert_eq!(run(&stopping, &["abc"], &ignoring).remove(0).token_ids, free.token_ids);
    // A character in the middle of the free answer as a stop string.
    let stop: String = free.text.chars().skip(3).take(2).collect();
    let with_stop = GenerateOptions { stop_strings: vec![stop.clone()], ..options(30, 0.9, 1) };
    let stopped = run(&generator, &["abc"], &with_stop).remove(0);
    assert_eq!(stopped.text, free.text[..free.text.find(&stop).unwrap()]);
    assert_eq!(stopped.stop_reason, StopReason::StopString(stop));
}

#[test]
fn prompts_that_cannot_be_run_are_errors() {
    let tiny = tiny(6);
    let generator = open(&tiny);
    let error = |prompt: Prompt| {
        let prompts = [Prompt::Text("fine".to_owned()), prompt];
        generator.generate(&prompts, &options(1, 0.0, 0), &mut |_| ControlFlow::Continue(())).unwrap_err()
    };
    let long = error(Prompt::Tokens(vec![1; 65]));
    assert_eq!(long.kind(), ErrorKind::InvalidArgument);
    assert_eq!(long.to_string(), "prompt 2: is 65 tokens, wanted at most 64, the context; shorten it");
    assert_eq!(error(Prompt::Text(String::new())).subject(), "prompt 2");
    assert!(error(Prompt::Tokens(vec![258])).to_string().contains("token 258"));
    let small = LoadOptions { context: Some(10), kind: Kind::Float, ..LoadOptions::default() };
    let generator = Generator::open(tiny.dir(), &small).unwrap();
    let prompts = [Prompt::Tokens(vec![1; 11])];
    let error =
        generator.generate(&prompts, &options(1, 0.0, 0), &mut |_| ControlFlow::Continue(())).unwrap_err();
    assert!(
        error.to_string().ends_with("raise the context (--context, at most 64 for this model)"),
        "{error}"
    );
}

#[test]
fn a_model_is_loaded_whole_or_not_at_all() {
    let tiny = tiny(7);
    let model = Model::load(tiny.dir(), &LoadOptions::default()).unwrap();
    assert_eq!((model.kind(), model.context()), (Kind::Half, 64));
    let in_store: usize =
        model.var_store().variables().values().map(|t| t.numel() * t.kind().elt_size_in_bytes()).sum();
    assert_eq!(model.weight_bytes(), in_store);
    let refused = |options: LoadOptions| Model::load(tiny.dir(), &options).unwrap_err();
    assert_eq!(refused(LoadOptions { context: Some(65), ..Default::default() }).subject(), "context");
    assert_eq!(refused(LoadOptions { context: Some(0), ..Default::default() }).subject(), "context");
    assert_eq!(refused(LoadOptions { threads: Some(0), ..Default::default() }).subject(), "threads");
    assert_eq!(refused(LoadOptions { kind: Kind::Int64, ..Default::default() }).subject(), "dtype");
}

#[test]
fn a_tensor_without_a_use_is_an_error() {
    let config = plain_config();
    let load_with = |name: &str| {
        let mut shapes = shapes(&config);
        shapes.push((name.to_owned(), vec![8]));
        Model::load(TinyLlama::with_shapes(&config, &shapes, 8).dir(), &LoadOptions::default())
    };
    let name = "model.layers.0.self_attn.q_norm.weight";
    let error = load_with(name).unwrap_err();
    assert_eq!((error.kind(), error.subject()), (ErrorKind::Unsupported, name));
    load_with("model.layers.0.self_attn.rotary_emb.inv_freq").unwrap();
}

#[cfg(target_os = "linux")]
#[test]
fn memory_figures_follow_the_memory() {
    const BYTES: u64 = 256 << 20;
    let before = rss_bytes().unwrap();
    let block = std::hint::black_box(vec![1u8; BYTES as usize]);
    let held = rss_bytes().unwrap();
    drop(block);
    let (after, peak) = (rss_bytes().unwrap(), peak_rss_bytes().unwrap());
    // Other tests take and give back a little meanwhile.
    assert!(held > before + BYTES / 2 && after < held - BYTES / 2, "{before} {held} {after}");
    assert!(peak > after + BYTES / 2, "{after} {peak}");
}
