//! Whatever happens in whatever order, every key answers as a naive model of the rules says.
//!
//! Operations are drawn by chance from a seed that a failure names. After each one that was
//! acknowledged, every secret that ever was is verified and every key is shown; now and then the
//! server starts anew, so that what is loaded is compared with what was followed.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Value, json};

use crate::world::{World, on_both_engines};

/// Operations in one history.
const STEPS: usize = 80;

/// A generator (splitmix64): the same seed gives the same history.
struct Chance(u64);

impl Chance {
    fn below(&mut self, limit: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % limit as u64).expect("below the limit")
    }

    fn of<'a>(&mut self, all: &[&'a str]) -> &'a str {
        all[self.below(all.len())]
    }
}

/// How somebody who can own keys stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Standing {
    Good,
    Suspended,
    Deleted,
}

struct Key {
    id: String,
    user: Option<&'static str>,
    org: Option<&'static str>,
    api: &'static str,
    scopes: BTreeSet<&'static str>,
    /// Every secret that it ever had; the last is the present one.
    secrets: Vec<String>,
    revoked: bool,
    disabled: bool,
    /// Steps of the clock before and from which it is not good.
    from: i64,
    to: i64,
    verified: i64,
}

const USERS: [&str; 3] = ["kp_a", "kp_b", "auth0|c"];
const ORGS: [&str; 2] = ["org_a", "org_b"];
const APIS: [&str; 2] = ["one", "two"];
const SCOPES: [&str; 2] = ["read", "write"];

/// What the rules say.
#[derive(Default)]
struct Model {
    now: i64,
    users: BTreeMap<&'static str, Standing>,
    orgs: BTreeMap<&'static str, Standing>,
    members: BTreeSet<(&'static str, &'static str)>,
    /// The ids of the APIs and their scopes; what is deleted is not here.
    apis: BTreeMap<&'static str, String>,
    scopes: BTreeMap<(&'static str, &'static str), String>,
    keys: Vec<Key>,
}

impl Model {
    fn standing(standings: &BTreeMap<&str, Standing>, id: Option<&str>) -> Standing {
        id.and_then(|id| standings.get(id)).copied().unwrap_or(Standing::Good)
    }

    /// The verdict on the secret at `place` of `key`.
    fn verdict(&self, key: &Key, place: usize) -> &'static str {
        let user = Self::standing(&self.users, key.user);
        let org = Self::standing(&self.orgs, key.org);
        let departed = match (key.user, key.org) {
            (Some(user), Some(org)) => !self.members.contains(&(org, user)),
            (_, _) => false,
        };
        if key.revoked {
            "API_KEY_REVOKED"
        } else if place + 1 < key.secrets.len() {
            "API_KEY_ROTATED"
        } else if key.disabled {
            "API_KEY_INACTIVE"
        } else if self.now < key.from {
            "API_KEY_NOT_YET_VALID"
        } else if self.now >= key.to {
            "API_KEY_EXPIRED"
        } else if user == Standing::Suspended || org == Standing::Suspended || departed {
            "API_KEY_OWNER_SUSPENDED"
        } else {
            "API_KEY_VERIFIED"
        }
    }

    fn status(key: &Key) -> &'static str {
        match (key.revoked, key.disabled) {
            (true, _) => "revoked",
            (false, true) => "inactive",
            (false, false) => "active",
        }
    }

    /// The scopes that a key has and that still exist.
    fn scopes(&self, key: &Key) -> BTreeSet<&'static str> {
        let exists = |scope: &&str| self.scopes.contains_key(&(key.api, *scope));
        key.scopes.iter().copied().filter(exists).collect()
    }

    fn revoke_where(&mut self, gone: impl Fn(&Key) -> bool) {
        for key in self.keys.iter_mut().filter(|key| gone(key)) {
            key.revoked = true;
        }
    }
}

/// A history: the model and the server that it is compared with.
struct History {
    world: World,
    model: Model,
    chance: Chance,
    told: Vec<String>,
}

impl History {
    async fn begin(world: World, seed: u64) -> Self {
        let mut model = Model::default();
        for name in APIS {
            let api = world.api(name, &SCOPES).await;
            let scopes = world.get(&format!("/apis/{api}/scopes")).await.expect(200);
            for scope in scopes["scopes"].as_array().expect("a list") {
                let key = SCOPES.into_iter().find(|key| scope["key"] == *key).expect("one");
                let id = scope["id"].as_str().expect("an id").to_owned();
                model.scopes.insert((name, key), id);
            }
            model.apis.insert(name, api);
        }
        for org in ORGS {
            world.post("/organization", json!({ "name": org, "code": org })).await.expect(200);
            model.orgs.insert(org, Standing::Good);
        }
        for user in USERS {
            world.post("/user", json!({ "id": user })).await.expect(200);
            model.users.insert(user, Standing::Good);
        }
        Self { world, model, chance: Chance(seed), told: vec![format!("seed {seed}")] }
    }

