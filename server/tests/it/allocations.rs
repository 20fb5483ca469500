//! What a verification costs in allocations, counted in a running server.
//!
//! Everything between the socket and the answer is counted, hyper's part included. The server runs
//! on this test's thread and only that thread is counted; the client is a thread of its own with
//! plain sockets. What the follower allocates when it asks the store meanwhile falls into a few of
//! many short windows, so that the median window holds verifications alone.

#![expect(unsafe_code, reason = "a global allocator that counts has no safe interface")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::world::{Engine, World};

/// Most allocations of one verification, from reading its bytes to writing the answer's: as many
/// as were measured, most of them in hyper.
const ALLOCATIONS_MAX: u64 = 8;
/// Verifications in one window: a few milliseconds, while the follower asks every 40 ms.
const WINDOW: u64 = 10;
/// Windows that are measured.
const WINDOWS: usize = 301;

/// Allocations of the threads that are counted.
static COUNT: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static COUNTED: Cell<bool> = const { Cell::new(false) };
}

/// The system's allocator, counting.
struct Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

fn count() {
    // OK to ignore: a thread that ends has nothing left to count.
    if COUNTED.try_with(Cell::get) == Ok(true) {
        COUNT.fetch_add(1, Ordering::Relaxed);
    }
}

// SAFETY: every call goes to the system's allocator as it came.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller keeps `alloc`'s contract, which is the same.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps `dealloc`'s contract, and `block` came from `System`.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller keeps `realloc`'s contract, and `block` came from `System`.
        unsafe { System.realloc(block, layout, size) }
    }
}

/// Asks the same verification again and again over one connection; the allocations of the server
/// in each window.
fn measure(address: SocketAddr, token: &str, secret: &str) -> Vec<u64> {
    let body = format!("{{\"api_key\":\"{secret}\"}}");
    let request = format!(
        "POST /api/v1/api_keys/verify HTTP/1.1\r\nHost: keys.test\r\n\
         Content-Type: application/json\r\nAuthorization: Bearer {token}\r\n\
         Content-Length: {}\r\n\r\n{body}",
        body.len()
    );
    let mut stream = TcpStream::connect(address).expect("connects");
    let mut buffer = vec![0; 16 * 1024];
    let mut verify = || {
        stream.write_all(request.as_bytes()).expect("sent");
        let mut read = 0;
        loop {
            let more = stream.read(&mut buffer[read..]).expect("an answer");
            assert!(more > 0, "the connection was closed");
            read += more;
            // An answer ends with its `refusal`, the last of the fields.
            if buffer[..read].ends_with(b"\"refusal\":null}") {
                return;
            }
        }
    };
    // The connection's buffers and the token's entry are made once.
    (0..WINDOW).for_each(|_| verify());
    let mut windows = Vec::with_capacity(WINDOWS);
    for _ in 0..WINDOWS {
        let before = COUNT.load(Ordering::Relaxed);
        (0..WINDOW).for_each(|_| verify());
        windows.push(COUNT.load(Ordering::Relaxed) - before);
    }
    windows
}

#[test]
fn a_verification_takes_a_handful_of_allocations() {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let mut windows = runtime.expect("a runtime").block_on(async {
        let world = World::start(Engine::Sqlite).await;
        let api = world.api("profiles", &["read:profile"]).await;
        let (_, secret) = world.user_key(&api, "kp_1", &["read:profile"]).await;
        let (address, token) = (world.address(), world.token.clone());
        let (done, measured) = tokio::sync::oneshot::channel();
        COUNTED.set(true);
        let client = std::thread::spawn(move || {
            // OK to ignore: the receiver is the thread that waits for this one.
            let _ = done.send(measure(address, &token, &secret));
        });
        let windows = measured.await.expect("measured");
        COUNTED.set(false);
        client.join().expect("the client");
        windows
    });
    windows.sort_unstable();
    let each = windows[WINDOWS / 2].div_ceil(WINDOW);
    println!("a verification takes {each} allocations");
    assert!((1..=ALLOCATIONS_MAX).contains(&each), "{each} allocations for one verification");
}
