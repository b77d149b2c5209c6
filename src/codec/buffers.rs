//! The byte buffers that make up a compressed tensor, owned and borrowed.

use half::bf16;
use xxhash_rust::xxh3::Xxh3;

use super::coded_table::CodedTable;
use super::header::{Header, HEADER_BYTES};
use super::tile_payload::{TileHeader, TileSections, PAYLOAD_ALIGN_BYTES, TILE_HEADER_BYTES};
use crate::error::{Error, Result};
use crate::rans::FrequencyTable;

/// The names of a tensor's buffers, in the order of [`Buffers`]. A buffer's full name is the tensor path, a dot,
/// and one of these.
///
/// The names that [`Buffers`] go by; see its example.
pub const BUFFER_NAMES: [&str; 5] = ["header", "scales", "tables", "tiles", "payload"];

/// The buffers of one compressed tensor, all bytes.
///
/// ```
/// use codecllm::codec::{decompress, CompressedTensor, EncodeOptions, StepRule, View, BUFFER_NAMES};
/// use tch::{Device, Kind, Tensor};
/// let weight = Tensor::randn([64, 128], (Kind::Half, Device::Cpu));
/// let compressed = CompressedTensor::compress("w", &weight, StepRule::RowAbsmax, EncodeOptions::default())?;
/// let buffers = compressed.buffers().clone();
/// let view = buffers.view("w")?; // checked: every size and offset
/// assert_eq!((view.header.grid.rows(), view.total_bytes()), (64, buffers.total_bytes()));
/// // Whoever keeps the five buffers has the weight.
/// assert_eq!(decompress(&buffers, "w")?, compressed.decompress()?);
/// assert!(buffers.iter().map(|(name, _)| name).eq(BUFFER_NAMES));
/// let [header, scales, tables, tiles, _] = BUFFER_NAMES.map(|name| buffers.iter().find(|it| it.0 == name).unwrap().1);
/// let error = View::new("w", [header, scales, tables, tiles, &[]]).unwrap_err();
/// assert!(error.to_string().contains("buffers mixed up"), "{error}");
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// [`Header`].
    pub header: Vec<u8>,
    /// BF16 scales, one or one a row.
    pub scales: Vec<u8>,
    /// Frequency tables, each with its first exponent where classes are exponents.
    pub tables: Vec<u8>,
    /// Tile headers, 8 bytes each.
    pub tiles: Vec<u8>,
    /// Tile payloads.
    pub payload: Vec<u8>,
}

impl Buffers {
    /// The buffers in the order of [`BUFFER_NAMES`].
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, &[u8])> {
        let all: [&[u8]; 5] = [&self.header, &self.scales, &self.tables, &self.tiles, &self.payload];
        BUFFER_NAMES.into_iter().zip(all)
    }

    /// Bytes of all buffers together.
    pub fn total_bytes(&self) -> usize {
        self.iter().map(|(_, bytes)| bytes.len()).sum()
    }

    /// Checks the buffers and looks at them as a tensor. `subject` is the tensor path.
    pub fn view<'a>(&'a self, subject: &str) -> Result<View<'a>> {
        View::new(subject, [&self.header, &self.scales, &self.tables, &self.tiles, &self.payload])
    }
}

/// Whether checksums are compared. Sizes, offsets, tables and lane ends are checked in either case: no payload reaches memory
/// that is not its own.
///
/// Asked by [`View::check`], as a [`View`] shows; see its example.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Checksums {
    /// Compare them all.
    #[default]
    Verify,
    /// Compare none but those of headers, for who is in a hurry and trusts the disk: damage gives wrong weights.
    Ignore,
}

impl Checksums {
    /// Whether they are compared.
    pub fn verify(self) -> bool {
        self == Self::Verify
    }
}

