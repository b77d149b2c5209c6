//! Reads a GGUF's header from front to back; every length is held against what is left of the file before it is believed.

use std::fs::File;
use std::io::{BufReader, Read};

use super::value::{Scalar, Texts, Value};
use crate::error::{Error, Result};

/// Keys and tensor list may take this many bytes; those of the largest vocabularies take twenty times less.
const MOST_HEADER_BYTES: u64 = 256 << 20;
/// The same of a key or of a tensor's name, which errors show.
const MOST_NAME_BYTES: u64 = 1024;
const STRING: u32 = 8;
const ARRAY: u32 = 9;

/// A place in the header.
#[derive(Debug)]
pub(super) struct Cursor<'a> {
    reader: BufReader<&'a File>,
    /// The file, for messages.
    path: &'a str,
    position: u64,
    file_bytes: u64,
}

impl<'a> Cursor<'a> {
    /// At the start of `file`, which has `file_bytes` bytes.
    pub fn new(file: &'a File, path: &'a str, file_bytes: u64) -> Self {
        Self { reader: BufReader::with_capacity(1 << 16, file), path, position: 0, file_bytes }
    }

    pub fn position(&self) -> u64 {
        self.position
    }

    pub fn array<const N: usize>(&mut self, what: &str) -> Result<[u8; N]> {
        let mut bytes = [0; N];
        self.check_left(N as u64, what)?;
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    pub fn u32(&mut self, what: &str) -> Result<u32> {
        self.array(what).map(u32::from_le_bytes)
    }

    pub fn u64(&mut self, what: &str) -> Result<u64> {
        self.array(what).map(u64::from_le_bytes)
    }

    /// A key or the name of a tensor.
    pub fn name(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        if length > MOST_NAME_BYTES {
            let message =
                format!("{what} is {length} bytes long, wanted at most {MOST_NAME_BYTES} (file damaged?)");
            return Err(self.corrupt(message));
        }
        self.text_of(length, what)
    }

    /// A string: its length, then its bytes.
    pub fn text(&mut self, what: &str) -> Result<String> {
        let length = self.u64(what)?;
        self.text_of(length, what)
    }

    fn text_of(&mut self, length: u64, what: &str) -> Result<String> {
        let bytes = self.bytes(length, what)?;
        String::from_utf8(bytes)
            .map_err(|e| self.corrupt(format!("{what}: a string is not UTF-8 ({e}); get the file anew")))
    }

    /// The value of `key`: the number of its type, then itself.
    pub fn value(&mut self, key: &str) -> Result<Value> {
        match self.u32(key)? {
            STRING => self.text(key).map(Value::Text),
            ARRAY => self.values(key),
            id => {
                let scalar = self.scalar(id, key)?;
                let bytes = self.bytes(scalar.bytes() as u64, key)?;
                let number =
                    scalar.number(&bytes).ok_or_else(|| self.corrupt(format!("{key}: no number")))?;
                Ok(Value::Number(number))
            }
        }
    }

    fn values(&mut self, key: &str) -> Result<Value> {
        let id = self.u32(key)?;
        let count = self.u64(key)?;
        if id == ARRAY {
            let message = format!("{}: {key} is an array of arrays, wanted numbers or strings", self.path);
            return Err(Error::unsupported(self.path, message));
        }
        if id != STRING {
            let scalar = self.scalar(id, key)?;
            let bytes = self.bytes(count.saturating_mul(scalar.bytes() as u64), key)?;
            return Ok(Value::Numbers { scalar, bytes });
        }
        // Each string has a length of eight bytes at least.
        self.check_left(count.saturating_mul(8), key)?;
        let mut texts = Texts::default();
        for _ in 0..count {
            texts.push(&self.text(key)?);
        }
        Ok(Value::Texts(texts))
    }

    fn scalar(&self, id: u32, key: &str) -> Result<Scalar> {
        Scalar::from_id(id).ok_or_else(|| {
            self.corrupt(format!("{key} has a value of type {id}, wanted 0 to 12 (file damaged?)"))
        })
    }

    fn bytes(&mut self, count: u64, what: &str) -> Result<Vec<u8>> {
        self.check_left(count, what)?;
        let mut bytes = vec![0; count as usize];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn fill(&mut self, bytes: &mut [u8]) -> Result<()> {
        self.reader.read_exact(bytes).map_err(|e| Error::io(self.path, e))?;
        self.position += bytes.len() as u64;
        Ok(())
    }

    /// An error unless `wanted` more bytes are there, in the file and within what a header may take.
    fn check_left(&self, wanted: u64, what: &str) -> Result<()> {
        let left = self.file_bytes.saturating_sub(self.position);
        if wanted > left {
            let message = format!(
                "{what} needs {wanted} bytes, {left} remain (file truncated or damaged? get it anew)"
            );
            return Err(Error::truncated(self.path, message));
        }
        if self.position.saturating_add(wanted) > MOST_HEADER_BYTES {
            let message = format!("{what} ends beyond byte {MOST_HEADER_BYTES}, no header is that long");
            return Err(Error::unsupported(self.path, message));
        }
        Ok(())
    }

    fn corrupt(&self, message: String) -> Error {
        Error::corrupt(self.path, message)
    }
}
