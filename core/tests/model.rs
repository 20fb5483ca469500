//! The table against a naive model: lists of rows, searched from end to end by code that follows
//! the rules as they are written. Random changes and questions go to both, and every answer must
//! be the same in every field.

use keyward_core::{
    ApiId, ApiRow, Decision, Digest, EnvId, EnvironmentRow, KeyId, KeyRow, Kind, Known,
    MembershipRow, OrgCode, OrgRow, Owner, Pepper, Prefix, Question, Refusal, Scheme, ScopeId,
    ScopesAsked, Secret, SecretRow, Shape, Status, Table, UserId, UserRow, sha256, shape,
    strip_scheme,
};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, TestRunner};
use std::borrow::Cow;
use std::collections::BTreeSet;
use std::sync::atomic::Ordering;

/// Scopes 0–5 are the usual ones; the others make an API need more than one word of bits.
const SCOPES: u8 = 150;
const INSTANTS: i64 = 12;

#[derive(Clone, Debug)]
enum Change {
    Peppers(Vec<u32>),
    Environment(EnvironmentRow),
    Api(ApiRow),
    User(UserRow),
    Org(OrgRow),
    Membership(MembershipRow),
    Key(KeyRow),
    RemoveKey(EnvId, KeyId),
    Base(EnvId, KeyId, u64, i64),
}

#[derive(Clone, Debug)]
enum Step {
    Change(Box<Change>),
    Ask(Asked),
}

/// A [`Question`] that owns its texts.
#[derive(Clone, Debug)]
struct Asked {
    env: EnvId,
    secret: String,
    now: i64,
    api: Option<String>,
    audience: Option<String>,
    scopes: Vec<String>,
    user: Option<String>,
    org: Option<String>,
}

/// An answer with all that can be read from it.
#[derive(Clone, PartialEq, Eq, Debug)]
enum Answer {
    Unknown,
    Withheld,
    Known(Box<Seen>, Option<Refusal>),
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Seen {
    key: KeyId,
    name: String,
    metadata: Option<String>,
    api: ApiId,
    user: Option<String>,
    org: Option<String>,
    kind: Kind,
    scopes: Vec<String>,
    missing_scopes: Vec<String>,
    status: Status,
    not_before: Option<i64>,
    expires_at: Option<i64>,
    base: (u64, i64),
    matched_sha256: bool,
    matched_superseded: bool,
    cell: u32,
}

impl Seen {
    fn of(known: Known<'_>, asked: ScopesAsked<'_>) -> Seen {
        Seen {
            key: known.key_id(),
            name: known.name().to_owned(),
            metadata: known.metadata().map(str::to_owned),
            api: known.api_id(),
            user: known.user().map(str::to_owned),
            org: known.org().map(str::to_owned),
            kind: known.kind(),
            scopes: known.scopes().map(str::to_owned).collect(),
            missing_scopes: known.missing_scopes(asked).map(str::to_owned).collect(),
            status: known.status(),
            not_before: known.not_before(),
            expires_at: known.expires_at(),
            base: (known.base_count(), known.base_verified_at()),
            matched_sha256: known.matched_sha256(),
            matched_superseded: known.matched_secret_superseded(),
            cell: known.cell().load(Ordering::Relaxed),
        }
    }
}

/// Rows as they came, the latest of each kind and id.
#[derive(Default)]
struct Model {
    peppers: Vec<u32>,
    environments: Vec<EnvironmentRow>,
    apis: Vec<ApiRow>,
    users: Vec<UserRow>,
    orgs: Vec<OrgRow>,
    memberships: Vec<MembershipRow>,
    keys: Vec<(KeyRow, u32)>,
}

fn put<T>(rows: &mut Vec<T>, row: T, is_same: impl Fn(&T) -> bool) {
    rows.retain(|other| !is_same(other));
    rows.push(row);
}

impl Model {
    fn apply(&mut self, change: Change) {
        match change {
            Change::Peppers(ids) => self.peppers = ids,
            Change::Environment(row) => {
                let env = row.env;
                put(&mut self.environments, row, |other| other.env == env);
            }
            Change::Api(row) => {
                let id = (row.env, row.api);
                put(&mut self.apis, row, |other| (other.env, other.api) == id);
            }
            Change::User(row) => {
                let id = (row.env, row.user.clone());
                put(&mut self.users, row, |other| other.env == id.0 && other.user == id.1);
            }
            Change::Org(row) => {
                let id = (row.env, row.org.clone());
                put(&mut self.orgs, row, |other| other.env == id.0 && other.org == id.1);
            }
            Change::Membership(row) => {
                let id = (row.env, row.user.clone(), row.org.clone());
                put(&mut self.memberships, row, |other| {
                    other.env == id.0 && other.user == id.1 && other.org == id.2
                });
            }
            Change::Key(mut row) => {
                let id = (row.env, row.key);
                // An unpeppered digest is imported, also after another key took it over.
                row.imported |= row.secrets.iter().any(|secret| secret.scheme == Scheme::Sha256);
                for (other, _) in &mut self.keys {
                    // A digest belongs to the key that was put last.
                    if other.env == row.env {
                        other
                            .secrets
                            .retain(|secret| !row.secrets.iter().any(|new| is_same(new, secret)));
                    }
                }
                let before = self.keys.iter().find(|(other, _)| (other.env, other.key) == id);
                let cell = before.map_or(u32::MAX, |(_, cell)| *cell);
                put(&mut self.keys, (row, cell), |(other, _)| (other.env, other.key) == id);
            }
            Change::RemoveKey(env, key) => {
                self.keys.retain(|(other, _)| (other.env, other.key) != (env, key));
            }
            Change::Base(env, key, count, at) => {
                for (row, _) in &mut self.keys {
                    if (row.env, row.key) == (env, key) {
                        (row.base_count, row.base_verified_at) = (count, at);
                    }
                }
            }
        }
    }

