//! The linears of one step of the 8B model, added up.

use serde::Serialize;

use super::forward::ForwardTime;
use super::LayerReport;

/// The paths of the compressed layers; `best` takes in each layer the faster of the two.
const COMPRESSED: [&str; 2] = ["fused", "scratch"];
const PATHS: [&str; 5] = ["fused", "scratch", "best", "dense fp16", "dense bf16"];

/// All linears of a step with `batch` rows.
#[derive(Clone, Debug, Serialize)]
pub(super) struct StepTime {
    pub(super) batch: usize,
    pub(super) path: &'static str,
    pub(super) median_us: f64,
    pub(super) of_dense_fp16: f64,
}

/// Every path at every batch that all layers were timed at; nothing where the layers are not those of the model.
pub(super) fn step_times(layers: &[LayerReport]) -> Vec<StepTime> {
    if layers.iter().any(|layer| layer.per_step == 0) {
        return Vec::new();
    }
    let batches = layers.first().map_or_else(Vec::new, |layer| {
        let mut batches: Vec<usize> = layer.forward.iter().map(|time| time.batch).collect();
        batches.dedup();
        batches
    });
    let times = batches.iter().flat_map(|&batch| PATHS.map(|path| (batch, path)));
    times.filter_map(|(batch, path)| step_time(layers, batch, path)).collect()
}

fn step_time(layers: &[LayerReport], batch: usize, path: &'static str) -> Option<StepTime> {
    let (median_us, dense_us) = (step_us(layers, batch, path)?, step_us(layers, batch, "dense fp16")?);
    Some(StepTime { batch, path, median_us, of_dense_fp16: dense_us / median_us })
}

fn step_us(layers: &[LayerReport], batch: usize, path: &str) -> Option<f64> {
    let each = layers.iter().map(|layer| {
        let us = match path {
            "best" => {
                COMPRESSED.iter().filter_map(|path| layer_us(&layer.forward, batch, path)).reduce(f64::min)
            }
            _ => layer_us(&layer.forward, batch, path),
        };
        us.map(|us| us * layer.per_step as f64)
    });
    each.sum()
}

fn layer_us(times: &[ForwardTime], batch: usize, path: &str) -> Option<f64> {
    times.iter().find(|time| time.batch == batch && time.path == path).map(|time| time.timing.median_us)
}

#[cfg(test)]
mod tests {
    use super::super::contest::GpuTiming;
    use super::super::forward::ForwardTime;
    use super::super::LayerReport;
    use super::step_times;

    fn time(batch: usize, path: &'static str, us: f64) -> ForwardTime {
        let timing = GpuTiming { median_us: us, min_us: us };
        ForwardTime { batch, path, timing, tweights_per_second: 0.0, of_dense_fp16: 0.0 }
    }

    fn layer(per_step: usize, forward: Vec<ForwardTime>) -> LayerReport {
        LayerReport {
            name: String::new(),
            parts: vec![1],
            shape: [1, 1],
            per_step,
            bits_per_weight: 5.0,
            decode: Vec::new(),
            forward,
        }
    }

    #[test]
    fn a_step_is_the_sum_of_its_layers() {
        let forward = |fused, scratch, dense| {
            let at_256 = [time(256, "scratch", 4.0), time(256, "dense fp16", 2.0)];
            [time(1, "fused", fused), time(1, "scratch", scratch), time(1, "dense fp16", dense)]
                .into_iter()
                .chain(at_256)
                .collect()
        };
        let layers = [layer(32, forward(1.0, 3.0, 2.0)), layer(1, forward(6.0, 4.0, 8.0))];
        let figures: Vec<_> =
            step_times(&layers).iter().map(|s| (s.batch, s.path, s.median_us, s.of_dense_fp16)).collect();
        assert_eq!(
            figures,
            [
                (1, "fused", 38.0, 72.0 / 38.0),
                (1, "scratch", 100.0, 0.72),
                (1, "best", 36.0, 2.0),
                (1, "dense fp16", 72.0, 1.0),
                (256, "scratch", 132.0, 0.5),
                (256, "best", 132.0, 0.5),
                (256, "dense fp16", 66.0, 1.0),
            ]
        );
        assert!(step_times(&[layer(0, forward(1.0, 1.0, 1.0))]).is_empty(), "not a layer of the model");
    }
}
