//! A verdict allocates nothing, whatever it is: checked with an allocator that counts.

use keyward_core::{
    ApiId, ApiRow, Decision, EnvId, EnvironmentRow, KeyId, KeyRow, MembershipRow, OrgCode, OrgRow,
    Owner, Pepper, Prefix, Question, Refusal, Scheme, ScopeId, ScopesAsked, Secret, SecretRow,
    Table, UserId, UserRow, sha256,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::borrow::Cow;
use std::cell::Cell;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

#[expect(unsafe_code, reason = "an allocator cannot be written without it; this one only counts")]
// SAFETY: every call goes to the system's allocator with the arguments it came with.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        // SAFETY: the caller keeps GlobalAlloc's contract.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller keeps GlobalAlloc's contract, and the block is the system's.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

const ENV: EnvId = EnvId::from_bytes([1; 16]);
const API: ApiId = ApiId::from_bytes([2; 16]);
const PEPPER: &[u8] = b"pepper";

fn secret(number: u8) -> String {
    let prefix = Prefix::parse("k_live").expect("the default prefix is one");
    Secret::mint(&prefix, &[number; 32]).expose().to_owned()
}

fn key_row(number: u8, digest_of: &str) -> KeyRow {
    KeyRow {
        env: ENV,
        key: KeyId::from_bytes([number; 16]),
        name: "nightly job".into(),
        metadata: Some("{\"team\":\"data\"}".into()),
        owner: Owner::UserInOrg(user(), org()),
        api: API,
        scopes: (0..80).map(|number| ScopeId::from_bytes([number; 16])).collect(),
        issued_seq: 1,
        not_before: Some(10),
        expires_at: Some(100),
        disabled: false,
        revoked: false,
        imported: false,
        secrets: vec![SecretRow {
            digest: Pepper::new(1, PEPPER).digest(digest_of.as_bytes()),
            scheme: Scheme::Pepper(1),
            superseded_at: None,
        }],
        base_count: 0,
        base_verified_at: 0,
    }
}

fn user() -> UserId {
    UserId::parse("kp_1").expect("an owner id")
}

fn org() -> OrgCode {
    OrgCode::parse("org_1").expect("an owner id")
}

/// One API of 80 scopes; keys: 1 good, 2 revoked, 3 imported, 4 with a superseded secret.
fn table() -> Table {
    let mut table = Table::new();
    table.set_peppers(vec![Pepper::new(2, b"newer"), Pepper::new(1, PEPPER)]);
    let prefixes = vec!["k_live".into()];
    table.put_environment(EnvironmentRow { env: ENV, prefixes, refused: false });
    let scopes = (0..80).map(|n| (ScopeId::from_bytes([n; 16]), format!("read:{n}").into()));
    let audience = "https://api.example.com".into();
    let scopes = scopes.collect();
    table.put_api(ApiRow { env: ENV, api: API, audience, deleted: false, scopes });
    let (suspended, deleted, revoked_up_to) = (false, false, i64::MIN);
    table.put_user(UserRow { env: ENV, user: user(), suspended, deleted, revoked_up_to });
    table.put_org(OrgRow { env: ENV, org: org(), suspended, deleted, revoked_up_to });
    table.put_membership(MembershipRow { env: ENV, org: org(), user: user(), member: true });
    table.put_key(key_row(1, &secret(1)));
    table.put_key(KeyRow { revoked: true, ..key_row(2, &secret(2)) });
    let (digest, scheme) = (sha256(b"legacy"), Scheme::Sha256);
    let secrets = vec![SecretRow { digest, scheme, superseded_at: None }];
    table.put_key(KeyRow { imported: true, secrets, ..key_row(3, "") });
    let mut rotated = key_row(4, &secret(4));
    rotated.secrets.extend(key_row(4, &secret(5)).secrets);
    for secret in rotated.secrets.iter_mut().take(1) {
        secret.superseded_at = Some(20);
    }
    table.put_key(rotated);
    table
}

#[test]
fn a_verdict_allocates_nothing() {
    let table = table();
    let cows = [Cow::Borrowed("read:1"), Cow::Owned("read:79".to_owned())];
    let wrong = [Cow::Borrowed("write:1")];
    let api = API.to_string();
    let good = secret(1);
    let question = Question {
        env: ENV,
        secret: &good,
        now: 50,
        api: Some(&api),
        audience: Some("https://api.example.com"),
        scopes: ScopesAsked::Cows(&cows),
        user: Some("kp_1"),
        org: Some("org_1"),
        address: Some([127, 0, 0, 1].into()),
    };
    let scheme = format!("secret-token:{good}");
    let mistyped = format!("{}{}", &good[..55], if good.ends_with('0') { '1' } else { '0' });
    let (revoked, superseded) = (secret(2), secret(4));
    let long = "x".repeat(513);
    let valid = Ok(Some(0));
    let invalid = Err(Refusal::Invalid);
    for (question, expected) in [
        (question, valid),
        (Question { secret: &scheme, ..question }, valid),
        (Question { secret: "legacy", ..question }, valid),
        (Question { secret: &mistyped, ..question }, invalid),
        (Question { secret: "unknown", ..question }, invalid),
        (Question { secret: "secret-token:unknown", ..question }, invalid),
        (Question { secret: &long, ..question }, invalid),
        (Question { env: EnvId::from_bytes([9; 16]), ..question }, Ok(None)),
        (Question { secret: &revoked, ..question }, Err(Refusal::Revoked)),
        (Question { secret: &superseded, ..question }, Err(Refusal::Rotated)),
        (Question { now: 5, ..question }, Err(Refusal::NotYetValid)),
        (Question { now: 100, ..question }, Err(Refusal::Expired)),
        (Question { api: Some("malformed"), ..question }, Err(Refusal::WrongApi)),
        (Question { user: Some("kp_2"), ..question }, Err(Refusal::WrongOwner)),
        (
            Question { scopes: ScopesAsked::Cows(&wrong), ..question },
            Err(Refusal::InsufficientScope),
        ),
    ] {
        let before = ALLOCATIONS.get();
        let verdict = match table.decide(&question) {
            Decision::Valid(known) => Ok(Some(known.missing_scopes(question.scopes).count())),
            Decision::Refused(known, refusal) => {
                std::hint::black_box((known.name(), known.metadata(), known.scopes().count()));
                std::hint::black_box((known.user(), known.org(), known.status(), known.kind()));
                Err(refusal)
            }
            Decision::Unknown => invalid,
            Decision::Withheld => Ok(None),
        };
        let allocated = ALLOCATIONS.get() - before;
        assert_eq!(verdict, expected);
        assert_eq!(allocated, 0, "{verdict:?}");
    }
}

#[test]
fn the_allocator_of_this_test_does_count() {
    let before = ALLOCATIONS.get();
    std::hint::black_box(Box::new(1));
    assert_eq!(ALLOCATIONS.get() - before, 1);
}
