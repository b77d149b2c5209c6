//! The fixed header of a compressed tensor.

use std::ops::RangeInclusive;

use xxhash_rust::xxh3::xxh3_64;

use super::classes::WINDOW;
use super::half_kind::HalfKind;
use crate::error::{Error, Result};
use crate::tile::raw_bits::{RawField, MAX_RAW_BITS};
use crate::tile::TileGrid;

/// The first bytes of every header.
///
/// A [`Header`] begins with it; see its example.
pub const MAGIC: [u8; 4] = *b"CLLM";
/// The version of the format that this crate writes and reads.
///
/// Stands in a [`Header`]; see its example.
pub const FORMAT_VERSION: u16 = 1;
/// Bytes of a header.
///
/// A [`Header`] has as many; see its example.
pub const HEADER_BYTES: usize = 56;

/// What a rANS symbol stands for.
///
/// ```
/// use codecllm::codec::Layout;
/// assert_eq!(Layout::ALL.map(Layout::name), ["fast", "small", "exact_bf16", "exact_fp16"]);
/// assert_eq!("small".parse::<Layout>()?, Layout::Small);
/// assert_eq!((Layout::Fast.weights_per_symbol(), Layout::Small.weights_per_symbol()), (4, 1));
/// assert!(Layout::Fast.is_grid() && !Layout::ExactFp16.is_grid());
/// // Two bits of class and up to eight raw ones fit a half's mantissa; a sign beside them.
/// assert_eq!(Layout::Fast.raw_magnitude_bits(true), 0..=8);
/// assert_eq!(Layout::Fast.raw_field(8).bits(), 9);
/// // No frequency passes what a kernel's table entry has room for.
/// assert_eq!((Layout::Fast.scale_bits(), Layout::Fast.frequency_cap()), (11, 511));
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Layout {
    /// Four 2-bit classes a symbol; sign and low magnitude bits are raw. What the fused kernels want.
    Fast,
    /// One weight a symbol, sign and 7 bits of magnitude: the fewest bits.
    Small,
    /// BF16 weights bit for bit: two exponents a symbol; sign and mantissa are raw.
    ExactBf16,
    /// FP16 weights bit for bit, likewise.
    ExactFp16,
}

/// Its name in reports.
impl std::str::FromStr for Layout {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let wanted =
            || Error::invalid("layout", format!("{name:?}, wanted {}", Self::ALL.map(Self::name).join(", ")));
        Self::ALL.into_iter().find(|layout| layout.name() == name).ok_or_else(wanted)
    }
}

impl Layout {
    /// All layouts, by their code in a header.
    pub const ALL: [Self; 4] = [Self::Fast, Self::Small, Self::ExactBf16, Self::ExactFp16];

    /// Its name in reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::Fast => "fast",
            Self::Small => "small",
            Self::ExactBf16 => "exact_bf16",
            Self::ExactFp16 => "exact_fp16",
        }
    }

    /// How its halves are read.
    pub(crate) fn half_kind(self) -> HalfKind {
        match self {
            Self::Fast | Self::Small => HalfKind::Grid,
            Self::ExactBf16 => HalfKind::Bf16,
            Self::ExactFp16 => HalfKind::Fp16,
        }
    }

    /// Whether its weights are grid values times a scale. The others are floats, bit for bit.
    pub fn is_grid(self) -> bool {
        self.half_kind().is_grid()
    }

    /// Weights that one symbol covers.
    pub fn weights_per_symbol(self) -> usize {
        match self {
            Self::Fast => 4,
            Self::Small => 1,
            Self::ExactBf16 | Self::ExactFp16 => 2,
        }
    }

    /// The raw bits beside a symbol, for `magnitude_bits` low bits below the sign.
    pub fn raw_field(self, magnitude_bits: u32) -> RawField {
        RawField { magnitude_bits, signed: self != Self::Small }
    }

    /// How many raw bits below the sign a tile may have: with symbols, class and raw bits together fit an FP16 subnormal, or are
    /// a float.
    pub fn raw_magnitude_bits(self, has_symbols: bool) -> RangeInclusive<u32> {
        match (self, has_symbols) {
            (Self::Fast, true) => 0..=8,
            (Self::Small, true) => 0..=3,
            (Self::ExactBf16, true) => 7..=7,
            (Self::ExactFp16, true) => 10..=10,
            (Self::Fast | Self::Small, false) => 0..=MAX_RAW_BITS - 1,
            (Self::ExactBf16 | Self::ExactFp16, false) => 0..=0,
        }
    }

    /// The exponents that class 1 may stand for; none where classes are no exponents.
    pub(crate) fn first_exponents(self) -> Option<RangeInclusive<u32>> {
        let largest = match self {
            Self::Fast | Self::Small => return None,
            Self::ExactBf16 => 255,
            Self::ExactFp16 => 31,
        };
        Some(1..=largest + 1 - WINDOW)
    }

    /// Frequencies of a table sum to two to this power.
    pub fn scale_bits(self) -> u32 {
        match self {
            Self::Fast => 11,
            Self::Small | Self::ExactBf16 | Self::ExactFp16 => 12,
        }
    }

    /// The largest frequency of a table: what a decoder's packed entry has room for.
    pub fn frequency_cap(self) -> u16 {
        match self {
            Self::Fast => 511,
            Self::Small | Self::ExactBf16 | Self::ExactFp16 => 4095,
        }
    }

    fn code(self) -> u8 {
        match self {
            Self::Fast => 0,
            Self::Small => 1,
            Self::ExactBf16 => 2,
            Self::ExactFp16 => 3,
        }
    }

    /// Whether tensors of this dtype can be coded in it.
    pub(super) fn takes(self, dtype: SourceDtype) -> bool {
        match self {
            Self::Fast | Self::Small => true,
            Self::ExactBf16 => dtype != SourceDtype::F16,
            Self::ExactFp16 => dtype != SourceDtype::BF16,
        }
    }
}

