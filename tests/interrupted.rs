//! `compress`, `decompress` and `import` that cannot go on, or are killed: the output is not there or complete, and running again works.

mod faults;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use std::time::{Duration, Instant};

use codecllm::checkpoint::{compress, verify, CompressOptions, Writer};
use codecllm::gguf::{import, ImportOptions};
use faults::{run_with_fault, Fault};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use safetensors::Dtype;

const ENOSPC: i32 = 28;
const EIO: i32 = 5;
const SIGINT: i32 = 2;
const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;
/// More calls than any of these runs makes.
const MANY: usize = 200;

fn gguf_fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/smollm.gguf")
}

/// The files of a directory.
fn files(dir: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap());
    entries.map(|e| (e.file_name().into_string().unwrap(), fs::read(e.path()).unwrap())).collect()
}

/// What an import that nothing disturbs gives.
static IMPORTED: LazyLock<BTreeMap<String, Vec<u8>>> = LazyLock::new(|| {
    let parent = tempfile::tempdir().unwrap();
    let out = parent.path().join("out");
    import(gguf_fixture(), &out, &ImportOptions::default(), &mut |_| {}).unwrap();
    files(&out)
});

/// A verb with something to work on, in a folder of its own.
struct Job {
    parent: tempfile::TempDir,
    verb: &'static str,
    source: &'static str,
}

impl Job {
    /// Of a few small tensors.
    fn small(verb: &'static str) -> Self {
        let parent = tempfile::tempdir().unwrap();
        if verb == "import" {
            fs::copy(gguf_fixture(), parent.path().join("model.gguf")).unwrap();
            return Self { parent, verb, source: "model.gguf" };
        }
        let model = parent.path().join("model");
        let floats =
            |count: u32| -> Vec<u8> { (0..count).flat_map(|n| (n as f32).sin().to_le_bytes()).collect() };
        let mut writer = Writer::create(&model).unwrap();
        writer.add("m.norm.weight", Dtype::F32, &[7], &floats(7)).unwrap();
        writer.add("m.a.weight", Dtype::F32, &[17, 40], &floats(17 * 40)).unwrap();
        writer.add("m.a.bias", Dtype::F32, &[17], &floats(17)).unwrap();
        writer.write_file("config.json", b"{}").unwrap();
        writer.finish().unwrap();
        Self::of(parent, &model, verb)
    }

    /// Of a real model, if it is here.
    fn stories(verb: &'static str) -> Option<Self> {
        let model = Path::new(env!("CARGO_MANIFEST_DIR")).join(".cache/models/stories15M");
        if !model.join("config.json").exists() {
            eprintln!("SKIPPED: {} is absent; `make test` fetches it", model.display());
            return None;
        }
        let parent = tempfile::tempdir().unwrap();
        std::os::unix::fs::symlink(&model, parent.path().join("model")).unwrap();
        Some(Self::of(parent, &model, verb))
    }

    fn of(parent: tempfile::TempDir, model: &Path, verb: &'static str) -> Self {
        let source = if verb == "decompress" { "compressed" } else { "model" };
        if verb == "decompress" {
            compress(model, parent.path().join(source), &CompressOptions::default(), &mut |_| {}).unwrap();
        }
        Self { parent, verb, source }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.parent.path().join(name)
    }

    fn out(&self) -> PathBuf {
        self.path("out")
    }

    fn with_arguments<T>(&self, run: impl FnOnce(&[&str]) -> T) -> T {
        let (source, out) = (self.path(self.source), self.out());
        run(&[self.verb, source.to_str().unwrap(), "-o", out.to_str().unwrap()])
    }

    fn command(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_codecllm"));
        self.with_arguments(|arguments| command.args(arguments));
        command.stdout(Stdio::null()).stderr(Stdio::null());
        command
    }

    /// The names beside the output, hidden ones too.
    fn others(&self) -> Vec<String> {
        let entries = fs::read_dir(self.parent.path()).unwrap();
        let mut names: Vec<_> = entries.map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.retain(|name| name != "out");
        names.sort();
        names
    }

    /// The output is not there, or whole.
    fn assert_nothing_or_all(&self, when: &str) {
        if !self.out().exists() {
            return;
        }
        if self.verb == "import" {
            let (found, whole) = (files(&self.out()), &*IMPORTED);
            assert!(found == *whole, "{when}: {:?}", found.keys().collect::<Vec<_>>());
            return;
        }
        let against = (self.verb == "compress").then(|| self.path("model"));
        let (dir, original) = match self.verb {
            "compress" => (self.out(), against),
            // What comes out of `decompress` is an ordinary checkpoint: hold the container against it.
            _ => (self.path("compressed"), Some(self.out())),
        };
        let report = verify(dir, original.as_deref(), &mut |_| {}).unwrap();
        assert!(report.ok, "{when}: {report:?}");
    }

    /// After what happened, a run gives the output, and nothing else is left.
    fn assert_runs_again(&self, before: &[String], when: &str) {
        if !self.out().exists() {
            let status = self.command().status().unwrap();
            assert!(status.success(), "{when}: {status}");
        }
        self.assert_nothing_or_all(when);
        assert!(self.out().exists() && self.others() == before, "{when}: {:?}", self.others());
        fs::remove_dir_all(self.out()).unwrap();
    }
}

