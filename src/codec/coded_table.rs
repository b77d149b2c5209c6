//! A frequency table as `tables` holds it: in the exact layouts with the exponent that its classes begin at.

use super::header::{Header, Layout};
use crate::error::{Error, Result};
use crate::rans::FrequencyTable;

/// How often each symbol is expected, and what its classes stand for.
#[derive(Clone, Debug)]
pub(crate) struct CodedTable {
    pub frequencies: FrequencyTable,
    /// The exponent of class 1; 0 in the layouts whose classes are no exponents.
    pub first_exponent: u32,
}

impl CodedTable {
    /// Appends the table's bytes.
    pub fn write(&self, layout: Layout, bytes: &mut Vec<u8>) {
        if layout.first_exponents().is_some() {
            // At most 241.
            bytes.push(self.first_exponent as u8);
        }
        self.frequencies.write(bytes);
    }

    /// Reads one table from the front of `bytes` and moves past it.
    pub fn read(bytes: &mut &[u8], header: &Header, subject: &str) -> Result<Self> {
        let first_exponent = match header.layout.first_exponents() {
            None => 0,
            Some(wanted) => {
                let Some((&first, rest)) = bytes.split_first() else {
                    return Err(Error::truncated(
                        subject,
                        "a table's first exponent is missing (file truncated?)",
                    ));
                };
                *bytes = rest;
                if !wanted.contains(&u32::from(first)) {
                    let (least, most) = (wanted.start(), wanted.end());
                    return Err(Error::corrupt(
                        subject,
                        format!("a table's first exponent is {first}, wanted {least} to {most}"),
                    ));
                }
                u32::from(first)
            }
        };
        let frequencies = FrequencyTable::read(bytes, header.scale_bits, subject)?;
        let cap = u32::from(header.layout.frequency_cap());
        match (0..=255).find(|&symbol| frequencies.frequency(symbol) > cap) {
            None => Ok(Self { frequencies, first_exponent }),
            Some(symbol) => {
                let got = frequencies.frequency(symbol);
                Err(Error::corrupt(
                    subject,
                    format!("a table has a frequency of {got} for symbol {symbol}, wanted at most {cap}"),
                ))
            }
        }
    }
}
