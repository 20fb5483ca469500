//! The rules of a verdict, one by one and by name. `model.rs` checks the same table at random.

use keyward_core::{
    ApiId, ApiRow, Decision, EnvId, EnvironmentRow, KeyId, KeyRow, MembershipRow, OrgCode, OrgRow,
    Owner, Pepper, Prefix, Question, Refusal, Scheme, ScopeId, ScopesAsked, Secret, SecretRow,
    Status, Table, UserId, UserRow, sha256,
};
use std::sync::atomic::Ordering;

const ENV: EnvId = EnvId::from_bytes([1; 16]);
const OTHER_ENV: EnvId = EnvId::from_bytes([2; 16]);
const API: ApiId = ApiId::from_bytes([3; 16]);
const KEY: KeyId = KeyId::from_bytes([4; 16]);
const AUDIENCE: &str = "https://api.example.com";
const NOW: i64 = 1_000_000;

fn secret(number: u8) -> String {
    let prefix = Prefix::parse("k_live").expect("the default prefix is one");
    Secret::mint(&prefix, &[number; 32]).expose().to_owned()
}

fn pepper() -> Pepper {
    Pepper::new(1, b"pepper")
}

fn peppered(text: &str) -> SecretRow {
    let digest = pepper().digest(text.as_bytes());
    SecretRow { digest, scheme: Scheme::Pepper(1), superseded_at: None }
}

fn imported(text: &str) -> SecretRow {
    SecretRow { digest: sha256(text.as_bytes()), scheme: Scheme::Sha256, superseded_at: None }
}

fn scope(number: u8) -> ScopeId {
    ScopeId::from_bytes([number; 16])
}

fn user() -> UserId {
    UserId::parse("kp_1").expect("an owner id")
}

fn org() -> OrgCode {
    OrgCode::parse("org_1").expect("an owner id")
}

fn environment_row(env: EnvId) -> EnvironmentRow {
    EnvironmentRow { env, prefixes: vec!["k_live".into()], refused: false }
}

fn api_row(env: EnvId) -> ApiRow {
    ApiRow {
        env,
        api: API,
        audience: AUDIENCE.into(),
        deleted: false,
        scopes: vec![(scope(1), "read:profile".into()), (scope(2), "write:profile".into())],
    }
}

fn user_row(env: EnvId) -> UserRow {
    UserRow { env, user: user(), suspended: false, deleted: false, revoked_up_to: i64::MIN }
}

fn org_row(env: EnvId) -> OrgRow {
    OrgRow { env, org: org(), suspended: false, deleted: false, revoked_up_to: i64::MIN }
}

fn membership_row(env: EnvId) -> MembershipRow {
    MembershipRow { env, org: org(), user: user(), member: true }
}

/// The user's key with the first secret and the API's first scope.
fn key_row() -> KeyRow {
    KeyRow {
        env: ENV,
        key: KEY,
        name: "nightly job".into(),
        metadata: None,
        owner: Owner::User(user()),
        api: API,
        scopes: vec![scope(1)],
        issued_seq: 10,
        not_before: None,
        expires_at: None,
        disabled: false,
        revoked: false,
        imported: false,
        secrets: vec![peppered(&secret(1))],
        base_count: 0,
        base_verified_at: 0,
    }
}

/// Two environments, each with the API, the user, the organization and the membership; no key.
fn empty_table() -> Table {
    let mut table = Table::new();
    table.set_peppers(vec![pepper()]);
    for env in [ENV, OTHER_ENV] {
        table.put_environment(environment_row(env));
        table.put_api(api_row(env));
        table.put_user(user_row(env));
        table.put_org(org_row(env));
        table.put_membership(membership_row(env));
    }
    table
}

fn table_with(key: KeyRow) -> Table {
    let mut table = empty_table();
    table.put_key(key);
    table
}

fn question(secret: &str) -> Question<'_> {
    Question {
        env: ENV,
        secret,
        now: NOW,
        api: None,
        audience: None,
        scopes: ScopesAsked::NONE,
        user: None,
        org: None,
        address: None,
    }
}

