//! Progress of long work, shown on a terminal and nowhere else.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::IsTerminal;
use std::sync::Mutex;

/// Shows how far something long has come, on standard error, if that is a terminal.
#[derive(Debug)]
pub struct Progress {
    shown: bool,
    bar: Mutex<Option<ProgressBar>>,
}

impl Progress {
    /// Shows progress if somebody can see it.
    pub fn on_terminal() -> Self {
        Self { shown: std::io::stderr().is_terminal(), bar: Mutex::new(None) }
    }

    /// Shows nothing.
    pub fn silent() -> Self {
        Self { shown: false, bar: Mutex::new(None) }
    }

    /// Begins a piece of work of `total` steps.
    pub fn begin(&self, what: &'static str, total: i64) {
        if !self.shown {
            return;
        }
        let bar = ProgressBar::new(u64::try_from(total).unwrap_or(0));
        let style = ProgressStyle::with_template("{msg} {wide_bar} {pos}/{len} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(what);
        *self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner) = Some(bar);
    }

    /// `steps` more are done.
    pub fn advance(&self, steps: usize) {
        let bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        if let Some(bar) = &*bar {
            bar.inc(steps as u64);
        }
    }

    /// The piece of work is done; its bar disappears.
    pub fn end(&self) {
        let bar = self.bar.lock().unwrap_or_else(std::sync::PoisonError::into_inner).take();
        if let Some(bar) = bar {
            bar.finish_and_clear();
        }
    }
}
