//! Whether a request may be made, and where its model is to be read.

use std::borrow::Cow;
use std::cell::LazyCell;

use hyper::Method;
use llmwarden_proto::delivery::{ModelPlace, Upstream};
use memchr::memchr2;

use super::query::{decoded, parameters};

const NOTHING_KNOWN: &str = "the controller has not said what may be asked of this provider: upgrade it";
const NOT_KNOWN: &str = "this path is not known to name its model where it is read";
const IN_THE_QUERY: &str = "a model in the query is not read: name it where the provider's SDKs do";
const TRACE: &str = "TRACE would answer with the key";

/// What becomes of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Decision<'a> {
    /// It may be made, whatever its model is.
    Allow,
    /// Its body names its model.
    ModelInBody,
    /// It asks for this model.
    Model(String),
    /// It may not be made, and why.
    Denied(&'a str),
}

/// Decides about a request. The path and the query are those that the provider would get, in a form that
/// [`super::target::Target`] accepts.
pub fn decide<'a>(
    upstream: &'a Upstream,
    method: &Method,
    path: &'a str,
    query: Option<&str>,
) -> Decision<'a> {
    if upstream.routes.is_empty() {
        return Decision::Denied(NOTHING_KNOWN);
    }
    if *method == Method::TRACE {
        return Decision::Denied(TRACE);
    }
    let limited = !upstream.models.is_empty();
    let path = path.strip_suffix('/').unwrap_or(path);
    // Most requests are for a route that needs none of them.
    let segments = LazyCell::new(|| path.split('/').skip(1).map(decoded).collect::<Vec<_>>());
    let matched = upstream
        .routes
        .iter()
        .filter(|route| route.method == "*" || route.method == method.as_str())
        .find_map(|route| {
            if route.path == path && is_plain(path) {
                return Some((route, ""));
            }
            // What is denied stays so however a lenient server reads it.
            let loose = route.model == ModelPlace::Denied;
            Some((route, walk(route.path.strip_prefix('/'), &segments, loose)?))
        });
    let Some((route, model)) = matched else {
        return if limited {
            Decision::Denied(NOT_KNOWN)
        } else {
            Decision::Allow
        };
    };
    let reason = route.reason.as_deref().unwrap_or(NOT_KNOWN);
    match route.model {
        ModelPlace::Denied => Decision::Denied(reason),
        _ if !limited => Decision::Allow,
        ModelPlace::Unread => Decision::Denied(reason),
        ModelPlace::None => Decision::Allow,
        ModelPlace::Body | ModelPlace::Path if query.is_some_and(|query| names_model(upstream, query)) => {
            Decision::Denied(IN_THE_QUERY)
        }
        ModelPlace::Body => Decision::ModelInBody,
        ModelPlace::Path if model.is_empty() => Decision::Denied(NOT_KNOWN),
        ModelPlace::Path => Decision::Model(model.to_owned()),
    }
}

/// Whether a model is one of a list: exactly, or by a prefix and a final `*`. An empty list has all.
pub fn is_model_allowed(list: &[String], model: &str) -> bool {
    list.is_empty()
        || list.iter().any(|allowed| match allowed.strip_suffix('*') {
            Some(prefix) => model.starts_with(prefix),
            None => model == allowed,
        })
}

/// Some gateways take a model in the query for more than that in the body.
fn names_model(upstream: &Upstream, query: &str) -> bool {
    parameters(query).any(|(_, name, _)| {
        let names = upstream.models_elsewhere.iter().map(String::as_str);
        names
            .chain(["model"])
            .any(|other| name.eq_ignore_ascii_case(other))
    })
}

/// Matches segment by segment, and returns what `{model}` stands for: an empty text where the pattern has none.
fn walk<'s>(pattern: Option<&str>, path: &'s [Cow<'s, str>], loose: bool) -> Option<&'s str> {
    let Some(pattern) = pattern else {
        return path.is_empty().then_some("");
    };
    let (first, rest) = match pattern.split_once('/') {
        Some((first, rest)) => (first, Some(rest)),
        None => (pattern, None),
    };
    if first == "**" {
        return (0..=path.len()).find_map(|skipped| walk(rest, &path[skipped..], loose));
    }
    let (segment, path) = path.split_first()?;
    let model = glob(first, segment, loose)?;
    let later = walk(rest, path, loose)?;
    Some(if model.is_empty() { later } else { model })
}

/// Whether a pattern stands for itself alone.
fn is_plain(pattern: &str) -> bool {
    memchr2(b'*', b'{', pattern.as_bytes()).is_none()
}

/// Matches one segment.
fn glob<'s>(pattern: &str, text: &'s str, loose: bool) -> Option<&'s str> {
    // Most are, and looking for words in them would take longer than all else.
    if is_plain(pattern) {
        return strip_prefix(text, pattern, loose)?.is_empty().then_some("");
    }
    if let Some((before, after)) = pattern.split_once("{model}") {
        let model = strip_prefix(text, before, false)?.strip_suffix(after)?;
        return (!model.is_empty()).then_some(model);
    }
    let Some((before, after)) = pattern.split_once('*') else {
        return strip_prefix(text, pattern, loose)?.is_empty().then_some("");
    };
    let rest = strip_prefix(text, before, loose)?;
    let ends = rest.char_indices().map(|(at, _)| at).chain([rest.len()]);
    let matches = ends
        .into_iter()
        .any(|at| glob(after, &rest[at..], loose).is_some());
    matches.then_some("")
}

fn strip_prefix<'s>(text: &'s str, prefix: &str, loose: bool) -> Option<&'s str> {
    if !loose {
        return text.strip_prefix(prefix);
    }
    let (start, rest) = text.split_at_checked(prefix.len())?;
    start.eq_ignore_ascii_case(prefix).then_some(rest)
}

#[cfg(test)]
mod tests;