    fn answer(&self, asked: &Asked) -> Answer {
        let Some(env) = self.environments.iter().find(|row| row.env == asked.env) else {
            return Answer::Withheld;
        };
        if env.refused {
            return Answer::Withheld;
        }
        let Some((key, secret, cell)) = self.find(env, &asked.secret) else {
            return Answer::Unknown;
        };
        let seen = self.see(key, Some(secret), cell, &asked.scopes);
        let refusal = self.refusal(key, secret, &seen, asked);
        Answer::Known(Box::new(seen), refusal)
    }

    fn find(&self, env: &EnvironmentRow, text: &str) -> Option<(&KeyRow, &SecretRow, u32)> {
        let bare = strip_scheme(text);
        let is_known = |prefix: &str| env.prefixes.iter().any(|known| **known == *prefix);
        let keys = || self.keys.iter().filter(|(key, _)| key.env == env.env);
        let has_imported = keys().any(|(key, _)| key.imported);
        let is_ours = match shape(bare) {
            Shape::Ours(prefix) => is_known(prefix),
            Shape::BadChecksum if is_known(bare.rsplit_once('_').expect("it has one").0) => {
                return None;
            }
            Shape::BadChecksum | Shape::Foreign => false,
        };
        if text.len() > 512 || !is_ours && !has_imported {
            return None;
        }
        let mut candidates = Vec::new();
        for text in if is_ours { vec![bare] } else { vec![bare, text] } {
            for id in &self.peppers {
                candidates.push((Scheme::Pepper(*id), pepper(*id).digest(text.as_bytes())));
            }
            candidates.push((Scheme::Sha256, sha256(text.as_bytes())));
        }
        candidates.iter().find_map(|wanted| {
            keys().find_map(|(key, cell)| {
                let mut secrets = key.secrets.iter();
                let secret = secrets.find(|secret| (secret.scheme, secret.digest) == *wanted)?;
                Some((key, secret, *cell))
            })
        })
    }

    fn user(&self, env: EnvId, user: &UserId) -> Option<&UserRow> {
        self.users.iter().find(|row| row.env == env && row.user == *user)
    }