/// The key if it is good, else why not; an unknown secret is `Refusal::Invalid`.
fn decide(table: &Table, question: Question<'_>) -> Result<KeyId, Refusal> {
    match table.decide(&question) {
        Decision::Valid(known) => Ok(known.key_id()),
        Decision::Refused(_, refusal) => Err(refusal),
        Decision::Unknown => Err(Refusal::Invalid),
        Decision::Withheld => panic!("the environment is withheld"),
    }
}

fn ask(table: &Table, secret: &str) -> Result<KeyId, Refusal> {
    decide(table, question(secret))
}

#[test]
fn a_good_key_answers_with_its_owner_and_scopes() {
    let table = table_with(key_row());
    let text = secret(1);
    let Decision::Valid(known) = table.decide(&question(&text)) else { panic!("refused") };
    assert_eq!((known.key_id(), known.name(), known.api_id()), (KEY, "nightly job", API));
    assert_eq!((known.user(), known.org()), (Some("kp_1"), None));
    assert_eq!(known.scopes().collect::<Vec<_>>(), ["read:profile"]);
    assert_eq!(known.status(), Status::Active);
    assert_eq!(ask(&table, &format!("secret-token:{text}")), Ok(KEY));
}

#[test]
fn reasons_apply_in_the_order_of_their_precedence() {
    let mut key = KeyRow {
        owner: Owner::UserInOrg(user(), org()),
        revoked: true,
        disabled: true,
        not_before: Some(NOW + 1),
        expires_at: Some(NOW),
        ..key_row()
    };
    key.secrets = vec![SecretRow { superseded_at: Some(NOW), ..peppered(&secret(1)) }];
    let mut table = table_with(key.clone());
    table.put_membership(MembershipRow { member: false, ..membership_row(ENV) });
    let text = secret(1);
    let mut asked = Question {
        api: Some("another"),
        user: Some("kp_2"),
        scopes: ScopesAsked::Strs(&["write:profile"]),
        ..question(&text)
    };
    // Each step takes away the reason that was just given.
    assert_eq!(decide(&table, asked), Err(Refusal::Revoked));
    key.revoked = false;
    table.put_key(key.clone());
    assert_eq!(decide(&table, asked), Err(Refusal::Rotated));
    key.secrets = vec![peppered(&secret(1))];
    table.put_key(key.clone());
    assert_eq!(decide(&table, asked), Err(Refusal::Inactive));
    key.disabled = false;
    table.put_key(key.clone());
    assert_eq!(decide(&table, asked), Err(Refusal::NotYetValid));
    key.not_before = None;
    table.put_key(key.clone());
    assert_eq!(decide(&table, asked), Err(Refusal::Expired));
    key.expires_at = None;
    table.put_key(key);
    assert_eq!(decide(&table, asked), Err(Refusal::OwnerSuspended));
    table.put_membership(membership_row(ENV));
    assert_eq!(decide(&table, asked), Err(Refusal::WrongApi));
    asked.api = None;
    assert_eq!(decide(&table, asked), Err(Refusal::WrongOwner));
    asked.user = None;
    assert_eq!(decide(&table, asked), Err(Refusal::InsufficientScope));
    asked.scopes = ScopesAsked::NONE;
    assert_eq!(decide(&table, asked), Ok(KEY));
}

#[test]
fn refusals_are_numbered_in_order_and_have_a_code_each() {
    for (place, refusal) in Refusal::ALL.into_iter().enumerate() {
        assert_eq!(refusal as usize, place);
        let name: String = format!("{refusal:?}").to_uppercase();
        assert_eq!(refusal.code().replace("API_KEY_", "").replace('_', ""), name);
    }
}

#[test]
fn a_text_with_a_bad_checksum_is_never_looked_up() {
    let mistyped = format!("k_live_{}", "a".repeat(49));
    let elsewhere = format!("sk_live_{}", "a".repeat(49));
    let secrets = vec![imported(&mistyped), imported(&elsewhere)];
    let table = table_with(KeyRow { imported: true, secrets, ..key_row() });
    // Its digest is in the table, so a look-up would have found it.
    assert_eq!(ask(&table, &mistyped), Err(Refusal::Invalid));
    assert_eq!(ask(&table, &elsewhere), Ok(KEY), "under a prefix that is not ours it is foreign");
}

