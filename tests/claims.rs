//! How threads share a loop (`ops::parallel`), in every order in which they can run: loom tries them all.

#[path = "../src/ops/parallel/claims.rs"]
mod claims;

use claims::Claims;
// Also what `claims.rs` takes its atomics from.
use loom::sync::{atomic, Arc};
use loom::thread;

/// Everything that one thread claims.
fn take_all(claims: &Claims) -> Vec<usize> {
    std::iter::from_fn(|| Some(claims.claim()).filter(|claimed| !claimed.is_empty())).flatten().collect()
}

fn every_index_is_claimed_once(count: usize, threads: usize) {
    let mut model = loom::model::Builder::new();
    // With three threads all orders are too many; four switches where nobody waits are what races need.
    model.preemption_bound = (threads > 2).then_some(4);
    model.check(move || {
        let claims = Arc::new(Claims::new(count, threads));
        let spawn = |_| {
            let claims = claims.clone();
            thread::spawn(move || take_all(&claims))
        };
        let others: Vec<_> = (1..threads).map(spawn).collect();
        let mut taken = take_all(&claims);
        taken.extend(others.into_iter().flat_map(|other| other.join().unwrap()));
        taken.sort_unstable();
        assert_eq!(taken, (0..count).collect::<Vec<_>>());
    });
}

#[test]
fn two_threads_share_runs_and_single_indices() {
    for count in [0, 1, 2, 3, 20] {
        every_index_is_claimed_once(count, 2);
    }
}

#[test]
fn three_threads_share_a_few() {
    for count in [1, 2, 4] {
        every_index_is_claimed_once(count, 3);
    }
}
