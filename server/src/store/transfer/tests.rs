//! What backup, restore and move guarantee, on both engines.
//!
//! A [`World`] is a data folder with a store in it, on one engine, filled through `ops`; other
//! tests of the store use it, too. Whether a secret is good is asked of the table that the follower
//! loads, as a server would.

mod backups;
mod moves;
mod restores;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use keyward_core::{
    ApiId, AppId, Decision, EnvId, KeyId, OrgCode, Pepper, Prefix, Question, ScopesAsked, Secret,
    UserId, sha256,
};
use sqlx::postgres::PgConnectOptions;
use sqlx::{ConnectOptions, Connection};
use tempfile::TempDir;

use super::copying::{self, Sum};
use super::moving::MoveReport;
use super::tables::TABLES;
use super::*;
use crate::clock::{Clock, Entropy};
use crate::folder::Folder;
use crate::follower::{Follower, Shared};
use crate::lease::Lease;
use crate::ops::Context;
use crate::ops::environments::NewEnvironment;
use crate::ops::keys::{ImportedKey, NewKey, NewOwner};
use crate::ops::organizations::{MemberChange, NewOrganization};
use crate::secrets::{Keyring, Secrets};
use crate::store::{ServerUrl, counts};
use crate::{ops, store};

/// 2026-01-01T00:00:00Z in µs.
const NEW_YEAR: i64 = 1_767_225_600_000_000;
const DAY_US: i64 = 24 * 3_600 * 1_000_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::store) enum Engine {
    Sqlite,
    Postgres,
}

/// The engines to test on: both, unless it was said that there is no PostgreSQL here.
pub(in crate::store) fn engines() -> Vec<Engine> {
    let without = std::env::var_os("KEYWARD_TEST_WITHOUT_POSTGRES").is_some_and(|v| v == "1");
    if without { vec![Engine::Sqlite] } else { vec![Engine::Sqlite, Engine::Postgres] }
}

/// An empty place for a store: an SQLite file in `folder`, or a new database.
async fn empty_place(engine: Engine, folder: &Path) -> Location {
    if engine == Engine::Sqlite {
        return Location::File(Folder::existing(folder).database());
    }
    let url = std::env::var_os("KEYWARD_TEST_POSTGRES").expect(
        "KEYWARD_TEST_POSTGRES must name a scratch server (postgres://…); \
         KEYWARD_TEST_WITHOUT_POSTGRES=1 leaves its tests out",
    );
    let options: PgConnectOptions =
        url.to_str().expect("text").parse().expect("KEYWARD_TEST_POSTGRES is an address");
    let name = format!("keyward_{}", Entropy::system().alphanumeric::<16>().to_lowercase());
    let mut conn = options.connect().await.expect("the scratch server answers");
    sqlx::raw_sql(sqlx::AssertSqlSafe(format!("create database {name}")))
        .execute(&mut conn)
        .await
        .expect("databases may be created");
    conn.close().await.expect("closes");
    Location::Server(ServerUrl::new(options.database(&name).to_url_lossy().to_string()))
}

pub(in crate::store) struct World {
    folder: TempDir,
    location: Location,
    pub(in crate::store) store: Store,
    pub(in crate::store) env: EnvId,
    app: AppId,
    api: ApiId,
    pub(in crate::store) context: Context,
    pub(in crate::store) pepper: Pepper,
}

