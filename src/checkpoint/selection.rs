//! Which tensors of a checkpoint are compressed.

use std::collections::HashSet;

use globset::{Glob, GlobSet, GlobSetBuilder};
use safetensors::Dtype;

use super::{Reader, TensorInfo};
use crate::error::{Error, Result};

/// The tensor path of a Llama's embedding, whose rows are looked up one by one.
pub(super) const EMBEDDING: &str = "model.embed_tokens.weight";

/// The tensor paths to compress: matrices in a float dtype that are somebody's `weight`, are matched by one of
/// `include` (if any is given) and by none of `exclude`.
///
/// Errors for a pattern that is not a glob or matches no such matrix: it would be a typing error otherwise unnoticed.
pub(super) fn select(reader: &Reader, include: &[String], exclude: &[String]) -> Result<HashSet<String>> {
    let candidates: Vec<&str> = reader
        .names()
        .filter(|name| reader.info(name).is_some_and(|info| can_compress(name, info)))
        .collect();
    let filter = PathFilter::new(include, exclude, &candidates)?;
    Ok(candidates
        .into_iter()
        .filter(|name| filter.includes(name) && !filter.excludes(name))
        .map(str::to_owned)
        .collect())
}

/// Globs over full tensor paths.
pub(crate) struct PathFilter {
    /// None: everything.
    included: Option<GlobSet>,
    excluded: GlobSet,
}

impl PathFilter {
    /// Errors for a pattern that is not a glob or matches none of `candidates`: it would be a typing error otherwise unnoticed.
    pub(crate) fn new(include: &[String], exclude: &[String], candidates: &[&str]) -> Result<Self> {
        let included = glob_set("--include", include, candidates)?;
        let excluded = glob_set("--exclude", exclude, candidates)?;
        Ok(Self { included: (!include.is_empty()).then_some(included), excluded })
    }

    /// Whether everything, or a pattern that `path` matches, is included.
    pub(crate) fn includes(&self, path: &str) -> bool {
        self.included.as_ref().is_none_or(|included| included.is_match(path))
    }

    /// Whether `path` matches a pattern that is excluded.
    pub(crate) fn excludes(&self, path: &str) -> bool {
        self.excluded.is_match(path)
    }
}

fn can_compress(name: &str, info: &TensorInfo) -> bool {
    name.ends_with(".weight")
        && info.shape.len() == 2
        && info.bytes > 0
        && matches!(info.dtype, Dtype::F32 | Dtype::F16 | Dtype::BF16)
}

fn glob_set(option: &str, patterns: &[String], candidates: &[&str]) -> Result<GlobSet> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        let subject = format!("{option} {pattern}");
        let glob = Glob::new(pattern)
            .map_err(|e| Error::invalid(&*subject, format!("is not a glob: {}", e.kind())).with_source(e))?;
        let matcher = glob.compile_matcher();
        if !candidates.iter().any(|name| matcher.is_match(name)) {
            return Err(Error::invalid(
                subject,
                "matches no matrix of the model (tensor paths look like model.layers.0.mlp.up_proj.weight)",
            ));
        }
        set.add(glob);
    }
    set.build().map_err(|e| Error::invalid(option, e.to_string()).with_source(e))
}
