//! Buffers to integer grid or floats, with the best instructions of this processor.

use rayon::prelude::*;

use super::buffers::View;
use super::classes::Classes;
use super::coded_table::CodedTable;
use super::fragments::{decode_fragments, spread, Fragments, TileJob, TileTable, WordBuffer};
use super::half_kind::HalfKind;
use super::reference::{check_layout, decode_tile_reference};
use super::tile_payload::{Predictor, TileSections};
use crate::error::{Error, ErrorKind, Result};
use crate::rans::simd::EntryTable;
use crate::rans::LANES;
use crate::tile::raw_bits::MAX_RAW_BITS;
use crate::tile::{Group, Tile, GROUP_COLS, LANE_WEIGHTS};

pub use crate::rans::simd::Level;

/// A tensor's tables, spread for decoding. Made once, used by every forward.
///
/// What a [`TileDecoder`] reads; see its example.
#[derive(Clone, Debug)]
pub struct DecodeTables {
    tables: Vec<CodedTable>,
    entries: Vec<EntryTable>,
}

impl DecodeTables {
    /// Reads and spreads the tables of `view`.
    pub fn new(view: &View) -> Result<Self> {
        let tables = view.tables()?;
        let layout = view.header.layout;
        let entries = tables
            .iter()
            .map(|table| {
                EntryTable::new(&table.frequencies, |symbol| spread(layout, symbol)).ok_or_else(|| {
                    Error::corrupt(view.subject(), "a table has a frequency of 4096, wanted at most 4095")
                })
            })
            .collect::<Result<_>>()?;
        Ok(Self { tables, entries })
    }

    /// What the symbols of a tile of `view` mean; `None` where it has none.
    fn of_tile(&self, view: &View, sections: &TileSections) -> Option<TileTable<'_>> {
        let header = sections.header;
        let index = usize::from(header.table);
        header.has_symbols().then(|| TileTable {
            entries: &self.entries[index],
            classes: Classes::new(
                view.header.layout,
                header.raw_magnitude_bits,
                self.tables[index].first_exponent,
            ),
        })
    }
}

/// What takes the decoded weights of a tile.
///
/// Where a [`TileDecoder`] brings what it decodes; see its example.
pub trait TileSink {
    /// The fragments of one group, escapes left out (they are zero). Groups come in order, stripe by stripe.
    fn group(&mut self, group: &Group, fragments: &Fragments);
    /// One escape, after all groups: the true value of a weight that was zero in its fragment, a grid value or a float's bits.
    ///
    /// `false` if the sink can tell that it was not zero.
    fn escape(&mut self, row: usize, col: usize, value: i16) -> bool;
}

/// Decodes tiles, with room of its own to do so. One a thread.
///
/// ```
/// use codecllm::codec::{CompressedTensor, DecodeTables, EncodeOptions, Fragments, Level, StepRule, TileDecoder, TileSink};
/// use codecllm::tile::Group;
/// use tch::{Device, Kind, Tensor};
///
/// /// The largest magnitude of a tile.
/// struct Largest(u32);
///
/// impl TileSink for Largest {
///     fn group(&mut self, _: &Group, fragments: &Fragments) {
///         for pair in fragments.row_pairs().into_iter().flatten() {
///             self.0 = self.0.max(pair & 0x7FFF).max(pair >> 16 & 0x7FFF);
///         }
///     }
///     fn escape(&mut self, _row: usize, _col: usize, value: i16) -> bool {
///         self.0 = self.0.max(value.unsigned_abs().into());
///         true
///     }
/// }
///
/// let weight = Tensor::randn([64, 128], (Kind::Half, Device::Cpu));
/// let compressed = CompressedTensor::compress("w", &weight, StepRule::TensorAbsmax, EncodeOptions::default())?;
/// let view = compressed.buffers().view("w")?;
/// let tables = DecodeTables::new(&view)?;
/// let mut best = Largest(0);
/// TileDecoder::new().decode(&view, &tables, 0, &mut best)?;
/// for level in Level::available() {
///     let mut largest = Largest(0);
///     TileDecoder::with_level(level).unwrap().decode(&view, &tables, 0, &mut largest)?;
///     assert_eq!(largest.0, best.0); // whatever the processor
/// }
/// assert!((126..=127).contains(&best.0) && Level::available().contains(&Level::detect()));
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Default)]
pub struct TileDecoder {
    level: Option<Level>,
    words: WordBuffer,
}

impl std::fmt::Debug for TileDecoder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("TileDecoder").field("level", &self.level).finish_non_exhaustive()
    }
}

impl TileDecoder {
    /// A decoder with the best level of this processor.
    pub fn new() -> Self {
        Self::default()
    }

    /// A decoder with `level`, or `None` where this processor lacks it.
    pub fn with_level(level: Level) -> Option<Self> {
        (level <= Level::detect()).then(|| Self { level: Some(level), ..Self::default() })
    }

    /// Decodes the tile at `index` into `sink`.
    ///
    /// An error means that the tile is damaged, and that what `sink` got is worthless.
    pub fn decode(
        &mut self,
        view: &View,
        tables: &DecodeTables,
        index: usize,
        sink: &mut dyn TileSink,
    ) -> Result<()> {
        let tile = view.header.grid.tile(index);
        let sections = view.tile_sections(index)?;
        if sections.header.predictor == Predictor::Left {
            let values = decode_tile_reference(view, index, &tables.tables)?;
            feed_values(&values, tile, sink);
            return Ok(());
        }
        self.decode_sections(view, tables, &sections, tile, sink)
    }

