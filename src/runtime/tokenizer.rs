//! Text to tokens and back, all at once or as they come.

use std::path::Path;

use super::token_bytes::ByteTokens;
use crate::error::{Error, ErrorKind, Result};

/// The tokenizer of a model, from its `tokenizer.json`.
///
/// ```
/// use codecllm::runtime::{TextStream, Tokenizer};
/// // One of three words; `Tokenizer::from_dir` reads that of a model.
/// let json = r#"{"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
///     "model": {"type": "WordLevel", "vocab": {"once": 0, "upon": 1, "?": 2}, "unk_token": "?"}}"#;
/// let tokenizer = Tokenizer::from_bytes(json.as_bytes(), "tokenizer.json")?;
/// let ids = tokenizer.encode("once upon", true)?;
/// assert_eq!((&ids[..], tokenizer.decode(&ids)?), (&[0, 1][..], "once upon".to_owned()));
/// assert_eq!((tokenizer.vocab_size(), tokenizer.token_id("upon")), (3, Some(1)));
/// assert_eq!(tokenizer.token_bytes(1)?, b" upon"); // with the space that it brings
/// // As they come: what a token reads as depends on those before it.
/// let mut stream = TextStream::after(&tokenizer, &ids[..1])?;
/// assert_eq!((stream.push(ids[1])?, stream.finish()?), (" upon".to_owned(), String::new()));
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Debug)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    byte_tokens: ByteTokens,
}

impl Tokenizer {
    /// Reads `tokenizer.json` in the model directory `dir`.
    ///
    /// # Errors
    /// `Io` if it cannot be read, `Corrupt` if it is not a tokenizer.
    pub fn from_dir(dir: impl AsRef<Path>) -> Result<Self> {
        let path = dir.as_ref().join("tokenizer.json");
        let bytes = std::fs::read(&path).map_err(|e| Error::io(&path, e))?;
        Self::from_bytes(&bytes, &path.display().to_string())
    }

    /// Reads the bytes of a `tokenizer.json`; `subject` is its name for messages.
    ///
    /// # Errors
    /// `Corrupt` if it is not a tokenizer.
    pub fn from_bytes(bytes: &[u8], subject: &str) -> Result<Self> {
        let mut inner = guarded(|| tokenizers::Tokenizer::from_bytes(bytes))
            .map_err(|e| Error::corrupt(subject, format!("is not a tokenizer: {e}")).with_source(e))?;
        // Settings of training: a prompt is neither cut nor filled up in silence.
        inner.with_truncation(None).map_err(|e| {
            Error::corrupt(subject, "has a truncation that cannot be turned off").with_source(e)
        })?;
        inner.with_padding(None);
        let byte_tokens = ByteTokens::of(&inner);
        Ok(Self { inner, byte_tokens })
    }

    /// The tokens of `text`, with those the model expects around a text (such as `<s>`) if `add_special`.
    ///
    /// # Errors
    /// `InvalidArgument` if the tokenizer has no token for a part of the text.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>> {
        let encoding = guarded(|| self.inner.encode_fast(text, add_special))
            .map_err(|e| tokenizer_error("prompt", e))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// The text of `ids`, special tokens left out.
    ///
    /// # Errors
    /// `InvalidArgument` if the tokenizer cannot put them together.
    pub fn decode(&self, ids: &[u32]) -> Result<String> {
        guarded(|| self.inner.decode(ids, true)).map_err(|e| tokenizer_error("token ids", e))
    }

    /// How many tokens there are, special ones included.
    pub fn vocab_size(&self) -> usize {
        self.inner.get_vocab_size(true)
    }

