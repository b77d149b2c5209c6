//! Sizes of memory as people write and read them.

use indicatif::{BinaryBytes, DecimalBytes};

/// Units, decimal ones as makers of memory use them, binary ones as drivers do.
const UNITS: [(&str, u64); 10] = [
    ("kib", 1 << 10),
    ("mib", 1 << 20),
    ("gib", 1 << 30),
    ("tib", 1 << 40),
    ("kb", 1_000),
    ("mb", 1_000_000),
    ("gb", 1_000_000_000),
    ("tb", 1_000_000_000_000),
    ("g", 1_000_000_000),
    ("t", 1_000_000_000_000),
];

/// `24GB`, `24 GiB`, `80G` (which is GB) to bytes.
pub(crate) fn parse(text: &str) -> Result<u64, String> {
    let wanted = || "wanted a size with its unit, such as 24GB (10^9 bytes) or 24GiB (2^30 bytes)".to_owned();
    let lower = text.trim().to_ascii_lowercase();
    let (number, unit) = UNITS
        .iter()
        .find_map(|(name, unit)| lower.strip_suffix(name).map(|number| (number.trim(), *unit)))
        .ok_or_else(wanted)?;
    let number: f64 = number.parse().map_err(|_| wanted())?;
    let bytes = number * unit as f64;
    match number > 0.0 && (1.0..1e18).contains(&bytes) {
        true => Ok(bytes.round() as u64),
        false => Err(wanted()),
    }
}

/// `1008GB/s` or `1008GB` to bytes a second.
pub(crate) fn parse_rate(text: &str) -> Result<u64, String> {
    parse(text.trim().trim_end_matches("/s"))
}

/// `24.00 GB (22.35 GiB)`.
pub(crate) fn both(bytes: u64) -> String {
    format!("{} ({})", DecimalBytes(bytes), BinaryBytes(bytes))
}

#[cfg(test)]
mod tests {
    use super::{both, parse, parse_rate};

    #[test]
    fn units_are_told_apart() {
        assert_eq!(parse("24GB"), Ok(24_000_000_000));
        assert_eq!(parse("24 GiB"), Ok(24 << 30));
        assert_eq!(parse("80G"), Ok(80_000_000_000));
        assert_eq!(parse("1.5tb"), Ok(1_500_000_000_000));
        assert_eq!(parse("512MiB"), Ok(512 << 20));
        assert_eq!(parse_rate("1008GB/s"), Ok(1_008_000_000_000));
        assert_eq!(both(24_000_000_000), "24.00 GB (22.35 GiB)");
    }

    #[test]
    fn what_is_no_size_is_refused() {
        for text in ["", "24", "GB", "-1GB", "0GB", "nanGB", "infGB", "1e30GB", "24XB", "24 G B"] {
            assert!(parse(text).unwrap_err().contains("24GiB"), "{text}");
        }
    }
}
