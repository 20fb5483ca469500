//! Organizations and their members in Kinde's words (wire.md §4). What happens to them is in
//! `ops::organizations`.
//!
//! Roles are not built yet: nobody has one, so that a filter by roles finds nobody, and giving one
//! to a member is a 400.

use keyward_core::{OrgCode, UserId};
use serde_json::{Value, json};

use super::call::{Call, Reply};
use super::fields::{Fields, wrong};
use super::users::{
    PAGE_SIZE, TEXT_CHARS_MAX, cut_page, parse_org, parse_user, patched, settling, take_cursor,
};
use crate::clock::rfc3339;
use crate::error::{Error, Result};
use crate::lease::Settle;
use crate::ops::organizations::{
    self, MEMBERS_MAX, MemberChange, NewOrganization, OrganizationPatch,
};
use crate::store::owners::{self, Member, Organization};

/// Longest filter by roles or permissions, in characters.
const FILTER_CHARS_MAX: usize = 4_096;
/// What Kinde's published API lets an organization be made with and Keyward does not use.
const UNUSED_AT_CREATION: &[&str] = &[
    "background_color",
    "button_color",
    "button_text_color",
    "link_color",
    "background_color_dark",
    "button_color_dark",
    "button_text_color_dark",
    "link_color_dark",
    "theme_code",
    "is_allow_registrations",
    "is_auto_membership_enabled",
    "sender_name",
    "sender_email",
    "feature_flags",
    "is_create_billing_customer",
    "billing_email",
    "billing_plan_code",
];
/// The same for changes.
const UNUSED_IN_CHANGES: &[&str] = &[
    "background_color",
    "button_color",
    "button_text_color",
    "link_color",
    "background_color_dark",
    "button_color_dark",
    "button_text_color_dark",
    "link_color_dark",
    "theme_code",
    "is_allow_registrations",
    "is_auto_membership_enabled",
    "sender_name",
    "sender_email",
    "is_auto_join_domain_list",
    "allowed_domains",
    "is_enable_advanced_orgs",
    "is_enforce_mfa",
];

/// `GET /organizations`
pub(crate) async fn list(call: Call) -> Result<Reply> {
    let mut query = call.query()?;
    let size = query.page_size(PAGE_SIZE)?;
    let after = take_cursor(&mut query)?;
    query.ignore(&["sort"]);
    query.finish()?;
    let mut conn = call.app.store.read().await?;
    let mut found = owners::orgs_page(&mut conn, call.env, &after, size + 1).await?;
    let next_token = cut_page(&mut found, size, |org| org.org.as_str());
    Ok(Reply::ok(json!({
        "code": "OK",
        "message": "Success",
        "organizations": found.iter().map(in_list).collect::<Vec<_>>(),
        "next_token": next_token,
    })))
}

/// `GET /organization`
pub(crate) async fn show(call: Call) -> Result<Reply> {
    let mut query = call.query()?;
    let code = query.need_str("code", TEXT_CHARS_MAX)?;
    let code = parse_org("code", &code)?;
    query.ignore(&["expand"]);
    query.finish()?;
    let mut conn = call.app.store.read().await?;
    let org = owners::find_org(&mut conn, call.env, &code).await?;
    let org = org.filter(|org| org.deleted_at.is_none()).ok_or_else(|| {
        Error::invalid("UNKNOWN_ORGANIZATION", "`code`: there is no such organization")
    })?;
    let mut reply = in_list(&org);
    if let Value::Object(fields) = &mut reply {
        fields.insert("created_on".to_owned(), json!(rfc3339(org.created_at)));
        fields.insert("is_suspended".to_owned(), json!(org.suspended_at.is_some()));
        fields.insert("suspended_on".to_owned(), json!(org.suspended_at.map(rfc3339)));
    }
    Ok(Reply::ok(reply))
}

/// `POST /organization`
pub(crate) async fn create(call: Call) -> Result<Reply> {
    let mut body = call.body()?;
    let code = body.take_str("code", TEXT_CHARS_MAX)?;
    let new = NewOrganization {
        org: code.map(|code| parse_org("code", &code)).transpose()?,
        name: body.need_name("name", TEXT_CHARS_MAX)?,
        handle: take_handle(&mut body)?,
        external_id: body.take_str("external_id", TEXT_CHARS_MAX)?,
    };
    body.ignore(UNUSED_AT_CREATION);
    body.finish()?;
    let done = organizations::create(&call.app.store, call.env, &call.context, new).await?;
    call.app.settle(done.stamp(), Settle::Widening).await?;
    Ok(Reply::ok(json!({
        "code": "OK",
        "message": "Success",
        "organization": { "code": done.value.as_str() },
    }))
    .seq(done.seq))
}

