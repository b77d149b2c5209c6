//! Every public item has an example or the reason why it has none of its own (CONTRIBUTING.md says in which words).

mod public_api;

use std::path::Path;

use public_api::shown::{complaint, examples, Example};
use public_api::{markdown, read, Api};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

#[test]
fn every_public_item_has_an_example_or_a_reason() {
    let items = read(&root().join("src/lib.rs"));
    // What is reached through modules that are not public, too.
    for path in
        ["plan::Memory::of", "runtime::Generator", "codec::Layout::ALL", "serve::engine::Engine::submit"]
    {
        assert!(items.iter().any(|api| api.path == path), "{path} was not found");
    }
    assert!(items.iter().all(|api| !api.path.starts_with("ops")), "`ops` is not public");
    let examples = examples(&items, root());
    let complaints: Vec<String> = items.iter().filter_map(|api| complaint(api, &items, &examples)).collect();
    assert!(
        complaints.is_empty(),
        "{} of {} items:\n{}\nwanted a block of code in their documentation, or a sentence such as \"Made by [`plan`]; see its \
         example.\" (of `examples/chat.rs`: \"; see `examples/chat.rs`.\") that names an example which shows them",
        complaints.len(),
        items.len(),
        complaints.join("\n")
    );
}

fn item(path: &str, docs: &str, parts: &[&str], is_associated: bool) -> Api {
    let parts = parts.iter().map(|&part| part.to_owned()).collect();
    Api { path: path.to_owned(), docs: docs.to_owned(), parts, is_associated }
}

/// What is said of an item `report::Report` with this documentation, beside `make` whose example makes one.
fn said_of(docs: &str) -> Option<String> {
    let make = item("report::make", "", &[], false);
    let example = Example::new("report::make", "assert!(make().is_good());");
    complaint(&item("report::Report", docs, &["is_good"], false), &[make], &[example])
}

#[test]
fn a_reason_names_an_example_that_shows_the_item() {
    assert!(said_of("Figures.").unwrap().contains("neither"));
    assert_eq!(said_of("Figures. Made by [`make`];\nsee its example."), None);
    assert_eq!(said_of("Figures. Made by [`make`](super::report::make); see its example."), None);
    assert!(said_of("Figures. Made by [`other`]; see its example.").unwrap().contains("other"));
    assert!(said_of("```no_run\nmake();\n```").unwrap().contains("does not say why"));
    let unrelated = item("report::Other", "Made by [`make`]; see its example.", &["bits"], false);
    let example = Example::new("report::make", "assert!(make().is_good());");
    assert!(complaint(&unrelated, &[], &[example]).unwrap().contains("no example of which shows it"));
}

#[test]
fn a_method_is_shown_by_an_example_that_calls_it_on_its_type() {
    let report = item("report::Report", "", &["is_good"], false);
    let method = item("report::Report::is_good", "", &[], true);
    let called = |of: &str, code: &str| {
        complaint(&method, std::slice::from_ref(&report), &[Example::new(of, code)]).is_none()
    };
    assert!(called("report::Report", "assert!(report.is_good());"));
    assert!(called("README.md", "Report::new().is_good();"));
    assert!(!called("README.md", "pear.is_good();"), "of another type");
    assert!(!called("report::Report", "let report = 1; // is_good"), "a comment");
}

#[test]
fn only_what_a_reader_sees_of_rust_is_an_example() {
    let text = "```no_run\na();\n# hidden();\n#[b]\n```\ntext\n```text\nc\n```\n```ignore\nd();\n```\n```\ne();\n```";
    let blocks = markdown::rust_blocks(text);
    assert_eq!(blocks.iter().map(|block| &*block.code).collect::<Vec<_>>(), ["a();\n#[b]\n", "e();\n"]);
    assert_eq!([blocks[0].no_run, blocks[1].no_run], [true, false]);
}
