//! What goes wrong takes no more with it than it must.

use super::*;

#[test]
fn a_failing_step_ends_its_answers_and_the_engine_goes_on() {
    let mut fixture = fixture(3, 4, 40);
    let [mut a, mut b] = ["a", "b"].map(|prompt| fixture.submit(prompt, 9));
    let mut long = fixture.submit("cdefghijklmno", 3);
    fixture.turns(3);
    fixture.script.lock().unwrap().failing = Some('b');
    fixture.turns(1);
    for answer in [&mut a, &mut b] {
        let heard = hear(answer);
        assert_eq!(
            heard.text,
            alone(if heard.ids == ids(&alone("a", 4)) { "a" } else { "b" }, heard.ids.len())
        );
        assert_eq!(heard.failed.unwrap().to_string(), "decoding step: script: b fails as planned");
    }
    // The one whose prompt was being processed was in no step.
    fixture.script.lock().unwrap().failing = None;
    let mut later = fixture.submit("b", 4);
    fixture.finish();
    assert_eq!([hear(&mut long).text, hear(&mut later).text], [alone("cdefghijklmno", 3), alone("b", 4)]);
    let stats = fixture.engine.stats();
    assert_eq!((stats.requests.failed, stats.requests.length, stats.pages_free), (2, 2, 40));
}

#[test]
fn a_failing_prompt_fails_alone() {
    let mut fixture = fixture(3, 4, 40);
    fixture.script.lock().unwrap().failing = Some('b');
    let [mut a, mut b] = ["a", "b"].map(|prompt| fixture.submit(prompt, 9));
    fixture.finish();
    assert_eq!(hear(&mut a).text, alone("a", 9));
    let heard = hear(&mut b);
    assert_eq!(heard.failed.unwrap().to_string(), "script: b fails as planned");
    assert_eq!(fixture.free_pages(), 40);
}

#[test]
fn damaged_scores_fail_only_their_own_answer() {
    let mut fixture = fixture(3, 4, 40);
    let [mut a, mut b, mut c] = ["a", "b", "c"].map(|prompt| fixture.submit(prompt, 9));
    fixture.turns(4);
    fixture.script.lock().unwrap().damaged = Some('b');
    fixture.finish();
    assert_eq!([hear(&mut a).text, hear(&mut c).text], [alone("a", 9), alone("c", 9)]);
    assert!(hear(&mut b).failed.unwrap().to_string().contains("NaN"));
}
