//! Integer grid, or floats bit for bit, to buffers.

use half::bf16;
use rayon::prelude::*;

use super::buffers::{checksum, Buffers};
use super::coded_table::CodedTable;
use super::encode_tile::{encode_tile, encode_tile_raw, EncodedTile, TileValues};
use super::header::{Header, Layout, ScaleGranularity, SourceDtype};
use super::plan::{plan, Plan, TileShape};
use super::plan_exact::plan_exact;
use super::tile_payload::{NO_TABLE, PAYLOAD_ALIGN_BYTES};
use crate::error::{Error, Result};
use crate::tile::{TileGrid, GROUP_COLS, STRIPE_ROWS};

/// How to encode.
///
/// Given to [`encode`](encode()); see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EncodeOptions {
    /// What a symbol stands for.
    pub layout: Layout,
    /// Single rows will be looked up: keep tiles as few stripes high as hold more than 8192 weights.
    pub row_access: bool,
    /// Whether tiles may code differences to the left where that is smaller.
    pub allow_left: bool,
    /// How to cut the matrix; `None`: as its own shape asks for.
    pub tile: Option<TileShape>,
}

impl Default for EncodeOptions {
    fn default() -> Self {
        Self { layout: Layout::Fast, row_access: false, allow_left: true, tile: None }
    }
}

/// Encodes the grid `values`, row-major `rows x cols`, with its `scales` (one, or one a row).
///
/// The same input gives the same bytes on any number of threads. `subject` is the tensor path.
///
/// ```
/// use codecllm::codec::{decode_grid, decode_grid_reference, encode, grid_entropy};
/// use codecllm::codec::{EncodeOptions, Layout, ScaleGranularity, SourceDtype, TileShape};
/// use half::bf16;
/// let values: Vec<i16> = (0..77 * 100).map(|n| (n % 13) - 6).collect();
/// let scales = [bf16::from_f32(0.5)];
/// let options = EncodeOptions { layout: Layout::Small, ..EncodeOptions::default() };
/// let buffers = encode("w", &values, [77, 100], &scales, SourceDtype::F16, options)?;
/// let view = buffers.view("w")?;
/// assert_eq!(decode_grid_reference(&view)?, values);
/// assert_eq!(decode_grid(&view, None)?, values);
/// assert_eq!(view.header.scale_granularity, ScaleGranularity::Tensor);
/// // Thirteen values equally often.
/// assert!((grid_entropy(&values) - 13f64.log2()).abs() < 1e-4);
/// assert!(8.0 * buffers.payload.len() as f64 / 7700.0 < 13f64.log2() + 0.2);
/// // Cut as its shape asks for, or as one likes: the values stay.
/// let options = EncodeOptions { tile: Some(TileShape { rows: 16, cols: 64 }), ..options };
/// let small = encode("w", &values, [77, 100], &scales, SourceDtype::F16, options)?;
/// assert_eq!((small.view("w")?.header.grid.tile_count(), decode_grid(&small.view("w")?, None)?), (10, values));
/// # Ok::<(), codecllm::Error>(())
/// ```
pub fn encode(
    subject: &str,
    values: &[i16],
    [rows, cols]: [usize; 2],
    scales: &[bf16],
    dtype: SourceDtype,
    options: EncodeOptions,
) -> Result<Buffers> {
    if !options.layout.is_grid() {
        return Err(Error::invalid(
            subject,
            format!("layout {} takes floats, not a grid (use encode_exact)", options.layout.name()),
        ));
    }
    let grid = tiles_of(subject, [rows, cols], options)?;
    check_input(subject, values, scales, &grid)?;
    let plan = plan(values, &grid, options.layout, options.allow_left);
    encode_values(subject, values, &grid, scales, dtype, options.layout, &plan)
}

/// Encodes floats bit for bit: `halves` are the weights' own 16 bits, row-major `rows x cols`, of the element type of
/// `options.layout`, which is one of the exact ones. `dtype` is the type that they have when decompressed.
///
/// ```
/// use codecllm::codec::{decode_bits, decode_bits_reference, encode_exact, EncodeOptions, Layout, SourceDtype};
/// use half::bf16;
/// let halves: Vec<u16> = (0..77 * 100).map(|n| bf16::from_f32(n as f32 - 3000.5).to_bits()).collect();
/// let options = EncodeOptions { layout: Layout::ExactBf16, ..EncodeOptions::default() };
/// let buffers = encode_exact("w", &halves, [77, 100], SourceDtype::BF16, options)?;
/// assert_eq!(decode_bits_reference(&buffers.view("w")?)?, halves);
/// assert_eq!(decode_bits(&buffers.view("w")?, None)?, halves);
/// # Ok::<(), codecllm::Error>(())
/// ```
pub fn encode_exact(
    subject: &str,
    halves: &[u16],
    [rows, cols]: [usize; 2],
    dtype: SourceDtype,
    options: EncodeOptions,
) -> Result<Buffers> {
    let layout = options.layout;
    if layout.is_grid() || !layout.takes(dtype) {
        return Err(Error::invalid(
            subject,
            format!("layout {} does not take the bits of {dtype:?} weights", layout.name()),
        ));
    }
    let grid = tiles_of(subject, [rows, cols], options)?;
    check_shape(subject, halves.len(), &grid)?;
    let values: Vec<i16> = halves.iter().map(|half| half.cast_signed()).collect();
    let plan = plan_exact(&values, &grid, layout);
    encode_values(subject, &values, &grid, &[bf16::ONE], dtype, layout, &plan)
}

