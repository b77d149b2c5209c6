//! Rotary position embedding in the half-rotation layout of Hugging Face, with Llama 3's scaling.

use std::f64::consts::TAU;

use tch::{Device, Kind, TchError, Tensor};

use crate::error::{Result, TorchContext};
use crate::model::{LlamaConfig, RopeScaling};

/// The rotary frequencies of a model, radians per position, `head_dim / 2` of them.
#[derive(Debug)]
pub(super) struct Rope {
    frequencies: Vec<f64>,
}

/// Cosines and sines of one step's positions, `[batch or 1, seq, 1, head_dim]`, shared by all layers.
#[derive(Debug)]
pub(super) struct RopeTables {
    cos: Tensor,
    /// The sines, negative in the first half: what the swapped halves are multiplied by.
    signed_sin: Tensor,
}

impl Rope {
    pub(super) fn new(config: &LlamaConfig) -> Self {
        let frequency = |i: usize| {
            let plain = config.rope_theta.powf(-2.0 * i as f64 / config.head_dim as f64);
            scaled(plain, config.rope_scaling)
        };
        Self { frequencies: (0..config.head_dim / 2).map(frequency).collect() }
    }

    /// Radians per position, `head_dim / 2` of them.
    pub(super) fn frequencies(&self) -> &[f64] {
        &self.frequencies
    }

    /// The tables for `positions` (`batch` or 1 rows of `seq`): a few hundred sines a token, cheaper than
    /// looking them up and without a table as long as the context.
    pub(super) fn tables(
        &self,
        positions: &[i64],
        seq: i64,
        kind: Kind,
        device: Device,
    ) -> Result<RopeTables> {
        if device.is_cuda() {
            return self.tables_on(positions, seq, kind, device).about("rotary embedding");
        }
        let (mut cos, mut signed_sin) = (Vec::new(), Vec::new());
        for &position in positions {
            let angles = || self.frequencies.iter().map(|frequency| position as f64 * frequency);
            let cosines = || angles().map(|angle| angle.cos() as f32);
            cos.extend(cosines().chain(cosines()));
            signed_sin.extend(angles().map(|angle| -angle.sin() as f32));
            signed_sin.extend(angles().map(|angle| angle.sin() as f32));
        }
        let shape = [-1, seq, 1, 2 * self.frequencies.len() as i64];
        let table = |values: &[f32]| -> std::result::Result<Tensor, TchError> {
            Tensor::f_from_slice(values)?.f_view(shape)?.f_to_kind(kind)?.f_to_device(device)
        };
        Ok(RopeTables {
            cos: table(&cos).about("rotary embedding")?,
            signed_sin: table(&signed_sin).about("rotary embedding")?,
        })
    }

    /// The same, computed on `device`: a prompt of thousands of tokens would wait for the CPU.
    fn tables_on(
        &self,
        positions: &[i64],
        seq: i64,
        kind: Kind,
        device: Device,
    ) -> std::result::Result<RopeTables, TchError> {
        let frequencies = Tensor::f_from_slice(&self.frequencies)?.f_to_device(device)?;
        let positions = Tensor::f_from_slice(positions)?.f_to_device(device)?.f_to_kind(Kind::Double)?;
        let angles = positions.f_view([-1, seq, 1, 1])?.f_mul(&frequencies)?;
        let rounded = |values: Tensor| values.f_to_kind(Kind::Float)?.f_to_kind(kind);
        let (cos, sin) = (rounded(angles.f_cos()?)?, rounded(angles.f_sin()?)?);
        Ok(RopeTables {
            cos: Tensor::f_cat(&[&cos, &cos], -1)?,
            signed_sin: Tensor::f_cat(&[&sin.f_neg()?, &sin], -1)?,
        })
    }
}

impl RopeTables {
    /// Rotates `x` `[batch, seq, heads, head_dim]` by its positions.
    pub(super) fn rotate(&self, x: &Tensor) -> std::result::Result<Tensor, TchError> {
        let size = x.size();
        let halves: Vec<i64> = match size.as_slice() {
            &[batch, seq, heads, dim] => vec![batch, seq, heads, 2, dim / 2],
            _ => return Err(TchError::Shape(format!("rotary embedding of shape {size:?}"))),
        };
        let swapped = x.f_view(halves.as_slice())?.f_flip([3])?.f_view(size.as_slice())?;
        x.f_mul(&self.cos)?.f_addcmul(&swapped, &self.signed_sin)
    }
}

fn scaled(frequency: f64, scaling: RopeScaling) -> f64 {
    match scaling {
        RopeScaling::Default => frequency,
        RopeScaling::Linear { factor } => frequency / factor,
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_context } => {
            // Turns within the original context: few for a low frequency, many for a high one.
            let turns = original_context * frequency / TAU;
            let keep = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
            frequency * (keep + (1.0 - keep) / factor)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_of_the_device_are_those_of_the_host() {
        let frequencies = (0..32).map(|i| 5e5_f64.powf(-2.0 * i as f64 / 64.0)).collect();
        let rope = Rope { frequencies };
        let positions: Vec<i64> = (-3..120_000).step_by(1013).chain([7, 9]).collect();
        let (rows, seq) = (2, positions.len() as i64 / 2);
        let positions = &positions[..2 * seq as usize];
        let host = rope.tables(positions, seq, Kind::Float, Device::Cpu).unwrap();
        let device = rope.tables_on(positions, seq, Kind::Float, Device::Cpu).unwrap();
        for (host, device) in [(host.cos, device.cos), (host.signed_sin, device.signed_sin)] {
            assert_eq!(host.size(), [rows, seq, 1, 64]);
            assert_eq!(device.size(), host.size());
            let error = (host - device).abs().max().double_value(&[]);
            assert!(error < 1e-7, "{error}");
        }
    }
}
