//! The fixed header of a compressed tensor.

use xxhash_rust::xxh3::xxh3_64;

use crate::error::{Error, Result};
use crate::tile::raw_bits::RawField;
use crate::tile::TileGrid;

/// The first bytes of every header.
pub const MAGIC: [u8; 4] = *b"CLLM";
/// The version of the format that this crate writes and reads.
pub const FORMAT_VERSION: u16 = 1;
/// Bytes of a header.
pub const HEADER_BYTES: usize = 56;

/// What a rANS symbol stands for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Four 2-bit classes a symbol; sign and low magnitude bits are raw. What the fused kernels want.
    Fast,
    /// One weight a symbol, sign and 7 bits of magnitude: the fewest bits.
    Small,
}

impl Layout {
    /// Weights that one symbol covers.
    pub fn weights_per_symbol(self) -> usize {
        match self {
            Self::Fast => 4,
            Self::Small => 1,
        }
    }

    /// Bits of the magnitude that a symbol carries for each of its weights.
    pub fn class_bits(self) -> u32 {
        match self {
            Self::Fast => 2,
            Self::Small => 7,
        }
    }

    /// The raw bits beside a symbol, for `magnitude_bits` low bits of the magnitude.
    pub fn raw_field(self, magnitude_bits: u32) -> RawField {
        RawField { magnitude_bits, signed: self == Self::Fast }
    }

    /// The most raw magnitude bits: class and raw bits together fit an FP16 subnormal.
    pub fn max_raw_magnitude_bits(self) -> u32 {
        10 - self.class_bits()
    }

    /// Magnitudes from here on are escapes.
    pub fn escape_from(self, magnitude_bits: u32) -> u32 {
        1 << (self.class_bits() + magnitude_bits)
    }

    /// Frequencies of a table sum to two to this power.
    pub fn scale_bits(self) -> u32 {
        match self {
            Self::Fast => 11,
            Self::Small => 12,
        }
    }

    /// The largest frequency of a table: what a decoder's packed entry has room for.
    pub fn frequency_cap(self) -> u16 {
        match self {
            Self::Fast => 511,
            Self::Small => 4095,
        }
    }

    /// The symbol of up to four halves with `magnitude_bits` raw bits each.
    pub(crate) fn symbol(self, halves: &[u32], magnitude_bits: u32) -> u8 {
        match self {
            Self::Fast => halves.iter().enumerate().fold(0, |symbol, (index, half)| {
                symbol | ((half >> magnitude_bits & 3) << (2 * index)) as u8
            }),
            Self::Small => halves
                .first()
                .map_or(0, |half| (half >> magnitude_bits & 0x7F) as u8 | (half >> 8 & 0x80) as u8),
        }
    }

    /// The bits of a half that weight `index` of `symbol` sets.
    pub(crate) fn symbol_half(self, symbol: u8, index: usize, magnitude_bits: u32) -> u32 {
        let symbol = u32::from(symbol);
        match self {
            Self::Fast => (symbol >> (2 * index) & 3) << magnitude_bits,
            Self::Small => (symbol & 0x7F) << magnitude_bits | (symbol & 0x80) << 8,
        }
    }
}

/// The dtype that a tensor had before it was compressed, and has again after.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum SourceDtype {
    F32,
    F16,
    BF16,
}

impl SourceDtype {
    /// Bytes of one element.
    pub fn bytes(self) -> usize {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::BF16 => 2,
        }
    }

    pub(crate) fn code(self) -> u8 {
        match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::BF16 => 2,
        }
    }

    pub(crate) fn from_code(code: u8, subject: &str) -> Result<Self> {
        match code {
            0 => Ok(Self::F32),
            1 => Ok(Self::F16),
            2 => Ok(Self::BF16),
            _ => Err(Error::corrupt(subject, format!("dtype code {code}, wanted 0 to 2"))),
        }
    }
}

/// How many scales a tensor has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleGranularity {
    /// One for all rows.
    Tensor,
    /// One for each output row.
    Row,
}

/// What a decoder must know of a tensor before it touches any other buffer. 56 bytes on disk, little-endian; see
/// `docs/format.md`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Header {
    /// What a symbol stands for.
    pub layout: Layout,
    /// The dtype of the tensor when decompressed.
    pub dtype: SourceDtype,
    /// Shape and tiles.
    pub grid: TileGrid,
    /// Frequencies of every table sum to `1 << scale_bits`.
    pub scale_bits: u32,
    /// One scale or one a row.
    pub scale_granularity: ScaleGranularity,
    /// Number of frequency tables, at most 255.
    pub table_count: usize,
    /// Bytes of the table buffer.
    pub tables_bytes: usize,
    /// Bytes of the payload buffer.
    pub payload_bytes: usize,
    /// XXH3-64 of the other buffers, in order: scales, tables, tiles, payload.
    pub checksum: u64,
}