    fn org(&self, env: EnvId, org: &OrgCode) -> Option<&OrgRow> {
        self.orgs.iter().find(|row| row.env == env && row.org == *org)
    }

    fn api(&self, key: &KeyRow) -> Option<&ApiRow> {
        self.apis.iter().find(|row| row.env == key.env && row.api == key.api)
    }

    fn see(&self, key: &KeyRow, secret: Option<&SecretRow>, cell: u32, asked: &[String]) -> Seen {
        let scopes = self.api(key).map_or(Vec::new(), |api| {
            let held = api.scopes.iter().filter(|(id, _)| key.scopes.contains(id));
            held.map(|(_, scope)| scope.to_string()).collect()
        });
        let (user, org) = owners(key);
        Seen {
            key: key.key,
            name: key.name.to_string(),
            metadata: key.metadata.as_deref().map(str::to_owned),
            api: key.api,
            user: user.map(|user| user.to_string()),
            org: org.map(|org| org.to_string()),
            kind: match key.owner {
                Owner::User(_) | Owner::UserInOrg(..) => Kind::User,
                Owner::Org(_) => Kind::Organization,
                Owner::Environment => Kind::Environment,
            },
            missing_scopes: asked.iter().filter(|scope| !scopes.contains(scope)).cloned().collect(),
            scopes,
            status: if self.is_revoked(key) {
                Status::Revoked
            } else if key.disabled {
                Status::Inactive
            } else {
                Status::Active
            },
            not_before: key.not_before,
            expires_at: key.expires_at,
            base: (key.base_count, key.base_verified_at),
            matched_sha256: secret.is_some_and(|secret| secret.scheme == Scheme::Sha256),
            matched_superseded: secret.is_some_and(|secret| secret.superseded_at.is_some()),
            cell,
        }
    }

    fn is_revoked(&self, key: &KeyRow) -> bool {
        let (user, org) = owners(key);
        let user = user.and_then(|user| self.user(key.env, user));
        let org = org.and_then(|org| self.org(key.env, org));
        key.revoked
            || self.api(key).is_none_or(|api| api.deleted)
            || user.is_some_and(|user| user.deleted || user.revoked_up_to >= key.issued_seq)
            || org.is_some_and(|org| org.deleted || org.revoked_up_to >= key.issued_seq)
    }

    fn is_owner_suspended(&self, key: &KeyRow) -> bool {
        let (user, org) = owners(key);
        let is_member = match (user, org) {
            (Some(user), Some(org)) => self.memberships.iter().any(|row| {
                row.env == key.env && row.user == *user && row.org == *org && row.member
            }),
            (None, _) | (_, None) => true,
        };
        let user_row = user.map(|user| self.user(key.env, user));
        let org_row = org.map(|org| self.org(key.env, org));
        !is_member
            || user_row.is_some_and(|row| row.is_none_or(|row| row.suspended))
            || org_row.is_some_and(|row| row.is_none_or(|row| row.suspended))
    }

