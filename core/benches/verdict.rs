//! What a verdict costs and what a key weighs: `cargo bench -p keyward-core -- [KEYS] [PER_USER]`.
//!
//! Fills a table with KEYS keys (1,000,000 if not said), PER_USER of each user (1, the dearest
//! case), then asks for random ones on one thread, the digest included, and prints nanoseconds per
//! verdict, bytes of resident memory per key beyond the strings, and the time of all put_key.
//! Absolute times on a shared machine are noise; compare within one run.

#![expect(clippy::disallowed_methods, reason = "a benchmark reads a clock")]

use keyward_core::{
    ApiId, ApiRow, Decision, EnvId, EnvironmentRow, KeyId, KeyRow, Owner, Pepper, Prefix, Question,
    Scheme, ScopeId, ScopesAsked, Secret, SecretRow, Table, UserId, UserRow, sha256,
};
use std::hint::black_box;
use std::time::{Duration, Instant};

const ENV: EnvId = EnvId::from_bytes([1; 16]);
const API: ApiId = ApiId::from_bytes([2; 16]);
const METADATA: &str = r#"{"team":"data","purpose":"nightly"}"#;
const NOW: i64 = 1_795_382_643_512_000;
const SAMPLE: u64 = 200_000;
const PAGE_BYTES: u64 = 4096;

fn main() {
    let mut numbers = std::env::args().skip(1).filter_map(|arg| arg.parse::<u64>().ok());
    let keys = numbers.next().unwrap_or(1_000_000).max(1);
    let per_user = numbers.next().unwrap_or(1).max(1);

    let pepper = Pepper::new(1, b"pepper of the bench, 32 bytes at least");
    let resident_before = resident_bytes();
    let (table, string_bytes, filled) = fill(&pepper, keys, per_user);
    let resident = resident_bytes() - resident_before;
    println!("keys                     {keys}, {per_user} per user");
    println!("put_key took in all      {:.2} s", filled.as_secs_f64());
    println!("strings per key          {:.1} bytes", string_bytes as f64 / keys as f64);
    let beyond = (resident as f64 - string_bytes as f64) / keys as f64;
    println!("resident beyond strings  {beyond:.1} bytes per key");
    println!("resident in all          {:.3} GiB", resident as f64 / (1_u64 << 30) as f64);

    let mut random = 7;
    let sample: Vec<String> = (0..SAMPLE).map(|_| secret(next(&mut random) % keys)).collect();
    report("verdict, valid", &sample, |secret| ask(&table, secret, true));
    let strangers: Vec<String> = (0..SAMPLE).map(|number| secret(keys + number)).collect();
    report("verdict, unknown secret", &strangers, |secret| ask(&table, secret, false));
    let mistyped: Vec<String> = sample.iter().map(|secret| format!("{secret}0")).collect();
    report("verdict, no lookup", &mistyped, |secret| ask(&table, secret, false));
    report("digest alone", &sample, |secret| {
        black_box(pepper.digest(secret.as_bytes()));
    });
    report("clock alone", &sample, |_| {});
}

fn fill(pepper: &Pepper, keys: u64, per_user: u64) -> (Table, u64, Duration) {
    let mut table = Table::new();
    table.set_peppers(vec![pepper.clone()]);
    table.put_environment(EnvironmentRow {
        env: ENV,
        prefixes: vec!["k_live".into()],
        refused: false,
    });
    table.put_api(ApiRow {
        env: ENV,
        api: API,
        audience: "https://api.example.com".into(),
        deleted: false,
        scopes: (0..8)
            .map(|n| (ScopeId::from_bytes([n; 16]), format!("read:{n}").into()))
            .collect(),
    });
    let mut string_bytes = 0;
    let mut filled = Duration::ZERO;
    for number in 0..keys {
        let user = UserId::parse(&format!("kp_{:032x}", number / per_user)).expect("visible");
        if number % per_user == 0 {
            string_bytes += user.as_str().len();
            table.put_user(UserRow {
                env: ENV,
                user: user.clone(),
                suspended: false,
                deleted: false,
                revoked_up_to: i64::MIN,
            });
        }
        let row = key_row(pepper, number, user);
        string_bytes += row.name.len() + METADATA.len();
        let started = Instant::now();
        table.put_key(row);
        filled += started.elapsed();
    }
    (table, string_bytes as u64, filled)
}

fn key_row(pepper: &Pepper, number: u64, user: UserId) -> KeyRow {
    // As in a UUIDv7: a time that counts up, then random bits.
    let mut id = [0; 16];
    let random = sha256(&number.to_le_bytes());
    for (to, from) in id.iter_mut().zip(number.to_be_bytes().iter().chain(random.bytes())) {
        *to = *from;
    }
    KeyRow {
        env: ENV,
        key: KeyId::from_bytes(id),
        name: format!("export job {number:014}").into(),
        metadata: Some(METADATA.into()),
        owner: Owner::User(user),
        api: API,
        scopes: vec![ScopeId::from_bytes([0; 16]), ScopeId::from_bytes([3; 16])],
        issued_seq: i64::try_from(number).expect("fewer than 2^63 keys"),
        not_before: None,
        expires_at: Some(NOW + 1_000_000),
        disabled: false,
        revoked: false,
        imported: false,
        secrets: vec![SecretRow {
            digest: pepper.digest(secret(number).as_bytes()),
            scheme: Scheme::Pepper(1),
            superseded_at: None,
        }],
        base_count: 0,
        base_verified_at: 0,
    }
}

fn ask(table: &Table, secret: &str, expected: bool) {
    let question = Question {
        env: ENV,
        secret: black_box(secret),
        now: NOW,
        api: None,
        audience: Some("https://api.example.com"),
        scopes: ScopesAsked::Strs(&["read:3"]),
        user: None,
        org: None,
        address: None,
    };
    let valid = matches!(black_box(table.decide(&question)), Decision::Valid(_));
    assert_eq!(valid, expected, "the table does not hold what it was filled with");
}

/// Times each call, so the cost of reading the clock twice is in every figure but the mean.
fn report(what: &str, sample: &[String], call: impl Fn(&str)) {
    let started = Instant::now();
    for secret in sample {
        call(secret);
    }
    let mean_ns = started.elapsed().as_nanos() / sample.len() as u128;
    let mut times_ns: Vec<u128> = sample
        .iter()
        .map(|secret| {
            let started = Instant::now();
            call(secret);
            started.elapsed().as_nanos()
        })
        .collect();
    times_ns.sort_unstable();
    let at = |percent: usize| times_ns.get((times_ns.len() - 1) * percent / 100).copied();
    let (median, p99) = (at(50).unwrap_or(0), at(99).unwrap_or(0));
    println!("{what:<24} {median} ns median, {p99} ns p99, mean {mean_ns} ns");
}

/// The secret of a key, made from its number again and again instead of kept.
fn secret(number: u64) -> String {
    let prefix = Prefix::parse("k_live").expect("the default prefix is one");
    let random = sha256(&number.to_be_bytes());
    Secret::mint(&prefix, random.bytes()).expose().to_owned()
}

/// splitmix64.
fn next(state: &mut u64) -> u64 {
    *state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let z = (*state ^ (*state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("Linux has /proc");
    let pages = statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok());
    pages.expect("the second number is the resident pages") * PAGE_BYTES
}
