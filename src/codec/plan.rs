//! What the encoder chooses before it codes: tile shape, and for every tile its predictor, raw bits and table.

use rayon::prelude::*;

use super::classes::Classes;
use super::coded_table::CodedTable;
use super::encode_tile::{Escapes, TileValues};
use super::header::Layout;
use super::reference::apply_left;
use super::tile_payload::Predictor;
use crate::rans::{FrequencyTable, SYMBOLS};
use crate::tile::{Tile, TileGrid, GROUP_COLS, MAX_TILE_CELLS, STRIPE_ROWS};

/// Rough size of a stored frequency table: what a further table must save.
pub(super) const TABLE_BITS: f64 = 2200.0;
/// Bits of an escape: position and an 8-bit value.
const ESCAPE_BITS: f64 = 24.0;
/// LEFT is taken where its bits are below this share of the plain ones. Weights have no correlation worth coding, and a
/// tile that codes differences is decoded by a slower path: a hair's breadth is not worth that.
const LEFT_MUST_REACH: f64 = 0.97;
/// Most tables of a tensor. A GPU keeps all of them in the memory of each multiprocessor, where they take room from its warps.
const MOST_TABLES: usize = 8;
/// Weights of a matrix that keeps a large GPU busy for a few tiles' time only. With less than these no cut would.
const FEW_TILES: std::ops::Range<usize> = 1 << 22..1 << 25;
/// What a tile holds at least, of a matrix of which single rows are looked up: 4608 weights, a stripe of 288 columns, would cost 0.19 bit each.
const ROW_ACCESS_WEIGHTS: usize = 1 << 13;
/// Magnitudes from here on are escapes whatever the raw bits.
const MAGNITUDES: usize = 1024;

/// Rows and columns of a tile.
///
/// Given to [`encode`](super::encode()); see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileShape {
    /// A multiple of 16.
    pub rows: usize,
    /// A multiple of 64.
    pub cols: usize,
}

impl TileShape {
    /// The shape for a `rows x cols` matrix.
    ///
    /// A tile costs about 110 bytes of states, lane lengths and header whatever it holds: 0.06 bit a weight at
    /// 16,384 weights. Larger tiles waste less, smaller ones are decoded by more processors at once: a matrix that gives
    /// a large GPU only a few tiles a multiprocessor is cut into twice as many. Where single rows are looked up
    /// (`row_access`, an embedding) a tile has only as many stripes as hold more than 8192 weights.
    ///
    /// ```
    /// use codecllm::codec::{Layout, TileShape};
    /// let shape = TileShape::choose(4096, 4096, Layout::Fast, false);
    /// assert!(shape.rows % 16 == 0 && shape.cols % 64 == 0 && shape.rows * shape.cols >= 8192);
    /// // A row of an embedding is looked up in a tile of fewer rows.
    /// assert!(TileShape::choose(32000, 4096, Layout::Fast, true).rows <= shape.rows);
    /// ```
    pub fn choose(rows: usize, cols: usize, layout: Layout, row_access: bool) -> Self {
        let few = !row_access && FEW_TILES.contains(&rows.saturating_mul(cols));
        let target = match layout {
            _ if few && layout != Layout::Small => 1 << 13,
            Layout::Small => 48 << 10,
            Layout::Fast | Layout::ExactBf16 | Layout::ExactFp16 => 1 << 14,
        };
        let widest = (target / STRIPE_ROWS).min(2048);
        let pieces = cols.div_ceil(widest);
        let tile_cols = cols.div_ceil(pieces).next_multiple_of(GROUP_COLS);
        let stripe = STRIPE_ROWS * tile_cols;
        // Where several tiles make a band, a GPU adds their products up stripe by stripe: a stripe is a tile.
        let stripes = match row_access {
            _ if pieces > 1 => 1,
            true => (ROW_ACCESS_WEIGHTS + 1).div_ceil(stripe),
            false => ((target + stripe / 2) / stripe).max(1),
        };
        let most = (MAX_TILE_CELLS / stripe).max(1);
        let tile_rows = STRIPE_ROWS * stripes.min(rows.div_ceil(STRIPE_ROWS)).min(most);
        Self { rows: tile_rows, cols: tile_cols }
    }
}

/// What is chosen for one tile.
#[derive(Clone, Copy, Debug)]
pub(super) struct TileChoice {
    pub predictor: Predictor,
    pub raw_magnitude_bits: u32,
    pub table: usize,
}

/// Choices for all tiles and the tables they use.
#[derive(Debug)]
pub(super) struct Plan {
    pub tables: Vec<CodedTable>,
    pub choices: Vec<TileChoice>,
}

/// One tile's expected cost, and where it belongs among the others.
struct Profile {
    predictor: Predictor,
    mean_magnitude: f64,
    /// Expected bits for each number of raw magnitude bits.
    bits: Vec<f64>,
}

