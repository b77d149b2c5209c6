//! Shape to tiles and back: which lane owns which weight, at ragged edges too.
//!
//! A matrix is cut into tiles, a tile into stripes of 16 rows, a stripe into groups of 64 columns. In a group lane
//! `4g + q` owns rows `g` and `g + 8` and the 16 columns from `16q`: the A fragment of `mma.m16n8k16` with its
//! columns permuted. Padding beyond the matrix's edge is neither coded nor stored.
//!
//! [`TileGrid`] cuts, [`Group`] says where its lanes' weights are; see its example.

pub mod raw_bits;

use crate::error::{Error, Result};

/// Rows of a stripe.
///
/// The rows of a [`TileGrid`]'s tiles are counted in it; see its example.
pub const STRIPE_ROWS: usize = 16;
/// Columns of a group.
///
/// A [`Group`] has them; see its example.
pub const GROUP_COLS: usize = 64;
/// Contiguous columns of a group that one lane owns.
///
/// Four lanes share the columns of a [`Group`]; see its example.
pub const LANE_COLS: usize = 16;
/// Weights of a whole lane in one group.
///
/// A [`Group`] counts in them; see its example.
pub const LANE_WEIGHTS: usize = 32;
/// Registers of a lane's fragment in one group: two weights of 16 bits each.
///
/// Two weights of a [`Group`] share one; see its example.
pub const LANE_REGISTERS: usize = 16;
/// Most cells of a tile: positions and the number of escapes take 16 bits.
///
/// [`TileGrid`] cuts no larger ones; see its example.
pub const MAX_TILE_CELLS: usize = (1 << 16) - 1;

/// How a matrix is cut into tiles, in row-major order.
///
/// ```
/// use codecllm::tile::{TileGrid, MAX_TILE_CELLS, STRIPE_ROWS};
/// let grid = TileGrid::new(100, 300, STRIPE_ROWS, 256, "w")?;
/// assert!(grid.tile_rows() * grid.tile_cols() <= MAX_TILE_CELLS);
/// assert_eq!((grid.tiles_down(), grid.tiles_across(), grid.tile_count()), (7, 2, 14));
/// let corner = grid.tile(13); // what of it is inside
/// assert_eq!((corner.row, corner.col, corner.rows, corner.cols), (96, 256, 4, 44));
/// assert_eq!((corner.weights(), corner.stripes(), corner.groups_across()), (4 * 44, 1, 1));
/// assert_eq!(corner.groups().count(), 1);
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TileGrid {
    rows: usize,
    cols: usize,
    tile_rows: usize,
    tile_cols: usize,
}

impl TileGrid {
    /// Cuts a matrix of `rows x cols` into tiles of `tile_rows` (a multiple of 16) by `tile_cols` (a multiple of
    /// 64) cells, at most [`MAX_TILE_CELLS`] each. `subject` names the tensor in an error.
    pub fn new(rows: usize, cols: usize, tile_rows: usize, tile_cols: usize, subject: &str) -> Result<Self> {
        if rows == 0 || cols == 0 {
            return Err(Error::invalid(
                subject,
                format!("shape [{rows}, {cols}] has no weights; leave it uncompressed"),
            ));
        }
        let valid = tile_rows > 0
            && tile_cols > 0
            && tile_rows.is_multiple_of(STRIPE_ROWS)
            && tile_cols.is_multiple_of(GROUP_COLS)
            && tile_rows.checked_mul(tile_cols).is_some_and(|cells| cells <= MAX_TILE_CELLS);
        if !valid {
            return Err(Error::corrupt(
                subject,
                format!(
                    "tiles are {tile_rows} x {tile_cols}, wanted multiples of 16 and 64 and at most 65535 cells"
                ),
            ));
        }
        Ok(Self { rows, cols, tile_rows, tile_cols })
    }

    /// Rows of the matrix.
    pub fn rows(&self) -> usize {
        self.rows
    }

