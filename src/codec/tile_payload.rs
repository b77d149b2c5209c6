//! The header and the payload of one tile: what lies where, checked before anything is decoded.

use super::header::Header;
use crate::error::{Error, Result};
use crate::rans::LANES;
use crate::tile::raw_bits::RawField;
use crate::tile::Tile;

/// Bytes of a tile header.
///
/// A [`TileHeader`] has as many; see its example.
pub const TILE_HEADER_BYTES: usize = 8;
/// Alignment of a tile's payload.
pub const PAYLOAD_ALIGN_BYTES: usize = 16;
/// The table index of a tile without symbols: all of its bits are raw.
pub const NO_TABLE: u8 = 255;

const FLAG_LEFT: u8 = 1 << 4;
const FLAG_WIDE_LENGTHS: u8 = 1 << 5;
const FLAG_WIDE_ESCAPES: u8 = 1 << 6;

/// What is coded of a value.
///
/// Stands in a [`TileHeader`]; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Predictor {
    /// The value itself.
    None,
    /// Its difference to the value on its left, within the 16 columns that a lane owns.
    Left,
}

/// The 8-byte header of a tile.
///
/// ```
/// use codecllm::codec::{CompressedTensor, EncodeOptions, Predictor, StepRule, TileHeader, TILE_HEADER_BYTES};
/// use tch::{Device, Kind, Tensor};
/// let ramp = Tensor::arange(64 * 64, (Kind::Float, Device::Cpu)).view([64, 64]);
/// let compressed = CompressedTensor::compress("w", &ramp, StepRule::Step(1.0), EncodeOptions::default())?;
/// let view = compressed.buffers().view("w")?;
/// let bytes: [u8; TILE_HEADER_BYTES] = compressed.buffers().tiles[..TILE_HEADER_BYTES].try_into().unwrap();
/// let tile = TileHeader::parse(bytes, &view.header, "w")?;
/// assert_eq!((tile.to_bytes(), tile, tile.predictor), (bytes, view.tile_header(0)?, Predictor::Left));
/// assert!(tile.has_symbols() && tile.raw_field(&view.header).magnitude_bits == tile.raw_magnitude_bits);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileHeader {
    /// Where the payload starts, in units of 16 bytes.
    pub offset: u32,
    /// Frequency table, or 255 for none.
    pub table: u8,
    /// Raw low bits of a magnitude.
    pub raw_magnitude_bits: u32,
    /// What is coded.
    pub predictor: Predictor,
    /// Lane lengths take 16 bits instead of 8.
    pub wide_lengths: bool,
    /// Escape values take 16 bits instead of 8.
    pub wide_escapes: bool,
    /// Number of escapes.
    pub escapes: u16,
}

impl TileHeader {
    /// Whether the tile has rANS symbols.
    pub fn has_symbols(&self) -> bool {
        self.table != NO_TABLE
    }

    /// The raw bits of a weight in this tile.
    pub fn raw_field(&self, header: &Header) -> RawField {
        if self.has_symbols() {
            header.layout.raw_field(self.raw_magnitude_bits)
        } else {
            RawField { magnitude_bits: self.raw_magnitude_bits, signed: self.raw_magnitude_bits > 0 }
        }
    }

    /// The header's bytes.
    pub fn to_bytes(self) -> [u8; TILE_HEADER_BYTES] {
        let flag = |set: bool, flag: u8| if set { flag } else { 0 };
        let packed = self.raw_magnitude_bits as u8
            | flag(self.predictor == Predictor::Left, FLAG_LEFT)
            | flag(self.wide_lengths, FLAG_WIDE_LENGTHS)
            | flag(self.wide_escapes, FLAG_WIDE_ESCAPES);
        let [a, b, c, d] = self.offset.to_le_bytes();
        let [e, f] = self.escapes.to_le_bytes();
        [a, b, c, d, self.table, packed, e, f]
    }

    /// Reads and checks the header of a tile.
    pub fn parse(bytes: [u8; TILE_HEADER_BYTES], header: &Header, subject: &str) -> Result<Self> {
        let [a, b, c, d, table, packed, e, f] = bytes;
        let flag = |flag: u8| packed & flag != 0;
        let parsed = Self {
            offset: u32::from_le_bytes([a, b, c, d]),
            table,
            raw_magnitude_bits: u32::from(packed & 15),
            predictor: if flag(FLAG_LEFT) { Predictor::Left } else { Predictor::None },
            wide_lengths: flag(FLAG_WIDE_LENGTHS),
            wide_escapes: flag(FLAG_WIDE_ESCAPES),
            escapes: u16::from_le_bytes([e, f]),
        };
        let wanted = header.layout.raw_magnitude_bits(parsed.has_symbols());
        if flag(1 << 7) || !wanted.contains(&parsed.raw_magnitude_bits) {
            return Err(Error::corrupt(
                subject,
                format!(
                    "a tile has {} raw bits, wanted {} to {}",
                    parsed.raw_magnitude_bits,
                    wanted.start(),
                    wanted.end()
                ),
            ));
        }
        if !header.layout.is_grid() {
            parsed.check_exact(header, subject)?;
        }
        if parsed.has_symbols() && usize::from(table) >= header.table_count {
            return Err(Error::corrupt(
                subject,
                format!("a tile uses table {table}, the tensor has {}", header.table_count),
            ));
        }
        Ok(parsed)
    }

