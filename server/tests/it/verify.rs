//! Whose key is this? What a verification answers, on both engines.

use serde_json::json;

use crate::world::on_both_engines;

on_both_engines! {
    /// Promise 1: a valid user key answers with that user's id and no other.
    async fn a_valid_user_key_answers_with_its_users_id(world: World) {
        let api = world.api("profiles", &["read:profile"]).await;
        let (id, secret) = world.user_key(&api, "kp_1234567890", &["read:profile"]).await;
        let body = world.verify(&secret).await;
        assert_eq!(
            body,
            json!({
                "code": "API_KEY_VERIFIED", "message": "API key verified", "is_valid": true,
                "key_id": id, "status": "active", "scopes": ["read:profile"], "org_code": null,
                "user_id": "kp_1234567890", "last_verified_on": "2026-11-22T21:24:03.512Z",
                "verification_count": 1, "api_id": api, "name": "a key", "type": "user",
                "expires_on": null, "metadata": {}, "refusal": null,
            })
        );
    }
}