    fn decode_sections(
        &mut self,
        view: &View,
        tables: &DecodeTables,
        sections: &TileSections,
        tile: Tile,
        sink: &mut dyn TileSink,
    ) -> Result<()> {
        let header = sections.header;
        let job = TileJob {
            layout: view.header.layout,
            tile,
            sections,
            field: header.raw_field(&view.header),
            table: tables.of_tile(view, sections),
        };
        let level = *self.level.get_or_insert_with(Level::detect);
        if !decode_fragments(level, &job, &mut self.words, sink) {
            return Err(Error::corrupt(
                view.subject(),
                format!(
                    "a lane of the tile at row {}, column {} does not end where it was begun (payload damaged?)",
                    tile.row, tile.col
                ),
            ));
        }
        for (position, value) in sections.escapes() {
            if !sink.escape(position / tile.cols, position % tile.cols, value) {
                return Err(escape_conflict(view, &tile));
            }
        }
        Ok(())
    }
}

/// The error for an escape at a weight that is not coded as zero.
pub(super) fn escape_conflict(view: &View, tile: &Tile) -> Error {
    Error::corrupt(
        view.subject(),
        format!("an escaped weight of the tile at row {}, column {} is coded too", tile.row, tile.col),
    )
}

/// Gives a tile that is already on the grid to `sink` in the order of a decoded one.
fn feed_values(values: &[i16], tile: Tile, sink: &mut dyn TileSink) {
    let fits = |value: i16| u32::from(value.unsigned_abs()) < 1 << (MAX_RAW_BITS - 1);
    for group in tile.groups() {
        let mut fragments = Fragments::zero();
        for (lane, n) in (0..LANES).flat_map(|lane| (0..LANE_WEIGHTS).map(move |n| (lane, n))) {
            if let Some((row, col)) = group.weight(lane, n) {
                let value = values[(group.row + row) * tile.cols + group.col + col];
                if fits(value) {
                    fragments.add_half(lane, n, HalfKind::Grid.half_of(value));
                }
            }
        }
        sink.group(&group, &fragments);
    }
    for (position, &value) in values.iter().enumerate().filter(|(_, &value)| !fits(value)) {
        let _was_zero = sink.escape(position / tile.cols, position % tile.cols, value);
    }
}

/// Decodes the whole grid, row-major `rows x cols`, on all rayon threads, with `level` or the best there is.
///
/// The grid that [`encode`](super::encode()) was given; see its example.
pub fn decode_grid(view: &View, level: Option<Level>) -> Result<Vec<i16>> {
    check_layout(view, true)?;
    decode_values(view, level)
}

/// Decodes all floats of an exact layout to their bits, as [`decode_grid`] does a grid.
///
/// The floats that [`encode_exact`](super::encode_exact) was given; see its example.
pub fn decode_bits(view: &View, level: Option<Level>) -> Result<Vec<u16>> {
    check_layout(view, false)?;
    Ok(decode_values(view, level)?.into_iter().map(i16::cast_unsigned).collect())
}

fn decode_values(view: &View, level: Option<Level>) -> Result<Vec<i16>> {
    let grid = view.header.grid;
    let kind = view.header.layout.half_kind();
    let tables = DecodeTables::new(view)?;
    let mut values = zeros(grid.rows().saturating_mul(grid.cols()), view.subject())?;
    let band = grid.tile_rows() * grid.cols();
    values.par_chunks_mut(band).enumerate().try_for_each_init(
        || level.map_or_else(|| Some(TileDecoder::new()), TileDecoder::with_level),
        |decoder, (down, band)| {
            let decoder = decoder.as_mut().ok_or_else(|| {
                Error::unsupported(view.subject(), format!("this processor has no {level:?}"))
            })?;
            for index in down * grid.tiles_across()..(down + 1) * grid.tiles_across() {
                let tile = grid.tile(index);
                let mut sink = ValueSink { kind, band: &mut *band, cols: grid.cols(), first_col: tile.col };
                decoder.decode(view, &tables, index, &mut sink)?;
            }
            Ok(())
        },
    )?;
    Ok(values)
}

/// `len` zeros, or an error where there is no room: a few damaged bytes may ask for any size.
pub(super) fn zeros<T: Clone + Default>(len: usize, subject: &str) -> Result<Vec<T>> {
    let mut values = Vec::new();
    values.try_reserve_exact(len).map_err(|e| {
        let message = format!("decoding it needs room for {len} weights: {e}");
        Error::new(ErrorKind::OutOfMemory, subject, message).with_source(e)
    })?;
    values.resize(len, T::default());
    Ok(values)
}

/// Writes values row-major.
struct ValueSink<'a> {
    kind: HalfKind,
    band: &'a mut [i16],
    cols: usize,
    first_col: usize,
}

impl TileSink for ValueSink<'_> {
    fn group(&mut self, group: &Group, fragments: &Fragments) {
        for (row, pairs) in fragments.row_pairs().iter().enumerate().take(group.rows) {
            let at = (group.row + row) * self.cols + self.first_col + group.col;
            let mut values = [0i16; GROUP_COLS];
            for (two, &pair) in values.chunks_exact_mut(2).zip(pairs) {
                two[0] = self.kind.value_of(pair & 0xFFFF);
                two[1] = self.kind.value_of(pair >> 16);
            }
            self.band[at..at + group.cols].copy_from_slice(&values[..group.cols]);
        }
    }

    fn escape(&mut self, row: usize, col: usize, value: i16) -> bool {
        let cell = &mut self.band[row * self.cols + self.first_col + col];
        std::mem::replace(cell, value) == 0
    }
}
