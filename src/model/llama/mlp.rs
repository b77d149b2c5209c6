//! The feed-forward layer: `down(silu(gate(x)) * up(x))`.

use tch::{nn, TchError, Tensor};

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

    /// Gate and up as one, where loading laid their weights side by side.
    pub(super) fn merged(&self) -> Result<MergedLinear> {
        MergedLinear::as_they_lie(&[&self.gate, &self.up])
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

    /// `x` `[batch, seq, hidden]` to the same shape; where `apart`, each sequence as if it were alone.
    pub(super) fn forward(&self, x: &Tensor, apart: bool) -> Result<Tensor> {
        let mut gated = self.gate.try_forward(x)?;
        if apart {
            silu_apart(&gated).about(&self.path)?;
        } else {
            let _ = gated.f_silu_().about(&self.path)?;
        }
        let _ = gated.f_mul_(&self.up.try_forward(x)?).about(&self.path)?;
        self.down.try_forward(&gated)
    }
}

/// SiLU of each row of `x` by itself: libtorch computes the last few elements of a tensor, and of a thread's share of it, in
/// another way than those before them, and where a row ends would depend on the rows before it.
fn silu_apart(x: &Tensor) -> std::result::Result<(), TchError> {
    for row in 0..x.size().first().copied().unwrap_or_default() {
        let _ = x.f_narrow(0, row, 1)?.f_silu_()?;
    }
    Ok(())
}
