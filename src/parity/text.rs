//! The text that both models read: the same tokens, in windows.

use std::path::Path;

use super::DEFAULT_WINDOW;
use crate::error::{Error, Result};
use crate::model::LlamaConfig;
use crate::runtime::Tokenizer;

/// A text as tokens, cut into windows.
#[derive(Debug)]
pub(crate) struct Text {
    ids: Vec<i64>,
    window: usize,
    windows: usize,
}

impl Text {
    /// Reads `file` as the tokens that both model directories give it.
    ///
    /// `InvalidArgument` where the text is shorter than one window, where the models differ in vocabulary or tokenizer, or where a
    /// tokenizer does not belong to its model.
    pub(crate) fn read(
        file: &Path,
        dirs: [&Path; 2],
        window: Option<usize>,
        max_windows: Option<usize>,
    ) -> Result<Self> {
        let subject = file.display().to_string();
        let text = read_utf8(file)?;
        let Shared { vocab_size, longest } = check_same_vocabulary(dirs)?;
        let window = choose_window(window, longest)?;
        let ids = tokens(&text, dirs, vocab_size)?;
        check_length(ids.len(), window, &subject)?;
        let windows = windows_of(ids.len(), window).min(max_windows.unwrap_or(usize::MAX));
        if windows == 0 {
            return Err(Error::invalid("--max-windows", "0, wanted at least 1"));
        }
        Ok(Self { ids, window, windows })
    }

    /// The windows, the last one possibly shorter.
    pub(crate) fn windows(&self) -> impl Iterator<Item = &[i64]> {
        self.ids.chunks(self.window).take(self.windows)
    }

    /// Tokens of a window.
    pub(crate) fn window(&self) -> usize {
        self.window
    }

    /// How many windows there are.
    pub(super) fn count(&self) -> usize {
        self.windows
    }
}

fn check_length(tokens: usize, window: usize, subject: &str) -> Result<()> {
    match tokens {
        0 | 1 => Err(Error::invalid(
            subject,
            format!("has {tokens} tokens, wanted at least 2: one to read and one to predict"),
        )),
        tokens if tokens < window => Err(Error::invalid(
            subject,
            format!("has {tokens} tokens, wanted at least one window of {window} (a longer text, or a window of {tokens})"),
        )),
        _ => Ok(()),
    }
}

/// Windows of at least two tokens: a last one of a single token predicts nothing.
fn windows_of(tokens: usize, window: usize) -> usize {
    tokens / window + usize::from(tokens % window >= 2)
}

fn read_utf8(file: &Path) -> Result<String> {
    let bytes = std::fs::read(file).map_err(|e| Error::io(file, e))?;
    let subject = || file.display().to_string();
    if bytes.is_empty() {
        return Err(Error::invalid(subject(), "is empty, wanted a text of at least 2 tokens"));
    }
    String::from_utf8(bytes).map_err(|e| {
        let at = e.utf8_error().valid_up_to();
        Error::invalid(subject(), format!("is not UTF-8 at byte {at}, wanted a text")).with_source(e)
    })
}

/// What both models have.
struct Shared {
    vocab_size: usize,
    /// The longest context that both allow, tokens.
    longest: usize,
}

/// Checks that the vocabularies are equally large.
fn check_same_vocabulary([reference, compressed]: [&Path; 2]) -> Result<Shared> {
    let (wanted, got) = (LlamaConfig::from_dir(reference)?, LlamaConfig::from_dir(compressed)?);
    if got.vocab_size != wanted.vocab_size {
        return Err(Error::invalid(
            compressed.join("config.json").display().to_string(),
            format!(
                "vocab_size is {}, wanted {} as in {} (not the same model?)",
                got.vocab_size,
                wanted.vocab_size,
                reference.display()
            ),
        ));
    }
    let longest = wanted.max_position_embeddings.min(got.max_position_embeddings);
    Ok(Shared { vocab_size: wanted.vocab_size, longest })
}

fn choose_window(wanted: Option<usize>, longest: usize) -> Result<usize> {
    match wanted {
        None => Ok(DEFAULT_WINDOW.min(longest)),
        Some(window) if (2..=longest).contains(&window) => Ok(window),
        Some(window) => Err(Error::invalid(
            "--window",
            format!("{window} tokens, wanted 2 to {longest} (max_position_embeddings of the model)"),
        )),
    }
}

fn tokens(text: &str, [reference, compressed]: [&Path; 2], vocab_size: usize) -> Result<Vec<i64>> {
    let wanted = tokens_of(text, reference, vocab_size)?;
    if reference != compressed {
        let got = tokens_of(text, compressed, vocab_size)?;
        if let Some(at) = first_difference(&wanted, &got) {
            return Err(Error::invalid(
                tokenizer_file(compressed),
                format!(
                    "token {at} of the text is another than in {} (not the same model?)",
                    reference.display()
                ),
            ));
        }
    }
    Ok(wanted.into_iter().map(i64::from).collect())
}

/// The tokens that the tokenizer in `dir` gives the text, if it belongs to a model of this vocabulary.
fn tokens_of(text: &str, dir: &Path, vocab_size: usize) -> Result<Vec<u32>> {
    let tokenizer = Tokenizer::from_dir(dir)?;
    let known = tokenizer.vocab_size();
    // Models round their vocabulary up, by a few percent at most; tokenizers get a few tokens added that no model knows.
    if known.abs_diff(vocab_size) > vocab_size / 10 {
        return Err(Error::invalid(
            tokenizer_file(dir),
            format!("has {known} tokens, wanted about {vocab_size}, vocab_size of the model (the tokenizer of another model?)"),
        ));
    }
    let ids = tokenizer.encode(text, true)?;
    match ids.iter().position(|&id| id as usize >= vocab_size) {
        None => Ok(ids),
        Some(at) => Err(Error::invalid(
            tokenizer_file(dir),
            format!(
                "token {at} of the text is {}, wanted less than {vocab_size}, vocab_size of the model (the tokenizer of another model?)",
                ids[at]
            ),
        )),
    }
}

fn tokenizer_file(dir: &Path) -> String {
    dir.join("tokenizer.json").display().to_string()
}

/// Where two token lists first differ, in a token or because one ends.
pub(super) fn first_difference(a: &[u32], b: &[u32]) -> Option<usize> {
    let same = a.iter().zip(b).take_while(|(a, b)| a == b).count();
    (same < a.len().max(b.len())).then_some(same)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_window_of_one_token_is_dropped() {
        assert_eq!([1, 2, 8, 9, 10, 16].map(|tokens| windows_of(tokens, 8)), [0, 1, 1, 1, 2, 2]);
    }

    #[test]
    fn the_first_difference_counts_a_missing_end() {
        assert_eq!(first_difference(&[1, 2], &[1, 2]), None);
        assert_eq!(first_difference(&[1, 2], &[1, 3]), Some(1));
        assert_eq!(first_difference(&[1, 2], &[1, 2, 3]), Some(2));
    }
}
