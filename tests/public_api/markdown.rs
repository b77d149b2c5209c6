//! Rust in Markdown: what a reader of the documentation sees of it.

/// What stands in ``` after the first of them that is not Rust for rustdoc.
const OTHER: [&str; 7] = ["text", "ignore", "json", "toml", "sh", "python", "html"];

/// The blocks of Rust in `text`, without the lines that rustdoc hides.
pub fn rust_blocks(text: &str) -> Vec<String> {
    let (mut blocks, mut open): (Vec<String>, Option<Option<String>>) = (Vec::new(), None);
    for line in text.lines().map(str::trim) {
        match (line.strip_prefix("```"), open.as_mut()) {
            (Some(_), Some(_)) => blocks.extend(open.take().flatten()),
            (Some(tags), None) => {
                let rust = !tags.split([',', ' ']).any(|tag| OTHER.contains(&tag));
                open = Some(rust.then(String::new));
            }
            (None, Some(Some(block))) if !is_hidden(line) => block.extend([line, "\n"]),
            _ => {}
        }
    }
    blocks
}

fn is_hidden(line: &str) -> bool {
    line == "#" || line.starts_with("# ")
}
