//! The kernels that a model needs on a GPU, made ready together: one after the other, each at its first use, they would hold up
//! the first token.

use std::collections::HashSet;

use super::layer::Layer;
use super::Llama;
use crate::cuda::Device;
use crate::error::Result;
use crate::nn::Linear;
use crate::ops;
use crate::ops::cuda::KernelLayout as Layout;
use crate::ops::transformer::takes_head;

impl Llama {
    /// Compiles and loads what is not loaded yet.
    pub(super) fn prepare_kernels(&self, device: &'static Device) -> Result<()> {
        let (kind, config) = (self.norm.kind(), &self.config);
        let mut sources = Vec::new();
        for layout in self.layouts()? {
            sources.extend(ops::cuda::sources(layout, kind)?);
        }
        if takes_head(config.head_dim) {
            let heads = [config.num_attention_heads, config.num_key_value_heads, config.head_dim];
            sources.extend(ops::transformer::sources(kind, heads.map(|size| size as i64))?);
        }
        device.prepare(&sources)
    }

    /// Of its compressed weights.
    fn layouts(&self) -> Result<HashSet<Layout>> {
        let mut layouts = HashSet::new();
        layouts.extend(self.embedding.layout()?);
        let linears = self.layers.iter().flat_map(Layer::linears).chain([&self.head]);
        for layout in linears.map(Linear::layout) {
            layouts.extend(layout?);
        }
        Ok(layouts)
    }
}
