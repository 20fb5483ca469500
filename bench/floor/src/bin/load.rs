//! A load generator whose requests differ: another key, or another name, each time. wrk sends one
//! request over and over at full speed, but builds a different one only at a cost that would hide
//! the server's, so the measurements that need many keys use this one.
//!
//! The request is a file that is sent as it stands, except that each `########` becomes the
//! request's number in eight digits and each `@@@` the number modulo 1,000 in three. What the
//! request says is the business of `bench/run`; this program counts, times, and checks each answer
//! for its status and for a string that must occur in it.
//!
//! Usage: `load ADDRESS REQUEST_FILE NAME=VALUE…` with
//!
//! - `connections`: how many, each with one request in flight.
//! - `seconds`: when to stop; requests in flight then are finished and counted.
//! - `numbers`: the numbers are `0..numbers`.
//! - `order`: `random`, or `sequential`, which stops after the last number.
//! - `first`: where `sequential` begins.
//! - `status`, `contains`: what a good answer has.
//! - `ids`: a file for the `"id":"…"` of each good answer, one a line (optional).
//!
//! Standard output is one JSON object. An answer without `content-length` is a bad one.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::error::Error;
use std::io;
use std::rc::Rc;
use std::str::FromStr;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const NUMBER_MARK: &[u8] = b"########";
const REMAINDER_MARK: &[u8] = b"@@@";
/// An answer is a few hundred bytes; one that does not fit is bad.
const ANSWER_BYTES_MAX: usize = 64 * 1024;
/// How many bad answers are kept to be shown.
const BAD_SHOWN_MAX: usize = 3;

#[derive(Clone, Copy, PartialEq)]
enum Order {
    Random,
    Sequential,
}

struct Plan {
    template: Vec<u8>,
    number_at: Vec<usize>,
    remainder_at: Vec<usize>,
    numbers: u64,
    order: Order,
    deadline: Instant,
    status: Vec<u8>,
    contains: Vec<u8>,
    keep_ids: bool,
}

#[derive(Default)]
struct Tally {
    next: Cell<u64>,
    answers: Cell<u64>,
    bad: Cell<u64>,
    bytes: Cell<u64>,
    latencies_us: RefCell<Vec<u32>>,
    ids: RefCell<Vec<u8>>,
    bad_shown: RefCell<Vec<String>>,
}

/// One answer's place in a connection's buffer.
struct Answer {
    bytes: usize,
}

fn main() -> Result<(), Box<dyn Error>> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?
        .block_on(run())
}

async fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(address), Some(request_file)) = (arguments.next(), arguments.next()) else {
        return Err("usage: load ADDRESS REQUEST_FILE NAME=VALUE…".into());
    };
    let settings: HashMap<String, String> = arguments
        .filter_map(|a| a.split_once('=').map(|(k, v)| (k.to_owned(), v.to_owned())))
        .collect();
    let template = std::fs::read(request_file)?;
    let started_at = Instant::now();
    let plan = Rc::new(Plan {
        number_at: places(&template, NUMBER_MARK),
        remainder_at: places(&template, REMAINDER_MARK),
        template,
        numbers: setting(&settings, "numbers")?,
        order: match text(&settings, "order")? {
            "random" => Order::Random,
            "sequential" => Order::Sequential,
            other => return Err(format!("order is random or sequential, not {other}").into()),
        },
        deadline: started_at + Duration::from_secs_f64(setting(&settings, "seconds")?),
        status: format!("HTTP/1.1 {} ", text(&settings, "status")?).into_bytes(),
        contains: text(&settings, "contains")?.as_bytes().to_vec(),
        keep_ids: settings.contains_key("ids"),
    });
    let tally = Rc::new(Tally::default());
    if plan.order == Order::Sequential {
        tally.next.set(setting(&settings, "first")?);
    }

    let connections: u64 = setting(&settings, "connections")?;
    let local = tokio::task::LocalSet::new();
    let tasks: Vec<_> = (0..connections)
        .map(|seed| {
            let (address, plan, tally) = (address.clone(), Rc::clone(&plan), Rc::clone(&tally));
            local.spawn_local(async move { converse(&address, seed, &plan, &tally).await })
        })
        .collect();
    local.await;
    let elapsed_s = started_at.elapsed().as_secs_f64();
    let mut failed: u64 = 0;
    for task in tasks {
        if let Err(error) = task.await? {
            failed += 1;
            show_bad(&tally, &format!("connection: {error}"));
        }
    }
    if let Some(file) = settings.get("ids") {
        std::fs::write(file, tally.ids.take())?;
    }
    report(&tally, elapsed_s, failed);
    Ok(())
}

