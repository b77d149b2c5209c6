//! Which public items the examples show: what CONTRIBUTING.md asks of the documentation.

use std::collections::HashSet;
use std::path::Path;

use proc_macro2::{TokenStream, TokenTree};

use super::markdown::rust_blocks;
use super::Api;

/// An example.
pub struct Example {
    /// The item in whose documentation it stands, or a file.
    pub of: String,
    /// All identifiers of its code.
    words: HashSet<String>,
}

impl Example {
    pub fn new(of: &str, code: &str) -> Self {
        let tokens = code.parse().unwrap_or_else(|error| panic!("{of}: {error} in an example\n{code}"));
        let mut words = HashSet::new();
        add_words(tokens, &mut words);
        Self { of: of.to_owned(), words }
    }

    fn shows(&self, api: &Api) -> bool {
        [api.name()].into_iter().chain(api.parts.iter().map(String::as_str)).any(|it| self.words.contains(it))
    }
}

fn add_words(tokens: TokenStream, words: &mut HashSet<String>) {
    for token in tokens {
        match token {
            TokenTree::Ident(word) => drop(words.insert(word.to_string())),
            TokenTree::Group(group) => add_words(group.stream(), words),
            _ => {}
        }
    }
}

/// The examples of all items, of the README and of the folder `examples`: those that a compiler sees.
pub fn examples(items: &[Api], root: &Path) -> Vec<Example> {
    let read = |path: &Path| std::fs::read_to_string(path).unwrap();
    let blocks = |of: &str, text: &str| -> Vec<Example> {
        rust_blocks(text).iter().map(|block| Example::new(of, &block.code)).collect()
    };
    let mut found: Vec<Example> = items.iter().flat_map(|api| blocks(&api.path, &api.docs)).collect();
    found.extend(blocks("README.md", &read(&root.join("README.md"))));
    let files = std::fs::read_dir(root.join("examples")).unwrap().map(|entry| entry.unwrap().path());
    for file in files.filter(|file| file.extension().is_some_and(|end| end == "rs")) {
        let name = file.strip_prefix(root).unwrap().to_str().unwrap();
        found.push(Example::new(name, &read(&file)));
    }
    found
}

/// What is wrong with the documentation of `api`, if anything is.
pub fn complaint(api: &Api, items: &[Api], examples: &[Example]) -> Option<String> {
    if rust_blocks(&api.docs).iter().any(|block| block.no_run && !block.code.starts_with("// ")) {
        return Some(format!("{}: its example does not run, and its first line does not say why", api.path));
    }
    let own = |example: &Example| example.of == api.path;
    if examples.iter().any(own) || (api.is_associated && is_called(api, items, examples)) {
        return None;
    }
    let Some(target) = reason(&api.docs) else {
        return Some(format!("{}: has neither an example nor a reason", api.path));
    };
    let shown = examples.iter().any(|example| is_of(example, &target) && example.shows(api));
    (!shown).then(|| format!("{}: its reason names {target}, no example of which shows it", api.path))
}

/// Whether the example of its type, one that names its type, or that which its type's reason names, calls `api`.
fn is_called(api: &Api, items: &[Api], examples: &[Example]) -> bool {
    let Some(of) = items.iter().find(|it| it.path == api.parent()) else { return false };
    let target = reason(&of.docs);
    let about = |example: &&Example| {
        let siblings =
            example.of.strip_prefix(&of.path).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"));
        siblings
            || example.words.contains(of.name())
            || target.as_ref().is_some_and(|target| is_of(example, target))
    };
    examples.iter().filter(about).any(|example| example.words.contains(api.name()))
}

/// Whether `example` is that of `target`: a file, or an item by its name, which rustdoc holds to be there.
fn is_of(example: &Example, target: &str) -> bool {
    let name = target.rsplit("::").next().unwrap_or(target);
    example.of == target || example.of.rsplit("::").next() == Some(name)
}

/// What the reason in `docs` names: "...[`plan`]...; see its example." or "...; see `examples/chat.rs`."
fn reason(docs: &str) -> Option<String> {
    let docs = docs.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some((_, after)) = docs.split_once("; see `examples/") {
        return after.split_once('`').map(|(file, _)| format!("examples/{file}"));
    }
    let (before, _) = docs.split_once("; see its example.")?;
    let link = &before[before.rfind("[`")? + 2..];
    let (shown, rest) = link.split_once("`]")?;
    let path = rest.strip_prefix('(').and_then(|rest| rest.split(' ').next());
    // `(super::encode())` says that the function is meant, where a module has the same name.
    let target = path.map_or(shown, |path| path.trim_end_matches([',', ')', '(']));
    Some(target.to_owned())
}
