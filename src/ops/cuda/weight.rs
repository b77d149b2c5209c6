//! A compressed weight on a GPU: what the kernels are told of it.

use tch::{Kind, Tensor};

use super::tables::{entries, table_bytes};
use crate::codec::{Checksums, Layout, Predictor, View};
use crate::error::{Error, Result, TorchContext};
use crate::tile::{GROUP_COLS, LANE_WEIGHTS, STRIPE_ROWS};

/// Units of a payload's offsets, bytes: how the kernels' loads are aligned.
const PAYLOAD_ALIGN_BYTES: usize = 16;
const TILES_ALIGN_BYTES: usize = 8;
const SCALES_ALIGN_BYTES: usize = 2;

/// One compressed matrix on the device. Mirrors `Weight` of `csrc/kernels/tile.cuh`.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(super) struct Weight {
    tiles: u64,
    payload: u64,
    entries: u64,
    scales: u64,
    rows: u32,
    cols: u32,
    tile_rows: u32,
    tile_cols: u32,
    tiles_across: u32,
    payload_units: u32,
    table_count: u32,
    scale_stride: u32,
    layout: u32,
    tile_count: u32,
}

const _: () = assert!(size_of::<Weight>() == 72);

/// The numbers of a weight that launches are planned by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct WeightFacts {
    pub(super) layout: Layout,
    pub(super) rows: usize,
    pub(super) cols: usize,
    pub(super) tile_rows: usize,
    pub(super) tile_cols: usize,
    pub(super) tiles_across: usize,
    /// Rows of tiles.
    pub(super) bands: usize,
    /// At least one, so that even a tile header that names a table wrongly finds one.
    pub(super) table_count: usize,
    /// Shared memory for the words and escapes of a tile: of the tile that has the most.
    pub(super) words_bytes: usize,
    /// How far behind its words a lane reads whose stream is damaged, at most: a word a symbol.
    pub(super) slack_bytes: usize,
    /// Whether a tile codes differences.
    pub(super) has_left: bool,
    /// Mean number of raw magnitude bits, in quarters.
    pub(super) quarter_raw_bits: usize,
}

impl WeightFacts {
    pub(super) fn table_bytes(&self) -> usize {
        self.table_count * table_bytes(self.layout)
    }

    pub(super) fn tile_count(&self) -> usize {
        self.bands * self.tiles_across
    }
}

/// What the host has to learn of a weight while its bytes are at hand.
#[derive(Debug)]
pub(crate) struct CheckedWeight {
    subject: String,
    facts: WeightFacts,
    entries: Vec<u32>,
    payload_bytes: usize,
    has_row_scales: bool,
}

impl CheckedWeight {
    /// Checks everything that the kernels rely on: the scales, the tables and the sections of every tile; and the checksum, if wanted.
    pub(crate) fn of(view: &View, checksums: Checksums) -> Result<Self> {
        let layout = view.header.layout;
        view.check(checksums)?;
        let scale_count = view.scales()?.len();
        let (header, subject) = (&view.header, view.subject());
        let grid = header.grid;
        let entries = entries(&view.tables()?, layout, subject)?;
        if !header.payload_bytes.is_multiple_of(PAYLOAD_ALIGN_BYTES) {
            return Err(Error::corrupt(
                subject,
                format!("the payload has {} bytes, wanted a multiple of 16", header.payload_bytes),
            ));
        }
        let tiles = TileSurvey::of(view)?;
        let facts = WeightFacts {
            layout,
            rows: grid.rows(),
            cols: grid.cols(),
            tile_rows: grid.tile_rows(),
            tile_cols: grid.tile_cols(),
            tiles_across: grid.tiles_across(),
            bands: grid.tiles_down(),
            table_count: header.table_count.max(1),
            words_bytes: tiles.words_bytes.next_multiple_of(PAYLOAD_ALIGN_BYTES),
            slack_bytes: slack_bytes(view),
            has_left: tiles.has_left,
            quarter_raw_bits: 4 * tiles.raw_bits / grid.tile_count(),
        };
        Ok(Self {
            subject: subject.to_owned(),
            facts,
            entries,
            payload_bytes: header.payload_bytes,
            has_row_scales: scale_count > 1,
        })
    }

    /// `[rows, cols]`.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.facts.rows, self.facts.cols]
    }
}

/// What all tiles together come to.
#[derive(Default)]
struct TileSurvey {
    words_bytes: usize,
    has_left: bool,
    raw_bits: usize,
}

impl TileSurvey {
    /// Checks every tile on the way.
    fn of(view: &View) -> Result<Self> {
        let mut survey = Self::default();
        for index in 0..view.header.grid.tile_count() {
            let sections = view.tile_sections(index)?;
            survey.words_bytes = survey.words_bytes.max(sections.words.len() + sections.escape_bytes());
            survey.has_left |= sections.header.predictor == Predictor::Left;
            survey.raw_bits += sections.header.raw_magnitude_bits as usize;
        }
        Ok(survey)
    }
}

