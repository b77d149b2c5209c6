//! Prometheus's text format.

use std::fmt::{Display, Write};

/// The content type of the format.
pub(super) const CONTENT_TYPE: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Metrics, written one behind the other.
#[derive(Debug, Default)]
pub(super) struct Exposition(String);

impl Exposition {
    /// A number that goes up and down.
    pub(super) fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "gauge", help);
        self.sample(name, "", value);
    }

    /// A number that goes up only; its name ends with `_total`.
    pub(super) fn counter(&mut self, name: &str, help: &str, value: impl Display) {
        self.family(name, "counter", help);
        self.sample(name, "", value);
    }

    /// One counter for each value of `label`.
    pub(super) fn counters<L: Display, V: Display>(
        &mut self,
        name: &str,
        help: &str,
        label: &str,
        values: impl IntoIterator<Item = (L, V)>,
    ) {
        self.family(name, "counter", help);
        for (which, value) in values {
            self.sample(name, &format!("{{{label}=\"{which}\"}}"), value);
        }
    }

    /// Observations by upper bound, each bucket holding those of the ones before; the last is unbounded.
    pub(super) fn histogram(
        &mut self,
        name: &str,
        help: &str,
        cumulative: impl IntoIterator<Item = (f64, u64)>,
        sum: f64,
        count: u64,
    ) {
        self.family(name, "histogram", help);
        let bucket = format!("{name}_bucket");
        for (bound, observations) in cumulative {
            self.sample(&bucket, &format!("{{le=\"{bound}\"}}"), observations);
        }
        self.sample(&bucket, "{le=\"+Inf\"}", count);
        self.sample(&format!("{name}_sum"), "", sum);
        self.sample(&format!("{name}_count"), "", count);
    }

    /// The text.
    pub(super) fn finish(self) -> String {
        self.0
    }

    fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing to a String does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn sample(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ = writeln!(self.0, "{name}{labels} {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_family_has_its_help_type_and_samples() {
        let mut text = Exposition::default();
        text.gauge("a_bytes", "Bytes.", 7);
        text.counters("b_total", "By status.", "status", [(200, 3), (404, 1)]);
        text.histogram("c_seconds", "Times.", [(0.5, 1), (1.0, 3)], 4.25, 4);
        let wanted = "# HELP a_bytes Bytes.\n# TYPE a_bytes gauge\na_bytes 7\n\
            # HELP b_total By status.\n# TYPE b_total counter\nb_total{status=\"200\"} 3\nb_total{status=\"404\"} 1\n\
            # HELP c_seconds Times.\n# TYPE c_seconds histogram\nc_seconds_bucket{le=\"0.5\"} 1\n\
            c_seconds_bucket{le=\"1\"} 3\nc_seconds_bucket{le=\"+Inf\"} 4\nc_seconds_sum 4.25\nc_seconds_count 4\n";
        assert_eq!(text.finish(), wanted);
    }
}
