//! An answer's body in pieces, so that a slow reader who goes on is told from one who does not.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::{Body, Frame, SizeHint};

use super::auth::Connection;

/// Bytes of a piece. Nearly all answers are one.
const PIECE_BYTES: usize = 16 * 1024;

/// A body of which each piece is asked for when there is room for it, which is a step on its
/// connection.
pub(crate) struct Paced {
    whole: Full<Bytes>,
    rest: Bytes,
    connection: Arc<Connection>,
}

impl Paced {
    /// `body`, on its way over `connection`.
    pub(crate) fn new(body: Full<Bytes>, connection: Arc<Connection>) -> Self {
        Self { whole: body, rest: Bytes::new(), connection }
    }
}

impl Body for Paced {
    type Data = Bytes;
    type Error = Infallible;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Infallible>>> {
        if self.rest.is_empty() {
            let whole = Pin::new(&mut self.whole).poll_frame(context);
            let Poll::Ready(Some(Ok(frame))) = whole else { return whole };
            self.rest = frame.into_data().unwrap_or_default();
        }
        self.connection.turn.step();
        let length = self.rest.len().min(PIECE_BYTES);
        Poll::Ready(Some(Ok(Frame::data(self.rest.split_to(length)))))
    }

    fn is_end_stream(&self) -> bool {
        self.rest.is_empty() && self.whole.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        if self.rest.is_empty() {
            self.whole.size_hint()
        } else {
            SizeHint::with_exact(self.rest.len() as u64)
        }
    }
}