    fn refusal(
        &self,
        key: &KeyRow,
        secret: &SecretRow,
        seen: &Seen,
        asked: &Asked,
    ) -> Option<Refusal> {
        let audience = self.api(key).map(|api| &*api.audience);
        let wrong_api = asked.api.as_deref().is_some_and(|id| ApiId::parse(id) != Some(key.api));
        let wrong_audience = asked.audience.is_some() && asked.audience.as_deref() != audience;
        let wrong_user = asked.user.is_some() && asked.user != seen.user;
        let wrong_org = asked.org.is_some() && asked.org != seen.org;
        [
            (self.is_revoked(key), Refusal::Revoked),
            (secret.superseded_at.is_some_and(|at| at <= asked.now), Refusal::Rotated),
            (key.disabled, Refusal::Inactive),
            (key.not_before.is_some_and(|at| asked.now < at), Refusal::NotYetValid),
            (key.expires_at.is_some_and(|at| asked.now >= at), Refusal::Expired),
            (self.is_owner_suspended(key), Refusal::OwnerSuspended),
            (wrong_api || wrong_audience, Refusal::WrongApi),
            (wrong_user || wrong_org, Refusal::WrongOwner),
            (!seen.missing_scopes.is_empty(), Refusal::InsufficientScope),
        ]
        .into_iter()
        .find_map(|(applies, refusal)| applies.then_some(refusal))
    }
}

fn is_same(a: &SecretRow, b: &SecretRow) -> bool {
    (a.digest, a.scheme) == (b.digest, b.scheme)
}

fn owners(key: &KeyRow) -> (Option<&UserId>, Option<&OrgCode>) {
    match &key.owner {
        Owner::User(user) => (Some(user), None),
        Owner::UserInOrg(user, org) => (Some(user), Some(org)),
        Owner::Org(org) => (None, Some(org)),
        Owner::Environment => (None, None),
    }
}

/// Applies every step to both and compares all answers; says which answers there were.
fn run(steps: Vec<Step>) -> Result<BTreeSet<&'static str>, TestCaseError> {
    let mut table = Table::new();
    let mut model = Model::default();
    let mut codes = BTreeSet::new();
    let mut next_cell = 0;
    for step in steps {
        let asked = match step {
            Step::Change(change) => {
                apply(&mut table, (*change).clone());
                model.apply(*change);
                prop_assert_eq!(table.key_count(), model.keys.len());
                continue;
            }
            Step::Ask(asked) => asked,
        };
        let cows: Vec<Cow<'_, str>> = asked.scopes.iter().map(Cow::from).collect();
        let strs: Vec<&str> = asked.scopes.iter().map(String::as_str).collect();
        let by_cows = ScopesAsked::Cows(&cows);
        let answer = answer(&table, &asked, by_cows);
        prop_assert_eq!(&answer, &model.answer(&asked), "{:?}", asked);
        prop_assert_eq!(&answer, &self::answer(&table, &asked, ScopesAsked::Strs(&strs)));
        codes.insert(match &answer {
            Answer::Unknown => Refusal::Invalid.code(),
            Answer::Withheld => "withheld",
            Answer::Known(_, None) => "valid",
            Answer::Known(_, Some(refusal)) => refusal.code(),
        });
        for (key, cell) in &mut model.keys {
            let known = table.key(key.env, key.key).expect("the model has it");
            // As the server would: each key gets a cell of its own when it is first met.
            if known.cell().load(Ordering::Relaxed) == u32::MAX {
                known.cell().store(next_cell, Ordering::Relaxed);
                *cell = next_cell;
                next_cell += 1;
            }
        }
    }
    for (key, cell) in &model.keys {
        let known = table.key(key.env, key.key).expect("the model has it");
        let expected = model.see(key, None, *cell, &[]);
        prop_assert_eq!(Seen::of(known, ScopesAsked::NONE), expected);
    }
    Ok(codes)
}

fn answer(table: &Table, asked: &Asked, scopes: ScopesAsked<'_>) -> Answer {
    let decision = table.decide(&Question {
        env: asked.env,
        secret: &asked.secret,
        now: asked.now,
        api: asked.api.as_deref(),
        audience: asked.audience.as_deref(),
        scopes,
        user: asked.user.as_deref(),
        org: asked.org.as_deref(),
        address: None,
    });
    match decision {
        Decision::Unknown => Answer::Unknown,
        Decision::Withheld => Answer::Withheld,
        Decision::Valid(known) => Answer::Known(Box::new(Seen::of(known, scopes)), None),
        Decision::Refused(known, refusal) => {
            Answer::Known(Box::new(Seen::of(known, scopes)), Some(refusal))
        }
    }
}

fn apply(table: &mut Table, change: Change) {
    match change {
        Change::Peppers(ids) => table.set_peppers(ids.into_iter().map(pepper).collect()),
        Change::Environment(row) => table.put_environment(row),
        Change::Api(row) => table.put_api(row),
        Change::User(row) => table.put_user(row),
        Change::Org(row) => table.put_org(row),
        Change::Membership(row) => table.put_membership(row),
        Change::Key(row) => table.put_key(row),
        Change::RemoveKey(env, key) => table.remove_key(env, key),
        Change::Base(env, key, count, at) => table.set_base(env, key, count, at),
    }
}

