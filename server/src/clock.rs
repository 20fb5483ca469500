//! Time and chance, the two things that tests must be able to hold still.
//!
//! The only file that reads a clock or asks for random bytes. Leases are measured on
//! `CLOCK_BOOTTIME`, which goes on while the machine sleeps (Rust's `Instant` does not). Rights
//! that end by date are judged by *database time*: what the database said at the last renewal plus
//! the boot-time elapsed since it was asked, so that a node whose wall clock is wrong is not wrong
//! about keys.

use std::cell::RefCell;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::civil::{DateTime, date};
use jiff::fmt::temporal::{DateTimeParser, DateTimePrinter};
use keyward_core::{Digest, sha256};

/// The clocks of this process; cheap to clone.
#[derive(Clone, Debug)]
pub struct Clock(Arc<Source>);

#[derive(Debug)]
enum Source {
    /// Microseconds to add to boot-time to get database time.
    System { database_minus_boot: AtomicI64 },
    /// A clock that stands still until it is told to move, in µs since the epoch.
    Manual { now: AtomicI64 },
}

impl Clock {
    /// The machine's clocks. Until a database has been asked, database time is the wall clock.
    pub fn system() -> Self {
        let offset = wall_us() - boot_us();
        Self(Arc::new(Source::System { database_minus_boot: AtomicI64::new(offset) }))
    }

    /// A clock for tests, standing at `now_us` µs since the Unix epoch.
    pub fn manual(now_us: i64) -> Self {
        Self(Arc::new(Source::Manual { now: AtomicI64::new(now_us) }))
    }

    /// Microseconds since boot, suspend included.
    pub fn boot_us(&self) -> i64 {
        match &*self.0 {
            Source::System { .. } => boot_us(),
            Source::Manual { now } => now.load(Ordering::Acquire),
        }
    }

    /// This machine's own idea of the date, in µs since the Unix epoch.
    pub fn wall_us(&self) -> i64 {
        match &*self.0 {
            Source::System { .. } => wall_us(),
            Source::Manual { now } => now.load(Ordering::Acquire),
        }
    }

    /// Database time in µs since the Unix epoch: what dates of keys are compared with.
    pub fn now_us(&self) -> i64 {
        match &*self.0 {
            Source::System { database_minus_boot } => {
                boot_us() + database_minus_boot.load(Ordering::Relaxed)
            }
            Source::Manual { now } => now.load(Ordering::Acquire),
        }
    }

    /// Takes over what the database said the time was, for a question asked at `asked_boot_us`.
    pub fn set_database_time(&self, database_us: i64, asked_boot_us: i64) {
        match &*self.0 {
            Source::System { database_minus_boot } => {
                database_minus_boot.store(database_us - asked_boot_us, Ordering::Relaxed);
            }
            Source::Manual { .. } => {}
        }
    }

    /// Moves a manual clock by `us` microseconds; a system clock cannot be moved.
    pub fn advance(&self, us: i64) {
        match &*self.0 {
            Source::System { .. } => {}
            Source::Manual { now } => {
                now.fetch_add(us, Ordering::AcqRel);
            }
        }
    }
}

fn boot_us() -> i64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    t.tv_sec * 1_000_000 + t.tv_nsec / 1_000
}

fn wall_us() -> i64 {
    let t = rustix::time::clock_gettime(rustix::time::ClockId::Realtime);
    t.tv_sec * 1_000_000 + t.tv_nsec / 1_000
}

/// A source of random bytes; cheap to clone.
#[derive(Clone, Debug)]
pub struct Entropy(Option<Arc<Mutex<u64>>>);

impl Entropy {
    /// The operating system's generator.
    pub fn system() -> Self {
        Self(None)
    }

    /// A generator for tests: the same seed gives the same bytes. Never for real secrets.
    pub fn seeded(seed: u64) -> Self {
        Self(Some(Arc::new(Mutex::new(seed << 32))))
    }