/// Chooses for every tile of `values`, row-major over `grid`.
pub(super) fn plan(values: &[i16], grid: &TileGrid, layout: Layout, allow_left: bool) -> Plan {
    let tiles: Vec<Tile> = (0..grid.tile_count()).map(|index| grid.tile(index)).collect();
    let profiles: Vec<Profile> =
        tiles.par_iter().map(|tile| profile(values, grid, tile, layout, allow_left)).collect();
    let widths = choose_widths(&profiles);
    let assigned: Vec<u32> = profiles.iter().map(|profile| cheapest(profile, &widths).0).collect();
    let mut tables = Vec::new();
    let mut choices: Vec<TileChoice> = profiles
        .iter()
        .zip(&assigned)
        .map(|(profile, &raw)| TileChoice { predictor: profile.predictor, raw_magnitude_bits: raw, table: 0 })
        .collect();
    // How finely the tiles of one raw width are sorted before neighbours are merged into tables.
    let bins = MOST_TABLES / widths.len().max(1);
    for width in widths {
        let mut members: Vec<usize> = (0..tiles.len()).filter(|&index| assigned[index] == width).collect();
        members.sort_by(|&a, &b| profiles[a].mean_magnitude.total_cmp(&profiles[b].mean_magnitude));
        let sorted: Vec<&[usize]> = members.chunks(members.len().div_ceil(bins).max(1)).collect();
        let classes = Classes::new(layout, width, 0);
        let counts =
            sorted.iter().map(|bin| symbol_counts(values, grid, bin, &choices, layout, classes)).collect();
        let groups = merge_neighbours(counts, ideal_bits, MOST_TABLES, TABLE_BITS);
        let mut sorted = sorted.into_iter();
        for (width_in_bins, counts) in groups {
            for &member in sorted.by_ref().take(width_in_bins).flatten() {
                choices[member].table = tables.len();
            }
            tables.push(coded_table(&counts, layout, 0));
        }
    }
    Plan { tables, choices }
}

/// The best table for these counts.
pub(super) fn coded_table(counts: &[u64; SYMBOLS], layout: Layout, first_exponent: u32) -> CodedTable {
    let frequencies = FrequencyTable::from_counts(counts, layout.scale_bits(), layout.frequency_cap());
    CodedTable { frequencies, first_exponent }
}

fn profile(values: &[i16], grid: &TileGrid, tile: &Tile, layout: Layout, allow_left: bool) -> Profile {
    let mut own = TileValues::cut(values, grid, tile).values;
    let plain = profile_values(&own, layout, Predictor::None);
    if !allow_left || apply_left(&mut own, tile.cols).is_none() {
        return plain;
    }
    let left = profile_values(&own, layout, Predictor::Left);
    let best = |profile: &Profile| profile.bits.iter().copied().fold(f64::INFINITY, f64::min);
    if best(&left) < LEFT_MUST_REACH * best(&plain) {
        left
    } else {
        plain
    }
}

fn profile_values(values: &[i16], layout: Layout, predictor: Predictor) -> Profile {
    let mut counts = SignedCounts { positive: vec![0; MAGNITUDES], negative: vec![0; MAGNITUDES], beyond: 0 };
    let mut sum = 0u64;
    for value in values {
        let magnitude = usize::from(value.unsigned_abs());
        sum += magnitude as u64;
        let side = if *value < 0 { &mut counts.negative } else { &mut counts.positive };
        match side.get_mut(magnitude) {
            Some(count) => *count += 1,
            None => counts.beyond += 1,
        }
    }
    let bits = layout.raw_magnitude_bits(true).map(|raw| expected_bits(&counts, layout, raw)).collect();
    Profile { predictor, mean_magnitude: sum as f64 / values.len().max(1) as f64, bits }
}

/// How often each magnitude occurs with each sign.
struct SignedCounts {
    positive: Vec<u32>,
    negative: Vec<u32>,
    /// Magnitudes that are escapes at any number of raw bits.
    beyond: u32,
}

/// Bits of a tile whose classes are independent and ideally coded.
fn expected_bits(counts: &SignedCounts, layout: Layout, raw: u32) -> f64 {
    let classes = Classes::new(layout, raw, 0);
    let escape_from = (0..MAGNITUDES as u32).take_while(|&magnitude| classes.hold(magnitude)).count();
    let classes_of = |side: &[u32]| -> Vec<u32> {
        side[..escape_from].chunks(1 << raw).map(|class| class.iter().sum()).collect()
    };
    let escapes_of = |side: &[u32]| side[escape_from..].iter().sum::<u32>();
    let escapes = counts.beyond + escapes_of(&counts.positive) + escapes_of(&counts.negative);
    let mut classes = classes_of(&counts.positive);
    // An escape is coded as zero.
    classes[0] += escapes;
    let negative = classes_of(&counts.negative);
    let sign_bits = if layout.raw_field(raw).signed {
        classes.iter_mut().zip(&negative).for_each(|(class, negative)| *class += negative);
        1
    } else {
        // The sign is part of the symbol.
        classes.extend(negative);
        0
    };
    let weights: u32 = classes.iter().sum();
    entropy_bits(&classes) + f64::from(weights * (raw + sign_bits)) + f64::from(escapes) * ESCAPE_BITS
}

