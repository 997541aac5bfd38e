use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use serde_json::json;

use super::*;

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

fn claim(name: &str, secret: &str) -> Claim {
    Claim {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        created: None,
        secret_name: secret.to_owned(),
        provider: "anthropic".to_owned(),
    }
}

fn secret(name: &str, owner: Option<&str>) -> Arc<ObservedSecret> {
    let owner = owner.map(|access| OwnerReference {
        uid: format!("uid-{access}"),
        controller: Some(true),
        ..OwnerReference::default()
    });
    Arc::new(ObservedSecret::from_metadata(ObjectMeta {
        name: Some(name.to_owned()),
        owner_references: owner.map(|owner| vec![owner]),
        ..ObjectMeta::default()
    }))
}

fn accesses(affected: &Affected) -> Vec<String> {
    let mut names: Vec<_> = affected
        .accesses
        .iter()
        .map(|access| access.name.clone())
        .collect();
    names.sort();
    names
}

#[test]
fn a_secret_concerns_its_owner_and_who_wants_its_name() {
    let mut index = Index::default();
    for (namespace, name, wanted) in [
        ("a", "owner", "old"),
        ("a", "wants", "s"),
        ("a", "other", "t"),
        ("b", "away", "s"),
    ] {
        index.apply(&key(namespace, name), claim(name, wanted));
    }
    let affected = index.apply(&key("a", "s"), Foreign(secret("s", Some("owner"))));
    assert_eq!(accesses(&affected), ["owner", "wants"]);
    let affected = index.apply(
        &key("a", "other.llmwarden"),
        Managed(secret("other.llmwarden", None)),
    );
    assert_eq!(accesses(&affected), ["other"]);
    // Whom it belonged to is concerned too.
    let affected = index.apply(&key("a", "s"), Foreign(secret("s", Some("other"))));
    assert_eq!(accesses(&affected), ["other", "owner", "wants"]);
}

#[test]
fn an_owner_in_another_namespace_is_none() {
    let mut index = Index::default();
    index.apply(&key("a", "agent"), claim("agent", "s"));
    let affected = index.apply(&key("b", "t"), Foreign(secret("t", Some("agent"))));
    assert_eq!(accesses(&affected), [""; 0]);
    assert!(index.owned_by("a", "uid-agent").is_empty());
    assert!(index.owner_of("b", &secret("t", Some("agent"))).is_none());
}

#[test]
fn what_is_gone_is_found_in_no_way() {
    let mut index = Index::default();
    let (access, taken) = (key("a", "agent"), key("a", "s"));
    index.apply(&access, claim("agent", "s"));
    index.apply(&access, claim("agent", "renamed"));
    assert_eq!(index.claims_of("a", "s").count(), 0);
    assert_eq!(index.claims_of("a", "renamed").count(), 1);
    assert_eq!(index.access_count("anthropic"), 1);
    index.apply(&taken, Managed(secret("s", Some("agent"))));
    assert_eq!(index.owned_by("a", "uid-agent").len(), 1);

    index.reset::<Claim>(|_| true, BTreeMap::new());
    index.reset::<Managed>(|_| true, BTreeMap::new());
    assert_eq!(
        (
            index.access_count("anthropic"),
            index.claims_of("a", "renamed").count()
        ),
        (0, 0)
    );
    assert!(index.owned_by("a", "uid-agent").is_empty());
    let ways = [
        &index.claims_by_provider,
        &index.claims_by_secret,
        &index.claims_by_uid,
        &index.managed_by_owner,
    ];
    assert!(ways.iter().all(|ways| ways.0.is_empty()), "{ways:?}");
}

fn sidecar_pod(accesses: &[&str]) -> k8s_openapi::api::core::v1::Pod {
    let dir = |access: &str| format!("/var/run/secrets/llmwarden/{access}");
    let mut arguments = vec!["--later".to_owned()];
    for access in accesses {
        arguments.extend(["--source".to_owned(), format!("{access}={}", dir(access))]);
    }
    let mounts = accesses
        .iter()
        .map(|access| json!({ "name": access, "mountPath": dir(access) }));
    let secret = |access: &str| json!({ "secretName": names::companion(access) });
    let volumes = accesses
        .iter()
        .map(|access| json!({ "name": access, "secret": secret(access) }));
    serde_json::from_value(json!({
        "metadata": { "name": "p", "labels": { "app": "agent" } },
        "spec": {
            "containers": [],
            "initContainers": [{
                "name": "llmwarden", "restartPolicy": "Always",
                "args": arguments,
                "volumeMounts": mounts.collect::<Vec<_>>(),
            }],
            "volumes": volumes.collect::<Vec<_>>(),
        },
    }))
    .expect("a pod")
}

#[test]
fn what_is_injected_is_known_by_its_structure() {
    type Change = fn(&mut k8s_openapi::api::core::v1::PodSpec);
    let cases: [(Change, &[&str]); 6] = [
        (|_| {}, &["b", "a"]),
        (|spec| spec.init_containers = None, &[]),
        (
            |spec| spec.containers = spec.init_containers.take().expect("one"),
            &[],
        ),
        (
            |spec| spec.init_containers.as_mut().expect("one")[0].restart_policy = None,
            &[],
        ),
        (
            |spec| {
                spec.init_containers.as_mut().expect("one")[0]
                    .volume_mounts
                    .as_mut()
                    .expect("two")
                    .truncate(1);
            },
            &["b"],
        ),
        (
            |spec| {
                spec.volumes.as_mut().expect("two")[0]
                    .secret
                    .as_mut()
                    .expect("one")
                    .secret_name = None;
            },
            &["a"],
        ),
    ];
    for (change, expected) in cases {
        let mut pod = sidecar_pod(&["b", "a"]);
        change(pod.spec.as_mut().expect("a spec"));
        assert_eq!(Labelled::from(pod).0.accesses, expected);
    }
}

#[test]
fn a_companion_concerns_the_pods_that_mount_it() {
    let mut index = Index::default();
    index.apply(&key("n", "p"), Labelled::from(sidecar_pod(&["a", "b"])));
    index.apply(&key("n", "q"), Labelled::from(sidecar_pod(&["b"])));
    index.apply(&key("m", "r"), Labelled::from(sidecar_pod(&["a"])));
    let of = |affected: Affected| affected.pods.into_iter().collect::<BTreeSet<_>>();
    let affected = index.apply(&key("n", "a.llmwarden"), Managed(secret("a.llmwarden", None)));
    assert_eq!(of(affected), [key("n", "p")].into());
    let affected = index.delete::<Managed>(&key("n", "a.llmwarden"));
    assert_eq!(of(affected), [key("n", "p")].into());
    let affected = index.apply(&key("n", "b.llmwarden"), Managed(secret("b.llmwarden", None)));
    assert_eq!(of(affected), [key("n", "p"), key("n", "q")].into());
    // What changes nothing that is remembered is no news.
    let same = index.apply(&key("n", "q"), Labelled::from(sidecar_pod(&["b"])));
    assert_eq!(same, Affected::default());
    index.delete::<Labelled>(&key("n", "p"));
    assert_eq!(index.pods_with("n", "a").count(), 0);
    assert_eq!(index.pods_with("n", "b").count(), 1);
}
