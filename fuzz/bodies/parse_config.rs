//! A `config.json` from a stranger.

use std::path::Path;

use codecllm::model::LlamaConfig;

pub fn run(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else { return };
    let Ok(config) = LlamaConfig::from_json(text, "config.json") else { return };
    assert!(config.num_attention_heads > 0 && config.hidden_size > 0 && config.vocab_size > 0);
}

#[allow(dead_code, reason = "libFuzzer reads its seeds from a folder")]
pub fn seeds(_root: &Path) -> Vec<Vec<u8>> {
    let plain = r#"{"architectures":["LlamaForCausalLM"],"model_type":"llama","hidden_act":"silu","hidden_size":24,
        "intermediate_size":40,"num_hidden_layers":2,"num_attention_heads":4,"num_key_value_heads":2,"head_dim":8,"vocab_size":50,
        "max_position_embeddings":2048,"rms_norm_eps":1e-5,"rope_theta":100.0,"attention_bias":true,"mlp_bias":true,
        "tie_word_embeddings":false,"torch_dtype":"bfloat16"}"#;
    let scaled = plain.replacen(
        '{',
        r#"{"rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,
        "original_max_position_embeddings":64},"#,
        1,
    );
    vec![plain.as_bytes().to_vec(), scaled.into_bytes()]
}