/// The dtype that a tensor had before it was compressed, and has again after.
///
/// ```
/// use codecllm::codec::SourceDtype;
/// assert_eq!(SourceDtype::of_kind(tch::Kind::Half, "w")?, SourceDtype::F16);
/// assert_eq!((SourceDtype::F16.kind(), SourceDtype::F16.bytes()), (tch::Kind::Half, 2));
/// assert!(SourceDtype::BF16.holds(1e38) && !SourceDtype::F16.holds(1e38));
/// # Ok::<(), codecllm::Error>(())
/// ```
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
///
/// Found by [`encode`](super::encode()) in the scales it was given; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScaleGranularity {
    /// One for all rows.
    Tensor,
    /// One for each output row.
    Row,
}

/// What a decoder must know of a tensor before it touches any other buffer. 56 bytes on disk, little-endian; see
/// `docs/format.md`.
///
/// ```
/// use codecllm::codec::{CompressedTensor, EncodeOptions, Header, StepRule, FORMAT_VERSION, HEADER_BYTES, MAGIC};
/// use tch::{Device, Kind, Tensor};
/// let weight = Tensor::randn([64, 128], (Kind::Half, Device::Cpu));
/// let compressed = CompressedTensor::compress("w", &weight, StepRule::RowAbsmax, EncodeOptions::default())?;
/// let bytes = &compressed.buffers().header;
/// assert_eq!((bytes.len(), &bytes[..4], bytes[4]), (HEADER_BYTES, &MAGIC[..], FORMAT_VERSION as u8));
/// let header = Header::parse(bytes, "w")?;
/// assert_eq!((header.grid.rows(), header.grid.cols(), header.scale_count()), (64, 128, 64));
/// assert_eq!(header.to_bytes()[..], bytes[..]);
/// # Ok::<(), codecllm::Error>(())
/// ```
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
        let granularity = match self.scale_granularity {
            ScaleGranularity::Tensor => 0,
            ScaleGranularity::Row => 1,
        };
        let mut bytes = Vec::with_capacity(HEADER_BYTES);
        bytes.extend(MAGIC);
        bytes.extend(FORMAT_VERSION.to_le_bytes());
        bytes.extend([self.layout.code(), self.dtype.code()]);
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
        let layout = *Layout::ALL
            .get(usize::from(bytes[6]))
            .ok_or_else(|| corrupt(format!("layout code {}, wanted 0 to 3", bytes[6])))?;
        let dtype = SourceDtype::from_code(bytes[7], subject)?;
        if !layout.takes(dtype) {
            return Err(corrupt(format!("dtype {dtype:?} in layout {}", layout.name())));
        }
        let scale_granularity = match bytes[21] {
            0 => ScaleGranularity::Tensor,
            1 => ScaleGranularity::Row,
            other => return Err(corrupt(format!("scale granularity {other}, wanted 0 or 1"))),
        };
        if !layout.is_grid() && scale_granularity != ScaleGranularity::Tensor {
            return Err(corrupt(format!("scale granularity 1, wanted 0 in layout {}", layout.name())));
        }
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
            dtype,
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
