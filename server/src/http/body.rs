//! Reading a request's body, up to a limit.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt;
use hyper::body::{Body, Incoming};

use super::auth::Connection;

/// Why a body could not be read.
#[derive(Debug)]
pub(crate) enum Unreadable {
    /// It is larger than allowed.
    TooLarge,
    /// The connection broke.
    Broken,
}

/// Reads a whole body of at most `max` bytes. A body that comes in one piece, as nearly all do, is
/// not copied.
///
/// A sender who stops in the middle is waited for until `patience` is over, and no longer: on a
/// connection of its own the watch over its silence sees to that, which costs a request no timer.
pub(crate) async fn read(
    connection: &Connection,
    body: Incoming,
    max: usize,
    patience: Duration,
) -> Result<Bytes, Unreadable> {
    let _awaited = connection.turn.wait_for_body();
    let reading = read_all(body, max);
    if !connection.is_shared {
        return reading.await;
    }
    tokio::time::timeout(patience, reading).await.unwrap_or(Err(Unreadable::Broken))
}

async fn read_all(mut body: Incoming, max: usize) -> Result<Bytes, Unreadable> {
    if body.size_hint().lower() > max as u64 {
        return Err(Unreadable::TooLarge);
    }
    let mut whole = Bytes::new();
    let mut pieces: Option<BytesMut> = None;
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(|_| Unreadable::Broken)?.into_data() else { continue };
        let length = pieces.as_ref().map_or(whole.len(), BytesMut::len) + data.len();
        if length > max {
            return Err(Unreadable::TooLarge);
        }
        match &mut pieces {
            Some(pieces) => pieces.extend_from_slice(&data),
            None if whole.is_empty() => whole = data,
            None => {
                let mut joined = BytesMut::with_capacity(length);
                joined.extend_from_slice(&whole);
                joined.extend_from_slice(&data);
                pieces = Some(joined);
            }
        }
    }
    Ok(pieces.map_or(whole, BytesMut::freeze))
}
