//! Keys issued together: what waits in the queue one after the other is one piece of work.
//!
//! The keys share a savepoint and the statements that read and write for all of them; a change row
//! and an audit record each has as any change does. A key that cannot be issued, because what it
//! refers to does not exist, is known before anything is written and leaves the others alone. Only
//! when a statement fails does the whole group go back to its savepoint; then each key is tried
//! alone, and whoever is at fault fails alone.

use std::collections::VecDeque;

use keyward_core::EnvId;
use tokio::sync::{mpsc, oneshot};

use super::{Committed, Message, Ran, Tell, Tx, idempotency, unwinding};
use crate::error::{Error, Kind, Result};
use crate::ops::Action;
use crate::ops::keys::{Issue, Issued, Issuing};

/// How many keys of a group may need statements of their own. Each takes a few, and the lock under
/// which all changes are made must be free again within 100 ms.
const ALONE_MAX: usize = 8;
/// How many keys of a group are tried one by one when it fails, for the same reason.
const RETRIED_MAX: usize = 16;

/// A key to be issued, and who waits for it.
pub(super) struct Asked {
    pub(super) issue: Issue,
    pub(super) answer: oneshot::Sender<Result<Committed<Issued>>>,
}

/// Takes the keys that wait right behind `first`, at most `room` with it; and the message that
/// came instead of another, if one did.
pub(super) fn gather(
    first: Asked,
    room: usize,
    inbox: &mut mpsc::Receiver<Message>,
) -> (Vec<Asked>, Option<Message>) {
    let env = first.issue.env;
    let mut alone = usize::from(first.issue.asks_alone());
    let mut group = vec![first];
    while group.len() < room && alone < ALONE_MAX {
        match inbox.try_recv() {
            Ok(Message::Issue(next)) if next.issue.env == env => {
                alone += usize::from(next.issue.asks_alone());
                group.push(*next);
            }
            Ok(other) => return (group, Some(other)),
            Err(_) => break,
        }
    }
    (group, None)
}

/// Issues the keys of `group`, which are of one environment.
pub(super) async fn run(tx: &mut Tx, group: Vec<Asked>, tells: &mut VecDeque<Tell>) -> Result<()> {
    let all: Vec<&Issue> = group.iter().map(|one| &one.issue).collect();
    let results = match attempt(tx, &all).await? {
        Ok(results) => results,
        Err(error) if group.len() == 1 => vec![Err(error)],
        Err(error) => {
            tracing::debug!(cause = error.chain(), "keys are issued one by one");
            let mut results = Vec::with_capacity(group.len());
            // Whoever is not reached is told that nothing was changed.
            for one in all.iter().take(RETRIED_MAX) {
                results.extend(match attempt(tx, &[*one]).await? {
                    Ok(result) => result,
                    Err(error) => vec![Err(error)],
                });
            }
            results
        }
    };
    for (one, result) in group.into_iter().zip(results) {
        tells.push_back(Ran::new(result, one.answer).tell);
    }
    Ok(())
}

/// Issues keys behind a savepoint. An outer error means that the transaction is lost, an inner one
/// that nothing of the keys is written; otherwise there is a result for each.
async fn attempt(tx: &mut Tx, all: &[&Issue]) -> Result<Result<Vec<Result<Committed<Issued>>>>> {
    let mark = tx.savepoint().await?;
    let Some(env) = all.first().map(|one| one.env) else { return Ok(Ok(Vec::new())) };
    let issued = unwinding(Box::pin(issue(tx, env, all))).await?;
    if issued.is_err() {
        tx.back_to(mark).await?;
    }
    Ok(issued)
}

async fn issue(tx: &mut Tx, env: EnvId, all: &[&Issue]) -> Result<Vec<Result<Committed<Issued>>>> {
    let mut issuing = Issuing::begin(tx, env, all).await?;
    let mut results = Vec::with_capacity(all.len());
    for one in all {
        results.push(match issue_one(tx, &mut issuing, one).await {
            Err(error) if all.len() == 1 || is_of_a_statement(&error) => return Err(error),
            result => result,
        });
    }
    issuing.finish(tx, env).await?;
    Ok(results)
}

/// Whether an error may come from a statement, which has then spoilt the transaction for all.
fn is_of_a_statement(error: &Error) -> bool {
    matches!(error.kind, Kind::Unavailable | Kind::Internal) || error.code == "CONSTRAINT"
}

async fn issue_one(tx: &mut Tx, issuing: &mut Issuing, one: &Issue) -> Result<Committed<Issued>> {
    let replayed = one.context.idempotency.as_ref();
    if let Some(key) = replayed {
        idempotency::refuse_replay(&mut tx.conn, one.env, key, tx.now).await?;
    }
    let (issued, fact) = issuing.mint(tx, one).await?;
    if let Some(key) = replayed {
        let target = fact.target_id.as_str();
        idempotency::reserve(&mut tx.conn, one.env, key, target, tx.now).await?;
    }
    let seq = tx.conclude(one.env, &one.context, Action::KeyIssued, fact);
    Ok(tx.committed(issued, seq))
}
