//! Many threads, one compressed model on disk or in memory: the answers are those of one.

mod cli_fixture;
mod tiny_llama;

use std::ops::ControlFlow;
use std::sync::Barrier;

use cli_fixture::Fixture;
use codecllm::checkpoint::{compress, verify, CompressOptions, Reader};
use codecllm::runtime::{GenerateOptions, Generator, LoadOptions, Prompt};

const THREADS: usize = 8;

/// Runs `work` on all threads at once and returns what each gave.
fn together<T: Send>(work: impl Fn(usize) -> T + Sync) -> Vec<T> {
    let start = Barrier::new(THREADS);
    std::thread::scope(|scope| {
        let run = |thread| {
            let (start, work) = (&start, &work);
            scope.spawn(move || {
                start.wait();
                work(thread)
            })
        };
        let threads: Vec<_> = (0..THREADS).map(run).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}

fn answer(generator: &Generator, thread: usize) -> Vec<u32> {
    let options = GenerateOptions { max_new_tokens: 12, ..GenerateOptions::default() };
    let prompt = Prompt::Text(format!("thread {}", thread % 3));
    let mut answers = generator.generate(&[prompt], &options, &mut |_| ControlFlow::Continue(())).unwrap();
    answers.remove(0).token_ids
}

#[test]
fn one_directory_loaded_many_times_at_once_answers_alike() {
    let fixture = Fixture::new();
    let out = fixture.compressed();
    let load = || Generator::open(&out, &LoadOptions::default()).unwrap();
    let alone = load();
    let wanted: Vec<_> = (0..THREADS).map(|thread| answer(&alone, thread)).collect();
    assert_eq!(together(|thread| answer(&load(), thread)), wanted);
}

#[test]
fn one_model_answers_many_threads_alike() {
    let fixture = Fixture::new();
    for dir in [fixture.compressed(), fixture.model()] {
        let generator = Generator::open(dir, &LoadOptions::default()).unwrap();
        let alone: Vec<_> = (0..THREADS).map(|thread| answer(&generator, thread)).collect();
        for _ in 0..4 {
            assert_eq!(together(|thread| answer(&generator, thread)), alone);
        }
    }
}

#[test]
fn one_reader_serves_many_threads() {
    let fixture = Fixture::new();
    let reader = Reader::open(fixture.compressed()).unwrap();
    let names: Vec<&str> = reader.names().collect();
    let alone: Vec<_> = names.iter().map(|name| reader.read_bytes(name).unwrap()).collect();
    for got in together(|thread| {
        let mut own: Vec<_> = names.iter().enumerate().collect();
        own.rotate_left(thread * names.len() / THREADS);
        own.into_iter().all(|(at, name)| reader.read_bytes(name).unwrap() == alone[at])
    }) {
        assert!(got);
    }
}

#[test]
fn one_output_that_many_write_at_once_is_one_of_theirs() {
    let fixture = Fixture::new();
    let out = fixture.beside("out");
    let before = fixture.entries();
    let results = together(|_| compress(fixture.tiny.dir(), &out, &CompressOptions::default(), &mut |_| {}));
    assert_eq!(results.iter().filter(|result| result.is_ok()).count(), 1, "{results:?}");
    for error in results.iter().filter_map(|result| result.as_ref().err()) {
        assert!(error.to_string().contains("output directory exists"), "{error}");
    }
    assert!(verify(&out, Some(&fixture.tiny.dir()), &mut |_| {}).unwrap().ok);
    assert_eq!(fixture.entries().len(), before.len() + 1, "{:?}", fixture.entries());
}
