//! The bytes that one token stands for.

use super::tokenizer::Tokenizer;
use crate::error::Result;

impl Tokenizer {
    /// The bytes that token `id` adds to a text, a special token's spelling included. They may be no UTF-8: a character can take several
    /// tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::decode`].
    pub fn token_bytes(&self, id: u32) -> Result<Vec<u8>> {
        if let Some(content) = self.added_token(id) {
            return Ok(content.into_bytes());
        }
        let spelled = self.spelling(id).unwrap_or_default();
        let byte_tokens = self.byte_tokens();
        if byte_tokens.all {
            return Ok(bytes_of_printable(&spelled));
        }
        if let Some(byte) = byte_of_hexadecimal(&spelled).filter(|_| byte_tokens.hexadecimal) {
            return Ok(vec![byte]);
        }
        // A decoder may swallow the first space of a text: the second of two shows what the token adds.
        let (one, two) = (self.decode(&[id])?, self.decode(&[id, id])?);
        Ok(two.strip_prefix(one.as_str()).unwrap_or(&one).as_bytes().to_vec())
    }
}

/// Which tokens are bytes rather than text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ByteTokens {
    /// All: each character of a token's spelling is a byte, as GPT-2 writes it.
    all: bool,
    /// Those spelled `<0x0A>`.
    hexadecimal: bool,
}

impl ByteTokens {
    pub(super) fn of(tokenizer: &tokenizers::Tokenizer) -> Self {
        // Decoders are nested, and what a sequence of them is made of is private; as JSON it is not.
        let json = tokenizer.get_decoder().and_then(|decoder| serde_json::to_string(decoder).ok());
        let has = |name: &str| json.as_ref().is_some_and(|json| json.contains(&format!("\"{name}\"")));
        Self { all: has("ByteLevel"), hexadecimal: has("ByteFallback") }
    }
}

/// The byte of a token spelled like `<0x0A>`.
fn byte_of_hexadecimal(spelled: &str) -> Option<u8> {
    let digits = spelled.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// GPT-2's spelling back to bytes: printable characters of Latin-1 are themselves, the other bytes are the characters from 256 on, in
/// their order.
fn bytes_of_printable(spelled: &str) -> Vec<u8> {
    let is_printable = |byte: &u8| matches!(byte, 33..=126 | 161..=172 | 174..=255);
    let others: Vec<u8> = (0..=255).filter(|byte| !is_printable(byte)).collect();
    let mut bytes = Vec::with_capacity(spelled.len());
    for c in spelled.chars() {
        let code = c as usize;
        let other = code.checked_sub(256).and_then(|index| others.get(index)).copied();
        match u8::try_from(code).ok().filter(is_printable).or(other) {
            Some(byte) => bytes.push(byte),
            // Not of that alphabet: it stands for itself.
            None => bytes.extend(c.encode_utf8(&mut [0; 4]).bytes()),
        }
    }
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn tokenizer(tokens: &[&str], decoder: serde_json::Value) -> Tokenizer {
        let vocab: std::collections::BTreeMap<_, _> = tokens.iter().zip(0..).collect();
        let special = json!({ "id": tokens.len(), "content": "<s>", "single_word": false, "lstrip": false,
            "rstrip": false, "normalized": false, "special": true });
        let json = json!({ "version": "1.0", "added_tokens": [special], "decoder": decoder,
            "model": { "type": "WordLevel", "vocab": vocab, "unk_token": tokens[0] } });
        Tokenizer::from_bytes(json.to_string().as_bytes(), "tokenizer.json").unwrap()
    }

    #[test]
    fn gpt_2_spells_bytes_as_characters() {
        let level = json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true });
        // Ġ is the space, Ċ the newline, Ã a byte that starts a character, ð the first of four.
        let tokenizer = tokenizer(&["Ġthe", "Ċ", "Ã", "ðŁ", "Ā"], level);
        let bytes = |id| tokenizer.token_bytes(id).unwrap();
        assert_eq!(bytes(0), b" the");
        assert_eq!(bytes(1), b"\n");
        assert_eq!(bytes(2), [0xc3]);
        assert_eq!(bytes(3), "🙂".as_bytes()[..2]);
        assert_eq!(bytes(4), [0]);
        assert_eq!(bytes(5), b"<s>");
    }

    #[test]
    fn llama_has_tokens_for_single_bytes_and_keeps_its_spaces() {
        let decoder = json!({ "type": "Sequence", "decoders": [
            { "type": "Replace", "pattern": { "String": "▁" }, "content": " " }, { "type": "ByteFallback" },
            { "type": "Fuse" }, { "type": "Strip", "content": " ", "start": 1, "stop": 0 }] });
        let tokenizer = tokenizer(&["▁the", "<0xF0>", "ing", "▁", "<0xZZ>"], decoder);
        let bytes = |id| tokenizer.token_bytes(id).unwrap();
        assert_eq!(bytes(0), b" the");
        assert_eq!(bytes(1), [0xf0]);
        assert_eq!(bytes(2), b"ing");
        assert_eq!(bytes(3), b" ");
        assert_eq!(bytes(4), b"<0xZZ>");
        assert_eq!(bytes(5), b"<s>");
    }
}
