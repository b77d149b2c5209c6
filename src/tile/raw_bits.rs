//! Where the raw bits of a weight lie.
//!
//! A weight's raw bits are a field: the low bits of its magnitude, and its sign where the symbol does not carry
//! it. In a fragment's 16-bit half the low bits sit at bit 0 and the sign at bit 15, so a field is split into
//! parts of 8, 4, 2 and 1 bits; a part of `s` bits of 32 weights fills `s` words, each holding `16 / s` registers,
//! every register rotated left by `s` more than the one before. One rotation and one mask unpack a register.
//!
//! A group with partial lanes stores its fields as one stream of bits instead, lane by lane.
//!
//! [`RawField`] writes and reads them; see its example.

use super::{Group, LANE_REGISTERS, LANE_WEIGHTS};
use crate::rans::LANES;

/// Alignment of a group's raw bits, in bytes: one 16-byte load of a GPU.
///
/// [`RawField::group_bytes`] of a [`RawField`] keeps to it; see its example.
pub const RAW_ALIGN_BYTES: usize = 16;

/// The most raw bits of a weight: a magnitude in an FP16 subnormal and its sign.
///
/// No [`RawField`] has more; see its example.
pub const MAX_RAW_BITS: u32 = 11;

/// The raw bits of a weight: how many, and whether the topmost is the sign.
///
/// ```
/// use codecllm::tile::raw_bits::{RawField, MAX_RAW_BITS, RAW_ALIGN_BYTES};
/// use codecllm::tile::TileGrid;
/// let field = RawField { magnitude_bits: 5, signed: true };
/// assert!(field.bits() == 6 && field.bits() <= MAX_RAW_BITS as usize);
/// let group = TileGrid::new(16, 64, 16, 64, "w")?.tile(0).groups().next().unwrap();
/// // Magnitudes below 32 at bit 0, signs at bit 15.
/// let half = |lane: usize, n: usize| ((lane ^ n) | (n & 1) << 15) as u32;
/// let mut bytes = Vec::new();
/// field.write_group(&group, half, &mut bytes);
/// assert_eq!(bytes.len(), 16 * 64 * 6 / 8);
/// assert_eq!((bytes.len(), bytes.len() % RAW_ALIGN_BYTES), (field.group_bytes(&group), 0));
/// field.read_group(&group, &bytes, |lane, n, read| assert_eq!(read, half(lane, n)));
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawField {
    /// Low bits of the magnitude.
    pub magnitude_bits: u32,
    /// Whether the field has a sign.
    pub signed: bool,
}

/// A power-of-two slice of a [`RawField`].
///
/// ```
/// use codecllm::tile::raw_bits::RawField;
/// let parts: Vec<_> = RawField { magnitude_bits: 5, signed: true }.parts().collect();
/// let (first, second) = (parts[0], parts[1]);
/// assert_eq!((first.bits, second.bits), (4, 2));
/// assert_eq!((first.mask, second.mask), (0x8007_8007, 0x0018_0018)); // sign and bits 0 to 2, bits 3 and 4
/// assert_eq!((first.registers_per_word(), first.registers_of(1)), (4, 4..8));
/// assert_eq!((first.word_of(6), first.rotation(6)), (1, 8));
/// // All 32 lanes' runs of four words, then their runs of two: the last lane's last word is the last of 32 * 6.
/// assert_eq!((second.first_word, second.word_offset(1, 31, 32)), (4, 32 * 6 - 1));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RawPart {
    /// Bits a weight: 8, 4, 2 or 1, which is also the words a lane has of it.
    pub bits: usize,
    /// The bits of a register that it fills, in both halves.
    pub mask: u32,
    /// Word of a lane's raw bits where it begins.
    pub first_word: usize,
}

impl RawField {
    /// All bits of the field.
    pub fn bits(&self) -> usize {
        self.magnitude_bits as usize + usize::from(self.signed)
    }

    /// The parts, largest first. The first holds the sign and the lowest bits, the next continue upwards.
    pub fn parts(self) -> impl Iterator<Item = RawPart> {
        let total = self.bits();
        let mut done = 0;
        std::iter::from_fn(move || {
            let rest = total - done;
            if rest == 0 {
                return None;
            }
            let bits = 1 << rest.min(8).ilog2();
            let half = if self.signed && done == 0 {
                0x8000 | ((1u32 << (bits - 1)) - 1)
            } else {
                ((1u32 << bits) - 1) << (done - usize::from(self.signed))
            };
            let part = RawPart { bits, mask: half | half << 16, first_word: done };
            done += bits;
            Some(part)
        })
    }

