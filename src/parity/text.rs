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
    /// `InvalidArgument` where there are fewer than two tokens, or where the models differ in vocabulary or tokenizer.
    pub(crate) fn read(
        file: &Path,
        dirs: [&Path; 2],
        window: Option<usize>,
        max_windows: Option<usize>,
    ) -> Result<Self> {
        let subject = file.display().to_string();
        let text = read_utf8(file)?;
        let longest = check_same_vocabulary(dirs)?;
        let window = choose_window(window, longest)?;
        let ids = tokens(&text, dirs)?;
        if ids.len() < 2 {
            return Err(Error::invalid(
                subject,
                format!("has {} tokens, wanted at least 2: one to read and one to predict", ids.len()),
            ));
        }
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

/// Checks that the vocabularies are equally large and gives the longest context that both models allow.
fn check_same_vocabulary([reference, compressed]: [&Path; 2]) -> Result<usize> {
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
    Ok(wanted.max_position_embeddings.min(got.max_position_embeddings))
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

fn tokens(text: &str, [reference, compressed]: [&Path; 2]) -> Result<Vec<i64>> {
    let wanted = Tokenizer::from_dir(reference)?.encode(text, true)?;
    if reference != compressed {
        let got = Tokenizer::from_dir(compressed)?.encode(text, true)?;
        if let Some(at) = first_difference(&wanted, &got) {
            return Err(Error::invalid(
                compressed.join("tokenizer.json").display().to_string(),
                format!(
                    "token {at} of the text is another than in {} (not the same model?)",
                    reference.display()
                ),
            ));
        }
    }
    Ok(wanted.into_iter().map(i64::from).collect())
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
