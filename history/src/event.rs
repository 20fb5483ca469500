//! What a history consists of, one JSON object a line.
//!
//! A line is a whole operation with the times of its call and its return on the one clock; an
//! operation without a return time was never answered, and may take effect at any time after its
//! call. Lines stand in the order in which they became known, which is not the order of the calls.

use std::fmt;
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::Path;
use std::sync::{Mutex, PoisonError};

use serde::{Deserialize, Serialize};

/// One line.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(crate) enum Event {
    /// The first line.
    Run(Run),
    /// A question about a key.
    Verify(Verify),
    /// A change, or one attempt at it.
    Change(Change),
    /// Something that was done to a node or to the database.
    Fault(Fault),
    /// What a key's count was in the end.
    Count(Count),
    /// Something that should never happen, seen by the run itself.
    Odd(Odd),
}

/// What was run.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Run {
    pub(crate) seed: u64,
    pub(crate) seconds: u64,
    pub(crate) nodes: usize,
    /// The nodes' L.
    pub(crate) lease_us: u64,
    /// What a commit may take, with the wait for its turn.
    pub(crate) commit_us: u64,
    /// What a narrowing change may take beyond its commit and L × 1.01: the way there and back, and
    /// a busy machine.
    pub(crate) slack_us: u64,
}

/// A question about a key.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Verify {
    pub(crate) node: usize,
    /// Whose secret it was.
    pub(crate) key: usize,
    /// Which of the key's secrets: 0 is the first, each rotation makes the next.
    pub(crate) secret: usize,
    pub(crate) call_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) return_us: Option<u64>,
    pub(crate) answer: Answer,
    /// `verification_count` of a valid answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) count: Option<u64>,
}

/// What a verification was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Answer {
    Valid,
    Revoked,
    Rotated,
    Inactive,
    OwnerSuspended,
    /// The node does not know the secret.
    Invalid,
    /// 503: the node has no lease, or no keys yet.
    Unavailable,
    /// No whole answer came.
    Lost,
    /// Anything else; an `odd` line says what.
    Odd,
}

/// What a change does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Kind {
    Create,
    Revoke,
    Rotate,
    Disable,
    Enable,
    Suspend,
    Restore,
    DeleteUser,
}

impl Kind {
    /// Whether it takes something away, so that its acknowledgement is a promise.
    pub(crate) fn narrows(self) -> bool {
        match self {
            Kind::Revoke | Kind::Rotate | Kind::Disable | Kind::Suspend | Kind::DeleteUser => true,
            Kind::Create | Kind::Enable | Kind::Restore => false,
        }
    }
}

impl Run {
    /// L × 1.01: how long a change waits at most for a node that is gone.
    pub(crate) fn longest_wait_us(&self) -> u64 {
        self.lease_us + self.lease_us / 100
    }

    /// What a narrowing change may take as its caller sees it.
    pub(crate) fn bound_us(&self) -> u64 {
        self.commit_us + self.longest_wait_us() + self.slack_us
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kind::Create => "create",
            Kind::Revoke => "revoke",
            Kind::Rotate => "rotate",
            Kind::Disable => "disable",
            Kind::Enable => "enable",
            Kind::Suspend => "suspend",
            Kind::Restore => "restore",
            Kind::DeleteUser => "delete_user",
        })
    }
}

/// One attempt at a change.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Change {
    pub(crate) kind: Kind,
    pub(crate) node: usize,
    /// The key's owner.
    pub(crate) user: usize,
    /// Absent when the change is about the user and all the user's keys.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) key: Option<usize>,
    /// Of a rotation: the newest secret that it ends, so that its reply holds the next.
    #[serde(default)]
    pub(crate) secret: usize,
    /// 0 for the first attempt.
    pub(crate) attempt: u32,
    /// Whether every attempt carries the same `Idempotency-Key`.
    pub(crate) idempotent: bool,
    /// How long the client waited, be it for the answer, until it gave up, or until the connection
    /// broke.
    pub(crate) waited_us: u64,
    pub(crate) call_us: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) return_us: Option<u64>,
    /// HTTP's; 0 without an answer.
    pub(crate) status: u16,
    /// The reply's code, or its first error's.
    pub(crate) code: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) seq: Option<i64>,
}

