//! The audit log: who changed what, and who was let in or turned away.
//!
//! Records of changes are written by the transaction that changes (see `write`); records of tokens
//! issued and calls denied have no change and come through [`super::Store::record`].

use std::hash::Hash;
use std::net::IpAddr;

use keyward_core::EnvId;
use sqlx::QueryBuilder;

use super::Conn;
use super::write::Fact;
use crate::error::Result;
use crate::ops::{Action, Actor, Context};
use crate::public::network;

/// Longest user agent that is kept, in characters.
const USER_AGENT_MAX: usize = 256;

/// A record about to be written.
#[derive(Debug, Default)]
pub(crate) struct NewRecord {
    env: Vec<u8>,
    at: i64,
    actor_kind: &'static str,
    actor_id: String,
    action: &'static str,
    target_kind: &'static str,
    target_id: String,
    user: Option<String>,
    org: Option<String>,
    before: Option<String>,
    after: Option<String>,
    reason: Option<String>,
    address: Option<String>,
    user_agent: Option<String>,
    request_id: String,
    change_seq: Option<i64>,
}

impl NewRecord {
    /// The record of a change.
    pub(crate) fn of_change(
        env: EnvId,
        at: i64,
        context: &Context,
        action: Action,
        fact: &Fact,
        seq: i64,
    ) -> Self {
        Self {
            target_kind: fact.target_kind,
            target_id: fact.target_id.clone(),
            user: fact.user.clone(),
            org: fact.org.clone(),
            before: fact.before.as_ref().map(ToString::to_string),
            after: fact.after.as_ref().map(ToString::to_string),
            reason: fact.reason.clone(),
            change_seq: Some(seq),
            ..Self::of_access(env, at, context, action, "", String::new(), None)
        }
    }

    /// The record of something that changed nothing: a token issued, a call denied.
    pub(crate) fn of_access(
        env: EnvId,
        at: i64,
        context: &Context,
        action: Action,
        target_kind: &'static str,
        target_id: String,
        reason: Option<String>,
    ) -> Self {
        let (actor_kind, actor_id) = match &context.actor {
            Actor::Application(app) => ("application", app.to_string()),
            Actor::Operator(name) => ("operator", name.clone()),
            Actor::System => ("system", String::new()),
            Actor::Stranger => ("stranger", String::new()),
        };
        let shorten = |text: &String| text.chars().take(USER_AGENT_MAX).collect();
        Self {
            env: env.bytes().to_vec(),
            at,
            actor_kind,
            actor_id,
            action: action.word(),
            target_kind,
            target_id,
            reason,
            address: context.address.as_ref().map(IpAddr::to_string),
            user_agent: context.user_agent.as_ref().map(shorten),
            request_id: context.request_id.clone(),
            ..Self::default()
        }
    }

    /// Whether it is about somebody who proved no identity: a failed sign-in names an application,
    /// and was not that application.
    pub(crate) fn is_of_stranger(&self) -> bool {
        self.actor_kind == "stranger" || self.action == Action::SignInFailed.word()
    }

    /// When it happened, in µs since the epoch.
    pub(crate) fn at(&self) -> i64 {
        self.at
    }

    /// What two records have in common that tell of the same thing.
    pub(crate) fn sameness(&self) -> impl Hash {
        let address = self.address.as_deref().and_then(|text| text.parse().ok()).map(network);
        (&self.env, address, &self.actor_id, self.action, &self.target_id, &self.reason)
    }
}

/// Writes `records` after number `head`; only the writer calls this, under its lock.
pub(super) async fn insert(conn: &mut Conn, head: i64, records: Vec<NewRecord>) -> Result<()> {
    // 17 columns by 500 rows is well under both engines' limit of bound values.
    let mut number = head;
    for page in super::portions(&records, 500) {
        macro_rules! insert {
            ($engine:ty, $c:expr) => {
                QueryBuilder::<$engine>::new(
                    "insert into audit_log (audit_no, env_id, at, actor_kind, actor_id, action, \
                     target_kind, target_id, user_id, org_code, before_state, after_state, \
                     reason, address, user_agent, request_id, change_seq) ",
                )
                .push_values(page, |mut row, record| {
                    number += 1;
                    row.push_bind(number)
                        .push_bind(&record.env)
                        .push_bind(record.at)
                        .push_bind(record.actor_kind)
                        .push_bind(&record.actor_id)
                        .push_bind(record.action)
                        .push_bind(record.target_kind)
                        .push_bind(&record.target_id)
                        .push_bind(&record.user)
                        .push_bind(&record.org)
                        .push_bind(&record.before)
                        .push_bind(&record.after)
                        .push_bind(&record.reason)
                        .push_bind(&record.address)
                        .push_bind(&record.user_agent)
                        .push_bind(&record.request_id)
                        .push_bind(record.change_seq);
                })
                .build()
                .execute(&mut **$c)
                .await
                .map(|_| ())
            };
        }
        match conn {
            Conn::Sqlite(c) => insert!(sqlx::Sqlite, c),
            Conn::Postgres(c) => insert!(sqlx::Postgres, c),
        }
        .map_err(super::failed)?;
    }
    Ok(())
}
