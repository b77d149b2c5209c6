//! One layer: attention and feed-forward, each behind a norm and added to the residual stream.

use tch::{nn, Tensor};

use super::attention::{Attention, Context};
use super::mlp::Mlp;
use super::norm::RmsNorm;
use super::step::Step;
use crate::checkpoint::WeightSource;
use crate::error::{Result, TorchContext};
use crate::model::LlamaConfig;
use crate::nn::Linear;

#[derive(Debug)]
pub(super) struct Layer {
    pub(super) input_norm: RmsNorm,
    pub(super) attention: Attention,
    pub(super) post_attention_norm: RmsNorm,
    pub(super) mlp: Mlp,
}

impl Layer {
    pub(super) fn load(
        vs: &nn::Path<'_>,
        config: &LlamaConfig,
        source: &dyn WeightSource,
        index: usize,
    ) -> Result<Self> {
        Ok(Self {
            input_norm: RmsNorm::load(&vs.sub("input_layernorm"), config, source)?,
            attention: Attention::load(&vs.sub("self_attn"), config, source, index)?,
            post_attention_norm: RmsNorm::load(&vs.sub("post_attention_layernorm"), config, source)?,
            mlp: Mlp::load(&vs.sub("mlp"), config, source)?,
        })
    }

    pub(super) fn linears(&self) -> impl Iterator<Item = &Linear> {
        self.attention.linears().into_iter().chain(self.mlp.linears())
    }

    pub(super) fn weight_bytes(&self) -> usize {
        let norms = self.input_norm.weight_bytes() + self.post_attention_norm.weight_bytes();
        norms + self.attention.weight_bytes() + self.mlp.weight_bytes()
    }

    /// `hidden` `[batch, seq, hidden]` to the same shape.
    pub(super) fn forward(&self, hidden: &Tensor, step: &Step, context: &mut dyn Context) -> Result<Tensor> {
        let attended = self.attention.forward(&self.input_norm.forward(hidden)?, step, context)?;
        let hidden = hidden.f_add(&attended).about(self.attention.path())?;
        let fed = self.mlp.forward(&self.post_attention_norm.forward(&hidden)?, step.apart)?;
        hidden.f_add(&fed).about(self.mlp.path())
    }
}
