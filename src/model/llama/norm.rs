//! RMSNorm, computed in FP32 whatever the model's dtype.

use tch::{nn, Device, Kind, Tensor};

use crate::checkpoint::WeightSource;
use crate::error::{Result, TorchContext};
use crate::model::LlamaConfig;
use crate::nn::BufferVersion;
use crate::ops::transformer::{rms_norm, Launcher};

#[derive(Debug)]
pub(super) struct RmsNorm {
    path: String,
    weight: Tensor,
    eps: f64,
}

impl RmsNorm {
    pub(super) fn load(vs: &nn::Path<'_>, config: &LlamaConfig, source: &dyn WeightSource) -> Result<Self> {
        let weight = source.tensor(vs, &[config.hidden_size])?;
        Ok(Self { path: super::path_of(vs), weight, eps: config.rms_norm_eps })
    }

    pub(super) fn weight_bytes(&self) -> usize {
        self.weight.numel() * self.weight.kind().elt_size_in_bytes()
    }

    pub(super) fn kind(&self) -> Kind {
        self.weight.kind()
    }

    pub(super) fn device(&self) -> Device {
        self.weight.device()
    }

    /// Changes when the weight is another or has been written to.
    pub(super) fn version(&self) -> Result<BufferVersion> {
        BufferVersion::of(&self.weight, &self.path)
    }

    /// On a GPU: adds `delta`, where there is one, to `hidden` and puts its norm into `out`, all `[batch, hidden]`.
    pub(super) fn launch(
        &self,
        launcher: &Launcher,
        hidden: &Tensor,
        delta: Option<&Tensor>,
        out: &Tensor,
    ) -> Result<()> {
        rms_norm(launcher, hidden, delta, &self.weight, out, self.eps)
            .map_err(|error| error.about(&*self.path))
    }

    /// `x / sqrt(mean(x^2) + eps) * weight` over the last dimension, in `x`'s dtype.
    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.normalize(x).about(&self.path)
    }

    fn normalize(&self, x: &Tensor) -> std::result::Result<Tensor, tch::TchError> {
        let wide = x.f_to_kind(Kind::Float)?;
        // One reduction kernel; a mean of squares would be two and a temporary as wide as `x`.
        let norm = wide.f_norm_scalaropt_dim(2.0, -1, true)?;
        let mean_square = norm.f_square()?.f_divide_scalar(self.weight.numel() as f64)?;
        let inverse = mean_square.f_add_scalar(self.eps)?.f_rsqrt()?;
        // Rounded before the weight is applied, as the reference implementation does.
        wide.f_mul(&inverse)?.f_to_kind(x.kind())?.f_mul(&self.weight)
    }
}
