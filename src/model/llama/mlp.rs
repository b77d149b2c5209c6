//! The feed-forward layer: `down(silu(gate(x)) * up(x))`.

use tch::{nn, Tensor};

use crate::checkpoint::WeightSource;
use crate::error::{Result, TorchContext};
use crate::model::LlamaConfig;
use crate::nn::{Linear, MergedLinear};

#[derive(Debug)]
pub(super) struct Mlp {
    path: String,
    gate: Linear,
    up: Linear,
    down: Linear,
}

impl Mlp {
    pub(super) fn load(vs: &nn::Path<'_>, config: &LlamaConfig, source: &dyn WeightSource) -> Result<Self> {
        let (wide, narrow) = (config.intermediate_size, config.hidden_size);
        let linear = |name: &str, shape| source.linear(&vs.sub(name), shape, config.mlp_bias);
        let mlp = Self {
            path: super::path_of(vs),
            gate: linear("gate_proj", [wide, narrow])?,
            up: linear("up_proj", [wide, narrow])?,
            down: linear("down_proj", [narrow, wide])?,
        };
        if vs.device().is_cuda() {
            MergedLinear::lay_side_by_side(&[&mlp.gate, &mlp.up])?;
        }
        Ok(mlp)
    }

    pub(super) fn linears(&self) -> [&Linear; 3] {
        [&self.gate, &self.up, &self.down]
    }

    /// Gate and up side by side.
    pub(super) fn merged(&self) -> Result<MergedLinear> {
        MergedLinear::new(&[&self.gate, &self.up])
    }

    /// On a GPU: `gated` `[batch, intermediate]` to `out` `[batch, hidden]`.
    pub(super) fn down_into(&self, gated: &Tensor, out: &Tensor) -> Result<()> {
        self.down.forward_into(gated, out)
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn weight_bytes(&self) -> usize {
        self.gate.weight_bytes() + self.up.weight_bytes() + self.down.weight_bytes()
    }

    /// `x` `[batch, seq, hidden]` to the same shape.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        let mut gated = self.gate.try_forward(x)?;
        let _ = gated.f_silu_().about(&self.path)?;
        let _ = gated.f_mul_(&self.up.try_forward(x)?).about(&self.path)?;
        self.down.try_forward(&gated)
    }
}
