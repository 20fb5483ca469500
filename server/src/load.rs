//! The load: everything that verification reads, from one snapshot of the store.
//!
//! A server answers nothing before it, so it decides how long a start takes. Two threads share the
//! work: the caller's asks the database for page after page, and one of its own takes pages apart
//! and puts their rows into the table. Pages wait for it in a short queue, so that the memory for
//! them does not grow with the store. Nobody sees the table before it is complete.
//!
//! How pages look is the business of `store::pages`; what happens to the table afterwards, and what
//! is to be done about a store that changed meanwhile, that of the follower.

use keyward_core::protocol::Head;
use keyward_core::{ApiRow, EnvironmentRow, Table};
use tokio::sync::mpsc;

use crate::directory::Directory;
use crate::error::{Error, Result};
use crate::progress::Progress;
use crate::secrets::Keyring;
use crate::store::pages::{self, KeyMark, MembershipMark, OwnerMark, Packed, PackedKeys};
use crate::store::{Conn, apis, changes, keys, owners};

/// Rows in a page: about 1 MiB of keys.
const PAGE_ROWS: i64 = 5_000;
/// Pages that wait to be put into the table.
const WAITING_MAX: usize = 4;

/// What a load read.
pub(crate) struct Loaded {
    pub(crate) table: Table,
    pub(crate) directory: Directory,
    /// The last change that is in it, with that change's own nonce.
    pub(crate) head: Head,
}

/// Rows on their way into the table.
enum Page {
    Users(Packed),
    Orgs(Packed),
    Memberships(Packed),
    Keys(PackedKeys),
    Totals(Packed),
}

impl Page {
    fn put_into(self, table: &mut Table) -> Result<()> {
        match self {
            Page::Users(page) => page.users()?.into_iter().for_each(|row| table.put_user(row)),
            Page::Orgs(page) => page.orgs()?.into_iter().for_each(|row| table.put_org(row)),
            Page::Memberships(page) => {
                page.memberships()?.into_iter().for_each(|row| table.put_membership(row));
            }
            Page::Keys(page) => page.keys()?.into_iter().for_each(|row| table.put_key(row)),
            Page::Totals(page) => {
                for total in page.totals()? {
                    table.set_base(total.env, total.key, total.verified, total.last_at);
                }
            }
        }
        Ok(())
    }
}

/// Loads everything through `conn`, on which a snapshot was begun. Keys' counts are based on the
/// totals of all counter files but `counter_file`.
pub(crate) async fn load(
    conn: &mut Conn,
    keyring: &Keyring,
    counter_file: [u8; 16],
    generation: u64,
    progress: &Progress,
) -> Result<Loaded> {
    let head = changes::head(conn, -1).await?;
    let head = changes::head(conn, head.seq).await?;
    keyring.check(conn).await?;
    let directory = Directory::load(conn, &keyring.secrets(), generation).await?;
    let mut table = Table::new();
    table.set_peppers(keyring.peppers());
    for row in environment_rows(&directory) {
        table.put_environment(row);
    }
    for row in load_apis(conn).await? {
        table.put_api(row);
    }
    let (keys, users) = (
        keys::count_any_environment(conn).await?,
        owners::count_users_any_environment(conn).await?,
    );
    table.expect(usize::try_from(keys).unwrap_or(0), usize::try_from(users).unwrap_or(0));
    progress.begin("loading keys", keys);
    let (pages, mut waiting) = mpsc::channel::<Page>(WAITING_MAX);
    let filling = tokio::task::spawn_blocking(move || {
        while let Some(page) = waiting.blocking_recv() {
            page.put_into(&mut table)?;
        }
        Ok(table)
    });
    let read = read_pages(conn, counter_file, progress, pages).await;
    progress.end();
    let table = filling.await.unwrap_or_else(|panic| Err(Error::internal(panic)))?;
    read?;
    Ok(Loaded { table, directory, head })
}

/// Reads every page and hands it on, until there is no more or nobody takes it.
async fn read_pages(
    conn: &mut Conn,
    counter_file: [u8; 16],
    progress: &Progress,
    pages: mpsc::Sender<Page>,
) -> Result<()> {
    macro_rules! hand_on {
        ($page:expr) => {
            // OK to end without an error: whoever took the pages tells why it stopped.
            let Ok(()) = pages.send($page).await else { return Ok(()) };
        };
    }
    let mut from = Some(OwnerMark::default());
    while let Some(after) = from.take() {
        let (page, next) = pages::users_any_environment(conn, &after, PAGE_ROWS).await?;
        hand_on!(Page::Users(page));
        from = next;
    }
    let mut from = Some(OwnerMark::default());
    while let Some(after) = from.take() {
        let (page, next) = pages::orgs_any_environment(conn, &after, PAGE_ROWS).await?;
        hand_on!(Page::Orgs(page));
        from = next;
    }
    let mut from = Some(MembershipMark::default());
    while let Some(after) = from.take() {
        let (page, next) = pages::memberships_any_environment(conn, &after, PAGE_ROWS).await?;
        hand_on!(Page::Memberships(page));
        from = next;
    }
    let mut from = Some(KeyMark::default());
    while let Some(after) = from.take() {
        let (page, next) = pages::keys_any_environment(conn, &after, PAGE_ROWS).await?;
        progress.advance(page.len());
        hand_on!(Page::Keys(page));
        from = next;
    }
    let mut from = Some(KeyMark::default());
    while let Some(after) = from.take() {
        let (page, next) =
            pages::totals_of_others_any_environment(conn, counter_file, &after, PAGE_ROWS).await?;
        hand_on!(Page::Totals(page));
        from = next;
    }
    Ok(())
}

/// What the table needs of the directory's environments.
pub(crate) fn environment_rows(directory: &Directory) -> impl Iterator<Item = EnvironmentRow> {
    directory.tenants().map(|tenant| EnvironmentRow {
        env: tenant.row.env,
        prefixes: tenant.row.key_prefixes.iter().map(|p| p.as_str().into()).collect(),
        refused: tenant.withheld,
    })
}

/// What the table needs of an API.
pub(crate) fn api_row(api: apis::Api, scopes: Vec<apis::Scope>) -> ApiRow {
    ApiRow {
        env: api.env,
        api: api.api,
        audience: api.audience.into_boxed_str(),
        deleted: api.deleted_at.is_some(),
        scopes: scopes.into_iter().map(|s| (s.scope, s.key.into_boxed_str())).collect(),
    }
}

async fn load_apis(conn: &mut Conn) -> Result<Vec<ApiRow>> {
    let mut scopes = apis::scopes_any_environment(conn).await?;
    let all = apis::all_any_environment(conn).await?;
    Ok(all
        .into_iter()
        .map(|api| {
            let own = scopes.extract_if(.., |scope| scope.api == api.api).collect();
            api_row(api, own)
        })
        .collect())
}
