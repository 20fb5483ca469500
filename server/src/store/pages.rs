//! Whole tables for the load, a page of rows in one row of an answer.
//!
//! A row of an answer costs the driver some microseconds, whatever is in it: on SQLite a hand-over
//! between threads and an allocation for each column. A load of a million keys spent most of its
//! time on that. So the database joins the rows of a page itself: their ids, one after the other,
//! to one run of bytes, and everything else to one text of words with a space in between. `-` is
//! a word for nothing, and free text is preceded by its length. Two aggregates of one statement
//! see the rows in one order, whichever that is, so the ids of a row are found by counting.
//!
//! What a page is put into, and that all pages are of one snapshot, is the business of `load`.

use keyward_core::{
    ApiId, Digest, EnvId, KeyId, KeyRow, MembershipRow, OrgRow, ScopeId, SecretRow, UserRow,
};

use super::{Conn, keys, owners, row};
use crate::error::{Error, Result};

/// Greater than every id, which has 16 bytes.
const BEYOND: [u8; 17] = [0xff; 17];

/// The columns of a page: how many rows, their ids, their words.
type Columns = (i64, Option<Vec<u8>>, Option<String>);

/// Rows as the database joined them.
#[derive(Debug, Default)]
pub(crate) struct Packed {
    rows: usize,
    ids: Vec<u8>,
    words: String,
}

impl Packed {
    fn of(found: Option<Columns>) -> Self {
        let (rows, ids, words) = found.unwrap_or_default();
        Self {
            rows: usize::try_from(rows).unwrap_or(0),
            ids: ids.unwrap_or_default(),
            words: words.unwrap_or_default(),
        }
    }

    /// Takes every row apart, from the first to the last.
    fn unpack<T>(&self, mut row: impl FnMut(&mut Rest<'_>) -> Result<T>) -> Result<Vec<T>> {
        let mut rest = Rest { ids: &self.ids, words: &self.words };
        let rows = (0..self.rows).map(|_| row(&mut rest)).collect::<Result<Vec<T>>>()?;
        if rest.ids.is_empty() && rest.words.is_empty() { Ok(rows) } else { Err(unreadable()) }
    }
}

/// What was not read yet of a page.
struct Rest<'p> {
    ids: &'p [u8],
    words: &'p str,
}

impl<'p> Rest<'p> {
    fn bytes<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (bytes, ids) = self.ids.split_first_chunk().ok_or_else(unreadable)?;
        self.ids = ids;
        Ok(*bytes)
    }

    fn word(&mut self) -> &'p str {
        let (word, words) = self.words.split_once(' ').unwrap_or((self.words, ""));
        self.words = words;
        word
    }

    fn number(&mut self) -> Result<i64> {
        self.word().parse().map_err(|_| unreadable())
    }

    fn length(&mut self) -> Result<usize> {
        self.word().parse().map_err(|_| unreadable())
    }

    fn flag(&mut self) -> Result<bool> {
        Ok(self.number()? != 0)
    }

    fn maybe(&mut self) -> Result<Option<i64>> {
        match self.word() {
            "-" => Ok(None),
            word => word.parse().map(Some).map_err(|_| unreadable()),
        }
    }

    /// A text of `length` bytes, which may hold spaces.
    fn text(&mut self, length: usize) -> Result<&'p str> {
        let (text, words) = self.words.split_at_checked(length).ok_or_else(unreadable)?;
        self.words = words;
        Ok(text)
    }

    /// The space after a text that ends its row; the last row has none.
    fn end_of_row(&mut self) {
        self.words = self.words.strip_prefix(' ').unwrap_or(self.words);
    }
}

fn unreadable() -> Error {
    Error::internal("a page of the database cannot be read")
}

/// The end of a page of owners: an environment and an id, or nothing at the very beginning.
#[derive(Debug, Default)]
pub(crate) struct OwnerMark(Vec<u8>, String);

