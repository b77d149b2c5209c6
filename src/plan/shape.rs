//! The matrices of a Llama, counted from its settings.

use crate::model::LlamaConfig;

/// What a Llama's weights are, by shape alone.
///
/// ```
/// use codecllm::{model::LlamaConfig, plan::ModelShape};
/// let json = r#"{"model_type": "llama", "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
///     "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": 100, "tie_word_embeddings": true}"#;
/// let shape = ModelShape::of(&LlamaConfig::from_json(json, "config.json")?);
/// // Embedding; q, k, v and o, gate, up and down of two layers; five norms.
/// assert_eq!(shape.weights(), 100 * 64 + 2 * (3 * 64 * 64 + 3 * 64 * 128) + 5 * 64);
/// assert_eq!(shape.matrix_weights(), shape.weights() - 5 * 64);
/// assert_eq!(shape.step_weights(), shape.matrix_weights()); // the embedding is the head, too
/// # Ok::<(), codecllm::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct ModelShape {
    /// Rows and columns of a layer's matrices that read the same input, one group after the other: q, k, v; o; gate, up; down.
    pub(super) layer: [Vec<[usize; 2]>; 4],
    pub(super) layers: usize,
    /// The embedding, and the head where it is another.
    pub(super) tables: Vec<[usize; 2]>,
    /// Norms and biases.
    pub(super) others: usize,
}

impl ModelShape {
    /// The weights of a model with `config`.
    pub fn of(config: &LlamaConfig) -> Self {
        let (hidden, wide) = (config.hidden_size, config.intermediate_size);
        let [heads, kv_heads] = [config.num_attention_heads, config.num_key_value_heads]
            .map(|count| product([count, config.head_dim]));
        let tables = if config.tie_word_embeddings { 1 } else { 2 };
        let attention_biases =
            if config.attention_bias { sum([heads, kv_heads, kv_heads, hidden]) } else { 0 };
        let mlp_biases = if config.mlp_bias { sum([wide, wide, hidden]) } else { 0 };
        let layers = config.num_hidden_layers;
        Self {
            layer: [
                vec![[heads, hidden], [kv_heads, hidden], [kv_heads, hidden]],
                vec![[hidden, heads]],
                vec![[wide, hidden], [wide, hidden]],
                vec![[hidden, wide]],
            ],
            layers,
            tables: vec![[config.vocab_size, hidden]; tables],
            others: sum([product([layers, sum([hidden, hidden, attention_biases, mlp_biases])]), hidden]),
        }
    }

    /// All weights.
    pub fn weights(&self) -> usize {
        sum([self.matrix_weights(), self.others])
    }

    /// Weights of matrices: what compression takes.
    pub fn matrix_weights(&self) -> usize {
        sum([self.layers_weights(), count(&self.tables)])
    }

    /// Weights that a decoding step multiplies by: of an embedding that is not the head, too, it only looks up rows.
    pub fn step_weights(&self) -> usize {
        sum([self.layers_weights(), count(&self.tables[..1])])
    }

    fn layers_weights(&self) -> usize {
        product([self.layers, sum(self.layer.iter().map(|group| count(group)))])
    }

    /// How often a step launches a linear: once for each group of a layer, and for the head.
    pub(super) fn launches(&self) -> usize {
        self.layers * self.layer.len() + 1
    }
}

/// Weights of `matrices`.
pub(super) fn count(matrices: &[[usize; 2]]) -> usize {
    sum(matrices.iter().copied().map(product))
}

/// Of whatever sizes a `config.json` has; what no memory could hold is the largest number.
fn product(sizes: [usize; 2]) -> usize {
    sizes[0].saturating_mul(sizes[1])
}

/// The same.
fn sum(sizes: impl IntoIterator<Item = usize>) -> usize {
    sizes.into_iter().fold(0, usize::saturating_add)
}
