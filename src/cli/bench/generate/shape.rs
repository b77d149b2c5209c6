//! The shapes of known models.

use clap::ValueEnum;
use codecllm::model::{LlamaConfig, RopeScaling};

/// A model whose shape is known.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub(in super::super) enum Shape {
    /// stories15M
    #[value(name = "15m")]
    Stories15M,
    /// Llama-3.2-1B
    #[value(name = "1b")]
    Llama1B,
    /// Llama-3.1-8B
    #[value(name = "8b")]
    Llama8B,
}

impl Shape {
    pub(in super::super) fn name(self) -> &'static str {
        match self {
            Self::Stories15M => "15m",
            Self::Llama1B => "1b",
            Self::Llama8B => "8b",
        }
    }

    pub(in super::super) fn config(self) -> LlamaConfig {
        match self {
            Self::Stories15M => stories_15m(),
            Self::Llama1B => llama_1b(),
            Self::Llama8B => llama_8b(),
        }
    }
}

fn llama_8b() -> LlamaConfig {
    LlamaConfig {
        vocab_size: 128_256,
        hidden_size: 4096,
        intermediate_size: 14336,
        num_hidden_layers: 32,
        num_attention_heads: 32,
        num_key_value_heads: 8,
        head_dim: 128,
        max_position_embeddings: 131_072,
        rms_norm_eps: 1e-5,
        rope_theta: 500_000.0,
        rope_scaling: RopeScaling::Llama3 {
            factor: 8.0,
            low_freq_factor: 1.0,
            high_freq_factor: 4.0,
            original_context: 8192.0,
        },
        attention_bias: false,
        mlp_bias: false,
        tie_word_embeddings: false,
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
        ..llama_8b()
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
        ..llama_8b()
    }
}