    /// A call that the model expects to succeed or to fail.
    async fn call(&mut self, good: bool, call: (&str, &str), body: Option<Value>) -> Value {
        self.told.push(format!("{} {} {}", call.0, call.1, body.clone().unwrap_or_default()));
        let answer = self.world.call(call.0, call.1, body).await;
        let told = || format!("{}: {}", self.told.join("\n"), answer.text);
        assert_eq!(answer.status.is_success(), good, "{}", told());
        assert!(!answer.status.is_server_error(), "{}", told());
        answer.json()
    }

    async fn issue(&mut self) {
        let kind = self.chance.below(4);
        let user = self.chance.of(&USERS);
        let org = self.chance.of(&ORGS);
        let user = (kind < 2 || kind == 3).then_some(user);
        let org = (kind == 1 || kind == 2).then_some(org);
        let (user, org) = if kind == 3 { (None, None) } else { (user, org) };
        let api = self.chance.of(&APIS);
        let scopes: BTreeSet<&str> =
            SCOPES.into_iter().filter(|_| self.chance.below(2) == 0).collect();
        let (from, to) = match self.chance.below(4) {
            0 => (self.model.now + 2, i64::MAX),
            1 => (i64::MIN, self.model.now + 5),
            _ => (i64::MIN, i64::MAX),
        };
        let good = Model::standing(&self.model.users, user) == Standing::Good
            && Model::standing(&self.model.orgs, org) == Standing::Good
            && user.zip(org).is_none_or(|(user, org)| self.model.members.contains(&(org, user)))
            && self.model.apis.contains_key(api)
            && scopes.iter().all(|scope| self.model.scopes.contains_key(&(api, *scope)));
        let none = "00000000000000000000000000000000".to_owned();
        let at = |step: i64| keyward::clock::rfc3339(crate::world::START_US + step * 1_000_000);
        let body = json!({
            "name": "k", "api_id": self.model.apis.get(api).unwrap_or(&none),
            "type": (["user", "user", "organization", "environment"][kind]),
            "user_id": user, "org_code": org, "scope_ids": scopes,
            "not_before": (from != i64::MIN).then(|| at(from)),
            "expires_on": (to != i64::MAX).then(|| at(to)),
        });
        let made = self.call(good, ("POST", "/api_keys"), Some(body)).await;
        if good {
            let text = |name: &str| made["api_key"][name].as_str().expect("a text").to_owned();
            let (id, secrets) = (text("id"), vec![text("key")]);
            let (revoked, disabled, verified) = (false, false, 0);
            self.model.keys.push(Key {
                id,
                user,
                org,
                api,
                scopes,
                secrets,
                revoked,
                disabled,
                from,
                to,
                verified,
            });
        }
    }

    async fn change_key(&mut self) {
        if self.model.keys.is_empty() {
            return;
        }
        let place = self.chance.below(self.model.keys.len());
        let key = &self.model.keys[place];
        let (path, revoked) = (format!("/api_keys/{}", key.id), key.revoked);
        match self.chance.below(5) {
            0 => {
                self.call(true, ("DELETE", &path), None).await;
                self.model.keys[place].revoked = true;
            }
            1 | 2 => {
                let rotated = self.call(!revoked, ("PUT", &path), None).await;
                if !revoked {
                    let secret = rotated["api_key"]["key"].as_str().expect("a secret").to_owned();
                    self.model.keys[place].secrets.push(secret);
                }
            }
            word => {
                let status = if word == 3 { "inactive" } else { "active" };
                let body = Some(json!({ "status": status }));
                self.call(!revoked, ("PATCH", &path), body).await;
                if !revoked {
                    self.model.keys[place].disabled = word == 3;
                }
            }
        }
    }

    async fn change_user(&mut self) {
        let user = self.chance.of(&USERS);
        let deleted = self.model.users[user] == Standing::Deleted;
        let path = format!("/user?id={}", user.replace('|', "%7C"));
        match self.chance.below(8) {
            0 => {
                self.call(true, ("DELETE", &path), None).await;
                self.model.users.insert(user, Standing::Deleted);
                self.model.members.retain(|(_, member)| *member != user);
                self.model.revoke_where(|key| key.user == Some(user));
            }
            1 | 2 => {
                self.call(deleted, ("POST", "/user"), Some(json!({ "id": user }))).await;
                if deleted {
                    self.model.users.insert(user, Standing::Good);
                }
            }
            word => {
                let body = Some(json!({ "is_suspended": word < 5 }));
                self.call(!deleted, ("PATCH", &path), body).await;
                if !deleted {
                    let standing = if word < 5 { Standing::Suspended } else { Standing::Good };
                    self.model.users.insert(user, standing);
                }
            }
        }
    }