/// What is known of an attempt's effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It took effect before it returned.
    Acknowledged,
    /// It had no effect and will have none.
    Refused,
    /// It may take effect at any time after its call.
    Unknown,
}

impl Change {
    /// What is known of its effect. A 409 to a repeat says that the first attempt is in force.
    pub(crate) fn outcome(&self) -> Outcome {
        match self.status {
            200..300 => Outcome::Acknowledged,
            409 if self.code == "IDEMPOTENT_REPLAY" => Outcome::Acknowledged,
            400..500 => Outcome::Refused,
            _ => Outcome::Unknown,
        }
    }

    /// The last moment at which it may still take effect.
    pub(crate) fn settled_us(&self) -> u64 {
        match (self.outcome(), self.return_us) {
            (Outcome::Acknowledged, Some(at)) => at,
            (Outcome::Acknowledged | Outcome::Refused | Outcome::Unknown, _) => u64::MAX,
        }
    }
}

/// Something that was done to a node or to the database.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Fault {
    pub(crate) fault: String,
    /// Absent: the database.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<usize>,
    pub(crate) begin_us: u64,
    /// When it was over, and the node was ready or the database accepted connections again.
    pub(crate) end_us: u64,
    /// False for a trap that nothing ran into.
    pub(crate) happened: bool,
}

/// A key's count after all nodes have stored theirs.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Count {
    pub(crate) key: usize,
    pub(crate) verification_count: u64,
}

/// Something that should never happen.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Odd {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(crate) node: Option<usize>,
    pub(crate) at_us: u64,
    pub(crate) what: String,
}

/// The file that is being written.
pub(crate) struct History(Mutex<BufWriter<File>>);

impl History {
    /// Begins a file at `path`, in the place of another.
    pub(crate) fn create(path: &Path) -> io::Result<Self> {
        Ok(Self(Mutex::new(BufWriter::with_capacity(1 << 20, File::create(path)?))))
    }

    /// Adds a line. A disk that is full ends the run: a history with holes proves nothing.
    pub(crate) fn add(&self, event: &Event) {
        let mut line = serde_json::to_vec(event).expect("an event is plain data");
        line.push(b'\n');
        let mut file = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&line).expect("the history can be written");
    }

    /// Writes out what is buffered.
    pub(crate) fn flush(&self) -> io::Result<()> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).flush()
    }
}

/// Reads a history.
///
/// # Errors
/// The file system's, or one that names the line which is none.
pub(crate) fn read(path: &Path) -> io::Result<Vec<Event>> {
    let mut events = Vec::new();
    for (at, line) in BufReader::new(File::open(path)?).lines().enumerate() {
        let event = serde_json::from_str(&line?)
            .map_err(|error| io::Error::other(format!("line {}: {error}", at + 1)))?;
        events.push(event);
    }
    Ok(events)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_back_as_it_was_written() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("history");
        let events = [
            Event::Run(Run {
                seed: 1,
                seconds: 2,
                nodes: 3,
                lease_us: 4,
                commit_us: 5,
                slack_us: 6,
            }),
            Event::Verify(Verify {
                node: 0,
                key: 1,
                secret: 2,
                call_us: 3,
                return_us: Some(4),
                answer: Answer::OwnerSuspended,
                count: None,
            }),
            Event::Odd(Odd { node: None, at_us: 1, what: "a \"word\"".to_owned() }),
        ];
        let history = History::create(&path).expect("made");
        events.iter().for_each(|event| history.add(event));
        history.flush().expect("written");
        assert_eq!(read(&path).expect("read"), events);
    }
}