fn tiles_of(subject: &str, [rows, cols]: [usize; 2], options: EncodeOptions) -> Result<TileGrid> {
    // Refuses a shape without weights before anything is divided by it.
    TileGrid::new(rows, cols, STRIPE_ROWS, GROUP_COLS, subject)?;
    let shape =
        options.tile.unwrap_or_else(|| TileShape::choose(rows, cols, options.layout, options.row_access));
    TileGrid::new(rows, cols, shape.rows, shape.cols, subject)
}

#[allow(clippy::too_many_arguments)]
fn encode_values(
    subject: &str,
    values: &[i16],
    grid: &TileGrid,
    scales: &[bf16],
    dtype: SourceDtype,
    layout: Layout,
    plan: &Plan,
) -> Result<Buffers> {
    let mut tiles: Vec<EncodedTile> = plan
        .choices
        .par_iter()
        .enumerate()
        .map(|(index, choice)| {
            encode_tile(values, grid, &grid.tile(index), *choice, &plan.tables[choice.table], layout)
        })
        .collect();
    drop_losing_tables(values, grid, &plan.tables, layout, &mut tiles);
    assemble(subject, grid, scales, dtype, layout, &plan.tables, tiles)
}

fn check_shape(subject: &str, weights: usize, grid: &TileGrid) -> Result<()> {
    let [rows, cols] = [grid.rows(), grid.cols()];
    if u32::try_from(rows).is_err() || u32::try_from(cols).is_err() {
        return Err(Error::unsupported(subject, format!("shape [{rows}, {cols}] passes 2^32 - 1")));
    }
    if rows.checked_mul(cols) != Some(weights) {
        return Err(Error::invalid(subject, format!("{weights} weights for shape [{rows}, {cols}]")));
    }
    Ok(())
}

fn check_input(subject: &str, values: &[i16], scales: &[bf16], grid: &TileGrid) -> Result<()> {
    check_shape(subject, values.len(), grid)?;
    let rows = grid.rows();
    if scales.len() != 1 && scales.len() != rows {
        return Err(Error::invalid(
            subject,
            format!("{} scales for {rows} rows, wanted 1 or {rows}", scales.len()),
        ));
    }
    if values.contains(&i16::MIN) {
        return Err(Error::invalid(subject, "a grid value is -32768, wanted -32767 to 32767"));
    }
    Ok(())
}

/// Stores tiles raw whose table takes more bytes than it saves them.
fn drop_losing_tables(
    values: &[i16],
    grid: &TileGrid,
    tables: &[CodedTable],
    layout: Layout,
    tiles: &mut [EncodedTile],
) {
    for (index, table) in tables.iter().enumerate() {
        let uses = |tile: &EncodedTile| usize::from(tile.header.table) == index;
        let mut bytes = Vec::new();
        table.write(layout, &mut bytes);
        if tiles.iter().filter(|tile| uses(tile)).map(|tile| tile.saved_bytes).sum::<usize>() > bytes.len() {
            continue;
        }
        for (tile_index, tile) in tiles.iter_mut().enumerate().filter(|(_, tile)| uses(tile)) {
            let place = grid.tile(tile_index);
            *tile = encode_tile_raw(&TileValues::cut(values, grid, &place), &place, layout);
        }
    }
}

#[allow(clippy::too_many_arguments)]
fn assemble(
    subject: &str,
    grid: &TileGrid,
    scales: &[bf16],
    dtype: SourceDtype,
    layout: Layout,
    tables: &[CodedTable],
    tiles: Vec<EncodedTile>,
) -> Result<Buffers> {
    // Tiles that turned out cheaper without symbols may have left a table unused.
    let used: Vec<bool> = (0..tables.len())
        .map(|table| tiles.iter().any(|tile| usize::from(tile.header.table) == table))
        .collect();
    let renumbered = |table: u8| match table {
        NO_TABLE => NO_TABLE,
        table => used[..usize::from(table)].iter().filter(|&&used| used).count() as u8,
    };
    let mut table_bytes = Vec::new();
    tables
        .iter()
        .zip(&used)
        .filter(|(_, used)| **used)
        .for_each(|(table, _)| table.write(layout, &mut table_bytes));
    let mut tile_bytes = Vec::new();
    let mut payload = Vec::with_capacity(tiles.iter().map(|tile| tile.payload.len()).sum());
    for mut tile in tiles {
        tile.header.offset = u32::try_from(payload.len() / PAYLOAD_ALIGN_BYTES).map_err(|_| {
            Error::unsupported(subject, "the coded tensor passes 64 GiB; split it along its rows")
        })?;
        tile.header.table = renumbered(tile.header.table);
        tile_bytes.extend(tile.header.to_bytes());
        payload.extend(tile.payload);
    }
    let scale_bytes: Vec<u8> = scales.iter().flat_map(|scale| scale.to_le_bytes()).collect();
    let header = Header {
        layout,
        dtype,
        grid: *grid,
        scale_bits: layout.scale_bits(),
        scale_granularity: if scales.len() == 1 { ScaleGranularity::Tensor } else { ScaleGranularity::Row },
        table_count: used.iter().filter(|&&used| used).count(),
        tables_bytes: table_bytes.len(),
        payload_bytes: payload.len(),
        checksum: checksum(&scale_bytes, &table_bytes, &tile_bytes, &payload),
    };
    Ok(Buffers {
        header: header.to_bytes().to_vec(),
        scales: scale_bytes,
        tables: table_bytes,
        tiles: tile_bytes,
        payload,
    })
}
