//! Which modules the operators on compressed weights are.

use tch::Kind;

use super::decode_to_scratch::decode_source;
use super::fused_linear::fused_sources;
use super::gather_rows::gather_rows_source;
use super::launch::Element;
use super::layout::KernelLayout as Layout;
use crate::cuda::{kernels, Source};
use crate::error::Result;

/// All that weights of this layout may need where the model computes in `kind`, to be compiled at once.
pub(crate) fn sources(layout: Layout, kind: Kind) -> Result<Vec<&'static Source>> {
    Ok(sources_of(layout, Element::of(kind, "model")?))
}

/// As [`sources`], for one of the kernels' elements.
pub(super) fn sources_of(layout: Layout, element: Element) -> Vec<&'static Source> {
    let mut sources = vec![decode_source(layout, element)];
    sources.extend(fused_sources(layout));
    sources.extend([gather_rows_source(layout), &kernels::ACTIVATIONS]);
    sources
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_operator_is_there_once_and_in_the_right_variant() {
        for (layout, name) in [(Layout::Fast, "_fast"), (Layout::Small, "_small")] {
            let names: HashSet<&str> =
                sources(layout, Kind::BFloat16).unwrap().iter().map(|source| source.name).collect();
            assert_eq!(names.len(), 7);
            assert!(names.contains(format!("decode_to_scratch{name}_bf16").as_str()));
            assert!(names.iter().all(|other| *other == "activations.cu" || other.contains(name)));
        }
        assert!(sources(Layout::Fast, Kind::Int64).is_err());
    }
}
