//! What control groups leave of the memory: in a container it is they that end a process which takes more.

use std::path::Path;

/// What the groups of a process leave to it, bytes: the least of its own and of those above. `root` is where version 2 of them is
/// mounted, `own` what `/proc/self/cgroup` says. `None` where nothing limits it.
pub(super) fn available_bytes(root: &Path, own: &str) -> Option<u64> {
    let path = own.lines().find_map(|line| line.strip_prefix("0::/"))?;
    let group = root.join(path);
    group.ancestors().take_while(|group| group.starts_with(root)).filter_map(left_in).min()
}

/// Files that were read count as used, but are forgotten when the memory is wanted.
fn left_in(group: &Path) -> Option<u64> {
    let text = |name: &str| std::fs::read_to_string(group.join(name)).ok();
    let number = |name: &str| text(name)?.trim().parse::<u64>().ok();
    // "max" where there is no limit.
    let (limit, used) = (number("memory.max")?, number("memory.current")?);
    let stat = text("memory.stat").unwrap_or_default();
    let files = ["inactive_file ", "active_file "].map(|field| {
        let value = stat.lines().find_map(|line| line.strip_prefix(field));
        value.and_then(|value| value.parse().ok()).unwrap_or(0)
    });
    let files = files.into_iter().fold(0, u64::saturating_add);
    Some(limit.saturating_sub(used.saturating_sub(files)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn write(group: &Path, max: &str, current: &str, stat: Option<&str>) {
        std::fs::create_dir_all(group).unwrap();
        for (name, text) in [("max", Some(max)), ("current", Some(current)), ("stat", stat)] {
            if let Some(text) = text {
                std::fs::write(group.join(format!("memory.{name}")), text).unwrap();
            }
        }
    }

    #[test]
    fn the_tightest_group_counts() {
        let root = tempfile::tempdir().unwrap();
        let root = root.path();
        let available = |own: &str| available_bytes(root, own);
        assert_eq!(available("0::/a/b\n"), None, "there are no groups");
        write(&root.join("a/b"), "max\n", "500\n", None);
        assert_eq!(available("0::/a/b\n"), None, "none of them has a limit");
        write(&root.join("a"), "1000\n", "600\n", None);
        assert_eq!(available("0::/a/b\n"), Some(400), "the one above counts");
        write(&root.join("a/b"), "700\n", "500\n", None);
        assert_eq!(available("12:memory:/x\n0::/a/b\n"), Some(200));
        assert_eq!(available("0::/a\n"), Some(400));
        // As in a container, which sees its own group as the root.
        write(root, "300\n", "400\n", None);
        assert_eq!(available("0::/\n"), Some(0), "more than the limit is used");
        assert_eq!(available("0::/a/b\n"), Some(0));
        assert_eq!([available(""), available("12:memory:/x\n")], [None; 2], "version 1");
    }

    #[test]
    fn files_that_were_read_are_no_use_of_memory() {
        let root = tempfile::tempdir().unwrap();
        let stat = "anon 250\nfile 620\ninactive_anon 5\ninactive_file 500\nactive_file 100\n";
        write(root.path(), "1000\n", "900\n", Some(stat));
        assert_eq!(available_bytes(root.path(), "0::/\n"), Some(700));
    }
}
