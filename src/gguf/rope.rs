//! How a GGUF stretches the rotary frequencies: by keys, or by a tensor with what each frequency is divided by.

use serde_json::{json, Value as Json};

use super::config::Shape;
use super::metadata::Metadata;
use crate::error::{Error, Result};

/// The tensor with a divisor for each frequency.
pub(super) const FACTORS: &str = "rope_freqs.weight";
/// Largest relative error of a divisor: those in a file were computed in FP32.
const TOLERANCE: f64 = 1e-5;
/// Llama 3.1's: below and above how many rotations in how long a context frequencies are divided and kept.
const LLAMA3: Llama3 = Llama3 { low: 1.0, high: 4.0, context: 8192.0 };

/// What `rope_scaling` of a `config.json` says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum RopeScaling {
    None,
    Linear { factor: f64 },
    Llama3 { factor: f64, steps: Llama3 },
}

/// Where Llama 3's smooth step between divided and kept frequencies lies.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Llama3 {
    low: f64,
    high: f64,
    context: f64,
}

impl Llama3 {
    /// What frequency `pair` is divided by.
    fn divisor(&self, factor: f64, frequency: f64) -> f64 {
        let rotations = self.context * frequency / std::f64::consts::TAU;
        let kept = ((rotations - self.low) / (self.high - self.low)).clamp(0.0, 1.0);
        1.0 / ((1.0 - kept) / factor + kept)
    }
}

impl RopeScaling {
    /// From the keys, and from the `divisors` of [`FACTORS`] if the file has that tensor.
    pub fn read(metadata: &Metadata, shape: &Shape, divisors: Option<&[f32]>) -> Result<Self> {
        let by_key = from_keys(metadata)?;
        match (by_key, divisors) {
            (by_key, None) => Ok(by_key),
            (Self::None, Some(divisors)) => from_divisors(divisors, shape),
            (_, Some(_)) => {
                let message = "is there beside llama.rope.scaling.*, wanted one of the two";
                Err(Error::unsupported(FACTORS, message))
            }
        }
    }

    pub fn to_json(self) -> Json {
        match self {
            Self::None => Json::Null,
            Self::Linear { factor } => json!({ "rope_type": "linear", "type": "linear", "factor": factor }),
            Self::Llama3 { factor, steps } => json!({
                "rope_type": "llama3",
                "factor": factor,
                "low_freq_factor": steps.low,
                "high_freq_factor": steps.high,
                "original_max_position_embeddings": steps.context as u64,
            }),
        }
    }
}

fn from_keys(metadata: &Metadata) -> Result<RopeScaling> {
    let old = metadata.positive("llama.rope.scale_linear")?;
    let factor = metadata.positive("llama.rope.scaling.factor")?.or(old).unwrap_or(1.0);
    let linear = if factor == 1.0 { RopeScaling::None } else { RopeScaling::Linear { factor } };
    match metadata.text("llama.rope.scaling.type")? {
        None if old.is_some() => Ok(linear),
        None if factor == 1.0 => Ok(RopeScaling::None),
        None => {
            Err(metadata.corrupt("llama.rope.scaling.type", "missing", "it beside llama.rope.scaling.factor"))
        }
        Some("none") => Ok(RopeScaling::None),
        Some("linear") => Ok(linear),
        Some(other) => Err(metadata.unsupported(
            "llama.rope.scaling.type",
            format!("{other:?}"),
            "\"none\" or \"linear\"",
        )),
    }
}

/// Llama 3's parameters, if the divisors follow from any.
fn from_divisors(divisors: &[f32], shape: &Shape) -> Result<RopeScaling> {
    let divisors: Vec<f64> = divisors.iter().map(|&divisor| f64::from(divisor)).collect();
    let largest = divisors.iter().copied().fold(0.0, f64::max);
    let matches = |scaling: &RopeScaling| {
        let expected = (0..divisors.len()).map(|pair| divisor_of(scaling, frequency(shape, pair)));
        // A divisor of zero is near zero times anything.
        let near =
            |(got, expected): (&f64, f64)| *got > 0.0 && (got - expected).abs() <= TOLERANCE * expected;
        divisors.iter().zip(expected).all(near)
    };
    let candidates = [
        Some(RopeScaling::None),
        Some(RopeScaling::Linear { factor: largest }),
        Some(RopeScaling::Llama3 { factor: largest, steps: LLAMA3 }),
        recover(&divisors, largest, shape),
    ];
    candidates.into_iter().flatten().find(matches).ok_or_else(|| {
        let message = format!(
            "its divisors (1 to {largest}) follow from no rope_scaling of the kinds linear and llama3, \
            and config.json cannot list them"
        );
        Error::unsupported(FACTORS, message)
    })
}

