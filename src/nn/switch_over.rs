//! Up to how many rows of `x` a GPU multiplies a weight faster while decoding it than after: measured once for each shape, and
//! kept as long as the process runs.

use std::collections::HashMap;
use std::sync::{LazyLock, Mutex, PoisonError};
use std::time::Duration;

use tch::Kind;

use crate::codec::Layout;
use crate::cuda::EventTimer;
use crate::error::Result;
use crate::ops::cuda::MOST_ROWS;
use crate::ops::transformer::Launcher;

/// Before it was measured.
pub(crate) const DEFAULT_ROWS: usize = 16;

/// Up to so many rows fused is always faster: decoding for one row takes as long as for these.
const NEVER_MEASURED_BELOW: usize = 8;

/// Numbers of rows that take one step of time: a launch takes as long for any number up to one of these. Above the last it
/// decodes again, and scratch is faster.
const STEPS: [usize; 3] = [16, 32, MOST_ROWS];

/// Of each way, so that one disturbance does not decide.
const RUNS: usize = 5;

/// What the times depend on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Profile {
    pub(super) ordinal: usize,
    pub(super) shape: [usize; 2],
    pub(super) layout: Layout,
    /// Mean number of raw bits, in quarters.
    pub(super) quarter_raw_bits: usize,
    pub(super) kind: Kind,
}

static MEASURED: LazyLock<Mutex<HashMap<Profile, usize>>> = LazyLock::new(Mutex::default);

/// Whether `batch` rows need a measurement, or are clear without one.
pub(super) fn is_doubtful(batch: usize) -> bool {
    (NEVER_MEASURED_BELOW + 1..=MOST_ROWS).contains(&batch)
}

/// The rows up to which fused is faster, if that is known.
pub(super) fn known(profile: &Profile) -> Option<usize> {
    MEASURED.lock().unwrap_or_else(PoisonError::into_inner).get(profile).copied()
}

/// Measures on the launcher's stream, waits for it, and keeps the result. `takes` says whether the fused kernel takes so many
/// rows, the others launch the work for them.
pub(super) fn measure(
    profile: Profile,
    launcher: &Launcher,
    takes: impl Fn(usize) -> bool,
    fused: impl Fn(usize) -> Result<()>,
    scratch: impl Fn(usize) -> Result<()>,
) -> Result<usize> {
    let timer = EventTimer::new(launcher.device)?;
    let mut rows = NEVER_MEASURED_BELOW;
    for step in STEPS {
        let is_faster =
            || Ok(time(&timer, launcher, || fused(step))? <= time(&timer, launcher, || scratch(step))?);
        if !takes(step) || !is_faster()? {
            break;
        }
        rows = step;
    }
    // Where two threads measured, both go by the first result: a layer's numbers don't change once they are there.
    Ok(*MEASURED.lock().unwrap_or_else(PoisonError::into_inner).entry(profile).or_insert(rows))
}

/// The median time of some launches, after one that pays for what is only paid once.
fn time(timer: &EventTimer, launcher: &Launcher, launch: impl Fn() -> Result<()>) -> Result<Duration> {
    launch()?;
    let mut times = [Duration::ZERO; RUNS];
    for time in &mut times {
        timer.start(launcher.stream)?;
        launch()?;
        timer.stop(launcher.stream)?;
        *time = timer.elapsed()?;
    }
    times.sort_unstable();
    Ok(times[RUNS / 2])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_few_rows_are_doubtful() {
        assert!(![0, 1, 8, 65, 2048].into_iter().any(is_doubtful));
        assert!([9, 16, 64].into_iter().all(is_doubtful));
    }

    #[test]
    fn a_shape_that_was_not_measured_is_unknown() {
        let profile = Profile {
            ordinal: 99,
            shape: [1, 1],
            layout: Layout::Fast,
            quarter_raw_bits: 0,
            kind: Kind::Half,
        };
        assert_eq!(known(&profile), None);
    }
}