    /// The token spelled `token`, special ones included.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// How token `id` is spelled in the vocabulary.
    pub(super) fn spelling(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// What token `id` reads as if it was added to the model's own vocabulary, as special tokens are.
    pub(super) fn added_token(&self, id: u32) -> Option<String> {
        let added = self.inner.get_added_vocabulary().get_added_tokens_decoder();
        added.get(&id).map(|token| token.content.clone())
    }

    pub(super) fn byte_tokens(&self) -> ByteTokens {
        self.byte_tokens
    }
}

/// Runs code of the tokenizers crate, which panics on some files that are no tokenizers: whoever loads a stranger's model gets an
/// error instead.
fn guarded<T>(work: impl FnOnce() -> tokenizers::Result<T>) -> tokenizers::Result<T> {
    // What is behind the references is caches, which that crate guards with locks and looks at anew each time.
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic.downcast_ref::<String>().map(String::as_str);
        let text = text.or(panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
        Err(format!("the tokenizers crate panicked: {text}").into())
    })
}

fn tokenizer_error(subject: &str, error: tokenizers::Error) -> Error {
    Error::new(ErrorKind::InvalidArgument, subject, format!("tokenizer: {error}")).with_source(error)
}

/// Turns tokens into text as they come: whole characters only, and spaces where the whole text has them.
///
/// What a token reads as depends on the tokens before it, so a window of them is decoded with and without the
/// new one; the difference is the new text.
///
/// Fed from a [`Tokenizer`]; see its example.
#[derive(Debug)]
pub struct TextStream<'a> {
    tokenizer: &'a Tokenizer,
    window: TextWindow,
}

impl<'a> TextStream<'a> {
    /// A stream that continues the text of `prompt` (which it does not repeat).
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn after(tokenizer: &'a Tokenizer, prompt: &[u32]) -> Result<Self> {
        Ok(Self { tokenizer, window: TextWindow::after(tokenizer, prompt)? })
    }

    /// The text that token `id` completes; empty while a character is incomplete.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn push(&mut self, id: u32) -> Result<String> {
        self.window.push(self.tokenizer, id)
    }

    /// The text still held back: what is left of an incomplete character.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn finish(&mut self) -> Result<String> {
        self.window.finish(self.tokenizer)
    }
}

/// Tokens that are looked back at for text, and that are held back until a character is complete: more than any takes. Whoever has
/// special tokens or U+FFFD repeated would have each step decode all of them otherwise.
const MOST_TOKENS: usize = 16;

/// The window of a [`TextStream`], for who owns no tokenizer: the same one is wanted at every call.
#[derive(Debug)]
pub(crate) struct TextWindow {
    /// Tokens whose text is out, then those held back because a character is incomplete.
    window: Vec<u32>,
    /// How many tokens of the window are out, all of their text.
    shown: usize,
    /// Bytes of the window's text that are out.
    shown_bytes: usize,
}

impl TextWindow {
    pub(crate) fn after(tokenizer: &Tokenizer, prompt: &[u32]) -> Result<Self> {
        // The shortest end of the prompt that reads as something, as much as may be looked at if nothing does.
        let mut text = String::new();
        let mut start = prompt.len();
        let first = start.saturating_sub(MOST_TOKENS);
        while start > first && text.trim_matches(char::REPLACEMENT_CHARACTER).is_empty() {
            start -= 1;
            text = tokenizer.decode(prompt.get(start..).unwrap_or_default())?;
        }
        let window = prompt.get(start..).unwrap_or_default().to_vec();
        Ok(Self { shown: window.len(), window, shown_bytes: text.len() })
    }

    pub(crate) fn push(&mut self, tokenizer: &Tokenizer, id: u32) -> Result<String> {
        self.window.push(id);
        let text = tokenizer.decode(&self.window)?;
        if text.ends_with(char::REPLACEMENT_CHARACTER) {
            return match self.window.len() - self.shown {
                ..=MOST_TOKENS => Ok(String::new()),
                _ => self.release(tokenizer, &text),
            };
        }
        let new = self.unseen(&text);
        self.slide(tokenizer, text.len())?;
        Ok(new)
    }