/// The frequency of a pair before it is stretched.
fn frequency(shape: &Shape, pair: usize) -> f64 {
    shape.rope_theta().powf(-2.0 * pair as f64 / shape.head_dim as f64)
}

fn divisor_of(scaling: &RopeScaling, frequency: f64) -> f64 {
    match scaling {
        RopeScaling::None => 1.0,
        RopeScaling::Linear { factor } => *factor,
        RopeScaling::Llama3 { factor, steps } => steps.divisor(*factor, frequency),
    }
}

/// What is kept of a frequency is linear in the frequency within the step: two points give it. Only the quotients of the three parameters
/// count, so the lower end is 1.
fn recover(divisors: &[f64], factor: f64, shape: &Shape) -> Option<RopeScaling> {
    let within = |divisor: f64| divisor > 1.0 + TOLERANCE && divisor < factor * (1.0 - TOLERANCE);
    let mut inside = (0..divisors.len()).filter(|&pair| divisors.get(pair).is_some_and(|&d| within(d)));
    let (first, last) = (inside.next()?, inside.next_back()?);
    let point = |pair: usize| {
        let kept = (1.0 / divisors.get(pair)? - 1.0 / factor) / (1.0 - 1.0 / factor);
        Some((frequency(shape, pair) / std::f64::consts::TAU, kept))
    };
    let ((x0, y0), (x1, y1)) = (point(first)?, point(last)?);
    let slope = (y1 - y0) / (x1 - x0);
    let low_share = slope * x0 - y0; // low / (high - low)
    let steps =
        Llama3 { low: 1.0, high: nearest(1.0 + 1.0 / low_share), context: (slope / low_share).round() };
    (steps.high > steps.low && steps.context >= 1.0).then_some(RopeScaling::Llama3 { factor, steps })
}

/// The value with three decimals, as people choose such.
fn nearest(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

#[cfg(test)]
mod tests {
    use super::super::value::{Number, Value};
    use super::*;
    use std::collections::BTreeMap;

    fn shape() -> Shape {
        let count = |n: i128| Value::Number(Number::Integer(n));
        let keys = [
            ("general.architecture", Value::Text("llama".to_owned())),
            ("llama.attention.head_count", count(2)),
            ("llama.embedding_length", count(256)),
            ("llama.block_count", count(1)),
            ("llama.feed_forward_length", count(8)),
            ("llama.context_length", count(131_072)),
            ("llama.rope.freq_base", Value::Number(Number::Float(500_000.0))),
            ("llama.attention.layer_norm_rms_epsilon", Value::Number(Number::Float(1e-5))),
        ];
        let keys: BTreeMap<_, _> = keys.into_iter().map(|(key, value)| (key.to_owned(), value)).collect();
        Shape::read(&Metadata::new("x.gguf".to_owned(), keys)).unwrap()
    }

    fn divisors(scaling: &RopeScaling) -> Vec<f32> {
        (0..64).map(|pair| divisor_of(scaling, frequency(&shape(), pair)) as f32).collect()
    }

    #[test]
    fn divisors_give_their_parameters_back() {
        let llama =
            |factor, low, high, context| RopeScaling::Llama3 { factor, steps: Llama3 { low, high, context } };
        for scaling in [
            RopeScaling::None,
            RopeScaling::Linear { factor: 4.0 },
            llama(8.0, 1.0, 4.0, 8192.0),
            llama(32.0, 1.0, 4.0, 8192.0),
            llama(16.0, 1.0, 2.5, 4096.0),
        ] {
            assert_eq!(from_divisors(&divisors(&scaling), &shape()).unwrap(), scaling);
        }
        // Twice everything is the same thing.
        let doubled = from_divisors(&divisors(&llama(8.0, 2.0, 8.0, 16384.0)), &shape()).unwrap();
        assert_eq!(doubled, llama(8.0, 1.0, 4.0, 8192.0));
    }

    #[test]
    fn other_divisors_are_refused() {
        let mut odd = divisors(&RopeScaling::Llama3 { factor: 8.0, steps: LLAMA3 });
        odd[10] *= 1.01;
        for divisors in
            [odd, vec![f32::NAN; 64], vec![0.0; 64], vec![-1.0; 64], (1..=64).map(|i| i as f32).collect()]
        {
            let error = from_divisors(&divisors, &shape()).unwrap_err();
            assert_eq!((error.kind(), error.subject()), (crate::ErrorKind::Unsupported, FACTORS));
        }
    }
}
