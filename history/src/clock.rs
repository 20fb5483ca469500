//! The one clock of a history: monotonic, in µs since the run began. Every call and every return
//! is read off it in this one process, so that "before" means before.

use std::time::{Duration, Instant};

/// A clock that began when it was made.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock(Instant);

impl Clock {
    /// Begins at 0.
    #[expect(clippy::disallowed_methods, reason = "the one place that reads the machine's clock")]
    pub(crate) fn begin() -> Self {
        Self(Instant::now())
    }

    /// µs since the beginning.
    pub(crate) fn now_us(&self) -> u64 {
        u64::try_from(self.0.elapsed().as_micros()).unwrap_or(u64::MAX)
    }
}

/// A duration in µs.
pub(crate) fn us(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}