impl Header {
    /// Number of scales.
    pub fn scale_count(&self) -> usize {
        match self.scale_granularity {
            ScaleGranularity::Tensor => 1,
            ScaleGranularity::Row => self.grid.rows(),
        }
    }

    /// The header's bytes.
    pub fn to_bytes(&self) -> [u8; HEADER_BYTES] {
        let layout = match self.layout {
            Layout::Fast => 0,
            Layout::Small => 1,
        };
        let granularity = match self.scale_granularity {
            ScaleGranularity::Tensor => 0,
            ScaleGranularity::Row => 1,
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        bytes.extend([layout, self.dtype.code()]);
        bytes.extend((self.grid.rows() as u32).to_le_bytes());
        bytes.extend((self.grid.cols() as u32).to_le_bytes());
        bytes.extend((self.grid.tile_rows() as u16).to_le_bytes());
        bytes.extend((self.grid.tile_cols() as u16).to_le_bytes());
        bytes.extend([self.scale_bits as u8, granularity, self.table_count as u8, 0]);
        bytes.extend((self.tables_bytes as u32).to_le_bytes());
        bytes.extend([0; 4]);
        bytes.extend((self.payload_bytes as u64).to_le_bytes());
        bytes.extend(self.checksum.to_le_bytes());
        bytes.extend(xxh3_64(&bytes).to_le_bytes());
        let mut fixed = [0; HEADER_BYTES];
        fixed.copy_from_slice(&bytes);
        fixed
    }

    /// Reads and checks a header. `subject` is the tensor path.
    pub fn parse(bytes: &[u8], subject: &str) -> Result<Self> {
        let corrupt = |what: String| Error::corrupt(subject, what);
        let Ok(bytes) = <&[u8; HEADER_BYTES]>::try_from(bytes) else {
            return Err(Error::truncated(
                subject,
                format!("the header has {} bytes, wanted {HEADER_BYTES}", bytes.len()),
            ));
        };
        let field = |at: usize, width: usize| {
            bytes[at..at + width].iter().rev().fold(0u64, |value, &byte| value << 8 | u64::from(byte))
        };
        if bytes[..4] != MAGIC {
            return Err(corrupt("the header does not begin with CLLM (not a compressed tensor?)".into()));
        }
        let version = field(4, 2) as u16;
        if version != FORMAT_VERSION {
            return Err(Error::unsupported(
                subject,
                format!("format version {version}, this build reads {FORMAT_VERSION}; use the codecllm that wrote it"),
            ));
        }
        if field(48, 8) != xxh3_64(&bytes[..48]) {
            return Err(corrupt("the header fails its checksum (file damaged?)".into()));
        }
        let layout = match bytes[6] {
            0 => Layout::Fast,
            1 => Layout::Small,
            other => return Err(corrupt(format!("layout code {other}, wanted 0 or 1"))),
        };
        let scale_granularity = match bytes[21] {
            0 => ScaleGranularity::Tensor,
            1 => ScaleGranularity::Row,
            other => return Err(corrupt(format!("scale granularity {other}, wanted 0 or 1"))),
        };
        let scale_bits = u32::from(bytes[20]);
        if scale_bits != layout.scale_bits() {
            return Err(corrupt(format!("scale bits {scale_bits}, wanted {}", layout.scale_bits())));
        }
        if bytes[23] != 0 || field(28, 4) != 0 {
            return Err(corrupt("reserved bytes of the header are not zero".into()));
        }
        let size = |at: usize, width: usize| {
            usize::try_from(field(at, width)).map_err(|_| corrupt("a size passes this machine's".into()))
        };
        Ok(Self {
            layout,
            dtype: SourceDtype::from_code(bytes[7], subject)?,
            grid: TileGrid::new(size(8, 4)?, size(12, 4)?, size(16, 2)?, size(18, 2)?, subject)
                .map_err(|error| corrupt(error.to_string()).about(subject))?,
            scale_bits,
            scale_granularity,
            table_count: usize::from(bytes[22]),
            tables_bytes: size(24, 4)?,
            payload_bytes: size(32, 8)?,
            checksum: field(40, 8),
        })
    }
}