/// A compressed tensor in borrowed buffers whose sizes, offsets and counts have been checked.
///
/// ```
/// use codecllm::codec::{decompress_view, Checksums, CompressedTensor, EncodeOptions, Predictor, StepRule, TileSections};
/// use tch::{Device, Kind, Tensor};
/// let weight = Tensor::randn([64, 128], (Kind::Half, Device::Cpu));
/// let compressed = CompressedTensor::compress("w", &weight, StepRule::Step(0.1), EncodeOptions::default())?;
/// let mut buffers = compressed.buffers().clone();
/// let view = buffers.view("w")?;
/// view.check(Checksums::Verify)?;
/// assert_eq!((view.subject(), view.scales()?.len(), view.header.scale_count()), ("w", 1, 1));
/// assert_eq!(view.frequency_tables()?.len(), view.header.table_count);
/// assert_eq!((view.tile_header(0)?.predictor, view.tile_header(0)?.offset), (Predictor::None, 0));
/// let sections: TileSections = view.tile_sections(0)?; // states, words, raw bits, escapes
/// assert_eq!(sections.words.len(), 2 * sections.lengths.iter().sum::<usize>());
/// assert_eq!(sections.escapes().count(), usize::from(sections.header.escapes));
/// assert_eq!(decompress_view(&view)?, compressed.decompress()?);
/// *buffers.payload.last_mut().unwrap() ^= 1;
/// assert!(buffers.view("w")?.verify_checksum().is_err());
/// assert!(Checksums::Verify.verify() && buffers.view("w")?.check(Checksums::Ignore).is_ok());
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct View<'a> {
    /// The parsed header.
    pub header: Header,
    subject: String,
    scales: &'a [u8],
    tables: &'a [u8],
    tiles: &'a [u8],
    payload: &'a [u8],
}

impl<'a> View<'a> {
    /// Checks the sizes of `buffers`, in the order of [`BUFFER_NAMES`], against the header.
    pub fn new(subject: &str, buffers: [&'a [u8]; 5]) -> Result<Self> {
        let [header, scales, tables, tiles, payload] = buffers;
        let header = Header::parse(header, subject)?;
        // A tile has at least one weight, so its count is at most rows * cols <= 2^64 / 8 and cannot overflow here
        // before the comparison fails.
        let tiles_bytes = header.grid.tile_count().saturating_mul(TILE_HEADER_BYTES);
        let wanted = [
            ("scales", scales.len(), 2 * header.scale_count()),
            ("tables", tables.len(), header.tables_bytes),
            ("tiles", tiles.len(), tiles_bytes),
            ("payload", payload.len(), header.payload_bytes),
        ];
        for (name, got, want) in wanted {
            if got != want {
                return Err(Error::corrupt(
                    subject,
                    format!("buffer {name} has {got} bytes, the header says {want} (buffers mixed up?)"),
                ));
            }
        }
        Ok(Self { header, subject: subject.to_owned(), scales, tables, tiles, payload })
    }

    /// The tensor path, for errors.
    pub fn subject(&self) -> &str {
        &self.subject
    }

    /// Bytes of all buffers together.
    pub fn total_bytes(&self) -> usize {
        HEADER_BYTES + self.scales.len() + self.tables.len() + self.tiles.len() + self.payload.len()
    }

    /// [`View::verify_checksum`], if `checksums` are wanted.
    pub fn check(&self, checksums: Checksums) -> Result<()> {
        match checksums {
            Checksums::Verify => self.verify_checksum(),
            Checksums::Ignore => Ok(()),
        }
    }

    /// Compares the checksum of the buffers with the header's.
    pub fn verify_checksum(&self) -> Result<()> {
        self.compare_checksum(checksum(self.scales, self.tables, self.tiles, self.payload))
    }

    /// Compares `got`, computed over scales, tables, tiles and payload as they were read, with the header's checksum.
    pub(crate) fn compare_checksum(&self, got: u64) -> Result<()> {
        if got != self.header.checksum {
            return Err(Error::corrupt(
                &*self.subject,
                format!("checksum {got:016x}, wanted {:016x} (file damaged?)", self.header.checksum),
            ));
        }
        Ok(())
    }

    /// The scale of each row (or the only one), as FP32. Errors where one is not a finite number.
    pub fn scales(&self) -> Result<Vec<f32>> {
        let scales: Vec<f32> =
            self.scales.chunks_exact(2).map(|b| bf16::from_le_bytes([b[0], b[1]]).to_f32()).collect();
        if !self.header.layout.is_grid() && scales != [1.0] {
            let got = &scales;
            return Err(Error::corrupt(&*self.subject, format!("scale {got:?} of floats, wanted exactly 1")));
        }
        match scales.iter().position(|scale| !scale.is_finite()) {
            None => Ok(scales),
            Some(row) => {
                Err(Error::corrupt(&*self.subject, format!("the scale of row {row} is {}", scales[row])))
            }
        }
    }

    /// Reads the tables. Errors where a frequency passes the layout's cap or an exponent its dtype.
    pub(crate) fn tables(&self) -> Result<Vec<CodedTable>> {
        let mut rest = self.tables;
        let mut tables = Vec::with_capacity(self.header.table_count);
        for _ in 0..self.header.table_count {
            tables.push(CodedTable::read(&mut rest, &self.header, &self.subject)?);
        }
        if !rest.is_empty() {
            return Err(Error::corrupt(
                &*self.subject,
                format!("{} bytes follow the last frequency table", rest.len()),
            ));
        }
        Ok(tables)
    }

    /// The frequencies of every table.
    pub fn frequency_tables(&self) -> Result<Vec<FrequencyTable>> {
        Ok(self.tables()?.into_iter().map(|table| table.frequencies).collect())
    }

    /// The header of the tile at `index`.
    pub fn tile_header(&self, index: usize) -> Result<TileHeader> {
        let at = index * TILE_HEADER_BYTES;
        let mut bytes = [0; TILE_HEADER_BYTES];
        bytes.copy_from_slice(&self.tiles[at..at + TILE_HEADER_BYTES]);
        TileHeader::parse(bytes, &self.header, &self.subject)
    }

    /// The checked payload sections of the tile at `index`.
    pub fn tile_sections(&self, index: usize) -> Result<TileSections<'a>> {
        let tile_header = self.tile_header(index)?;
        let start = tile_header.offset as usize * PAYLOAD_ALIGN_BYTES;
        let end = if index + 1 < self.header.grid.tile_count() {
            self.tile_header(index + 1)?.offset as usize * PAYLOAD_ALIGN_BYTES
        } else {
            self.payload.len()
        };
        let payload = self.payload.get(start..end).ok_or_else(|| {
            Error::corrupt(
                &*self.subject,
                format!("tile {index} lies at bytes {start} to {end} of {}", self.payload.len()),
            )
        })?;
        let tile = self.header.grid.tile(index);
        TileSections::split(tile_header, &self.header, &tile, payload, &self.subject)
    }
}