/// Order-0 entropy of `counts`, in bits over all of them.
fn entropy_bits(counts: &[u32]) -> f64 {
    let total = f64::from(counts.iter().sum::<u32>());
    counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| f64::from(count) * (total / f64::from(count)).log2())
        .sum()
}

/// The raw widths worth a table of their own: the best single one, then further ones while they pay.
fn choose_widths(profiles: &[Profile]) -> Vec<u32> {
    let candidates = profiles.first().map_or(0, |profile| profile.bits.len()) as u32;
    let total = |widths: &[u32]| profiles.iter().map(|p| cheapest(p, widths).1).sum::<f64>();
    let mut widths: Vec<u32> = Vec::new();
    let mut cost = f64::INFINITY;
    while let Some((width, with)) = (0..candidates)
        .filter(|width| !widths.contains(width))
        .map(|width| (width, total(&[widths.as_slice(), &[width]].concat())))
        .min_by(|a, b| a.1.total_cmp(&b.1))
    {
        if with + TABLE_BITS >= cost || widths.len() == MOST_TABLES {
            break;
        }
        cost = with;
        widths.push(width);
    }
    // A width that later ones made superfluous would leave an empty table.
    let used: Vec<u32> = profiles.iter().map(|profile| cheapest(profile, &widths).0).collect();
    widths.retain(|width| used.contains(width));
    widths.sort_unstable();
    widths
}

fn cheapest(profile: &Profile, widths: &[u32]) -> (u32, f64) {
    widths
        .iter()
        .map(|&width| (width, profile.bits[width as usize]))
        .min_by(|a, b| a.1.total_cmp(&b.1))
        .unwrap_or((0, f64::INFINITY))
}

/// Symbol counts over the tiles `members`, which share their classes.
pub(super) fn symbol_counts(
    values: &[i16],
    grid: &TileGrid,
    members: &[usize],
    choices: &[TileChoice],
    layout: Layout,
    classes: Classes,
) -> [u64; SYMBOLS] {
    let count = |counts: [u64; SYMBOLS], &index: &usize| {
        let mut own = TileValues::cut(values, grid, &grid.tile(index));
        own.predict(choices[index].predictor);
        add_tile_counts(counts, &own, &grid.tile(index), layout, classes)
    };
    members.par_iter().fold(|| [0; SYMBOLS], count).reduce(|| [0; SYMBOLS], add_counts)
}

fn add_counts(mut a: [u64; SYMBOLS], b: [u64; SYMBOLS]) -> [u64; SYMBOLS] {
    a.iter_mut().zip(b).for_each(|(a, b)| *a += b);
    a
}

fn add_tile_counts(
    mut counts: [u64; SYMBOLS],
    own: &TileValues,
    tile: &Tile,
    layout: Layout,
    classes: Classes,
) -> [u64; SYMBOLS] {
    let halves = Escapes::split(&own.values, layout.half_kind(), |half| classes.hold(half)).halves;
    own.symbols_backwards(&halves, tile, layout, classes, |_, symbol| counts[usize::from(symbol)] += 1);
    counts
}

/// Bits of `counts`, ideally coded, over all of them.
pub(super) fn ideal_bits(counts: &[u64; SYMBOLS]) -> f64 {
    let total: u64 = counts.iter().sum();
    counts
        .iter()
        .filter(|&&count| count > 0)
        .map(|&count| count as f64 * (total as f64 / count as f64).log2())
        .sum()
}

/// Merges neighbouring bins of counts while there are more than `most`, or while a table of their own saves less than
/// `least_saving` bits by `cost`. Gives, in order, how many bins each group has and its counts.
pub(super) fn merge_neighbours(
    bins: Vec<[u64; SYMBOLS]>,
    cost: impl Fn(&[u64; SYMBOLS]) -> f64,
    most: usize,
    least_saving: f64,
) -> Vec<(usize, [u64; SYMBOLS])> {
    let mut groups: Vec<(usize, [u64; SYMBOLS], f64)> =
        bins.into_iter().map(|counts| (1, counts, cost(&counts))).collect();
    while groups.len() > 1 {
        let merged = |index: usize| {
            let counts = add_counts(groups[index].1, groups[index + 1].1);
            let together = cost(&counts);
            (index, counts, together, together - groups[index].2 - groups[index + 1].2)
        };
        let Some((index, counts, together, loss)) =
            (0..groups.len() - 1).map(merged).min_by(|a, b| a.3.total_cmp(&b.3))
        else {
            break;
        };
        if loss >= least_saving && groups.len() <= most {
            break;
        }
        let width = groups[index].0 + groups[index + 1].0;
        groups[index] = (width, counts, together);
        groups.remove(index + 1);
    }
    groups.into_iter().map(|(width, counts, _)| (width, counts)).collect()
}