fn pepper(id: u32) -> Pepper {
    Pepper::new(id, format!("pepper {id}").as_bytes())
}

fn env(number: u8) -> EnvId {
    EnvId::from_bytes([number; 16])
}

fn api(number: u8) -> ApiId {
    ApiId::from_bytes([number; 16])
}

fn scope(number: u8) -> ScopeId {
    ScopeId::from_bytes([number; 16])
}

fn user(number: u8) -> UserId {
    UserId::parse(&format!("kp_{number}")).expect("visible")
}

/// Organization 2 has a code too long to lie in its entry.
fn org(number: u8) -> OrgCode {
    let code = if number == 2 { "o".repeat(200) } else { format!("org_{number}") };
    OrgCode::parse(&code).expect("visible")
}

/// The texts that keys may have as secrets, ours and others.
fn secret(number: u8) -> String {
    let minted = |prefix| {
        let prefix = Prefix::parse(prefix).expect("a prefix");
        Secret::mint(&prefix, &[number; 32]).expose().to_owned()
    };
    match number {
        0..6 => minted("k_live"),
        6..8 => minted("k_old"),
        8 => minted("sk_other"),
        9 => "legacy-1".to_owned(),
        10 => "secret-token:legacy-2".to_owned(),
        11 => "x".repeat(512),
        // Of our format but for the checksum, under a known prefix and under another.
        12 => format!("k_live_{}", "a".repeat(49)),
        _ => format!("sk_{}", "a".repeat(49)),
    }
}

const SECRETS: u8 = 14;

fn numbers(below: u8) -> impl Strategy<Value = u8> {
    // The first ones more often, so that questions and changes meet.
    prop_oneof![3 => 0..1.min(below), 2 => 0..below]
}

fn rarely() -> impl Strategy<Value = bool> {
    proptest::bool::weighted(0.1)
}

fn instant() -> impl Strategy<Value = i64> {
    0..INSTANTS
}

fn sometimes<T: std::fmt::Debug + Clone>(
    probability: f64,
    strategy: impl Strategy<Value = T>,
) -> impl Strategy<Value = Option<T>> {
    proptest::option::weighted(probability, strategy)
}

fn scope_numbers() -> impl Strategy<Value = Vec<u8>> {
    let few = proptest::sample::subsequence((0..6).collect::<Vec<u8>>(), 0..=6).prop_shuffle();
    let many = proptest::sample::subsequence((0..SCOPES).collect::<Vec<u8>>(), 0..=100);
    prop_oneof![8 => few, 1 => many.prop_shuffle()]
}

fn owner() -> impl Strategy<Value = Owner> {
    prop_oneof![
        4 => numbers(4).prop_map(|n| Owner::User(user(n))),
        2 => (numbers(4), numbers(3)).prop_map(|(u, o)| Owner::UserInOrg(user(u), org(o))),
        2 => numbers(3).prop_map(|n| Owner::Org(org(n))),
        1 => Just(Owner::Environment),
    ]
}

fn secrets() -> impl Strategy<Value = Vec<SecretRow>> {
    let one = (0..SECRETS, 0..8_u8, sometimes(0.2, instant()));
    proptest::collection::vec(one, 0..4).prop_map(|rows| {
        let mut secrets: Vec<SecretRow> = Vec::new();
        for (number, scheme, superseded_at) in rows {
            let text = secret(number);
            let (scheme, digest) = match scheme {
                0..4 => (Scheme::Pepper(1), pepper(1).digest(text.as_bytes())),
                4 => (Scheme::Pepper(2), pepper(2).digest(text.as_bytes())),
                // A digest that is not of the scheme it claims matches nothing.
                5 => (Scheme::Pepper(3), pepper(1).digest(text.as_bytes())),
                6 => (Scheme::Sha256, sha256(text.as_bytes())),
                _ => (Scheme::Sha256, Digest::from_bytes([number; 32])),
            };
            let row = SecretRow { digest, scheme, superseded_at };
            if !secrets.iter().any(|other| is_same(other, &row)) {
                secrets.push(row);
            }
        }
        secrets
    })
}

