//! A request to the proxy: no target is accepted that two servers may read in two ways, no credential of the caller's goes
//! on, and nothing mints one, however it is spelled.
#![no_main]

use libfuzzer_sys::fuzz_target;
use llmwarden_proto::profile::ProviderKind;
use llmwarden_sidecar::proxy::caller::authenticate;
use llmwarden_sidecar::proxy::query::{decoded, parameters};
use llmwarden_sidecar::proxy::routes::{Decision, decide};
use llmwarden_sidecar::proxy::target::Target;
use secrecy::SecretString;

const PLACEHOLDER: &str = "sk-llmwarden-0123456789abcdef";

fuzz_target!(|text: &str| {
    let Ok(uri) = text.parse::<hyper::Uri>() else {
        return;
    };
    let Ok(request) = hyper::Request::post(uri).body(()) else {
        return;
    };
    let request = request.into_parts().0;
    let Ok(target) = Target::parse(&request.uri) else {
        return;
    };
    let auth = ProviderKind::Gemini.auth_header();
    let mut headers = request.headers;
    let left = authenticate(
        &mut headers,
        target.query,
        &auth,
        &SecretString::from(PLACEHOLDER),
    );
    assert!(left.is_err() || target.query.is_some_and(|query| query.contains(PLACEHOLDER)));
    let query = left.unwrap_or_default();
    let query = query.as_deref();

    assert!(parameters(query.unwrap_or_default()).all(|(_, name, _)| !name.eq_ignore_ascii_case("key")));
    let path = decoded(target.path);
    assert!(path.starts_with('/') && !path.contains("//") && !path.contains(['\\', '\0', ';', '%']));
    assert!(path.split('/').all(|segment| segment != "." && segment != ".."));

    for kind in [ProviderKind::Openai, ProviderKind::Gemini] {
        let upstream = kind.upstream(None);
        let decision = decide(&upstream, &request.method, target.path, query);
        let lower = path.to_ascii_lowercase();
        let mints = match kind {
            ProviderKind::Gemini => lower.contains("/auth_tokens/") || lower.ends_with("/auth_tokens"),
            _ => lower.contains("/realtime/"),
        };
        assert!(!mints || matches!(decision, Decision::Denied(_)), "{path}");
    }
});