#[test]
fn a_foreign_text_is_looked_up_only_where_keys_were_imported() {
    let mut table = table_with(KeyRow { secrets: vec![peppered("legacy")], ..key_row() });
    assert_eq!(ask(&table, "legacy"), Err(Refusal::Invalid));
    let another = KeyId::from_bytes([9; 16]);
    let secrets = vec![imported("another")];
    table.put_key(KeyRow { key: another, imported: true, secrets, ..key_row() });
    assert_eq!(ask(&table, "legacy"), Ok(KEY));
    assert_eq!(ask(&table, "another"), Ok(another));
    table.remove_key(ENV, another);
    assert_eq!(ask(&table, "legacy"), Err(Refusal::Invalid));
}

#[test]
fn an_imported_secret_is_good_before_and_after_it_is_hashed_anew() {
    let mut row = KeyRow { imported: true, secrets: vec![imported("legacy")], ..key_row() };
    let mut table = table_with(row.clone());
    let Decision::Valid(known) = table.decide(&question("legacy")) else { panic!("refused") };
    assert!(known.matched_sha256());
    row.secrets = vec![peppered("legacy")];
    table.put_key(row);
    let Decision::Valid(known) = table.decide(&question("legacy")) else { panic!("refused") };
    assert!(!known.matched_sha256());
}

#[test]
fn a_text_over_512_bytes_is_unknown() {
    let (longest, longer) = ("x".repeat(512), "x".repeat(513));
    let secrets = vec![imported(&longest), imported(&longer)];
    let table = table_with(KeyRow { imported: true, secrets, ..key_row() });
    assert_eq!(ask(&table, &longest), Ok(KEY));
    assert_eq!(ask(&table, &longer), Err(Refusal::Invalid));
}

#[test]
fn two_environments_may_hold_the_same_digest() {
    let mut table = empty_table();
    let other_key = KeyId::from_bytes([5; 16]);
    for (env, key) in [(ENV, KEY), (OTHER_ENV, other_key)] {
        table.put_key(KeyRow { env, key, secrets: vec![imported("shared")], ..key_row() });
    }
    let elsewhere = Question { env: OTHER_ENV, ..question("shared") };
    assert_eq!(ask(&table, "shared"), Ok(KEY));
    assert_eq!(decide(&table, elsewhere), Ok(other_key));
    table.remove_key(ENV, KEY);
    assert_eq!(ask(&table, "shared"), Err(Refusal::Invalid));
    assert_eq!(decide(&table, elsewhere), Ok(other_key));
}

/// Every pair of environments has the same ids and the same digest; with 3,000 of them, some 70
/// pairs also agree in the 16 bits of a hash that an index looks at first.
#[test]
fn thousands_of_environments_with_the_same_ids_never_mix() {
    let mut table = Table::new();
    let environments = 0..3_000_u32;
    let env = |number: u32| EnvId::from_bytes(u128::from(number).to_be_bytes());
    for number in environments.clone() {
        let env = env(number);
        table.put_environment(environment_row(env));
        table.put_api(ApiRow { audience: number.to_string().into(), ..api_row(env) });
        table.put_user(UserRow { suspended: number % 2 == 1, ..user_row(env) });
        let name = number.to_string().into();
        table.put_key(KeyRow { env, name, secrets: vec![imported("shared")], ..key_row() });
    }
    for number in environments {
        let audience = number.to_string();
        let asked = Question { env: env(number), audience: Some(&audience), ..question("shared") };
        let known = match table.decide(&asked) {
            Decision::Valid(known) if number % 2 == 0 => known,
            Decision::Refused(known, Refusal::OwnerSuspended) if number % 2 == 1 => known,
            Decision::Unknown | Decision::Withheld | Decision::Valid(_) | Decision::Refused(..) => {
                panic!("environment {number} has another's standing")
            }
        };
        assert_eq!(known.name(), audience);
        let by_id = table.key(env(number), KEY).expect("it is there");
        assert_eq!(by_id.name(), audience);
    }
}