/// `PATCH /organization/{org_code}`
pub(crate) async fn update(call: Call) -> Result<Reply> {
    let org = org_in_path(&call)?;
    let mut query = call.query()?;
    query.ignore(&["expand"]);
    query.finish()?;
    let mut body = call.body()?;
    body.refuse_null(&["name", "is_suspended"])?;
    let handle = take_handle(&mut body)?;
    let external_id = body.take_str("external_id", TEXT_CHARS_MAX)?;
    let patch = OrganizationPatch {
        name: body.take_name("name", TEXT_CHARS_MAX)?,
        handle: patched(&body, "handle", handle),
        external_id: patched(&body, "external_id", external_id),
        suspended: body.take_bool("is_suspended")?,
    };
    body.ignore(UNUSED_IN_CHANGES);
    body.finish()?;
    let settle = settling(patch.suspended);
    let done = organizations::update(&call.app.store, call.env, &call.context, org, patch).await?;
    call.app.settle(done.stamp(), settle).await?;
    Ok(succeeded(done.seq))
}

/// `DELETE /organization/{org_code}`
pub(crate) async fn delete(call: Call) -> Result<Reply> {
    let org = org_in_path(&call)?;
    let done = organizations::delete(&call.app.store, call.env, &call.context, org).await?;
    call.app.settle(done.stamp(), Settle::Narrowing).await?;
    Ok(succeeded(done.seq))
}

/// `GET /organizations/{org_code}/users`
pub(crate) async fn list_members(call: Call) -> Result<Reply> {
    let org = org_in_path(&call)?;
    let mut query = call.query()?;
    let size = query.page_size(PAGE_SIZE)?;
    let after = take_cursor(&mut query)?;
    let roles = query.take_str("roles", FILTER_CHARS_MAX)?;
    let permissions = query.take_str("permissions", FILTER_CHARS_MAX)?;
    query.ignore(&["sort"]);
    query.finish()?;
    let mut conn = call.app.store.read().await?;
    let found = owners::find_org(&mut conn, call.env, &org).await?;
    if found.is_none_or(|org| org.deleted_at.is_some()) {
        return Err(Error::not_found("organization"));
    }
    let mut found = if roles.is_some() || permissions.is_some() {
        Vec::new()
    } else {
        owners::members_page(&mut conn, call.env, &org, &after, size + 1).await?
    };
    let next_token = cut_page(&mut found, size, |member| member.user_id.as_str());
    Ok(Reply::ok(json!({
        "code": "OK",
        "message": "Success",
        "organization_users": found.iter().map(member).collect::<Vec<_>>(),
        "next_token": next_token,
    })))
}

/// `POST /organizations/{org_code}/users`
pub(crate) async fn add_members(call: Call) -> Result<Reply> {
    let org = org_in_path(&call)?;
    let changes = take_members(&call, false)?;
    let (store, context) = (&call.app.store, &call.context);
    let done = organizations::change_members(store, call.env, context, org, changes).await?;
    call.app.settle(done.stamp(), Settle::Widening).await?;
    Ok(Reply::ok(json!({
        "code": "OK",
        "message": "Success",
        "users_added": ids(&done.value.added),
    }))
    .seq(done.seq))
}

/// `PATCH /organizations/{org_code}/users`
pub(crate) async fn update_members(call: Call) -> Result<Reply> {
    let org = org_in_path(&call)?;
    let changes = take_members(&call, true)?;
    // Also when nobody leaves any more: a repeated call waits like the first.
    let narrows = changes.iter().any(|change| !change.member);
    let (store, context) = (&call.app.store, &call.context);
    let done = organizations::change_members(store, call.env, context, org, changes).await?;
    let settle = if narrows { Settle::Narrowing } else { Settle::Widening };
    call.app.settle(done.stamp(), settle).await?;
    Ok(Reply::ok(json!({
        "code": "OK",
        "message": "Success",
        "users_added": ids(&done.value.added),
        "users_updated": ids(&done.value.kept),
        "users_removed": ids(&done.value.removed),
    }))
    .seq(done.seq))
}

