//! What a request to the API server is about, read from its line alone.

use std::fmt;

use http::{Method, Uri};

/// A request, in the API server's own terms.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete` or `deletecollection`.
    pub verb: &'static str,
    /// The plural, such as `secrets`; with its subresource, if any: `llmaccesses/status`. A path that is no object's stands
    /// here as it is.
    pub resource: String,
    /// The namespace, empty for what has none.
    pub namespace: String,
    /// The object, empty for a collection.
    pub name: String,
}

impl Call {
    pub(super) fn new(method: &Method, uri: &Uri) -> Self {
        let path = uri.path();
        let mut parts = path.trim_matches('/').split('/');
        // `/api/v1/…` or `/apis/<group>/<version>/…`.
        let of_objects = match parts.next() {
            Some("api") => parts.next().is_some(),
            Some("apis") => parts.next().and(parts.next()).is_some(),
            _ => false,
        };
        let mut parts: Vec<&str> = if of_objects { parts.collect() } else { Vec::new() };
        let namespace = match parts.as_slice() {
            ["namespaces", namespace, _, ..] => {
                let namespace = (*namespace).to_owned();
                parts.drain(..2);
                namespace
            }
            _ => String::new(),
        };
        let name = parts.get(1).copied().unwrap_or_default().to_owned();
        let resource = match parts.as_slice() {
            [] => path.to_owned(),
            [resource, _, subresource, ..] => format!("{resource}/{subresource}"),
            [resource, ..] => (*resource).to_owned(),
        };
        let watches = uri.query().is_some_and(|query| {
            query
                .split('&')
                .any(|pair| matches!(pair, "watch" | "watch=true" | "watch=1"))
        });
        Self {
            verb: verb(method, watches, name.is_empty()),
            resource,
            namespace,
            name,
        }
    }

    /// Whether it would change something. (Leases, which are renewed all the time, do not count.)
    pub fn is_write(&self) -> bool {
        !matches!(self.verb, "get" | "list" | "watch") && self.resource != "leases"
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} {} {}/{}",
            self.verb, self.resource, self.namespace, self.name
        )
    }
}

fn verb(method: &Method, watches: bool, collection: bool) -> &'static str {
    match (method.as_str(), watches, collection) {
        ("GET", true, _) => "watch",
        ("GET", _, true) => "list",
        ("GET", ..) => "get",
        ("POST", ..) => "create",
        ("PUT", ..) => "update",
        ("PATCH", ..) => "patch",
        ("DELETE", _, true) => "deletecollection",
        ("DELETE", ..) => "delete",
        _ => "other",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_are_told_apart_by_verb_and_object() {
        for (method, uri, expected) in [
            (
                "GET",
                "/api/v1/secrets?labelSelector=a&watch=true",
                "watch secrets /",
            ),
            ("GET", "/api/v1/namespaces?limit=500", "list namespaces /"),
            ("GET", "/api/v1/namespaces/team", "get namespaces /team"),
            ("POST", "/api/v1/namespaces/team/secrets?", "create secrets team/"),
            (
                "DELETE",
                "/api/v1/namespaces/team/secrets/key",
                "delete secrets team/key",
            ),
            (
                "PUT",
                "/apis/llmwarden.io/v1alpha1/namespaces/team/llmaccesses/agent/status?",
                "update llmaccesses/status team/agent",
            ),
            (
                "PUT",
                "/apis/llmwarden.io/v1alpha1/llmproviders/anthropic/status",
                "update llmproviders/status /anthropic",
            ),
            (
                "POST",
                "/apis/events.k8s.io/v1/namespaces/team/events",
                "create events team/",
            ),
            ("GET", "/readyz", "list /readyz /"),
        ] {
            let method = Method::from_bytes(method.as_bytes()).unwrap();
            let call = Call::new(&method, &uri.parse().unwrap());
            assert_eq!(call.to_string(), expected, "{uri}");
        }
    }
}
