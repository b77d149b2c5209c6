//! Blocks of quantized weights to FP32, as GGML defines them.
//!
//! Every product is rounded to FP32 in the order written here, which is the reference's: the values are the same bit for bit.

use half::{bf16, f16};

use super::tensor_type::TensorType;

/// Weights of the small blocks, and of the groups in a large one.
const GROUP: usize = 32;
/// Weights of a large block (`_K`).
const LARGE: usize = 256;

/// Widens whole blocks of `kind` in `bytes` to FP32; `out` has a place for each weight.
pub(super) fn widen(kind: TensorType, bytes: &[u8], out: &mut [f32]) {
    match kind {
        TensorType::F32 => each::<4, 1>(bytes, out, |block, out| out[0] = f32::from_le_bytes(*block)),
        TensorType::F16 => each::<2, 1>(bytes, out, |block, out| out[0] = half(block)),
        TensorType::BF16 => {
            each::<2, 1>(bytes, out, |block, out| out[0] = bf16::from_le_bytes(*block).to_f32());
        }
        TensorType::Q4_0 => each::<18, GROUP>(bytes, out, q4_0),
        TensorType::Q4_1 => each::<20, GROUP>(bytes, out, q4_1),
        TensorType::Q5_0 => each::<22, GROUP>(bytes, out, q5_0),
        TensorType::Q5_1 => each::<24, GROUP>(bytes, out, q5_1),
        TensorType::Q8_0 => each::<34, GROUP>(bytes, out, q8_0),
        TensorType::Q4_K => each::<144, LARGE>(bytes, out, q4_k),
        TensorType::Q5_K => each::<176, LARGE>(bytes, out, q5_k),
        TensorType::Q6_K => each::<210, LARGE>(bytes, out, q6_k),
    }
}

fn each<const BYTES: usize, const WEIGHTS: usize>(
    bytes: &[u8],
    out: &mut [f32],
    widen: impl Fn(&[u8; BYTES], &mut [f32; WEIGHTS]),
) {
    let (blocks, _) = bytes.as_chunks::<BYTES>();
    let (outs, _) = out.as_chunks_mut::<WEIGHTS>();
    blocks.iter().zip(outs).for_each(|(block, out)| widen(block, out));
}

fn half(bytes: &[u8; 2]) -> f32 {
    f16::from_le_bytes(*bytes).to_f32()
}

/// The two nibbles of each of 16 bytes: the low ones are the first 16 weights, the high ones the last.
fn nibbles(bytes: &[u8; GROUP / 2]) -> [u8; GROUP] {
    std::array::from_fn(|i| if i < GROUP / 2 { bytes[i] & 15 } else { bytes[i - GROUP / 2] >> 4 })
}

/// Nibbles with a fifth bit each, bit `i` of `high` for weight `i`.
fn five_bits(high: [u8; 4], low: &[u8; GROUP / 2]) -> [u8; GROUP] {
    let (high, low) = (u32::from_le_bytes(high), nibbles(low));
    std::array::from_fn(|i| low[i] | ((high >> i) as u8 & 1) << 4)
}

fn q4_0(block: &[u8; 18], out: &mut [f32; GROUP]) {
    let [d0, d1, low @ ..] = block;
    let (d, q) = (half(&[*d0, *d1]), nibbles(low));
    *out = q.map(|q| d * (f32::from(q) - 8.0));
}

fn q4_1(block: &[u8; 20], out: &mut [f32; GROUP]) {
    let [d0, d1, m0, m1, low @ ..] = block;
    let (d, min, q) = (half(&[*d0, *d1]), half(&[*m0, *m1]), nibbles(low));
    *out = q.map(|q| d * f32::from(q) + min);
}

fn q5_0(block: &[u8; 22], out: &mut [f32; GROUP]) {
    let [d0, d1, h0, h1, h2, h3, low @ ..] = block;
    let (d, q) = (half(&[*d0, *d1]), five_bits([*h0, *h1, *h2, *h3], low));
    *out = q.map(|q| d * (f32::from(q) - 16.0));
}

fn q5_1(block: &[u8; 24], out: &mut [f32; GROUP]) {
    let [d0, d1, m0, m1, h0, h1, h2, h3, low @ ..] = block;
    let (d, min) = (half(&[*d0, *d1]), half(&[*m0, *m1]));
    *out = five_bits([*h0, *h1, *h2, *h3], low).map(|q| d * f32::from(q) + min);
}

