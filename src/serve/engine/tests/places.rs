//! Who gets a place when: order, pages, the queue's limit, pieces of prompts between steps.

use super::*;

/// The calls since the last look, in short: `a0+4` is a piece of four tokens at place 0, `[ab]` a step.
fn calls(fixture: &Fixture) -> String {
    let calls = std::mem::take(&mut fixture.script.lock().unwrap().calls);
    let short = |call: &Call| match call {
        Call::Piece(name, held, length) => format!("{name}{held}+{length}"),
        Call::Step(names) => format!("[{names}]"),
    };
    calls.iter().map(short).collect::<Vec<_>>().join(" ")
}

#[test]
fn answers_are_those_alone_whoever_joins_and_leaves() {
    let mut fixture = fixture(4, 100, 40);
    let requests: Vec<(String, usize)> =
        (0..20).map(|i| ("kaffeetasse"[i % 4..4 + i % 7].to_owned(), 1 + i * 5 % 17)).collect();
    let mut answers = Vec::new();
    for (prompt, tokens) in &requests {
        answers.push(fixture.submit(prompt, *tokens));
        fixture.turns(1);
    }
    fixture.finish();
    for (answer, (prompt, tokens)) in answers.iter_mut().zip(&requests) {
        let heard = hear(answer);
        assert_eq!((heard.text, heard.prompt_tokens), (alone(prompt, *tokens), Some(prompt.len())));
        assert_eq!(heard.ids, ids(&alone(prompt, *tokens)));
        let usage = Usage { prompt_tokens: prompt.len(), completion_tokens: *tokens };
        assert_eq!(heard.ended, Some((StopReason::MaxNewTokens, usage)));
    }
    let stats = fixture.engine.stats();
    assert_eq!((stats.pages_free, stats.running, stats.requests.length), (40, 0, 20));
}

#[test]
fn requests_get_places_in_their_order_and_join_between_two_steps() {
    let mut fixture = fixture(2, 10, 100);
    let _answers =
        [("a", 3), ("b", 5), ("c", 3), ("d", 2)].map(|(prompt, tokens)| fixture.submit(prompt, tokens));
    fixture.finish();
    // A prompt gives the first token, in the turn in which its answer's first step is.
    assert_eq!(calls(&fixture), "a0+1 [a] b0+1 [ab] c0+1 [bc] [bc] d0+1 [bd]");
}

#[test]
fn a_prompt_advances_one_piece_between_two_steps_of_the_others() {
    let mut fixture = fixture(4, 10, 100);
    let _first = fixture.submit("a", 12);
    fixture.turns(2);
    calls(&fixture);
    let _long = fixture.submit("bcdefghijk", 3);
    let _behind = fixture.submit("c", 3);
    fixture.turns(5);
    assert_eq!(calls(&fixture), "b0+4 [a] b4+4 [a] b8+2 [ab] c0+1 [abc] [ac]");
}

#[test]
fn pieces_begin_at_the_same_places_whoever_else_is_there() {
    for others in 0..3 {
        let mut fixture = fixture(4, 10, 100);
        let _others: Vec<_> =
            ["x", "yzxyz"].iter().take(others).map(|prompt| fixture.submit(prompt, 20)).collect();
        let _answer = fixture.submit("abcdefghi", 2);
        fixture.finish();
        let calls = calls(&fixture);
        let pieces: Vec<_> = calls.split(' ').filter(|call| call.starts_with('a')).collect();
        assert_eq!(pieces, ["a0+4", "a4+4", "a8+1"]);
    }
}

#[test]
fn requests_wait_for_pages_and_none_overtakes() {
    // Six pages of four tokens: a takes four, b needs three, c one.
    let mut fixture = fixture(4, 10, 6);
    let mut a = fixture.submit("a", 15);
    let mut b = fixture.submit("b", 9);
    let mut c = fixture.submit("c", 3);
    fixture.turns(3);
    let stats = fixture.engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.pages_free), (1, 2, 2));
    assert!(hear(&mut b).prompt_tokens.is_none() && hear(&mut c).prompt_tokens.is_none());
    while hear(&mut a).ended.is_none() {
        fixture.turns(1);
    }
    fixture.turns(1);
    let stats = fixture.engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.pages_free), (2, 0, 2));
    fixture.finish();
    assert_eq!([reason(&mut b), reason(&mut c)], [StopReason::MaxNewTokens, StopReason::MaxNewTokens]);
    assert_eq!(fixture.free_pages(), 6);
}