prop_compose! {
    fn key_row()(
        (env_number, key, api_number) in (numbers(3), 0..8_u8, numbers(3)),
        (name, metadata) in ("[a-zé]{0,12}", sometimes(0.3, "\\{\"[a-zé]{1,8}\":\"x\"\\}")),
        owner in owner(),
        scopes in scope_numbers(),
        issued_seq in instant(),
        (not_before, expires_at) in (sometimes(0.2, instant()), sometimes(0.2, instant())),
        (disabled, revoked, imported) in (rarely(), rarely(), rarely()),
        secrets in secrets(),
        (base_count, base_verified_at) in (0..1000_u64, instant()),
    ) -> KeyRow {
        KeyRow {
            env: env(env_number),
            key: KeyId::from_bytes([key; 16]),
            name: name.into(),
            metadata: metadata.map(Into::into),
            owner,
            api: api(api_number),
            scopes: scopes.into_iter().map(scope).collect(),
            issued_seq,
            not_before,
            expires_at,
            disabled,
            revoked,
            imported,
            secrets,
            base_count,
            base_verified_at,
        }
    }
}

fn revoked_up_to() -> impl Strategy<Value = i64> {
    prop_oneof![6 => Just(i64::MIN), 1 => instant()]
}

fn environment_row() -> impl Strategy<Value = EnvironmentRow> {
    let prefixes = proptest::sample::subsequence(vec!["k_live", "k_old"], 1..=2);
    (numbers(3), prefixes, rarely()).prop_map(|(env_number, prefixes, refused)| EnvironmentRow {
        env: env(env_number),
        prefixes: prefixes.into_iter().map(Into::into).collect(),
        refused,
    })
}

fn api_row() -> impl Strategy<Value = ApiRow> {
    (numbers(3), numbers(3), rarely(), scope_numbers()).prop_map(|(e, a, deleted, scopes)| ApiRow {
        env: env(e),
        api: api(a),
        audience: format!("https://api{a}.example.com").into(),
        deleted,
        scopes: scopes.into_iter().map(|n| (scope(n), format!("read:{n}").into())).collect(),
    })
}

fn change() -> impl Strategy<Value = Change> {
    let peppers = proptest::sample::subsequence(vec![1, 2, 3], 0..=3).prop_shuffle();
    let user_row = (numbers(3), numbers(4), rarely(), rarely(), revoked_up_to()).prop_map(
        |(e, u, suspended, deleted, revoked_up_to)| UserRow {
            env: env(e),
            user: user(u),
            suspended,
            deleted,
            revoked_up_to,
        },
    );
    let org_row = (numbers(3), numbers(3), rarely(), rarely(), revoked_up_to()).prop_map(
        |(e, o, suspended, deleted, revoked_up_to)| OrgRow {
            env: env(e),
            org: org(o),
            suspended,
            deleted,
            revoked_up_to,
        },
    );
    let membership_row =
        (numbers(3), numbers(4), numbers(3), any::<bool>()).prop_map(|(e, u, o, member)| {
            MembershipRow { env: env(e), user: user(u), org: org(o), member }
        });
    let key_id = || (numbers(3), 0..8_u8).prop_map(|(e, k)| (env(e), KeyId::from_bytes([k; 16])));
    prop_oneof![
        1 => peppers.prop_map(Change::Peppers),
        2 => environment_row().prop_map(Change::Environment),
        3 => api_row().prop_map(Change::Api),
        2 => user_row.prop_map(Change::User),
        2 => org_row.prop_map(Change::Org),
        2 => membership_row.prop_map(Change::Membership),
        12 => key_row().prop_map(Change::Key),
        2 => key_id().prop_map(|(env, key)| Change::RemoveKey(env, key)),
        1 => (key_id(), 0..1000_u64, instant())
            .prop_map(|((env, key), count, at)| Change::Base(env, key, count, at)),
    ]
}