    /// `N` fresh random bytes.
    ///
    /// # Panics
    /// If the operating system cannot give random bytes: no secret may be made without them.
    pub fn bytes<const N: usize>(&self) -> [u8; N] {
        let mut out = [0; N];
        match &self.0 {
            None => aws_lc_rs::rand::fill(&mut out)
                .expect("the operating system's random generator works"),
            Some(counter) => {
                let mut counter = counter.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
                for chunk in out.chunks_mut(32) {
                    *counter += 1;
                    let block: Digest = sha256(&counter.to_be_bytes());
                    for (to, from) in chunk.iter_mut().zip(block.bytes()) {
                        *to = *from;
                    }
                }
            }
        }
        out
    }

    /// A UUIDv7's sixteen bytes (RFC 9562): 48 bits of `now_us` in milliseconds, then chance.
    pub fn id(&self, now_us: i64) -> [u8; 16] {
        let millis = u64::try_from(now_us / 1_000).unwrap_or(0);
        uuid::Builder::from_unix_timestamp_millis(millis, &self.bytes::<10>())
            .into_uuid()
            .into_bytes()
    }

    /// `N` random characters of `[0-9A-Za-z]`; each carries 5.95 bits.
    pub fn alphanumeric<const N: usize>(&self) -> String {
        const ALPHABET: &[u8; 62] =
            b"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";
        let mut text = String::with_capacity(N);
        while text.len() < N {
            // 248 = 4 × 62: a byte below it gives every character the same chance.
            for byte in self.bytes::<64>() {
                if byte < 248
                    && text.len() < N
                    && let Some(c) = ALPHABET.get(usize::from(byte % 62))
                {
                    text.push(char::from(*c));
                }
            }
        }
        text
    }
}

/// `us` µs since the epoch as RFC 3339 in UTC with milliseconds and `Z`.
pub fn rfc3339(us: i64) -> String {
    let mut text = Vec::with_capacity(24);
    write_rfc3339(us, &mut text);
    String::from_utf8(text).expect("a time is written in ASCII")
}

/// Appends `us` as [`rfc3339`] does, without allocating when `out` has 24 bytes of room.
///
/// Each thread keeps its last text and writes only the milliseconds anew within the same second:
/// most times that are written are the present.
pub fn write_rfc3339(us: i64, out: &mut Vec<u8>) {
    thread_local! {
        static LAST: RefCell<(i64, Vec<u8>)> = const { RefCell::new((i64::MIN, Vec::new())) };
    }
    let second = us.div_euclid(1_000_000);
    LAST.with_borrow_mut(|(of, text)| {
        if *of != second {
            *of = second;
            text.clear();
            print_rfc3339(us, text);
        } else if let Some([.., hundreds, tens, ones, _]) = text.get_mut(..) {
            // OK to truncate: each is one digit.
            let millis = us.rem_euclid(1_000_000) / 1_000;
            *hundreds = b'0' + (millis / 100) as u8;
            *tens = b'0' + (millis / 10 % 10) as u8;
            *ones = b'0' + (millis % 10) as u8;
        }
        out.extend_from_slice(text);
    });
}

fn print_rfc3339(us: i64, out: &mut Vec<u8>) {
    static PRINTER: DateTimePrinter = DateTimePrinter::new().precision(Some(3));
    match jiff::Timestamp::from_microsecond(us) {
        Ok(at) => PRINTER.print_timestamp(&at, out).expect("a vector takes every byte"),
        // The last hours of the year 9999, which a timestamp does not reach.
        Err(_) => {
            let before = (LAST_US - us).max(0);
            let at = DateTime::MAX.saturating_sub(jiff::SignedDuration::from_micros(before));
            PRINTER.print_datetime(&at, &mut *out).expect("a vector takes every byte");
            out.push(b'Z');
        }
    }
}

/// The last microsecond of the year 9999, the end of RFC 3339: 9999-12-31T23:59:59.999999Z.
pub(crate) const LAST_US: i64 = 253_402_300_799_999_999;

