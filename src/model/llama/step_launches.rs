//! What a decoding step launches, in order, and the memory that the launches share.

use tch::{Device, Kind, Tensor};

use super::layer::Layer;
use super::Llama;
use crate::error::{Result, TorchContext};
use crate::nn::MergedLinear;
use crate::ops::transformer::{
    argmax, attention, rope_angles, rope_cache, swiglu, AttentionScratch, CachePlanes, Launcher,
};

/// Which launches to make.
#[derive(Clone, Copy, Debug)]
pub(super) struct Launched {
    pub(super) linears: bool,
    pub(super) rest: bool,
    /// Whether each sequence is one token longer afterwards, for the device.
    pub(super) advance: bool,
}

impl Launched {
    /// A step as it is.
    pub(super) const STEP: Self = Self { linears: true, rest: true, advance: true };
}

/// Where the keys and values of a step lie.
pub(super) trait StepPlanes {
    /// Of one layer, all slots, the free ones too.
    fn planes(&self, layer: usize) -> Result<CachePlanes<'_>>;
}

/// All memory of a step, allocated once: its launches know it by address.
#[derive(Debug)]
pub(super) struct StepBuffers {
    /// `[batch]`, `Int64`: read at the begin of a step; at its end, the likeliest next ones.
    pub(super) tokens: Tensor,
    /// `[batch]`, `Int`: tokens that each sequence holds, its padding among them.
    pub(super) lengths: Tensor,
    /// `[batch, vocab]`.
    pub(super) logits: Tensor,
    padding: Tensor,
    frequencies: Tensor,
    angles: Tensor,
    /// The residual stream, what is added to it next, and its norm: all `[batch, hidden]`.
    hidden: Tensor,
    delta: Tensor,
    normed: Tensor,
    qkv: Tensor,
    attended: Tensor,
    gate_up: Tensor,
    gated: Tensor,
    attention: AttentionScratch,
}

impl StepBuffers {
    /// For as many sequences as there are numbers in `padding`, which are the tokens before their own, in dtype `kind`. All lengths
    /// and tokens are 0.
    pub(super) fn new(launcher: &Launcher, llama: &Llama, padding: &[i64], kind: Kind) -> Result<Self> {
        let config = &llama.config;
        let (batch, device) = (padding.len() as i64, Device::Cuda(launcher.device.ordinal));
        let [heads, kv_heads, head_dim, hidden, wide, vocab] = [
            config.num_attention_heads,
            config.num_key_value_heads,
            config.head_dim,
            config.hidden_size,
            config.intermediate_size,
            config.vocab_size,
        ]
        .map(|n| n as i64);
        let zeros = |width: i64, kind| Tensor::f_zeros([batch, width], (kind, device)).about("decoding step");
        let row = |width| zeros(width, kind);
        let on_device = |tensor: Tensor, kind| {
            tensor.f_to_kind(kind).and_then(|tensor| tensor.f_to_device(device)).about("decoding step")
        };
        Ok(Self {
            tokens: zeros(1, Kind::Int64)?.f_view([batch]).about("decoding step")?,
            lengths: zeros(1, Kind::Int)?.f_view([batch]).about("lengths")?,
            logits: row(vocab)?,
            padding: on_device(Tensor::f_from_slice(padding).about("padding")?, Kind::Int)?,
            frequencies: on_device(
                Tensor::f_from_slice(llama.rope.frequencies()).about("frequencies")?,
                Kind::Double,
            )?,
            angles: zeros(head_dim, Kind::Float)?.f_view([batch, head_dim / 2, 2]).about("angles")?,
            hidden: row(hidden)?,
            delta: row(hidden)?,
            normed: row(hidden)?,
            qkv: row((heads + 2 * kv_heads) * head_dim)?,
            attended: row(heads * head_dim)?,
            gate_up: row(2 * wide)?,
            gated: row(wide)?,
            attention: AttentionScratch::new(launcher, kind, [batch, heads, kv_heads, head_dim])?,
        })
    }
}

/// The linears of a layer that read the same input, as one each.
#[derive(Debug)]
pub(super) struct MergedLayer {
    qkv: MergedLinear,
    gate_up: MergedLinear,
}

impl MergedLayer {
    pub(super) fn of(layer: &Layer) -> Result<Self> {
        Ok(Self { qkv: layer.attention.merged()?, gate_up: layer.mlp.merged()? })
    }
}

/// A step's launches on one stream.
pub(super) struct StepLaunches<'a> {
    pub(super) llama: &'a Llama,
    pub(super) cache: &'a dyn StepPlanes,
    pub(super) buffers: &'a StepBuffers,
    pub(super) merged: &'a [MergedLayer],
    pub(super) launcher: Launcher,
    pub(super) launched: Launched,
}

impl StepLaunches<'_> {
    pub(super) fn all(&self) -> Result<()> {
        let at = self.buffers;
        self.rest(|launcher| {
            self.llama.embedding.forward_into(&at.tokens, &at.hidden)?;
            rope_angles(launcher, &at.angles, &at.frequencies, &at.lengths, &at.padding)
        })?;
        for (index, (layer, merged)) in self.llama.layers.iter().zip(self.merged).enumerate() {
            self.attention(index, layer, merged)?;
            self.feed_forward(layer, merged)?;
        }
        self.rest(|launcher| self.llama.norm.launch(launcher, &at.hidden, Some(&at.delta), &at.normed))?;
        self.linear(|| self.llama.head.forward_into(&at.normed, &at.logits))?;
        let lengths = self.launched.advance.then_some(&at.lengths);
        self.rest(|launcher| argmax(launcher, &at.logits, &at.tokens, lengths))
    }

    fn attention(&self, index: usize, layer: &Layer, merged: &MergedLayer) -> Result<()> {
        let at = self.buffers;
        let planes = self.cache.planes(index)?;
        // What the layer before left is not yet in the residual stream; before the first there is nothing.
        let delta = (index > 0).then_some(&at.delta);
        self.rest(|launcher| layer.input_norm.launch(launcher, &at.hidden, delta, &at.normed))?;
        self.linear(|| merged.qkv.forward_into(&at.normed, &at.qkv))?;
        self.rest(|launcher| {
            let heads = self.llama.config.num_attention_heads as i64;
            rope_cache(launcher, &at.qkv, planes, &at.angles, &at.lengths, heads)?;
            let range = [&at.lengths, &at.padding];
            attention(launcher, &at.attended, &at.qkv, planes, &at.attention, range)
        })?;
        self.linear(|| layer.attention.output_into(&at.attended, &at.delta))
    }

    fn feed_forward(&self, layer: &Layer, merged: &MergedLayer) -> Result<()> {
        let at = self.buffers;
        let norm = &layer.post_attention_norm;
        self.rest(|launcher| norm.launch(launcher, &at.hidden, Some(&at.delta), &at.normed))?;
        self.linear(|| merged.gate_up.forward_into(&at.normed, &at.gate_up))?;
        self.rest(|launcher| swiglu(launcher, &at.gate_up, &at.gated))?;
        self.linear(|| layer.mlp.down_into(&at.gated, &at.delta))
    }

    fn linear(&self, launch: impl FnOnce() -> Result<()>) -> Result<()> {
        if self.launched.linears {
            launch()
        } else {
            Ok(())
        }
    }

    fn rest(&self, launch: impl FnOnce(&Launcher) -> Result<()>) -> Result<()> {
        if self.launched.rest {
            launch(&self.launcher)
        } else {
            Ok(())
        }
    }
}