    async fn change_org(&mut self) {
        let org = self.chance.of(&ORGS);
        let deleted = self.model.orgs[org] == Standing::Deleted;
        let path = format!("/organization/{org}");
        match self.chance.below(8) {
            0 => {
                self.call(true, ("DELETE", &path), None).await;
                self.model.orgs.insert(org, Standing::Deleted);
                self.model.members.retain(|(of, _)| *of != org);
                self.model.revoke_where(|key| key.org == Some(org));
            }
            1 | 2 => {
                let body = Some(json!({ "name": org, "code": org }));
                self.call(deleted, ("POST", "/organization"), body).await;
                if deleted {
                    self.model.orgs.insert(org, Standing::Good);
                }
            }
            word => {
                let body = Some(json!({ "is_suspended": word < 5 }));
                self.call(!deleted, ("PATCH", &path), body).await;
                if !deleted {
                    let standing = if word < 5 { Standing::Suspended } else { Standing::Good };
                    self.model.orgs.insert(org, standing);
                }
            }
        }
    }

    async fn change_membership(&mut self) {
        let (org, user) = (self.chance.of(&ORGS), self.chance.of(&USERS));
        let good = self.model.orgs[org] != Standing::Deleted
            && self.model.users[user] != Standing::Deleted;
        let path = format!("/organizations/{org}/users");
        if self.chance.below(3) == 0 {
            let body = json!({ "users": [{ "id": user, "operation": "delete" }] });
            self.call(good, ("PATCH", &path), Some(body)).await;
            self.model.members.remove(&(org, user));
        } else {
            let body = json!({ "users": [{ "id": user }] });
            self.call(good, ("POST", &path), Some(body)).await;
            if good {
                self.model.members.insert((org, user));
            }
        }
    }

    async fn change_api(&mut self) {
        let (api, scope) = (self.chance.of(&APIS), self.chance.of(&SCOPES));
        let Some(id) = self.model.apis.get(api).cloned() else { return };
        if self.chance.below(4) == 0 {
            self.call(true, ("DELETE", &format!("/apis/{id}")), None).await;
            self.model.apis.remove(api);
            self.model.revoke_where(|key| key.api == api);
        } else if let Some(scope_id) = self.model.scopes.remove(&(api, scope)) {
            self.call(true, ("DELETE", &format!("/apis/{id}/scopes/{scope_id}")), None).await;
        }
    }

    async fn pass_time(&mut self) {
        self.told.push("a second passes".to_owned());
        self.world.pass_seconds(1).await;
        self.model.now += 1;
    }

    async fn restart(&mut self) {
        self.told.push("the server starts anew".to_owned());
        self.world.stop().await;
        self.world.start_again().await;
    }

    /// Compares every key.
    async fn compare(&mut self) {
        for place in 0..self.model.keys.len() {
            for which in 0..self.model.keys[place].secrets.len() {
                let key = &self.model.keys[place];
                let (code, scopes) = (self.model.verdict(key, which), self.model.scopes(key));
                let answer = self.world.verify(&key.secrets[which]).await;
                let told = || format!("{}: {answer}", self.told.join("\n"));
                assert_eq!(answer["code"], code, "{}", told());
                let owner = (&answer["user_id"], &answer["org_code"]);
                assert_eq!(owner, (&json!(key.user), &json!(key.org)), "{}", told());
                if !key.revoked {
                    let shown = answer["scopes"].as_array().expect("a list").iter();
                    let shown: BTreeSet<&str> = shown.filter_map(Value::as_str).collect();
                    assert_eq!(shown, scopes, "{}", told());
                }
                assert_eq!(answer["status"], Model::status(key), "{}", told());
                let verified = key.verified + i64::from(code == "API_KEY_VERIFIED");
                assert_eq!(answer["verification_count"], verified, "{}", told());
                self.model.keys[place].verified = verified;
            }
            let key = &self.model.keys[place];
            let shown = self.world.get(&format!("/api_keys/{}", key.id)).await.expect(200);
            let told = || format!("{}: {shown}", self.told.join("\n"));
            assert_eq!(shown["api_key"]["status"], Model::status(key), "{}", told());
            assert_eq!(shown["api_key"]["verification_count"], key.verified, "{}", told());
        }
    }

    async fn run(mut self) {
        for _ in 0..STEPS {
            match self.chance.below(20) {
                0..=5 => self.issue().await,
                6..=9 => self.change_key().await,
                10..=11 => self.change_user().await,
                12..=13 => self.change_org().await,
                14..=16 => self.change_membership().await,
                17 if self.chance.below(4) == 0 => self.change_api().await,
                18 if self.chance.below(4) == 0 => self.restart().await,
                _ => self.pass_time().await,
            }
            self.compare().await;
        }
        self.restart().await;
        self.compare().await;
        assert!(self.model.keys.len() > 5, "something happened: {:?}", self.told);
    }
}

on_both_engines! {
    async fn every_key_answers_as_the_rules_say_in_one_history(world: World) {
        History::begin(world, 1).await.run().await;
    }
}

on_both_engines! {
    async fn every_key_answers_as_the_rules_say_in_another_history(world: World) {
        History::begin(world, 2).await.run().await;
    }
}