/// Reads an RFC 3339 time with any offset; µs since the epoch. An offset may carry it beyond the
/// years 0 to 9999; the caller says how far it may go.
pub fn parse_rfc3339(text: &str) -> Option<i64> {
    static PARSER: DateTimeParser = DateTimeParser::new();
    // `jiff::Timestamp` leaves room for every offset and ends 26 hours before the year 9999 does,
    // of which many write the last second for "never". The date and the offset go further.
    let pieces = PARSER.parse_pieces(text).ok()?;
    let offset = pieces.to_numeric_offset()?;
    let at = civil_us(pieces.date().to_datetime(pieces.time()?))?;
    Some(at - i64::from(offset.seconds()) * 1_000_000)
}

/// What a clock in UTC shows, in µs since the epoch.
fn civil_us(at: DateTime) -> Option<i64> {
    let since = at.duration_since(date(1970, 1, 1).at(0, 0, 0, 0));
    // Towards the past, as for a time with more digits after the epoch.
    i64::try_from(since.as_nanos().div_euclid(1_000)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_time_is_written_the_same_whatever_was_written_before(
            times in prop::collection::vec((0i64..3, 0i64..1_000_000), 1..20),
            first in -1_000_000_000i64..4_000_000_000,
        ) {
            for (second, us) in times {
                let at = (first + second) * 1_000_000 + us;
                let mut plain = Vec::new();
                print_rfc3339(at, &mut plain);
                prop_assert_eq!(rfc3339(at).into_bytes(), plain);
            }
        }
    }

    #[test]
    fn the_usual_never_is_read_and_written() {
        for (text, written) in [
            ("9999-12-31T23:59:59Z", "9999-12-31T23:59:59.000Z"),
            ("9999-12-31T23:59:59.999999999Z", "9999-12-31T23:59:59.999Z"),
            ("9999-12-31T00:00:00+14:00", "9999-12-30T10:00:00.000Z"),
            ("9999-12-30T22:00:01Z", "9999-12-30T22:00:01.000Z"),
            ("1969-12-31T23:59:59.9999999Z", "1969-12-31T23:59:59.999Z"),
            ("2016-12-31T23:59:60Z", "2016-12-31T23:59:59.000Z"),
        ] {
            let read = parse_rfc3339(text).expect(text);
            assert_eq!(rfc3339(read), written, "{text}");
            assert!(read <= LAST_US);
        }
        assert_eq!(parse_rfc3339("9999-12-31T23:59:59.999999Z"), Some(LAST_US));
        assert_eq!(rfc3339(i64::MAX), "9999-12-31T23:59:59.999Z");
        for text in ["", "9999-12-31", "9999-12-31T23:59:59", "10000-01-01T00:00:00Z", "never"] {
            assert_eq!(parse_rfc3339(text), None, "{text}");
        }
    }

    proptest! {
        #[test]
        fn a_time_is_read_as_a_timestamp_is(
            us in -62_135_596_800_000_000i64..253_402_200_000_000_000,
            minutes in -1_439i32..1_440,
        ) {
            let offset = jiff::tz::Offset::from_seconds(minutes * 60).expect("below a day");
            let at = jiff::Timestamp::from_microsecond(us).expect("within");
            let text = at.display_with_offset(offset).to_string();
            prop_assert_eq!(
                parse_rfc3339(&text),
                text.parse::<jiff::Timestamp>().ok().map(jiff::Timestamp::as_microsecond)
            );
        }
    }

    #[test]
    fn a_time_has_milliseconds_that_are_cut_and_not_rounded() {
        assert_eq!(rfc3339(1_795_402_709_000_999), "2026-11-23T02:58:29.000Z");
        assert_eq!(rfc3339(1_795_402_709_999_999), "2026-11-23T02:58:29.999Z");
        assert_eq!(rfc3339(-1), "1969-12-31T23:59:59.999Z");
    }
}
