//! The keys of the simulation: real secrets, digests and rows.

use std::sync::OnceLock;

use keyward_core::{
    ApiId, ApiRow, EnvId, EnvironmentRow, KeyId, KeyRow, Owner, Pepper, Prefix, Question, Scheme,
    ScopesAsked, Secret, SecretRow, Table,
};

use crate::database::{Change, Deed};

/// How many there are.
pub const COUNT: usize = 16;

const ENV: EnvId = EnvId::from_bytes([1; 16]);
const API: ApiId = ApiId::from_bytes([2; 16]);

/// Secrets with their rows; digests are dear without optimization.
fn known() -> &'static [(String, KeyRow)] {
    static KNOWN: OnceLock<Vec<(String, KeyRow)>> = OnceLock::new();
    KNOWN.get_or_init(|| (0..COUNT).map(|key| made(key as u8 + 1)).collect())
}

fn pepper() -> Pepper {
    Pepper::new(1, b"pepper")
}

fn made(number: u8) -> (String, KeyRow) {
    let prefix = Prefix::parse("k_live").expect("the default prefix is one");
    let text = Secret::mint(&prefix, &[number; 32]).expose().to_owned();
    let digest = pepper().digest(text.as_bytes());
    let row = KeyRow {
        env: ENV,
        key: KeyId::from_bytes([number; 16]),
        name: "nightly job".into(),
        metadata: None,
        owner: Owner::Environment,
        api: API,
        scopes: Vec::new(),
        issued_seq: 0,
        not_before: None,
        expires_at: None,
        disabled: false,
        revoked: false,
        imported: false,
        secrets: vec![SecretRow { digest, scheme: Scheme::Pepper(1), superseded_at: None }],
        base_count: 0,
        base_verified_at: 0,
    };
    (text, row)
}

/// A table without keys.
pub fn table() -> Table {
    let mut table = Table::new();
    table.set_peppers(vec![pepper()]);
    let prefixes = vec!["k_live".into()];
    table.put_environment(EnvironmentRow { env: ENV, prefixes, refused: false });
    let (audience, scopes) = ("https://api.example.com".into(), Vec::new());
    table.put_api(ApiRow { env: ENV, api: API, audience, deleted: false, scopes });
    table
}

/// Applies changes in order.
pub fn apply(table: &mut Table, changes: &[Change]) {
    for change in changes {
        let (key, revoked) = match change.deed {
            Deed::Issued(key) => (key, false),
            Deed::Revoked(key) => (key, true),
        };
        table.put_key(KeyRow { revoked, ..known()[key].1.clone() });
    }
}

/// Whether a key is good.
pub fn question(key: usize) -> Question<'static> {
    Question {
        env: ENV,
        secret: &known()[key].0,
        now: 1,
        api: None,
        audience: None,
        scopes: ScopesAsked::NONE,
        user: None,
        org: None,
        address: None,
    }
}
