//! Compresses one tensor of a model and looks at it: bits, entropy, classes, signal to noise, and how its grid values are spread.
//!
//! ```text
//! scripts/fetch_stories15m.sh
//! cargo run --release --example inspect_tensor -- .cache/models/stories15M model.layers.0.mlp.up_proj.weight
//!
//! model.layers.0.mlp.up_proj.weight: 768x288, 0.88 MB
//! preset       bits/weight  entropy   over       SNR
//! int8               7.613    7.407  0.206   42.9 dB
//! 6.2 bits           6.198    6.003  0.195   34.6 dB
//! 5.2 bits           5.203    4.977  0.226   28.4 dB
//! 4 bits             4.004    3.679  0.324   20.6 dB
//!
//! int8: 16 tiles of 48x320, tables: 1
//!   header          56 bytes   0.002 bits/weight
//!   scales        1536 bytes   0.056 bits/weight
//! ...
//! ```

use anyhow::{bail, Context, Result};
use codecllm::checkpoint::Reader;
use codecllm::codec::{CompressedTensor, EncodeOptions, Layout, Matrix, RateSample, StepRule};
use tch::Tensor;

const DEFAULT: [&str; 2] = [".cache/models/stories15M", "model.layers.0.mlp.up_proj.weight"];
/// Bits a weight to try beside the preset.
const BUDGETS: [f64; 3] = [6.2, 5.2, 4.0];
const BARS: i64 = 17;
const BAR_WIDTH: usize = 50;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [dir, path] = match &arguments[..] {
        [] => DEFAULT,
        [dir, path] => [dir.as_str(), path.as_str()],
        _ => bail!("usage: inspect_tensor [MODEL_DIR TENSOR_PATH]"),
    };
    let reader = Reader::open(dir).with_context(|| format!("{dir}: run scripts/fetch_stories15m.sh"))?;
    let weight = reader.read(path)?;
    let matrix = Matrix::of(path, &weight)?;
    let [rows, cols] = matrix.shape;
    println!("{path}: {rows}x{cols}, {:.2} MB", reader.info(path).map_or(0, |info| info.bytes) as f64 / 1e6);
    println!("{:12} {:>11} {:>8} {:>6} {:>9}", "preset", "bits/weight", "entropy", "over", "SNR");
    let int8 = StepRule::RowAbsmax;
    let compressed = show("int8", path, &weight, int8)?;
    for bits in BUDGETS {
        show(&format!("{bits} bits"), path, &weight, step_for(path, &matrix, bits)?)?;
    }
    layers(&compressed)?;
    histogram(&int8.quantize(&matrix, path)?.values);
    Ok(())
}

/// The step at which the matrix takes `bits` a weight.
fn step_for(path: &str, matrix: &Matrix, bits: f64) -> Result<StepRule> {
    let sample = RateSample::new(path, matrix, EncodeOptions::default())?;
    let exponent = codecllm::codec::solve_exponent(std::slice::from_ref(&sample), 0, sample.weights(), bits)?;
    Ok(StepRule::Step(sample.step(exponent)))
}

/// One line of the table.
fn show(name: &str, path: &str, weight: &Tensor, rule: StepRule) -> Result<CompressedTensor> {
    let compressed = CompressedTensor::compress(path, weight, rule, EncodeOptions::default())?;
    let stats = compressed.stats();
    let entropy = stats.grid_entropy_bits.unwrap_or(f64::NAN);
    let (bits, snr) = (stats.bits_per_weight, stats.snr_db);
    println!("{name:12} {bits:>11.3} {entropy:>8.3} {:>6.3} {snr:>6.1} dB", bits - entropy);
    Ok(compressed)
}

/// Where the bytes are, and how many bits of a magnitude are stored raw beside its class.
fn layers(compressed: &CompressedTensor) -> Result<()> {
    let buffers = compressed.buffers();
    let view = buffers.view(compressed.tensor_path())?;
    let grid = view.header.grid;
    assert_eq!(view.header.layout, Layout::Fast, "the default");
    println!(
        "\nint8: {} tiles of {}x{}, tables: {}",
        grid.tile_count(),
        grid.tile_rows(),
        grid.tile_cols(),
        view.header.table_count
    );
    for (name, bytes) in buffers.iter() {
        println!(
            "  {name:8} {:>9} bytes {:>7.3} bits/weight",
            bytes.len(),
            8.0 * bytes.len() as f64 / compressed.stats().weights as f64
        );
    }
    let mut tiles_by_raw_bits = std::collections::BTreeMap::new();
    for tile in 0..grid.tile_count() {
        *tiles_by_raw_bits.entry(view.tile_header(tile)?.raw_magnitude_bits).or_insert(0) += 1;
    }
    for (raw, tiles) in tiles_by_raw_bits {
        println!("  {tiles} tiles: 4 classes of {} magnitudes each, {raw} raw bits and a sign", 1 << raw);
    }
    Ok(())
}

/// How often grid values occur, between the extremes of 8 bits.
fn histogram(values: &[i16]) {
    let width = (2 * 127 + BARS) / BARS;
    let mut counts = vec![0usize; BARS as usize];
    for value in values {
        counts[((i64::from(*value) + 127) / width).clamp(0, BARS - 1) as usize] += 1;
    }
    let most = counts.iter().max().copied().unwrap_or(1).max(1);
    println!("\ngrid values");
    for (bar, count) in counts.iter().enumerate() {
        let first = bar as i64 * width - 127;
        let share = 100.0 * *count as f64 / values.len() as f64;
        println!(
            "{first:>5} to {:>4} {share:>5.1} % {}",
            first + width - 1,
            "#".repeat(BAR_WIDTH * count / most)
        );
    }
}
