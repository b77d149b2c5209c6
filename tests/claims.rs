//! How threads share a loop (`ops::parallel`), in the orders in which they can run: loom tries them, with every value that an
//! atomic may show.

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

/// `runs_for`: the number of threads that runs are cut for; fewer than there are makes them long.
fn every_index_is_claimed_once(count: usize, threads: usize, runs_for: usize) {
    let mut model = loom::model::Builder::new();
    // All orders are too many; races need few switches where nobody waits.
    model.preemption_bound = Some(3);
    model.check(move || {
        let claims = Arc::new(Claims::new(count, runs_for));
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
fn two_threads_share_single_indices() {
    for count in 0..4 {
        every_index_is_claimed_once(count, 2, 2);
    }
}

#[test]
fn two_threads_share_runs() {
    // Runs of 2, 1, 1, 1 and so on.
    every_index_is_claimed_once(8, 2, 1);
}

#[test]
fn three_threads_share_a_few() {
    for count in 1..3 {
        every_index_is_claimed_once(count, 3, 3);
    }
}