/// One connection: ask, wait, check, until the time or the numbers run out.
async fn converse(address: &str, seed: u64, plan: &Plan, tally: &Tally) -> io::Result<()> {
    let mut stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut request = plan.template.clone();
    let mut buffer = vec![0; ANSWER_BYTES_MAX];
    // Odd, so never zero, where xorshift would stay.
    let mut random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut sent_at = Instant::now();
    while sent_at < plan.deadline {
        let number = match plan.order {
            Order::Random => next_random(&mut random) % plan.numbers,
            Order::Sequential => tally.next.replace(tally.next.get() + 1),
        };
        if number >= plan.numbers {
            break;
        }
        write_digits(&mut request, &plan.number_at, NUMBER_MARK.len(), number);
        write_digits(
            &mut request,
            &plan.remainder_at,
            REMAINDER_MARK.len(),
            number % 1000,
        );
        stream.write_all(&request).await?;
        let answer = read_answer(&mut stream, &mut buffer).await?;
        let answered_at = Instant::now();
        let bytes = buffer.get(..answer.bytes).unwrap_or_default();
        tally.answers.set(tally.answers.get() + 1);
        tally.bytes.set(tally.bytes.get() + answer.bytes as u64);
        let latency_us = (answered_at - sent_at).as_micros();
        tally
            .latencies_us
            .borrow_mut()
            .push(u32::try_from(latency_us).unwrap_or(u32::MAX));
        if !(bytes.starts_with(&plan.status) && find(bytes, &plan.contains).is_some()) {
            tally.bad.set(tally.bad.get() + 1);
            show_bad(tally, &String::from_utf8_lossy(bytes));
        } else if plan.keep_ids {
            keep_id(bytes, &mut tally.ids.borrow_mut());
        }
        sent_at = answered_at;
    }
    Ok(())
}

/// Reads one answer to the start of `buffer`. Nothing can follow it, since nothing was asked yet.
async fn read_answer(stream: &mut TcpStream, buffer: &mut [u8]) -> io::Result<Answer> {
    let mut filled = 0;
    let mut expected = None;
    loop {
        let free = buffer.get_mut(filled..).unwrap_or_default();
        let read = stream.read(free).await?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        filled += read;
        let so_far = buffer.get(..filled).unwrap_or_default();
        if expected.is_none()
            && let Some(head) = find(so_far, b"\r\n\r\n")
        {
            let length = content_length(so_far.get(..head).unwrap_or_default())
                .ok_or_else(|| io::Error::other("an answer without content-length"))?;
            expected = Some(head + 4 + length);
        }
        if expected.is_some_and(|expected| filled >= expected) {
            return Ok(Answer { bytes: filled });
        }
    }
}

fn content_length(head: &[u8]) -> Option<usize> {
    let name = b"\r\ncontent-length:";
    let at = head
        .windows(name.len())
        .position(|window| window.eq_ignore_ascii_case(name))?;
    let rest = head.get(at + name.len()..)?;
    let line = rest.split(|byte| *byte == b'\r').next()?;
    std::str::from_utf8(line).ok()?.trim().parse().ok()
}

fn keep_id(answer: &[u8], ids: &mut Vec<u8>) {
    let mark = b"\"id\":\"";
    if let Some(at) = find(answer, mark) {
        let rest = answer.get(at + mark.len()..).unwrap_or_default();
        ids.extend(rest.iter().take_while(|byte| **byte != b'"'));
        ids.push(b'\n');
    }
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    let first = *needle.first()?;
    let mut from = 0;
    loop {
        let rest = haystack.get(from..)?;
        let at = from + rest.iter().position(|byte| *byte == first)?;
        if haystack.get(at..)?.starts_with(needle) {
            return Some(at);
        }
        from = at + 1;
    }
}

fn places(template: &[u8], mark: &[u8]) -> Vec<usize> {
    template
        .windows(mark.len())
        .enumerate()
        .filter(|(_, window)| *window == mark)
        .map(|(at, _)| at)
        .collect()
}

fn write_digits(request: &mut [u8], places: &[usize], width: usize, number: u64) {
    for place in places {
        let mut rest = number;
        let digits = request.get_mut(*place..place + width).unwrap_or_default();
        for digit in digits.iter_mut().rev() {
            *digit = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
    }
}

/// xorshift64*, Vigna 2016.
fn next_random(state: &mut u64) -> u64 {
    *state ^= *state >> 12;
    *state ^= *state << 25;
    *state ^= *state >> 27;
    state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
}

fn show_bad(tally: &Tally, what: &str) {
    let mut shown = tally.bad_shown.borrow_mut();
    if shown.len() < BAD_SHOWN_MAX {
        shown.push(what.chars().take(400).collect());
    }
}

fn report(tally: &Tally, elapsed_s: f64, failed_connections: u64) {
    let mut latencies = tally.latencies_us.take();
    latencies.sort_unstable();
    let percentile = |p: usize| {
        latencies
            .get(latencies.len() * p / 100)
            .copied()
            .unwrap_or(0)
    };
    let shown: Vec<String> = tally
        .bad_shown
        .take()
        .iter()
        .map(|text| format!("\"{}\"", escape(text)))
        .collect();
    println!(
        "{{\"answers\":{},\"bad\":{},\"failed_connections\":{failed_connections},\"bytes\":{},\
         \"seconds\":{elapsed_s:.6},\"p50_us\":{},\"p99_us\":{},\"bad_shown\":[{}]}}",
        tally.answers.get(),
        tally.bad.get(),
        tally.bytes.get(),
        percentile(50),
        percentile(99),
        shown.join(",")
    );
}

fn escape(text: &str) -> String {
    text.chars()
        .map(|c| match c {
            '"' | '\\' => format!("\\{c}"),
            c if c.is_control() => format!("\\u{:04x}", u32::from(c)),
            c => c.to_string(),
        })
        .collect()
}

fn text<'a>(settings: &'a HashMap<String, String>, name: &str) -> Result<&'a str, String> {
    settings
        .get(name)
        .map(String::as_str)
        .ok_or_else(|| format!("{name}=… is missing"))
}

fn setting<T: FromStr>(settings: &HashMap<String, String>, name: &str) -> Result<T, String> {
    text(settings, name)?
        .parse()
        .map_err(|_| format!("{name}=… is not a number"))
}