#[test]
fn a_key_of_one_environment_is_unknown_in_another() {
    let table = table_with(key_row());
    let text = secret(1);
    let elsewhere = Question { env: OTHER_ENV, ..question(&text) };
    assert_eq!(decide(&table, elsewhere), Err(Refusal::Invalid));
    assert!(table.key(OTHER_ENV, KEY).is_none());
}

#[test]
fn a_superseded_secret_is_good_until_its_grace_ends() {
    let mut row = key_row();
    row.secrets = vec![
        SecretRow { superseded_at: Some(NOW + 1), ..peppered(&secret(1)) },
        peppered(&secret(2)),
    ];
    let table = table_with(row);
    let (old, new) = (secret(1), secret(2));
    let Decision::Valid(known) = table.decide(&question(&old)) else { panic!("refused") };
    assert!(known.matched_secret_superseded());
    let later = |secret| Question { now: NOW + 1, ..question(secret) };
    assert_eq!(decide(&table, later(&old)), Err(Refusal::Rotated));
    assert_eq!(decide(&table, later(&new)), Ok(KEY));
    let Decision::Valid(known) = table.decide(&question(&new)) else { panic!("refused") };
    assert!(!known.matched_secret_superseded());
}

#[test]
fn a_secret_that_left_its_key_is_unknown() {
    let mut table = table_with(key_row());
    table.put_key(KeyRow { secrets: vec![peppered(&secret(2))], ..key_row() });
    assert_eq!(ask(&table, &secret(1)), Err(Refusal::Invalid));
    assert_eq!(ask(&table, &secret(2)), Ok(KEY));
    table.remove_key(ENV, KEY);
    assert_eq!(ask(&table, &secret(2)), Err(Refusal::Invalid));
    assert_eq!(table.key_count(), 0);
}

#[test]
fn a_key_is_good_from_its_not_before_until_its_expiry() {
    let table =
        table_with(KeyRow { not_before: Some(NOW), expires_at: Some(NOW + 2), ..key_row() });
    let text = secret(1);
    let at = |now| decide(&table, Question { now, ..question(&text) });
    assert_eq!(at(NOW - 1), Err(Refusal::NotYetValid));
    assert_eq!(at(NOW), Ok(KEY));
    assert_eq!(at(NOW + 1), Ok(KEY));
    assert_eq!(at(NOW + 2), Err(Refusal::Expired));
}

#[test]
fn all_keys_of_an_owner_up_to_a_change_are_revoked_at_once() {
    let mut table = empty_table();
    for (number, owner) in [
        Owner::User(user()),
        Owner::UserInOrg(user(), org()),
        Owner::Org(org()),
        Owner::Environment,
    ]
    .into_iter()
    .enumerate()
    {
        let number = number as u8;
        let secrets = vec![peppered(&secret(number))];
        table.put_key(KeyRow { key: KeyId::from_bytes([number; 16]), owner, secrets, ..key_row() });
    }
    let good = |table: &Table| [0, 1, 2, 3].map(|number| ask(table, &secret(number)).is_ok());
    table.put_user(UserRow { revoked_up_to: 9, ..user_row(ENV) });
    assert_eq!(good(&table), [true; 4], "issued after that change");
    table.put_user(UserRow { revoked_up_to: 10, ..user_row(ENV) });
    assert_eq!(good(&table), [false, false, true, true]);
    assert_eq!(ask(&table, &secret(0)), Err(Refusal::Revoked));
    table.put_user(user_row(ENV));
    table.put_org(OrgRow { revoked_up_to: 10, ..org_row(ENV) });
    assert_eq!(good(&table), [true, false, false, true]);
    assert_eq!(ask(&table, &secret(2)), Err(Refusal::Revoked));
}

