//! The table of attacks in `docs/security.md` names tests: each is there.

use std::path::{Path, PathBuf};

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn text(path: impl AsRef<Path>) -> String {
    let path = root().join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// All Rust files below `folder`.
fn rust_files(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    entries
        .flat_map(|path| match path.is_dir() {
            true => rust_files(&path),
            false => vec![path],
        })
        .filter(|path| path.extension().is_some_and(|extension| extension == "rs"))
        .collect()
}

/// The names of all tests, of the library's too.
fn tests() -> Vec<String> {
    let files = ["tests", "src"].iter().flat_map(|folder| rust_files(&root().join(folder)));
    let mut names = Vec::new();
    for source in files.map(text) {
        let mut lines = source.lines().map(str::trim);
        while lines.by_ref().any(|line| line == "#[test]") {
            // Other attributes may stand between.
            let name =
                lines.by_ref().find_map(|line| line.strip_prefix("fn ")).expect("a test has a function");
            names.push(name.split('(').next().unwrap().to_owned());
        }
    }
    names
}

/// The rows of the first table, without its head: their cells.
fn attacks() -> Vec<[String; 3]> {
    let page = text("docs/security.md");
    let rows = page
        .lines()
        .skip_while(|line| !line.starts_with('|'))
        .skip(2)
        .take_while(|line| line.starts_with('|'));
    rows.map(|row| {
        let cells: Vec<String> =
            row.trim_matches('|').split(" | ").map(|cell| cell.trim().to_owned()).collect();
        cells.try_into().unwrap_or_else(|_| panic!("three cells are wanted: {row}"))
    })
    .collect()
}

/// What stands between backticks.
fn names_in(cell: &str) -> impl Iterator<Item = &str> {
    cell.split('`').skip(1).step_by(2)
}

fn is_there(name: &str, tests: &[String]) -> bool {
    if let Some(target) = name.strip_prefix("make ") {
        return text("Makefile").lines().any(|line| line.starts_with(&format!("{target}:")));
    }
    if name.contains(['/', '.']) && !name.ends_with("...") {
        return root().join(name).exists();
    }
    let fuzzed = root().join("fuzz/fuzz_targets").join(name).with_extension("rs").exists();
    fuzzed
        || match name.strip_suffix("...") {
            Some(start) => tests.iter().any(|test| test.starts_with(start)),
            None => tests.iter().any(|test| test == name),
        }
}

#[test]
fn every_test_in_the_table_of_attacks_exists() {
    let tests = tests();
    for [attack, _, test] in attacks() {
        assert!(names_in(&test).count() > 0, "no test is named for: {attack}");
        for name in names_in(&test) {
            assert!(is_there(name, &tests), "{attack}: there is no {name}");
        }
    }
}

#[test]
fn what_is_not_there_is_noticed() {
    let tests = tests();
    for there in [
        "tests/security_doc.rs",
        "what_is_not_there_is_noticed",
        "what_is_not...",
        "decode_tile",
        "make fuzz",
    ] {
        assert!(is_there(there, &tests), "{there}");
    }
    for missing in ["tests/security_docs.rs", "what_is_not", "what_is_gone...", "decode_tiles", "make fuz"] {
        assert!(!is_there(missing, &tests), "{missing}");
    }
    assert!(attacks().len() > 15);
}
