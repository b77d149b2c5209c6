//! What `codecllm plan` foretells, against what loading and generating take; its exit codes; and the guide's table.

mod cli_fixture;
mod tiny_llama;

use std::path::Path;

use cli_fixture::{run, Fixture};
use codecllm::model::{LlamaConfig, PagedKvCache};
use codecllm::plan::{stored, Memory, ModelShape, Place, Workload};
use codecllm::runtime::{LoadOptions, Model};
use serde_json::Value;
use tch::Kind;
use tiny_llama::{downloaded, full_config, TinyLlama};

fn choice<'a>(plan: &'a Value, name: &str) -> &'a Value {
    plan["choices"].as_array().unwrap().iter().find(|choice| choice["name"] == name).unwrap()
}

/// Bytes of weights and of the cache are what a loaded model has, in every dtype, dense and compressed, with and without biases.
#[test]
fn weights_and_cache_are_counted_to_the_byte() {
    let biased = TinyLlama::new(&full_config(), 3);
    let out = biased.dir().with_file_name("out");
    let dir = biased.dir();
    assert_eq!(run(&["compress", dir.to_str().unwrap(), "-o", out.to_str().unwrap()]).code, 0);
    let mut dirs = vec![dir, out];
    dirs.extend(downloaded("stories15M"));
    dirs.extend(downloaded("SmolLM2-135M-Instruct"));
    for dir in dirs {
        for kind in [Kind::Half, Kind::BFloat16, Kind::Float] {
            let model = Model::load(&dir, &LoadOptions { kind, ..LoadOptions::default() }).unwrap();
            let config = LlamaConfig::from_dir(&dir).unwrap();
            let choice = match stored(&dir, kind).unwrap().0 {
                Some(choice) => choice,
                None => codecllm::plan::estimates(&ModelShape::of(&config), kind, None).remove(0),
            };
            assert_eq!(choice.weight_bytes, model.weight_bytes() as u64, "{} {kind:?}", dir.display());
            let workload = Workload { context: 77, batch: 3, kind };
            let memory = Memory::of(&config, &choice, &workload, Place::Cpu);
            let cache = model.new_cache(3, 77).unwrap();
            assert_eq!(memory.cache_bytes, cache.bytes() as u64, "{} {kind:?}", dir.display());
            // In pages, where a sequence takes whole ones.
            let pages = 3 * PagedKvCache::pages_for(77);
            let paged = PagedKvCache::page_bytes(&config, kind, tch::Device::Cpu) * pages;
            let whole = Workload { context: 77usize.next_multiple_of(PagedKvCache::PAGE_TOKENS), ..workload };
            let memory = Memory::of(&config, &choice, &whole, Place::Cpu);
            assert_eq!(memory.cache_bytes, paged as u64, "{} {kind:?}", dir.display());
        }
    }
}

/// The sum is within 20 % of what the process of a real run had at its peak: prompt and answer fill the context.
#[test]
fn a_real_run_takes_what_was_planned() {
    let Some(model) = downloaded("SmolLM2-135M-Instruct") else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("int8");
    let [model, out] = [model.to_str().unwrap(), out.to_str().unwrap()];
    assert_eq!(run(&["compress", model, "-o", out]).code, 0);
    let prompt = "The quick brown fox jumps over the lazy dog. ".repeat(30);
    for (dir, name) in [(model, "dense"), (out, "as it is")] {
        let generated = run(&[
            "generate",
            dir,
            "--prompt",
            &prompt,
            "--raw",
            "--max-new-tokens",
            "8",
            "--threads",
            "1",
            "--json",
        ])
        .json();
        let tokens = generated["prompt_tokens"].as_u64().unwrap() + generated["new_tokens"].as_u64().unwrap();
        let plan = ["plan", dir, "--cpu", "--memory", "16GB", "--context", &tokens.to_string(), "--json"];
        let plan = run(&plan).json();
        let planned = choice(&plan, name);
        assert_eq!(planned["memory"]["weight_bytes"], generated["weight_bytes"], "{name}");
        let ratio = planned["total_bytes"].as_f64().unwrap() / generated["peak_rss_bytes"].as_f64().unwrap();
        println!("{name}, {tokens} tokens: planned {}, ratio {ratio:.3}", planned["memory"]);
        assert!((0.8..=1.2).contains(&ratio), "{name}: {ratio} of {}", generated["peak_rss_bytes"]);
    }
}