#[test]
fn a_deleted_owner_or_api_revokes_and_a_suspended_owner_only_refuses() {
    let mut table = table_with(KeyRow { owner: Owner::UserInOrg(user(), org()), ..key_row() });
    let text = secret(1);
    let status = |table: &Table| table.key(ENV, KEY).map(|known| known.status());
    table.put_user(UserRow { suspended: true, ..user_row(ENV) });
    assert_eq!(ask(&table, &text), Err(Refusal::OwnerSuspended));
    table.put_user(user_row(ENV));
    table.put_org(OrgRow { suspended: true, ..org_row(ENV) });
    assert_eq!(ask(&table, &text), Err(Refusal::OwnerSuspended));
    assert_eq!(status(&table), Some(Status::Active));
    table.put_org(OrgRow { deleted: true, ..org_row(ENV) });
    assert_eq!(ask(&table, &text), Err(Refusal::Revoked));
    assert_eq!(status(&table), Some(Status::Revoked));
    table.put_org(org_row(ENV));
    table.put_user(UserRow { deleted: true, ..user_row(ENV) });
    assert_eq!(ask(&table, &text), Err(Refusal::Revoked));
    table.put_user(user_row(ENV));
    table.put_api(ApiRow { deleted: true, ..api_row(ENV) });
    assert_eq!(ask(&table, &text), Err(Refusal::Revoked));
}

#[test]
fn what_a_key_points_at_refuses_until_its_own_row_arrives() {
    let mut table = Table::new();
    table.set_peppers(vec![pepper()]);
    table.put_key(KeyRow { owner: Owner::UserInOrg(user(), org()), ..key_row() });
    let text = secret(1);
    assert!(matches!(table.decide(&question(&text)), Decision::Withheld));
    table.put_environment(environment_row(ENV));
    assert_eq!(ask(&table, &text), Err(Refusal::Revoked), "its API is not there");
    table.put_api(api_row(ENV));
    assert_eq!(ask(&table, &text), Err(Refusal::OwnerSuspended), "its user is not there");
    table.put_user(user_row(ENV));
    assert_eq!(ask(&table, &text), Err(Refusal::OwnerSuspended), "its organization is not there");
    table.put_org(org_row(ENV));
    assert_eq!(ask(&table, &text), Err(Refusal::OwnerSuspended), "its membership is not there");
    table.put_membership(membership_row(ENV));
    assert_eq!(ask(&table, &text), Ok(KEY));
    let known = table.key(ENV, KEY).expect("it is there");
    assert_eq!(known.scopes().collect::<Vec<_>>(), ["read:profile"]);
}

#[test]
fn an_environment_under_restore_gives_no_verdict() {
    let mut table = table_with(key_row());
    table.put_environment(EnvironmentRow { refused: true, ..environment_row(ENV) });
    for text in [&secret(1), &secret(2), "garbage"] {
        assert!(matches!(table.decide(&question(text)), Decision::Withheld));
    }
    assert!(table.key(ENV, KEY).is_some(), "it can still be listed");
    let text = secret(1);
    let elsewhere = Question { env: OTHER_ENV, ..question(&text) };
    assert_eq!(decide(&table, elsewhere), Err(Refusal::Invalid));
}

#[test]
fn a_deleted_scope_is_lost_and_no_other_scope_takes_its_place() {
    let mut table = table_with(key_row());
    let scopes = vec![(scope(2), "write:profile".into()), (scope(7), "delete:profile".into())];
    table.put_api(ApiRow { scopes, ..api_row(ENV) });
    let known = table.key(ENV, KEY).expect("it is there");
    assert_eq!(known.scopes().count(), 0);
    // Even one of the same name is another scope.
    let scopes = vec![(scope(8), "read:profile".into())];
    table.put_api(ApiRow { scopes, ..api_row(ENV) });
    let known = table.key(ENV, KEY).expect("it is there");
    assert_eq!(known.scopes().count(), 0);
}

