//! What a token allows.
//!
//! In: a method and a path. Out: the scope that the request needs. Promise: one rule for all routes, so that a new
//! one is guarded before anybody thinks of it: looking needs `read`, changing `operate`; whatever gives rights away,
//! shows who did what, or changes the host or the cluster itself needs `admin`.

use axum::http::Method;
use serde::{Deserialize, Serialize};

/// Each allows what those before it do.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Scope {
    /// Looking.
    Read,
    /// Moving guests, flags, modes, limits, the kill switch.
    Operate,
    /// Tokens, the audit log, NICs, the cluster.
    Admin,
}

impl Scope {
    /// As it is written.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Read => "read",
            Self::Operate => "operate",
            Self::Admin => "admin",
        }
    }
}

/// Routes of an administrator, whatever the method.
const ADMIN: &[&str] = &["/v1/tokens", "/v1/audit"];
/// Routes whose changes are an administrator's.
const ADMIN_CHANGES: &[&str] = &["/v1/nics/apply", "/v1/nics/revert", "/v1/cluster"];

/// Routes that look whatever the method: their protocol asks by POST.
const LOOKS: &[&str] = &["/ofrep"];

fn below(path: &str, roots: &[&str]) -> bool {
    roots.iter().any(|root| {
        path.strip_prefix(root)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
    })
}

/// Does a request change nothing?
#[must_use]
pub fn looks(method: &Method, path: &str) -> bool {
    matches!(*method, Method::GET | Method::HEAD) || (*method == Method::POST && below(path, LOOKS))
}

/// The scope that a request needs.
#[must_use]
pub fn needed(method: &Method, path: &str) -> Scope {
    let looks = looks(method, path);
    if below(path, ADMIN) || (!looks && below(path, ADMIN_CHANGES)) {
        Scope::Admin
    } else if looks {
        Scope::Read
    } else {
        Scope::Operate
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_scope_allows_what_those_before_it_do() {
        assert!(Scope::Read < Scope::Operate && Scope::Operate < Scope::Admin);
        for (method, path, scope) in [
            (Method::GET, "/v1/migrations", Scope::Read),
            (Method::HEAD, "/metrics", Scope::Read),
            (Method::POST, "/v1/migrations", Scope::Operate),
            (Method::OPTIONS, "/v1/migrations", Scope::Operate),
            (Method::GET, "/v1/tokens", Scope::Admin),
            (Method::DELETE, "/v1/tokens/abc", Scope::Admin),
            (Method::GET, "/v1/audit", Scope::Admin),
            (Method::GET, "/v1/tokenser", Scope::Read),
            (Method::GET, "/v1/cluster", Scope::Read),
            (Method::POST, "/v1/cluster/members", Scope::Admin),
            (Method::POST, "/v1/nics/apply", Scope::Admin),
            (Method::POST, "/v1/nics/plan", Scope::Operate),
            (Method::POST, "/ofrep/v1/evaluate/flags", Scope::Read),
            (Method::DELETE, "/ofrep/v1/evaluate/flags", Scope::Operate),
            (Method::POST, "/v1/rollouts/a/pause", Scope::Operate),
        ] {
            assert_eq!(needed(&method, path), scope, "{method} {path}");
        }
    }
}
