//! Ctrl-C and its kin: what is half-written goes, then the process ends as the signal would have ended it.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;

use anyhow::{Context, Result};
use codecllm::checkpoint::remove_unfinished;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
use signal_hook::iterator::Signals;
use signal_hook::low_level::emulate_default_handler;

static ENDING: AtomicBool = AtomicBool::new(false);

/// From now on a signal that ends the process removes unfinished outputs first. One that was ignored from the start
/// (`nohup`) is answered too.
pub(crate) fn clean_up() -> Result<()> {
    let mut signals = Signals::new([SIGINT, SIGTERM, SIGHUP]).context("signals: can't be watched")?;
    let watch = move || {
        if let Some(signal) = signals.forever().next() {
            ENDING.store(true, Ordering::SeqCst);
            remove_unfinished();
            if emulate_default_handler(signal).is_err() {
                std::process::abort();
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(watch).context("signals: can't be watched")?;
    Ok(())
}

/// Where a signal is about to end the process, waits for that: an output that went away is no error to report.
pub(crate) fn wait_if_ending() {
    while ENDING.load(Ordering::SeqCst) {
        thread::park();
    }
}

/// Waits for the first SIGINT or SIGTERM from now on; the second ends the process as if nobody listened.
#[cfg(feature = "serve")]
pub(crate) fn asked_to_end() -> Result<impl std::future::Future<Output = ()>> {
    let mut signals = Signals::new([SIGINT, SIGTERM]).context("signals: can't be watched")?;
    let (asked, end) = tokio::sync::oneshot::channel();
    let watch = move || {
        let mut signals = signals.forever();
        if signals.next().is_some() {
            let _ = asked.send(());
        }
        if let Some(signal) = signals.next() {
            if emulate_default_handler(signal).is_err() {
                std::process::abort();
            }
        }
    };
    thread::Builder::new().name("signals".to_owned()).spawn(watch).context("signals: can't be watched")?;
    Ok(async move {
        // The thread lives as long as the process: no error comes.
        let _ = end.await;
    })
}
