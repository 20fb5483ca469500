//! Users in Kinde's words (wire.md §4). What happens to them is in `ops::users`.
//!
//! Most routes name the user in the query, and what a query names and does not exist is a 400.

use keyward_core::{OrgCode, UserId};
use serde_json::{Value, json};

use super::call::{Call, Reply};
use super::fields::{Fields, missing, wrong};
use super::page::{self, decode_token, encode_token};
use crate::clock::rfc3339;
use crate::error::{Error, Kind, Result};
use crate::lease::Settle;
use crate::ops::users::{self, NewUser, UserPatch};
use crate::store::owners::{self, User, UserFilter};

/// Users or organizations on a page when `page_size` is absent.
pub(super) const PAGE_SIZE: i64 = 10;
/// Longest name of a person or an organization, and longest id of another system, in characters.
pub(super) const TEXT_CHARS_MAX: usize = 255;
/// Longest `next_token`: an owner's id of 255 characters of 4 bytes and two bytes of ours make
/// 1,363 characters of base64.
const TOKEN_CHARS_MAX: usize = 1_400;
/// Longest list of ids or e-mail addresses in a query, in characters.
const LIST_CHARS_MAX: usize = 4_096;
/// Longest e-mail address, in characters: RFC 5321's path without its brackets.
const EMAIL_CHARS_MAX: usize = 254;
/// Most identities of a new user.
const IDENTITIES_MAX: usize = 10;
/// Most organizations that one user is shown with.
const ORGANIZATIONS_MAX: i64 = 500;

/// `GET /users`
pub(crate) async fn list(call: Call) -> Result<Reply> {
    let mut query = call.query()?;
    let size = query.page_size(PAGE_SIZE)?;
    let after = take_cursor(&mut query)?;
    let ids = query.take_str("user_id", LIST_CHARS_MAX)?.map(any_of);
    let emails = query.take_str("email", LIST_CHARS_MAX)?.map(any_of);
    query.ignore(&["username", "phone", "expand", "has_organization", "active_since"]);
    query.finish()?;
    let filter = UserFilter { ids, emails };
    let mut conn = call.app.store.read().await?;
    let mut found = owners::users_page(&mut conn, call.env, &filter, &after, size + 1).await?;
    let next_token = cut_page(&mut found, size, |user| user.user.as_str());
    Ok(Reply::ok(json!({
        "code": "OK",
        "message": "Success",
        "users": found.iter().map(in_list).collect::<Vec<_>>(),
        "next_token": next_token,
    })))
}

/// `GET /user`
pub(crate) async fn show(call: Call) -> Result<Reply> {
    let mut query = call.query()?;
    let id = need_user(&mut query)?;
    query.ignore(&["expand"]);
    query.finish()?;
    let mut conn = call.app.store.read().await?;
    let user = owners::find_user(&mut conn, call.env, &id).await?;
    let user = user.filter(|user| user.deleted_at.is_none()).ok_or_else(unknown)?;
    let orgs = owners::organizations_of(&mut conn, call.env, &id, ORGANIZATIONS_MAX).await?;
    Ok(Reply::ok(json!({
        "id": user.user.as_str(),
        "provided_id": user.provided_id,
        "preferred_email": user.email,
        "username": user.username,
        "last_name": user.family_name,
        "first_name": user.given_name,
        "is_suspended": user.suspended_at.is_some(),
        "created_on": rfc3339(user.created_at),
        "organizations": orgs.iter().map(OrgCode::as_str).collect::<Vec<_>>(),
    })))
}

/// `POST /user`
pub(crate) async fn create(call: Call) -> Result<Reply> {
    let mut body = call.body()?;
    let mut new = NewUser {
        user: body.take_str("id", TEXT_CHARS_MAX)?.map(|id| parse_user("id", &id)).transpose()?,
        provided_id: body.take_str("provided_id", TEXT_CHARS_MAX)?,
        ..NewUser::default()
    };
    if let Some(code) = body.take_str("organization_code", TEXT_CHARS_MAX)? {
        new.org = Some(parse_org("organization_code", &code)?);
    }
    if let Some(mut profile) = body.take_object("profile")? {
        new.given_name = profile.take_name("given_name", TEXT_CHARS_MAX)?;
        new.family_name = profile.take_name("family_name", TEXT_CHARS_MAX)?;
        profile.ignore(&["picture"]);
        profile.finish()?;
    }
    let mut identities = Vec::new();
    for identity in body.take_array("identities", IDENTITIES_MAX)?.unwrap_or_default() {
        identities.push(take_identity(identity, &mut new)?);
    }
    body.finish()?;
    let done = users::create(&call.app.store, call.env, &call.context, new).await?;
    call.app.settle(done.stamp(), Settle::Widening).await?;
    Ok(Reply::ok(json!({
        "id": done.value.as_str(),
        "created": true,
        "identities": identities,
    }))
    .seq(done.seq))
}