    /// Columns of the matrix.
    pub fn cols(&self) -> usize {
        self.cols
    }

    /// Rows of a tile that is not at the bottom edge.
    pub fn tile_rows(&self) -> usize {
        self.tile_rows
    }

    /// Columns of a tile that is not at the right edge.
    pub fn tile_cols(&self) -> usize {
        self.tile_cols
    }

    /// Tiles side by side.
    pub fn tiles_across(&self) -> usize {
        self.cols.div_ceil(self.tile_cols)
    }

    /// Tiles one above the other.
    pub fn tiles_down(&self) -> usize {
        self.rows.div_ceil(self.tile_rows)
    }

    /// All tiles.
    pub fn tile_count(&self) -> usize {
        self.tiles_across() * self.tiles_down()
    }

    /// The tile at `index`, row-major.
    pub fn tile(&self, index: usize) -> Tile {
        let row = index / self.tiles_across() * self.tile_rows;
        let col = index % self.tiles_across() * self.tile_cols;
        Tile {
            row,
            col,
            rows: self.tile_rows.min(self.rows - row),
            cols: self.tile_cols.min(self.cols - col),
        }
    }
}

/// One tile: where it lies in the matrix and what of it is inside.
///
/// Cut by a [`TileGrid`]; see its example.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tile {
    /// First row in the matrix.
    pub row: usize,
    /// First column in the matrix.
    pub col: usize,
    /// Rows inside the matrix.
    pub rows: usize,
    /// Columns inside the matrix.
    pub cols: usize,
}

impl Tile {
    /// Weights of the tile.
    pub fn weights(&self) -> usize {
        self.rows * self.cols
    }

    /// Stripes of the tile.
    pub fn stripes(&self) -> usize {
        self.rows.div_ceil(STRIPE_ROWS)
    }

    /// Groups of one stripe.
    pub fn groups_across(&self) -> usize {
        self.cols.div_ceil(GROUP_COLS)
    }

    /// The tile's groups in coding order: stripe by stripe, left to right.
    pub fn groups(self) -> impl DoubleEndedIterator<Item = Group> + Clone {
        let across = self.groups_across();
        (0..self.stripes() * across).map(move |index| {
            let row = index / across * STRIPE_ROWS;
            let col = index % across * GROUP_COLS;
            Group { row, col, rows: STRIPE_ROWS.min(self.rows - row), cols: GROUP_COLS.min(self.cols - col) }
        })
    }
}

/// One group of up to 16 x 64 weights.
///
/// ```
/// use codecllm::rans::LANES;
/// use codecllm::tile::{lane_weight, TileGrid, GROUP_COLS, LANE_COLS, LANE_REGISTERS, LANE_WEIGHTS};
/// let groups: Vec<_> = TileGrid::new(16, 72, 16, 128, "w")?.tile(0).groups().collect();
/// let (whole, edge) = (groups[0], groups[1]);
/// assert!(whole.is_full() && whole.lanes_are_whole());
/// assert_eq!((whole.weights(), whole.lane_count()), (LANES * LANE_WEIGHTS, LANES));
/// assert_eq!((GROUP_COLS, LANE_WEIGHTS), (4 * LANE_COLS, 2 * LANE_REGISTERS));
/// // Eight columns are left: half of those of lanes 0, 4, 8, ..., none of the others'.
/// assert!(!edge.is_full() && !edge.lanes_are_whole());
/// assert_eq!((edge.weights(), edge.lane_count()), (16 * 8, 8));
/// assert!(edge.has_lane(4) && !edge.has_lane(5));
/// assert_eq!((lane_weight(4, 3), edge.weight(4, 3)), ((9, 1), Some((9, 1))));
/// assert_eq!((lane_weight(4, 31), edge.weight(4, 31)), ((9, 15), None));
/// assert!(edge.has_symbol(4, 12, 4) && !edge.has_symbol(4, 16, 4));
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// First row in the tile.
    pub row: usize,
    /// First column in the tile.
    pub col: usize,
    /// Rows inside the matrix, 1 to 16.
    pub rows: usize,
    /// Columns inside the matrix, 1 to 64.
    pub cols: usize,
}

