//! What operators see of a running server: log lines and metrics.
//!
//! Logs go to standard error. A management request leaves one line with fixed fields; a
//! verification leaves none, since there are thousands a second. Metrics are counters of this
//! process in the Prometheus text format; none has a key, a user or an address as a label.

use std::fmt::Write as _;
use std::io::IsTerminal as _;
use std::sync::atomic::{AtomicU64, Ordering};

use keyward_core::Refusal;
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::format::FmtSpan;

use crate::App;
use crate::http::denied::{Denied, Inbox};

/// Sends logs to standard error, as text or as JSON, filtered by `filter`.
pub fn start_logging(filter: &str, json: bool) {
    let filter = EnvFilter::try_new(filter).unwrap_or_else(|_| EnvFilter::new("info"));
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_span_events(FmtSpan::NONE)
        .with_ansi(std::io::stderr().is_terminal())
        .with_writer(std::io::stderr);
    // OK to ignore: a second start in one process, as in tests, keeps the first.
    let _ = if json { builder.json().try_init() } else { builder.try_init() };
}

/// Counters of this process.
pub struct Metrics {
    valid: AtomicU64,
    refused: [AtomicU64; Refusal::ALL.len()],
    unavailable: AtomicU64,
    requests: [AtomicU64; 6],
    tokens_issued: AtomicU64,
    sign_ins_failed: AtomicU64,
    connections_refused: AtomicU64,
    /// Records of denied calls.
    pub(crate) denied: Denied,
}

impl Metrics {
    /// All zero, and the ends from which records of denied calls are written.
    pub(crate) fn new() -> (Self, Inbox) {
        let (denied, inbox) = Denied::new();
        let this = Self {
            valid: AtomicU64::new(0),
            refused: [const { AtomicU64::new(0) }; Refusal::ALL.len()],
            unavailable: AtomicU64::new(0),
            requests: [const { AtomicU64::new(0) }; 6],
            tokens_issued: AtomicU64::new(0),
            sign_ins_failed: AtomicU64::new(0),
            connections_refused: AtomicU64::new(0),
            denied,
        };
        (this, inbox)
    }

    /// A verification was answered `Valid`.
    #[inline]
    pub(crate) fn verified(&self) {
        self.valid.fetch_add(1, Ordering::Relaxed);
    }

    /// A verification was answered `Refused`.
    #[inline]
    pub(crate) fn refused(&self, refusal: Refusal) {
        if let Some(counter) = self.refused.get(refusal as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A verification could not be answered.
    pub(crate) fn unavailable(&self) {
        self.unavailable.fetch_add(1, Ordering::Relaxed);
    }

    /// A management request was answered with `status`.
    pub(crate) fn answered(&self, status: u16) {
        if let Some(counter) = self.requests.get(usize::from(status / 100)) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// A management token was given out.
    pub(crate) fn token_issued(&self) {
        self.tokens_issued.fetch_add(1, Ordering::Relaxed);
    }

    /// A sign-in of an application failed.
    pub(crate) fn sign_in_failed(&self) {
        self.sign_ins_failed.fetch_add(1, Ordering::Relaxed);
    }

    /// A connection was closed because its address has too many.
    pub(crate) fn connection_refused(&self) {
        self.connections_refused.fetch_add(1, Ordering::Relaxed);
    }

    /// Everything in the Prometheus text format 0.0.4.
    pub(crate) fn render(&self, app: &App) -> String {
        let mut text = String::with_capacity(4 * 1024);
        let mut family = |name: &str, kind: &str, help: &str, samples: &[(String, i128)]| {
            // OK to ignore: writing to a string cannot fail.
            let _ = writeln!(text, "# HELP {name} {help}\n# TYPE {name} {kind}");
            for (labels, value) in samples {
                let _ = writeln!(text, "{name}{labels} {value}");
            }
        };
        let load = |counter: &AtomicU64| i128::from(counter.load(Ordering::Relaxed));
        let mut verdicts = vec![(label("verdict", "API_KEY_VERIFIED"), load(&self.valid))];
        for (refusal, counter) in Refusal::ALL.iter().zip(&self.refused) {
            verdicts.push((label("verdict", refusal.code()), load(counter)));
        }
        let one = |value: i128| [(String::new(), value)];
        family(
            "keyward_verifications_total",
            "counter",
            "Verifications answered, by verdict.",
            &verdicts,
        );
        family(
            "keyward_verifications_unavailable_total",
            "counter",
            "Verifications answered 503, because no lease was held or a restore waits.",
            &one(load(&self.unavailable)),
        );
        let requests: Vec<(String, i128)> = self
            .requests
            .iter()
            .enumerate()
            .skip(2)
            .map(|(class, counter)| (label("class", &format!("{class}xx")), load(counter)))
            .collect();
        family(
            "keyward_requests_total",
            "counter",
            "Requests other than verifications, by class of status.",
            &requests,
        );
        family(
            "keyward_tokens_issued_total",
            "counter",
            "Management tokens given out.",
            &one(load(&self.tokens_issued)),
        );
        family(
            "keyward_sign_ins_failed_total",
            "counter",
            "Sign-ins of applications that failed.",
            &one(load(&self.sign_ins_failed)),
        );
        family(
            "keyward_connections_refused_total",
            "counter",
            "Connections closed because their address had as many as it may have.",
            &one(load(&self.connections_refused)),
        );
        family(
            "keyward_denied_records_dropped_total",
            "counter",
            "Records of denied calls that did not fit the queues or repeated one.",
            &one(i128::from(self.denied.dropped())),
        );
        family(
            "keyward_keys",
            "gauge",
            "Keys in the table that verification reads.",
            &one(app.key_count() as i128),
        );
        family(
            "keyward_applied_seq",
            "gauge",
            "The last change that was applied to the table.",
            &one(i128::from(app.shared.followed.borrow().applied)),
        );
        family(
            "keyward_lease_margin_microseconds",
            "gauge",
            "What is left of the lease; verification answers 503 at 0.",
            &one(i128::from(app.shared.lease.margin_us(app.clock()))),
        );
        family(
            "keyward_counts_at_risk",
            "gauge",
            "1 while a crash could lose counts, because the counter file cannot be written.",
            &one(i128::from(app.counting.is_at_risk())),
        );
        text
    }
}

fn label(name: &str, value: &str) -> String {
    format!("{{{name}=\"{value}\"}}")
}
