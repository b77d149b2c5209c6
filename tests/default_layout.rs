//! Where no layout is asked for, no matrix takes much more than the entropy of its grid, and any size is met.

mod tiny_llama;

use codecllm::checkpoint::{compress, CompressOptions, CompressReport, Target};
use codecllm::codec::Layout;
use tiny_llama::downloaded;

const EMBEDDING: &str = "model.embed_tokens.weight";

fn compressed(target: Target, layout: Option<Layout>) -> Option<CompressReport> {
    let model = downloaded("stories15M")?;
    let out = tempfile::tempdir().unwrap();
    let options = CompressOptions { target, layout, ..CompressOptions::default() };
    Some(compress(model, out.path().join("out"), &options, &mut |_| ()).unwrap())
}

/// The most that a matrix takes over the entropy of its grid, bits a weight.
fn most_over(report: &CompressReport) -> f64 {
    let over = report.tensors.iter().map(|tensor| {
        let stats = &tensor.stats;
        stats.bits_per_weight - stats.grid_entropy_bits.unwrap()
    });
    over.fold(0.0, f64::max)
}

#[test]
fn no_matrix_takes_much_more_than_the_entropy_of_its_grid() {
    for bits in [None, Some(3.5), Some(4.5), Some(5.5), Some(8.5)] {
        let Some(report) = compressed(bits.map_or(Target::Int8, Target::Bits), None) else { return };
        assert!(most_over(&report) <= 0.45, "{bits:?}: {:.3} bits over", most_over(&report));
        if let Some(bits) = bits {
            assert!(
                (report.bits_per_weight - bits).abs() <= 0.02,
                "{}, wanted {bits}",
                report.bits_per_weight
            );
        }
        // It holds vectors of tokens that were hardly trained, and is no bell.
        let embedding = report.tensors.iter().find(|tensor| tensor.tensor_path == EMBEDDING).unwrap();
        assert_eq!(embedding.layout, "small");
        let reason = embedding.layout_reason.as_ref().unwrap();
        assert!(reason.starts_with("fast takes 0."), "{reason}");
        let others = report.tensors.iter().filter(|tensor| tensor.layout == "fast");
        assert!(others.clone().count() > 0 && others.clone().all(|tensor| tensor.layout_reason.is_none()));
    }
}

#[test]
fn a_layout_that_was_asked_for_is_kept() {
    for bits in [3.5, 5.5] {
        let Some(report) = compressed(Target::Bits(bits), Some(Layout::Fast)) else { return };
        assert!(report
            .tensors
            .iter()
            .all(|tensor| tensor.layout == "fast" && tensor.layout_reason.is_none()));
        assert!((report.bits_per_weight - bits).abs() <= 0.02, "{}, wanted {bits}", report.bits_per_weight);
        assert!(most_over(&report) > 0.45, "{:.3} bits over", most_over(&report));
    }
}