    /// Bytes that the raw bits of `group` take, a multiple of 16.
    pub fn group_bytes(&self, group: &Group) -> usize {
        let bytes = if group.lanes_are_whole() {
            group.lane_count() * self.bits() * LANE_WEIGHTS / 8
        } else {
            (group.weights() * self.bits()).div_ceil(8)
        };
        bytes.next_multiple_of(RAW_ALIGN_BYTES)
    }

    /// The field of a weight given as an FP16-like half (sign at bit 15, magnitude at bit 0).
    fn of_half(&self, half: u32) -> u32 {
        let low = half & ((1 << self.magnitude_bits) - 1);
        if self.signed {
            low | (half >> 15 & 1) << self.magnitude_bits
        } else {
            low
        }
    }

    /// The bits of a half that `field` sets: the inverse of `of_half`.
    fn to_half(self, field: u32) -> u32 {
        let low = field & ((1 << self.magnitude_bits) - 1);
        if self.signed {
            low | (field >> self.magnitude_bits & 1) << 15
        } else {
            low
        }
    }

    /// Appends the raw bits of a group. `half(lane, n)` is a weight as an FP16-like half.
    pub fn write_group(&self, group: &Group, half: impl Fn(usize, usize) -> u32, bytes: &mut Vec<u8>) {
        let end = bytes.len() + self.group_bytes(group);
        if group.lanes_are_whole() {
            self.write_whole_lanes(group, half, bytes);
        } else {
            let mut bits = BitWriter { bytes, pending: 0, count: 0 };
            for (lane, n) in present_weights(group) {
                bits.push(self.of_half(half(lane, n)), self.bits());
            }
            bits.finish();
        }
        bytes.resize(end, 0);
    }

    fn write_whole_lanes(&self, group: &Group, half: impl Fn(usize, usize) -> u32, bytes: &mut Vec<u8>) {
        for part in self.parts() {
            for first in (0..part.bits).step_by(4) {
                for lane in (0..LANES).filter(|&lane| group.has_lane(lane)) {
                    for word in first..part.bits.min(first + 4) {
                        let mut packed = 0;
                        for register in part.registers_of(word) {
                            let pair = half(lane, 2 * register) | half(lane, 2 * register + 1) << 16;
                            packed |= (pair & part.mask).rotate_left(part.rotation(register));
                        }
                        bytes.extend(packed.to_le_bytes());
                    }
                }
            }
        }
    }

    /// Reads the raw bits of a group from `bytes` (of [`Self::group_bytes`]): calls `set(lane, n, half bits)` for
    /// every weight inside the matrix.
    pub fn read_group(&self, group: &Group, bytes: &[u8], mut set: impl FnMut(usize, usize, u32)) {
        if !group.lanes_are_whole() {
            for (index, (lane, n)) in present_weights(group).enumerate() {
                set(lane, n, self.to_half(read_bits(bytes, index * self.bits(), self.bits())));
            }
            return;
        }
        let lanes: Vec<usize> = (0..LANES).filter(|&lane| group.has_lane(lane)).collect();
        for (rank, &lane) in lanes.iter().enumerate() {
            let mut registers = [0u32; LANE_REGISTERS];
            for part in self.parts() {
                for (register, value) in registers.iter_mut().enumerate() {
                    let offset = part.word_offset(part.word_of(register), rank, lanes.len());
                    let word = read_word(bytes, 4 * offset);
                    *value |= word.rotate_right(part.rotation(register)) & part.mask;
                }
            }
            for n in 0..LANE_WEIGHTS {
                set(lane, n, registers[n / 2] >> (16 * (n % 2)) & 0xFFFF);
            }
        }
    }
}

impl RawPart {
    /// Registers that share one word.
    pub fn registers_per_word(&self) -> usize {
        LANE_REGISTERS / self.bits
    }

    /// The word of this part that holds `register`.
    pub fn word_of(&self, register: usize) -> usize {
        register / self.registers_per_word()
    }

    /// How far `register` is rotated left in its word.
    pub fn rotation(&self, register: usize) -> u32 {
        (self.bits * (register % self.registers_per_word())) as u32
    }