#[test]
fn sampling_is_closer_than_an_estimate() {
    let Some(model) = downloaded("stories15M") else { return };
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("out").display().to_string();
    let model = model.to_str().unwrap();
    assert_eq!(run(&["compress", model, "-o", &out]).code, 0);
    let plan =
        |arguments: &[&str]| run(&[&["plan"], arguments, &["--memory", "1GB", "--json"]].concat()).json();
    let compressed = plan(&[&out]);
    let true_bytes = choice(&compressed, "as it is")["weight_bytes"].as_f64().unwrap();
    let sampled = plan(&[model, "--exact"]);
    let sampled = choice(&sampled, "int8");
    assert_eq!(sampled["basis"], "sampled");
    let error = (sampled["weight_bytes"].as_f64().unwrap() / true_bytes - 1.0).abs();
    assert!(error < 0.02, "{error}");
    let estimated = plan(&[model]);
    assert_eq!(choice(&estimated, "int8")["basis"], "estimate");
    // Of an FP32 checkpoint nobody knows.
    let names: Vec<&str> =
        estimated["choices"].as_array().unwrap().iter().map(|it| it["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["dense", "near", "int8", "balanced", "small"]);
}

#[test]
fn the_exit_code_says_whether_anything_fits() {
    let plan = |line: &str| run(&line.split_whitespace().collect::<Vec<_>>());
    let fits = plan("plan --config 8b --gpu h100");
    assert_eq!(fits.code, 0, "{}", fits.stderr);
    assert!(fits.stdout.contains("80.00 GB (74.51 GiB)") && fits.stdout.contains("~7.30"), "{}", fits.stdout);
    let none = plan("plan --config 70b --memory 24GB --json");
    assert_eq!(none.code, 1);
    assert!(
        none.stderr.starts_with("error: nothing fits 24.00 GB (22.35 GiB): small needs "),
        "{}",
        none.stderr
    );
    assert_eq!(none.one_object()["choices"].as_array().unwrap().len(), 6);
    assert!(none.one_object()["choices"].as_array().unwrap().iter().all(|choice| choice["fits"] == false));
    for (line, about) in [
        ("plan --memory 24GB", "MODEL"),
        ("plan m --memory 24", "24GiB"),
        ("plan m --memory 24GB --gpu gtx", "gtx"),
        ("plan m --cpu", "--memory"),
        ("plan --config 8b --exact --memory 1GB", "--exact"),
        ("plan --config 8b --memory 1GB --batch 0", "1 or more"),
    ] {
        let run = plan(line);
        assert_eq!((run.code, run.stdout.as_str()), (2, ""), "{line}");
        assert!(run.stderr.contains(about), "{line}: {}", run.stderr);
    }
    let fixture = Fixture::new();
    let long = ["plan", &fixture.model(), "--memory", "1GB", "--context", "2049"];
    run(&long).assert_fails("--context", "at most 2048");
    let gone = fixture.path("gone");
    run(&["plan", &gone, "--memory", "1GB"]).assert_fails(&format!("{gone}/config.json"), "");
}

#[test]
fn units_and_cards_mean_what_they_say() {
    let memory = |arguments: &[&str]| {
        run(&[&["plan", "--config", "1b", "--json"], arguments].concat()).json()["memory_bytes"]
            .as_u64()
            .unwrap()
    };
    assert_eq!(memory(&["--memory", "24GB"]), 24_000_000_000);
    assert_eq!(memory(&["--memory", "24GiB"]), 24 << 30);
    assert_eq!(memory(&["--memory", "80G"]), 80_000_000_000);
    assert_eq!(memory(&["--gpu", "4090"]), 24_000_000_000);
    assert_eq!(memory(&["--gpu", "4090", "--memory", "20GB"]), 20_000_000_000);
}

/// docs/guide.md's table of what fits; `UPDATE_GUIDE=1 cargo test --test plan guide` writes it anew.
#[test]
fn the_guide_shows_what_the_planner_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guide.md");
    let guide = std::fs::read_to_string(&path).unwrap();
    let (begin, end) = ("<!-- plan: begin -->\n", "<!-- plan: end -->");
    let (head, rest) = guide.split_once(begin).unwrap();
    let (table, tail) = rest.split_once(end).unwrap();
    let wanted = guide_table();
    if std::env::var_os("UPDATE_GUIDE").is_some() {
        return std::fs::write(&path, format!("{head}{begin}{wanted}{end}{tail}")).unwrap();
    }
    assert_eq!(table, wanted, "the guide is out of date: UPDATE_GUIDE=1 cargo test --test plan guide");
}

/// For each memory and shape the best preset that fits and the longest context it leaves.
fn guide_table() -> String {
    let shapes = ["1b", "3b", "8b", "13b", "34b", "70b"];
    let mut table = format!("| memory | {} |\n|---|{}\n", shapes.join(" | "), "---|".repeat(shapes.len()));
    for memory in ["8GB", "12GB", "24GB", "80GB", "141GB"] {
        let cells: Vec<String> = shapes.iter().map(|shape| guide_cell(shape, memory)).collect();
        table += &format!("| {memory} | {} |\n", cells.join(" | "));
    }
    table
}

fn guide_cell(shape: &str, memory: &str) -> String {
    let run = run(&["plan", "--config", shape, "--memory", memory, "--context", "4096", "--json"]);
    let plan = run.one_object();
    let best = plan["choices"].as_array().unwrap().iter().find(|choice| choice["fits"] == true);
    best.map_or("-".to_owned(), |choice| {
        format!("{}, {}", choice["name"].as_str().unwrap(), choice["largest_context"])
    })
}