#[test]
fn as_many_may_wait_as_the_queue_allows_beyond_the_free_places() {
    let mut fixture = fixture(1, 2, 100);
    let refused = |fixture: &Fixture| match fixture.engine.submit(request("z", 1)) {
        Err(Refusal::QueueFull { waiting }) => Some(waiting),
        Err(other) => panic!("{other}"),
        Ok(_) => None,
    };
    // One for the place, two for the queue, before and after the first turn.
    let _answers = ["a", "b", "c"].map(|prompt| fixture.submit(prompt, 3));
    assert_eq!(refused(&fixture), Some(3));
    fixture.turns(1);
    assert_eq!(fixture.engine.stats().waiting, 2);
    assert_eq!(refused(&fixture), Some(2));
    assert_eq!(fixture.engine.stats().requests.refused_queue_full, 2);
    fixture.finish();
    assert_eq!(refused(&fixture), None);
}

#[test]
fn places_do_not_count_as_free_while_pages_are_short() {
    let mut fixture = fixture(8, 1, 4);
    let _running = fixture.submit("a", 15);
    let _waiting = fixture.submit("b", 15);
    fixture.turns(1);
    assert!(matches!(fixture.engine.submit(request("c", 1)), Err(Refusal::QueueFull { waiting: 1 })));
    fixture.finish();
}

#[test]
fn a_queue_of_none_still_fills_free_places() {
    let mut fixture = fixture(2, 0, 100);
    let _answers = ["a", "b"].map(|prompt| fixture.submit(prompt, 3));
    assert!(matches!(fixture.engine.submit(request("c", 1)), Err(Refusal::QueueFull { waiting: 2 })));
    fixture.finish();
    let _answer = fixture.submit("c", 1);
    fixture.finish();
    assert_eq!(fixture.engine.stats().requests.length, 3);
}

#[test]
fn what_can_never_have_pages_is_refused_with_the_cure() {
    let mut fixture = fixture(4, 4, 5);
    let refusal = fixture.engine.submit(request("abcdef", 15)).unwrap_err();
    let wanted = "request: needs a cache of 21 tokens (6 of the prompt), wanted at most 20; ask for 14 new tokens or fewer, \
                  shorten the prompt, or give the engine a larger cache (--cache-tokens)";
    assert!(matches!(refusal, Refusal::Invalid(_)));
    assert_eq!(refusal.to_string(), wanted);
    // Tokens beyond the context are never computed and need no pages, but 64 are more than 20.
    let refusal = fixture.engine.submit(request("abcdef", usize::MAX)).unwrap_err().to_string();
    assert!(refusal.contains("needs a cache of 64 tokens"), "{refusal}");
    let refusal = fixture.engine.submit(request(&"a".repeat(30), 1)).unwrap_err().to_string();
    assert!(refusal.contains("wanted at most 20; shorten the prompt, or"), "{refusal}");
    let mut fits = fixture.submit("abcdef", 14);
    fixture.finish();
    assert_eq!(hear(&mut fits).text, alone("abcdef", 14));
    assert_eq!(fixture.engine.stats().requests.refused_invalid, 3);
}

#[test]
fn impossible_prompts_and_options_are_refused() {
    let fixture = fixture(4, 4, 100);
    let refusal = |request| fixture.engine.submit(request).unwrap_err().to_string();
    assert_eq!(refusal(request("", 3)), "prompt: is empty, wanted at least one token");
    assert!(refusal(request(&"a".repeat(65), 3)).contains("is 65 tokens, wanted at most 64, the context"));
    let with = |prompt| Request { prompt, ..request("a", 1) };
    assert!(
        refusal(with(Prompt::Tokens(vec![3, 27]))).contains("has token 27, wanted one below vocab_size = 27")
    );
    assert!(refusal(with(Prompt::Chat(Vec::new()))).contains("no chat template"));
    let mut hot = request("a", 1);
    hot.options.sampling.temperature = -1.0;
    assert!(refusal(hot).contains("temperature: -1"));
    assert_eq!(fixture.engine.stats().requests.refused_invalid, 5);
}
