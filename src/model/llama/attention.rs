//! Grouped-query attention over the key-value cache.

use tch::{nn, Kind, TchError, Tensor};

use super::step::Step;
use crate::checkpoint::WeightSource;
use crate::error::{Result, TorchContext};
use crate::model::LlamaConfig;
use crate::nn::{Linear, MergedLinear};

#[derive(Debug)]
pub(super) struct Attention {
    path: String,
    layer: usize,
    query: Linear,
    key: Linear,
    value: Linear,
    output: Linear,
    heads: i64,
    kv_heads: i64,
    head_dim: i64,
}

impl Attention {
    pub(super) fn load(
        vs: &nn::Path<'_>,
        config: &LlamaConfig,
        source: &dyn WeightSource,
        layer: usize,
    ) -> Result<Self> {
        let hidden = config.hidden_size;
        let [wide, narrow] =
            [config.num_attention_heads, config.num_key_value_heads].map(|n| n * config.head_dim);
        let linear = |name: &str, shape| source.linear(&vs.sub(name), shape, config.attention_bias);
        let attention = Self {
            path: super::path_of(vs),
            layer,
            query: linear("q_proj", [wide, hidden])?,
            key: linear("k_proj", [narrow, hidden])?,
            value: linear("v_proj", [narrow, hidden])?,
            output: linear("o_proj", [hidden, wide])?,
            heads: config.num_attention_heads as i64,
            kv_heads: config.num_key_value_heads as i64,
            head_dim: config.head_dim as i64,
        };
        if vs.device().is_cuda() {
            MergedLinear::lay_side_by_side(&attention.inputs())?;
        }
        Ok(attention)
    }

    pub(super) fn linears(&self) -> [&Linear; 4] {
        [&self.query, &self.key, &self.value, &self.output]
    }

    /// The linears that read the layer's input.
    fn inputs(&self) -> [&Linear; 3] {
        [&self.query, &self.key, &self.value]
    }

    /// Queries, keys and values as one, where loading laid their weights side by side.
    pub(super) fn merged(&self) -> Result<MergedLinear> {
        MergedLinear::as_they_lie(&self.inputs())
    }

    /// On a GPU: what attention gives, `[batch, heads * head_dim]`, to `out` `[batch, hidden]`.
    pub(super) fn output_into(&self, attended: &Tensor, out: &Tensor) -> Result<()> {
        self.output.forward_into(attended, out)
    }

    pub(super) fn path(&self) -> &str {
        &self.path
    }

    pub(super) fn weight_bytes(&self) -> usize {
        self.linears().map(Linear::weight_bytes).iter().sum()
    }

    /// `x` `[batch, seq, hidden]` to the same shape; leaves its keys and values in `context`.
    pub(super) fn forward(&self, x: &Tensor, step: &Step, context: &mut dyn Context) -> Result<Tensor> {
        let (query, key) = (self.query.try_forward(x)?, self.key.try_forward(x)?);
        let value = self.value.try_forward(x)?;
        let attended = self.attend([&query, &key, &value], step, context).about(&self.path)?;
        self.output.try_forward(&attended)
    }

    /// Projected query, key and value `[batch, seq, heads * head_dim]` to `[batch, seq, heads * head_dim]`.
    fn attend(
        &self,
        [query, key, value]: [&Tensor; 3],
        step: &Step,
        context: &mut dyn Context,
    ) -> std::result::Result<Tensor, TchError> {
        let (batch, seq, width) = query.size3()?;
        let kind = query.kind();
        // Queries and keys turn together: half the calls of turning them apart.
        let both = Tensor::f_cat(&[query, key], -1)?;
        let both = both.f_view([batch, seq, self.heads + self.kv_heads, self.head_dim])?;
        let both = step.rope.rotate(&both)?.f_transpose(1, 2)?;
        let query = both.f_narrow(1, 0, self.heads)?.f_to_kind(context.kind())?;
        let key = both.f_narrow(1, self.heads, self.kv_heads)?;
        let value = value.f_view([batch, seq, self.kv_heads, self.head_dim])?.f_transpose(1, 2)?;
        let attended = context.attend(self.layer, step, [&query, &key, &value])?;
        attended.f_transpose(1, 2)?.f_to_kind(kind)?.f_reshape([batch, seq, width])
    }
}

/// What the queries of a pass attend to, and where its keys and values go.
pub(super) trait Context {
    /// The dtype of keys and values, and so of the queries.
    fn kind(&self) -> Kind;

    /// Turned queries `[batch, heads, seq, head_dim]`, and keys and values `[batch, kv_heads, seq, head_dim]` of the pass's tokens
    /// in `layer`, to `[batch, heads, seq, head_dim]`.
    fn attend(
        &mut self,
        layer: usize,
        step: &Step,
        projected: [&Tensor; 3],
    ) -> std::result::Result<Tensor, TchError>;
}

/// Attention of `query` `[batch, heads, seq, head_dim]` over keys and values `[batch, kv_heads, tokens, head_dim]`.
pub(super) fn dot_product(
    query: &Tensor,
    [mut keys, mut values]: [Tensor; 2],
    step: &Step,
) -> std::result::Result<Tensor, TchError> {
    let (heads, kv_heads) = (query.size4()?.1, keys.size4()?.1);
    let (mut grouped, mask) = (heads != kv_heads, step.mask.as_ref());
    if grouped && query.device().is_cuda() && (mask.is_some() || query.kind() == Kind::Float) {
        // No kernel takes both shared keys and a mask, or FP32: libtorch would fall back to all scores in memory.
        keys = keys.f_repeat_interleave_self_int(heads / kv_heads, 1, None)?;
        values = values.f_repeat_interleave_self_int(heads / kv_heads, 1, None)?;
        grouped = false;
    }
    Tensor::f_scaled_dot_product_attention(query, &keys, &values, mask, 0.0, step.causal, None, grouped)
}