#[test]
fn an_api_may_have_hundreds_of_scopes() {
    let name = |number: u8| format!("read:{number}").into_boxed_str();
    let row = KeyRow { scopes: [0, 63, 64, 127, 128, 254].map(scope).into(), ..key_row() };
    let mut table = table_with(row);
    let scopes = (0..255).map(|number| (scope(number), name(number))).collect();
    table.put_api(ApiRow { scopes, ..api_row(ENV) });
    let known = table.key(ENV, KEY).expect("it is there");
    let held: Vec<&str> = known.scopes().collect();
    assert_eq!(held, ["read:0", "read:63", "read:64", "read:127", "read:128", "read:254"]);
    let asked = ScopesAsked::Strs(&["read:254", "read:65", "read:64", "none"]);
    assert_eq!(known.missing_scopes(asked).collect::<Vec<_>>(), ["read:65", "none"]);
}

#[test]
fn api_and_audience_must_both_fit_where_both_are_given() {
    let table = table_with(key_row());
    let text = secret(1);
    let id = API.to_string().to_uppercase();
    let ask = |api, audience| decide(&table, Question { api, audience, ..question(&text) });
    assert_eq!(ask(Some(&id), Some(AUDIENCE)), Ok(KEY));
    for (api, audience) in [
        (Some(id.as_str()), Some("https://other.example.com")),
        (Some("ffffffffffffffffffffffffffffffff"), Some(AUDIENCE)),
        (Some("malformed"), None),
        (Some(""), None),
        (None, Some("")),
    ] {
        assert_eq!(ask(api, audience), Err(Refusal::WrongApi));
    }
}

#[test]
fn the_owner_asked_for_must_be_the_one_answered_with() {
    let mut table = table_with(KeyRow { owner: Owner::UserInOrg(user(), org()), ..key_row() });
    let text = secret(1);
    let ask = |table: &Table, user, org| decide(table, Question { user, org, ..question(&text) });
    assert_eq!(ask(&table, Some("kp_1"), Some("org_1")), Ok(KEY));
    assert_eq!(ask(&table, Some("kp_1"), Some("org_2")), Err(Refusal::WrongOwner));
    assert_eq!(ask(&table, Some("KP_1"), None), Err(Refusal::WrongOwner));
    table.put_key(KeyRow { owner: Owner::Org(org()), ..key_row() });
    assert_eq!(ask(&table, None, Some("org_1")), Ok(KEY));
    assert_eq!(ask(&table, Some("kp_1"), None), Err(Refusal::WrongOwner));
    table.put_key(KeyRow { owner: Owner::Environment, ..key_row() });
    assert_eq!(ask(&table, None, None), Ok(KEY));
    assert_eq!(ask(&table, None, Some("")), Err(Refusal::WrongOwner));
}

#[test]
fn a_retired_pepper_works_until_it_is_taken_away() {
    let mut table = table_with(key_row());
    let newer = Pepper::new(2, b"newer");
    table.set_peppers(vec![newer.clone(), pepper()]);
    assert_eq!(ask(&table, &secret(1)), Ok(KEY));
    table.set_peppers(vec![newer]);
    assert_eq!(ask(&table, &secret(1)), Err(Refusal::Invalid));
    // The right bytes under another id do not match: digests name their pepper.
    table.set_peppers(vec![Pepper::new(3, b"pepper")]);
    assert_eq!(ask(&table, &secret(1)), Err(Refusal::Invalid));
}

#[test]
fn a_cell_stays_with_its_key_until_the_key_is_removed() {
    let mut table = table_with(key_row());
    let cell = |table: &Table| {
        let known = table.key(ENV, KEY).expect("it is there");
        known.cell().load(Ordering::Relaxed)
    };
    assert_eq!(cell(&table), u32::MAX);
    let known = table.key(ENV, KEY).expect("it is there");
    known.cell().store(77, Ordering::Relaxed);
    table.put_key(KeyRow { disabled: true, secrets: vec![], ..key_row() });
    table.set_base(ENV, KEY, 5, 6);
    assert_eq!(cell(&table), 77);
    table.remove_key(ENV, KEY);
    table.put_key(key_row());
    assert_eq!(cell(&table), u32::MAX, "a new key does not count in another's cell");
}

#[test]
fn a_table_can_be_read_by_many_threads() {
    fn is_shared<T: Send + Sync>(_: &T) {}
    is_shared(&empty_table());
}