/// A text as somebody may present it: right, dressed up, or not quite.
fn presented() -> impl Strategy<Value = String> {
    (0..SECRETS, 0..20_u8).prop_map(|(number, dress)| {
        let text = secret(number);
        match dress {
            0 => format!("secret-token:{text}"),
            1 => format!("{text}0"),
            2 => text.chars().rev().collect(),
            3 => text.replace("k_", "q_"),
            4 => strip_scheme(&text).to_owned(),
            5 => String::new(),
            _ => text,
        }
    })
}

prop_compose! {
    fn asked()(
        (env_number, secret, now) in (numbers(4), presented(), instant()),
        api_id in sometimes(0.1, prop_oneof![
            4 => numbers(3).prop_map(|n| api(n).to_string()),
            1 => Just("malformed".to_owned()),
        ]),
        audience in sometimes(0.1, numbers(3).prop_map(|n| format!("https://api{n}.example.com"))),
        scopes in prop_oneof![
            3 => Just(vec![]),
            1 => proptest::collection::vec((0..SCOPES).prop_map(|n| format!("read:{n}")), 1..3),
            2 => proptest::collection::vec((0..6).prop_map(|n| format!("read:{n}")), 1..3),
        ],
        user_id in sometimes(0.1, numbers(4).prop_map(|n| user(n).to_string())),
        org_code in sometimes(0.1, numbers(3).prop_map(|n| org(n).to_string())),
    ) -> Asked {
        Asked {
            env: env(env_number),
            secret,
            now,
            api: api_id,
            audience,
            scopes,
            user: user_id,
            org: org_code,
        }
    }
}

/// A world in which most keys are good, and then anything.
fn steps() -> impl Strategy<Value = Vec<Step>> {
    let any_step = prop_oneof![
        1 => change().prop_map(|change| Step::Change(Box::new(change))),
        1 => asked().prop_map(Step::Ask),
    ];
    proptest::collection::vec(any_step, 0..120).prop_map(|steps| {
        let mut all = good_world();
        all.extend(steps);
        all
    })
}

/// Environment 0 with its APIs and all owners but user 3, who is never heard of at first.
fn good_world() -> Vec<Step> {
    let env = env(0);
    let prefixes = vec!["k_live".into(), "k_old".into()];
    let mut changes = vec![
        Change::Peppers(vec![1, 2]),
        Change::Environment(EnvironmentRow { env, prefixes, refused: false }),
    ];
    for number in 0..3 {
        let scopes = (0..6).map(|n| (scope(n), format!("read:{n}").into())).collect();
        let audience = format!("https://api{number}.example.com").into();
        let (suspended, deleted, revoked_up_to) = (false, false, i64::MIN);
        let (user, org) = (user(number), org(number));
        changes.extend([
            Change::Api(ApiRow { env, api: api(number), audience, deleted, scopes }),
            Change::User(UserRow { env, user: user.clone(), suspended, deleted, revoked_up_to }),
            Change::Org(OrgRow { env, org: org.clone(), suspended, deleted, revoked_up_to }),
            Change::Membership(MembershipRow { env, user, org, member: true }),
        ]);
    }
    changes.into_iter().map(|change| Step::Change(Box::new(change))).collect()
}

proptest! {
    #![proptest_config(Config::with_cases(600))]

    #[test]
    fn the_table_answers_as_the_naive_model_does(steps in steps()) {
        run(steps)?;
    }
}

/// Otherwise the test above could agree on nothing but unknown keys.
#[test]
fn the_random_questions_reach_every_answer() {
    let mut runner = TestRunner::deterministic();
    let mut reached = BTreeSet::new();
    for _ in 0..300 {
        let steps = steps().new_tree(&mut runner).expect("the strategy rejects nothing").current();
        reached.append(&mut run(steps).expect("table and model agree"));
    }
    let judged = Refusal::ALL.iter().take_while(|refusal| **refusal < Refusal::AddressNotAllowed);
    let mut expected: BTreeSet<&str> = judged.map(|refusal| refusal.code()).collect();
    expected.extend(["valid", "withheld"]);
    assert_eq!(reached, expected);
}
