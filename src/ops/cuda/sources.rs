//! Which modules the operators on compressed weights are.

use tch::Kind;

use super::decode_to_scratch::decode_source;
use super::fused_linear::fused_sources;
use super::gather_rows::gather_rows_source;
use super::launch::Element;
use crate::codec::Layout;
use crate::cuda::{kernels, Source};
use crate::error::Result;

/// All that weights of this layout may need where the model computes in `kind`, to be compiled at once.
pub(crate) fn sources(layout: Layout, kind: Kind) -> Result<Vec<&'static Source>> {
    Ok(sources_of(layout, Element::of(kind, "model")?))
}

/// As [`sources`], for one of the kernels' elements. What takes longest to compile comes first: so all are done soonest.
pub(super) fn sources_of(layout: Layout, element: Element) -> Vec<&'static Source> {
    let mut sources: Vec<_> = fused_sources(layout).collect();
    sources.extend([decode_source(layout, element), gather_rows_source(layout), &kernels::ACTIVATIONS]);
    sources
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn every_operator_is_there_once_and_in_the_right_variant() {
        for layout in Layout::ALL {
            let name = format!("_{}", layout.name());
            let names: HashSet<&str> =
                sources(layout, Kind::BFloat16).unwrap().iter().map(|source| source.name).collect();
            assert_eq!(names.len(), fused_sources(layout).count() + 3);
            assert!(names.contains(format!("decode_to_scratch{name}_bf16").as_str()));
            assert!(names.iter().all(|other| *other == "activations.cu" || other.contains(&name)));
        }
        assert!(sources(Layout::Fast, Kind::Int64).is_err());
    }

    #[test]
    fn modules_are_begun_in_the_order_that_all_have() {
        let place = |source: &&Source| kernels::ALL.iter().position(|other| other == source);
        for layout in Layout::ALL {
            let sources = sources(layout, Kind::Half).unwrap();
            let (fused, others) = sources.split_at(fused_sources(layout).count());
            assert!(fused.iter().map(place).is_sorted(), "{fused:?}");
            assert!(others.iter().map(place).is_sorted());
            assert!(place(&fused[0]) < place(&others[0]));
        }
    }
}