fn q8_0(block: &[u8; 34], out: &mut [f32; GROUP]) {
    let [d0, d1, q @ ..] = block;
    let d = half(&[*d0, *d1]);
    *out = q.map(|q| f32::from(q.cast_signed()) * d);
}

/// Scale and minimum of each of a large block's eight groups, six bits each. The first four of either kind are the low six bits of a
/// byte; of the last four, four bits are a nibble of their own, and the upper two lie above the first four's.
fn group_scales(packed: &[u8; 12]) -> [(f32, f32); 8] {
    std::array::from_fn(|group| {
        let (scale, min) = match group {
            0..4 => (packed[group] & 63, packed[group + 4] & 63),
            _ => (
                packed[group + 4] & 15 | packed[group - 4] >> 6 << 4,
                packed[group + 4] >> 4 | packed[group] >> 6 << 4,
            ),
        };
        (f32::from(scale), f32::from(min))
    })
}

/// Nibble `weight % 32` of a group: two groups share 32 bytes, the even one has the low nibbles.
fn group_nibble(low: &[u8], group: usize, i: usize) -> u8 {
    low[group / 2 * GROUP + i] >> (group % 2 * 4) & 15
}

/// A large block with scales and minima: `value` gives weight `i` of a group.
fn grouped(front: &[u8; 16], out: &mut [f32; LARGE], value: impl Fn(usize, usize) -> u8) {
    let [d0, d1, m0, m1, packed @ ..] = front;
    let (d, d_min) = (half(&[*d0, *d1]), half(&[*m0, *m1]));
    let (groups, _) = out.as_chunks_mut::<GROUP>();
    for (group, (out, (scale, min))) in groups.iter_mut().zip(group_scales(packed)).enumerate() {
        let (d, min) = (d * scale, d_min * min);
        *out = std::array::from_fn(|i| d * f32::from(value(group, i)) - min);
    }
}

fn q4_k(block: &[u8; 144], out: &mut [f32; LARGE]) {
    let Some((front, low)) = block.split_first_chunk() else { return };
    grouped(front, out, |group, i| group_nibble(low, group, i));
}

fn q5_k(block: &[u8; 176], out: &mut [f32; LARGE]) {
    let Some((front, rest)) = block.split_first_chunk() else { return };
    let (high, low) = rest.split_at(GROUP);
    // Bit `group` of byte `i` is the fifth bit of weight `i` of that group.
    grouped(front, out, |group, i| group_nibble(low, group, i) | (high[i] >> group & 1) << 4);
}

fn q6_k(block: &[u8; 210], out: &mut [f32; LARGE]) {
    let (low, rest) = block.split_at(LARGE / 2);
    let (high, rest) = rest.split_at(LARGE / 4);
    let (scales, d) = rest.split_at(LARGE / 16);
    let d = half(&[d[0], d[1]]);
    for (i, out) in out.iter_mut().enumerate() {
        // Each half of the weights has 64 bytes of nibbles and 32 of two upper bits.
        let (part, quarter, place) = (i / 128, i / GROUP % 4, i % GROUP);
        let nibble = low[part * 64 + quarter % 2 * GROUP + place] >> (quarter / 2 * 4) & 15;
        let upper = high[part * GROUP + place] >> (quarter * 2) & 3;
        let scale = d * f32::from(scales[i / 16].cast_signed());
        *out = scale * (f32::from(nibble | upper << 4) - 32.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_by_hand() {
        // Scale 0.5; weight 0 is the low nibble of the first byte, weight 16 its high one.
        let mut block = [0x88; 18];
        block[..2].copy_from_slice(&f16::from_f32(0.5).to_le_bytes());
        block[2] = 0xf1;
        let mut out = [0.0; GROUP];
        widen(TensorType::Q4_0, &block, &mut out);
        assert_eq!((out[0], out[1], out[16], out[17]), (-3.5, 0.0, 3.5, 0.0));
    }

    #[test]
    fn blocks_have_the_sizes_of_their_types() {
        for kind in TensorType::ALL {
            let mut out = vec![f32::NAN; 3 * kind.block_weights()];
            widen(kind, &vec![0; 3 * kind.block_bytes()], &mut out);
            assert!(out.iter().all(|value| *value == 0.0), "{kind:?}");
        }
    }
}
