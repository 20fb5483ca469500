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

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    #[test]
    fn a_body_comes_whole_and_each_piece_that_is_taken_is_a_step() {
        for length in [0, 1, PIECE_BYTES, PIECE_BYTES + 1, 10 * PIECE_BYTES] {
            let whole: Bytes = (0..length).map(|n| n as u8).collect();
            let connection = Arc::new(Connection::from(Ipv4Addr::LOCALHOST.into(), false));
            let mut body = Paced::new(Full::new(whole.clone()), Arc::clone(&connection));
            let mut context = Context::from_waker(std::task::Waker::noop());
            let (mut got, mut pieces) = (Vec::new(), 0);
            loop {
                assert_eq!(body.size_hint().exact(), Some((length - got.len()) as u64));
                assert_eq!(body.is_end_stream(), got.len() == length);
                let Poll::Ready(Some(Ok(frame))) = Pin::new(&mut body).poll_frame(&mut context)
                else {
                    break;
                };
                got.extend_from_slice(&frame.into_data().expect("data"));
                pieces += 1;
                assert_eq!(connection.turn.steps(), pieces);
            }
            assert_eq!((got.len(), pieces as usize), (length, length.div_ceil(PIECE_BYTES)));
            assert_eq!(got, whole);
        }
    }
}
