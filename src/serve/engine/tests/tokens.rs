//! Tokens and what comes with them: sampling, log-probabilities, figures.

use super::*;
use crate::runtime::SamplerOptions;

fn sampled(prompt: &str, seed: u64) -> Request {
    let mut request = request(prompt, 12);
    request.options.ignore_stop_tokens = true;
    request.options.sampling = SamplerOptions { temperature: 3.0, top_k: None, top_p: None, seed };
    request
}

#[test]
fn a_sampled_answer_depends_on_its_seed_and_not_on_the_others() {
    let lonely = |seed| {
        let mut fixture = fixture(4, 8, 100);
        let mut answer = fixture.engine.submit(sampled("a", seed)).unwrap();
        fixture.finish();
        hear(&mut answer).ids
    };
    let mut fixture = fixture(4, 8, 100);
    let _other = fixture.submit("b", 20);
    let mut answers = [7, 8].map(|seed| fixture.engine.submit(sampled("a", seed)).unwrap());
    fixture.finish();
    let heard = answers.each_mut().map(|answer| hear(answer).ids);
    assert_eq!(heard, [lonely(7), lonely(8)]);
    assert_ne!(heard[0], heard[1]);
}

#[test]
fn logprobs_are_of_the_model_and_with_each_token() {
    let mut fixture = fixture(4, 8, 100);
    let request = Request { logprobs: Some(2), ..request("a", 3) };
    let mut answer = fixture.engine.submit(request).unwrap();
    fixture.finish();
    let heard = hear(&mut answer);
    assert_eq!((heard.text.clone(), heard.logprobs.len()), (alone("a", 3), 3));
    for (logprobs, letter) in heard.logprobs.iter().zip(heard.text.chars()) {
        let chosen = &logprobs.chosen;
        assert_eq!(
            (chosen.text.as_str(), chosen.bytes.as_slice()),
            (&*letter.to_string(), &[letter as u8][..])
        );
        let others = (0..=LETTERS).filter(|&token| token != chosen.id);
        let total = 3f64.exp() + others.clone().map(|token| (-0.01 * f64::from(token)).exp()).sum::<f64>();
        assert!((f64::from(chosen.logprob) - (3.0 - total.ln())).abs() < 1e-6);
        let second = others.min().unwrap();
        assert_eq!(logprobs.top.iter().map(|token| token.id).collect::<Vec<_>>(), [chosen.id, second]);
        assert_eq!(&logprobs.top[0], chosen);
    }
}

#[test]
fn logits_are_fetched_of_those_rows_only_that_need_them() {
    let mut fixture = fixture(4, 8, 100);
    let _greedy = ["a", "b"].map(|prompt| fixture.submit(prompt, 20));
    fixture.finish();
    assert_eq!(fixture.script.lock().unwrap().rows_fetched, 0);
    let _greedy = ["a", "b"].map(|prompt| fixture.submit(prompt, 20));
    let _sampled = fixture.engine.submit(sampled("c", 1)).unwrap();
    fixture.finish();
    assert_eq!(fixture.script.lock().unwrap().rows_fetched, 12);
}

#[test]
fn figures_add_up() {
    let mut fixture = fixture(4, 8, 100);
    let _answers = ["abcdef", "b"].map(|prompt| fixture.submit(prompt, 5));
    fixture.finish();
    let stats = fixture.engine.stats();
    assert_eq!((stats.prompt_tokens, stats.completion_tokens, stats.prefill_pieces), (7, 10, 3));
    // a: two pieces, then b's; the first step of b is the second of a.
    assert_eq!((stats.steps, stats.last_step_rows), (5, 1));
    assert_eq!((stats.time_to_first_token.count, stats.step_seconds.count), (2, 5));
    let cumulative = &stats.step_seconds.counts;
    assert!(cumulative.is_sorted() && cumulative.last() <= Some(&5), "{cumulative:?}");
    assert!(stats.tokens_per_second > 0.0);
    let json = serde_json::to_value(&stats).unwrap();
    assert_eq!((&json["state"], &json["requests"]["length"]), (&json!("running"), &json!(2)));
}