impl Group {
    /// Weights of the group.
    pub fn weights(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether every lane owns all of its 32 weights.
    pub fn is_full(&self) -> bool {
        self.rows == STRIPE_ROWS && self.cols == GROUP_COLS
    }

    /// Whether every lane owns either all of its 32 weights or none.
    pub fn lanes_are_whole(&self) -> bool {
        self.rows == STRIPE_ROWS && self.cols.is_multiple_of(LANE_COLS)
    }

    /// Whether `lane` owns any weight.
    pub fn has_lane(&self, lane: usize) -> bool {
        lane / 4 < self.rows && lane % 4 * LANE_COLS < self.cols
    }

    /// Lanes that own any weight.
    pub fn lane_count(&self) -> usize {
        self.rows.min(8) * self.cols.div_ceil(LANE_COLS)
    }

    /// Row and column in the group of a lane's `n`-th weight, if it is inside the matrix.
    pub fn weight(&self, lane: usize, n: usize) -> Option<(usize, usize)> {
        let (row, col) = lane_weight(lane, n);
        (row < self.rows && col < self.cols).then_some((row, col))
    }

    /// Whether any of the weights `n..n + count` of `lane` is inside the matrix.
    pub fn has_symbol(&self, lane: usize, n: usize, count: usize) -> bool {
        (n..n + count).any(|n| self.weight(lane, n).is_some())
    }
}

/// Row and column in a group of a lane's `n`-th weight: `n = 8t + 2i + o` is half `o` of register `4t + i`, which
/// holds row `g + 8 (i & 1)` and columns `16q + 4t + 2 (i >> 1) + o`.
///
/// Where [`Group`] has a weight that is inside; see its example.
#[inline]
pub fn lane_weight(lane: usize, n: usize) -> (usize, usize) {
    let (t, i, o) = (n / 8, n / 2 % 4, n % 2);
    (lane / 4 + 8 * (i & 1), lane % 4 * LANE_COLS + 4 * t + 2 * (i >> 1) + o)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rans::LANES;

    #[test]
    fn every_weight_of_a_ragged_matrix_belongs_to_one_lane() {
        for (rows, cols) in [(1, 1), (16, 64), (77, 288), (13, 77), (300, 300), (5, 1000)] {
            let grid = TileGrid::new(rows, cols, 32, 128, "t").unwrap();
            let mut owners = vec![0; rows * cols];
            for tile in (0..grid.tile_count()).map(|index| grid.tile(index)) {
                for group in tile.groups() {
                    let mut lanes = 0;
                    for lane in 0..LANES {
                        let mut owned = 0;
                        for n in 0..LANE_WEIGHTS {
                            if let Some((row, col)) = group.weight(lane, n) {
                                owners[(tile.row + group.row + row) * cols + tile.col + group.col + col] += 1;
                                owned += 1;
                            }
                        }
                        assert_eq!(group.has_lane(lane), owned > 0);
                        assert!(!group.lanes_are_whole() || owned == 0 || owned == 32);
                        lanes += usize::from(owned > 0);
                    }
                    assert_eq!(group.lane_count(), lanes);
                }
            }
            assert!(owners.iter().all(|&count| count == 1), "{rows} x {cols}");
        }
    }

    #[test]
    fn shapes_without_weights_and_impossible_tiles_are_errors() {
        for (rows, cols, tile_rows, tile_cols) in [
            (0, 5, 16, 64),
            (5, 0, 16, 64),
            (5, 5, 15, 64),
            (5, 5, 16, 63),
            (5, 5, 0, 64),
            (5, 5, 1 << 20, 64),
        ] {
            assert!(TileGrid::new(rows, cols, tile_rows, tile_cols, "t").is_err());
        }
    }
}
