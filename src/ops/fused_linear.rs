//! `y = x W^T` from compressed weights, multiplying while decoding: no dense weight is ever in memory.
//!
//! `x` is brought into the order of the fragments once. A decoded group then meets contiguous runs of eight `x`
//! values (four lanes of a row, two columns each) whatever the instruction set, and each row of the batch sums in the
//! same order as alone.

use tch::{Kind, Tensor};

use super::parallel::parallel_for;
use super::weight::{with_decoder, WeightRef};
use crate::codec::{Fragments, HalfKind, TileSink};
use crate::error::{Result, TorchContext};
use crate::rans::LANES;
use crate::tile::{Group, GROUP_COLS, LANE_REGISTERS, STRIPE_ROWS};

#[cfg(target_arch = "x86_64")]
mod x86;

/// Sums of one group row half: two columns of 32 lanes.
const HALF_SUMS: usize = 2 * LANES;

/// `x` `[batch, in_features]` (any float dtype) to `[batch, out_features]` in FP32.
pub(crate) fn fused_linear(weight: &WeightRef, x: &Tensor) -> Result<Tensor> {
    let subject = weight.view.subject().to_owned();
    let grid = weight.view.header.grid;
    let batch = x.size()[0] as usize;
    let flat = x.f_to_kind(Kind::Float).and_then(|x| x.f_contiguous()).about(&subject)?;
    let mut values = vec![0f32; batch * grid.cols()];
    flat.f_copy_data(&mut values, batch * grid.cols()).about(&subject)?;
    let y = multiply(weight, &values, batch)?;
    Tensor::f_from_slice(&y).and_then(|y| y.f_reshape([batch as i64, grid.rows() as i64])).about(&subject)
}

/// `x` `[batch, in_features]`, row-major, to `[batch, out_features]`.
pub(super) fn multiply(weight: &WeightRef, x: &[f32], batch: usize) -> Result<Vec<f32>> {
    let grid = weight.view.header.grid;
    let activations = Activations::new(x, batch, grid.cols());
    let mut y = vec![0f32; batch * grid.rows()];
    let output = Output { y: y.as_mut_ptr(), rows: grid.rows() };
    parallel_for(grid.tiles_down(), weight.view.subject(), &|bands| {
        let mut sink = FusedSink::new(&activations, weight.half_kind());
        for band in bands {
            multiply_band(weight, &mut sink, band, &output)?;
        }
        Ok(())
    })?;
    Ok(y)
}

/// Where the bands write: each its own rows.
struct Output {
    y: *mut f32,
    rows: usize,
}

// SAFETY: `parallel_for` gives each band to one thread, a band writes only the rows of its own tiles, and nobody reads: no element is
// touched by two threads. The vector outlives the parallel section, and is not touched otherwise meanwhile.
unsafe impl Sync for Output {}

/// All tiles of one band of rows, left to right.
fn multiply_band(weight: &WeightRef, sink: &mut FusedSink, band: usize, output: &Output) -> Result<()> {
    let grid = weight.view.header.grid;
    let across = grid.tiles_across();
    let first = grid.tile(band * across);
    sink.start_band(first.rows);
    for index in band * across..(band + 1) * across {
        sink.start_tile(grid.tile(index).col);
        with_decoder(|decoder| decoder.decode(&weight.view, weight.tables, index, sink))?;
        sink.finish_stripe();
    }
    for (row, sums) in sink.band.chunks_exact(sink.x.batch).enumerate() {
        let scale = weight.scale(first.row + row);
        for (b, sum) in sums.iter().enumerate() {
            // SAFETY: `y` has `batch * rows` floats; `b < batch`, and `row` is below the rows of the band's first tile, all of which lie
            // inside the matrix. No other band writes them, see `Output`.
            unsafe { output.y.add(b * output.rows + first.row + row).write(sum * scale) };
        }
    }
    Ok(())
}

/// `x` twice: in its own order for escapes, and in the order of the fragments.
struct Activations<'a> {
    batch: usize,
    cols: usize,
    plain: &'a [f32],
    /// `[batch][group][t][i >> 1][q][o]`, zero beyond the last column.
    ordered: Vec<f32>,
    groups: usize,
}

impl<'a> Activations<'a> {
    fn new(plain: &'a [f32], batch: usize, cols: usize) -> Self {
        let groups = cols.div_ceil(GROUP_COLS);
        let mut ordered = vec![0f32; batch * groups * GROUP_COLS];
        for (x, ordered) in plain.chunks_exact(cols).zip(ordered.chunks_exact_mut(groups * GROUP_COLS)) {
            for (col, &value) in x.iter().enumerate() {
                let (group, q, t, pair, o) = (col / 64, col / 16 % 4, col / 4 % 4, col / 2 % 2, col % 2);
                ordered[group * GROUP_COLS + (2 * t + pair) * 8 + 2 * q + o] = value;
            }
        }
        Self { batch, cols, plain, ordered, groups }
    }