    /// The registers that `word` of this part holds.
    pub fn registers_of(&self, word: usize) -> std::ops::Range<usize> {
        word * self.registers_per_word()..(word + 1) * self.registers_per_word()
    }

    /// Offset, in words from the start of the group's raw bits, of `word` of the present lane number `rank` out
    /// of `lanes`. Words lie in runs of up to four a lane, so that one 16-byte load fetches a run.
    pub fn word_offset(&self, word: usize, rank: usize, lanes: usize) -> usize {
        let run = self.bits.min(4);
        (self.first_word + word / run * run) * lanes + rank * run + word % run
    }
}

/// Weights of a group that are inside the matrix, lane by lane.
fn present_weights(group: &Group) -> impl Iterator<Item = (usize, usize)> + '_ {
    (0..LANES)
        .flat_map(|lane| (0..LANE_WEIGHTS).map(move |n| (lane, n)))
        .filter(|&(lane, n)| group.weight(lane, n).is_some())
}

fn read_word(bytes: &[u8], offset: usize) -> u32 {
    let mut word = [0; 4];
    word.copy_from_slice(&bytes[offset..offset + 4]);
    u32::from_le_bytes(word)
}

/// Reads `count <= 16` bits from bit `first` on, lowest first.
fn read_bits(bytes: &[u8], first: usize, count: usize) -> u32 {
    let mut window = [0; 4];
    let available = &bytes[first / 8..bytes.len().min(first / 8 + 4)];
    window[..available.len()].copy_from_slice(available);
    u32::from_le_bytes(window) >> (first % 8) & ((1 << count) - 1)
}

/// Packs fields into bytes, lowest bit first.
struct BitWriter<'a> {
    bytes: &'a mut Vec<u8>,
    pending: u64,
    count: usize,
}

impl BitWriter<'_> {
    fn push(&mut self, field: u32, bits: usize) {
        self.pending |= u64::from(field) << self.count;
        self.count += bits;
        while self.count >= 8 {
            self.bytes.push(self.pending as u8);
            self.pending >>= 8;
            self.count -= 8;
        }
    }

    fn finish(self) {
        if self.count > 0 {
            self.bytes.push(self.pending as u8);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::TileGrid;
    use super::*;

    #[test]
    fn parts_tile_a_word_and_cover_the_field() {
        for signed in [false, true] {
            for magnitude_bits in 0..=10 {
                let field = RawField { magnitude_bits, signed };
                let mut covered = 0;
                for part in field.parts() {
                    let union = part.registers_of(0).fold(0u32, |union, register| {
                        let rotated = part.mask.rotate_left(part.rotation(register));
                        assert_eq!(union & rotated, 0);
                        union | rotated
                    });
                    assert_eq!(union, u32::MAX);
                    assert_eq!(covered & part.mask, 0);
                    covered |= part.mask;
                }
                let half = ((1 << magnitude_bits) - 1) | u32::from(signed) << 15;
                assert_eq!(covered, half | half << 16);
            }
        }
    }

    #[test]
    fn groups_round_trip_at_every_width_and_edge() {
        for (rows, cols) in [(16, 64), (16, 32), (16, 30), (13, 64), (3, 5), (1, 1)] {
            let grid = TileGrid::new(rows, cols, 16, 64, "t").unwrap();
            let group = grid.tile(0).groups().next().unwrap();
            for signed in [false, true] {
                for magnitude_bits in 0..=10u32 {
                    let field = RawField { magnitude_bits, signed };
                    let low = (1u32 << magnitude_bits) - 1;
                    let half = |lane: usize, n: usize| {
                        let hash = (lane as u32 * 32 + n as u32).wrapping_mul(0x9E37_79B9);
                        (hash >> 7 & low) | if signed { hash >> 16 & 0x8000 } else { 0 }
                    };
                    let mut bytes = Vec::new();
                    field.write_group(&group, half, &mut bytes);
                    assert_eq!(bytes.len(), field.group_bytes(&group));
                    let mut seen = 0;
                    field.read_group(&group, &bytes, |lane, n, got| {
                        assert_eq!(got, half(lane, n), "lane {lane} n {n} bits {magnitude_bits}");
                        seen += 1;
                    });
                    assert_eq!(seen, rows * cols);
                }
            }
        }
    }
}