/// Reads a page, and its last id if there may be another.
///
/// The end of a page is a `limit`. PostgreSQL takes a pair of columns for the beginning of a range
/// in an index but not for its end, and would read on to the end of the table.
macro_rules! owners_page {
    ($conn:expr, $after:expr, $size:expr, $table:literal, $id:literal) => {{
        let OwnerMark(env, id) = $after;
        let mark = row!(
            $conn,
            (Vec<u8>, String),
            concat!(
                "select env_id, ",
                $id,
                " from ",
                $table,
                " where (env_id, ",
                $id,
                ") > ($1, $2) order by env_id, ",
                $id,
                " limit 1 offset $3"
            ),
            env.as_slice(),
            id.as_str(),
            $size - 1,
        )?;
        let found = row!(
            $conn,
            Columns,
            concat!(
                "select count(*), string_agg(env_id, null),
                        string_agg(concat_ws(' ', owner,
                            case when suspended_at is null then 0 else 1 end,
                            case when deleted_at is null then 0 else 1 end, revoked_up_to), ' ')
                 from (select env_id, ",
                $id,
                " as owner, suspended_at, deleted_at, revoked_up_to from ",
                $table,
                " where (env_id, ",
                $id,
                ") > ($1, $2) order by env_id, ",
                $id,
                " limit $3) page"
            ),
            env.as_slice(),
            id.as_str(),
            $size,
        )?;
        Ok((Packed::of(found), mark.map(|(env, id)| OwnerMark(env, id))))
    }};
}

/// The `size` users after a mark, deleted ones too, and the mark of the next page if there is one.
pub(crate) async fn users_any_environment(
    conn: &mut Conn,
    after: &OwnerMark,
    size: i64,
) -> Result<(Packed, Option<OwnerMark>)> {
    owners_page!(conn, after, size, "users", "user_id")
}

/// Like [`users_any_environment`], of organizations.
pub(crate) async fn orgs_any_environment(
    conn: &mut Conn,
    after: &OwnerMark,
    size: i64,
) -> Result<(Packed, Option<OwnerMark>)> {
    owners_page!(conn, after, size, "organizations", "org_code")
}

impl Packed {
    /// The users of a page.
    pub(crate) fn users(&self) -> Result<Vec<UserRow>> {
        self.unpack(|rest| {
            Ok(UserRow {
                env: EnvId::from_bytes(rest.bytes()?),
                user: owners::user_id(rest.word())?,
                suspended: rest.flag()?,
                deleted: rest.flag()?,
                revoked_up_to: owners::revoked_up_to(rest.number()?),
            })
        })
    }

    /// The organizations of a page.
    pub(crate) fn orgs(&self) -> Result<Vec<OrgRow>> {
        self.unpack(|rest| {
            Ok(OrgRow {
                env: EnvId::from_bytes(rest.bytes()?),
                org: owners::org_code(rest.word())?,
                suspended: rest.flag()?,
                deleted: rest.flag()?,
                revoked_up_to: owners::revoked_up_to(rest.number()?),
            })
        })
    }

    /// The memberships of a page.
    pub(crate) fn memberships(&self) -> Result<Vec<MembershipRow>> {
        self.unpack(|rest| {
            Ok(MembershipRow {
                env: EnvId::from_bytes(rest.bytes()?),
                org: owners::org_code(rest.word())?,
                user: owners::user_id(rest.word())?,
                member: rest.flag()?,
            })
        })
    }
}

/// The end of a page of memberships: environment, organization, user.
#[derive(Debug, Default)]
pub(crate) struct MembershipMark(Vec<u8>, String, String);

/// The `size` memberships after a mark, the ended ones too, and the mark of the next page if there
/// is one.
pub(crate) async fn memberships_any_environment(
    conn: &mut Conn,
    after: &MembershipMark,
    size: i64,
) -> Result<(Packed, Option<MembershipMark>)> {
    let MembershipMark(env, org, user) = after;
    let mark = row!(
        conn,
        (Vec<u8>, String, String),
        "select env_id, org_code, user_id from memberships
         where (env_id, org_code, user_id) > ($1, $2, $3)
         order by env_id, org_code, user_id limit 1 offset $4",
        env.as_slice(),
        org.as_str(),
        user.as_str(),
        size - 1,
    )?;
    let found = row!(
        conn,
        Columns,
        "select count(*), string_agg(env_id, null),
                string_agg(concat_ws(' ', org_code, user_id,
                    case when left_at is null then 1 else 0 end), ' ')
         from (select env_id, org_code, user_id, left_at from memberships
               where (env_id, org_code, user_id) > ($1, $2, $3)
               order by env_id, org_code, user_id limit $4) page",
        env.as_slice(),
        org.as_str(),
        user.as_str(),
        size,
    )?;
    let mark = mark.map(|(env, org, user)| MembershipMark(env, org, user));
    Ok((Packed::of(found), mark))
}

/// The end of a page of keys: an id, or nothing at the very beginning.
#[derive(Debug, Default)]
pub(crate) struct KeyMark(Vec<u8>);

/// A page of keys, and their secrets.
#[derive(Debug)]
pub(crate) struct PackedKeys {
    keys: Packed,
    secrets: Packed,
}

/// The `size` keys after a mark, and the mark of the next page if there is one.
///
/// Keys and secrets are read one after the other, each from its own index, since a join would look
/// every key up once more.
pub(crate) async fn keys_any_environment(
    conn: &mut Conn,
    after: &KeyMark,
    size: i64,
) -> Result<(PackedKeys, Option<KeyMark>)> {
    let mark = row!(
        conn,
        (Vec<u8>,),
        "select key_id from api_keys where key_id > $1 order by key_id limit 1 offset $2",
        after.0.as_slice(),
        size - 1,
    )?;
    let mark = mark.map(|(id,)| KeyMark(id));
    let last = mark.as_ref().map_or(BEYOND.as_slice(), |mark| mark.0.as_slice());
    let keys = row!(
        conn,
        Columns,
        "select count(*), string_agg(key_id || env_id || api_id || scope_ids, null),
                string_agg(concat_ws(' ', octet_length(scope_ids), owner_kind,
                    coalesce(user_id, '-'), coalesce(org_code, '-'), issued_seq,
                    coalesce(cast(not_before as text), '-'),
                    coalesce(cast(expires_at as text), '-'),
                    case when disabled_at is null then 0 else 1 end,
                    case when revoked_at is null then 0 else 1 end, imported, octet_length(name),
                    coalesce(cast(octet_length(metadata) as text), '-'),
                    name || coalesce(metadata, '')), ' ')
         from api_keys where key_id > $1 and key_id <= $2",
        after.0.as_slice(),
        last,
    )?;
    let secrets = row!(
        conn,
        Columns,
        "select count(*), string_agg(key_id || digest, null),
                string_agg(concat_ws(' ', pepper_id, coalesce(cast(superseded_at as text), '-')),
                           ' ')
         from key_secrets where key_id > $1 and key_id <= $2",
        after.0.as_slice(),
        last,
    )?;
    Ok((PackedKeys { keys: Packed::of(keys), secrets: Packed::of(secrets) }, mark))
}

impl PackedKeys {
    /// How many keys there are in it.
    pub(crate) fn len(&self) -> usize {
        self.keys.rows
    }

    /// The keys of the page.
    pub(crate) fn keys(&self) -> Result<Vec<KeyRow>> {
        let mut secrets = self.secrets.unpack(|rest| {
            let key = KeyId::from_bytes(rest.bytes()?);
            let digest = Digest::from_bytes(rest.bytes()?);
            let scheme = keys::scheme(rest.number()?)?;
            Ok((key, SecretRow { digest, scheme, superseded_at: rest.maybe()? }))
        })?;
        // By their key, if the index did not give them in that order already.
        secrets.sort_by_key(|(key, _)| *key);
        let mut keys = self.keys.unpack(|rest| {
            let key = KeyId::from_bytes(rest.bytes()?);
            let env = EnvId::from_bytes(rest.bytes()?);
            let api = ApiId::from_bytes(rest.bytes()?);
            let scopes = (0..rest.length()? / 16)
                .map(|_| rest.bytes().map(ScopeId::from_bytes))
                .collect::<Result<_>>()?;
            let (kind, user, org) = (rest.number()?, rest.word(), rest.word());
            let owner = keys::owner(kind, Some(user), Some(org))?;
            let (issued_seq, not_before) = (rest.number()?, rest.maybe()?);
            let (expires_at, disabled) = (rest.maybe()?, rest.flag()?);
            let (revoked, imported) = (rest.flag()?, rest.flag()?);
            let (name_length, metadata_length) = (rest.length()?, rest.maybe()?);
            let name = rest.text(name_length)?.into();
            let metadata = match metadata_length.map(usize::try_from) {
                None => None,
                Some(Ok(length)) => Some(rest.text(length)?.into()),
                Some(Err(_)) => return Err(unreadable()),
            };
            rest.end_of_row();
            let first = secrets.partition_point(|(its_key, _)| *its_key < key);
            let own = secrets.iter().skip(first).take_while(|(its_key, _)| *its_key == key);
            Ok(KeyRow {
                env,
                key,
                name,
                metadata,
                owner,
                api,
                scopes,
                issued_seq,
                not_before,
                expires_at,
                disabled,
                revoked,
                imported,
                secrets: own.map(|(_, secret)| secret.clone()).collect(),
                base_count: 0,
                base_verified_at: 0,
            })
        })?;
        // What the follower reads of a key is joined with its secrets, and finds none without.
        keys.retain(|key| !key.secrets.is_empty());
        Ok(keys)
    }
}

/// A key's verifications that all counter files but one know of.
#[derive(Debug, Clone)]
pub(crate) struct Total {
    pub(crate) env: EnvId,
    pub(crate) key: KeyId,
    pub(crate) verified: u64,
    /// The last success, µs since the epoch; 0 for never.
    pub(crate) last_at: i64,
}

/// Totals over all counter files but `file` of the keys with the `size` rows after a mark, and the
/// mark of the next page if there is one.
pub(crate) async fn totals_of_others_any_environment(
    conn: &mut Conn,
    file: [u8; 16],
    after: &KeyMark,
    size: i64,
) -> Result<(Packed, Option<KeyMark>)> {
    let mark = row!(
        conn,
        (Vec<u8>,),
        "select key_id from key_usage where key_id > $1 order by key_id limit 1 offset $2",
        after.0.as_slice(),
        size - 1,
    )?;
    let mark = mark.map(|(id,)| KeyMark(id));
    let last = mark.as_ref().map_or(BEYOND.as_slice(), |mark| mark.0.as_slice());
    let totals = row!(
        conn,
        Columns,
        "select count(*), string_agg(key_id || env_id, null),
                string_agg(concat_ws(' ', verified, last_at), ' ')
         from (select key_id, env_id, cast(sum(verified) as bigint) as verified,
                      max(last_at) as last_at
               from key_usage where file_id <> $1 and key_id > $2 and key_id <= $3
               group by key_id, env_id) t",
        file.as_slice(),
        after.0.as_slice(),
        last,
    )?;
    Ok((Packed::of(totals), mark))
}

impl Packed {
    /// The totals of a page.
    pub(crate) fn totals(&self) -> Result<Vec<Total>> {
        self.unpack(|rest| {
            let key = KeyId::from_bytes(rest.bytes()?);
            let env = EnvId::from_bytes(rest.bytes()?);
            let verified = u64::try_from(rest.number()?).unwrap_or(0);
            Ok(Total { env, key, verified, last_at: rest.number()? })
        })
    }
}

#[cfg(test)]
mod tests;