/// Two bytes for each symbol that a lane of the largest tile may have, and for the word loaded ahead.
fn slack_bytes(view: &View) -> usize {
    let tile = view.header.grid.tile(0);
    let groups = tile.rows.div_ceil(STRIPE_ROWS) * tile.cols.div_ceil(GROUP_COLS);
    let symbols = groups * LANE_WEIGHTS / view.header.layout.weights_per_symbol();
    (2 * symbols + 2).next_multiple_of(PAYLOAD_ALIGN_BYTES)
}

/// A weight that the kernels can decode.
///
/// It holds no payload: its addresses are those of the registered buffers, which the caller keeps, and asks anew whether they
/// are still the same, before every use.
#[derive(Debug)]
pub(crate) struct DeviceWeight {
    subject: String,
    ordinal: usize,
    pub(super) facts: WeightFacts,
    pub(super) mirror: Weight,
    /// The decode tables, and copies of buffers that begin where the kernels can't read.
    _owned: Vec<Tensor>,
}

// SAFETY: `_owned` is the only field that is not `Sync` by itself, and no method touches it: the tensors are dropped with the value, by
// one thread, and libtorch's counts are atomic. What reads their memory is the device, in the order of its streams.
unsafe impl Sync for DeviceWeight {}

impl DeviceWeight {
    /// What was checked, on the device of `buffers` (in the order of [`crate::codec::BUFFER_NAMES`]), which hold the same bytes.
    pub(crate) fn new(checked: CheckedWeight, buffers: &[Tensor; 5]) -> Result<Self> {
        let CheckedWeight { subject, facts, entries, payload_bytes, has_row_scales } = checked;
        let [_, scales, _, tiles, payload] = buffers;
        let tch::Device::Cuda(ordinal) = payload.device() else {
            return Err(Error::invalid(subject, format!("buffers on {:?}, wanted CUDA", payload.device())));
        };
        if let Some(other) = [scales, tiles].into_iter().find(|buffer| buffer.device() != payload.device()) {
            let (got, wanted) = (other.device(), payload.device());
            let message = format!("a buffer is on {got:?}, the payload on {wanted:?} (move them together)");
            return Err(Error::invalid(subject, message));
        }
        let entries: Vec<i32> = entries.into_iter().map(u32::cast_signed).collect();
        let entries = Tensor::f_from_slice(&entries)
            .and_then(|host| host.f_to_device(payload.device()))
            .about(&subject)?;
        let entries_address = entries.data_ptr() as u64;
        let mut owned = vec![entries];
        let mut address = |buffer: &Tensor, align| aligned(buffer, align, &subject, &mut owned);
        let mirror = Weight {
            tiles: address(tiles, TILES_ALIGN_BYTES)?,
            payload: address(payload, PAYLOAD_ALIGN_BYTES)?,
            entries: entries_address,
            scales: address(scales, SCALES_ALIGN_BYTES)?,
            // Rows, columns and sizes of tiles are 32-bit fields of the header, and so are the offsets in the payload.
            rows: facts.rows as u32,
            cols: facts.cols as u32,
            tile_rows: facts.tile_rows as u32,
            tile_cols: facts.tile_cols as u32,
            tiles_across: facts.tiles_across as u32,
            payload_units: number(&subject, payload_bytes / PAYLOAD_ALIGN_BYTES)?,
            table_count: facts.table_count as u32,
            scale_stride: u32::from(has_row_scales),
            layout: match facts.layout {
                Layout::Fast => 0,
                Layout::Small => 1,
                Layout::ExactBf16 => 2,
                Layout::ExactFp16 => 3,
            },
            tile_count: number(&subject, facts.tile_count())?,
        };
        Ok(Self { subject, ordinal, facts, mirror, _owned: owned })
    }

    /// The tensor path, for errors.
    pub(crate) fn subject(&self) -> &str {
        &self.subject
    }

    /// `[rows, cols]`.
    pub(crate) fn shape(&self) -> [usize; 2] {
        [self.facts.rows, self.facts.cols]
    }

    /// The number of its GPU.
    pub(crate) fn ordinal(&self) -> usize {
        self.ordinal
    }

    /// Rows of a band and the number of bands: what can be decoded alone.
    pub(crate) fn bands(&self) -> (usize, usize) {
        (self.facts.tile_rows, self.facts.bands)
    }

    /// What the time of its decoding depends on, as far as it is known: layout and mean raw bits.
    pub(crate) fn profile(&self) -> (Layout, usize) {
        (self.facts.layout, self.facts.quarter_raw_bits)
    }
}