/// Reads one of a new user's identities and keeps it, if it is the first of its kind and of a kind
/// that is kept; returns what the reply says of it.
fn take_identity(identity: Value, new: &mut NewUser) -> Result<Value> {
    let Value::Object(identity) = identity else {
        return Err(wrong("identities", "must be a list of objects"));
    };
    let mut identity = Fields::of_object(identity);
    let kind = identity.need_str("type", TEXT_CHARS_MAX)?;
    identity.ignore(&["is_verified"]);
    let (mut email, mut username) = (None, None);
    if let Some(mut details) = identity.take_object("details")? {
        email = details.take_str("email", EMAIL_CHARS_MAX)?;
        username = details.take_name("username", TEXT_CHARS_MAX)?;
        details.ignore(&["phone", "phone_country_id"]);
        details.finish()?;
    }
    identity.finish()?;
    if email.as_deref().is_some_and(|email| !is_email(email)) {
        return Err(wrong("email", "must be an e-mail address"));
    }
    let (slot, value) = match kind.as_str() {
        "email" => (&mut new.email, Some(email.ok_or_else(|| missing("details.email"))?)),
        "username" => {
            (&mut new.username, Some(username.ok_or_else(|| missing("details.username"))?))
        }
        "phone" => (&mut new.username, None),
        _ => return Err(wrong("type", "must be email, username or phone")),
    };
    let created = slot.is_none() && value.is_some();
    if created {
        *slot = value;
    }
    Ok(json!({ "type": kind, "result": { "created": created } }))
}

/// `PATCH /user`
pub(crate) async fn update(call: Call) -> Result<Reply> {
    let mut query = call.query()?;
    let id = need_user(&mut query)?;
    query.finish()?;
    let mut body = call.body()?;
    body.refuse_null(&["is_suspended"])?;
    let given_name = body.take_name("given_name", TEXT_CHARS_MAX)?;
    let family_name = body.take_name("family_name", TEXT_CHARS_MAX)?;
    let provided_id = body.take_str("provided_id", TEXT_CHARS_MAX)?;
    let patch = UserPatch {
        given_name: patched(&body, "given_name", given_name),
        family_name: patched(&body, "family_name", family_name),
        provided_id: patched(&body, "provided_id", provided_id),
        suspended: body.take_bool("is_suspended")?,
    };
    body.ignore(&["picture", "is_password_reset_requested"]);
    body.finish()?;
    let settle = settling(patch.suspended);
    let done = users::update(&call.app.store, call.env, &call.context, id, patch)
        .await
        .map_err(named_in_query)?;
    call.app.settle(done.stamp(), settle).await?;
    let user = done.value;
    Ok(Reply::ok(json!({
        "id": user.user.as_str(),
        "given_name": user.given_name,
        "family_name": user.family_name,
        "email": user.email,
        "provided_id": user.provided_id,
        "is_suspended": user.suspended_at.is_some(),
    }))
    .seq(done.seq))
}

/// `DELETE /user`
pub(crate) async fn delete(call: Call) -> Result<Reply> {
    let mut query = call.query()?;
    let id = need_user(&mut query)?;
    query.ignore(&["is_delete_profile"]);
    query.finish()?;
    let done = users::delete(&call.app.store, call.env, &call.context, id)
        .await
        .map_err(named_in_query)?;
    call.app.settle(done.stamp(), Settle::Narrowing).await?;
    Ok(Reply::ok(json!({ "code": "OK", "message": "Success" })).seq(done.seq))
}

fn in_list(user: &User) -> Value {
    json!({
        "id": user.user.as_str(),
        "provided_id": user.provided_id,
        "email": user.email,
        "username": user.username,
        "last_name": user.family_name,
        "first_name": user.given_name,
        "is_suspended": user.suspended_at.is_some(),
        "created_on": rfc3339(user.created_at),
    })
}

/// What a change makes of a field: nothing if it is absent, empty if it is null.
pub(super) fn patched(body: &Fields, name: &str, value: Option<String>) -> Option<Option<String>> {
    (value.is_some() || body.was_null(name)).then_some(value)
}

/// How a change waits: only a suspension takes something away.
pub(super) fn settling(suspended: Option<bool>) -> Settle {
    if suspended == Some(true) { Settle::Narrowing } else { Settle::Widening }
}

/// Takes `next_token`: the id that the page before ended with, empty for the first page.
pub(super) fn take_cursor(query: &mut Fields) -> Result<String> {
    let Some(token) = query.take_str("next_token", TOKEN_CHARS_MAX)? else {
        return Ok(String::new());
    };
    let last = decode_token(&token)?;
    // Users' ids and organizations' codes obey the same rules; what does not was never given out,
    // and need not be text that the database can take.
    if UserId::parse(&last).is_none() {
        return Err(page::bad_token());
    }
    Ok(last)
}

/// Cuts `found`, which was asked for with one more than `size`, to the size; the next page's token.
pub(super) fn cut_page<T>(
    found: &mut Vec<T>,
    size: i64,
    id: impl Fn(&T) -> &str,
) -> Option<String> {
    let size = usize::try_from(size).unwrap_or(0);
    if found.len() <= size {
        return None;
    }
    found.truncate(size);
    found.last().map(|last| encode_token(id(last)))
}

