//! How answers end: by themselves, by who asked, by the clock, by the end of the engine.

use std::time::{Duration, Instant};

use super::*;
use crate::serve::engine::EngineState;

/// The sequences of the newest step.
fn last_step(fixture: &Fixture) -> String {
    let plan = fixture.script.lock().unwrap();
    let step = plan.calls.iter().rev().find_map(|call| match call {
        Call::Step(names) => Some(names.clone()),
        Call::Piece(..) => None,
    });
    step.unwrap_or_default()
}

#[test]
fn a_dropped_answer_is_in_no_further_step_and_its_pages_are_free() {
    let mut fixture = fixture(4, 4, 20);
    let a = fixture.submit("a", 30);
    let mut b = fixture.submit("b", 30);
    fixture.turns(3);
    let (steps, free) = (fixture.engine.stats().steps, fixture.free_pages());
    assert_eq!((last_step(&fixture).as_str(), free), ("ab", 4));
    drop(a);
    fixture.turns(1);
    let stats = fixture.engine.stats();
    assert_eq!((stats.steps, last_step(&fixture).as_str()), (steps + 1, "b"));
    assert_eq!((stats.pages_free, stats.running, stats.requests.left), (12, 1, 1));
    fixture.finish();
    assert_eq!(hear(&mut b).text, alone("b", 30));
}

#[test]
fn who_leaves_the_queue_or_a_long_prompt_is_forgotten() {
    let mut fixture = fixture(2, 4, 40);
    let _a = fixture.submit("a", 30);
    let b = fixture.submit(&"b".repeat(40), 3);
    let c = fixture.submit("c", 3);
    let mut d = fixture.submit("d", 3);
    fixture.turns(2);
    drop((b, c));
    fixture.turns(1);
    let stats = fixture.engine.stats();
    assert_eq!((stats.running, stats.waiting, stats.requests.left), (2, 0, 2));
    fixture.turns(2);
    assert_eq!(hear(&mut d).text, alone("d", 3));
    let calls = fixture.script.lock().unwrap().calls.clone();
    assert!(!calls.iter().any(|call| matches!(call, Call::Piece('c', ..))));
    assert_eq!(calls.iter().filter(|call| matches!(call, Call::Piece('b', ..))).count(), 1);
}

#[test]
fn the_clock_ends_answers_that_run_and_requests_that_wait() {
    let mut fixture = fixture(1, 4, 20);
    let until = |prompt, deadline| Request { deadline: Some(deadline), ..request(prompt, 30) };
    let late = Instant::now();
    let mut ample = fixture.engine.submit(until("a", Instant::now() + Duration::from_secs(3600))).unwrap();
    let mut waits = fixture.engine.submit(until("b", late)).unwrap();
    fixture.turns(3);
    let heard = hear(&mut waits);
    assert_eq!((heard.prompt_tokens, heard.ids.len()), (None, 0));
    assert_eq!(heard.ended.unwrap().0, StopReason::Deadline);
    assert!(hear(&mut ample).ended.is_none());
    drop(ample);
    // One that starts in time and is late in the middle.
    let mut runs = fixture.engine.submit(until("c", Instant::now() + Duration::from_millis(300))).unwrap();
    fixture.turns(3);
    std::thread::sleep(Duration::from_millis(400));
    fixture.turns(1);
    let heard = hear(&mut runs);
    assert_eq!(heard.text, alone("c", heard.ids.len()));
    let usage = Usage { prompt_tokens: 1, completion_tokens: heard.ids.len() };
    assert_eq!(heard.ended, Some((StopReason::Deadline, usage)));
    let stats = fixture.engine.stats();
    assert_eq!((stats.requests.deadline, stats.pages_free, stats.running), (2, 20, 0));
}

#[test]
fn stop_tokens_stop_strings_and_the_context_end_answers() {
    let mut fixture = fixture(4, 4, 100);
    fixture.script.lock().unwrap().stopping = Some(('a', 4));
    let mut by_token = fixture.submit("a", 30);
    let text = alone("b", 10);
    let mut stopped = request("b", 30);
    stopped.options.stop_strings = vec![text[4..7].to_owned()];
    let mut by_string = fixture.engine.submit(stopped).unwrap();
    let prompt = "c".repeat(CONTEXT - 3);
    let mut by_context = fixture.submit(&prompt, 30);
    let mut by_none = fixture.submit("d", 0);
    fixture.finish();
    let heard = hear(&mut by_token);
    assert_eq!((heard.text, heard.ids.len()), (alone("a", 3), 3));
    assert_eq!(
        heard.ended,
        Some((StopReason::StopToken(STOP), Usage { prompt_tokens: 1, completion_tokens: 3 }))
    );
    let heard = hear(&mut by_string);
    assert_eq!((heard.text.as_str(), heard.ids.len()), (&text[..4], 7));
    assert_eq!(heard.ended.unwrap().0, StopReason::StopString(text[4..7].to_owned()));
    // The last token is behind the full context.
    let heard = hear(&mut by_context);
    assert_eq!((heard.text, heard.ended.unwrap().0), (alone(&prompt, 4), StopReason::Context));
    let heard = hear(&mut by_none);
    assert_eq!((heard.ids.len(), heard.ended.unwrap().0), (0, StopReason::MaxNewTokens));
    let requests = fixture.engine.stats().requests;
    assert_eq!((requests.stopped, requests.length, fixture.free_pages()), (2, 2, 100));
}

#[test]
fn shutting_down_completes_what_was_taken_and_takes_no_more() {
    let mut fixture = fixture(1, 4, 20);
    let [mut a, mut b] = ["a", "b"].map(|prompt| fixture.submit(prompt, 6));
    fixture.turns(2);
    fixture.engine.begin_shut_down(Duration::from_secs(3600));
    assert!(matches!(fixture.engine.submit(request("c", 1)), Err(Refusal::ShuttingDown)));
    assert_eq!(fixture.engine.stats().state, EngineState::ShuttingDown);
    // Returns when all is done, on this thread.
    fixture.scheduler.run();
    assert_eq!([hear(&mut a).text, hear(&mut b).text], [alone("a", 6), alone("b", 6)]);
}

#[test]
fn what_is_not_complete_in_time_is_cut_off() {
    let mut fixture = fixture(1, 4, 20);
    let [mut a, mut b] = ["a", "b"].map(|prompt| fixture.submit(prompt, 6));
    fixture.turns(2);
    fixture.engine.begin_shut_down(Duration::ZERO);
    fixture.scheduler.run();
    let heard = hear(&mut a);
    assert_eq!((heard.text, heard.ended.unwrap().0), (alone("a", 3), StopReason::Interrupted));
    let heard = hear(&mut b);
    assert_eq!((heard.text.as_str(), heard.ended.unwrap().0), ("", StopReason::Interrupted));
    assert_eq!(fixture.engine.stats().requests.interrupted, 2);
}