pub(super) fn number(subject: &str, size: usize) -> Result<u32> {
    u32::try_from(size)
        .map_err(|_| Error::unsupported(subject, format!("{size}, a GPU kernel counts to 2^32 - 1")))
}

/// Where the bytes of `buffer` are, or of a copy where they don't begin at a multiple of `align`: libtorch's allocations do,
/// a view into one need not.
fn aligned(buffer: &Tensor, align: usize, subject: &str, owned: &mut Vec<Tensor>) -> Result<u64> {
    if buffer.kind() != Kind::Uint8 || !buffer.is_contiguous() {
        return Err(Error::corrupt(subject, "a buffer is not contiguous bytes"));
    }
    if (buffer.data_ptr() as usize).is_multiple_of(align) {
        return Ok(buffer.data_ptr() as u64);
    }
    let mut copy = buffer.f_empty_like().about(subject)?;
    copy.f_copy_(buffer).about(subject)?;
    let address = copy.data_ptr() as u64;
    owned.push(copy);
    Ok(address)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;
    use crate::codec::{encode, Buffers, EncodeOptions, Layout, SourceDtype};

    fn encoded(shape: [usize; 2], layout: Layout, values: impl Fn(usize) -> i16) -> Buffers {
        let values: Vec<i16> = (0..shape[0] * shape[1]).map(values).collect();
        let options = EncodeOptions { layout, ..EncodeOptions::default() };
        encode("w", &values, shape, &[bf16::ONE], SourceDtype::F16, options).unwrap()
    }

    /// Looks random, and is mostly small.
    fn noise(n: usize) -> i16 {
        let hash = (n as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        ((hash >> 60) as i16 - 8) * ((hash >> 50) as i16 & 7)
    }

    #[test]
    fn the_mirror_has_the_offsets_of_the_kernels() {
        use std::mem::offset_of;
        assert_eq!(offset_of!(Weight, scales), 24);
        assert_eq!(offset_of!(Weight, rows), 32);
        assert_eq!(offset_of!(Weight, payload_units), 52);
        assert_eq!(offset_of!(Weight, tile_count), 68);
    }

    #[test]
    fn words_and_slack_cover_every_tile() {
        for layout in [Layout::Fast, Layout::Small] {
            for shape in [[1, 1], [5, 1000], [77, 300], [333, 577], [1000, 48]] {
                let buffers = encoded(shape, layout, noise);
                let view = buffers.view("w").unwrap();
                let facts = CheckedWeight::of(&view, Checksums::Verify).unwrap().facts;
                assert_eq!(facts.words_bytes % 16, 0);
                for index in 0..view.header.grid.tile_count() {
                    let sections = view.tile_sections(index).unwrap();
                    assert!(sections.words.len() <= facts.words_bytes);
                    let tile = view.header.grid.tile(index);
                    let symbols: usize = tile
                        .groups()
                        .map(|group| {
                            let count = layout.weights_per_symbol();
                            (0..32).step_by(count).filter(|&n| group.has_symbol(0, n, count)).count()
                        })
                        .sum();
                    assert!(2 * symbols < facts.slack_bytes);
                }
            }
        }
    }

    #[test]
    fn differences_and_raw_bits_are_noticed() {
        let ramp = encoded([96, 200], Layout::Fast, |n| (n % 200) as i16);
        assert!(CheckedWeight::of(&ramp.view("w").unwrap(), Checksums::Verify).unwrap().facts.has_left);
        let flat = encoded([96, 200], Layout::Fast, noise);
        let facts = CheckedWeight::of(&flat.view("w").unwrap(), Checksums::Verify).unwrap().facts;
        assert!(!facts.has_left && facts.quarter_raw_bits > 0 && facts.quarter_raw_bits < 40);
    }

    #[test]
    fn a_weight_without_tables_gets_one_that_no_tile_needs() {
        let zeros = encoded([40, 100], Layout::Fast, |_| 0);
        let view = zeros.view("w").unwrap();
        assert_eq!(view.header.table_count, 0);
        let checked = CheckedWeight::of(&view, Checksums::Verify).unwrap();
        assert_eq!((checked.facts.table_count, checked.entries.len()), (1, 2049));
        assert_eq!(checked.facts.words_bytes, 0);
    }

    #[test]
    fn damage_anywhere_is_an_error() {
        let buffers = encoded([77, 300], Layout::Fast, noise);
        for at in [0, buffers.payload.len() / 2, buffers.payload.len() - 1] {
            let mut damaged = buffers.clone();
            damaged.payload[at] ^= 1;
            assert!(CheckedWeight::of(&damaged.view("w").unwrap(), Checksums::Verify).is_err());
        }
        let mut damaged = buffers.clone();
        damaged.tiles[5] ^= 1;
        assert!(CheckedWeight::of(&damaged.view("w").unwrap(), Checksums::Verify).is_err());
    }
}