    /// The 64 values of one group in fragment order.
    fn group(&self, b: usize, group: usize) -> &[f32] {
        let at = (b * self.groups + group) * GROUP_COLS;
        &self.ordered[at..at + GROUP_COLS]
    }
}

/// Sums of one stripe for one row of the batch: `[row half][lane][o]`.
#[derive(Clone)]
#[repr(C, align(64))]
struct StripeSums([[f32; HALF_SUMS]; 2]);

/// Multiplies every group as it is decoded.
struct FusedSink<'a> {
    x: &'a Activations<'a>,
    kind: HalfKind,
    /// Sums of the band without the row's scale, `[row][batch]`.
    band: Vec<f32>,
    stripe: Vec<StripeSums>,
    stripe_row: usize,
    first_col: usize,
    floats: Box<GroupFloats>,
    multiply: Multiply,
}

/// A group's halves as FP32, in fragment order `[register][lane][o]`, for batches that use them again.
#[repr(C, align(64))]
struct GroupFloats([[f32; HALF_SUMS]; LANE_REGISTERS]);

/// The two inner loops for one instruction set.
#[derive(Clone, Copy)]
struct Multiply {
    /// Halves to floats, in the kind's unit.
    widen: unsafe fn(&Fragments, &mut GroupFloats),
    /// Adds the products of one group and 64 values of `x`.
    accumulate: unsafe fn(&GroupFloats, &[f32], &mut StripeSums),
    /// Both at once, for a batch of one.
    widen_and_accumulate: unsafe fn(&Fragments, &[f32], &mut StripeSums),
}

impl Multiply {
    /// The loops for halves of `kind`.
    fn detect(kind: HalfKind) -> Self {
        #[cfg(target_arch = "x86_64")]
        if let Some(x86) = x86::detect(kind) {
            return x86;
        }
        match kind {
            HalfKind::Grid | HalfKind::Fp16 => Self::portable::<false>(),
            HalfKind::Bf16 => Self::portable::<true>(),
        }
    }

    fn portable<const BF16: bool>() -> Self {
        Self {
            widen: widen_portable::<BF16>,
            accumulate: accumulate_portable,
            widen_and_accumulate: both_portable::<BF16>,
        }
    }
}

impl<'a> FusedSink<'a> {
    fn new(x: &'a Activations<'a>, kind: HalfKind) -> Self {
        Self {
            x,
            kind,
            band: Vec::new(),
            stripe: vec![StripeSums([[0.0; HALF_SUMS]; 2]); x.batch],
            stripe_row: 0,
            first_col: 0,
            floats: Box::new(GroupFloats([[0.0; HALF_SUMS]; LANE_REGISTERS])),
            multiply: Multiply::detect(kind),
        }
    }

    fn start_band(&mut self, rows: usize) {
        self.band.clear();
        self.band.resize(rows * self.x.batch, 0.0);
    }

    fn start_tile(&mut self, first_col: usize) {
        self.first_col = first_col;
        self.stripe_row = 0;
    }

    /// Adds the stripe's sums to the band's rows: four lanes and two columns each make a row.
    fn finish_stripe(&mut self) {
        let batch = self.x.batch;
        for (b, sums) in self.stripe.iter_mut().enumerate() {
            for (half, lanes) in sums.0.iter_mut().enumerate() {
                for (g, row_sums) in lanes.chunks_exact_mut(8).enumerate() {
                    let row = self.stripe_row + 8 * half + g;
                    if let Some(sum) = self.band.get_mut(row * batch + b) {
                        *sum += row_sums.iter().sum::<f32>() * self.kind.unit();
                    }
                    row_sums.fill(0.0);
                }
            }
        }
    }
}