/// `DELETE /organizations/{org_code}/users/{user_id}`
pub(crate) async fn remove_member(call: Call) -> Result<Reply> {
    let org = org_in_path(&call)?;
    let user = UserId::parse(call.path("user_id")).ok_or_else(|| Error::not_found("member"))?;
    let (store, context) = (&call.app.store, &call.context);
    let done = organizations::remove_member(store, call.env, context, org, user).await?;
    call.app.settle(done.stamp(), Settle::Narrowing).await?;
    Ok(succeeded(done.seq))
}

/// Reads the body of a change of members; `may_leave` where users may be removed by it.
fn take_members(call: &Call, may_leave: bool) -> Result<Vec<MemberChange>> {
    let mut body = call.body()?;
    let users = body.take_array("users", MEMBERS_MAX)?.unwrap_or_default();
    body.finish()?;
    users.into_iter().map(|user| take_member(user, may_leave)).collect()
}

fn take_member(user: Value, may_leave: bool) -> Result<MemberChange> {
    let Value::Object(user) = user else {
        return Err(wrong("users", "must be a list of objects"));
    };
    let mut user = Fields::of_object(user);
    let id = user.need_str("id", TEXT_CHARS_MAX)?;
    let operation = if may_leave { user.take_str("operation", TEXT_CHARS_MAX)? } else { None };
    for name in ["roles", "permissions"] {
        if user.take_array(name, MEMBERS_MAX)?.is_some_and(|names| !names.is_empty()) {
            return Err(wrong(name, "must be empty: roles do not exist here yet"));
        }
    }
    user.finish()?;
    let member = match operation.as_deref() {
        None => true,
        Some("delete") => false,
        Some(_) => return Err(wrong("operation", "must be absent or `delete`")),
    };
    Ok(MemberChange { user: parse_user("id", &id)?, member })
}

/// Takes a handle: visible characters only, like an organization's code.
fn take_handle(body: &mut Fields) -> Result<Option<String>> {
    let handle = body.take_str("handle", TEXT_CHARS_MAX)?;
    handle.map(|handle| parse_org("handle", &handle).map(|handle| handle.to_string())).transpose()
}

fn org_in_path(call: &Call) -> Result<OrgCode> {
    OrgCode::parse(call.path("org_code")).ok_or_else(|| Error::not_found("organization"))
}

fn succeeded(seq: i64) -> Reply {
    Reply::ok(json!({ "code": "OK", "message": "Success" })).seq(seq)
}

fn ids(users: &[UserId]) -> Vec<&str> {
    users.iter().map(UserId::as_str).collect()
}

fn in_list(org: &Organization) -> Value {
    json!({
        "code": org.org.as_str(),
        "name": org.name,
        "handle": org.handle,
        "is_default": false,
        "external_id": org.external_id,
        "is_auto_membership_enabled": false,
    })
}

fn member(member: &Member) -> Value {
    let names = [member.given_name.as_deref(), member.family_name.as_deref()];
    json!({
        "id": member.user_id,
        "email": member.email,
        "full_name": names.into_iter().flatten().collect::<Vec<_>>().join(" "),
        "last_name": member.family_name,
        "first_name": member.given_name,
        "picture": null,
        "joined_on": rfc3339(member.joined_at),
        "last_accessed_on": null,
        "is_suspended": member.suspended_at.is_some(),
        "roles": [],
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_member_joins_unless_the_operation_is_delete() {
        let joins = |value| take_member(value, true).map(|change| change.member);
        assert!(joins(json!({ "id": "kp_1" })).expect("good"));
        assert!(joins(json!({ "id": "kp_1", "roles": [], "operation": null })).expect("good"));
        assert!(!joins(json!({ "id": "kp_1", "operation": "delete" })).expect("good"));
    }

    #[test]
    fn a_member_with_roles_or_without_an_id_is_refused() {
        for bad in [
            json!("kp_1"),
            json!({}),
            json!({ "id": null }),
            json!({ "id": "a b" }),
            json!({ "id": "kp_1", "roles": ["admin"] }),
            json!({ "id": "kp_1", "permissions": ["read"] }),
            json!({ "id": "kp_1", "operation": "destroy" }),
            json!({ "id": "kp_1", "more": 1 }),
        ] {
            assert!(take_member(bad.clone(), true).is_err(), "{bad}");
        }
        let delete = json!({ "id": "kp_1", "operation": "delete" });
        assert!(take_member(delete, false).is_err(), "adding members takes no operation");
    }
}