impl World {
    /// A store with an environment, an API `notes` with two scopes, and a connected application.
    pub(in crate::store) async fn found(engine: Engine, seed: u64) -> Self {
        let folder = tempfile::tempdir().expect("a folder");
        let location = empty_place(engine, folder.path()).await;
        let (clock, entropy) = (Clock::manual(NEW_YEAR), Entropy::seeded(seed));
        let secrets = Secrets::generate(&entropy);
        secrets.write_new(&Folder::existing(folder.path()).secrets()).expect("written");
        let store = Store::open(&location, true, clock, entropy).await.expect("opens");
        schema::bring_up(&store).await.expect("tables");
        let context = Context::system("test");
        let new = NewEnvironment {
            slug: "default".to_owned(),
            name: "Default".to_owned(),
            public_url: "http://127.0.0.1:8787".to_owned(),
            key_prefix: Prefix::parse("kw").expect("a prefix"),
        };
        let founded =
            ops::environments::create(&store, &context, &secrets, new).await.expect("founded");
        let (env, app) = (founded.value.env, founded.value.app);
        let api = ops::apis::create(&store, env, &context, "Notes".into(), "notes".into())
            .await
            .expect("an API")
            .value;
        for key in ["read", "write"] {
            ops::apis::create_scope(&store, env, &context, api, key.into(), None)
                .await
                .expect("a scope");
        }
        ops::apis::connect(&store, env, &context, api, vec![(app, true)]).await.expect("connected");
        let pepper = secrets.current_pepper();
        Self { folder, location, store, env, app, api, context, pepper }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    fn clock(&self) -> &Clock {
        &self.store.clock
    }

    fn secrets_path(&self) -> PathBuf {
        Folder::existing(self.path()).secrets()
    }

    pub(in crate::store) fn new_key(&self, owner: NewOwner) -> NewKey {
        NewKey {
            name: "a key".to_owned(),
            description: Some("for tests, with ü and 🔑".to_owned()),
            metadata: Some(r#"{"tier":"gold"}"#.to_owned()),
            owner,
            api: self.api,
            scopes: vec!["read".to_owned()],
            not_before: None,
            expires_at: None,
        }
    }

    async fn issue(&self, owner: NewOwner) -> (KeyId, Secret) {
        let new = self.new_key(owner);
        let pepper = self.pepper.clone();
        let issued = ops::keys::issue(&self.store, self.env, &self.context, pepper, new)
            .await
            .expect("issued")
            .value;
        (issued.key, issued.secret)
    }

    pub(in crate::store) async fn issue_to(&self, user: &str) -> (KeyId, Secret) {
        self.issue(NewOwner::User(user_id(user), None)).await
    }

    /// Imports a key for `user` whose secret is `text`.
    pub(in crate::store) async fn import(&self, user: &str, text: &str) -> KeyId {
        let new = self.new_key(NewOwner::User(user_id(user), None));
        let one = ImportedKey { new, digest: sha256(text.as_bytes()) };
        ops::keys::import(&self.store, self.env, &self.context, vec![one])
            .await
            .expect("imported")
            .value
            .remove(0)
    }

    pub(in crate::store) async fn organization(&self, org: &str, members: &[&str]) -> OrgCode {
        let new = NewOrganization {
            org: Some(org_code(org)),
            name: org.to_owned(),
            handle: Some(format!("handle-{org}")),
            external_id: None,
        };
        let org = ops::organizations::create(&self.store, self.env, &self.context, new)
            .await
            .expect("an organization")
            .value;
        let members =
            members.iter().map(|user| MemberChange { user: user_id(user), member: true }).collect();
        ops::organizations::change_members(
            &self.store,
            self.env,
            &self.context,
            org.clone(),
            members,
        )
        .await
        .expect("members");
        org
    }

    pub(in crate::store) async fn revoke(&self, key: KeyId) {
        ops::keys::revoke(&self.store, self.env, &self.context, key, Some("leaked".into()))
            .await
            .expect("revoked");
    }

    pub(in crate::store) async fn rotate(&self, key: KeyId) -> Secret {
        let pepper = self.pepper.clone();
        ops::keys::rotate(&self.store, self.env, &self.context, pepper, key)
            .await
            .expect("rotated")
            .value
            .secret
    }

    /// Stores that the file `file` counted `verified` verifications of `key`.
    pub(in crate::store) async fn count(&self, file: [u8; 16], key: KeyId, verified: u64) {
        let mut conn = self.store.side().await.expect("a connection");
        if counts::file(&mut conn, file).await.expect("asked").is_none() {
            counts::advance(&mut conn, file, None, 1, NEW_YEAR).await.expect("known");
        }
        let count = counts::Count {
            env: self.env,
            key,
            verified,
            refused: [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12],
            last_at: NEW_YEAR,
            last_address: Some("2001:db8::7".to_owned()),
        };
        drop(conn);
        counts::flush(&self.store, file, 1, &[count]).await.expect("flushed");
    }

    async fn counted(&self, key: KeyId) -> u64 {
        let mut conn = self.store.read().await.expect("a connection");
        counts::of_key(&mut conn, self.env, key).await.expect("counts").verified
    }

    /// One number or text that the statement selects.
    pub(in crate::store) async fn number(&self, sql: &'static str) -> i64 {
        let mut conn = self.store.read().await.expect("a connection");
        let found = store::row!(&mut conn, (i64,), sql).expect("selects");
        found.expect("one row").0
    }

    async fn meta(&self, name: &str) -> Option<String> {
        let mut conn = self.store.read().await.expect("a connection");
        schema::meta(&mut conn, name).await.expect("selects")
    }

    /// What a server that starts on this store answers to `secret`.
    async fn verdict(&self, secret: &str) -> &'static str {
        let shared = Arc::new(Shared::new(Lease::new(Duration::from_secs(15))));
        let keyring = Arc::new(Keyring::open(self.secrets_path()).expect("the secrets file"));
        let mut follower =
            Follower::new(self.store.clone(), Arc::clone(&shared), keyring, [0xff; 16]);
        follower.load(&Progress::silent()).await.expect("loads");
        let table = shared.table.read().expect("not poisoned");
        let question = Question {
            env: self.env,
            secret,
            now: self.clock().now_us(),
            api: None,
            audience: None,
            scopes: ScopesAsked::Strs(&["read"]),
            user: None,
            org: None,
            address: None,
        };
        match table.decide(&question) {
            Decision::Valid(_) => "valid",
            Decision::Refused(_, refusal) => refusal.code(),
            Decision::Unknown => "API_KEY_INVALID",
            Decision::Withheld => "withheld",
        }
    }

    /// What the tables hold.
    async fn sums(&self) -> Vec<Sum> {
        let mut conn = self.store.read().await.expect("a connection");
        copying::sums(&mut conn, TABLES.iter(), &Progress::silent()).await.expect("read")
    }

    async fn backup(&self, name: &str) -> PathBuf {
        let dest = self.path().join(name);
        backup(&self.store, &dest, None, &Progress::silent()).await.expect("backed up");
        // Everything that happens from here on is later than the backup.
        self.clock().advance(DAY_US);
        dest
    }

    async fn try_restore(&self, source: &Path) -> Result<RestoreReport> {
        let folder = Folder::existing(self.path());
        let target = RestoreTarget {
            location: &self.location,
            folder: &folder,
            secrets: &self.secrets_path(),
            clock: self.clock().clone(),
            entropy: self.store.entropy.clone(),
        };
        restore(source, &target, &self.context, &Progress::silent()).await
    }

    /// Restores and opens what is there now.
    async fn restore(self, source: &Path) -> (Self, RestoreReport) {
        let report = self.try_restore(source).await.expect("restored");
        (self.reopen().await, report)
    }

    /// The same world with fresh connections, as another process would have.
    async fn reopen(self) -> Self {
        let (clock, entropy) = (self.store.clock.clone(), self.store.entropy.clone());
        let store = Store::open(&self.location, false, clock, entropy).await.expect("opens");
        Self { store, ..self }
    }

    /// The same world at another place, after a move.
    async fn moved(self, to: &Location) -> Self {
        Self { location: to.clone(), ..self }.reopen().await
    }

    async fn try_move(&self, to: &Location) -> Result<MoveReport> {
        let folder = Folder::existing(self.path());
        let (clock, entropy) = (self.clock().clone(), self.store.entropy.clone());
        let (sources, silent) = ((clock, entropy), Progress::silent());
        move_store(&self.location, to, &folder, sources, &self.context, &silent).await
    }
}

pub(in crate::store) fn user_id(text: &str) -> UserId {
    UserId::parse(text).expect("a user's id")
}

fn org_code(text: &str) -> OrgCode {
    OrgCode::parse(text).expect("an organization's code")
}

#[tokio::test]
async fn every_table_and_column_of_the_schema_is_carried() {
    let world = World::found(Engine::Sqlite, 1).await;
    let mut conn = world.store.read().await.expect("a connection");
    let there = store::rows!(
        &mut conn,
        (String, String, String, i64),
        "select m.name, c.name, c.type, c.pk from sqlite_master m, pragma_table_info(m.name) c
         where m.type = 'table' and m.name not like 'sqlite_%'",
    )
    .expect("the schema");
    let mut there: Vec<_> = there
        .into_iter()
        .filter(|(table, ..)| table != "node_lease")
        .map(|(table, column, kind, key)| (table, column, kind, key > 0))
        .collect();
    let mut listed: Vec<_> = TABLES
        .iter()
        .flat_map(|table| {
            let keys = table.key().len();
            table.columns().into_iter().enumerate().map(move |(position, (column, kind))| {
                let kind = match kind {
                    tables::Kind::Number => "bigint",
                    tables::Kind::Text => "text",
                    tables::Kind::Bytes => "BLOB",
                };
                let is_key = position < keys;
                (table.name.to_owned(), column.to_owned(), kind.to_owned(), is_key)
            })
        })
        .collect();
    // SQLite prints a type as it was declared.
    there.iter_mut().for_each(|(_, _, kind, _)| {
        if kind.eq_ignore_ascii_case("blob") {
            "BLOB".clone_into(kind);
        } else {
            kind.make_ascii_lowercase();
        }
    });
    there.sort();
    listed.sort();
    assert_eq!(listed, there);
}