impl TileSink for FusedSink<'_> {
    fn group(&mut self, group: &Group, fragments: &Fragments) {
        if group.row != self.stripe_row {
            self.finish_stripe();
            self.stripe_row = group.row;
        }
        debug_assert!(group.rows <= STRIPE_ROWS);
        let index = (self.first_col + group.col) / GROUP_COLS;
        // SAFETY: `Multiply::detect` chose functions whose instructions this processor has; a group of `x` is a slice of 64 values.
        unsafe {
            if let [sums] = self.stripe.as_mut_slice() {
                (self.multiply.widen_and_accumulate)(fragments, self.x.group(0, index), sums);
                return;
            }
            (self.multiply.widen)(fragments, &mut self.floats);
            for (b, sums) in self.stripe.iter_mut().enumerate() {
                (self.multiply.accumulate)(&self.floats, self.x.group(b, index), sums);
            }
        }
    }

    fn escape(&mut self, row: usize, col: usize, value: i16) -> bool {
        for b in 0..self.x.batch {
            let x = self.x.plain[b * self.x.cols + self.first_col + col];
            // The row's scale comes with the sum.
            self.band[row * self.x.batch + b] += self.kind.weight(value, 1.0) * x;
        }
        true
    }
}

/// # Safety
/// None: plain Rust, `unsafe` only to fit [`Multiply`].
unsafe fn widen_portable<const BF16: bool>(fragments: &Fragments, floats: &mut GroupFloats) {
    let kind = if BF16 { HalfKind::Bf16 } else { HalfKind::Fp16 };
    for (register, floats) in fragments.0.iter().zip(&mut floats.0) {
        for (pair, floats) in register.iter().zip(floats.chunks_exact_mut(2)) {
            floats[0] = kind.read(*pair as u16);
            floats[1] = kind.read((pair >> 16) as u16);
        }
    }
}

/// # Safety
/// None: plain Rust, `unsafe` only to fit [`Multiply`].
unsafe fn accumulate_portable(floats: &GroupFloats, x: &[f32], sums: &mut StripeSums) {
    for (register, floats) in floats.0.iter().enumerate() {
        let (t, i) = (register / 4, register % 4);
        let x = &x[(2 * t + i / 2) * 8..][..8];
        for (sums, floats) in sums.0[i % 2].chunks_exact_mut(8).zip(floats.chunks_exact(8)) {
            for ((sum, float), x) in sums.iter_mut().zip(floats).zip(x) {
                *sum = float.mul_add(*x, *sum);
            }
        }
    }
}

/// # Safety
/// None: plain Rust, `unsafe` only to fit [`Multiply`].
unsafe fn both_portable<const BF16: bool>(fragments: &Fragments, x: &[f32], sums: &mut StripeSums) {
    let mut floats = GroupFloats([[0.0; HALF_SUMS]; LANE_REGISTERS]);
    // SAFETY: neither function has a precondition: both are plain Rust, unsafe only in their type.
    unsafe {
        widen_portable::<BF16>(fragments, &mut floats);
        accumulate_portable(&floats, x, sums);
    }
}

#[cfg(all(test, target_arch = "x86_64"))]
mod tests {
    use super::*;
    use crate::codec::Level;

    fn noise(n: usize) -> u32 {
        ((n as u64 + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32) as u32
    }

    /// Finite halves, small enough that no sum overflows: the exponent's top bit is off.
    fn fragments() -> Fragments {
        let mut fragments = Fragments::zero();
        for (register, lanes) in fragments.0.iter_mut().enumerate() {
            for (lane, pair) in lanes.iter_mut().enumerate() {
                *pair = noise(32 * register + lane) & 0xBFFF_BFFF;
            }
        }
        fragments
    }

    fn sums_of(multiply: Multiply, x: &[f32]) -> [Vec<u32>; 2] {
        let mut sums = [StripeSums([[0.0; HALF_SUMS]; 2]), StripeSums([[0.0; HALF_SUMS]; 2])];
        let mut floats = GroupFloats([[0.0; HALF_SUMS]; LANE_REGISTERS]);
        // SAFETY: the level is one that this processor has, and `x` has 64 values.
        unsafe {
            (multiply.widen_and_accumulate)(&fragments(), x, &mut sums[0]);
            (multiply.widen)(&fragments(), &mut floats);
            (multiply.accumulate)(&floats, x, &mut sums[1]);
        }
        sums.map(|sums| sums.0.iter().flatten().map(|sum| sum.to_bits()).collect())
    }

    fn check<const BF16: bool>() {
        let x: Vec<f32> = (0..GROUP_COLS).map(|n| noise(n) as f32 / 4e9 - 0.5).collect();
        let wanted = sums_of(Multiply::portable::<BF16>(), &x);
        assert_eq!(wanted[0], wanted[1]);
        assert!(wanted[0].iter().all(|&sum| f32::from_bits(sum).is_finite() && sum != 0));
        for multiply in Level::available().into_iter().filter_map(x86::of_level::<BF16>) {
            assert_eq!(sums_of(multiply, &x), wanted);
        }
    }

    #[test]
    fn every_level_sums_to_the_same_bits() {
        check::<false>();
        check::<true>();
    }
}