/// The values that a comma-separated filter allows. An id may hold commas itself, so that the
/// whole text is one of them, too.
fn any_of(text: String) -> Vec<String> {
    let mut values: Vec<String> = Vec::new();
    if text.contains(',') {
        let parts = text.split(',').map(str::trim).filter(|part| !part.is_empty());
        values.extend(parts.map(str::to_owned));
    }
    values.push(text);
    values
}

fn need_user(query: &mut Fields) -> Result<UserId> {
    let id = query.need_str("id", TEXT_CHARS_MAX)?;
    parse_user("id", &id)
}

/// Reads a user's id out of the field `name`.
pub(super) fn parse_user(name: &str, id: &str) -> Result<UserId> {
    UserId::parse(id).ok_or_else(|| wrong(name, "must be 1 to 255 visible characters"))
}

/// Reads an organization's code out of the field `name`.
pub(super) fn parse_org(name: &str, code: &str) -> Result<OrgCode> {
    OrgCode::parse(code).ok_or_else(|| wrong(name, "must be 1 to 255 visible characters"))
}

/// What a query named is not repeated: it may be a secret that was put into the wrong field.
fn unknown() -> Error {
    Error::invalid("UNKNOWN_USER", "`id`: there is no such user")
}

/// A user that does not exist is a 400 where the query named it.
fn named_in_query(error: Error) -> Error {
    if error.kind == Kind::NotFound { unknown() } else { error }
}

/// Whether a text can be an e-mail address: visible, with one `@` that is neither first nor last.
/// More than that only a mail to it could tell.
fn is_email(text: &str) -> bool {
    let parts = text.split_once('@');
    let has_both = |(local, domain): (&str, &str)| {
        !local.is_empty() && !domain.is_empty() && !domain.contains('@')
    };
    UserId::parse(text).is_some() && parts.is_some_and(has_both)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity(value: Value, new: &mut NewUser) -> Result<bool> {
        take_identity(value, new).map(|reply| reply["result"]["created"] == true)
    }

    #[test]
    fn the_first_identity_of_a_kind_is_kept_and_telephone_numbers_are_not() {
        let mut new = NewUser::default();
        let email = |text: &str| json!({ "type": "email", "details": { "email": text } });
        assert!(identity(email("ada@example.com"), &mut new).expect("good"));
        assert!(!identity(email("ada@example.org"), &mut new).expect("good"));
        let phone = json!({ "type": "phone", "details": { "phone": "+4912345" } });
        assert!(!identity(phone, &mut new).expect("good"));
        assert_eq!(new.email.as_deref(), Some("ada@example.com"));
        assert_eq!(new.username, None);
    }

    #[test]
    fn an_identity_without_its_value_or_of_another_kind_is_refused() {
        for bad in [
            json!("email"),
            json!({}),
            json!({ "type": "email" }),
            json!({ "type": "email", "details": { "username": "ada" } }),
            json!({ "type": "email", "details": { "email": "ada" } }),
            json!({ "type": "email", "details": { "email": "a@b@c" } }),
            json!({ "type": "email", "details": { "email": "a b@c" } }),
            json!({ "type": "email", "details": { "email": "@c" } }),
            json!({ "type": "email", "details": { "email": "a@" } }),
            json!({ "type": "email", "details": { "email": "a@b", "more": 1 } }),
            json!({ "type": "username", "details": { "username": " " } }),
            json!({ "type": "passkey", "details": {} }),
        ] {
            let shown = bad.to_string();
            assert!(identity(bad, &mut NewUser::default()).is_err(), "{shown}");
        }
    }

    #[test]
    fn a_filter_finds_ids_with_commas_and_lists_of_ids() {
        assert_eq!(any_of("kp_1".to_owned()), ["kp_1"]);
        assert_eq!(any_of("a, b,,".to_owned()), ["a", "b", "a, b,,"]);
    }

    #[test]
    fn a_page_has_a_token_only_when_there_is_more() {
        let mut found = ["a", "b", "c"].map(str::to_owned).to_vec();
        assert_eq!(cut_page(&mut found, 3, |id| id.as_str()), None);
        let token = cut_page(&mut found, 2, |id| id.as_str()).expect("there is more");
        assert_eq!(found, ["a", "b"]);
        let mut query = Fields::of_query(&format!("next_token={token}")).expect("good");
        assert_eq!(take_cursor(&mut query).expect("good"), "b");
    }

    #[test]
    fn a_token_of_what_cannot_be_an_id_is_refused() {
        for last in ["", "\0", "a b"] {
            let token = encode_token(last);
            let mut query = Fields::of_query(&format!("next_token={token}")).expect("good");
            assert_eq!(take_cursor(&mut query).expect_err("refused").code, "BAD_CURSOR");
        }
    }

    #[test]
    fn the_longest_token_that_is_given_out_is_taken_back() {
        let longest = "🦀".repeat(255);
        let query = format!("next_token={}", encode_token(&longest));
        let mut query = Fields::of_query(&query).expect("good");
        assert_eq!(take_cursor(&mut query).expect("good"), longest);
    }
}
