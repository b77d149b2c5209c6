//! The shapes of known models.

use clap::ValueEnum;
use codecllm::model::{LlamaConfig, RopeScaling};

/// A model whose shape is known.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(crate) enum Shape {
    /// stories15M
    #[value(name = "15m")]
    Stories15M,
    /// Llama-3.2-1B
    #[value(name = "1b")]
    Llama1B,
    /// Llama-3.2-3B
    #[value(name = "3b")]
    Llama3B,
    /// Llama-3.1-8B
    #[value(name = "8b")]
    Llama8B,
    /// Llama-2-13B
    #[value(name = "13b")]
    Llama13B,
    /// CodeLlama-34B
    #[value(name = "34b")]
    Llama34B,
    /// Llama-3.1-70B
    #[value(name = "70b")]
    Llama70B,
}

impl Shape {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Stories15M => "15m",
            Self::Llama1B => "1b",
            Self::Llama3B => "3b",
            Self::Llama8B => "8b",
            Self::Llama13B => "13b",
            Self::Llama34B => "34b",
            Self::Llama70B => "70b",
        }
    }

    pub(crate) fn config(self) -> LlamaConfig {
        match self {
            Self::Stories15M => stories_15m(),
            Self::Llama1B => llama_1b(),
            Self::Llama3B => llama_3b(),
            Self::Llama8B => LlamaConfig::llama_3_1_8b(),
            Self::Llama13B => llama_13b(),
            Self::Llama34B => llama_34b(),
            Self::Llama70B => llama_70b(),
        }
    }
}

fn llama_1b() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 2048,
        intermediate_size: 8192,
        num_hidden_layers: 16,
        head_dim: 64,
        rope_scaling: RopeScaling::Llama3 {
            factor: 32.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        },
        tie_word_embeddings: true,
        ..LlamaConfig::llama_3_1_8b()
    }
}

fn llama_3b() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 3072,
        num_hidden_layers: 28,
        num_attention_heads: 24,
        head_dim: 128,
        ..llama_1b()
    }
}

fn llama_13b() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 32000,
        hidden_size: 5120,
        intermediate_size: 13824,
        num_hidden_layers: 40,
        num_attention_heads: 40,
        num_key_value_heads: 40,
        max_position_embeddings: 4096,
        rope_theta: 10000.0,
        rope_scaling: RopeScaling::Default,
        ..LlamaConfig::llama_3_1_8b()
    }
}

fn llama_34b() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 32000,
        hidden_size: 8192,
        intermediate_size: 22016,
        num_hidden_layers: 48,
        num_attention_heads: 64,
        max_position_embeddings: 16384,
        rope_theta: 1e6,
        rope_scaling: RopeScaling::Default,
        ..LlamaConfig::llama_3_1_8b()
    }
}

fn llama_70b() -> LlamaConfig {
    LlamaConfig {
        hidden_size: 8192,
        intermediate_size: 28672,
        num_hidden_layers: 80,
        num_attention_heads: 64,
        ..LlamaConfig::llama_3_1_8b()
    }
}

fn stories_15m() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 32000,
        hidden_size: 288,
        intermediate_size: 768,
        num_hidden_layers: 6,
        num_attention_heads: 6,
        num_key_value_heads: 6,
        head_dim: 48,
        max_position_embeddings: 256,
        rope_theta: 10000.0,
        rope_scaling: RopeScaling::Default,
        tie_word_embeddings: true,
        ..LlamaConfig::llama_3_1_8b()
    }
}

#[cfg(test)]
mod tests {
    use codecllm::plan::ModelShape;

    use super::Shape;

    #[test]
    fn the_shapes_have_their_models_weights() {
        let weights = |shape: Shape| ModelShape::of(&shape.config()).weights();
        assert_eq!(weights(Shape::Stories15M), 15_191_712);
        assert_eq!(weights(Shape::Llama1B), 1_235_814_400);
        assert_eq!(weights(Shape::Llama3B), 3_212_749_824);
        assert_eq!(weights(Shape::Llama8B), 8_030_261_248);
        assert_eq!(weights(Shape::Llama13B), 13_015_864_320);
        assert_eq!(weights(Shape::Llama34B), 33_743_970_304);
        assert_eq!(weights(Shape::Llama70B), 70_553_706_496);
    }
}
