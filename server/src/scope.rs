//! The scopes of the management API itself (wire.md §4), as words and as bits.

macro_rules! scopes {
    ($($name:ident = $word:literal,)*) => {
        /// One permission on the management API. Its name says what it allows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "each variant is its word, which the macro spells once")]
        pub enum Scope {
            $($name,)*
        }

        impl Scope {
            /// Every scope, in the order in which tokens name them.
            pub const ALL: &'static [Scope] = &[$(Scope::$name,)*];

            /// What tokens and grants call it.
            pub const fn word(self) -> &'static str {
                match self {
                    $(Scope::$name => $word,)*
                }
            }
        }
    };
}

scopes! {
    ReadApiKeys = "read:api_keys",
    CreateApiKeys = "create:api_keys",
    UpdateApiKeys = "update:api_keys",
    DeleteApiKeys = "delete:api_keys",
    VerifyApiKeys = "verify:api_keys",
    ReadApis = "read:apis",
    CreateApis = "create:apis",
    UpdateApis = "update:apis",
    DeleteApis = "delete:apis",
    ReadApiScopes = "read:api_scopes",
    CreateApiScopes = "create:api_scopes",
    UpdateApiScopes = "update:api_scopes",
    DeleteApisScopes = "delete:apis_scopes",
    CreateApiApplicationScopes = "create:api_application_scopes",
    DeleteApisApplicationScopes = "delete:apis_application_scopes",
    ReadApplications = "read:applications",
    CreateApplications = "create:applications",
    UpdateApplications = "update:applications",
    DeleteApplications = "delete:applications",
    ReadUsers = "read:users",
    CreateUsers = "create:users",
    UpdateUsers = "update:users",
    DeleteUsers = "delete:users",
    ReadOrganizations = "read:organizations",
    CreateOrganizations = "create:organizations",
    UpdateOrganizations = "update:organizations",
    DeleteOrganizations = "delete:organizations",
    ReadOrganizationUsers = "read:organization_users",
    CreateOrganizationUsers = "create:organization_users",
    UpdateOrganizationUsers = "update:organization_users",
    DeleteOrganizationUsers = "delete:organization_users",
    ReadRoles = "read:roles",
    CreateRoles = "create:roles",
    UpdateRoles = "update:roles",
    DeleteRoles = "delete:roles",
    ReadRoleScopes = "read:role_scopes",
    CreateRoleScopes = "create:role_scopes",
    DeleteRoleScopes = "delete:role_scopes",
    ReadOrganizationUserRoles = "read:organization_user_roles",
    CreateOrganizationUserRoles = "create:organization_user_roles",
    DeleteOrganizationUserRoles = "delete:organization_user_roles",
    CreateOrganizationUserApiScopes = "create:organization_user_api_scopes",
    DeleteOrganizationUserApiScopes = "delete:organization_user_api_scopes",
    ReadMetrics = "read:metrics",
    ReadAudit = "read:audit",
    ReadUsage = "read:usage",
}

/// A set of management scopes: one bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Scopes(u64);

impl Scopes {
    /// The scopes whose words are in `words`; other words are left out.
    pub fn of<'a>(words: impl IntoIterator<Item = &'a str>) -> Self {
        let mut set = Self::default();
        for word in words {
            if let Some(scope) = Scope::ALL.iter().find(|scope| scope.word() == word) {
                set.0 |= 1 << (*scope as u8);
            }
        }
        set
    }

    /// Whether `scope` is in the set.
    pub const fn has(self, scope: Scope) -> bool {
        self.0 & (1 << (scope as u8)) != 0
    }

    /// Whether one of `scopes` is in the set.
    pub fn has_one_of(self, scopes: &[Scope]) -> bool {
        scopes.iter().any(|scope| self.has(*scope))
    }

    /// What is in both sets.
    #[must_use]
    pub const fn intersection(self, other: Self) -> Self {
        Self(self.0 & other.0)
    }

    /// The words of the set, in their fixed order.
    pub fn words(self) -> impl Iterator<Item = &'static str> {
        Scope::ALL.iter().filter(move |scope| self.has(**scope)).map(|scope| scope.word())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_set_holds_what_was_put_in_and_nothing_else() {
        assert!(Scope::ALL.len() <= 64, "a set has 64 bits");
        let set = Scopes::of(["read:api_keys", "no:such", "read:usage"]);
        assert_eq!(set.words().collect::<Vec<_>>(), ["read:api_keys", "read:usage"]);
        assert!(!set.has(Scope::VerifyApiKeys));
    }
}
