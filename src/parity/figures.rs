//! The figures of a comparison as people read them.

use super::{LayerError, Report};

impl Report {
    /// How much larger the compressed model's perplexity is, in percent of the reference's.
    pub fn perplexity_change_percent(&self) -> f64 {
        (self.perplexity_compressed / self.perplexity_reference - 1.0) * 100.0
    }

    /// Name and value of each figure over the whole text.
    pub fn figures(&self) -> Vec<(&'static str, String)> {
        let apart = &self.divergence;
        let change = self.perplexity_change_percent();
        vec![
            ("scored", format!("{} tokens, {} windows of {}", self.tokens_scored, self.windows, self.window)),
            ("perplexity of the reference", format!("{:.4}", self.perplexity_reference)),
            ("perplexity of the compressed", format!("{:.4} ({change:+.2} %)", self.perplexity_compressed)),
            ("KL mean", nats(apart.kl_mean)),
            ("KL of 99 %", nats(apart.kl_p99)),
            ("KL most", nats(apart.kl_max)),
            ("same first token", percent(apart.top1_agreement)),
            ("same five likeliest tokens", percent(apart.top5_agreement)),
            ("weights of the reference", megabytes(self.weight_bytes_reference)),
            ("weights of the compressed", megabytes(self.weight_bytes_compressed)),
        ]
    }

    /// What is to be said of a layer beside its errors: `first steep rise`, `wrong by itself`, both, or nothing.
    pub fn remark(&self, error: &LayerError) -> String {
        let steepest = self.steepest_layer.as_ref() == Some(&error.layer);
        let conspicuous = self.conspicuous_layers.contains(&error.layer);
        let remarks = [(steepest, "first steep rise"), (conspicuous, "wrong by itself")];
        let remarks: Vec<_> = remarks.iter().filter(|(holds, _)| *holds).map(|(_, remark)| *remark).collect();
        remarks.join(", ")
    }

    /// How many answers agree, and where the first diverges.
    pub fn greedy_summary(&self) -> String {
        let agree = format!("{} of {} answers agree to the end", self.greedy_agreed, self.greedy.len());
        match self.greedy_first_divergence {
            None => agree,
            Some(token) => format!("{agree}; the first to diverge does so behind {token} tokens"),
        }
    }
}

fn nats(value: f64) -> String {
    format!("{value:.6} nats")
}

fn percent(share: f64) -> String {
    format!("{:.2} %", share * 100.0)
}

fn megabytes(bytes: usize) -> String {
    format!("{:.2} MB", bytes as f64 / 1e6)
}
