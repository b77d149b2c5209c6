//! The engine on its own thread.

use std::time::{Duration, Instant};

use super::*;
use crate::error::ErrorKind;
use crate::serve::engine::EngineState;

/// More than any of these tests takes on a slow machine.
const LONG: Duration = Duration::from_secs(600);

fn start(max_batch: usize, pages: usize) -> (Engine, ScriptHandle) {
    let (model, script) = Script::new(pages, 4);
    (Engine::start_with(model, setup(max_batch, 100, pages * 4)).unwrap(), script)
}

/// Hears an answer to its end.
fn wait(answer: &mut Answer) -> Heard {
    let mut heard = Heard::default();
    while let Some(event) = answer.next_blocking() {
        match event {
            Event::Started { prompt_tokens } => heard.prompt_tokens = Some(prompt_tokens),
            Event::Token { text, .. } => heard.text.push_str(&text),
            Event::Ended { reason, text, usage } => {
                heard.text.push_str(&text);
                heard.ended = Some((reason, usage));
            }
            Event::Failed(error) => heard.failed = Some(error),
        }
    }
    heard
}

#[test]
fn many_threads_ask_at_once_and_places_are_free_when_they_hear_the_end() {
    let (engine, _) = start(4, 40);
    std::thread::scope(|scope| {
        for client in 0..8 {
            let engine = engine.clone();
            scope.spawn(move || {
                for i in 0..20 {
                    let prompt = "abcdefghijklmnopqrstuvwxyz"[client..client + 1 + i % 9].to_owned();
                    let mut answer = engine.submit(request(&prompt, 1 + i)).unwrap();
                    // Some leave in the middle.
                    if i % 5 == 4 {
                        answer.next_blocking();
                        continue;
                    }
                    assert_eq!(wait(&mut answer).text, alone(&prompt, 1 + i));
                }
            });
        }
    });
    wait(&mut engine.submit(request("z", 1)).unwrap());
    engine.shut_down(LONG);
    let stats = engine.stats();
    assert_eq!((stats.state, stats.running, stats.waiting), (EngineState::Stopped, 0, 0));
    assert_eq!((stats.pages_free, stats.requests.length + stats.requests.left), (40, 161));
    assert!(stats.requests.length >= 129);
}

#[test]
fn a_panic_fails_the_answers_and_refuses_what_follows() {
    let (engine, script) = start(1, 40);
    script.lock().unwrap().panicking = Some('b');
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|prompt| engine.submit(request(prompt, 5)).unwrap());
    assert_eq!(wait(&mut a).text, alone("a", 5));
    for answer in [&mut b, &mut c] {
        let error = wait(answer).failed.unwrap().to_string();
        assert_eq!(error, "engine: stopped before the answer was complete; restart it and ask again");
        assert!(answer.next_blocking().is_none());
    }
    engine.shut_down(LONG);
    assert!(matches!(engine.submit(request("d", 1)), Err(Refusal::Broken)));
    let stats = engine.stats();
    assert_eq!((stats.state, stats.running, stats.waiting), (EngineState::Broken, 0, 0));
    assert_eq!(stats.requests.failed, 2);
}

/// An engine whose prompts of "b" fail as `kind`, which are asked for so often; with a good one after each `good_after`.
fn failing(kind: ErrorKind, times: usize, good_after: usize) -> Engine {
    let (engine, script) = start(1, 40);
    {
        let mut plan = script.lock().unwrap();
        (plan.failing, plan.failing_as) = (Some('b'), Some(kind));
    }
    for time in 1..=times {
        let error = wait(&mut engine.submit(request("b", 5)).unwrap()).failed.unwrap();
        assert_eq!(error.kind(), kind);
        if time % good_after == 0 {
            assert_eq!(wait(&mut engine.submit(request("a", 2)).unwrap()).text, alone("a", 2));
        }
    }
    engine
}

#[test]
fn a_device_that_fails_again_and_again_ends_the_engine() {
    for kind in [ErrorKind::Cuda, ErrorKind::Torch] {
        let engine = failing(kind, 8, usize::MAX);
        // The last of them is told of before the thread ends.
        let start = Instant::now();
        while engine.state() == EngineState::Running && start.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(1));
        }
        assert_eq!(engine.state(), EngineState::Broken);
        assert!(matches!(engine.submit(request("a", 1)), Err(Refusal::Broken)));
    }
    // Not with a success between, nor for what a request is to blame for or had no room.
    for (kind, good_after) in [(ErrorKind::Cuda, 7), (ErrorKind::Corrupt, 100), (ErrorKind::OutOfMemory, 100)]
    {
        let engine = failing(kind, 30, good_after);
        assert_eq!(wait(&mut engine.submit(request("a", 2)).unwrap()).text, alone("a", 2));
        assert_eq!(engine.state(), EngineState::Running);
        engine.shut_down(LONG);
        assert_eq!(engine.state(), EngineState::Stopped);
    }
}

#[test]
fn the_thread_completes_what_it_has_taken_when_the_last_handle_is_dropped() {
    let (engine, _) = start(1, 40);
    let mut answers = ["a", "b"].map(|prompt| engine.submit(request(prompt, 20)).unwrap());
    let shared = engine.handle.shared.clone();
    drop(engine);
    assert_eq!(answers.each_mut().map(|answer| wait(answer).text), [alone("a", 20), alone("b", 20)]);
    shared.wait_for_end();
}

#[test]
fn events_can_be_awaited_and_given_up_without_loss() {
    let (engine, _) = start(1, 40);
    let mut answer = engine.submit(request("a", 30)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap();
    let mut text = String::new();
    runtime.block_on(async {
        loop {
            // Given up again and again before it is ready.
            let event = match tokio::time::timeout(Duration::from_micros(1), answer.next()).await {
                Ok(Some(event)) => event,
                Ok(None) => break,
                Err(_) => continue,
            };
            match event {
                Event::Token { text: piece, .. } | Event::Ended { text: piece, .. } => text.push_str(&piece),
                Event::Started { .. } => (),
                Event::Failed(error) => panic!("{error}"),
            }
        }
    });
    assert_eq!(text, alone("a", 30));
    engine.shut_down(LONG);
}
