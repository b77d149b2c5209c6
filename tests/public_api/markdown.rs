//! Rust in Markdown: what a reader of the documentation sees of it.

/// What stands in ``` after the first of them that is not Rust for rustdoc.
const OTHER: [&str; 7] = ["text", "ignore", "json", "toml", "sh", "python", "html"];

/// A block of Rust.
#[derive(Debug, Default, PartialEq)]
pub struct Block {
    /// Without the lines that rustdoc hides.
    pub code: String,
    /// Whether it is compiled only.
    pub no_run: bool,
}

/// The blocks of Rust in `text`.
pub fn rust_blocks(text: &str) -> Vec<Block> {
    let (mut blocks, mut open): (Vec<Block>, Option<Option<Block>>) = (Vec::new(), None);
    for line in text.lines().map(str::trim) {
        match (line.strip_prefix("```"), open.as_mut()) {
            (Some(_), Some(_)) => blocks.extend(open.take().flatten()),
            (Some(tags), None) => {
                let tags: Vec<&str> = tags.split([',', ' ']).collect();
                let rust = !tags.iter().any(|tag| OTHER.contains(tag));
                open = Some(rust.then(|| Block { no_run: tags.contains(&"no_run"), ..Block::default() }));
            }
            (None, Some(Some(block))) if !is_hidden(line) => block.code.extend([line, "\n"]),
            _ => {}
        }
    }
    blocks
}

fn is_hidden(line: &str) -> bool {
    line == "#" || line.starts_with("# ")
}
