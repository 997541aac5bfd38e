//! A companion watched through the API server. Needs the right to get, list and watch that one Secret.

pub mod api_server;

use futures::TryStreamExt;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use llmwarden_proto::delivery::Companion;
use llmwarden_proto::errors::describe_watch;
use tokio_util::sync::CancellationToken;

use crate::store::{Seen, Store};

/// Watches the Secret `name` until `stop`. The watch itself goes on through every error, with a growing pause.
pub async fn run(
    client: Client,
    namespace: &str,
    name: &str,
    access: &str,
    store: &Store,
    stop: CancellationToken,
) {
    let secrets = Api::<Secret>::namespaced(client, namespace);
    let mut changes = std::pin::pin!(watcher::watch_object(secrets, name).default_backoff());
    loop {
        let next = tokio::select! {
            next = changes.try_next() => next,
            () = stop.cancelled() => return,
        };
        let seen = match next {
            Ok(Some(Some(secret))) => read(secret),
            Ok(Some(None)) => Seen::Nothing,
            Ok(None) => Seen::Problem("the watch ended".to_owned()),
            Err(error) => Seen::Problem(describe_watch(&error)),
        };
        store.observe(access, seen);
    }
}

fn read(secret: Secret) -> Seen {
    let data = secret.data.unwrap_or_default();
    if data.is_empty() {
        return Seen::Nothing;
    }
    match Companion::parse(|name| data.get(name).map(|ByteString(bytes)| bytes.as_slice())) {
        Ok(companion) => Seen::Companion(companion.into()),
        Err(error) => Seen::Problem(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn secret(data: &[(&str, &str)]) -> Secret {
        let data = data.iter();
        let data = data.map(|(name, value)| ((*name).to_owned(), ByteString(value.as_bytes().to_vec())));
        Secret {
            data: Some(data.collect::<BTreeMap<_, _>>()),
            ..Secret::default()
        }
    }

    #[test]
    fn an_empty_secret_is_none_and_a_broken_one_a_problem() {
        assert!(matches!(read(Secret::default()), Seen::Nothing));
        assert!(matches!(read(secret(&[])), Seen::Nothing));
        let broken = read(secret(&[
            ("live.json", "{\"version\": \"sk-1\"}"),
            ("apiKey", "sk-1"),
        ]));
        assert!(
            matches!(broken, Seen::Problem(text) if text.contains("live.json") && !text.contains("sk-1"))
        );
    }
}