    /// What a tile of floats cannot have.
    fn check_exact(&self, header: &Header, subject: &str) -> Result<()> {
        let layout = header.layout.name();
        if self.predictor == Predictor::Left {
            return Err(Error::corrupt(subject, format!("a tile codes differences in layout {layout}")));
        }
        if self.escapes > 0 && !self.wide_escapes {
            return Err(Error::corrupt(subject, format!("a tile has escapes of 8 bits in layout {layout}")));
        }
        Ok(())
    }
}

/// The checked sections of one tile's payload.
///
/// Given by a [`View`](super::View); see its example.
#[derive(Clone, Debug)]
pub struct TileSections<'a> {
    /// The tile's header.
    pub header: TileHeader,
    /// The state each lane starts decoding from.
    pub states: [u32; LANES],
    /// Words of each lane.
    pub lengths: [usize; LANES],
    /// Raw bits, group by group.
    pub raw: &'a [u8],
    /// The lanes' words, two bytes each, lane after lane.
    pub words: &'a [u8],
    escape_positions: &'a [u8],
    escape_values: &'a [u8],
}

impl<'a> TileSections<'a> {
    /// Splits `payload`, the bytes from the tile's offset to the next tile's, and checks that they are exactly
    /// what the header and the lane lengths say.
    pub(super) fn split(
        tile_header: TileHeader,
        header: &Header,
        tile: &Tile,
        payload: &'a [u8],
        subject: &str,
    ) -> Result<Self> {
        let mut rest = payload;
        let mut take = |count: usize| {
            let (taken, after) = rest.split_at_checked(count).ok_or_else(|| {
                Error::corrupt(
                    subject,
                    format!(
                        "the tile at row {}, column {} needs {count} bytes, {} remain",
                        tile.row,
                        tile.col,
                        rest.len()
                    ),
                )
            })?;
            rest = after;
            Ok(taken)
        };
        let mut states = [0; LANES];
        let mut lengths = [0; LANES];
        if tile_header.has_symbols() {
            for (state, bytes) in states.iter_mut().zip(take(4 * LANES)?.chunks_exact(4)) {
                *state = u32::from_le_bytes([bytes[0], bytes[1], bytes[2], bytes[3]]);
            }
            let width = if tile_header.wide_lengths { 2 } else { 1 };
            for (length, bytes) in lengths.iter_mut().zip(take(width * LANES)?.chunks_exact(width)) {
                *length = usize::from(bytes[0]) | usize::from(*bytes.get(1).unwrap_or(&0)) << 8;
            }
        }
        let field = tile_header.raw_field(header);
        let raw = take(tile.groups().map(|group| field.group_bytes(&group)).sum())?;
        let words = take(2 * lengths.iter().sum::<usize>())?;
        let escapes = usize::from(tile_header.escapes);
        let escape_positions = take(2 * escapes)?;
        let escape_values = take(if tile_header.wide_escapes { 2 * escapes } else { escapes })?;
        if rest.len() >= PAYLOAD_ALIGN_BYTES {
            return Err(Error::corrupt(
                subject,
                format!(
                    "the tile at row {}, column {} has {} bytes too many",
                    tile.row,
                    tile.col,
                    rest.len()
                ),
            ));
        }
        let sections =
            Self { header: tile_header, states, lengths, raw, words, escape_positions, escape_values };
        sections.check_escapes(tile, subject)?;
        Ok(sections)
    }

    fn check_escapes(&self, tile: &Tile, subject: &str) -> Result<()> {
        let mut next = 0;
        for (position, _) in self.escapes() {
            if position < next || position >= tile.weights() {
                return Err(Error::corrupt(
                    subject,
                    format!(
                        "an escape of the tile at row {}, column {} is at {position}, wanted {next} to {}",
                        tile.row,
                        tile.col,
                        tile.weights() - 1
                    ),
                ));
            }
            next = position + 1;
        }
        Ok(())
    }

    /// Bytes of the escapes, positions and values.
    pub(crate) fn escape_bytes(&self) -> usize {
        self.escape_positions.len() + self.escape_values.len()
    }

    /// Positions (`row * tile columns + column` within the tile) and values of the escapes, ascending.
    pub fn escapes(&self) -> impl Iterator<Item = (usize, i16)> + 'a {
        let wide = self.header.wide_escapes;
        let values = self.escape_values;
        self.escape_positions.chunks_exact(2).enumerate().map(move |(index, bytes)| {
            let value = if wide {
                i16::from_le_bytes([values[2 * index], values[2 * index + 1]])
            } else {
                i16::from(values[index] as i8)
            };
            (usize::from(u16::from_le_bytes([bytes[0], bytes[1]])), value)
        })
    }
}