/// Every call that changes a file fails once, and from every call on the disk is full.
fn every_failing_call(verb: &'static str) {
    let job = Job::small(verb);
    let before = job.others();
    for (fault, messages) in [
        (Fault::Error(EIO), ["Input/output error", "(os error 5)"]),
        (Fault::Onward(ENOSPC), ["No space left on device (os error 28)", "; free some space"]),
    ] {
        let mut at = 1;
        loop {
            let run = job.with_arguments(|arguments| run_with_fault(arguments, job.parent.path(), at, fault));
            let stderr = String::from_utf8(run.stderr).unwrap();
            let when = format!("{verb}, {fault:?} at call {at}: {stderr}");
            job.assert_nothing_or_all(&when);
            assert_eq!(job.others(), before, "{when}");
            if run.status.success() {
                break;
            }
            assert_eq!(run.status.code(), Some(1), "{when}");
            let errors: Vec<&str> = stderr.lines().filter(|line| line.starts_with("error: ")).collect();
            let [error] = errors[..] else { panic!("{when}") };
            assert!(error.starts_with(&format!("error: {}", job.parent.path().display())), "{when}");
            assert!(messages.iter().all(|message| error.contains(message)), "{when}");
            if job.out().exists() {
                fs::remove_dir_all(job.out()).unwrap();
            }
            at += 1;
            assert!(at < MANY);
        }
        assert!(at > 10, "{verb} made {at} calls only: are they counted?");
        assert!(job.out().exists());
        fs::remove_dir_all(job.out()).unwrap();
    }
}

#[test]
fn compress_survives_every_failing_call() {
    every_failing_call("compress");
}

#[test]
fn decompress_survives_every_failing_call() {
    every_failing_call("decompress");
}

#[test]
fn import_survives_every_failing_call() {
    every_failing_call("import");
}

/// The process is killed before every call that changes a file.
fn every_killed_call(verb: &'static str) {
    let job = Job::small(verb);
    let before = job.others();
    for at in 1..MANY {
        let fault = Fault::Signal(SIGKILL);
        let run = job.with_arguments(|arguments| run_with_fault(arguments, job.parent.path(), at, fault));
        let when = format!("{verb}, killed at call {at}");
        job.assert_nothing_or_all(&when);
        if run.status.success() {
            assert!(at > 10, "{when}: are calls counted?");
            return;
        }
        assert_eq!(run.status.signal(), Some(SIGKILL), "{when}");
        job.assert_runs_again(&before, &when);
    }
    panic!("{verb} never came to its end");
}

#[test]
fn compress_survives_a_kill_at_every_call() {
    every_killed_call("compress");
}

#[test]
fn decompress_survives_a_kill_at_every_call() {
    every_killed_call("decompress");
}

#[test]
fn import_survives_a_kill_at_every_call() {
    every_killed_call("import");
}

#[test]
fn who_interrupts_finds_nothing_half_written() {
    for (verb, signal) in
        [("compress", SIGINT), ("decompress", SIGINT), ("compress", SIGTERM), ("import", SIGINT)]
    {
        let job = Job::small(verb);
        let before = job.others();
        for at in [2, 6, 9] {
            let fault = Fault::Signal(signal);
            let run = job.with_arguments(|arguments| run_with_fault(arguments, job.parent.path(), at, fault));
            let stderr = String::from_utf8_lossy(&run.stderr).into_owned();
            assert_eq!(run.status.signal(), Some(signal), "{verb} at call {at}: {stderr}");
            assert!(!job.out().exists() && job.others() == before, "{verb} at call {at}: {:?}", job.others());
            assert!(!stderr.contains("error"), "{stderr}");
        }
    }
}

#[test]
fn a_limit_on_the_size_of_files_is_named() {
    let job = Job::small("compress");
    // Where the signal is ignored, writing beyond the limit is an error.
    let script = "trap '' XFSZ; ulimit -f 1; exec \"$0\" \"$@\"";
    let run = job.with_arguments(|arguments| {
        Command::new("sh")
            .args(["-c", script, env!("CARGO_BIN_EXE_codecllm")])
            .args(arguments)
            .output()
            .unwrap()
    });
    let stderr = String::from_utf8(run.stderr).unwrap();
    assert_eq!(run.status.code(), Some(1), "{stderr}");
    assert!(stderr.contains("(os error 27); raise the limit on the size of files"), "{stderr}");
    assert_eq!(job.others(), ["model"]);
    assert!(!job.out().exists());
}

/// Kills runs on a real model at random moments.
fn random_kills(verb: &'static str, kills: usize, seed: u64) {
    let Some(job) = Job::stories(verb) else { return };
    let before = job.others();
    let start = Instant::now();
    assert!(job.command().status().unwrap().success());
    let whole = start.elapsed();
    fs::remove_dir_all(job.out()).unwrap();
    let mut rng = StdRng::seed_from_u64(seed);
    let (mut half_way, mut complete) = (0, 0);
    for kill in 0..kills {
        let after = Duration::from_secs_f64(whole.as_secs_f64() * rng.random_range(0.0..1.05));
        let mut child = job.command().spawn().unwrap();
        std::thread::sleep(after);
        child.kill().unwrap();
        child.wait().unwrap();
        let when = format!("{verb}, kill {kill} after {after:?} of {whole:?}");
        job.assert_nothing_or_all(&when);
        half_way += usize::from(job.others() != before);
        complete += usize::from(job.out().exists());
        job.assert_runs_again(&before, &when);
    }
    println!(
        "{verb}: {kills} kills, {half_way} of them half-way, {complete} after the end; all states clean"
    );
}

#[test]
fn compress_survives_kills_at_random_moments() {
    random_kills("compress", 5, 1);
}

#[test]
fn decompress_survives_kills_at_random_moments() {
    random_kills("decompress", 5, 2);
}

#[test]
#[ignore = "takes minutes: make kill-test"]
fn compress_survives_a_hundred_kills() {
    random_kills("compress", 100, 3);
}

#[test]
#[ignore = "takes minutes: make kill-test"]
fn decompress_survives_a_hundred_kills() {
    random_kills("decompress", 100, 4);
}