    pub(crate) fn finish(&mut self, tokenizer: &Tokenizer) -> Result<String> {
        let text = tokenizer.decode(&self.window)?;
        let new = self.unseen(&text);
        self.shown = self.window.len();
        self.shown_bytes = text.len();
        Ok(new)
    }

    fn unseen(&self, text: &str) -> String {
        text.get(self.shown_bytes..).unwrap_or_default().to_owned()
    }

    /// Shows what is held back but for the last character, which may become another still, and keeps the newest tokens.
    fn release(&mut self, tokenizer: &Tokenizer, text: &str) -> Result<String> {
        let newest = self.window.split_off(self.window.len().saturating_sub(MOST_TOKENS));
        // Their text may begin in the middle of a character, but ends as the whole window's does: a character has four bytes at most.
        let newest_text = tokenizer.decode(&newest)?;
        let last = newest_text.strip_suffix(char::REPLACEMENT_CHARACTER);
        let held_bytes = last.map_or(0, |shown| newest_text.len() - shown.len());
        let new = self.unseen(text.get(..text.len() - held_bytes).unwrap_or_default());
        *self = Self { window: newest, shown: 0, shown_bytes: newest_text.len() - held_bytes };
        Ok(new)
    }

    /// Drops the tokens before the newest from the window, if those read as something by themselves: a decoder
    /// may swallow the first space of its input, and an empty text would hide that. In a window full of tokens that read as nothing, the
    /// newest are forgotten instead.
    fn slide(&mut self, tokenizer: &Tokenizer, window_bytes: usize) -> Result<()> {
        let newest = self.window.get(self.shown..).unwrap_or_default().to_vec();
        let text = tokenizer.decode(&newest)?;
        if !text.is_empty() {
            self.window = newest;
            self.shown_bytes = text.len();
        } else if self.window.len() > MOST_TOKENS {
            self.window.truncate(self.shown);
        } else {
            self.shown_bytes = window_bytes;
        }
        self.shown = self.window.len();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// Two words with the space before them, one that is no text, and `<s>`, which is special; a decoder that swallows the first space.
    fn tokenizer() -> Tokenizer {
        let special = json!({ "id": 2, "content": "<s>", "single_word": false, "lstrip": false, "rstrip": false,
            "normalized": false, "special": true });
        let decoder = json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "_" }, "content": " " }, { "type": "Fuse" },
            { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] });
        let json = json!({ "version": "1.0", "added_tokens": [special], "decoder": decoder,
            "model": { "type": "WordLevel", "vocab": { "_one": 0, "_two": 1, "\u{fffd}": 3 }, "unk_token": "_one" } });
        Tokenizer::from_bytes(json.to_string().as_bytes(), "tokenizer.json").unwrap()
    }

    #[test]
    fn a_prompt_that_reads_as_nothing_is_not_looked_through() {
        let tokenizer = tokenizer();
        let window = |prompt: &[u32]| TextWindow::after(&tokenizer, prompt).unwrap().window;
        assert_eq!(window(&[0, 1]), [1]);
        assert_eq!(window(&[0, 1, 2, 2]), [1, 2, 2]);
        // All of these are decoded again and again otherwise: two million tokens, of a whole context thousands of millions.
        let long = [vec![0], vec![2; 2000]].concat();
        assert_eq!(window(&long), [2; MOST_TOKENS]);
    }

    #[test]
    fn a_window_stays_short_whatever_comes() {
        let tokenizer = tokenizer();
        let mut stream = TextStream::after(&tokenizer, &[0]).unwrap();
        for _ in 0..100 {
            assert_eq!(stream.push(2).unwrap(), "");
            assert!(stream.window.window.len() <= MOST_TOKENS, "{:?}", stream.window);
        }
        // The first word is there still: behind it, the second keeps its space.
        assert_eq!(stream.push(1).unwrap(), " two");
        for _ in 0..100 {
            stream.push(3).unwrap();
            assert!(stream.window.window.len() <= 2 * MOST_TOKENS, "{:?}", stream.window);
        }
    }
}