/// XXH3-64 over the buffers that the header vouches for.
pub(super) fn checksum(scales: &[u8], tables: &[u8], tiles: &[u8], payload: &[u8]) -> u64 {
    let mut hasher = Xxh3::new();
    for bytes in [scales, tables, tiles, payload] {
        hasher.update(bytes);
    }
    hasher.digest()
}

#[cfg(test)]
mod tests {
    use xxhash_rust::xxh3::xxh3_64;

    use super::*;
    use crate::codec::{encode, EncodeOptions, SourceDtype};

    fn encoded() -> Buffers {
        let values: Vec<i16> = (0..300 * 300).map(|n| (n * 7 % 23) as i16 - 11).collect();
        let options = EncodeOptions { allow_left: false, ..EncodeOptions::default() };
        encode("w", &values, [300, 300], &[bf16::ONE], SourceDtype::F16, options).unwrap()
    }

    /// Writes `bytes` into the header at `at` and makes its checksum right again.
    fn set_header(buffers: &mut Buffers, at: usize, bytes: &[u8]) {
        buffers.header[at..at + bytes.len()].copy_from_slice(bytes);
        let checksum = xxh3_64(&buffers.header[..48]);
        buffers.header[48..56].copy_from_slice(&checksum.to_le_bytes());
    }

    #[test]
    fn tables_of_another_size_than_the_layouts_are_corrupt() {
        let mut buffers = encoded();
        set_header(&mut buffers, 20, &[10]);
        let error = buffers.view("w").unwrap_err().to_string();
        assert!(error.contains("scale bits 10, wanted 11"), "{error}");
    }

    #[test]
    fn a_frequency_that_an_entry_has_no_room_for_is_corrupt() {
        let mut buffers = encoded();
        // 512 four times, then 252 zeros.
        buffers.tables = [[0x80, 4]; 4].concat();
        buffers.tables.extend([0, 251]);
        set_header(&mut buffers, 22, &[1]);
        set_header(&mut buffers, 24, &10u32.to_le_bytes());
        let error = buffers.view("w").unwrap().frequency_tables().unwrap_err().to_string();
        assert!(error.contains("frequency of 512 for symbol 0, wanted at most 511"), "{error}");
    }
}
